"""How large anchors are: as large as the objects that are learnt, in the pixels that the network sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["anchor_scale"]

Floats: TypeAlias = npt.NDArray[np.float64]

SCALES: Final = tuple(2.0 ** (step / 4) for step in range(-14, 9))
"""What is tried, 1/11 to 4."""

CLEARLY: Final = 0.05
"""Gain in overlap below which anchors stay as the papers have them."""


def anchor_scale(
    shapes: Sequence[tuple[float, float]],
    side: int,
    sizes: Sequence[float],
    strides: Sequence[int],
    ratios: Sequence[float],
) -> float:
    """Return by how much the sides of all anchors are multiplied, so that they lie well on the objects.

    The papers' anchors suit photos of 800 pixels; the objects of small pictures would lie between the smallest of them
    and nothing. What counts is the overlap of each object with its best anchor, on average, as YOLOv2 chooses its
    anchors (Redmon & Farhadi 2017, section 2). Here one number is chosen and the levels keep their distance, and an
    anchor lies a quarter of its map's stride beside the middle of the object, both ways, as it does on average.

    Args:
        shapes: Width and height of typical objects, over the longer side of their picture; none for no change.
        side: Of the network's input, in pixels.
        sizes: Sides of the anchors, in pixels.
        strides: Of the map that each of them is on.
        ratios: Heights over widths.
    """
    if not len(shapes):
        return 1.0
    objects = side * np.array(shapes, dtype=np.float64)
    scales = sorted(SCALES, key=lambda scale: abs(np.log(scale)))  # of equal ones the nearest to 1
    aside = np.repeat(np.array(strides) / 4, len(ratios))
    overlaps = [_overlap(objects, _anchors(scale * np.array(sizes), np.array(ratios)), aside) for scale in scales]
    best = int(np.argmax(overlaps))
    return scales[best] if overlaps[best] >= overlaps[0] + CLEARLY else 1.0


def _anchors(sizes: Floats, ratios: Floats) -> Floats:
    """Return widths and heights ``(sizes * ratios, 2)``."""
    stretch = np.sqrt(ratios)
    return np.stack((np.outer(sizes, 1 / stretch).ravel(), np.outer(sizes, stretch).ravel()), axis=1)


def _overlap(objects: Floats, anchors: Floats, aside: Floats) -> float:
    """Return the mean, over objects ``(N, 2)``, of the best IoU with anchors ``(A, 2)`` that lie ``(A,)`` aside."""
    first, second = objects[:, None], anchors[None]
    shared = np.minimum(np.minimum(first, second), (first + second) / 2 - aside[:, None])
    both = np.maximum(shared, 0.0).prod(axis=2)
    union = first.prod(axis=2) + second.prod(axis=2) - both
    return float((both / union).max(axis=1).mean())
