"""The boxes that are told of a picture and its objects, judged one by one, as cells of `predictions.csv`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from transferkit.core.targets import TargetSpec
from transferkit.models.answers.detection import thresholds_from
from transferkit.models.detections.matching import RIGHT, Matched, matched
from transferkit.models.detections.mistakes import confident_mistakes
from transferkit.models.figures.boxes import BoxTally, Thresholds

__all__ = ["COLUMNS", "CROWD", "FOUND", "MISSED", "TRUE", "Judged", "JudgedBox", "JudgedObject", "judged", "told_from"]

COLUMNS: Final = ("truth", "objects", "told", "right", "wrong", "missed", "boxes")
"""Of `predictions.csv`, after ``split, path``."""
USUAL: Final = 0.5
"""The score from which on boxes are told where none was chosen on held-out pictures."""
TRUE: Final = "right"
"""A box that finds an object; wrong ones are of a kind of `mistakes.KINDS`."""
CROWD: Final = "crowd"
"""A box on a crowd, which is neither right nor wrong, and the crowd itself."""
FOUND, MISSED = "found", "missed"

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class JudgedBox:
    """A box that is told.

    Attributes:
        box: Left, top, right and bottom in pixels of the picture.
        label: Its class.
        score: In (0, 1].
        kind: `TRUE`, `CROWD`, or why it is wrong.
        overlap: With the object that it finds, or that it is about; intersection over union.
    """

    box: Box
    label: str
    score: float
    kind: str
    overlap: float


@dataclass(frozen=True)
class JudgedObject:
    """An object of a picture.

    Attributes:
        box: As of `JudgedBox`.
        label: Its class.
        kind: `FOUND`, `MISSED`, or `CROWD`.
        score: Of the box that finds it, be it told or not; 0 where none does.
    """

    box: Box
    label: str
    kind: str
    score: float


@dataclass(frozen=True)
class Judged:
    """What is told of a picture, and what is in it.

    Attributes:
        boxes: The most confident first.
        objects: In the order of the data.
    """

    boxes: tuple[JudgedBox, ...] = ()
    objects: tuple[JudgedObject, ...] = ()

    @property
    def right(self) -> int:
        """Boxes that find an object."""
        return sum(one.kind == TRUE for one in self.boxes)

    @property
    def wrong(self) -> list[JudgedBox]:
        """Boxes that are wrong."""
        return [one for one in self.boxes if one.kind not in (TRUE, CROWD)]

    @property
    def missed(self) -> list[JudgedObject]:
        """Objects that no box that is told finds."""
        return [one for one in self.objects if one.kind == MISSED]

    def cells(self) -> tuple[str, ...]:
        """Return the cells under `COLUMNS`."""
        objects = sum(one.kind != CROWD for one in self.objects)
        truth = [{"box": _short(one.box), "class": one.label, "kind": one.kind, "score": round(one.score, 4)}
                 for one in self.objects]  # fmt: skip
        boxes = [
            {"box": _short(one.box), "class": one.label, "score": round(one.score, 4), "kind": one.kind,
             "iou": round(one.overlap, 4)}
            for one in self.boxes
        ]  # fmt: skip
        counts = (objects, len(self.boxes), self.right, len(self.wrong), len(self.missed))
        return _plain(truth), *map(str, counts), _plain(boxes)

    @classmethod
    def read(cls, row: Mapping[str, str]) -> Judged:
        """Return what a row of `predictions.csv` says. Raises `KeyError` and `ValueError` where it is none."""
        return cls(
            tuple(
                JudgedBox(_box(one["box"]), str(one["class"]), float(one["score"]), str(one["kind"]), float(one["iou"]))
                for one in json.loads(row["boxes"])
            ),
            tuple(
                JudgedObject(_box(one["box"]), str(one["class"]), str(one["kind"]), float(one["score"]))
                for one in json.loads(row["truth"])
            ),
        )


def told_from(spec: TargetSpec) -> float:
    """Return the score from which on boxes are told: chosen on held-out pictures where there were some, else a half.

    It is infinity where no score was any good on those.
    """
    chosen = thresholds_from(spec)
    if chosen is None:
        return USUAL
    return _from(chosen)


def judged(tallies: Sequence[BoxTally], spec: TargetSpec) -> list[Judged]:
    """Judge what is told of N pictures, at overlaps of a half, as `box_metrics` does.

    Raises:
        ConfigError: The package that matches boxes is missing.
    """
    labels, usual = range(len(spec.names)), told_from(spec)
    matches = matched(tallies, labels)
    finds = _found(matches)
    wrong = {(one.picture, one.place): one for one in confident_mistakes(tallies, matches, labels, most=None)}
    results = []
    for picture, one in enumerate(tallies):
        mine = finds.get(picture, {})
        threshold = usual if one.thresholds is None else _from(one.thresholds)
        finders = {thing: float(one.scores[place]) for place, thing in mine.items()}
        boxes = []
        for place in np.argsort(-one.scores.astype(np.float64), kind="stable").tolist():
            score, label = float(one.scores[place]), spec.names[int(one.classes[place])]
            if score < threshold:
                break
            mistake, thing = wrong.get((picture, place)), mine.get(place)
            if mistake is not None:
                kind, overlap = mistake.kind, mistake.overlap
            elif thing is not None:
                kind, overlap = TRUE, _overlap(one, place, thing)
            else:
                kind, overlap = CROWD, 0.0
            boxes.append(JudgedBox(_box(one.boxes[place].tolist()), label, score, kind, overlap))
        objects = []
        for thing, (box, index, crowd) in enumerate(zip(one.true_boxes, one.true_classes, one.crowd, strict=True)):
            score = finders.get(thing, 0.0)
            kind = CROWD if crowd else FOUND if score and score >= threshold else MISSED
            objects.append(JudgedObject(_box(box.tolist()), spec.names[int(index)], kind, score))
        results.append(Judged(tuple(boxes), tuple(objects)))
    return results


def _from(thresholds: Thresholds) -> float:
    return np.inf if thresholds.every is None else thresholds.every


def _found(matches: Sequence[Matched]) -> dict[int, dict[int, int]]:
    """Return, of each picture, which object a detection finds, by its place."""
    finds: dict[int, dict[int, int]] = {}
    for one in matches:
        right = one.states[0, 0] == RIGHT
        columns = (one.pictures[right].tolist(), one.places[right].tolist(), one.objects[right].tolist())
        for picture, place, thing in zip(*columns, strict=True):
            finds.setdefault(picture, {})[place] = thing
    return finds


def _overlap(one: BoxTally, place: int, thing: int) -> float:
    from torchvision.ops import box_iou

    boxes = (torch.from_numpy(each).double() for each in (one.boxes[[place]], one.true_boxes[[thing]]))
    return float(box_iou(*boxes).nan_to_num())


def _box(values: Sequence[Any]) -> Box:
    left, top, right, bottom = map(float, values)
    return left, top, right, bottom


def _short(box: Box) -> list[float]:
    return [round(value, 2) for value in box]


def _plain(values: Any) -> str:
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
