"""Boxes on a picture: tallies are kept of them, and predictions come to the picture's own size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, Final

import numpy as np
import torch
from torch import Tensor

from transferkit.models.extent import Array, Frame, Truth, Windows
from transferkit.models.figures.boxes import COLUMNS, SIDE, BoxTally, box_tally

__all__ = ["BoxExtent"]

_NOTHING: Final = np.zeros(0)


@dataclass(frozen=True)
class BoxExtent:
    """An output is a row per detection, on the canvas."""

    tta: tuple[str, ...] | None = ("none", "flip")
    whole: bool = False
    windows: ClassVar[Windows | None] = None

    def entries(
        self, outputs: Tensor, targets: Any, truths: Sequence[Truth] | None = None
    ) -> tuple[list[BoxTally], list[BoxTally]]:
        """Return a tally per picture, twice: the answers stand in it.

        Args:
            outputs: ``(B, K, 6 or more)``.
            targets: `Boxes`, not looked at.
            truths: Of B pictures.
        """
        if truths is None:
            raise ValueError("boxes are measured by the objects of the picture")
        tallies = [_tally(one, truth) for one, truth in zip(outputs, truths, strict=True)]
        return tallies, tallies

    def join(self, parts: Sequence[Sequence[Any]]) -> list[Any]:
        """Return the tallies of all."""
        return list(chain.from_iterable(parts))

    def entry(self, prediction: Array, truth: Truth | None) -> BoxTally:
        """Return the tally of detections ``(K, 6 or more)``."""
        if truth is None:
            raise ValueError("boxes are measured by the objects of the picture")
        return _tally(torch.from_numpy(prediction), truth)

    def table(self, entries: Sequence[BoxTally]) -> list[BoxTally]:
        """Return the tallies."""
        return list(entries)

    def upright(self, outputs: Array, mirrored: Sequence[int], canvas: tuple[int, int]) -> Array:
        """Return the outputs of views ``(V, K, 6 or more)``, boxes and outlines of mirror images turned back."""
        turned = outputs.copy()
        for view in mirrored:
            rows = turned[view]
            there = rows[:, 4] > 0
            rows[there, 0], rows[there, 2] = canvas[1] - outputs[view, there, 2], canvas[1] - outputs[view, there, 0]
            logits = outputs[view][:, COLUMNS:].reshape(len(rows), -1, SIDE)
            rows[:, COLUMNS:] = logits[..., ::-1].reshape(len(rows), -1)
        return turned

    def placed(self, prediction: Array, frame: Frame | None, size: tuple[int, int] | None) -> BoxTally:
        """Return the detections at the picture's own size: a tally without objects.

        Args:
            prediction: ``(K, 6 or more)``.
            frame: As `Extent.placed`.
            size: Likewise.
        """
        if frame is None or size is None:
            raise ValueError("boxes are brought to the size of the picture, which is not known")
        return box_tally(torch.from_numpy(prediction), frame, size, boxes=_NOTHING, classes=_NOTHING)


def _tally(rows: Tensor, truth: Truth) -> BoxTally:
    one = truth.annotation
    return box_tally(
        rows, truth.frame, one.size, boxes=one.boxes, classes=one.classes, crowd=one.crowd, instances=one.instances
    )  # fmt: skip
