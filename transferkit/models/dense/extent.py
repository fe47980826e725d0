"""Logits on the pixels of a picture: tallies are kept of them, and predictions come to the picture's own size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transferkit.models.extent import Array, Frame, Truth
from transferkit.models.figures.masks import MaskTally, mask_of, tally

__all__ = ["MaskExtent"]


@dataclass(frozen=True)
class MaskExtent:
    """An output is a score per class and pixel of the canvas."""

    tta: tuple[str, ...] | None = ("none", "flip")
    whole: bool = False

    def entries(
        self, outputs: Tensor, targets: Tensor, truths: Sequence[Truth] | None = None
    ) -> tuple[list[MaskTally], list[MaskTally]]:
        """Return a tally per picture, twice: the answers stand in it.

        Args:
            outputs: ``(B, C, h, w)``.
            targets: ``(B, h, w)``, classes on the canvas.
            truths: Of B pictures, by which they are measured at their own size.
        """
        if truths is None:
            canvas = (0, 0, outputs.shape[2], outputs.shape[3])
            tallies = [tally(one, canvas, mask) for one, mask in zip(outputs, targets.cpu().numpy(), strict=True)]
        else:
            tallies = [_tally(one, truth) for one, truth in zip(outputs, truths, strict=True)]
        return tallies, tallies

    def join(self, parts: Sequence[Sequence[Any]]) -> list[Any]:
        """Return the tallies of all."""
        return list(chain.from_iterable(parts))

    def entry(self, prediction: Array, truth: Truth | None) -> MaskTally:
        """Return the tally of probabilities ``(C, h, w)``."""
        if truth is None:
            raise ValueError("a mask is measured by the mask of the picture")
        return _tally(_scores(prediction), truth)

    def table(self, entries: Sequence[MaskTally]) -> list[MaskTally]:
        """Return the tallies."""
        return list(entries)

    def upright(self, outputs: Array, mirrored: Sequence[int], canvas: tuple[int, int]) -> Array:
        """Return the outputs of views ``(V, C, h, w)``, those of mirror images turned back."""
        if not mirrored:
            return outputs
        turned = outputs.copy()
        turned[list(mirrored)] = outputs[list(mirrored), ..., ::-1]
        return turned

    def placed(self, prediction: Array, frame: Frame | None, size: tuple[int, int] | None) -> Any:
        """Return the most probable class of each pixel of the picture, ``(H, W) uint8``.

        Args:
            prediction: Probabilities ``(C, h, w)``.
            frame: As `Extent.placed`.
            size: Likewise.
        """
        height, width = prediction.shape[1:]
        return mask_of(_scores(prediction), frame or (0, 0, height, width), size or (height, width))


def _scores(probabilities: Array) -> Tensor:
    """Return logarithms: logits but for a number that all classes of a pixel have in common, at any size."""
    return torch.from_numpy(np.log(np.maximum(probabilities, np.finfo(np.float32).tiny)))


def _tally(logits: Tensor, truth: Truth) -> MaskTally:
    return replace(tally(logits, truth.frame, truth.annotation.mask), file=truth.file)
