"""Labelled features, the rows that a probe is fitted on or measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "LabelledRows"]

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class LabelledRows:
    """Labelled features.

    Attributes:
        X: (N, D) float32 or float64, finite.
        y: (N,) integers in [0, num_classes).
        num_classes: C, of all classes; not every one need have a row.
        groups: (N,) strings; what is of one group (a picture's views, equal pictures) is never torn apart. ``None``
            where every row stands for itself.
        weight: (N,) at least 0, what a row counts; ``None`` for 1 each.
    """

    X: Array
    y: Array
    num_classes: int
    groups: Sequence[str] | Array | None = None
    weight: Array | None = None

    def __len__(self) -> int:
        """Return N."""
        return len(self.X)

    def take(self, index: Array) -> LabelledRows:
        """Return some of the rows."""
        groups = None if self.groups is None else np.asarray(self.groups)[index]
        weight = None if self.weight is None else np.asarray(self.weight)[index]
        return LabelledRows(self.X[index], self.y[index], self.num_classes, groups, weight)

    def units(self) -> Array:
        """Return for each row (N,) the number of its group, or its own."""
        return np.arange(len(self)) if self.groups is None else np.unique(self.groups, return_inverse=True)[1]

    def problems(self) -> list[str]:
        """Return what is wrong with them as rows to fit on, a sentence each."""
        X, y = self.X, self.y
        problems = []
        if X.ndim != 2 or X.dtype.kind != "f" or 0 in X.shape:
            problems.append(f"features are {X.dtype} of shape {X.shape}; expected floats of shape (rows, features)")
        elif not np.isfinite(X).all():
            bad = np.flatnonzero(~np.isfinite(X).all(axis=1))
            problems.append(f"features of {len(bad)} rows are not finite, the first is row {bad[0]}; drop these rows")
        if y.ndim != 1 or y.dtype.kind not in "iu":
            problems.append(f"labels are {y.dtype} of shape {y.shape}; expected integers of shape (rows,)")
        elif len(y) != len(X):
            problems.append(f"there are {len(y)} labels for {len(X)} rows of features; expected one for each")
        elif len(y) and (y.min() < 0 or y.max() >= self.num_classes):
            problems.append(f"labels run from {y.min()} to {y.max()}; expected 0 to {self.num_classes - 1}")
        elif self.weight is None and len(np.unique(y)) < 2:
            problems.append(f"all {len(y)} labels are of one class; expected at least 2 classes")
        if self.groups is not None and len(self.groups) != len(X):
            problems.append(f"there are {len(self.groups)} groups for {len(X)} rows of features; expected one for each")
        if self.weight is not None:
            weight = np.asarray(self.weight)
            if weight.shape != (len(X),):
                problems.append(f"sample weights are of shape {weight.shape}; expected one for each of {len(X)} rows")
            elif not (np.isfinite(weight).all() and (weight >= 0).all()):
                problems.append("sample weights are negative or not finite; expected numbers of at least 0")
            elif y.shape == weight.shape and len(np.unique(y[weight > 0])) < 2:
                problems.append("rows of weight above 0 are of fewer than 2 classes; expected at least 2 classes")
        return problems
