"""Logits on the pixels of a picture: tallies are kept of them, and predictions come to the picture's own size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transferkit.core.records import Window
from transferkit.models.extent import Array, Collected, Frame, Truth, Windows
from transferkit.models.figures.masks import Counting, MaskTally, mask_of, tally

__all__ = ["MaskExtent", "MaskWindows"]


@dataclass(frozen=True)
class MaskWindows:
    """Windows at a picture's own resolution: counts add up, and masks are put together of cores."""

    def counted(self, truth: Truth) -> Collected:
        """Return what logits ``(C, h, w)`` of windows are counted in: a `MaskTally` is kept."""
        return _Counted(truth)

    def measured(self, truth: Truth) -> Collected:
        """Return what probabilities ``(C, h, w)`` of windows are counted in."""
        return _Measured(truth)

    def placed(self, size: tuple[int, int]) -> Collected:
        """Return what the mask ``(H, W) uint8`` is put together in, of probabilities ``(C, h, w)`` of windows."""
        return _Placed(size)


class _Counted:
    def __init__(self, truth: Truth) -> None:
        self._counting, self._file = Counting(truth.annotation.mask), truth.file

    def add(self, said: Tensor, window: Window) -> None:
        self._counting.add(said, astuple(window.frame), astuple(window.core))

    def done(self) -> MaskTally:
        return replace(self._counting.tally(), file=self._file)


class _Measured(_Counted):
    def add(self, said: Any, window: Window) -> None:
        super().add(_scores(said), window)


class _Placed:
    def __init__(self, size: tuple[int, int]) -> None:
        self._mask = np.empty(size, dtype=np.uint8)

    def add(self, said: Array, window: Window) -> None:
        core = window.core
        self._mask[core.slices] = mask_of(_scores(said), astuple(window.frame), (core.height, core.width))

    def done(self) -> Any:
        return self._mask


@dataclass(frozen=True)
class MaskExtent:
    """An output is a score per class and pixel of the canvas."""

    tta: tuple[str, ...] | None = ("none", "flip")
    whole: bool = False
    windows: Windows | None = MaskWindows()

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
