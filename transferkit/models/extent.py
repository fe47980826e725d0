"""What the outputs of a network extend over, a picture as a whole or its pixels, and so what can be kept of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from transferkit.core.records import Window

__all__ = ["WHOLE_PICTURE", "Array", "Collected", "Extent", "Frame", "Joined", "Truth", "WholePicture", "Windows"]

Array = npt.NDArray[np.float32]

Frame = tuple[int, int, int, int]
"""Top, left, height and width of a picture on the canvas that the network sees, in pixels."""


@dataclass(frozen=True)
class Truth:
    """The answer that lies on the pixels of a picture, at the picture's own size.

    Attributes:
        frame: Of the picture on the canvas.
        file: Where it stands.
        annotation: See `transferkit.data.masks.annotation.Annotation`.
    """

    frame: Frame
    file: str
    annotation: Any


class Collected(Protocol):
    """What is kept of one picture, of whose windows one after the other is said what there is."""

    def add(self, said: Any, window: Window) -> None:
        """Take what is said of the pixels of a window: of its core alone, which no other window has."""

    def done(self) -> Any:
        """Return what is kept of the picture, after its last window."""


class Windows(Protocol):
    """How what is said of windows becomes what is said of their picture; nothing of a window is kept."""

    def counted(self, truth: Truth) -> Collected:
        """Return what outputs of the network ``(...)`` are collected in; of a picture as `Extent.entries` gives it."""

    def measured(self, truth: Truth) -> Collected:
        """Return what predictions ``(...)``, as users see them, are collected in; as `Extent.entry` gives it."""

    def placed(self, size: tuple[int, int]) -> Collected:
        """Return what predictions are put together in, of a picture of this height and width; as `Extent.placed`."""


class Extent(Protocol):
    """How outputs lie on a picture. Of a data set N rows of a tensor are kept, or a list of N records."""

    @property
    def windows(self) -> Windows | None:
        """How windows are put together; ``None`` where an output of a part of a picture says nothing of the whole."""

    @property
    def tta(self) -> tuple[str, ...] | None:
        """The kinds of test-time views that can be merged; ``None`` for all."""

    @property
    def whole(self) -> bool:
        """Whether all of an output is kept, so that those of several models can be merged afterwards."""

    def entries(self, outputs: Tensor, targets: Tensor, truths: Sequence[Truth] | None = None) -> tuple[Any, Any]:
        """Return what is kept of a batch, and its answers, both with an entry per picture.

        Args:
            outputs: ``(B, ...)`` of the network, on any device.
            targets: ``(B, ...)``, as batches have them.
            truths: Of B pictures, where they are to be measured at their own size; ``None`` to go by `targets`.
        """

    def join(self, parts: Sequence[Any]) -> Any:
        """Return what was kept of several batches, or their answers, as one."""

    def entry(self, prediction: Array, truth: Truth | None) -> Any:
        """Return what is kept of a picture's prediction, to measure it with those of others.

        Args:
            prediction: ``(...)``, as users see it, on the canvas.
            truth: Where the answer lies on pixels.
        """

    def table(self, entries: Sequence[Any]) -> Any:
        """Return the entries of N pictures as `Scores.measure` takes predictions."""

    def upright(self, outputs: Array, mirrored: Sequence[int], canvas: tuple[int, int]) -> Array:
        """Return the outputs of a picture's views ``(V, ...)`` as if none had been a mirror image.

        Args:
            outputs: Of one picture.
            mirrored: The views that are.
            canvas: Height and width of what the network sees, in pixels.
        """

    def placed(self, prediction: Array, frame: Frame | None, size: tuple[int, int] | None) -> Any:
        """Return a prediction of the canvas as one of the picture, for `Output.record`.

        Args:
            prediction: ``(...)``, of one picture.
            frame: Of the picture on the canvas; ``None`` where the canvas does not show all of it.
            size: Height and width of the picture.
        """


@dataclass(frozen=True)
class WholePicture:
    """An output is a row of numbers about a picture: all of it is kept."""

    tta: tuple[str, ...] | None = None
    whole: bool = True
    windows: ClassVar[Windows | None] = None

    def entries(self, outputs: Tensor, targets: Tensor, truths: Sequence[Truth] | None = None) -> tuple[Tensor, Tensor]:
        """Return outputs in float32, and targets, both on the CPU."""
        return outputs.float().cpu(), targets.cpu()

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Return ``(N, ...)``, an ordinary tensor."""
        return torch.cat(list(parts)).clone() if parts else torch.zeros(0, 0)

    def entry(self, prediction: Array, truth: Truth | None) -> Array:
        """Return the prediction."""
        return prediction

    def table(self, entries: Sequence[Array]) -> Tensor:
        """Return ``(N, ...)``."""
        return torch.from_numpy(np.stack(entries)) if entries else torch.zeros(0, 0)

    def upright(self, outputs: Array, mirrored: Sequence[int], canvas: tuple[int, int]) -> Array:
        """Return them as they are: a mirror image has the same answer."""
        return outputs

    def placed(self, prediction: Array, frame: Frame | None, size: tuple[int, int] | None) -> Array:
        """Return it as it is."""
        return prediction


WHOLE_PICTURE = WholePicture()


class Joined:
    """What is kept of one batch or picture after the other, joined in blocks.

    Small tensors that live on between the batches of an evaluation would leave gaps in the memory that fit none of the
    next ones: 20 kB a picture were lost, not to be seen in the sizes of the tensors.

    Args:
        extent: How outputs lie on a picture.
        block: Parts that are joined at a time.
    """

    def __init__(self, extent: Extent, *, block: int = 1024) -> None:
        self._extent, self._block = extent, block
        self._blocks: list[Any] = []
        self._new: list[Any] = []

    def add(self, part: Any) -> None:
        """Take a part, as `Extent.entries` and `Extent.table` give it."""
        self._new.append(part)
        if len(self._new) == self._block:
            self._blocks.append(self._extent.join(self._new))
            self._new.clear()

    def whole(self) -> Any:
        """Return all parts as one."""
        return self._extent.join([*self._blocks, *self._new])
