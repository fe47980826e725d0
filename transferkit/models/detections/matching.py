"""Detections matched to objects by faster-coco-eval, as COCO has it: once, for figures under many weights.

The library is asked class by class, about the pictures that hold an object or a detection of the class: many classes of
many pictures cost what their boxes cost. Its `COCOeval_faster` keeps the matches of a picture as records whose only
public reading is their pickled state; that state is checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import ConfigError
from transferkit.models.figures.boxes import BoxTally, require_library

__all__ = ["AREAS", "IOUS", "MOST", "NOTHING", "RIGHT", "WRONG", "Matched", "matched"]

IOUS: Final = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""Overlaps, intersection over union, from which a detection is right."""
AREAS: Final = ("all", "small", "medium", "large")
"""Of objects: up to 32 x 32 pixels, up to 96 x 96, and more, at the picture's own size."""
BOUNDS: Final = np.array([(0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10)])
"""Of `AREAS`, in pixels; what lies on a border is of both sides."""
MOST: Final = 100
"""Detections of a class in a picture that count, the most confident ones."""
RIGHT: Final = 1
WRONG: Final = 0
NOTHING: Final = -1
"""A detection that is neither: of a crowd, or of another size than asked for."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Matched:
    """The D detections of one class in N pictures, the most confident first, and what they are.

    Attributes:
        pictures: ``(D,)``, the picture of each. Of equal scores the first picture's comes first.
        places: ``(D,)``, its place in the picture's tally.
        scores: ``(D,) float64``.
        states: ``(4, 10, D) int8`` by `AREAS` and `IOUS`: `RIGHT`, `WRONG` or `NOTHING`.
        objects: ``(D,)``, which of the picture's objects it is matched to at an overlap of a half, `NOTHING` for none.
        owners: ``(M,)``, the picture of each object of the class that is no crowd.
        numbers: ``(M,)``, its place in the picture's tally.
        counted: ``(4, M) bool``, whether it is of the size.
    """

    pictures: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]
    states: npt.NDArray[np.int8]
    objects: npt.NDArray[np.int64]
    owners: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.int64]
    counted: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class _Side:
    """The boxes of one class in a picture.

    Attributes:
        picture: Which one.
        detected: ``(d,)``, places of the detections, the most confident first.
        found_areas: ``(d,)``, in pixels.
        true: ``(t,)``, places of the objects.
        true_areas: ``(t,)``, in pixels.
    """

    picture: int
    detected: Array
    found_areas: Array
    true: Array
    true_areas: Array


def matched(tallies: Sequence[BoxTally], labels: Sequence[int], *, masks: bool = False) -> list[Matched]:
    """Match the detections of classes, each on its own.

    Args:
        tallies: Of N pictures.
        labels: The classes.
        masks: Whether masks overlap, and give sizes, instead of boxes.

    Raises:
        ConfigError: The library is missing or keeps its matches in another way, or masks are.
    """
    require_library()
    if masks and any(one.masks is None or one.true_masks is None for one in tallies):
        raise ConfigError("masks of objects are to be measured, but a picture has none")
    sides: dict[int, list[_Side]] = {label: [] for label in labels}
    for picture, one in enumerate(tallies):
        found_areas = _areas(one.boxes, one.masks if masks else None)
        true_areas = _areas(one.true_boxes, one.true_masks if masks else None)
        ranks = np.argsort(-one.scores.astype(np.float64), kind="stable")
        for label in np.intersect1d(labels, np.r_[one.classes, one.true_classes]).tolist():
            detected = ranks[one.classes[ranks] == label][:MOST]
            true = np.flatnonzero(one.true_classes == label)
            sides[label].append(_Side(picture, detected, found_areas[detected], true, true_areas[true]))
    return [_matched(tallies, sides[label], masks) for label in labels]


def _matched(tallies: Sequence[BoxTally], sides: Sequence[_Side], masks: bool) -> Matched:
    """Match the detections of one class, of the pictures that have some of it."""
    shape = (len(AREAS), len(IOUS))
    states: list[Array] = [np.zeros((*shape, 0), dtype=np.int8)]
    objects: list[Array] = [np.zeros(0, dtype=np.int64)]
    counted: list[Array] = [np.zeros((len(AREAS), 0), dtype=np.bool_)]
    numbers, owners, pictures, places, scores = (list(objects) for _ in range(5))
    evaluations = _evaluated(tallies, sides, masks) if sides else []
    for place, side in enumerate(sides):
        one = tallies[side.picture]
        each = evaluations[place :: len(sides)]
        hits = np.array([hit for hit, _, _ in each], dtype=np.int64).reshape(*shape, len(side.detected))
        ignored = np.array([left for _, left, _ in each], dtype=np.bool_).reshape(hits.shape)
        states.append(np.where(ignored, NOTHING, hits > 0).astype(np.int8))
        objects.append(np.concatenate([[NOTHING], side.true])[hits[0, 0]])
        plain = ~one.crowd[side.true]
        counted.append(((BOUNDS[:, :1] <= side.true_areas) & (side.true_areas <= BOUNDS[:, 1:]))[:, plain])
        if [left_out.count(False) for *_, left_out in each] != counted[-1].sum(axis=1).tolist():
            raise _strange()
        numbers.append(side.true[plain])
        owners.append(np.full(len(numbers[-1]), side.picture))
        pictures.append(np.full(len(side.detected), side.picture))
        places.append(side.detected)
        scores.append(one.scores[side.detected].astype(np.float64))
    confident = np.concatenate(scores)
    order = np.argsort(-confident, kind="stable")
    return Matched(
        pictures=np.concatenate(pictures)[order],
        places=np.concatenate(places)[order],
        scores=confident[order].astype(np.float64),
        states=np.concatenate(states, axis=2)[:, :, order],
        objects=np.concatenate(objects)[order],
        owners=np.concatenate(owners),
        numbers=np.concatenate(numbers),
        counted=np.concatenate(counted, axis=1),
    )


def _evaluated(
    tallies: Sequence[BoxTally], sides: Sequence[_Side], masks: bool
) -> list[tuple[list[int], list[bool], list[bool]]]:
    """Return, by size and picture, what the library says of its d detections and t objects.

    That is ``(10 * d,)`` objects matched, counted from 1, 0 for none; ``(10 * d,)``, and ``(t,)`` in another order,
    which of them count for nothing. To the library 0 is no match on both sides: its numbers begin at 1.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    starts = []
    for number, side in enumerate(sides, 1):
        one, same = tallies[side.picture], {"image_id": number, "category_id": 1}
        images.append({"id": number} | (_canvas(one) if masks else {}))
        starts.append(len(objects))
        objects += [
            {"id": len(objects) + at, **same, "bbox": box, "area": area, "iscrowd": crowd}
            for at, (box, area, crowd) in enumerate(
                zip(_corner_and_sides(one.true_boxes[side.true]), side.true_areas.tolist(),
                    one.crowd[side.true].astype(int).tolist(), strict=True), 1)
        ]  # fmt: skip
        detections += [
            {"id": len(detections) + at, **same, "bbox": box, "area": area, "score": score}
            for at, (box, area, score) in enumerate(
                zip(_corner_and_sides(one.boxes[side.detected]), side.found_areas.tolist(),
                    one.scores[side.detected].tolist(), strict=True), 1)
        ]  # fmt: skip
        if masks:
            for rows, packed, places in ((objects, one.true_masks, side.true), (detections, one.masks, side.detected)):
                for row, place in zip(rows[len(rows) - len(places) :], places.tolist(), strict=True):
                    row["segmentation"] = (packed or ())[place]
    shared = {"info": {}, "images": images, "categories": [{"id": 1, "name": "one"}]}
    sets = [COCO({**shared, "annotations": rows}) for rows in (objects, detections)]
    judge = COCOeval_faster(*sets, "segm" if masks else "bbox", print_function=_silent, separate_eval=True)
    if tuple(round(float(each), 9) for each in judge.params.iouThrs) != IOUS or judge.params.maxDets[-1] != MOST:
        raise _strange()
    judge.evaluate()
    results = []
    try:
        for place, evaluation in enumerate(judge._evalImgs_cpp):
            hits, _, _, left_out, ignored, _ = evaluation.__getstate__()
            first = starts[place % len(sides)]
            results.append(([hit and hit - first for hit in hits], ignored, left_out))
    except (AttributeError, TypeError, ValueError) as error:
        raise _strange() from error
    return results


def _corner_and_sides(boxes: Array) -> list[list[float]]:
    exact = boxes.astype(np.float64)
    exact[:, 2:] -= exact[:, :2]
    return list(exact.tolist())


def _areas(boxes: Array, packed: Sequence[Any] | None) -> Array:
    """Return the area of each, ``(n,) float64``: of its mask where there are masks, of its box else."""
    if packed is None:
        sides = boxes[:, 2:].astype(np.float64) - boxes[:, :2]
        return np.asarray(sides[:, 0] * sides[:, 1])
    from faster_coco_eval.core import mask as library

    return np.asarray(library.area(list(packed)) if packed else [], dtype=np.float64)


def _canvas(one: BoxTally) -> dict[str, int]:
    for each in (*(one.true_masks or ()), *(one.masks or ())):
        return {"height": int(each["size"][0]), "width": int(each["size"][1])}
    return {"height": 1, "width": 1}  # there is nothing on it


def _silent(*_: object) -> None:
    """Say nothing of the library's progress."""


def _strange() -> ConfigError:
    return ConfigError(
        "the installed faster-coco-eval keeps its matches in another way than known, expected that of 1.8 - "
        "pip install 'faster-coco-eval>=1.8,<1.9'"
    )
