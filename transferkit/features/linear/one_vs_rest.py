"""Logistic regressions of many labels at once: one standardiser, one set of principal axes, one product per step.

Each label has the objective of scikit-learn's ``LogisticRegression(C=C)`` for that label against the rest, see
`logistic`. The objectives do not depend on each other, so L-BFGS minimises their sum over the weights of all labels;
products of matrices then do the work of a hundred products of vectors.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from transferkit.core.errors import TransferkitWarning
from transferkit.features.linear.logistic import Standardiser, principal_axes
from transferkit.models.heads.solver import Array

__all__ = ["LabelProblem", "choose_strengths", "iterative_folds"]

STEP = 10.0 ** (2 / 3)
STRENGTHS = tuple(1e-3 * STEP**number for number in range(15))
"""Values of C times the rows' total weight: 0.001 to 2,000,000, from strong to weak."""
NEAR, CERTAIN = 0.002, 0.015
"""Shares of the log loss of always saying the label's rate: candidates that close to the lowest count as equal, and so
do all below the second, where the training rows part cleanly."""
PATIENCE = 3
"""Strengths in a row that are worse than the lowest by more than `NEAR`, after which a label is followed no further."""
MEMORY = 2 << 30
"""Bytes that the folds may hold at a time; more rows are cut into fewer folds."""


class LabelProblem:
    """The objectives of C labels on the same rows, and the solution so far.

    Args:
        X: (N, D) float32 or float64.
        truth: (N, C) bool; every label has rows with and without it.
        row: (N,), what a row counts, and by which features are standardised.
        weight: (N, C) or (N, 1), what a row counts for a label; each label's weights have the sum of `row`.
    """

    def __init__(self, X: Array, truth: Array, row: Array, weight: Array) -> None:
        self.standardiser = Standardiser.fit(X, row)
        Z = self.standardiser.transform(X)
        self.dtype, self.total = X.dtype, float(row.sum())
        self.mean = (row / self.total) @ Z
        self.Z, self.axes, variance = principal_axes(Z - self.mean.astype(Z.dtype), row / self.total)
        self.variance = np.maximum(variance, 0)
        self.truth, self.share = truth, (weight / self.total).astype(X.dtype)
        self.rate = (self.share * truth).sum(axis=0, dtype=np.float64) / self.share.sum(axis=0, dtype=np.float64)
        self.state = np.zeros((truth.shape[1], len(variance) + 1))
        self.state[:, -1] = np.log(self.rate / (1 - self.rate))

    def solve(self, strengths: Array, which: Array, *, tol: float = 1e-5, max_iter: int = 2000) -> None:
        """Move some labels from where they are to the minimum for their strength C.

        Args:
            strengths: (K,) of C, above 0.
            which: (K,) labels.
            tol: As of `fit_path`.
            max_iter: Most L-BFGS iterations.

        Warns:
            TransferkitWarning: L-BFGS did not reach `tol`.
        """
        from scipy.optimize import minimize  # half a second, which whoever fits nothing need not wait

        ridge = (1 / (strengths * self.total))[:, None]
        curvature = (self.rate * (1 - self.rate))[which]
        penalty = np.hstack([np.broadcast_to(ridge, (len(which), len(self.variance))), np.zeros((len(which), 1))])
        unit = np.sqrt(np.outer(curvature, np.append(self.variance, 1.0)) + penalty)
        truth = self.truth[:, which]
        share = self.share if self.share.shape[1] == 1 else self.share[:, which]

        def objective(scaled: Array) -> tuple[float, Array]:
            state = scaled.reshape(unit.shape) / unit
            logits = self.Z @ state[:, :-1].T.astype(self.dtype) + state[:, -1].astype(self.dtype)
            small = np.exp(-np.abs(logits))
            value = (share * (np.where(truth, np.maximum(-logits, 0), np.maximum(logits, 0)) + np.log1p(small))).sum(
                dtype=np.float64
            )
            rest = np.where(logits >= 0, 1, small) / (1 + small)
            rest -= truth
            rest *= share
            gradient = np.empty_like(state)
            gradient[:, :-1] = rest.T @ self.Z + ridge * state[:, :-1]
            gradient[:, -1] = rest.sum(axis=0, dtype=np.float64)
            return float(value + 0.5 * (ridge * np.square(state[:, :-1])).sum()), (gradient / unit).ravel()

        ftol = 1e-9 / np.sqrt(len(which)) if self.dtype == np.float32 else 1e-15
        options = {"maxiter": max_iter, "maxfun": 2 * max_iter, "maxls": 50, "gtol": tol, "ftol": ftol}
        start = (self.state[which] * unit).ravel()
        result = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
        slope = float(np.abs(result.jac).max())
        if not result.success and slope > 10 * tol:
            warnings.warn(
                f"logistic regression of {len(which)} labels stopped after {result.nit} iterations with a gradient of "
                f"{slope:.1e} where {tol:.0e} was expected - their probabilities are approximate; "
                "look for extreme values in the features",
                TransferkitWarning,
                stacklevel=3,
            )
        self.state[which] = result.x.reshape(unit.shape) / unit

    def linear(self) -> tuple[Array, Array]:
        """Return weights (C, D) and intercepts (C,) on the features as they came in."""
        weight = self.state[:, :-1] @ self.axes.T
        bias = self.state[:, -1] - weight @ self.mean
        weight = weight / self.standardiser.scale
        return weight, bias - weight @ self.standardiser.mean


@dataclass(frozen=True, eq=False)
class _Fold:
    """Rows to train on, and the held-out ones.

    Attributes:
        problem: Of the labels `fits` alone.
        fits: (C,) bool, labels that training rows have and lack.
        X: Held-out rows in the basis of the problem, (M, K).
        truth: (M, C) bool.
        weight: (M, C) or (M, 1).
    """

    problem: LabelProblem
    fits: Array
    X: Array
    truth: Array
    weight: Array

    def nll(self, which: Array) -> Array:
        """Return the mean log loss of some labels on the held-out rows."""
        state = self.problem.state[(np.cumsum(self.fits) - 1)[which]]
        logits = self.X @ state[:, :-1].T.astype(self.X.dtype) + state[:, -1].astype(self.X.dtype)
        losses = np.logaddexp(0, np.where(self.truth[:, which], -logits, logits))
        weight = self.weight if self.weight.shape[1] == 1 else self.weight[:, which]
        total = (losses * weight).sum(axis=0) / np.broadcast_to(weight, losses.shape).sum(axis=0)
        return np.asarray(total, dtype=np.float64)


def iterative_folds(truth: Array, units: Array, folds: int, seed: int) -> list[Array]:
    """Deal rows into folds so that every label is spread over them as evenly as its rows allow.

    Iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011): the rarest label that is left first, each of its
    units to the fold that lacks most of it.

    Args:
        truth: (N, C) bool.
        units: (N,) numbers of what stays together.
        folds: How many, at least 2.
        seed: Of the order.

    Returns:
        Held-out rows, (N,) bool per fold; fewer where there are fewer units, nothing where there is but one.
    """
    names, places = np.unique(units, return_inverse=True)
    folds = min(folds, len(names))
    if folds < 2:
        return []
    counts = np.zeros((len(names), truth.shape[1] + 1))
    np.add.at(counts, places, np.hstack([truth, np.ones((len(truth), 1), dtype=bool)]))
    quota = np.repeat(counts.sum(axis=0, keepdims=True) / folds, folds, axis=0)  # the last column: rows, of any kind
    own, left = np.full(len(names), -1), np.ones(len(names), dtype=bool)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(names))
    while left.any():
        remaining = counts[left].sum(axis=0)
        label = int(np.where(remaining > 0, remaining, np.inf).argmin())
        for unit in order[left[order] & (counts[order, label] > 0)]:
            best = int(np.lexsort((rng.random(folds), -quota[:, -1], -quota[:, label]))[0])
            own[unit], left[unit] = best, False
            quota[best] -= counts[unit]
    return [own[places] == fold for fold in range(folds)]


def choose_strengths(
    X: Array,
    truth: Array,
    row: Array,
    weights: Callable[[Array], Array],
    held: list[Array],
    progress: Callable[[int, int], None],
) -> tuple[Array, Array]:
    """Return the strength C of each label with the lowest cross-validated log loss.

    From strong to weak, in all folds at a time; a label whose loss only grows is followed no further. Of strengths
    whose losses are as good as equal (`NEAR`, `CERTAIN`) the strongest is taken.

    Args:
        X: (N, D).
        truth: (N, C) bool; every label has rows with and without it.
        row: (N,), what rows count.
        weights: From the numbers of rows to what they count, (M, C) or (M, 1).
        held: Held-out rows, (N,) bool per fold.
        progress: Called with the strengths done, and all.

    Returns:
        C of each label (C,), NaN where no fold trains on rows with and without it; and losses (strengths, C), NaN
        where they were not needed.
    """
    folds, total = list[_Fold](), float(row.sum())
    for part in held:
        rows, others = np.flatnonzero(~part), np.flatnonzero(part)
        fits: Array = np.asarray(truth[rows].any(axis=0) & ~truth[rows].all(axis=0))
        weight = weights(rows)
        own = weight if weight.shape[1] == 1 else weight[:, fits]
        problem = LabelProblem(X[rows], truth[rows][:, fits], row[rows], own)
        Z = problem.standardiser.transform(X[others]) - problem.mean.astype(X.dtype)
        folds.append(_Fold(problem, fits, Z @ problem.axes.astype(X.dtype), truth[others], weights(others)))
    everything = weights(np.arange(len(X)))
    rate = (everything * truth).sum(axis=0) / np.broadcast_to(everything, truth.shape).sum(axis=0)
    guess = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
    losses = np.full((len(STRENGTHS), truth.shape[1]), np.nan)
    active = np.any([fold.fits for fold in folds], axis=0)
    worse = np.zeros(truth.shape[1], dtype=int)
    for number, strength in enumerate(STRENGTHS):
        if not active.any():
            break
        sums, times = np.zeros(truth.shape[1]), np.zeros(truth.shape[1])
        for fold in folds:
            which = np.flatnonzero(active & fold.fits)
            if len(which):
                inner = (np.cumsum(fold.fits) - 1)[which]
                fold.problem.solve(np.full(len(which), strength / total), inner)
                sums[which] += fold.nll(which)
                times[which] += 1
        losses[number, active] = sums[active] / times[active]
        now = losses[number] / guess
        lowest = np.fmin.reduce(losses[: number + 1] / guess, axis=0)
        worse = np.where(now > np.maximum(lowest, CERTAIN) + NEAR, worse + 1, 0)
        active &= worse < PATIENCE
        progress(number + 1, len(STRENGTHS) + 1)
    relative: Any = losses / guess
    chosen = np.full(truth.shape[1], np.nan)
    for label in np.flatnonzero(~np.isnan(losses).all(axis=0)):
        column = relative[:, label]
        near = column <= max(float(np.nanmin(column)), CERTAIN) + NEAR
        chosen[label] = STRENGTHS[int(np.flatnonzero(near)[0])] / total
    return chosen, losses
