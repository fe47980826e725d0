"""What `evaluate` prints at the end: figures with their intervals, what goes wrong most, what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from transferkit.core.text import listing
from transferkit.data.scan.records import SPLITS
from transferkit.models.task import task_named
from transferkit.results.report.facts import spoilt_text
from transferkit.results.report.unlike import beyond_text, told_texts, whole_text
from transferkit.runs.files import RunFiles
from transferkit.runs.summary import figures_text, headline_text, print_lines
from transferkit.show.progress import output_console
from transferkit.show.words import duration

__all__ = ["print_evaluation"]


def print_evaluation(out: Path, *, console: Console | None = None) -> None:
    """Print a finished evaluation on standard output.

    Args:
        out: The directory that `evaluate` wrote.
        console: Where to print.

    Raises:
        CheckpointError: One of its files is missing or damaged.
    """
    console = console or output_console()
    files = RunFiles(out)
    metrics = files.metrics
    lines = [("run", f"{metrics['run']} on {metrics['data']}")]
    splits = [name for name in (*SPLITS, "all") if name in metrics]
    for split in splits:
        values = metrics[split]
        mark = "" if len(splits) == 1 else f"{split}: "
        figures = files.figures(split)
        lines += [
            (split, headline_text(figures, values["n"])),
            ("", figures_text(figures, values.get("uncalibrated", {}))),
            *((name, mark + text) for name, text in (files.details.lines(values) if files.details else ())),
        ]
        if "corruptions" in values:
            lines.append(("spoilt", mark + spoilt_text(values["corruptions"])))
        if split in metrics.get("unlike_training", {}):
            lines += _unlike(metrics["unlike_training"][split], metrics.get("unlike"), mark)
        if split in metrics.get("against", {}):
            lines += _against(files, metrics["against"][split], mark)
    lines += _caveats(metrics, files.data)
    lines += [
        ("time", f"{duration(metrics['time_s'])} on {metrics['environment']['device']}"),
        ("written", str(out)),
        ("next", _next(files)),
    ]
    print_lines(console, lines)


# ---- figures ----------------------------------------------------------------------------------------------------


def _against(files: RunFiles, values: Mapping[str, Any], mark: str) -> list[tuple[str, str]]:
    left = f"; {values['left_out']:,} pictures of classes that it lacks left out" if values["left_out"] else ""
    lines = [("against", f"{mark}{values['verdict']}{left}")]
    more = "" if files.details is None else files.details.compared(values)
    return [*lines, ("", more)] if more else lines


def _unlike(values: Mapping[str, Any], others: Mapping[str, Any] | None, mark: str) -> list[tuple[str, str]]:
    """Return how far the pictures are from the training pictures, and how well others are told from them."""
    whole = whole_text(values)
    lines = [("unlike", f"{mark}{beyond_text(values)}{'' if whole is None else f'; {whole}'}")]
    texts = told_texts(values, others)
    return lines + [("" if number else "no class", f"{mark}{text}") for number, text in enumerate(texts)]


# ---- what must be known about them ------------------------------------------------------------------------------


def _caveats(metrics: Mapping[str, Any], data: Mapping[str, Any]) -> list[tuple[str, str]]:
    lines = []
    if metrics["seen_in_training"]:
        lines.append(("seen", f"the run was trained on {metrics['seen_in_training']:,} of these pictures"))
    if metrics["seen_in_val"]:
        calibration = metrics.get("calibration", {})
        fitted = calibration.get("fitted_on") == "val"
        what = "calibrated on" if fitted else "validated on"
        source = "its own metrics.json has cross-fitted figures"
        if calibration.get("method") == "conformal":  # of numbers, which stay as they are
            source = "its intervals are of their errors"
        crossed = f"; {source}" if fitted else ""
        lines.append(("seen", f"the run was {what} {metrics['seen_in_val']:,} of these pictures{crossed}"))
    left = metrics["left_out"]
    if left["seen_in_training"]:
        lines.append(("left out", f"{left['seen_in_training']:,} pictures that the run was trained on"))
    if left["unreadable"]:
        lines.append(("left out", f"{left['unreadable']:,} unreadable pictures, listed in data.json"))
    lines += [("answers", said) for said in data["answers"]]
    if data["unknown_classes"]:
        names = [f"{name} ({count:,})" for name, count in data["unknown_classes"].items()]
        lines.append(("left out", f"{left['unknown_classes']:,} pictures of classes that the model lacks: "
                                  f"{listing(names, quote=False)}"))  # fmt: skip
    if data["missing_classes"]:
        lines.append(("no data", f"for classes of the model: {listing(data['missing_classes'], quote=False)}"))
    return lines


def _next(files: RunFiles) -> str:
    run = shlex.quote(files.metrics["run"])
    task = task_named(files.task)
    if task.calibrator is not None and "calibration" not in files.metrics:
        return f"transferkit calibrate {run} DATA (its predictions are not calibrated; give it pictures of their own)"
    advice = None if files.details is None else files.details.advice(files.predictions)
    if advice is None:
        return f"transferkit predict {run} PICTURE..."
    path, reason = advice
    return f"transferkit explain {run} {shlex.quote(path)} --out explained ({reason})"
