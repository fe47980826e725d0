"""Several runs on one page: figures side by side, per class, over the epochs, and what was done differently. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from transferkit.models.figures.paired import Scores, compare
from transferkit.results.report.charts import lines_chart, series_line
from transferkit.results.report.command import group_names, named_phases, option_defaults
from transferkit.results.report.facts import NOUNS, interval, solved_probe
from transferkit.results.report.svg import Chart
from transferkit.runs.files import SPLITS, RunFiles, number
from transferkit.runs.write import NOT_SAVED
from transferkit.show.words import duration

__all__ = ["compare_runs"]

FIGURES = (("acc", "accuracy"), ("balanced_acc", "balanced"), ("f1_macro", "macro F1"), ("loss", "log loss"),
           ("ece", "ECE"))  # fmt: skip

LEAST = 5e-7
"""Stands for a probability that `predictions.csv` rounds to 0."""


def compare_runs(files: Sequence[RunFiles]) -> dict[str, Any]:
    """Return everything that the page of several runs shows; the first run is what the others are held against.

    Args:
        files: At least two runs.
    """
    names = run_names(files)
    split = next((split for split in SPLITS if all(split in one.splits for one in files)), None)
    return {
        "names": names,
        "split": split,
        "noun": NOUNS.get(split or "", ""),
        "warnings": _warnings(files, names, split),
        "runs": [_figures(one, name, split) for one, name in zip(files, names, strict=True)],
        "columns": [label for _, label in FIGURES],
        "paired": _paired(files, names, split),
        "classes": _classes(files, split),
        "curves": _curves(files, names),
        "options": _options(files),
        "problems": [f"{name}: {problem}" for one, name in zip(files, names, strict=True) for problem in one.problems],
    }


def run_names(files: Sequence[RunFiles]) -> list[str]:
    """Return a name for each run, its directory's own where that tells them apart."""
    names = [one.name for one in files]
    return [name if names.count(name) == 1 else str(one.run) for one, name in zip(files, names, strict=True)]


def _warnings(files: Sequence[RunFiles], names: Sequence[str], split: str | None) -> list[str]:
    found = []
    if split is None:
        told = ", ".join(f"{name}: {', '.join(one.splits) or 'none'}" for one, name in zip(files, names, strict=True))
        found.append(f"The runs have no split in common ({told}): each is shown with its own, and they cannot be "
                     "compared.")  # fmt: skip
    counts = [number(one.metrics[split].get("n")) for one in files] if split else []
    digests = {one.data["digest"] for one in files if one.data.get("digest")}
    if len(set(counts)) > 1 or len(digests) > 1:
        found.append("The runs were not made on the same pictures, so a difference may come from the pictures.")
    if split == "val" and any((one.metrics.get("selection") or {}).get("monitor") is not None for one in files):
        found.append("Something was chosen on val in at least one of the runs, so its figures are optimistic.")
    return found


def _figures(one: RunFiles, name: str, split: str | None) -> dict[str, Any]:
    shown = split if split is not None else next(iter(one.splits), None)
    values = one.metrics[shown] if shown is not None else {}
    seconds = number(one.metrics.get("time_s"))
    cells = []
    for key, _ in FIGURES:
        value, bounds = number(values.get(key)), interval(values, key)
        cells.append({"value": value, "ci": bounds, "share": key not in ("loss", "ece")})
    return {
        "name": name,
        "kind": one.kind,
        "backbone": str(one.config.get("backbone") or one.model.get("backbone") or ""),
        "split": shown,
        "n": values.get("n"),
        "acc": number(values.get("acc")),
        "ci": interval(values, "acc"),
        "cells": cells,
        "seconds": seconds,
        "time": "" if seconds is None else duration(seconds),
    }


def _paired(files: Sequence[RunFiles], names: Sequence[str], split: str | None) -> list[dict[str, Any]]:
    """Return each run held against the first one, picture by picture, where both have predicted the same pictures."""
    if split is None:
        return []
    found = []
    rows = [{(row["path"], row["label"]): row for row in one.predictions if row["split"] == split} for one in files]
    for other in range(1, len(files)):
        if not rows[0] or rows[0].keys() != rows[other].keys():
            continue
        keys = sorted(rows[0])
        classes = sorted({label for _, label in keys})
        targets = np.array([classes.index(label) for _, label in keys])
        first, second = (_scores([one[key] for key in keys]) for one in (rows[other], rows[0]))
        result = compare(first, second, targets, classes, names=(names[other], names[0]))
        found.append({"name": names[other], "against": names[0], **result})
    return found


def _scores(rows: Sequence[dict[str, str]]) -> Scores:
    own = [max(float(row["label_probability"]), LEAST) for row in rows]
    return Scores(np.array([row["label"] == row["predicted"] for row in rows]), np.array([-math.log(p) for p in own]))


def _classes(files: Sequence[RunFiles], split: str | None) -> list[dict[str, Any]]:
    """Return the recall of every class in every run, and its difference to the first run's."""
    if split is None:
        return []
    tables = [one.metrics[split].get("per_class") or {} for one in files]
    rows = []
    for name in dict.fromkeys(name for table in tables for name in table):
        recalls = [number((table.get(name) or {}).get("recall")) for table in tables]
        known = recalls[0]
        differences = [None if known is None or value is None else value - known for value in recalls[1:]]
        count = next((table[name].get("n") for table in tables if name in table), None)
        rows.append({"name": str(name), "n": count, "recalls": recalls, "differences": differences})
    return rows


def _curves(files: Sequence[RunFiles], names: Sequence[str]) -> list[Chart]:
    """Return validation accuracy and loss of all runs over the epochs."""
    found = []
    for key, title, percent in (("val_acc", "Validation accuracy", True), ("val_loss", "Validation loss", False)):
        lines, marks = [], []
        for at, (one, name) in enumerate(zip(files, names, strict=True)):
            x = [float(row["epoch"] + 1) for row in one.history]
            y = [number(row.get(key)) for row in one.history]
            before = number(solved_probe(one).get(key))
            if any(value is not None for value in y):
                lines.append(series_line(at, name, x, y))
            if before is not None:
                marks.append((0.0, before, series_line(at, name, [], []).colour))
        if lines:
            told = f"{title} over the epochs of {', '.join(line.name for line in lines)}"
            found.append(lines_chart(key, title, lines, percent=percent, marks=marks, description=told))
    return found


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
            rows.append({"name": f"--{key.replace('_', '-')}", "values": [_told(config[key]) for config in configs]})
    return [row for row in rows if len(set(row["values"])) > 1]


def _told(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
