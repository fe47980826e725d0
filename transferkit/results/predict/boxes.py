"""Predictions of boxes: what is found in a picture, with instance masks, and its rows in CSV and JSON lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from torch import Tensor

from transferkit.core.targets import TargetSpec
from transferkit.models.figures.boxes import COLUMNS, BoxTally
from transferkit.models.figures.compared import Compared
from transferkit.models.parts import Request
from transferkit.models.record_files import ObjectResults, Page, RecordFiles
from transferkit.results.boxes.coco import CocoResults
from transferkit.results.boxes.found import BoxPrediction, PredictedBox
from transferkit.results.boxes.instances import InstanceFiles, plain_rle
from transferkit.results.boxes.judged import COLUMNS as JUDGED
from transferkit.results.boxes.judged import judged, told_from
from transferkit.results.predict.record import of_one_class

__all__ = ["LEAST", "BoxOutput", "BoxPrediction", "PredictedBox"]

Array = npt.NDArray[np.float32]

LEAST: Final = 0.05
"""The score from which on a box is kept at all, be it told or not; a mean average precision needs those."""
OVERLAP: Final = 0.5
"""Boxes of one class that overlap by more are one, where those of several views are put together."""
SURE: Final = 0.3
"""The score from which on a box has to be there in another model of the same network."""


def box_facts(spec: TargetSpec) -> dict[str, Any]:
    """Return what the page of boxes needs to know: from which score on it shows them."""
    return {"threshold": min(1.0, told_from(spec))}


@dataclass(frozen=True)
class BoxOutput:
    """The part of detection that makes records of rows ``(K, 6)``: box, score and class, and 784 logits of a mask."""

    columns: tuple[str, ...] = JUDGED
    page: Page | None = Page("serve_boxes.html.j2", box_facts)
    names_one: bool = False
    labels: bool = False
    compared: Compared = Compared(
        "boxes", "other boxes", "boxes and scores", share="best score", measured=False, exported=("detections",)
    )
    objects: ObjectResults | None = CocoResults()
    files: RecordFiles | None = InstanceFiles()

    def activate(self, outputs: Any) -> Any:
        """Return outputs, or tallies, as they are: the network gives scores already."""
        return outputs

    def rows(self, predictions: Sequence[BoxTally], targets: Any, spec: TargetSpec) -> list[tuple[str, ...]]:
        """Return, of each picture, its objects, how many boxes are told, right, wrong, missed, and each of them."""
        return [one.cells() for one in judged(predictions, spec)]

    def merge(self, predictions: Array) -> Array:
        """Return the detections ``(K, ...)`` of a picture: those of all its views, which are upright, without doubles.

        Of boxes of one class that overlap by more than a half the most confident one stays. One view is as it is.
        """
        views, most, width = predictions.shape
        if views == 1:
            first: Array = predictions[0]
            return first
        from torchvision.ops import batched_nms

        every = torch.from_numpy(predictions.reshape(views * most, width))
        every = every[every[:, 4] > 0]
        best = batched_nms(every[:, :4], every[:, 4], every[:, 5].round().long(), OVERLAP)[:most]
        merged: Array = np.zeros((most, width), dtype=np.float32)
        merged[: len(best)] = every[best].numpy()
        return merged

    def problem(self, spec: TargetSpec, request: Request) -> str | None:
        """Return which wishes boxes have no answer to."""
        return of_one_class(request, "boxes")

    def record(self, name: str, prediction: BoxTally, spec: TargetSpec, request: Request) -> BoxPrediction:
        """Return the prediction of a picture, of its detections."""
        threshold = told_from(spec)
        sure: list[PredictedBox] = []
        unsure: list[PredictedBox] = []
        for place in np.argsort(-prediction.scores.astype(np.float64), kind="stable").tolist():
            score = float(prediction.scores[place])
            if score < min(LEAST, threshold):
                break
            left, top, right, bottom = map(float, prediction.boxes[place])
            mask = None if prediction.masks is None else prediction.masks[place]
            label = spec.names[int(prediction.classes[place])]
            (sure if score >= threshold else unsure).append(PredictedBox(left, top, right, bottom, label, score, mask))
        return BoxPrediction(name, tuple(sure), tuple(unsure) if request.whole else (), prediction.size)

    def unreadable(self, name: str, error: str) -> BoxPrediction:
        """Return the record of a picture without a prediction."""
        return BoxPrediction(name, error=error)

    def unknown(self, record: BoxPrediction) -> BoxPrediction:
        """Return it as it is: it has no label of its own."""
        return record

    def header(self, spec: TargetSpec, request: Request) -> list[str]:
        """Return the columns of a box, and where masks are written, their file and its number in it."""
        return ["left", "top", "right", "bottom", "label", "score", *(["mask", "instance"] if request.files else [])]

    def cells(self, record: BoxPrediction, spec: TargetSpec, request: Request) -> list[list[object]]:
        """Return a row for each box that is told, and an empty one where there is none."""
        rows: list[list[object]] = []
        for number, one in enumerate(record.boxes, 1):
            place = [record.file, number] if request.files else []
            rows.append([*(f"{value:.2f}" for value in one.box), one.label, f"{one.score:.6f}", *place])
        return rows or [[None] * 6 + ([record.file, None] if request.files else [])]

    def values(self, record: BoxPrediction) -> dict[str, Any]:
        """Return boxes, where the record is whole the unsure ones, too, and the file of the masks, for JSON."""
        unsure = {"unsure": list(map(_values, record.unsure))} if record.unsure else {}
        mask = {"mask": record.file} if record.file else {}
        return {"boxes": list(map(_values, record.boxes)), **unsure, **mask}

    def answer(self, record: BoxPrediction, spec: TargetSpec) -> str:
        """Return the class of the most confident box, be it told or not; the first of all where there is none."""
        return next((one.label for one in (*record.boxes, *record.unsure)), spec.names[0])

    def shares(self, record: BoxPrediction, spec: TargetSpec) -> dict[str, float]:
        """Return the score of each class's most confident box, 0 where it has none, the most confident one first."""
        best: dict[str, float] = {}
        for one in (*record.boxes, *record.unsure):
            best.setdefault(one.label, one.score)
        return {**best, **{name: 0.0 for name in spec.names if name not in best}}

    def explained(self, outputs: Tensor, places: Tensor) -> Tensor:
        """Return the score of the most confident box of each picture's class, 0 where there is none.

        Args:
            outputs: ``(B, K, 6)`` or wider.
            places: ``(B,)``.
        """
        mine = outputs[..., 5].round().long() == places[:, None]
        return torch.where(mine, outputs[..., 4], torch.zeros_like(outputs[..., 4])).amax(dim=1)

    def agree(self, predictions: Array, expected: Array, near: float) -> npt.NDArray[np.bool_]:
        """Return for which pictures two models find the same, by ``(B, K, 6)`` or wider.

        Every box of either model from a score of 0.3 on has a partner of its own in the other: of its class, with a
        score at most `near` away, and an overlap of at least ``1 - 10 near``, or of a half where that is less. A
        partner may have less than 0.3, so that a box near that floor is no matter; its place in the order is none
        either, so that equal scores may change places. Where all K rows of the other model are taken, boxes as unsure
        as the last of them need no partner: it may have had no row left. Masks overlap likewise, on their boxes. Boxes
        of no area are no detections.
        """
        return np.array([_same(one, other, near) for one, other in zip(predictions, expected, strict=True)])


def _values(one: PredictedBox) -> dict[str, Any]:
    mask = {} if one.mask is None else {"mask": plain_rle(one.mask)}
    return {"box": [round(value, 2) for value in one.box], "label": one.label, "score": round(one.score, 6), **mask}


def _same(one: Array, other: Array, near: float) -> bool:
    sides = [torch.from_numpy(side[side[:, 4] > 0]) for side in (one, other)]
    floors = [_floor(opposite, rows=len(other), near=near) for opposite in reversed(sides)]
    # A box of no area, at an edge of the canvas, is no detection, and overlaps not even itself.
    first, second = (side[(side[:, 2:4] > side[:, :2]).all(dim=1)] for side in sides)
    partners = _partners(first, second, near)
    return all(
        _all_paired(side, table, floor)
        for side, table, floor in zip((first, second), (partners, partners.T), floors, strict=True)
    )


def _partners(first: Tensor, second: Tensor, near: float) -> npt.NDArray[np.bool_]:
    """Return which boxes of two models could be the same, ``(k, l)``."""
    from torchvision.ops import box_iou

    least = max(1 - 10 * near, OVERLAP)
    fits = box_iou(first[:, :4].double(), second[:, :4].double()).nan_to_num() >= least
    fits &= first[:, 5].round()[:, None] == second[:, 5].round()
    fits &= (first[:, 4][:, None] - second[:, 4]).abs() <= near
    if first.shape[1] > COLUMNS:
        ours, theirs = ((side[:, COLUMNS:] > 0).float() for side in (first, second))
        both = ours @ theirs.T
        union = ours.sum(dim=1)[:, None] + theirs.sum(dim=1) - both
        fits &= both >= least * union
    table: npt.NDArray[np.bool_] = fits.numpy()
    return table


def _floor(side: Tensor, *, rows: int, near: float) -> float:
    """Return the score from which on a box of the other model has to be there: more where rows ran out."""
    return SURE if len(side) < rows else max(SURE, float(side[:, 4].min()) + near)


def _all_paired(side: Tensor, partners: npt.NDArray[np.bool_], floor: float) -> bool:
    """Return whether every box from a score on has a partner of its own."""
    sure = (side[:, 4] >= floor).numpy()
    if not sure.any():
        return True
    if not partners.shape[1]:
        return False
    pairs = maximum_bipartite_matching(csr_array(partners[sure]), perm_type="column")
    return bool((pairs >= 0).all())
