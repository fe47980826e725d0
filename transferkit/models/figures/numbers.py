"""The figures of numbers per picture, with bootstrap intervals, each beside "always the mean of the training pictures".

Figures of one target are in its own unit (``of`` names it); those without ``of`` are means over the targets, each in
units of its standard deviation over the training pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.models.figures.bootstrap import bootstrap_intervals, bounds_of, known_value
from transferkit.models.figures.figure import Figure

__all__ = ["KEYS", "Pairs", "number_figures", "number_metrics", "weighted_kappa"]

Array = npt.NDArray[Any]

KEYS = ("rmse", "mae", "median_ae", "r2", "spearman")


class Pairs:
    """Predicted and true numbers, for their figures under many weights.

    Args:
        predicted: ``(N, T)``, in the targets' own units.
        true: ``(N, T)``.
        scale: ``(T,)``, the deviation of each target; that of `true` when ``None``.
    """

    def __init__(self, predicted: Array, true: Array, scale: Sequence[float] | None = None) -> None:
        self.predicted, self.true = predicted.astype(np.float64), true.astype(np.float64)
        deviation = self.true.std(axis=0)
        self.scale = np.where(deviation > 0, deviation, 1.0) if scale is None else np.asarray(scale)
        from scipy.stats import rankdata  # a third of a second, for those who have numbers

        self._ranks = rankdata(self.predicted, axis=0), rankdata(self.true, axis=0)

    def figures(self, weights: Array) -> Array:
        """Return `KEYS` of each target, ``(5, T)``, of pictures that count `weights` ``(N,)``; NaN where undefined."""
        total, off = weights.sum(), self.predicted - self.true
        square = weights @ off**2 / total
        centre = weights @ self.true / total
        spread = weights @ (self.true - centre) ** 2 / total
        with np.errstate(invalid="ignore", divide="ignore"):
            r2 = np.where(spread > 0, 1 - square / spread, np.nan)
            spearman = _correlation(*self._ranks, weights)
        median = _weighted_median(np.abs(off), weights)
        return np.stack([np.sqrt(square), weights @ np.abs(off) / total, median, r2, spearman])

    def means(self, values: Array) -> Array:
        """Return the means ``(5,)`` of `figures` over the targets, in units of their deviation."""
        scaled = values.copy()
        scaled[:3] /= self.scale
        return np.asarray(scaled.mean(axis=1))

    def kappas(self, weights: Array, ranges: Sequence[Sequence[float]] | None = None) -> Array:
        """Return the weighted kappa of each target, ``(T,)``, its predictions rounded to the nearest grade."""
        rounded = self.predicted.round()
        if ranges is not None:
            rounded = np.clip(rounded, *np.asarray(ranges, dtype=np.float64).T)
        return weighted_kappa(rounded, self.true, weights)


def number_metrics(
    predicted: Array, true: Array, names: Sequence[str], facts: Mapping[str, Any] | None = None, *, seed: int = 0
) -> dict[str, Any]:
    """Return the figures of predicted numbers as plain JSON values.

    Args:
        predicted: ``(N, T)``, in the targets' own units.
        true: ``(N, T)``.
        names: Of the targets.
        facts: Of the spec: ``mean``, ``scale`` and ``range`` of the training pictures, ``grades``. Those of `true`
            when ``None``.
        seed: Of the bootstrap.

    Returns:
        ``rmse, mae, median_ae, r2, spearman`` as means over the targets in units of their deviation, each with
        ``_ci``; ``per_target`` by name the same in its own unit, with ``always_mean`` (``rmse`` and ``mae`` of the
        training mean) and, of grades, ``kappa`` with ``kappa_ci``; ``n``. ``r2`` is against the mean of these
        pictures, and it and ``spearman`` are ``None`` where the true numbers are all the same.
    """
    facts, count = facts or {}, len(true)
    pairs = Pairs(predicted, true, facts.get("scale"))
    mean = np.asarray(facts.get("mean", pairs.true.mean(axis=0)))
    grades = np.flatnonzero(facts.get("grades") or [False] * len(names)).tolist()

    def statistics(weights: Array) -> list[float]:
        values = pairs.figures(weights)
        kappas = pairs.kappas(weights, facts.get("range"))[grades] if grades else ()
        return [*pairs.means(values), *values.ravel(), *kappas]

    values = statistics(np.ones(count))
    intervals = bootstrap_intervals(statistics, count, seed=seed)
    result: dict[str, Any] = {"n": count}
    for key, value, interval in zip(KEYS, values, intervals, strict=False):
        result[key], result[f"{key}_ci"] = known_value(value), bounds_of(interval)
    result["per_target"] = {}
    for at, name in enumerate(names):
        row: dict[str, Any] = {}
        for number, key in enumerate(KEYS):
            place = len(KEYS) + number * len(names) + at
            row[key], row[f"{key}_ci"] = known_value(values[place]), bounds_of(intervals[place])
        off = pairs.true[:, at] - mean[at]
        row["always_mean"] = {"rmse": float(np.sqrt((off**2).mean())), "mae": float(np.abs(off).mean())}
        if at in grades:
            place = len(KEYS) * (1 + len(names)) + grades.index(at)
            row["kappa"], row["kappa_ci"] = known_value(values[place]), bounds_of(intervals[place])
        result["per_target"][name] = row
    return result


def weighted_kappa(predicted: Array, true: Array, weights: Array) -> Array:
    """Return the quadratic-weighted kappa of whole numbers (Cohen 1968); NaN where all are the same.

    Args:
        predicted: ``(N,)``, or a column per target ``(N, T)``.
        true: Likewise.
        weights: ``(N,)``, how often each row counts.
    """
    total = weights.sum()
    observed = weights @ (predicted - true) ** 2 / total
    means = [weights @ side / total for side in (predicted, true)]
    spreads = [weights @ (side - mean) ** 2 / total for side, mean in zip((predicted, true), means, strict=True)]
    # The mean squared distance of all pairs, as if grades were dealt out by chance.
    chance = np.asarray(spreads[0] + spreads[1] + (means[0] - means[1]) ** 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(chance > 0, 1 - observed / chance, np.nan)


def _correlation(first: Array, second: Array, weights: Array) -> Array:
    """Return Pearson's correlation of the columns of two tables ``(N, T)``, rows weighed."""
    total = weights.sum()
    one, two = first - weights @ first / total, second - weights @ second / total
    return np.asarray(weights @ (one * two) / np.sqrt((weights @ one**2) * (weights @ two**2)))


def _weighted_median(values: Array, weights: Array) -> Array:
    """Return the median of each column, rows weighed by whole numbers."""
    return np.asarray(np.median(np.repeat(values, weights.astype(int), axis=0), axis=0))


_MEANINGS = {
    "rmse": ("Root mean square error (RMSE)", False, "root of the mean squared distance of prediction and truth"),
    "mae": ("Mean error (MAE)", False, "mean distance of prediction and truth"),
    "median_ae": ("Median error", False, "half of the pictures are predicted nearer than this"),
    "r2": ("Coefficient of determination (R2)", True, "1 at best; 0 for always the mean of these pictures"),
    "spearman": ("Rank correlation", True, "whether larger predictions go with larger truths (Spearman); 1 at best"),
    "kappa": ("Weighted kappa", True, "agreement of rounded grades beyond chance, quadratic weights (Cohen 1968)"),
}


def number_figures(values: Mapping[str, Any]) -> list[Figure]:
    """Return the figures of one split from what `number_metrics` returns: of all targets first, of one its own unit."""
    rows = values.get("per_target") or {}
    whole = [_figure(key, values) for key in KEYS if key in values]
    own = [_figure(key, row, of=name) for name, row in rows.items() for key in _MEANINGS if key in row]
    return own + whole if len(rows) == 1 else whole + own


def _figure(key: str, values: Mapping[str, Any], of: str | None = None) -> Figure:
    label, higher, meaning = _MEANINGS[key]
    unit = "deviations" if of is None and key in ("rmse", "mae", "median_ae") else ""
    label += f", in {unit}" if unit else ""
    return Figure(key, label, values[key], values.get(f"{key}_ci"), higher, unit, meaning, of=of)
