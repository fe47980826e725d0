"""Objects under augmentation: their outlines as points, what is left of them on the canvas, and which are given up.

The rule. A box goes as `POINTS` points of its outline by the very draw of its picture, and what is around them where
they come to lie, cut at the canvas, is the new box; so a box that is turned grows, as nobody knows what shape it holds.
An object with an outline of its own gets the box of those of its pixels that are left. An object is given up where less
than `LEAST_SHARE` of it can be seen (the crop, the canvas and blots take the rest) or its box has fewer than
`LEAST_PIXELS` pixels or a side below `LEAST_SIDE`. Views of evaluation give up nothing that has an area.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from transferkit.core.errors import DataError
from transferkit.data.masks.annotation import Annotation

__all__ = [
    "LEAST_PIXELS",
    "LEAST_SHARE",
    "LEAST_SIDE",
    "Points",
    "check_objects",
    "left_of",
    "objects_seen",
    "outline_points",
    "scaled",
    "seen_in",
    "uncovered",
]

LEAST_SHARE: Final = 0.25
"""Of an object that has to be seen after augmentation."""
LEAST_PIXELS: Final = 16.0
"""Of the canvas that its box has then, at least."""
LEAST_SIDE: Final = 2.0
"""Pixels of the canvas of each side of it, at least."""
POINTS: Final = 16

Points: TypeAlias = npt.NDArray[np.float64]
"""``(n, 16, 2)``: x and y of edges, from the upper left once around each box."""

_AREA: Final = 1e-6


def check_objects(annotation: Annotation) -> None:
    """Refuse an annotation whose parts do not fit together. Raises `DataError`."""
    boxes, classes, crowd, size = annotation.boxes, annotation.classes, annotation.crowd, annotation.size
    count = -1 if boxes is None else len(boxes)
    sound = (
        boxes is not None and boxes.shape == (count, 4) and classes is not None and classes.shape == (count,)
        and crowd is not None and crowd.shape == (count,) and size is not None
        and (annotation.instances is None or annotation.instances.shape == size)
    )  # fmt: skip
    if not sound:
        raise DataError(
            "objects must be boxes (n, 4) with classes (n,), crowd (n,), the size of their picture, and instances of "
            f"that size or none; got {annotation}"
        )


def scaled(boxes: npt.NDArray[np.float64], of: tuple[int, int], to: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Return boxes ``(n, 4)`` of a picture of one size (height, width) on the same picture of another."""
    factors = np.array([to[1] / of[1], to[0] / of[0]] * 2)
    result: npt.NDArray[np.float64] = boxes * factors
    return result


def outline_points(boxes: npt.NDArray[np.float64]) -> Points:
    """Return points of the outlines of boxes ``(n, 4)``: corners, and three between each two."""
    steps = np.arange(4) / 4
    along = np.concatenate([steps, np.ones(4), 1 - steps, np.zeros(4)])
    down = np.concatenate([np.zeros(4), steps, np.ones(4), 1 - steps])
    left, top, right, bottom = (boxes[:, [side]] for side in range(4))
    return np.stack([left + (right - left) * along, top + (bottom - top) * down], axis=2)


def seen_in(boxes: npt.NDArray[np.float64], crop: tuple[int, int, int, int]) -> npt.NDArray[np.float64]:
    """Return the share ``(n,)`` of boxes ``(n, 4)`` that lies in a crop ``(left, top, right, bottom)``."""
    low, high = np.maximum(boxes[:, :2], crop[:2]), np.minimum(boxes[:, 2:], crop[2:])
    whole = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    seen: npt.NDArray[np.float64] = (high - low).clip(0).prod(axis=1) / np.maximum(whole, _AREA)
    return seen


def left_of(points: Points, size: tuple[int, int]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return boxes ``(n, 4)`` around what of each outline lies on the canvas, and the share ``(n,)`` that does.

    Args:
        points: Of the outlines, after all steps; taken as convex.
        size: Height and width of the canvas.
    """
    height, width = size
    low, high = points.min(axis=1), points.max(axis=1)
    boxes, shares = np.concatenate([low, high], axis=1), np.ones(len(points))
    canvas = np.array([(0, 0), (width, 0), (width, height), (0, height)], dtype=np.float32)
    outside = (low < 0).any(axis=1) | (high[:, 0] > width) | (high[:, 1] > height)
    for row in np.flatnonzero(outside):
        hull = cv2.convexHull(points[row].astype(np.float32))
        area, part = cv2.intersectConvexConvex(hull, canvas)
        if part is None or area <= _AREA:
            boxes[row], shares[row] = 0.0, 0.0
            continue
        corners = part.reshape(-1, 2)
        boxes[row] = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
        shares[row] = area / max(cv2.contourArea(hull), _AREA)
    sides = np.array([width, height, width, height], dtype=np.float64)
    return boxes.clip(0, sides), shares


def uncovered(boxes: npt.NDArray[np.float64], blots: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Return the share ``(n,)`` of boxes ``(n, 4)`` that blots ``(h, w)`` leave open."""
    low, high = np.floor(boxes[:, :2]).astype(int), np.ceil(boxes[:, 2:]).astype(int)
    shares = np.ones(len(boxes))
    for row, ((left, top), (right, bottom)) in enumerate(zip(low, high, strict=True)):
        inside = blots[top:bottom, left:right]
        shares[row] = 1.0 - inside.mean() if inside.size else 0.0
    return shares


def objects_seen(
    annotation: Annotation,
    boxes: npt.NDArray[np.float64],
    shares: npt.NDArray[np.float64] | None,
    instances: npt.NDArray[np.uint16] | None,
    size: tuple[int, int],
) -> Annotation:
    """Return the objects of a view: those given up left out, boxes made anew of numbered masks.

    Args:
        annotation: Of the picture.
        boxes: ``(n, 4)``, on the canvas.
        shares: ``(n,)`` that is seen of each; ``None`` in evaluation.
        instances: ``(h, w)``, on the canvas; ``None`` where only boxes are known.
        size: Of the canvas.
    """
    if annotation.classes is None or annotation.crowd is None:
        raise ValueError("boxes have classes and marks of crowds")
    if instances is not None:
        boxes = _boxes_of(instances, len(boxes))
    sides = boxes[:, 2:] - boxes[:, :2]
    if shares is None:
        stays = (sides > 0).all(axis=1)
    else:
        stays = (shares >= LEAST_SHARE) & (sides >= LEAST_SIDE).all(axis=1) & (sides.prod(axis=1) >= LEAST_PIXELS)
    if instances is not None:
        anew = np.zeros(max(len(boxes), int(instances.max())) + 1, dtype=np.uint16)
        anew[1 : len(boxes) + 1][stays] = np.arange(1, int(stays.sum()) + 1)
        instances = anew[instances]
    return replace(
        annotation,
        boxes=boxes[stays].astype(np.float32),
        classes=annotation.classes[stays],
        crowd=annotation.crowd[stays],
        instances=instances,
        size=size,
    )


def _boxes_of(instances: npt.NDArray[np.uint16], count: int) -> npt.NDArray[np.float64]:
    """Return the boxes ``(count, 4)`` around the pixels of each number; without area where none is left."""
    around = np.zeros((count, 4))
    for row, place in enumerate(ndimage.find_objects(instances, max_label=count)):
        if place is not None:
            rows, columns = place
            around[row] = columns.start, rows.start, columns.stop, rows.stop
    return around
