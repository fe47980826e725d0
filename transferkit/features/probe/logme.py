"""LogME: how well a Bayesian linear model explains targets by features, without fitting a classifier."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["logme"]

Array = npt.NDArray[np.float64]

REACH = 8.0
"""Orders of magnitude around the strongest axis of the features, within which the best ratio is looked for."""

POINTS, ZOOMS = 65, 3
"""Values of the ratio that are tried at a time, and how often the neighbours of the best one become the ends."""

EXACT = 1e-10
"""Share of a target's squares that is left unexplained at least: where features explain all of it the evidence has no
bound."""


def logme(features: npt.NDArray[np.floating], targets: npt.NDArray[np.generic]) -> float:
    """Return the logarithm of the maximum evidence, per picture, as a mean over the targets.

    You et al. 2021 (*LogME: Practical Assessment of Pre-trained Models for Transfer Learning*): a target is a linear
    function of the features with a Gaussian prior of precision alpha on its weights, and Gaussian noise of precision
    beta. The evidence of the two has a maximum, and a higher one stands for features that explain the targets better.
    Values are comparable between features of any width, but only on the same pictures.

    Different from the paper, the maximum is not looked for by a fixed-point iteration, which may stop beside it (the
    issue that You et al. 2022 treat): for a given ratio alpha / beta the best beta is known, and what is left is a
    curve of one number, whose highest point a grid finds, three times refined. And there is a bias, as in a classifier:
    targets and features have their mean taken off, and what is left has N - 1 dimensions.

    Args:
        features: ``(N, D)``, at least two rows.
        targets: ``(N,)`` class indices, each class a target of 0 and 1; or ``(N, T)`` numbers.

    Returns:
        The mean over the targets; those that are the same for all pictures are left out. NaN where none is left.
    """
    wide = targets if targets.ndim > 1 else targets[:, None] == np.unique(targets)
    y = wide.astype(np.float64)
    y = y - y.mean(axis=0)
    y = y[:, np.square(y).sum(axis=0) > 0]
    if not y.shape[1]:
        return float("nan")
    X = features.astype(np.float64)
    X = X - X.mean(axis=0)
    axes, strengths = _axes(X)
    projected = np.square(axes.T @ y)  # (K, T): what of a target's squares lies along each axis
    outside = np.maximum(np.square(y).sum(axis=0) - projected.sum(axis=0), 0.0)
    scale = float(strengths.max(initial=0.0)) or 1.0
    ends = np.full(y.shape[1], -REACH), np.full(y.shape[1], REACH)
    best = np.full(y.shape[1], -np.inf)
    for _ in range(ZOOMS):
        grid = np.linspace(*ends, POINTS)  # (P, T)
        values = _evidence(strengths / scale, projected, outside, 10.0**grid, len(y) - 1)
        place = values.argmax(axis=0)
        columns = np.arange(y.shape[1])
        best = np.maximum(best, values[place, columns])
        ends = grid[np.maximum(place - 1, 0), columns], grid[np.minimum(place + 1, POINTS - 1), columns]
    return float((best / len(y)).mean())


def _axes(X: Array) -> tuple[Array, Array]:
    """Return the principal axes ``(N, K)`` of rows ``(N, D)`` in the space of pictures, and their squares ``(K,)``."""
    if len(X) <= X.shape[1]:
        squares, axes = np.linalg.eigh(X @ X.T)
        keep = squares > squares[-1] * len(X) * np.finfo(np.float64).eps
        return axes[:, keep], squares[keep]
    squares, turn = np.linalg.eigh(X.T @ X)
    keep = squares > squares[-1] * len(X) * np.finfo(np.float64).eps
    return X @ turn[:, keep] / np.sqrt(squares[keep]), squares[keep]


def _evidence(strengths: Array, projected: Array, outside: Array, ratio: Array, count: int) -> Array:
    """Return the log evidence ``(P, T)`` at the best noise for each ratio ``(P, T)`` of the two precisions.

    A target is normal with covariance ``(I + X X' / ratio) / beta``: along an axis its variance is 1 + strength / ratio
    times that of the noise.
    """
    total = projected.sum(axis=0) + outside
    values = np.empty_like(ratio)
    for row, own in enumerate(ratio):
        grown = 1.0 + strengths[:, None] / own
        rest = np.maximum((projected / grown).sum(axis=0) + outside, EXACT * total)
        values[row] = -0.5 * (
            count * (np.log(2.0 * np.pi * rest / count) + 1.0) + np.log(grown).sum(axis=0)
        )  # fmt: skip
    return values
