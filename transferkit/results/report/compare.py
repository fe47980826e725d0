"""Several runs on one page: figures side by side, over the epochs, and what was done differently. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transferkit.models.figures.figure import Figure
from transferkit.results.report.command import group_names, named_phases, option_defaults
from transferkit.results.report.facts import NOUNS, interval, shown, solved_head
from transferkit.results.report.page import TaskSections
from transferkit.runs.files import SPLITS, RunFiles, number
from transferkit.runs.write import NOT_SAVED
from transferkit.show.charts import DASHES, SERIES, Line, Lines
from transferkit.show.svg import Drawn, drawn
from transferkit.show.words import duration, mid_sentence

__all__ = ["compare_runs"]


def compare_runs(files: Sequence[RunFiles]) -> dict[str, Any]:
    """Return everything that the page of several runs shows; the first run is what the others are held against.

    Args:
        files: At least two runs.
    """
    names = run_names(files)
    split = next((split for split in SPLITS if all(split in one.splits for one in files)), None)
    columns = _columns(files, split)
    details = files[0].details if len(_tasks(files)) == 1 else None
    return {
        "names": names,
        "split": split,
        "noun": NOUNS.get(split or "", ""),
        "warnings": _warnings(files, names, split),
        "runs": [_figures(one, name, split, columns) for one, name in zip(files, names, strict=True)],
        "columns": columns,
        "curves": _curves(files, names),
        "solved": any(solved_head(one) for one in files),
        "task": TaskSections() if details is None else details.comparison(files, names, split),
        "options": _options(files),
        "problems": [f"{name}: {problem}" for one, name in zip(files, names, strict=True) for problem in one.problems],
    }


def run_names(files: Sequence[RunFiles]) -> list[str]:
    """Return a name for each run, its directory's own where that tells them apart."""
    names = [one.name for one in files]
    return [name if names.count(name) == 1 else str(one.run) for one, name in zip(files, names, strict=True)]


def _tasks(files: Sequence[RunFiles]) -> list[str]:
    """Return the kinds of answer of the runs, each once."""
    return list(dict.fromkeys(one.task for one in files))


def _warnings(files: Sequence[RunFiles], names: Sequence[str], split: str | None) -> list[str]:
    warnings = []
    if split is None:
        own = ", ".join(f"{name}: {', '.join(one.splits) or 'none'}" for one, name in zip(files, names, strict=True))
        warnings.append(f"The runs have no split in common ({own}): each is shown with its own, and they cannot be "
                        "compared.")  # fmt: skip
    counts = [number(one.metrics[split].get("n")) for one in files] if split else []
    digests = {one.data["digest"] for one in files if one.data.get("digest")}
    if len(set(counts)) > 1 or len(digests) > 1:
        warnings.append("The runs were not made on the same pictures, so a difference may come from the pictures.")
    tasks = _tasks(files)
    if len(tasks) > 1:
        warnings.append(f"The runs give different kinds of answers ({', '.join(tasks)}): what has the same name is not "
                        "the same, and they cannot be compared.")  # fmt: skip
    if split == "val" and any((one.metrics.get("selection") or {}).get("monitor") is not None for one in files):
        warnings.append("Something was chosen on val in at least one of the runs, so its figures are optimistic.")
    return warnings


def _split_of(one: RunFiles, split: str | None) -> str | None:
    return split if split is not None else next(iter(one.splits), None)


def _columns(files: Sequence[RunFiles], split: str | None) -> list[Figure]:
    """Return the figures of all pictures that any of the runs has, the headline first."""
    figures: dict[str, Figure] = {}
    for one in files:
        own = _split_of(one, split)
        for figure in one.figures(own) if own is not None else ():
            if figure.of is None and figure.value is not None:
                figures.setdefault(figure.key, figure)
    return list(figures.values())


def _figures(one: RunFiles, name: str, split: str | None, columns: Sequence[Figure]) -> dict[str, Any]:
    own = _split_of(one, split)
    figures = {figure.key: figure for figure in one.figures(own) if figure.of is None} if own is not None else {}
    cells = []
    for column in columns:
        figure = figures.get(column.key, replace(column, value=None, ci=None))
        bounds = interval(figure)
        limits = "" if bounds is None else " to ".join(shown(bound, figure.unit) for bound in bounds)
        text = shown(figure.value, figure.unit)
        cells.append({"value": number(figure.value), "text": text, "bounds": bounds, "ci": limits})
    seconds = number(one.metrics.get("time_s"))
    return {
        "name": name,
        "kind": one.kind,
        "backbone": str(one.config.get("backbone") or one.model.get("backbone") or ""),
        "split": own,
        "n": None if own is None else one.metrics[own].get("n"),
        "cells": cells,
        "seconds": seconds,
        "time": "" if seconds is None else duration(seconds),
    }


def _curves(files: Sequence[RunFiles], names: Sequence[str]) -> list[Drawn]:
    """Return what the runs followed on `val`, over the epochs."""
    followed = {figure.key: figure for one in files for figure in one.followed}
    charts = []
    ways = [(figure, task) for figure in sorted(followed.values(), key=lambda figure: figure.key == "loss")
            for task in _tasks(files)]  # fmt: skip
    for figure, task in ways:
        key, lines, marks = f"val_{figure.key}", [], []
        for at, (one, name) in enumerate(zip(files, names, strict=True)):
            if one.task != task:
                continue
            line = _series(at, name, [float(row["epoch"] + 1) for row in one.history],
                           [number(row.get(key)) for row in one.history])  # fmt: skip
            before = number(solved_head(one).get(key))
            if any(value is not None for value in line.y):
                lines.append(line)
            if before is not None:
                marks.append((0.0, before, line.colour))
        if lines:
            title = f"Validation {mid_sentence(figure.label)}"
            if len(_tasks(files)) > 1:
                key, title = f"{key}_{task}", f"{title}, {task}"
            description = f"{title} over the epochs of {', '.join(line.name for line in lines)}"
            charts.append(Lines(lines, percent=figure.unit == "share", marks=marks).chart(key, title, description))
    return [drawn(chart) for chart in charts]


def _series(number_: int, name: str, x: Sequence[float], y: Sequence[float | None]) -> Line:
    """Return the line of one of several runs: colours first, then dashes."""
    count = len(SERIES)
    return Line(name, x, y, SERIES[number_ % count], DASHES[number_ // count % len(DASHES)])


def _options(files: Sequence[RunFiles]) -> list[dict[str, Any]]:
    """Return the options that are not the same in all runs, of those that every run's verb has.

    One that a run did not write down yet stands at its default: new options are off unless asked for.
    """
    defaults = [option_defaults(one.kind) for one in files]
    configs = []
    for one, known in zip(files, defaults, strict=True):
        config = {**known, **one.config}
        if "phases" in one.config:
            config["phases"] = named_phases(one.config, group_names(one))
        configs.append(config)
    rows = [{"name": "verb", "values": [one.kind for one in files]}]
    for key in defaults[0]:
        if key not in NOT_SAVED and all(key in known for known in defaults):
            rows.append({"name": f"--{key.replace('_', '-')}", "values": [_word(config[key]) for config in configs]})
    return [row for row in rows if len(set(row["values"])) > 1]


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
