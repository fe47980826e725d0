"""The LR range test: a copy of a model takes steps while the LR rises, as the training will take them.

Smith 2017 (*Cyclical Learning Rates for Training Neural Networks*, section 3.3). One multiplier over all groups' own
LRs rises, so that the ratios between groups hold.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from transferkit.core.errors import ConfigError, TrainingError
from transferkit.core.text import first_line
from transferkit.models.module import TransferModule
from transferkit.training.lr.result import Measure, Spacing
from transferkit.training.lr.rules import ENOUGH, Smoother
from transferkit.training.ranks.parallel import average, on_first, world

__all__ = ["Curve", "RangeTest", "detached_copy", "sweep"]

DIVERGED = 4.0
"""Times the smallest smoothed loss (fastai's factor)."""

LEAST_STEPS = 30

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class RangeTest:
    """The LRs of a test, what is measured at each, and how the training takes its steps.

    Attributes:
        steps: Number of LRs, at least 30.
        lr_min: The first.
        lr_max: The last.
        spacing: ``"exponential"`` (equal ratios) or ``"linear"`` (equal differences).
        measure: ``"train"`` for the loss of a step's batches before it, ``"val"`` for that of some validation pictures
            after it.
        clip: Largest gradient norm; ``None`` for no clipping.
        accumulate: Batches per step, at least 1.
    """

    steps: int = 100
    lr_min: float = 1e-7
    lr_max: float = 1.0
    spacing: Spacing = "exponential"
    measure: Measure = "train"
    clip: float | None = None
    accumulate: int = 1

    def problems(self) -> list[str]:
        """Return what is wrong with it."""
        problems = []
        if self.steps < LEAST_STEPS:
            problems.append(f"steps is {self.steps}, expected at least {LEAST_STEPS}")
        if not (0 < self.lr_min < self.lr_max and math.isfinite(self.lr_max)):
            problems.append(f"lr_min is {self.lr_min} and lr_max {self.lr_max}, expected 0 < lr_min < lr_max")
        if self.spacing not in ("exponential", "linear"):
            problems.append(f"spacing is {self.spacing!r}, expected 'exponential' or 'linear'")
        if self.measure not in ("train", "val"):
            problems.append(f"measure is {self.measure!r}, expected 'train' or 'val'")
        if self.clip is not None and not self.clip > 0:
            problems.append(f"clip is {self.clip}, expected a number above 0, or None")
        if self.accumulate < 1:
            problems.append(f"accumulate is {self.accumulate}, expected at least 1")
        return problems

    def lrs(self) -> list[float]:
        """Return the LRs, rising."""
        shares = [step / (self.steps - 1) for step in range(self.steps)]
        if self.spacing == "linear":
            return [self.lr_min + (self.lr_max - self.lr_min) * share for share in shares]
        return [self.lr_min * (self.lr_max / self.lr_min) ** share for share in shares]


class Curve(NamedTuple):
    """The course of a sweep.

    Attributes:
        lrs: The LRs whose loss was finite and had not diverged.
        losses: Their losses.
        ended: What ended it early, in words; ``""`` when it reached the last LR.
    """

    lrs: list[float]
    losses: list[float]
    ended: str


def detached_copy(model: TransferModule, device: torch.device | str | None) -> TransferModule:
    """Return a copy of a model in fp32, channels-last, without ties to a Trainer; that of the first process.

    Args:
        model: Not changed.
        device: Where the copy goes; the model's own place when ``None``.

    Raises:
        ConfigError: The model cannot be copied.
    """
    try:
        twin = copy.deepcopy(model)  # Lightning leaves the Trainer out of it
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"the model cannot be copied ({first_line(error)}), and an LR is only searched for on a copy - keep "
            "tensors with gradients, locks and open files out of its attributes"
        ) from error
    twin.passage.close_boundary()  # of a running phase on cached activations
    if world() > 1:  # the same weights everywhere, as DDP has them from its start
        twin.load_state_dict(on_first(lambda: {name: value.cpu() for name, value in twin.state_dict().items()}))
    twin = twin.float().to(device=model.device if device is None else device)
    TransferModule.on_train_epoch_start(twin)  # the sums of the running epoch stay where they are, these are the copy's
    twin.to(memory_format=twin.passage.memory_format or torch.channels_last)
    twin.compiled = None
    return twin


def sweep(
    model: TransferModule,
    optimizer: Optimizer,
    ratios: Sequence[float],
    steps: Iterator[Iterable[Batch]],
    test: RangeTest,
    *,
    evaluate: Callable[[], Tensor] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Curve:
    """Train a model for one step at each LR, until its loss diverges.

    Args:
        model: Is trained.
        optimizer: Over its parameters.
        ratios: LR of each of the optimizer's groups over that of the sweep.
        steps: The batches of each step, without end.
        test: The LRs, and how steps are taken.
        evaluate: Returns the loss to record after each step; ``None`` to record the step's own.
        progress: Called with steps done and steps in all.
    """
    smoother, best = Smoother(), math.inf
    curve = Curve([], [], "")
    lrs = test.lrs()
    model.train()
    for number, (lr, batches) in enumerate(zip(lrs, steps, strict=False)):
        for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
            group["lr"] = lr * ratio
        optimizer.zero_grad(set_to_none=True)
        value = _add_gradients(model, batches, number, test.accumulate)
        if math.isfinite(value):
            average(parameter.grad for parameter in model.parameters() if parameter.grad is not None)
            if test.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), test.clip)
            optimizer.step()
            if evaluate is not None:
                value = _mean_over_ranks(evaluate())
                model.train()
        if not math.isfinite(value):
            when = "from the first step on, at LR" if not curve.losses else "any more at LR"
            return curve._replace(ended=f"the loss is not finite {when} {lr:.2g}")
        smoothed = smoother.add(value)
        if len(curve.losses) >= ENOUGH and smoothed > best + (DIVERGED - 1.0) * abs(best):
            return curve._replace(ended=f"the loss diverges at LR {lr:.2g}")
        best = min(best, smoothed)
        curve.lrs.append(lr)
        curve.losses.append(value)
        if progress is not None:
            progress(number + 1, len(lrs))
    return curve


def _add_gradients(model: TransferModule, batches: Iterable[Batch], number: int, accumulate: int) -> float:
    """Add up the gradients of a step's batches; return the mean loss over them and all ranks."""
    losses = []
    for batch in batches:
        loss = _loss_of(model.training_step(batch, number))
        torch.autograd.backward(loss / accumulate)
        losses.append(loss.detach())
    model.settle_gradients(accumulate)
    return _mean_over_ranks(torch.stack(losses).mean())


def _loss_of(output: Any) -> Tensor:
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if isinstance(loss, Tensor):
        return loss
    raise TrainingError(
        f"training_step returned {type(output).__name__}, expected the loss as a tensor, or a mapping with it as 'loss'"
    )


def _mean_over_ranks(value: Tensor) -> float:
    mean = value.detach().clone()
    average([mean])
    return float(mean)
