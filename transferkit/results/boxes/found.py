"""`BoxPrediction`: what is found in a picture."""

from __future__ import annotations

from dataclasses import dataclass

from transferkit.models.figures.boxes import Rle

__all__ = ["BoxPrediction", "PredictedBox"]


@dataclass(frozen=True)
class PredictedBox:
    """An object that the model finds.

    Attributes:
        left: In pixels of the picture, as the others; edges, so that ``right - left`` is the width.
        top: From above.
        right: Likewise.
        bottom: Likewise.
        label: Its class.
        score: How sure that is, in (0, 1].
        mask: As COCO packs it, at the picture's own size; ``None`` where only boxes are predicted.
    """

    left: float
    top: float
    right: float
    bottom: float
    label: str
    score: float
    mask: Rle | None = None

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom."""
        return self.left, self.top, self.right, self.bottom


@dataclass(frozen=True)
class BoxPrediction:
    """What the model says of one picture.

    Attributes:
        path: The file, or the place among the pictures, as ``"images[3]"``.
        boxes: Those that are told, from the model's threshold on, the most confident first.
        unsure: Those below it, down to a score of 0.05; only of a whole record.
        size: ``(H, W)`` of the picture, upright; ``None`` when it is unreadable.
        file: Where its numbered instances were written; ``None`` where they were not.
        error: Why there is no prediction; ``None`` where there is one.
        abstained: Never: a picture without a box that is sure enough has none.
        unlike_training: See `Prediction`; ``None``, the distance is not known of maps.
    """

    path: str
    boxes: tuple[PredictedBox, ...] = ()
    unsure: tuple[PredictedBox, ...] = ()
    size: tuple[int, int] | None = None
    file: str | None = None
    error: str | None = None
    abstained: bool = False
    unlike_training: float | None = None
