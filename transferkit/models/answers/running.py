"""Sums over the pictures of a running epoch, on the device: nothing here waits for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["RunningSums"]


class RunningSums:
    """The loss and other figures of an epoch as far as it has come.

    Args:
        figures: Names of the R figures besides the loss.

    Attributes:
        sums: ``(R + 2,) float32``: loss, figures, pictures.
    """

    def __init__(self, figures: Sequence[str]) -> None:
        self.names = ("loss", *figures)
        self.sums = torch.zeros(len(self.names) + 1)

    def begin(self, device: torch.device) -> None:
        """Start an epoch."""
        self.sums = torch.zeros(len(self.names) + 1, device=device)

    def add(self, loss: Tensor, figures: Tensor, count: int) -> None:
        """Add a batch.

        Args:
            loss: The mean over its pictures.
            figures: ``(R,)``, sums over them.
            count: How many they are.
        """
        self.sums += torch.cat(((loss.detach() * count).reshape(1), figures, figures.new_full((1,), count)))

    def means(self, sums: Tensor) -> dict[str, Tensor]:
        """Return the means that sums stand for, by name; 0 where there was no picture."""
        count = sums[-1].clamp_min(1)
        return {name: sums[number] / count for number, name in enumerate(self.names)}
