"""What a report says of a run's classes and pictures: figures per class, confusions, mistakes, counts. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from transferkit.results.report.facts import NOUNS
from transferkit.runs.files import RunFiles, number

__all__ = ["class_counts", "confusion", "mistakes", "per_class"]

CONFUSION_CLASSES = 30
"""Up to so many classes the whole matrix is shown, above it the most frequent confusions."""

TOP_CONFUSIONS = 30
MAX_TINT = 42  # percent of colour behind a figure of the matrix; more would cost contrast


def per_class(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row per class of one split, in index order, with what it was most often taken for."""
    rows = []
    matrix = _matrix(values)
    names = [str(name) for name in values.get("per_class") or {}]
    for index, (name, row) in enumerate((values.get("per_class") or {}).items()):
        found = {key: number(row.get(key)) for key in ("recall", "precision", "f1")}
        others = {} if matrix is None else {names[at]: n for at, n in enumerate(matrix[index]) if at != index and n}
        worst = max(others, key=lambda key: others[key]) if others else ""
        rows.append({"name": str(name), "n": int(row.get("n") or 0), **found,
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
    names = [str(name) for name in values["per_class"]]
    top = sorted(
        ((count, true, guess) for true, row in enumerate(matrix) for guess, count in enumerate(row)
         if count and true != guess),
        key=lambda item: (-item[0], item[1], item[2]),
    )  # fmt: skip
    found: dict[str, Any] = {
        "names": names,
        "wrong": sum(count for count, _, _ in top),
        "rows": [],
        "top": [{"true": names[true], "predicted": names[guess], "n": count, "total": sum(matrix[true])}
                for count, true, guess in top[:TOP_CONFUSIONS]],
        "pairs": len(top),
    }  # fmt: skip
    if len(names) <= CONFUSION_CLASSES:
        for name, row in zip(names, matrix, strict=True):
            total = sum(row)
            # The root, because what is worth seeing is rare: one in nine shows as a third.
            tints = [round(MAX_TINT * math.sqrt(count / total)) if total else 0 for count in row]
            cells = [{"n": n, "tint": tint} for n, tint in zip(row, tints, strict=True)]
            found["rows"].append({"name": name, "total": total, "cells": cells})
    return found


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
    return {"split": splits[0], "noun": NOUNS[splits[0]], "n": len(inside), "wrong": len(wrong), "rows": rows}


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
    rows: list[dict[str, Any]] = [
        {"name": str(name), "counts": [int(by.get(name) or 0) for by in counts.values()]} for name in names
    ]
    most = max(sum(row["counts"]) for row in rows) or 1
    for row in rows:
        row |= {"total": sum(row["counts"]), "widths": [round(100 * count / most, 2) for count in row["counts"]]}
    first = "train" if "train" in counts else next(iter(counts))
    sizes = {str(name): int(counts[first].get(name) or 0) for name in names}
    large, small = max(sizes, key=lambda key: sizes[key]), min(sizes, key=lambda key: sizes[key])
    ratio = sizes[large] / sizes[small] if sizes[small] else None
    imbalance = (
        f"The largest class ({large}, {sizes[large]:,} {first} pictures) has {ratio:.1f} times the pictures of the "
        f"smallest ({small}, {sizes[small]:,})." if ratio is not None else f"“{small}” has no {first} pictures."
    )  # fmt: skip
    return {"splits": list(counts), "rows": rows, "imbalance": imbalance if len(names) > 1 else "",
            "totals": [sum(int(n) for n in by.values()) for by in counts.values()],
            "notes": [str(note) for note in files.data.get("notes") or ()] + left_out(files),
            "skipped": [{"path": files.shown_path(str(row.get("path"))), "reason": str(row.get("reason"))}
                        for row in files.data.get("skipped") or ()]}  # fmt: skip


def left_out(files: RunFiles) -> list[str]:
    """Return what an evaluation did not measure, a sentence each."""
    told = files.metrics.get("left_out") or {}
    found = []
    if told.get("seen_in_training"):
        found.append(f"{told['seen_in_training']:,} pictures that the run was trained on were left out.")
    if told.get("unreadable"):
        found.append(f"{told['unreadable']:,} unreadable pictures were left out.")
    unknown = files.data.get("unknown_classes") or {}
    if unknown:
        listed = ", ".join(f"{name} ({count:,})" for name, count in list(unknown.items())[:20])
        found.append(f"{sum(unknown.values()):,} pictures of {len(unknown)} classes that the model lacks were left "
                     f"out: {listed}{', ...' if len(unknown) > 20 else ''}.")  # fmt: skip
    missing = [str(name) for name in files.data.get("missing_classes") or ()]
    if missing:
        listed = ", ".join(missing[:20]) + (", ..." if len(missing) > 20 else "")
        found.append(f"There are no pictures of {len(missing)} classes that the model knows: {listed}.")
    return found
