"""The mistakes of a detector one by one: confident boxes that are wrong, and why, and objects that were not found.

The kinds are those of TIDE (Bolya et al. 2020), by boxes: what lies between them is the background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from transferkit.models.detections.matching import RIGHT, WRONG, Matched
from transferkit.models.figures.boxes import BoxTally

__all__ = ["KINDS", "NEAR", "Missed", "Mistake", "confident_mistakes", "missed_objects", "mistake_counts"]

KINDS: Final = ("double", "wrong class", "badly placed", "background")
"""Why a box is wrong, the first that holds:

- *double*: it overlaps an object of its class by a half or more, which a more confident box has found;
- *wrong class*: it overlaps an object of another class by a half or more;
- *badly placed*: it overlaps an object of its class by a tenth or more, but not by a half;
- *background*: it overlaps nothing that much.
"""
HALF: Final = 0.5
NEAR: Final = 0.1

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Mistake:
    """A box that is wrong.

    Attributes:
        picture: Which one.
        place: Of the detection in the picture's tally.
        label: The class it is called.
        score: How sure that is.
        kind: One of `KINDS`.
        object: The object it is about, by its place in the tally; ``None`` on the background.
        overlap: With that object, intersection over union; with the nearest one of any class on the background.
    """

    picture: int
    place: int
    label: int
    score: float
    kind: str
    object: int | None
    overlap: float


@dataclass(frozen=True)
class Missed:
    """An object that was not found.

    Attributes:
        picture: Which one.
        object: Its place in the picture's tally.
        label: Its class.
        score: Of the box that finds it below the threshold; 0 where none does.
        area: Of its box, in pixels.
    """

    picture: int
    object: int
    label: int
    score: float
    area: float


def confident_mistakes(
    tallies: Sequence[BoxTally],
    matches: Sequence[Matched],
    labels: Sequence[int],
    *,
    most: int | None = 100,
    threshold: float = 0.0,
) -> list[Mistake]:
    """Return the boxes that are wrong at an overlap of a half, the most confident first.

    Args:
        tallies: Of N pictures.
        matches: Of each class, from `matched`: `BoxCounts.matched`.
        labels: The classes of these.
        most: How many; ``None`` for all.
        threshold: The score that a box has at least.
    """
    parts: list[tuple[Array, Array, Array, Array]] = []
    for one, label in zip(matches, labels, strict=True):
        wrong = (one.states[0, 0] == WRONG) & (one.scores >= threshold)
        parts.append((one.scores[wrong], one.pictures[wrong], one.places[wrong], np.full(int(wrong.sum()), label)))
    if not parts:
        return []
    scores, pictures, places, called = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.lexsort([places, pictures, -scores])[:most]
    overlaps = {at: _overlaps(tallies[at]) for at in np.unique(pictures[order]).tolist()}
    mistakes = []
    for at in order.tolist():
        picture, place, label = int(pictures[at]), int(places[at]), int(called[at])
        kind, thing, overlap = _kind(overlaps[picture][place], tallies[picture], label)
        mistakes.append(Mistake(picture, place, label, float(scores[at]), kind, thing, overlap))
    return mistakes


def missed_objects(
    tallies: Sequence[BoxTally],
    matches: Sequence[Matched],
    labels: Sequence[int],
    *,
    most: int | None = 100,
    threshold: float = 0.0,
) -> list[Missed]:
    """Return the objects that no box from the threshold on finds: those first that none finds at all, large ones first.

    Args:
        tallies: Of N pictures.
        matches: Of each class, from `matched`: `BoxCounts.matched`.
        labels: The classes of these.
        most: How many; ``None`` for all.
        threshold: The score from which on a box counts.
    """
    missed = []
    for one, label in zip(matches, labels, strict=True):
        right = one.states[0, 0] == RIGHT
        finders = zip(one.pictures[right].tolist(), one.objects[right].tolist(), strict=True)
        scored = dict(zip(finders, one.scores[right].tolist(), strict=True))
        for picture, thing in zip(one.owners.tolist(), one.numbers.tolist(), strict=True):
            score = scored.get((picture, thing), 0.0)
            if (picture, thing) not in scored or score < threshold:
                left, top, right_side, bottom = tallies[picture].true_boxes[thing].tolist()
                missed.append(Missed(picture, thing, label, score, (right_side - left) * (bottom - top)))
    missed.sort(key=lambda each: (each.score, -each.area, each.picture, each.object))
    return missed[:most]


def mistake_counts(mistakes: Sequence[Mistake]) -> dict[str, int]:
    """Return how many there are of each of `KINDS`."""
    return {kind: sum(each.kind == kind for each in mistakes) for kind in KINDS}


def _overlaps(one: BoxTally) -> Array:
    """Return intersection over union of each detection with each object, ``(k, m)``, 0 with crowds."""
    from torchvision.ops import box_iou

    boxes, true_boxes = (torch.from_numpy(each).double() for each in (one.boxes, one.true_boxes))
    overlaps: Array = box_iou(boxes, true_boxes).nan_to_num().numpy()  # boxes of no area
    overlaps[:, one.crowd] = 0.0
    return overlaps


def _kind(overlaps: Array, one: BoxTally, label: int) -> tuple[str, int | None, float]:
    """Return why a box is wrong, which object it is about, and how much it overlaps that one."""
    if not len(overlaps):
        return KINDS[-1], None, 0.0
    own = np.where(one.true_classes == label, overlaps, -1.0)
    other = np.where(one.true_classes != label, overlaps, -1.0)
    for kind, values, least in zip(KINDS, (own, other, own), (HALF, HALF, NEAR), strict=False):
        best = int(values.argmax())
        if values[best] >= least:
            return kind, best, float(values[best])
    return KINDS[-1], None, float(overlaps.max())
