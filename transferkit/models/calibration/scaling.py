"""Temperature and vector scaling as plain optimisation in double precision; see `fit_calibration`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["BOUND", "STRENGTH", "centred", "fit_temperature", "fit_vector", "stratified_folds"]

BOUND: Final = 20.0
"""Temperatures lie in [1 / 20, 20]."""
STRENGTH: Final = 1.0
"""Of the pull of vector scaling towards the identity: the precision of a normal prior on each scale and bias."""
BLOCK: Final = 1 << 20
"""Numbers taken to double precision at once."""

Array = npt.NDArray[Any]


def fit_temperature(logits: Tensor, targets: Tensor, units: int | None = None) -> float:
    """Return the temperature of greatest likelihood, in [1 / 20, 20].

    The likelihood is concave in the inverse temperature, so its derivative has one root at most.

    Args:
        logits: ``(N, C) float32``.
        targets: ``(N,) int64`` in [0, C).
        units: Of what the rows are, where those of one are alike: pictures, where rows are pixels. Where all rows are
            right, so many have been seen to be right. ``None`` for N.
    """
    units = len(targets) if units is None else units

    def slope(log_inverse: float) -> float:
        total = 0.0
        for z, labels in _blocks(logits, targets):
            mean = ((math.exp(log_inverse) * z).softmax(dim=1) * z).sum(dim=1)
            total += float((mean - z.gather(1, labels).squeeze(1)).sum())
        return total

    def excess(log_inverse: float) -> float:
        sure = sum(float((math.exp(log_inverse) * z).softmax(1).amax(1).sum()) for z, _ in _blocks(logits, targets))
        return sure / len(targets) - (units + 1) / (units + 2)

    right = logits.gather(1, targets[:, None]).squeeze(1) == logits.amax(dim=1)
    least, most = -math.log(BOUND), math.log(BOUND)
    if not bool(right.all()):
        return math.exp(-_root(slope, least, most))
    # There is no maximum: the sharper the likelier. Logits that nothing is won by sharpening stay as they are.
    return 1.0 if slope(0.0) >= 0.0 else math.exp(-_root(excess, 0.0, most))


def fit_vector(logits: Tensor, targets: Tensor) -> tuple[Array, Array]:
    """Return scales and biases ``(C,) float64`` for centred logits, pulled towards 1 and 0.

    Args:
        logits: ``(N, C) float32``.
        targets: ``(N,) int64`` in [0, C).
    """
    from scipy.optimize import minimize  # half a second, which whoever fits nothing need not wait

    count, classes = logits.shape

    def objective(values: Array) -> tuple[float, Array]:
        scale, bias = torch.from_numpy(values).view(2, classes)
        loss = 0.5 * STRENGTH * float(((scale - 1) ** 2).sum() + (bias**2).sum())
        slope = STRENGTH * torch.stack([scale - 1, bias])
        for z, labels in _blocks(logits, targets):
            z = centred(z)
            log_probs = (z * scale + bias).log_softmax(dim=1)
            loss -= float(log_probs.gather(1, labels).sum())
            error = log_probs.exp()
            error.scatter_add_(1, labels, error.new_full(labels.shape, -1.0))
            slope += torch.stack([(error * z).sum(dim=0), error.sum(dim=0)])
        return loss / count, slope.view(-1).numpy() / count

    start = np.concatenate([np.ones(classes), np.zeros(classes)])
    options = {"maxiter": 500, "gtol": 1e-7, "ftol": 1e-13}
    scale, bias = minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x.reshape(2, classes)
    return scale, bias


def centred(logits: Tensor) -> Tensor:
    """Return logits relative to their mean over the classes: a softmax does not see it, but a scale per class would."""
    return logits - logits.mean(dim=-1, keepdim=True)


def stratified_folds(targets: Tensor, folds: int, *, seed: int = 0) -> npt.NDArray[np.int64]:
    """Return the fold of each picture, ``(N,) int64``, drawn so that each holds its share of every class.

    Sizes differ by one at most, of a class and in all. There are at most N / 2 folds.

    Args:
        targets: ``(N,) int64``.
        folds: How many.
        seed: Of the draw.
    """
    labels = targets.cpu().numpy()
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    ordered = shuffled[np.argsort(labels[shuffled], kind="stable")]
    places = np.empty(len(labels), dtype=np.int64)
    places[ordered] = np.arange(len(labels)) % max(1, min(folds, len(labels) // 2))
    return places


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Return where a rising function is 0; the end nearest to that where it is not between the ends."""
    from scipy.optimize import brentq  # half a second, which whoever fits nothing need not wait

    if function(low) >= 0.0:
        return low
    if function(high) <= 0.0:
        return high
    return float(brentq(function, low, high, xtol=1e-10))


def _blocks(logits: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows in double precision, relative to their largest, and their labels as a column."""
    rows = max(1, BLOCK // logits.shape[1])
    for start in range(0, len(logits), rows):
        exact = logits[start : start + rows].double()
        yield exact - exact.amax(dim=1, keepdim=True), targets[start : start + rows, None]
