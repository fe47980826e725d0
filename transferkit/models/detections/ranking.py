"""Average precision under many weights: what the library accumulates, from its matches, for pictures that count more.

All classes, sizes and overlaps lie behind each other in a few flat arrays, so that a resample of the pictures is some
sums along them. Between two right detections of a ranking precision only falls, and recall stands: only the right ones
are looked at, and those that count at one overlap and not at another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from transferkit.models.detections.matching import AREAS, IOUS, NOTHING, RIGHT, Matched

__all__ = ["RECALLS", "BoxRanking", "reached"]

RECALLS: Final[npt.NDArray[np.float64]] = np.linspace(0.0, 1.0, 101)
"""Recalls at which precision is read: the mean of these is the average precision."""

_NEXT: Final = np.append(RECALLS[1:], np.inf)

Array = npt.NDArray[Any]


class BoxRanking:
    """The detections of C classes in N pictures, ranked.

    Args:
        classes: From `matched`, of each class.
        pictures: N.
    """

    def __init__(self, classes: Sequence[Matched], pictures: int) -> None:
        self.classes, self.pictures = len(classes), pictures
        owners, owner_groups, base, starts = [], [], [], [0]
        events: list[tuple[Array, ...]] = []
        for at, one in enumerate(classes):
            for area in range(len(AREAS)):
                group = at * len(AREAS) + area
                mine = one.owners[one.counted[area]]
                owners.append(mine)
                owner_groups.append(np.full(len(mine), group))
                states = one.states[area]
                usual = states[-1] != NOTHING  # at the largest overlap, where the fewest are matched
                base.append(one.pictures[usual])
                ranks = starts[-1] + np.cumsum(usual)
                right, more = states == RIGHT, (states != NOTHING).astype(np.int8) - usual
                overlaps, places = np.nonzero(right | (more != 0))
                segment = group * len(IOUS) + overlaps
                events.append((segment, one.pictures[places], right[overlaps, places], more[overlaps, places],
                               ranks[places], np.full(len(places), starts[-1])))  # fmt: skip
                starts.append(starts[-1] + len(base[-1]))
        self._owners, self._owner_groups = _joined(owners), _joined(owner_groups)
        self._base = _joined(base)
        columns = [_joined(column) for column in zip(*events, strict=True)] if events else [_joined([])] * 6
        self._segments, self._pictures, right, more, self._ranks, self._before = columns
        self._right, self._more = right.astype(np.float64), more.astype(np.float64)
        self._firsts = np.flatnonzero(np.diff(self._segments, prepend=-1))
        self._lengths = np.diff(np.r_[self._firsts, len(self._segments)])
        self._groups = self._segments // len(IOUS)
        # Added to precision so that the largest one from here on is one of the same segment.
        self._steps = 2.0 * (self.classes * len(AREAS) * len(IOUS) - self._segments)
        self.size = len(self._base) + 8 * len(self._segments) + len(self._owners)

    def precision(self, weights: Array) -> Array:
        """Return average precision, ``(C, 4, 10)`` by class, `AREAS` and `IOUS`; NaN where there is no object.

        Args:
            weights: ``(N,)``, how often each picture counts.
        """
        objects, best, gained = self._curves(weights)
        shaped = np.zeros((self.classes, len(AREAS), len(IOUS)))
        if len(best):
            shaped.ravel()[self._segments[self._firsts]] = np.add.reduceat(best * gained, self._firsts) / len(RECALLS)
        return np.where(objects.reshape(shaped.shape[:2])[:, :, None] > 0, shaped, np.nan)

    def curve(self, at: int, overlap: int = 0) -> Array | None:
        """Return the precision of a class at `RECALLS`, ``(101,)``, of all pictures; ``None``: it has no object."""
        objects, best, gained = self._curves(np.ones(self.pictures))
        if not objects[at * len(AREAS)]:
            return None
        mine = self._segments == at * len(AREAS) * len(IOUS) + overlap
        curve = np.repeat(best[mine], gained[mine].astype(np.int64))
        return np.concatenate([curve, np.zeros(len(RECALLS) - len(curve))])

    def _curves(self, weights: Array) -> tuple[Array, Array, Array]:
        """Return objects by group, and of each event the best precision from it on and how many recalls it reaches."""
        weights = np.asarray(weights, dtype=np.float64)
        objects = np.bincount(self._owner_groups, weights[self._owners], self.classes * len(AREAS))
        called = np.r_[0.0, np.cumsum(weights[self._base])]
        own = weights[self._pictures]
        right = self._within(np.cumsum(own * self._right))
        # The sums of a segment begin with its first event: what was called before that is of the same segment, too.
        counted = np.cumsum(own * self._more)
        firsts = self._firsts
        before = called[self._before[firsts]] + counted[firsts] - own[firsts] * self._more[firsts]
        counted += called[self._ranks]
        counted -= np.repeat(before, self._lengths)
        precision = np.divide(right, counted, out=np.zeros_like(right), where=counted > 0)
        precision += self._steps
        best = np.maximum.accumulate(precision[::-1])[::-1] - self._steps
        right /= np.maximum(objects, 1)[self._groups]
        recalls = reached(right)
        gained = recalls.copy()
        gained[1:] -= recalls[:-1]
        gained[firsts] = recalls[firsts]
        return objects, best, gained

    def _within(self, sums: Array) -> Array:
        """Turn sums over all events into those within each segment; whole numbers are exact."""
        sums -= np.repeat(np.concatenate([[0.0], sums])[self._firsts], self._lengths)
        return sums


def reached(recall: Array) -> Array:
    """Return how many of `RECALLS` are reached by recalls in [0, 1], ``(...)``, to the last bit.

    It is ``searchsorted(RECALLS, recall, side="right")`` at half the cost: the guess is wrong by one at most.
    """
    guess = (recall * (len(RECALLS) - 1)).astype(np.intp)
    return np.asarray(guess + (recall >= RECALLS[guess]) + (recall >= _NEXT[guess]))


def _joined(parts: Sequence[Array]) -> Array:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
