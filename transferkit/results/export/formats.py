"""A run's network in one of the formats for networks: written, read back, compared, and only then in place."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from torch import nn

from transferkit.core.errors import ExportError
from transferkit.core.files import write_atomically
from transferkit.features.probe.classifier_file import CLASSIFIER
from transferkit.models.artifact import INFO, ModelInfo, load_model
from transferkit.options.results import ExportConfig
from transferkit.results.export.check import LIMITS, Comparison, Exported, Verified, compare
from transferkit.results.export.facts import export_facts
from transferkit.results.export.onnx import build_onnx, load_onnx, need_onnx, quantise, write_onnx
from transferkit.results.export.pictures import ExportPictures, export_pictures
from transferkit.results.export.timm import load_timm, timm_arguments, write_timm
from transferkit.results.export.torch import load_torch, write_torch
from transferkit.results.predict.model import Predictor

__all__ = ["INT8_WAYS", "export_network"]

INT8_WAYS: Final = ("static", "dynamic")
"""In the order of trial: ranges of activations measured on pictures beforehand, or taken anew from each batch."""


def export_network(
    config: ExportConfig,
    out: Path,
    *,
    head: nn.Module | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Verified, ModelInfo]:
    """Write a run's network to `out`, in one step, once what was written agrees with the run.

    Args:
        config: The options.
        out: The file.
        head: The head, for a model whose head was a module of the user's own.
        progress: Called with the pictures compared and all.

    Raises:
        ExportError: As `export` says.
        CheckpointError: The run's model is missing or damaged.
        StorageError: The disk is full or read-only.
    """
    run = Path(config.run)
    if config.format == "onnx":
        need_onnx()
    _check_head(run, head)
    module, info = load_model(run, head=head)
    if config.format == "safetensors":
        timm_arguments(module, info)  # what cannot be written is told before pictures are looked for
    pictures = export_pictures(run, info.class_names, data=config.data, most=config.pictures)
    inside = config.preprocessing == "inside"
    facts = export_facts(run, info, precision=config.precision, preprocessing_inside=str(inside).lower())
    ways = INT8_WAYS if config.precision == "int8" else ("",)
    limits = LIMITS["inside" if inside and config.precision == "32" else config.precision]
    results: list[Comparison] = []

    def write(path: Path) -> None:
        predictor = Predictor(module, info)
        for way in ways:
            exported = _write(config, predictor, path, facts, way, pictures)
            results.append(compare(exported, predictor, pictures.compared, inside=inside, progress=progress))
            problem = results[-1].problem(limits)
            if problem is None:
                return
        raise ExportError(
            f"{out} is not written: {problem}, compared with the run on {pictures.origin} - {_instead(config)}"
        )

    write_atomically(out, write)
    notes = []
    if config.precision == "int8":
        way = ways[len(results) - 1]
        measured = f"ranges measured on {len(pictures.calibrating)} pictures" if way == "static" else "ranges per batch"
        notes.append(f"int8 {way}, {measured}")
        notes += [f"int8 {ways[at]} was tried before and kept {results[at].agreement:.1%} of the labels"
                  for at in range(len(results) - 1)]  # fmt: skip
    return Verified(results[-1], pictures.origin, facts["weights"], tuple(notes)), info


def _write(
    config: ExportConfig,
    predictor: Predictor,
    path: Path,
    facts: Mapping[str, str],
    way: str,
    pictures: ExportPictures,
) -> Exported:
    """Write the model, and read it back."""
    module, info = predictor.module, predictor.info
    if config.format == "torch":
        write_torch(module, info, path, facts)
        return load_torch(path)
    if config.format == "safetensors":
        write_timm(module, info, path, facts)
        return load_timm(path, timm_arguments(module, info), info)
    model = build_onnx(module, info, half=config.precision == "fp16")
    if way:
        model = quantise(model, predictor, pictures.calibrating, static=way == "static")
    write_onnx(model, path, {**facts, "quantisation": way}, info, preprocessing=config.preprocessing)
    return load_onnx(path, preprocessing=config.preprocessing)


def _instead(config: ExportConfig) -> str:
    if config.precision != "32":
        return "use --precision 32" + (" or fp16" if config.precision == "int8" else "")
    return "use another format" + (", or --preprocessing outside" if config.preprocessing == "inside" else "")


def _check_head(run: Path, head: nn.Module | None) -> None:
    """Say it in this verb's words where a model cannot be rebuilt from its files."""
    try:
        values = json.loads((run / INFO).read_text())
    except (OSError, ValueError):
        if not (run / INFO).exists() and (run / CLASSIFIER).is_file():
            raise ExportError(f"{run}: holds a classifier of features and no network - use --format skops") from None
        return  # `load_model` says what is wrong
    if head is None and isinstance(values, dict) and values.get("head", "") is None:
        raise ExportError(
            f"{run}: its head is a module of your own, which only your program can build - "
            "export from Python: transferkit.results.export.export.export(config, head=...)"
        )
