"""Figures of boxes and of instance masks from the tallies of many pictures, as COCO has them, with bootstrap intervals.

What the pictures cannot tell is ``None``: a class without an object has no average precision, and is left out of the
means, as are boxes that are called one of it; how many there are stands beside it. A class whose objects are not found
has 0, and counts. Objects of a crowd are neither to be found nor wrong to find.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import ConfigError
from transferkit.models.detections.counts import BoxCounts, best_thresholds, curves, has_masks
from transferkit.models.detections.matching import MOST, Matched
from transferkit.models.detections.mistakes import confident_mistakes, missed_objects, mistake_counts
from transferkit.models.figures.bootstrap import RESAMPLES, bootstrap_intervals, known_value
from transferkit.models.figures.boxes import BoxTally, Thresholds
from transferkit.models.figures.figure import Figure
from transferkit.models.figures.paired import compare_figures

__all__ = ["box_figures", "box_metrics", "compare_boxes"]

WORK: Final = 2e9
"""Numbers looked at by the bootstrap at most, some 20 s; many boxes are resampled less often."""
LEAST: Final = 100
"""Resamples at least."""

Array = npt.NDArray[Any]


def box_metrics(
    tallies: Sequence[BoxTally],
    names: Sequence[str],
    thresholds: Thresholds | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Return the figures of boxes as plain JSON values.

    Args:
        tallies: Of N pictures.
        names: Of C classes, in index order.
        thresholds: Chosen on other pictures; ``None`` to choose them on these, which flatters precision, recall and F1
            unless every tally has thresholds of its own.
        seed: Of the bootstrap.
        resamples: Of the pictures, whole ones, since the objects of one are alike. A single picture has no interval.

    Returns:
        ``map`` (mean over the classes, and over overlaps of 0.50, 0.55 ... 0.95), ``map50``, ``map75``, ``map_small``,
        ``map_medium``, ``map_large``; where there are masks ``mask_map`` and ``mask_map50``; ``f1``, ``precision``,
        ``recall`` at overlaps of a half and ``threshold``, boxes of all classes counting alike; each of these but the
        threshold with ``_ci``; ``chosen_here``, whether the thresholds are of these pictures; ``n``, pictures;
        ``objects``, ``crowd``, ``detections``; ``beyond``, objects that cannot be found since their picture has more
        than 100 of a class; ``mistakes`` from the threshold on: how many of each kind, and ``"missed"``; ``per_class``
        by name: ``map, map50, map75`` and those of masks, each with ``_ci``, ``f1, precision, recall`` at the
        ``threshold`` of the class, ``n``, pictures that hold it, ``objects, predicted``; ``curves`` by name, see
        `curves`.

    Raises:
        ConfigError: There is no picture, a class has no name, a box of an object is turned, or faster-coco-eval is
            missing.
    """
    _check(tallies, len(names))
    counts = BoxCounts(tallies, range(len(names)))
    chosen = best_thresholds(counts) if thresholds is None else thresholds
    if len(chosen.of_class) != len(names):
        raise ConfigError(f"there are thresholds of {len(chosen.of_class)} classes, expected {len(names)}")
    outcomes, of_class = counts.at(chosen)
    statistics = partial(_with_shares, counts, outcomes)
    ones = np.ones(len(tallies))
    values: Array = statistics(ones)
    intervals = [(np.nan, np.nan)] * len(values)
    if len(tallies) > 1:
        resamples = min(resamples, max(LEAST, int(WORK / max(1, counts.size))))
        # A picture that is drawn twice lies next to itself in the ranking: average precision of draws is too high.
        centres: list[float] = values.tolist()
        intervals = bootstrap_intervals(statistics, len(tallies), resamples=resamples, seed=seed, centres=centres)
    whole, each = counts.names
    keys = [*_SHARES, *whole]
    result: dict[str, Any] = {"n": len(tallies), "objects": int(outcomes[:, 2].sum())}
    result["crowd"] = sum(int(one.crowd.sum()) for one in tallies)
    result["detections"] = sum(len(one.scores) for one in tallies)
    result["beyond"] = sum(_beyond(one) for one in counts.matched)
    for at, key in enumerate(keys):
        result[key], result[f"{key}_ci"] = known_value(values[at]), _bounds(intervals[at])
    result |= {
        "threshold": chosen.every,
        "chosen_here": thresholds is None and any(one.thresholds is None for one in tallies),
    }
    result["mistakes"] = _mistakes(tallies, counts, chosen.every)
    predicted = np.bincount(np.concatenate([one.classes for one in tallies]), minlength=len(names))
    rows = {}
    for at, name in enumerate(names):
        places = len(keys) + len(each) * at + np.arange(len(each))
        row: dict[str, Any] = {}
        for key, place in zip(each, places.tolist(), strict=True):
            row[key], row[f"{key}_ci"] = known_value(values[place]), _bounds(intervals[place])
        shares = _shares(of_class[at])
        row |= {key: known_value(share) for key, share in zip(_SHARES, shares, strict=True)}
        row["threshold"] = chosen.of_class[at]
        row["n"] = len(np.unique(counts.matched[at].owners))
        rows[name] = row | {"objects": int(of_class[at, 2]), "predicted": int(predicted[at])}
    result["per_class"] = rows
    result["curves"] = {
        name: None if curve is None else np.round(curve, 6).tolist()
        for name, curve in zip(names, curves(counts), strict=True)
    }
    return result


def compare_boxes(
    first: Sequence[BoxTally],
    second: Sequence[BoxTally],
    classes: tuple[Sequence[str], Sequence[str]],
    *,
    names: tuple[str, str] = ("the first", "the second"),
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Compare two models on the same pictures, drawn together. Differences are first minus second.

    Args:
        first: Of the model in question.
        second: Of the one it is held against, for the same pictures in the same order.
        classes: The names of each one's classes. Objects and boxes of a class that only one has are not looked at.
        names: What the models are called in the verdict.
        seed: Of the bootstrap.
        resamples: Of the pictures.

    Returns:
        As `compare_figures`, mean average precision first, of masks only where both models have some; and
        ``classes_left_out``.

    Raises:
        ConfigError: The two have no class in common, or their pictures or objects differ.
    """
    shared = [name for name in classes[0] if name in classes[1]]
    if not shared:
        raise ConfigError(f"{names[0]} and {names[1]} have no class in common - name another run")
    for one, own in zip((first, second), classes, strict=True):
        _check(one, len(own))
    labels = [[list(own).index(name) for name in shared] for own in classes]
    if len(first) != len(second) or not all(
        _same_objects(ours, theirs, labels) for ours, theirs in zip(first, second, strict=True)
    ):
        raise ConfigError(
            f"expected what two models say of the same pictures, but the {len(first)} and the {len(second)} pictures "
            "have other objects"
        )
    masks = has_masks(first) and has_masks(second)
    sides = [BoxCounts(one, at, masks=masks) for one, at in zip((first, second), labels, strict=True)]
    whole, each = sides[0].names
    figures = box_figures(dict.fromkeys(whole) | {"per_class": {name: dict.fromkeys(each) for name in shared}})
    size = sum(side.size for side in sides)
    result = compare_figures(
        sides[0].figures,
        sides[1].figures,
        figures,
        len(first),
        names=names,
        seed=seed,
        resamples=min(resamples, max(LEAST, int(WORK / max(1, size)))),
    )
    return {**result, "classes_left_out": sorted({*classes[0], *classes[1]} - set(shared))}


_SHARES: Final = ("f1", "precision", "recall")
_WHOLE: Final = {
    "map": ("Mean AP", "mean over classes and overlaps of 0.50 to 0.95 of average precision, as COCO has it"),
    "map50": (
        "Mean AP, IoU 0.50",
        "mean over the classes of average precision; a box is right from half an overlap on",
    ),
    "map75": ("Mean AP, IoU 0.75", "mean over the classes of average precision; three quarters have to overlap"),
    "map_small": ("Mean AP, small objects", "of objects of up to 32 x 32 pixels of the picture"),
    "map_medium": ("Mean AP, medium objects", "of objects of 32 x 32 to 96 x 96 pixels of the picture"),
    "map_large": ("Mean AP, large objects", "of objects of 96 x 96 pixels and more of the picture"),
    "mask_map": ("Mean AP of masks", "mean over classes and overlaps of 0.50 to 0.95, of the masks of objects"),
    "mask_map50": ("Mean AP of masks, IoU 0.50", "mean over the classes, of masks of which half overlaps"),
    "f1": ("F1", "precision and recall in one, at the threshold and half an overlap"),
    "precision": ("Precision", "boxes told that are right, at the threshold and half an overlap"),
    "recall": ("Recall", "objects found, at the threshold and half an overlap"),
}


_PER_CLASS: Final = {
    "map": ("AP", "mean over overlaps of 0.50 to 0.95 of average precision, as COCO has it"),
    "map50": ("AP, IoU 0.50", "average precision; a box is right from half an overlap on"),
    "map75": ("AP, IoU 0.75", "average precision; three quarters have to overlap"),
    "mask_map": ("AP of masks", "mean over overlaps of 0.50 to 0.95, of the masks of objects"),
    "mask_map50": ("AP of masks, IoU 0.50", "average precision of masks of which half overlaps"),
    "f1": ("F1", "precision and recall in one, at the threshold of the class and half an overlap"),
    "precision": ("Precision", "boxes of the class that are right, at its threshold and half an overlap"),
    "recall": ("Recall", "objects of the class that are found, at its threshold and half an overlap"),
}


def box_figures(values: Mapping[str, Any]) -> list[Figure]:
    """Return the figures of one split, mean average precision first, those of all classes before those of each."""
    figures = [
        Figure(key, label, values[key], values.get(f"{key}_ci"), True, "share", meaning)
        for key, (label, meaning) in _WHOLE.items()
        if key in values
    ]
    for name, row in (values.get("per_class") or {}).items():
        figures += [
            Figure(key, label, row[key], row.get(f"{key}_ci"), True, "share", meaning, of=name)
            for key, (label, meaning) in _PER_CLASS.items()
            if key in row
        ]
    return figures


def _mistakes(tallies: Sequence[BoxTally], counts: BoxCounts, threshold: float | None) -> dict[str, int]:
    own = [threshold if one.thresholds is None else one.thresholds.every for one in tallies]
    least = [np.inf if limit is None else limit for limit in own]
    sides = (tallies, counts.matched, counts.labels)
    wrong = confident_mistakes(*sides, most=None)
    objects = missed_objects(*sides, most=None, threshold=np.inf)  # all of them, with the score of what finds them
    missed = [one for one in objects if one.score < least[one.picture]]
    return mistake_counts([one for one in wrong if one.score >= least[one.picture]]) | {"missed": len(missed)}


def _with_shares(counts: BoxCounts, outcomes: Array, weights: Array) -> Array:
    return np.concatenate([_shares(weights @ outcomes), counts.figures(weights)])


def _shares(outcomes: Array) -> list[float]:
    """Return F1, precision and recall of right ones, wrong ones and objects; NaN where undefined."""
    right, wrong, objects = map(float, outcomes)
    pairs = ((2 * right, right + wrong + objects), (right, right + wrong), (right, objects))
    if not objects:
        return [np.nan] * 3
    return [part / of if of else np.nan for part, of in pairs]


def _beyond(one: Matched) -> int:
    """Return how many objects are more than detections of the class that count in their picture."""
    held = np.bincount(one.owners) if len(one.owners) else np.zeros(1, dtype=np.int64)
    return int(np.maximum(held - MOST, 0).sum())


def _same_objects(ours: BoxTally, theirs: BoxTally, labels: Sequence[Sequence[int]]) -> bool:
    """Return whether two tallies have the same objects of the shared classes, in the same order."""
    sides: list[Array] = []
    for one, own in ((ours, labels[0]), (theirs, labels[1])):
        place = {label: at for at, label in enumerate(own)}
        classes = np.array([place.get(label, -1) for label in one.true_classes.tolist()], dtype=np.int64)
        known = classes >= 0
        sides.append(np.column_stack([one.true_boxes[known], classes[known], one.crowd[known]]))
    return np.array_equal(sides[0], sides[1])


def _check(tallies: Sequence[BoxTally], classes: int) -> None:
    if not len(tallies):
        raise ConfigError("there are no predictions to measure, expected at least one")
    for one in tallies:
        for label in (*np.unique(one.true_classes).tolist(), *np.unique(one.classes).tolist()):
            if not 0 <= label < classes:
                raise ConfigError(f"a box is of class {label}, expected 0 to {classes - 1} by the names")
        turned = (one.true_boxes[:, 2:] < one.true_boxes[:, :2]).any(axis=1)
        if turned.any():
            raise ConfigError(
                f"an object's box is {one.true_boxes[turned][0].tolist()}, expected left, top, right and bottom"
            )


def _bounds(interval: tuple[float, float]) -> list[float] | None:
    return [min(max(bound, 0.0), 1.0) for bound in interval] if np.isfinite(interval).all() else None
