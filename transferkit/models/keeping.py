"""What is kept of the outputs of pictures, to measure and calibrate them later: the part of a task that says it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["WHOLE", "Keeping", "Place", "Truth", "Whole"]

Place = tuple[int, int, int, int]
"""Top, left, height and width of a picture on the canvas that the network sees, in pixels."""


@dataclass(frozen=True)
class Truth:
    """The answer that lies on the pixels of a picture, at the picture's own size.

    Attributes:
        place: Of the picture on the canvas.
        annotation: See `transferkit.data.images.annotation.Annotation`.
    """

    place: Place
    annotation: Any


class Keeping(Protocol):
    """What is kept of the outputs of a data set: N rows of a tensor, or a list of N records."""

    def kept(self, outputs: Tensor, targets: Tensor, truths: Sequence[Truth] | None = None) -> tuple[Any, Any]:
        """Return what is kept of a batch, and its answers, both with an entry per picture.

        Args:
            outputs: ``(B, ...)`` of the network, on any device.
            targets: ``(B, ...)``, as batches have them.
            truths: Of B pictures, where they are to be measured at their own size; ``None`` to go by `targets`.
        """

    def join(self, parts: Sequence[Any]) -> Any:
        """Return what was kept of several batches, or their answers, as one."""


@dataclass(frozen=True)
class Whole:
    """Outputs and targets as they are: tensors with a row per picture."""

    def kept(self, outputs: Tensor, targets: Tensor, truths: Sequence[Truth] | None = None) -> tuple[Tensor, Tensor]:
        """Return outputs in float32, and targets, both on the CPU."""
        return outputs.float().cpu(), targets.cpu()

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Return ``(N, ...)``, an ordinary tensor."""
        return torch.cat(list(parts)).clone()


WHOLE = Whole()
