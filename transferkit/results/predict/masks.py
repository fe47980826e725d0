"""Predictions of masks: the class of every pixel, the share of each class, and their row in CSV and JSON lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from transferkit.core.targets import TargetSpec
from transferkit.models.figures.compared import Compared
from transferkit.models.figures.masks import MaskTally
from transferkit.models.parts import Request
from transferkit.models.record_files import ObjectResults, Page
from transferkit.results.predict.colours import hex_colour, mask_png, palette_of
from transferkit.results.predict.record import of_one_class

__all__ = ["MaskFiles", "MaskOutput", "MaskPrediction"]

Array = npt.NDArray[np.float32]

TIE = 1e-4
"""Probabilities nearer than this are equal."""


@dataclass(frozen=True, eq=False)
class MaskPrediction:
    """What the model says of one picture.

    Attributes:
        path: The file, or the place among the pictures, as ``"images[3]"``.
        mask: Class index of each pixel, ``(H, W) uint8``, at the picture's own size; ``None`` when it is unreadable, or
            in a file.
        shares: Of the pixels, by class, in index order.
        file: Where the mask was written; ``None`` where it was not.
        error: Why there is no prediction; ``None`` where there is one.
        abstained: Never: every pixel has a class.
        unlike_training: See `Prediction`; ``None``, the distance is not known of maps.
    """

    path: str
    mask: npt.NDArray[np.uint8] | None = None
    shares: dict[str, float] = field(default_factory=dict)
    file: str | None = None
    error: str | None = None
    abstained: bool = False
    unlike_training: float | None = None


@dataclass(frozen=True)
class MaskFiles:
    """The part that makes a PNG of each mask: its values are class indices, shown in the colours of the data."""

    ending: str = ".png"
    media_type: str = "image/png"

    def given_by(self, head: nn.Module) -> bool:
        """Return that every head of masks does."""
        return True

    def content(self, record: MaskPrediction, spec: TargetSpec) -> bytes:
        """Return the PNG of a record's mask."""
        if record.mask is None:
            raise ValueError(f"{record.path!r} has no mask")
        return mask_png(record.mask, palette_of(spec))

    def written(self, record: MaskPrediction, file: str | None) -> MaskPrediction:
        """Return a record without its mask, which is in a file, or is not wanted."""
        return replace(record, mask=None, file=file)

    def legend(self, spec: TargetSpec) -> list[tuple[str, str]]:
        """Return the classes and their colours in index order."""
        return [(name, hex_colour(colour)) for name, colour in zip(spec.names, palette_of(spec), strict=False)]


@dataclass(frozen=True)
class MaskOutput:
    """The part of segmentation that makes a class per pixel of logits ``(C, H, W)``."""

    columns: tuple[str, ...] = ("mask", "pixel_acc", "miou", "loss")
    files: MaskFiles | None = MaskFiles()
    page: Page | None = Page("serve_masks.html.j2")
    names_one: bool = False
    labels: bool = False
    compared: Compared = Compared("masks", "another mask", "probabilities of pixels", share="share")
    objects: ObjectResults | None = None

    def activate(self, outputs: Any) -> Any:
        """Return the softmax of logits ``(..., C, H, W)``; of tallies those with log-probabilities."""
        if isinstance(outputs, Tensor):
            return outputs.softmax(dim=-3)
        return [one.log_probs() for one in outputs]

    def rows(self, predictions: Sequence[MaskTally], targets: Any, spec: TargetSpec) -> list[tuple[str, ...]]:
        """Return, of each picture, the file of its mask, pixel accuracy, mean IoU and loss."""
        return [_row(one) for one in predictions]

    def merge(self, predictions: Array) -> Array:
        """Return the probabilities ``(C, H, W)`` of a picture: the mean over its views, which are upright."""
        merged: Array = predictions[0] if len(predictions) == 1 else predictions.mean(axis=0)
        return merged

    def problem(self, spec: TargetSpec, request: Request) -> str | None:
        """Return which wish masks have no answer to."""
        return of_one_class(request, "masks")

    def record(
        self, name: str, prediction: npt.NDArray[np.uint8], spec: TargetSpec, request: Request
    ) -> MaskPrediction:
        """Return the prediction of a picture, of its mask."""
        counts = np.bincount(prediction.ravel(), minlength=len(spec.names)) / prediction.size
        return MaskPrediction(name, prediction, dict(zip(spec.names, counts.tolist(), strict=True)))

    def unreadable(self, name: str, error: str) -> MaskPrediction:
        """Return the record of a picture without a prediction."""
        return MaskPrediction(name, error=error)

    def unknown(self, record: MaskPrediction) -> MaskPrediction:
        """Return it as it is: it has no label."""
        return record

    def header(self, spec: TargetSpec, request: Request) -> list[str]:
        """Return ``mask`` and the classes, whose share each column is."""
        return ["mask", *spec.names]

    def cells(self, record: MaskPrediction, spec: TargetSpec, request: Request) -> list[list[object]]:
        """Return one row: the file of the mask, and the share of each class in the pixels."""
        shares = [f"{record.shares[name]:.6f}" if record.shares else None for name in spec.names]
        return [[record.file, *shares]]

    def values(self, record: MaskPrediction) -> dict[str, Any]:
        """Return file and shares, for JSON."""
        return {"mask": record.file, "shares": {name: round(share, 6) for name, share in record.shares.items()}}

    def answer(self, record: MaskPrediction, spec: TargetSpec) -> str:
        """Return the class of the most pixels that is not the first, which is as a rule the background."""
        others = {name: record.shares[name] for name in spec.names[1:] or spec.names}
        return max(others, key=lambda name: others[name])

    def shares(self, record: MaskPrediction, spec: TargetSpec) -> dict[str, float]:
        """Return the share of each class in the pixels, the largest first."""
        return dict(sorted(record.shares.items(), key=lambda pair: -pair[1]))

    def explained(self, outputs: Tensor, places: Tensor) -> Tensor:
        """Return the mean logit of each picture's class over its pixels, ``(B,)``."""
        return outputs.mean(dim=(2, 3)).gather(1, places[:, None]).squeeze(1)

    def agree(self, predictions: Array, expected: Array, near: float) -> npt.NDArray[np.bool_]:
        """Return for which pictures the masks of two models overlap but for a share of `near`, by ``(B, C, H, W)``.

        It is that of the union in the mean over the classes that either has, so that small things count as much as a
        large background. Of equally probable classes either is the right one.
        """
        return np.array([_overlap(one, other) >= 1 - near for one, other in zip(predictions, expected, strict=True)])


def _overlap(probabilities: Array, expected: Array) -> float:
    """Return the mean IoU of two masks by their probabilities ``(C, H, W)``."""
    guess, best = probabilities.argmax(axis=0), expected.argmax(axis=0)
    ties = np.take_along_axis(expected, guess[None], axis=0)[0] >= expected.max(axis=0) - TIE
    best = np.where(ties, guess, best)
    classes = len(expected)
    table = np.bincount((best * classes + guess).ravel(), minlength=classes**2).reshape(classes, classes)
    union = table.sum(axis=0) + table.sum(axis=1) - table.diagonal()
    return float((table.diagonal()[union > 0] / union[union > 0]).mean())


def _row(one: MaskTally) -> tuple[str, ...]:
    table = one.confusion.astype(np.float64)
    right, true, predicted = table.diagonal(), table.sum(axis=1), table.sum(axis=0)
    if not true.sum():
        return one.file, "", "", ""
    union = true + predicted - right
    losses = functional.cross_entropy(torch.from_numpy(one.logits).double(), torch.from_numpy(one.truths).long())
    return (
        one.file, f"{right.sum() / true.sum():.6f}", f"{(right[union > 0] / union[union > 0]).mean():.6f}",
        f"{float(losses):.6f}",
    )  # fmt: skip
