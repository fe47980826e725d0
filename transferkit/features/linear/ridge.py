"""The solver of numbers: ridge regression along a path of strengths, one strength per target."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from transferkit.core.errors import ConfigError, gather
from transferkit.features.linear.softening import evened_out
from transferkit.features.linear.solution import LinearSolution
from transferkit.models.answers.regression import Units
from transferkit.models.heads.solver import Array, HeadState, LabelledRows, ProbeOptions, Progress

__all__ = ["FittedRidge", "RidgeSolver"]

STRENGTHS = tuple(10.0 ** (power / 2) for power in range(-8, 9))
"""Ridge over the rows' total weight: 1e-4 to 1e4 in units in which every feature has variance 1."""


@dataclass(frozen=True, eq=False)
class FittedRidge(LinearSolution):
    """A linear model of each target; its outputs are deviations from the training mean.

    Attributes:
        units: Of the targets.
    """

    name: str = "ridge"
    units: Units = field(default_factory=Units)

    def scores(self, X: Array, y: Array) -> Array:
        """Return for each row (N,) its mean squared deviation."""
        expected = self.units.standardised(torch.from_numpy(np.asarray(y, dtype=np.float32))).numpy()
        return np.asarray(np.square(self.outputs(X) - expected).mean(axis=1), dtype=np.float64)


@dataclass(frozen=True)
class RidgeSolver:
    """Ridge regression on standardised features, as scikit-learn's ``Ridge`` behind a ``StandardScaler``.

    Attributes:
        units: Of the targets.
    """

    method: str = "ridge regression on cached features"
    figure: str = "loss"
    units: Units = field(default_factory=Units)

    def problems(self, targets: Array) -> list[str]:
        """Return nothing: constant targets are an error of the data set."""
        return []

    def start(self, head: HeadState, X: Array, outputs: Array) -> HeadState:
        """Return the head without large weights on features that hardly vary, see `evened_out`."""
        return evened_out(head, X)

    def fit(
        self,
        rows: LabelledRows,
        options: ProbeOptions | None = None,
        *,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> FittedRidge:
        """Fit every target, at the strength of the lowest cross-validated squared error within the rows.

        The objective is that of scikit-learn's ``Ridge(alpha)``, ``sum_i s_i (y_i - w x_i - b)^2 + alpha ||w||^2``.
        ``{"alpha": number}`` in the options' arguments gives one for all targets.

        Raises:
            ConfigError: With everything that is wrong with the rows or the options.
        """
        options = options or ProbeOptions()
        problems = rows.problems() + options.problems()
        alpha = options.classifier_args.get("alpha")
        if options.classifier not in ("auto", "ridge"):
            problems.append(f"classifier is {options.classifier!r}; of numbers expected auto or ridge")
        if options.class_weight is not None:
            problems.append("class_weight weighs classes, and these are numbers - leave it out")
        problems += [f"ridge takes no argument {key!r}; expected alpha" for key in options.classifier_args
                     if key != "alpha"]  # fmt: skip
        if alpha is not None and not (isinstance(alpha, int | float) and 0 < alpha < np.inf):
            problems.append(f"alpha is {alpha!r}; expected a number above 0")
        if problems:
            raise ConfigError(gather(problems))
        X = np.asarray(rows.X, dtype=np.float64)
        y = self.units.standardised(torch.from_numpy(np.asarray(rows.y, dtype=np.float64))).numpy()
        weight = np.ones(len(X)) if rows.weight is None else np.asarray(rows.weight, dtype=np.float64)
        total, parts = float(weight.sum()), _folds(rows.units(), options.folds, seed)
        if alpha is not None or len(parts) < 2:
            strengths = np.full(y.shape[1], total if alpha is None else float(alpha))
            choice: dict[str, Any] = {"alpha": strengths.tolist(), "criterion": "given" if alpha is not None else
                                      "default: too few rows or groups to cross-validate"}  # fmt: skip
        else:
            errors = np.zeros((len(STRENGTHS), y.shape[1]))
            for number, held in enumerate(parts):
                path = _Path(X[~held], y[~held], weight[~held])
                for at, strength in enumerate(STRENGTHS):
                    coefficients, bias = path.solve(np.full(y.shape[1], strength * path.total))
                    errors[at] += weight[held] @ np.square(y[held] - X[held] @ coefficients.T - bias)
                if progress is not None:
                    progress(number + 1, len(parts) + 1)
            best = errors.argmin(axis=0)
            strengths = np.asarray(STRENGTHS)[best] * total
            choice = {
                "alpha": strengths.tolist(),
                "criterion": f"cross-validated squared error, {len(parts)} folds of the training rows, per target",
                "curve": [{"alpha": strength * total, "loss": float(row.mean() / total)}
                          for strength, row in zip(STRENGTHS, errors, strict=True)],
            }  # fmt: skip
        coefficients, bias = _Path(X, y, weight).solve(strengths)
        if progress is not None:
            progress(len(parts) + 1, len(parts) + 1)
        return FittedRidge(coefficients, bias, choice, units=self.units)


class _Path:
    """The rows in the principal axes of their standardised features, in which every strength is a division."""

    def __init__(self, X: Array, y: Array, weight: Array) -> None:
        self.total = float(weight.sum())
        share = weight / self.total
        self.mean, self.centre = share @ X, share @ y
        variance = share @ np.square(X - self.mean)
        # What is left of a constant by rounding is none, as scikit-learn's `StandardScaler` has it.
        eps = np.finfo(np.float64).eps
        constant = variance <= len(X) * eps * variance + np.square(len(X) * eps * self.mean)
        self.scale = np.where(constant, 1.0, np.sqrt(variance))
        Z = (X - self.mean) / self.scale * np.sqrt(weight)[:, None]
        target = (y - self.centre) * np.sqrt(weight)[:, None]
        if len(Z) < Z.shape[1]:  # in the span of the rows
            left, singular, self.axes = np.linalg.svd(Z, full_matrices=False)
            self.variance, self.projected = singular**2, singular[:, None] * (left.T @ target)
        else:
            self.variance, turn = np.linalg.eigh(Z.T @ Z)
            self.axes = turn.T
            self.projected = self.axes @ (Z.T @ target)

    def solve(self, alphas: Array) -> tuple[Array, Array]:
        """Return weights ``(T, D)`` and intercepts ``(T,)`` on the features as they came in, for a strength each."""
        inner = self.projected / (np.maximum(self.variance, 0)[:, None] + alphas)
        weight = (self.axes.T @ inner).T / self.scale
        return weight, self.centre - weight @ self.mean


def _folds(units: Array, folds: int, seed: int) -> list[Array]:
    """Return which rows are held out, ``(N,) bool`` per fold, so that units stay whole."""
    names = np.random.default_rng(seed).permutation(np.unique(units))
    parts = np.array_split(names, min(folds, len(names)))
    return [np.isin(units, part) for part in parts] if len(names) > 1 else []
