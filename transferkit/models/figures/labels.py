"""The figures of several labels per picture, with bootstrap intervals; probabilities go in, never logits.

What a split cannot tell is ``None``: a label without positives has no average precision, and no zero stands in for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from transferkit.models.figures.bootstrap import RESAMPLES, bootstrap_intervals, bounds_of, known_value
from transferkit.models.figures.figure import Figure

__all__ = ["THRESHOLD", "LabelCounts", "Ranking", "average_precisions", "label_figures", "label_metrics"]

THRESHOLD: Final = 0.5
"""Probability from which on a picture has a label, where none was chosen."""

WORK: Final = 2e9
"""Numbers looked at by the bootstrap at most; many labels of many pictures are resampled less often."""
LEAST: Final = 100
"""Resamples at least."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class LabelCounts:
    """Pictures, by weight, that have a label, are given it, and both: ``(C,)`` each."""

    positives: Array
    assigned: Array
    right: Array

    def ratio(self, name: str) -> Array:
        """Return ``"precision"``, ``"recall"`` or ``"f1"`` of each label, NaN where it is undefined."""
        total = {"precision": self.assigned, "recall": self.positives, "f1": (self.positives + self.assigned) / 2}[name]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(self.right / total)


class Ranking:
    """Pictures in the order of their probability for each label, for average precisions under many weights."""

    def __init__(self, probs: Array, targets: Array) -> None:
        self.order = np.argsort(-probs, axis=0, kind="stable")
        ranked = np.take_along_axis(probs, self.order, axis=0)
        self.hits = np.take_along_axis(targets, self.order, axis=0).astype(np.float64)
        self.ends = np.ones(probs.shape, dtype=bool)  # the last of equal probabilities: they are one threshold
        self.ends[:-1] = ranked[1:] != ranked[:-1]

    def precisions(self, weights: Array) -> Array:
        """Return the average precision ``(C,)`` of pictures that count `weights` ``(N,)``; NaN without positives."""
        drawn = weights[self.order].astype(np.float64)
        right = np.cumsum(drawn * self.hits, axis=0)
        seen = np.cumsum(drawn, axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = np.where(seen > 0, right / seen, 0.0)
            # Each positive counts with the precision at the end of the block of equal probabilities that it is in.
            at_ends = np.where(self.ends, right, 0.0)
            before = np.zeros_like(at_ends)
            before[1:] = np.maximum.accumulate(at_ends, axis=0)[:-1]
            gained = np.where(self.ends, right - before, 0.0)
            return np.asarray((gained * precision).sum(axis=0) / right[-1])


def average_precisions(probs: Array, targets: Array) -> Array:
    """Return the average precision of each label, ``(C,)``, as scikit-learn's; NaN for a label without positives.

    Args:
        probs: ``(N, C)``.
        targets: ``(N, C)``, ones and zeros.
    """
    return Ranking(probs, targets).precisions(np.ones(len(probs)))


def label_metrics(
    probs: Array, targets: Array, names: Sequence[str], thresholds: Sequence[float] | None = None, *, seed: int = 0
) -> dict[str, Any]:
    """Return the figures of probabilities as plain JSON values.

    Args:
        probs: ``(N, C)``, of each label.
        targets: ``(N, C)``, ones and zeros.
        names: Of the labels, in index order.
        thresholds: ``(C,)``; a picture is given a label from this probability on. 0.5 each when ``None``.
        seed: Of the bootstrap.

    Returns:
        ``map`` (mean average precision over labels with positives), ``f1_macro`` (over the same labels), ``f1_micro``,
        ``subset_acc`` (pictures whose labels are all right), ``hamming`` (share of labels that are wrong), ``loss``
        (mean binary cross entropy in nats), each with ``_ci``; ``none``: pictures without any label and how many of
        them are given none; ``per_label`` by name: ``ap, f1, precision, recall, n, threshold`` and ``ap_ci``; ``n``.
    """
    probs, truth = probs.astype(np.float64), targets > 0.5
    limits = np.full(len(names), THRESHOLD) if thresholds is None else np.asarray(thresholds)
    assigned = probs >= limits
    ranking, wrong = Ranking(probs, truth), truth != assigned
    exact, off = ~wrong.any(axis=1), wrong.mean(axis=1)
    clipped = probs.clip(1e-7, 1 - 1e-7)
    nll = -np.where(truth, np.log(clipped), np.log1p(-clipped)).mean(axis=1)
    both, count = truth & assigned, len(probs)

    def statistics(weights: Array) -> list[float]:
        counts = LabelCounts(weights @ truth, weights @ assigned, weights @ both)
        present = counts.positives > 0
        precisions = ranking.precisions(weights)
        total = (counts.positives.sum() + counts.assigned.sum()) / 2
        return [
            _mean(precisions[present]),
            _mean(counts.ratio("f1")[present]),
            float(counts.right.sum() / total) if total else np.nan,
            *(float(weights @ each / count) for each in (exact, off, nll)),
            *precisions,
        ]

    keys = ("map", "f1_macro", "f1_micro", "subset_acc", "hamming", "loss")
    values = statistics(np.ones(count))
    resamples = int(np.clip(WORK / (8 * probs.size), LEAST, RESAMPLES))
    with np.errstate(invalid="ignore"):
        intervals = bootstrap_intervals(statistics, count, resamples=resamples, seed=seed, centres=values)
    loss = intervals[keys.index("loss")]
    intervals = [(low, high) for low, high in np.clip(intervals, 0.0, 1.0).tolist()]  # moved beyond what shares can be
    intervals[keys.index("loss")] = loss
    result: dict[str, Any] = {"n": count}
    for key, value, interval in zip(keys, values, intervals, strict=False):
        result[key], result[f"{key}_ci"] = known_value(value), bounds_of(interval)
    counts = LabelCounts(truth.sum(axis=0), assigned.sum(axis=0), both.sum(axis=0))
    of_label = {name: counts.ratio(name) for name in ("f1", "precision", "recall")}
    bare = ~truth.any(axis=1)
    result["none"] = {"n": int(bare.sum()), "given_none": int((bare & ~assigned.any(axis=1)).sum())}
    result["per_label"] = {
        name: {
            "ap": known_value(values[len(keys) + at]),
            "ap_ci": bounds_of(intervals[len(keys) + at]),
            **{key: known_value(ratios[at]) if counts.positives[at] else None for key, ratios in of_label.items()},
            "n": int(counts.positives[at]),
            "threshold": float(limits[at]),
        }
        for at, name in enumerate(names)
    }
    return result


_WHOLE = (
    (
        "map",
        "Mean average precision (mAP)",
        True,
        "share",
        "mean over the labels of their average precision",
    ),
    ("f1_macro", "Macro F1", True, "share", "mean over the labels of precision and recall in one, at their thresholds"),
    ("f1_micro", "Micro F1", True, "share", "precision and recall in one, of all labels of all pictures together"),
    ("subset_acc", "Exact matches", True, "share", "pictures whose labels are all right"),
    ("hamming", "Hamming loss", False, "share", "labels that are wrongly given or not given; 0 at best"),
    ("loss", "Log loss (NLL)", False, "nats", "mean negative log-likelihood of a label; 0 at best"),
)
_PER_LABEL = (
    ("ap", "Average precision", "area under precision and recall; the share of positives for chance"),
    ("f1", "F1", "precision and recall in one"),
    ("precision", "Precision", "share of the pictures given the label that have it"),
    ("recall", "Recall", "share of the pictures with the label that were given it"),
)


def label_figures(values: Mapping[str, Any]) -> list[Figure]:
    """Return the figures of one split, of all pictures first, from what `label_metrics` returns."""
    figures = [
        Figure(key, label, values[key], values.get(f"{key}_ci"), higher, unit, meaning)
        for key, label, higher, unit, meaning in _WHOLE
        if key in values
    ]
    for name, row in (values.get("per_label") or {}).items():
        figures += [
            Figure(key, label, row[key], row.get(f"{key}_ci"), True, "share", meaning, of=name)
            for key, label, meaning in _PER_LABEL
        ]
    return figures


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else float("nan")
