"""The bootstrap: how far a figure would move with other pictures of the same kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["RESAMPLES", "bootstrap_intervals", "bounds_of", "drawn_weights", "known_value", "percentile_intervals"]

RESAMPLES = 1000

BLOCK = 1 << 18
"""Numbers of a block of draws, at most, unless a single draw has more: 2 MB."""

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
    draws = (drawn for block in drawn_weights(units, resamples=resamples, seed=seed) for drawn in block)
    return percentile_intervals(np.array([statistics(drawn) for drawn in draws], dtype=float), centres=centres)


def drawn_weights(units: int, *, resamples: int = RESAMPLES, seed: int = 0, width: int = 1) -> Iterator[Array]:
    """Yield how often each unit was drawn, in blocks ``(draws, units) int64``: `resamples` rows in all.

    Args:
        units: Of what is drawn with replacement.
        resamples: Number of draws.
        seed: Of the draws.
        width: Numbers that are computed from a draw; where they are many, blocks are small.
    """
    generator = np.random.default_rng(seed)
    most = max(1, BLOCK // max(units, width))
    for first in range(0, resamples, most):
        count = min(most, resamples - first)
        drawn = generator.integers(units, size=(count, units))
        places = drawn + units * np.arange(count)[:, None]
        yield np.bincount(places.ravel(), minlength=count * units).reshape(count, units)


def percentile_intervals(values: Array, *, centres: Sequence[float] | None = None) -> list[tuple[float, float]]:
    """Return a 95 % interval of each statistic from its values ``(draws, statistics)``; see `bootstrap_intervals`."""
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
