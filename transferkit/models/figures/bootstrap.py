"""The bootstrap: how far a figure would move with other pictures of the same kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["RESAMPLES", "bootstrap_intervals", "bounds_of", "known_value"]

RESAMPLES = 1000

Array = npt.NDArray[Any]


def bootstrap_intervals(
    statistics: Callable[[Array], Sequence[float] | Array],
    units: int,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    centres: Sequence[float] | None = None,
) -> list[tuple[float, float]]:
    """Return a 95 % percentile interval of each statistic (Efron 1979), all from the same resamples.

    Args:
        statistics: Called with how often each unit was drawn, ``(units,) int64``; returns the statistics. NaN of a draw
            that cannot tell is left out; where more than half cannot, the interval is NaN, too.
        units: Of what is drawn with replacement: pictures, or groups of pictures that belong together.
        resamples: Number of draws.
        seed: Of the draws.
        centres: The statistics themselves, where draws are biased: a picture that is drawn twice lies next to itself in
            a ranking. Intervals are moved by the bias, the mean of the draws minus the centre (Efron 1982).
    """
    generator = np.random.default_rng(seed)
    draws = (np.bincount(generator.integers(units, size=units), minlength=units) for _ in range(resamples))
    values = np.array([statistics(drawn) for drawn in draws], dtype=float)
    undefined = np.isnan(values).mean(axis=0) > 0.5
    values[:, undefined] = 0.0
    low, high = np.where(undefined, np.nan, np.nanpercentile(values, (2.5, 97.5), axis=0))
    if centres is not None:
        bias = np.where(undefined, 0.0, np.nanmean(values, axis=0) - np.asarray(centres, dtype=float))
        low, high = low - bias, high - bias
    return list(zip(low.tolist(), high.tolist(), strict=True))


def known_value(value: float) -> float | None:
    """Return a figure, ``None`` where the pictures cannot tell."""
    return float(value) if np.isfinite(value) else None


def bounds_of(interval: tuple[float, float]) -> list[float] | None:
    """Return the two ends of an interval, ``None`` where the pictures cannot tell."""
    return list(interval) if np.isfinite(interval).all() else None
