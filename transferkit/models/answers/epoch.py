"""What a model said of all pictures of an epoch, in all processes, for figures that are no mean over pictures.

Objectives load this module when something is watched: torchmetrics takes a second, and extraction has no epochs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transferkit.machine.lightning_import import Metric, dim_zero_cat
from transferkit.models.figures.labels import THRESHOLD, average_precisions
from transferkit.models.figures.numbers import KEYS, Pairs

__all__ = ["BalancedAccuracy", "EpochFigure", "LabelFigure", "NumberFigure"]


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


class BalancedAccuracy(Metric):
    """Mean recall of the classes that have pictures (torchmetrics' macro accuracy counts some of the others as 0)."""

    higher_is_better = True
    hits: Tensor
    counts: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.add_state("hits", torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, probs: Tensor, targets: Tensor) -> None:
        """Count a batch: probabilities ``(B, C)`` and classes ``(B,)``."""
        ones = torch.ones_like(targets)
        self.counts.index_add_(0, targets, ones)
        self.hits.index_add_(0, targets, (probs.argmax(dim=1) == targets).to(ones.dtype))

    def compute(self) -> Tensor:
        """Return the mean recall, a scalar."""
        present = self.counts > 0
        return torch.where(present, self.hits / self.counts.clamp_min(1), 0.0).sum() / present.sum()


class LabelFigure(EpochFigure):
    """A figure of all pictures of an epoch: mean average precision, or one at thresholds of 0.5.

    Args:
        name: As `label_metrics` has it.
        width: The number of labels.
    """

    def __init__(self, name: str, width: int) -> None:
        super().__init__(width)
        self.name = name

    def compute(self) -> Tensor:
        """Return the figure, a scalar: NaN of probabilities that are NaN.

        Of labels without positives nothing is said; it is 0 where there are no others.
        """
        probs, targets = self.pictures()
        if probs.isnan().any():
            return torch.tensor(torch.nan, dtype=torch.float64)
        targets = targets > 0.5
        answers, present = probs >= THRESHOLD, targets.any(dim=0)
        match self.name:
            case "map":
                values = torch.from_numpy(average_precisions(probs.numpy(), targets.numpy()))[present]
            case "f1_macro":
                right = (answers & targets).sum(dim=0)
                values = (2 * right / (answers.sum(dim=0) + targets.sum(dim=0)).clamp_min(1))[present]
            case "f1_micro":
                values = (2 * (answers & targets).sum() / (answers.sum() + targets.sum()).clamp_min(1)).reshape(1)
            case "subset_acc":
                values = (answers == targets).all(dim=1)
            case _:
                values = answers != targets
        return values.double().mean() if values.numel() else torch.zeros((), dtype=torch.float64)


class NumberFigure(EpochFigure):
    """A figure of all pictures of an epoch: the mean over the targets, in units of their deviation.

    Args:
        name: As `number_metrics` has it.
        width: The number of targets.
        scale: Deviations of the targets; empty where they are not known.
    """

    def __init__(self, name: str, width: int, scale: Sequence[float] = ()) -> None:
        super().__init__(width)
        self.name, self.scale = name, scale

    def compute(self) -> Tensor:
        """Return the figure, a scalar: NaN of predictions that are not finite, else 0 where it is undefined."""
        predicted, true = (part.numpy() for part in self.pictures())
        if not np.isfinite(predicted).all():
            return torch.tensor(torch.nan, dtype=torch.float64)
        pairs = Pairs(predicted, true, self.scale or None)
        return torch.from_numpy(pairs.means(pairs.figures(np.ones(len(true)))))[KEYS.index(self.name)].nan_to_num()
