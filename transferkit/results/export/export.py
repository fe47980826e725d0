"""The `export` verb: a run's model for other programs; reloaded and compared on real pictures before it appears."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import jinja2
from rich.console import Console
from torch import nn

from transferkit.core.errors import ConfigError, ExportError, gather
from transferkit.core.files import atomic_write
from transferkit.core.records import DataConfig
from transferkit.features.probe.classifier_file import CLASSIFIER
from transferkit.models.artifact import INFO, WEIGHTS
from transferkit.options.results import ExportConfig
from transferkit.results.export.check import Verified
from transferkit.results.export.formats import export_network
from transferkit.results.export.sklearn import export_classifier
from transferkit.show.progress import counting_bar, progress_console

__all__ = ["SUFFIXES", "export"]

SUFFIXES: Final = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors", "skops": ".skops"}
"""Of the file, by format, where its name is not given."""


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
    out = Path(config.out) if config.out else run / f"{run.resolve().name}{SUFFIXES[config.format]}"
    example = out.with_name(f"{out.stem}_example.py") if config.format == "onnx" else None
    _check_targets(run, [out] if example is None else [out, example], overwrite=config.overwrite)
    with counting_bar(progress_console(config.quiet), "comparing") as told:
        if config.format == "skops":
            verified = export_classifier(config, out)
        else:
            verified, info = export_network(config, out, head=head, progress=told)
    if example is not None:
        inside = config.preprocessing == "inside"
        atomic_write(example, _example(out.name, example.name, info.preprocessing, inside=inside))
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


def _example(file: str, example: str, preprocessing: DataConfig, *, inside: bool) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("transferkit.results"),
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # it is Python
    )
    squash = preprocessing.crop_mode == "squash"
    template = environment.get_template("onnx_example.py.j2")
    return template.render(file=json.dumps(file), example=json.dumps(example), inside=inside, squash=squash)


def _print(out: Path, example: Path | None, verified: Verified) -> None:
    console = Console(highlight=False)
    result = verified.comparison
    apart = f"probabilities differ by at most {result.probability:.1e}"
    if result.logits is not None:
        apart += f", logits by {result.logits:.1e}"
    lines = [
        ("file", f"{out} ({out.stat().st_size / 1e6:.1f} MB, read back before it was put there)"),
        ("weights", verified.weights),
        *(("how", note) for note in verified.notes),
        ("labels", f"{result.agreement:.1%} the same on {result.pictures} {verified.origin}"),
        ("values", apart),
    ]
    if result.ratio is not None:
        lines.append(("speed", f"{result.ratio:.2f} times torch in eager mode, {result.timed} pictures at once"))
    if example is not None:
        lines.append(("next", f"python {example} PICTURE..."))
    for name, text in lines:
        console.print(f"{name:<9}{text}", soft_wrap=True, markup=False)
