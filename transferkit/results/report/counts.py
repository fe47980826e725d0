"""Tables of classes for a page: pictures per class and split, and which classes are taken for which."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["confusion_table", "count_table"]

CONFUSION_CLASSES = 30
"""Up to so many classes the whole matrix is shown, above it the most frequent confusions."""

TOP_CONFUSIONS = 30
MAX_TINT = 42  # percent of colour behind a figure of the matrix; more would cost contrast


def confusion_table(names: Sequence[str], matrix: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Return what the page shows of a confusion matrix: its cells, and the most frequent confusions.

    Args:
        names: Of the classes.
        matrix: ``(C, C)``, rows true and columns predicted.
    """
    top = sorted(
        ((count, true, guess) for true, row in enumerate(matrix) for guess, count in enumerate(row)
         if count and true != guess),
        key=lambda item: (-item[0], item[1], item[2]),
    )  # fmt: skip
    rows = []
    for name, row in zip(names, matrix, strict=True) if len(names) <= CONFUSION_CLASSES else ():
        total = sum(row)
        # The root, because what is worth seeing is rare: one in nine shows as a third.
        cells = [{"n": n, "tint": round(MAX_TINT * math.sqrt(n / total)) if total else 0} for n in row]
        rows.append({"name": name, "cells": cells})
    listed = top[: TOP_CONFUSIONS if not rows else 5]
    return {
        "names": list(names),
        "rows": rows,
        "top": [{"true": names[true], "predicted": names[guess], "n": count, "share": count / sum(matrix[true])}
                for count, true, guess in listed],
        "pairs": len(top),
    }  # fmt: skip


def count_table(
    counts: Mapping[str, Mapping[str, int]], names: Sequence[str], *,
    unit: str = "pictures", sizes: Mapping[str, int] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return pictures per class and split, and how unbalanced the classes are.

    Args:
        counts: Pictures by split and class; at least one split.
        names: Of the classes, at least one.
        unit: What is counted by class.
        sizes: Pictures by split, where they are not the sum of those of the classes.
    """
    rows: list[dict[str, Any]] = [
        {"name": str(name), "counts": [int(by.get(name) or 0) for by in counts.values()]} for name in names
    ]
    most = max(sum(row["counts"]) for row in rows) or 1
    for row in rows:
        row |= {"total": sum(row["counts"]), "widths": [round(100 * count / most, 2) for count in row["counts"]]}
    first = "train" if "train" in counts else next(iter(counts))
    of_class = {str(name): int(counts[first].get(name) or 0) for name in names}
    large, small = max(of_class, key=lambda key: of_class[key]), min(of_class, key=lambda key: of_class[key])
    most, least = of_class[large], of_class[small]
    if not least:
        imbalance = f"“{small}” has no {first} {unit}."
    elif most == least:
        imbalance = f"Every class has {least:,} {first} {unit}."
    else:
        imbalance = (
            f"The largest class ({large}, {most:,} {first} {unit}) has {most / least:.1f} times the {unit} of the "
            f"smallest ({small}, {least:,})."
        )
    totals = [sum(int(n) for n in by.values()) for by in counts.values()]
    if sizes is not None:
        totals = [sizes[split] for split in counts]
    return {"splits": list(counts), "rows": rows, "imbalance": imbalance if len(names) > 1 else "", "totals": totals,
            "unit": unit, "all": "all" if unit == "pictures" else "pictures"}  # fmt: skip
