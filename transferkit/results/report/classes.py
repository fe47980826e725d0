"""What a report says of a classifier: figures per class, confusions, calibration, mistakes, pictures of each class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from transferkit.models.figures.paired import Outcomes, compare
from transferkit.results.details.plots import FEW, reliability_chart
from transferkit.results.explain.pictures import mistake_pictures, sample_pictures
from transferkit.results.report.counts import confusion_table, count_table
from transferkit.results.report.facts import NOUNS, shown
from transferkit.results.report.page import Section, TaskSections, macros
from transferkit.runs.files import RunFiles, number
from transferkit.show.svg import drawn

__all__ = ["class_comparison", "class_sections"]

TEMPLATE = "classes.html.j2"

MISTAKES = 12

LEAST = 5e-7
"""Stands for a probability that `predictions.csv` rounds to 0."""


def class_sections(files: RunFiles, *, pictures: bool = True) -> TaskSections:
    """Return what the page of a run says of its classes; nothing where its files hold no classes.

    Args:
        files: The run.
        pictures: Whether sample pictures, mistakes and heat maps are shown.
    """
    split = files.splits[0] if files.splits else None
    values = {} if split is None else files.metrics[split]
    noun = NOUNS.get(split or "", "")
    parts, rows = macros(TEMPLATE), per_class(values)
    sections = []
    if rows:
        sections.append(Section("classes", "Classes", parts.classes(rows, noun)))
    matrix = confusion(values)
    if matrix is not None:
        sections.append(Section("confusion", "Confusions", parts.confusion(matrix, noun)))
    chart = reliability_chart(
        values.get("reliability") or (), "Stated probability against accuracy", f"{noun} pictures"
    )
    if chart is not None:
        sentences = calibration(values, files.metrics.get("calibration") or {})
        sections.append(Section("calibration", "Calibration", parts.calibration(drawn(chart), sentences, FEW)))
    wrong = mistakes(files, MISTAKES)
    if wrong is not None:
        images = mistake_pictures(wrong["rows"], files.model_run) if pictures and wrong["rows"] else None
        sections.append(Section("mistakes", "Mistakes", parts.mistakes(wrong, images)))
    samples = None
    if pictures and (files.pictures or files.predictions):
        hardest = sorted(rows, key=lambda row: (row["recall"] is None, row["recall"]))
        names = [row["name"] for row in hardest] or files.class_names
        samples = sample_pictures(files.pictures or files.predictions, names, files.decoding)
    data = parts.data(class_counts(files), samples, len(rows))
    names = files.class_names
    title = f"{len(names):,} classes" if names else ""
    return TaskSections(tuple(sentences_of(values, noun)), tuple(sections), data, title)


def sentences_of(values: Mapping[str, Any], noun: str) -> list[str]:
    """Return what an accuracy means: in pictures, without a mistake, and beside always giving the same answer."""
    acc, count = number(values.get("acc")), int(values.get("n") or 0)
    sentences = []
    if acc is not None and count:
        sentences.append(f"{round(acc * count):,} of {count:,} {noun} pictures were classified correctly.")
    if acc == 1.0 and count:
        sentences.append(
            f"With no mistake in {count:,} pictures, up to {shown(min(1.0, 3 / count), 'share')} of all such pictures "
            "may still go wrong (rule of three, 95 %)."
        )
    counts = {str(name): int(row.get("n") or 0) for name, row in (values.get("per_class") or {}).items()}
    total = sum(counts.values())
    if len(counts) > 1 and total:
        largest = max(counts, key=lambda name: counts[name])
        share = shown(counts[largest] / total, "share")
        sentences.append(f"Always answering “{largest}”, the most frequent class, would give {share}.")
    return sentences


# ---- classes ----------------------------------------------------------------------------------------------------


def per_class(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row per class of one split, in index order, with what it was most often taken for."""
    rows = []
    matrix = _matrix(values)
    names = [str(name) for name in values.get("per_class") or {}]
    for index, (name, row) in enumerate((values.get("per_class") or {}).items()):
        figures = {key: number(row.get(key)) for key in ("recall", "precision", "f1")}
        others = {} if matrix is None else {names[at]: n for at, n in enumerate(matrix[index]) if at != index and n}
        worst = max(others, key=lambda key: others[key]) if others else ""
        rows.append({"name": str(name), "n": int(row.get("n") or 0), **figures,
                     "taken_for": worst, "taken_n": others.get(worst, 0)})  # fmt: skip
    return rows


def _matrix(values: Mapping[str, Any]) -> list[list[int]] | None:
    matrix, classes = values.get("confusion"), len(values.get("per_class") or {})
    if not isinstance(matrix, list) or not classes:
        return None
    fits = len(matrix) == classes and all(isinstance(row, list) and len(row) == classes for row in matrix)
    return matrix if fits else None


def confusion(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the confusion matrix, rows true and columns predicted, and the most frequent confusions."""
    matrix = _matrix(values)
    if matrix is None:
        return None
    return confusion_table([str(name) for name in values["per_class"]], matrix)


def calibration(values: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """Return what calibration did to the probabilities of a split, a sentence each."""
    sentences = []
    before, after = number((values.get("uncalibrated") or {}).get("ece")), number(values.get("ece"))
    if before is not None and after is not None:
        sentences.append(f"ECE was {before:.3f} before calibration and is {after:.3f} after it.")
    if facts.get("method") == "temperature" and number(facts.get("temperature")):
        heat = float(facts["temperature"])
        was = "too sure of itself" if heat > 1.02 else "too timid" if heat < 0.98 else "about right"
        sentences.append(f"The logits are divided by a temperature of {heat:.3g}: the model was {was}.")
    elif facts.get("method"):
        sentences.append(f"Calibration is {facts['method']} scaling.")
    if facts.get("fitted_on"):
        folds = (
            f", cross-fitted over {facts['folds']} folds for the figures of that split" if facts.get("folds") else ""
        )
        sentences.append(f"It was fitted on {NOUNS.get(facts['fitted_on'], facts['fitted_on'])} pictures{folds}.")
    return sentences


def mistakes(files: RunFiles, limit: int) -> dict[str, Any] | None:
    """Return the wrong predictions of the headline's split that the model was most sure of."""
    splits = [split for split in files.splits if any(row["split"] == split for row in files.predictions)]
    if not splits:
        return None
    inside = [row for row in files.predictions if row["split"] == splits[0]]
    wrong = sorted((row for row in inside if row["label"] != row["predicted"]), key=lambda row: -_share(row))
    rows = [{"path": row["path"], "shown": files.shown_path(row["path"]), "label": row["label"],
             "predicted": row["predicted"], "probability": _share(row),
             "own": _share(row, "label_probability")} for row in wrong[:limit]]  # fmt: skip
    return {"noun": NOUNS[splits[0]], "n": len(inside), "wrong": len(wrong), "rows": rows}


def _share(row: Mapping[str, str], key: str = "probability") -> float:
    try:
        return number(float(row[key])) or 0.0
    except ValueError:
        return 0.0


def class_counts(files: RunFiles) -> dict[str, Any] | None:
    """Return pictures per class and split, and how unbalanced the classes are."""
    counts = {str(split): by_class for split, by_class in (files.data.get("counts") or {}).items() if by_class}
    names = files.data.get("classes") or files.class_names
    if not counts or not names:
        return None
    return count_table(counts, names)


# ---- several runs -----------------------------------------------------------------------------------------------


def class_comparison(files: Sequence[RunFiles], names: Sequence[str], split: str | None) -> TaskSections:
    """Return what a page of several runs says of their classes; the first run is what the others are held against.

    Args:
        files: The runs.
        names: Of the runs.
        split: What all were measured on; ``None`` where there is none, and nothing to compare.
    """
    if split is None:
        return TaskSections()
    parts, sections = macros(TEMPLATE), []
    pairs = _paired(files, names, split)
    if pairs:
        sections.append(Section("paired", "Picture by picture", parts.paired(pairs)))
    rows = _recalls(files, split)
    if rows:
        sections.append(Section("classes", "Classes", parts.recalls(rows, names, NOUNS[split])))
    return TaskSections(sections=tuple(sections))


def _paired(files: Sequence[RunFiles], names: Sequence[str], split: str) -> list[dict[str, Any]]:
    """Return each run held against the first one, picture by picture, where both have predicted the same pictures."""
    pairs = []
    rows = [{(row["path"], row["label"]): row for row in one.predictions if row["split"] == split} for one in files]
    for other in range(1, len(files)):
        if not rows[0] or rows[0].keys() != rows[other].keys():
            continue
        keys = sorted(rows[0])
        classes = sorted({label for _, label in keys})
        targets = np.array([classes.index(label) for _, label in keys])
        first, second = (_scores([one[key] for key in keys]) for one in (rows[other], rows[0]))
        result = compare(first, second, targets, classes, names=(names[other], names[0]))
        pairs.append({"name": names[other], "against": names[0], **result})
    return pairs


def _scores(rows: Sequence[dict[str, str]]) -> Outcomes:
    own = [max(float(row["label_probability"]), LEAST) for row in rows]
    return Outcomes(np.array([row["label"] == row["predicted"] for row in rows]), np.array([-math.log(p) for p in own]))


def _recalls(files: Sequence[RunFiles], split: str) -> list[dict[str, Any]]:
    """Return the recall of every class in every run, and its difference to the first run's."""
    tables = [one.metrics[split].get("per_class") or {} for one in files]
    rows = []
    for name in dict.fromkeys(name for table in tables for name in table):
        recalls = [number((table.get(name) or {}).get("recall")) for table in tables]
        known = recalls[0]
        differences = [None if known is None or value is None else value - known for value in recalls[1:]]
        count = next((table[name].get("n") for table in tables if name in table), None)
        rows.append({"name": str(name), "n": count, "recalls": recalls, "differences": differences})
    return rows
