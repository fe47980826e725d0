"""Detections of many pictures as numbers that add up, and the scores from which on they are told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from transferkit.models.detections.matching import AREAS, NOTHING, RIGHT, WRONG, matched
from transferkit.models.detections.ranking import BoxRanking
from transferkit.models.figures.boxes import BoxTally, Thresholds

__all__ = ["KEYS", "MASK_KEYS", "BoxCounts", "best_thresholds", "curves", "has_masks"]

KEYS: Final = ("map", "map50", "map75", "map_small", "map_medium", "map_large")
"""Figures of all classes; the first three are those of each class, too."""
MASK_KEYS: Final = ("mask_map", "mask_map50")
"""Figures of instance masks, of all classes and of each."""

Array = npt.NDArray[Any]


class BoxCounts:
    """The tallies of N pictures as numbers that add up, for figures under many weights.

    Args:
        tallies: Of N pictures.
        labels: The classes that count, C of them.
        masks: Whether masks are measured besides boxes; ``None``: where all pictures have some.
    """

    def __init__(self, tallies: Sequence[BoxTally], labels: Sequence[int], *, masks: bool | None = None) -> None:
        self.pictures, self.labels = len(tallies), tuple(labels)
        self._thresholds = [one.thresholds for one in tallies]
        self.masks = has_masks(tallies) if masks is None else masks
        self.matched = matched(tallies, labels)
        self.rankings = [BoxRanking(self.matched, self.pictures)]
        if self.masks:
            self.rankings.append(BoxRanking(matched(tallies, labels, masks=True), self.pictures))
        self.size = sum(ranking.size for ranking in self.rankings)

    def figures(self, weights: Array) -> Array:
        """Return the figures of `names`, NaN where undefined.

        Args:
            weights: ``(N,)``, how often each picture counts.
        """
        boxes, *masks = (ranking.precision(weights) for ranking in self.rankings)
        whole = [*_three(boxes), *(_mean(boxes[:, area].mean(axis=1)) for area in range(1, len(AREAS)))]
        of_class = [boxes[:, 0].mean(axis=1), boxes[:, 0, 0], boxes[:, 0, 5]]
        for each in masks:
            whole += _three(each)[:2]
            of_class += [each[:, 0].mean(axis=1), each[:, 0, 0]]
        return np.concatenate([whole, np.stack(of_class, axis=1).ravel()])

    @property
    def names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the keys of `figures`: of all classes, and then of each."""
        more = MASK_KEYS if self.masks else ()
        return KEYS + more, KEYS[:3] + more

    def at(self, thresholds: Thresholds) -> tuple[Array, Array]:
        """Return, at overlaps of a half, how many detections are right and wrong, and how many objects there are.

        Args:
            thresholds: Of pictures that have none of their own.

        Returns:
            ``(N, 3)`` of all classes at the threshold of all, and ``(C, 3)`` of each class at its own. From a threshold
            of ``None`` on there is nothing.
        """
        every = np.zeros((self.pictures, 3), dtype=np.int64)
        of_class = np.zeros((len(self.matched), 3), dtype=np.int64)
        for at, (one, own) in enumerate(zip(self.matched, thresholds.of_class, strict=True)):
            states = one.states[0, 0]
            for limits, whole in ((self._limits(thresholds.every), True), (self._limits(own, self.labels[at]), False)):
                sure = one.scores >= limits[one.pictures]
                for column, state in enumerate((RIGHT, WRONG)):
                    some = sure & (states == state)
                    if whole:
                        every[:, column] += np.bincount(one.pictures[some], minlength=self.pictures)
                    else:
                        of_class[at, column] = some.sum()
            every[:, 2] += np.bincount(one.owners, minlength=self.pictures)
            of_class[at, 2] = len(one.owners)
        return every, of_class

    def _limits(self, usual: float | None, of_class: int | None = None) -> Array:
        """Return the threshold ``(N,)`` of each picture, of all classes or of one; infinity for none."""
        own = [usual if one is None else one.every if of_class is None else one.of_class[of_class]
               for one in self._thresholds]  # fmt: skip
        return np.array([np.inf if value is None else value for value in own])


def has_masks(tallies: Sequence[BoxTally]) -> bool:
    """Return whether all pictures have masks of detections and of objects."""
    return all(one.masks is not None and one.true_masks is not None for one in tallies)


def best_thresholds(counts: BoxCounts) -> Thresholds:
    """Return the scores from which on precision and recall at overlaps of a half are best, by F1.

    Detections of a score count together, whatever their order. Of equal F1 the higher score is taken: fewer boxes.
    """
    sides = [(one.scores, one.states[0, 0], len(one.owners)) for one in counts.matched]
    if not sides:
        return Thresholds(None, ())
    scores, states, objects = zip(*sides, strict=True)
    pooled = np.concatenate(scores)
    order = np.argsort(-pooled, kind="stable")
    return Thresholds(
        _best(pooled[order], np.concatenate(states)[order], sum(objects)), tuple(_best(*side) for side in sides)
    )


def _best(scores: Array, states: Array, objects: int) -> float | None:
    judged = states != NOTHING
    scores, states = scores[judged], states[judged]
    last = np.flatnonzero(np.diff(scores, append=-np.inf))  # of each score
    right = np.cumsum(states == RIGHT)[last]
    if not objects or not len(last) or not right[-1]:
        return None
    return float(scores[last[np.argmax(2 * right / (objects + last + 1))]])


def curves(counts: BoxCounts) -> list[Array | None]:
    """Return, of each class, precision at recalls of 0, 0.01 ... 1, ``(101,)``, at overlaps of a half.

    It is the best precision at this recall or more, 0 where no threshold gives that recall; ``None`` where the class
    has no object.
    """
    return [counts.rankings[0].curve(at) for at in range(len(counts.labels))]


def _three(precision: Array) -> list[float]:
    """Return the means over the classes of ``(C, 4, 10)``: of all overlaps, of 0.50 and of 0.75."""
    return [_mean(precision[:, 0].mean(axis=1)), _mean(precision[:, 0, 0]), _mean(precision[:, 0, 5])]


def _mean(values: Array) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else np.nan
