"""Multinomial logistic regression on features: L-BFGS along a path of regularisation strengths.

The objective is that of scikit-learn's ``LogisticRegression(C=C)``, ``0.5 ||W||^2 + C sum_i s_i nll_i`` with a free
intercept, and so is the solution. Solved here rather than there for speed and precision along a path:

- The features are centred and turned into the basis of their principal axes; for fewer rows than features, also cut to
  the span of the rows, which holds the solution. Neither changes the objective, as the penalty does not depend on
  the basis.
- In that basis the curvature at the start is diagonal, so dividing it out leaves L-BFGS a well-conditioned problem.
  Correlated features need a fraction of the steps then, and end closer to the optimum.
- The path runs from strong to weak regularisation, each solution the start of the next.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from transferkit.core.errors import TransferkitWarning
from transferkit.models.heads.solver import Array

__all__ = ["MISSING_LOGIT", "TOLERANCE", "LinearModel", "Standardiser", "fit_path", "principal_axes", "softmax"]

MISSING_LOGIT = -30.0
"""Logit of a class without training rows. The objective itself would send it to minus infinity; the logits of the
other classes have mean 0, so the largest of them is never below 0 and such a class gets less than 1e-13."""

TOLERANCE = 1e-5
"""Of a fit, as `fit_path` says."""

_BLOCK = 2**19
"""Features of the rows that one turn of the loss reads twice: as many as stay in a core's cache."""


def softmax(logits: Array) -> Array:
    """Turn logits (N, C) into probabilities (N, C), rows summing to 1, in the same dtype."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


@dataclass(frozen=True, eq=False)
class LinearModel:
    """A linear classifier: ``logits = X @ weight.T + bias``.

    Attributes:
        weight: (C, D), one row per class.
        bias: (C,).
    """

    weight: Array
    bias: Array

    @classmethod
    def from_rows(cls, weight: Array, bias: Array, classes: Array, num_classes: int) -> Self:
        """Spread the rows of the classes present over all classes.

        The mean row is taken off, which changes neither a softmax nor an argmax, so that the logits of the classes
        present have mean 0 on every input. A single row is a sigmoid's (two classes), and becomes ``-w/2`` and ``w/2``.
        Absent classes get the weight 0 and the logit `MISSING_LOGIT`.

        Args:
            weight: (K, D) for K classes present, or (1, D) for two.
            bias: (K,) or (1,).
            classes: (K,) indices of the classes present, ascending.
            num_classes: C.
        """
        if len(weight) == 1 and len(classes) == 2:
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        full_weight = np.zeros((num_classes, weight.shape[1]), dtype=weight.dtype)
        full_bias = np.full(num_classes, MISSING_LOGIT, dtype=weight.dtype)
        full_weight[classes] = weight - weight.mean(axis=0)
        full_bias[classes] = bias - bias.mean()
        return cls(full_weight, full_bias)

    def logits(self, X: Array) -> Array:
        """Return logits (N, C) for features (N, D), computed in the dtype of `X`."""
        return np.asarray(X @ self.weight.T.astype(X.dtype) + self.bias.astype(X.dtype))

    def probs(self, X: Array) -> Array:
        """Return probabilities (N, C) for features (N, D); rows sum to 1."""
        return softmax(self.logits(X))


@dataclass(frozen=True, eq=False)
class Standardiser:
    """Takes every feature to mean 0 and standard deviation 1 on the rows it was fitted on.

    Attributes:
        mean: (D,) float64.
        scale: (D,) float64, above 0; 1 for a constant feature.
    """

    mean: Array
    scale: Array

    @classmethod
    def fit(cls, X: Array, sample_weight: Array | None = None) -> Self:
        """Measure mean and standard deviation of features (N, D), by weights (N,) where given."""
        from sklearn.preprocessing import StandardScaler  # with pandas, where that is installed

        scaler = StandardScaler().fit(X, sample_weight=sample_weight)
        return cls(np.asarray(scaler.mean_, dtype=np.float64), np.asarray(scaler.scale_, dtype=np.float64))

    def transform(self, X: Array) -> Array:
        """Return standardised features (N, D) in the dtype of `X`."""
        result = X - self.mean.astype(X.dtype)
        result /= self.scale.astype(X.dtype)
        return np.asarray(result)

    def fold(self, model: LinearModel) -> LinearModel:
        """Return the model on raw features that equals `model` on standardised ones."""
        weight = model.weight / self.scale
        return LinearModel(weight, model.bias - weight @ self.mean)


def fit_path(
    X: Array,
    y: Array,
    num_classes: int,
    Cs: Sequence[float],
    *,
    sample_weight: Array | None = None,
    tol: float = TOLERANCE,
    max_iter: int = 1000,
) -> list[LinearModel]:
    """Fit one logistic regression per regularisation strength.

    Each minimises ``0.5 ||W||^2 + C sum_i s_i nll_i`` with an unpenalised intercept. As in scikit-learn two classes
    share one weight vector behind a sigmoid (a softmax over two rows would halve the penalty). Classes without a row
    of positive weight keep their index and get `MISSING_LOGIT`; the others are fitted as if alone.

    Args:
        X: (N, D) float32 or float64. Products are computed in this dtype, sums in float64. Standardise before.
        y: (N,) integers in [0, num_classes); at least two classes have rows of positive weight.
        num_classes: Classes in all.
        Cs: Strengths, above 0; larger is weaker regularisation.
        sample_weight: (N,) at least 0; ``None`` for 1 each.
        tol: Stop when no entry of the gradient of the mean objective is larger, in units in which its curvature at
            the start of the path is 1. The default leaves the mean objective within about 1e-8 of its minimum, and
            within about 1e-5 where C is so large that the training rows are fitted perfectly.
        max_iter: Most L-BFGS iterations per strength.

    Returns:
        The models, float64, in the order of `Cs`.

    Warns:
        TransferkitWarning: L-BFGS did not reach `tol`.
    """
    weight = np.ones(len(X)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    if not weight.all():
        X, y, weight = X[weight > 0], y[weight > 0], weight[weight > 0]
    classes, labels = np.unique(y, return_inverse=True)
    problem = _Problem(X, labels, weight)
    fitted: dict[float, LinearModel] = {}
    for C in sorted(set(Cs)):
        rows, bias = problem.solve(C, tol=tol, max_iter=max_iter)
        fitted[C] = LinearModel.from_rows(rows, bias, classes, num_classes)
    return [fitted[C] for C in Cs]


def principal_axes(centred: Array, share: Array) -> tuple[Array, Array, Array]:
    """Turn centred features into the basis in which they do not correlate, and cut them to the span of the rows.

    Args:
        centred: (N, D).
        share: (N,), what each row counts, 1 in all.

    Returns:
        The features in that basis (N, K), K the smaller of N and D, in their dtype; the axes (D, K) float64, of length
        1; and the variance along each (K,) float64.
    """
    scaled = centred * np.sqrt(share)[:, None].astype(centred.dtype)
    axes = np.eye(0)
    if centred.shape[0] < centred.shape[1]:
        axes = np.linalg.qr(scaled.T.astype(np.float64))[0]  # the span of the rows holds the solution
        scaled = scaled @ axes
    variance, turn = np.linalg.eigh((scaled.T @ scaled).astype(np.float64))
    axes = axes @ turn if axes.size else turn
    return np.ascontiguousarray(centred @ axes.astype(centred.dtype)), axes, variance


class _Problem:
    """The objective in the principal axes of the features, and the solution so far.

    Unknowns are one row per class, one row in all for two classes: weights along the axes, then the intercept on
    centred features.
    """

    def __init__(self, X: Array, labels: Array, weight: Array) -> None:
        self.dtype, self.labels, self.total = X.dtype, labels, float(weight.sum())
        self.share = weight / self.total
        self.mean = self.share @ X
        self.Z, self.axes, variance = principal_axes(X - self.mean.astype(X.dtype), self.share)
        self.block = max(_BLOCK // self.Z.shape[1], 512)
        prior = np.bincount(labels, weights=self.share)
        self.first = 1 if len(prior) == 2 else 0  # the row of class 0 is fixed at 0 for two classes
        # The Hessian at constant predictions, which the path starts from, is this outer product plus the ridge.
        self.curvature = (prior * (1 - prior))[self.first :]
        self.variance = np.append(np.maximum(variance, 0), 1.0)
        self.state = np.zeros((len(self.curvature), len(self.variance)))
        self.state[:, -1] = np.log(prior[1] / prior[0]) if self.first else np.log(prior) - np.log(prior).mean()

    def loss(self, state: Array, ridge: float) -> tuple[float, Array]:
        """Return mean objective and gradient at `state`."""
        weight, intercept = state[:, :-1].astype(self.dtype), state[:, -1:].astype(self.dtype)
        value, gradient = 0.5 * ridge * np.square(state[:, :-1]).sum(), np.zeros_like(state)
        for first in range(0, len(self.labels), self.block):
            rows = slice(first, first + self.block)
            Z, labels, share = self.Z[rows], self.labels[rows], self.share[rows]
            own = labels, np.arange(len(labels))
            work = np.zeros((len(weight) + self.first, len(labels)), dtype=self.dtype)  # maxima and sums over columns
            work[self.first :] = weight @ Z.T + intercept
            work -= work.max(axis=0)
            likelihood = work[own]
            np.exp(work, out=work)
            total = work.sum(axis=0)
            value += share @ (np.log(total) - likelihood)
            work /= total
            work[own] -= 1
            work *= share.astype(self.dtype)
            residual = work[self.first :]
            gradient[:, :-1] += residual @ Z
            gradient[:, -1] += residual.sum(axis=1, dtype=np.float64)
        gradient[:, :-1] += ridge * state[:, :-1]
        return float(value), gradient

    def solve(self, C: float, *, tol: float, max_iter: int) -> tuple[Array, Array]:
        """Return weight rows (K or 1, D) and intercepts on the features as they came in; start from the last."""
        from scipy.optimize import minimize  # half a second, which whoever fits nothing need not wait

        ridge = 1 / (C * self.total)
        penalty = np.append(np.full(len(self.variance) - 1, ridge), 0.0)
        unit = np.sqrt(np.outer(self.curvature, self.variance) + penalty)

        def objective(scaled: Array) -> tuple[float, Array]:
            value, gradient = self.loss(scaled.reshape(unit.shape) / unit, ridge)
            return value, (gradient / unit).ravel()

        # The noise of float32 sums ends a search before `tol` does; changes of the mean loss below it mean nothing.
        ftol = 1e-9 if self.dtype == np.float32 else 1e-15
        options = {"maxiter": max_iter, "maxfun": 2 * max_iter, "maxls": 50, "gtol": tol, "ftol": ftol}
        result = minimize(objective, (self.state * unit).ravel(), jac=True, method="L-BFGS-B", options=options)
        slope = float(np.abs(result.jac).max())
        # A line search without progress is float noise when the slope is all but flat.
        if not result.success and slope > 10 * tol:
            warnings.warn(
                f"logistic regression at C = {C:g} stopped after {result.nit} iterations with a gradient of "
                f"{slope:.1e} where {tol:.0e} was expected - its probabilities are approximate; "
                "look for extreme values in the features, or use a smaller C",
                TransferkitWarning,
                stacklevel=3,
            )
        self.state = result.x.reshape(unit.shape) / unit
        weight = self.state[:, :-1] @ self.axes.T
        return weight, self.state[:, -1] - weight @ self.mean
