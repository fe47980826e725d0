"""What a probe says of rows that it was not fitted on: a classifier per fold, each for the rows that were held out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from transferkit.features.linear.logistic import LinearModel, Standardiser, fit_path
from transferkit.features.probe.probe import blas_threads
from transferkit.features.probe.selection import Folds, cross_validation_folds, score
from transferkit.models.heads.solver import Array, LabelledRows, Progress

__all__ = ["FoldedProbe", "fit_folded"]

STRENGTHS = (3.0, 10.0, 30.0, 100.0)
"""Values of C times the weight of the rows: those that were chosen on sets of 360 to 3,400 photos, with and without
wrong labels."""

MOST_ROWS = 20_000
"""Rows that a fold is fitted on; more hardly change what it says of others."""

TOLERANCE = 1e-3
"""Of the solver: probabilities to the second digit are enough."""


@dataclass(frozen=True, eq=False)
class FoldedProbe:
    """A linear classifier per fold.

    Attributes:
        folds: The rows to train on and the rows held out, per fold.
        models: On raw features, one per fold.
        rows: N.
        width: C.
        choice: What was chosen, by which criterion; JSON values.
    """

    folds: Folds
    models: tuple[LinearModel, ...]
    rows: int
    width: int
    choice: Mapping[str, Any]

    def probs(self, X: Array) -> Array:
        """Return probabilities (N, C) float64 for raw features (N, D), each row by the model that did not see it.

        Args:
            X: Of the rows that it was fitted on, or of other views of the same pictures in the same order.

        Returns:
            Rows that sum to 1; NaN where a row is held out in no fold, as the only one of its class is.
        """
        probs = np.full((self.rows, self.width), np.nan)
        for (_, held), model in zip(self.folds, self.models, strict=True):
            probs[held] = model.probs(X[held])
        return probs


def fit_folded(
    rows: LabelledRows, *, folds: int = 5, seed: int = 0, progress: Progress | None = None
) -> FoldedProbe | None:
    """Fit a logistic regression on all but one fold, for each fold.

    The strength of the regularisation is the same in all of them: the one with the lowest nll on held-out rows, which
    wrong labels make stronger, as they should.

    Args:
        rows: To fit on; groups stay in one fold.
        folds: Folds at most.
        seed: Of the folds.
        progress: Called with the folds done and all folds.

    Returns:
        The probe; ``None`` where there are too few rows or groups of two classes to hold any out.
    """
    parts = cross_validation_folds(rows, folds=folds, seed=seed)
    if not parts:
        return None
    draw = np.random.default_rng(seed)
    nll = np.zeros((len(parts), len(STRENGTHS)))
    paths: list[list[LinearModel]] = []
    with blas_threads(rows.X, rows.width):
        for number, (train, held) in enumerate(parts):
            some = train if len(train) <= MOST_ROWS else np.sort(draw.choice(train, MOST_ROWS, replace=False))
            part = rows.take(some)
            standardiser = Standardiser.fit(part.X)
            strengths = [strength / len(part) for strength in STRENGTHS]
            path = fit_path(standardiser.transform(part.X), part.y, rows.width, strengths, tol=TOLERANCE)
            paths.append([standardiser.fold(model) for model in path])
            weight = np.ones(len(held))
            nll[number] = [score(model.probs(rows.X[held]), rows.y[held], weight)[1] for model in paths[-1]]
            if progress is not None:
                progress(number + 1, len(parts))
    best = int(nll.mean(axis=0).argmin())
    choice = {"C": STRENGTHS[best] / len(rows), "folds": len(parts), "criterion": "lowest nll of held-out rows"}
    return FoldedProbe(parts, tuple(path[best] for path in paths), len(rows), rows.width, choice)
