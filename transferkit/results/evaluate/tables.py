"""The tables of an evaluation as CSV: classes, confusions, reliability bins, differences to another model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.core.csv import csv_text
from transferkit.core.files import atomic_write

__all__ = ["confusions", "write_differences", "write_tables"]

MOST = 50
"""Confusions in the table where there are too many classes for all pairs."""


def confusions(
    targets: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], class_names: Sequence[str], most: int
) -> list[dict[str, Any]]:
    """Return the most frequent mistakes, ``class, predicted, n``, in descending order; of equal ones by class index.

    Takes memory for the pairs that occur, not for a matrix.

    Args:
        targets: ``(N,)``, true class indices.
        predicted: ``(N,)``, predicted class indices.
        class_names: In index order.
        most: How many, at most.
    """
    wrong = targets != predicted
    pairs, counts = np.unique(np.stack([targets[wrong], predicted[wrong]], axis=1), axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:most]
    return [
        {"class": class_names[pairs[row, 0]], "predicted": class_names[pairs[row, 1]], "n": int(counts[row])}
        for row in order
    ]


def write_tables(
    out: Path, splits: Mapping[str, Mapping[str, Any]], mistakes: Mapping[str, Sequence[Mapping[str, Any]]]
) -> None:
    """Write `per_class.csv`, `confusion.csv` and `reliability.csv`.

    `confusion.csv` has a row per pair of classes that occurs, ``split,class,predicted,n``, right ones included; with
    more than 1,000 classes it has the 50 most frequent mistakes.

    Args:
        out: The directory.
        splits: By split, what `measure` returns.
        mistakes: By split, what `confusions` returns, for 50 or more of them.

    Raises:
        StorageError: The disk is full or read-only.
    """
    classes: list[Sequence[object]] = [("split", "class", "n", "precision", "recall", "f1")]
    pairs: list[Sequence[object]] = [("split", "class", "predicted", "n")]
    bins: list[Sequence[object]] = [("split", "low", "high", "n", "confidence", "accuracy")]
    for split, values in splits.items():
        names = list(values["per_class"])
        for name, row in values["per_class"].items():
            classes.append((split, name, row["n"], *(_rounded(row[key]) for key in ("precision", "recall", "f1"))))
        if values["confusion"] is None:
            pairs += [(split, row["class"], row["predicted"], row["n"]) for row in mistakes[split][:MOST]]
        else:
            matrix = np.asarray(values["confusion"])
            pairs += [
                (split, names[row], names[column], int(matrix[row, column])) for row, column in np.argwhere(matrix)
            ]
        bins += [
            (split, _rounded(row["low"]), _rounded(row["high"]), row["n"], _rounded(row["confidence"]),
             _rounded(row["accuracy"]))
            for row in values["reliability"]
        ]  # fmt: skip
    for name, rows in (("per_class.csv", classes), ("confusion.csv", pairs), ("reliability.csv", bins)):
        atomic_write(out / name, csv_text(rows))


def write_differences(out: Path, splits: Mapping[str, Mapping[str, Any]]) -> None:
    """Write `against.csv`: recall of both models by class, and the difference.

    Args:
        out: The directory.
        splits: By split, what `compare` returns.

    Raises:
        StorageError: The disk is full or read-only.
    """
    rows: list[Sequence[object]] = [("split", "class", "n", "recall", "against", "difference")]
    for split, values in splits.items():
        for name, row in values["per_class"].items():
            rows.append((split, name, row["n"], *(_rounded(row[key]) for key in ("first", "second", "difference"))))
    atomic_write(out / "against.csv", csv_text(rows))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
