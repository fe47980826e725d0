"""What a model said of all pictures of an epoch, in all processes, for figures that are no mean over pictures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

__all__ = ["EpochFigure"]


class EpochFigure(Metric):
    """A figure of the predictions ``(N, C)`` and targets ``(N, C)`` of all pictures; `compute` is the subclass's.

    Args:
        width: C, of labels or numbers.
    """

    predictions: list[Tensor] | Tensor
    targets: list[Tensor] | Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.add_state("predictions", default=[], dist_reduce_fx="cat")
        self.add_state("targets", default=[], dist_reduce_fx="cat")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Keep a batch: predictions and targets, ``(B, C) float32`` each."""
        for state, batch in ((self.predictions, predictions), (self.targets, targets)):
            assert isinstance(state, list)
            state.append(batch.detach().float())

    def sync(self, *args: Any, **options: Any) -> None:
        """Take the other processes' pictures, too. One without any has a table of no rows, not torchmetrics' vector."""
        for state in (self.predictions, self.targets):
            if isinstance(state, list) and not state:
                state.append(torch.empty(0, self.width, device=self.device))
        super().sync(*args, **options)

    def pictures(self) -> tuple[Tensor, Tensor]:
        """Return predictions and targets of all pictures, ``(N, C) float32`` each, on the CPU.

        After `sync` a state is one tensor, before it a list of batches.
        """
        return dim_zero_cat(self.predictions).cpu(), dim_zero_cat(self.targets).cpu()
