"""The sweep of an LR range test: a throw-away model takes steps while the LR rises, and nothing else moves."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from transferkit.core.errors import ConfigError, TrainingError
from transferkit.core.text import first_line
from transferkit.machine.random import random_state, restore_random_state
from transferkit.models.module import TransferModule
from transferkit.training.lr.result import Spacing
from transferkit.training.lr.rules import ENOUGH, Smoother

__all__ = ["LRRange", "Swept", "detached_copy", "own_place", "sweep", "undisturbed"]

DIVERGED = 4.0
"""Times the smallest smoothed loss (fastai's factor)."""

LEAST_STEPS = 30

Batch = tuple[Tensor, Tensor]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class LRRange:
    """The LRs of a test.

    Attributes:
        steps: Their number, at least 30.
        lr_min: The first.
        lr_max: The last.
        spacing: ``"exponential"`` (equal ratios) or ``"linear"`` (equal differences).
    """

    steps: int
    lr_min: float
    lr_max: float
    spacing: Spacing

    def problems(self) -> list[str]:
        """Return what is wrong with it."""
        found = []
        if self.steps < LEAST_STEPS:
            found.append(f"steps is {self.steps}, expected at least {LEAST_STEPS}")
        if not (0 < self.lr_min < self.lr_max and math.isfinite(self.lr_max)):
            found.append(f"lr_min is {self.lr_min} and lr_max {self.lr_max}, expected 0 < lr_min < lr_max")
        if self.spacing not in ("exponential", "linear"):
            found.append(f"spacing is {self.spacing!r}, expected 'exponential' or 'linear'")
        return found

    def lrs(self) -> list[float]:
        """Return the LRs, rising."""
        shares = [step / (self.steps - 1) for step in range(self.steps)]
        if self.spacing == "linear":
            return [self.lr_min + (self.lr_max - self.lr_min) * share for share in shares]
        return [self.lr_min * (self.lr_max / self.lr_min) ** share for share in shares]


@dataclass(frozen=True)
class Swept:
    """What came of a sweep.

    Attributes:
        lrs: The LRs whose loss was finite and had not diverged.
        losses: Their losses.
        ended: What ended it early, in words; ``""`` when it reached the last LR.
    """

    lrs: list[float]
    losses: list[float]
    ended: str


# ---- leaving no trace -------------------------------------------------------------------------------------------


def detached_copy(model: TransferModule, device: torch.device | str | None) -> TransferModule:
    """Return a copy of a model in fp32, channels-last, without ties to a Trainer.

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
    twin.close_boundary()  # of a running phase on kept activations
    twin = twin.float().to(device=model.device if device is None else device)
    TransferModule.on_train_epoch_start(twin)  # the sums of the running epoch stay where they are, these are the copy's
    twin.to(memory_format=torch.channels_last)
    return twin


@contextmanager
def undisturbed(seed: int, device: torch.device | str) -> Iterator[None]:
    """Compute in fp32 and with gradients, wherever it is called from, from a seed; put the random generators back.

    Args:
        seed: So that a test depends on model and data, not on when it is made.
        device: What is computed on.
    """
    state = random_state()
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        kind = torch.device(device).type
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(kind, enabled=False):
            yield
    finally:
        restore_random_state(state)


# ---- several processes ------------------------------------------------------------------------------------------


def own_place() -> tuple[int, int]:
    """Return rank and world size of this process."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _mean_over_ranks(value: Tensor) -> Tensor:
    """Return the mean of a tensor over all ranks, the same bits on each."""
    world = own_place()[1]
    if world == 1:
        return value
    total = value.detach().clone()
    distributed.all_reduce(total)
    return total / world


def _share_weights(model: nn.Module) -> None:
    """Give every rank the weights and buffers of rank 0, as DDP does at its start."""
    if own_place()[1] == 1:
        return
    for tensor in model.state_dict().values():
        if isinstance(tensor, Tensor):
            sent = tensor.contiguous()
            distributed.broadcast(sent, 0)
            tensor.copy_(sent)


def _share_gradients(model: nn.Module) -> None:
    """Give every rank the mean gradient, in one message."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if own_place()[1] == 1 or not gradients:
        return
    mean = _mean_over_ranks(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    start = 0
    for gradient in gradients:
        gradient.copy_(mean[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()


# ---- the sweep --------------------------------------------------------------------------------------------------


def sweep(
    model: TransferModule,
    optimizer: Optimizer,
    ratios: Sequence[float],
    batches: Iterator[Batch],
    lrs: Sequence[float],
    *,
    evaluate: Callable[[], Tensor] | None = None,
    clip: float | None = None,
    accumulate: int = 1,
    progress: Progress | None = None,
) -> Swept:
    """Train a model for one step at each LR, until its loss diverges.

    Args:
        model: Is trained.
        optimizer: Over its parameters.
        ratios: LR of each of the optimizer's groups over that of the sweep.
        batches: Endless.
        lrs: (N,), rising.
        evaluate: Gives the loss to record after each step; ``None`` to record the step's own.
        clip: Largest gradient norm.
        accumulate: Batches per step.
        progress: Called with steps done and steps in all.
    """
    _share_weights(model)
    smoother, best = Smoother(), math.inf
    used: list[float] = []
    losses: list[float] = []
    model.train()
    for step, lr in enumerate(lrs):
        for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
            group["lr"] = lr * ratio
        optimizer.zero_grad(set_to_none=True)
        value = _gradients(model, batches, step, accumulate)
        if math.isfinite(value):
            if evaluate is None:
                smoothed = smoother.add(value)
            _share_gradients(model)
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            if evaluate is not None:
                value = float(_mean_over_ranks(evaluate()))
                model.train()
                smoothed = smoother.add(value)
        if not math.isfinite(value):
            when = "from the first step on, at LR" if not losses else "any more at LR"
            return Swept(used, losses, f"the loss is not finite {when} {lr:.2g}")
        if len(losses) >= ENOUGH and smoothed > best + (DIVERGED - 1.0) * abs(best):
            return Swept(used, losses, f"the loss diverges at LR {lr:.2g}")
        best = min(best, smoothed)
        used.append(lr)
        losses.append(value)
        if progress is not None:
            progress(step + 1, len(lrs))
    return Swept(used, losses, "")


def _gradients(model: TransferModule, batches: Iterator[Batch], step: int, accumulate: int) -> float:
    """Add up the gradients of a step; return the mean loss over its batches and all ranks."""
    total: Tensor | None = None
    for _ in range(accumulate):
        loss = _loss_of(model.training_step(next(batches), step)) / accumulate
        torch.autograd.backward(loss)
        total = loss.detach() if total is None else total + loss.detach()
    assert total is not None
    return float(_mean_over_ranks(total))


def _loss_of(output: Any) -> Tensor:
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if isinstance(loss, Tensor):
        return loss
    raise TrainingError(
        f"training_step returned {type(output).__name__}, expected the loss as a tensor, or a mapping with it as 'loss'"
    )
