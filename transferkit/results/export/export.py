"""The `export` verb: a run's model for other programs; reloaded and compared on real pictures before it appears."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import jinja2
from torch import nn

from transferkit.core.documents import parse_json
from transferkit.core.errors import ConfigError, ExportError, gather
from transferkit.core.files import atomic_write, write_atomically
from transferkit.features.probe.classifier_file import CLASSIFIER
from transferkit.models.artifact import INFO, WEIGHTS, ModelInfo, load_model
from transferkit.models.task import task_named
from transferkit.options.results import ExportConfig
from transferkit.results.export import onnx, program, skops, timm
from transferkit.results.export.check import Comparison, ExportPictures, compare, export_pictures
from transferkit.results.export.format import Subject, export_facts, need
from transferkit.results.predict.predictor import Predictor
from transferkit.runs.labelled import run_columns
from transferkit.show.progress import counting_bar, output_console, progress_console

__all__ = ["FORMATS", "INT8_WAYS", "export"]

FORMATS: Final = {
    "onnx": onnx.FORMAT, "torch": program.FORMAT, "safetensors": timm.FORMAT, "skops": skops.FORMAT,
}  # fmt: skip

INT8_WAYS: Final = ("static", "dynamic")
"""In the order of trial: ranges of activations measured on pictures beforehand, or taken anew from each batch."""


@dataclass(frozen=True)
class _Verified:
    """A file that was written, read back and compared.

    Attributes:
        comparison: How near it is to the run.
        origin: The pictures compared on, in words.
        weights: Which weights went out, in words.
        notes: What else is worth telling.
    """

    comparison: Comparison
    origin: str
    weights: str
    notes: tuple[str, ...] = ()


def export(config: ExportConfig, *, head: nn.Module | None = None) -> Path:
    """Export a run's model. Nothing is left behind, and an existing file stays as it is, where anything fails.

    Args:
        config: The options.
        head: The head, for a model whose head was a module of your own.

    Returns:
        The file. Beside an ONNX file lies ``<name>_example.py``, which uses it without transferkit and torch.

    Raises:
        ConfigError: An option is wrong.
        ExportError: The file exists already, a library is missing, the model cannot be written in this format, there
            is no picture to compare on, or what was written does not compute what the run computes.
        CheckpointError: The run's model is missing or damaged.
        StorageError: The disk is full or read-only.
    """
    problems = config.problems()
    if problems:
        raise ConfigError(gather(problems))
    run = Path(config.run)
    out = Path(config.out) if config.out else run / f"{run.resolve().name}{FORMATS[config.format].suffix}"
    example = out.with_name(f"{out.stem}_example.py") if config.format == "onnx" else None
    _check_targets(run, [out] if example is None else [out, example], overwrite=config.overwrite)
    with counting_bar(progress_console(config.quiet), "comparing") as progress:
        if config.format == "skops" and skops.keeps_classifier(run):
            comparison, origin, facts = skops.export_classifier(config, out)
            verified = _Verified(comparison, origin, facts["weights"], (skops.FORMAT.note,))
        else:
            verified, info = _export_network(config, out, head, progress)
    if example is not None:
        inside = config.preprocessing == "inside"
        atomic_write(example, _example(out.name, example.name, info, inside=inside))
    if not config.quiet:
        _print(out, example, verified)
    return out


def _check_targets(run: Path, targets: list[Path], *, overwrite: bool) -> None:
    """Refuse files that cannot be written, before any work is done."""
    for path in targets:
        if not path.parent.is_dir():
            raise ExportError(f"{path.parent}: is no directory - create it, or give another --out")
        if path.is_dir():
            raise ExportError(f"{path}: is a directory, expected a file - give another --out")
        if any(path.resolve() == (run / name).resolve() for name in (WEIGHTS, INFO, CLASSIFIER)):
            raise ExportError(f"{path}: is a file of the run itself - give another --out")
        if path.exists() and not overwrite:
            raise ExportError(f"{path}: exists already - replace it by --overwrite, or give another --out")


def _export_network(
    config: ExportConfig, out: Path, head: nn.Module | None, progress: Callable[[int, int], None] | None
) -> tuple[_Verified, ModelInfo]:
    """Write a run's network to `out`, in one step, once what was written agrees with the run."""
    run, format = Path(config.run), FORMATS[config.format]
    need(format)
    _check_head(run, head)
    module, info = load_model(run, head=head, max_pixels=config.max_pixels)
    if info.preprocessing.tiled and config.preprocessing == "inside":
        height, width = info.preprocessing.image_size
        raise ConfigError(
            f"--preprocessing inside takes whole pictures, and this model sees windows of {width} x {height} pixels - "
            "leave it out: the program beside the file cuts them and puts the masks together"
        )
    facts = export_facts(config, info)
    facts |= format.supports(run, module, info) or {}
    columns = None
    if config.data is not None:
        columns = run_columns(
            run, module.task.targets, info.targets, config.data, path_column=config.path_column, root=config.root
        )
    pictures = export_pictures(
        run, info.targets, data=config.data, most=config.pictures, columns=columns, rescan=config.rescan
    )
    ways = INT8_WAYS if config.precision == "int8" else ("",)
    results: list[Comparison] = []

    def write(path: Path) -> None:
        predictor = Predictor(module, info)
        limits = format.limits(config)
        for way in ways:
            subject = Subject(config, predictor, facts, pictures, way)
            format.write(subject, path)
            inside = config.preprocessing == "inside"
            results.append(
                compare(
                    format.load(subject, path), predictor, pictures.compared, inside=inside, mixing=way == "dynamic",
                    timed=format.timed, near=limits.near, progress=progress,
                )
            )  # fmt: skip
            problem = results[-1].problem(limits)
            if problem is None:
                return
        raise ExportError(
            f"{out} is not written: {problem}, compared with the run on {pictures.origin} - {format.instead(config)}"
        )

    write_atomically(out, write)
    notes = [format.note] if format.note else []
    if config.precision == "int8":
        notes += _int8_notes(results, pictures)
    return _Verified(results[-1], pictures.origin, facts["weights"], tuple(notes)), info


def _int8_notes(results: list[Comparison], pictures: ExportPictures) -> list[str]:
    way = INT8_WAYS[len(results) - 1]
    measured = (
        f"ranges measured on {len(pictures.calibrating)} pictures"
        if way == "static"
        else "ranges per batch: an answer depends on the other pictures of its batch, and was compared in two batches"
    )
    return [
        f"int8 {way}, {measured}",
        *(f"int8 {INT8_WAYS[at]} was tried before and kept {result.agreement:.1%} of the {result.words.answers}"
          for at, result in enumerate(results[:-1])),
    ]  # fmt: skip


def _check_head(run: Path, head: nn.Module | None) -> None:
    """Say it in this verb's words where a model cannot be rebuilt from its files."""
    try:
        values = parse_json((run / INFO).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        if not (run / INFO).exists() and (run / CLASSIFIER).is_file():
            raise ExportError(f"{run}: holds a classifier of features and no network - use --format skops") from None
        return  # `load_model` says what is wrong
    if head is None and isinstance(values, dict) and values.get("head", "") is None:
        raise ExportError(
            f"{run}: its head is a module of your own, which only your program can build - "
            "export from Python: transferkit.results.export.export.export(config, head=...)"
        )


def _example(file: str, example: str, info: ModelInfo, *, inside: bool) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("transferkit.results"),
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # it is Python
    )
    output = task_named(info.task).output
    return environment.get_template("onnx_example.py.j2").render(
        file=json.dumps(file),
        example=json.dumps(example),
        inside=inside,
        crop_mode=info.preprocessing.crop_mode,
        channels=info.preprocessing.channels,
        ranged=info.preprocessing.decoding.value_range is not None,
        names_one=output.names_one,
        labels=output.labels,
        masks=output.files is not None and output.objects is None,
        boxes=output.objects is not None,
    )


def _print(out: Path, example: Path | None, verified: _Verified) -> None:
    console = output_console()
    result = verified.comparison
    words = result.words
    apart = f"{words.values} differ by at most {result.probability:.1e}" if words.measured else ""
    if result.logits is not None:
        apart += f", logits by {result.logits:.1e}"
    if result.unlike is not None:
        apart += f", unlike_training by {result.unlike:.1e} on average"
    lines = [
        ("file", f"{out} ({out.stat().st_size / 1e6:.1f} MB, read back before it was put there)"),
        ("weights", verified.weights),
        *(("how", note) for note in verified.notes),
        (words.answers, f"{result.agreement:.1%} the same on {result.pictures} {verified.origin}"),
        *([("values", apart)] if apart else []),
    ]
    if result.ratio is not None:
        lines.append(("speed", f"{result.ratio:.2f} times torch in eager mode, {result.timed} pictures at once"))
    if example is not None:
        lines.append(("next", f"python {example} PICTURE..."))
    for name, text in lines:
        console.print(f"{name:<9}{text}", soft_wrap=True)
