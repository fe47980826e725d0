"""The LR range test: which learning rate to start from, without a trace on the model.

Smith 2017 (*Cyclical Learning Rates for Training Neural Networks*, section 3.3). Here a copy of the model is trained
while one multiplier over all groups' own LRs rises exponentially, so that the ratios between groups hold.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from transferkit.data.datamodule import ImageData
from transferkit.data.loader import EpochSampler, ImageLoader
from transferkit.errors import ConfigError, TrainingError, gather
from transferkit.models.module import TransferModule
from transferkit.training.keeper import random_state, restore_random_state
from transferkit.training.plots import save_figure

__all__ = ["LRSearch", "find_lr", "suggest"]

SMOOTHING = 0.9  # of the loss; the first values are corrected for their bias, as in Adam
DIVERGED = 4.0  # times the smallest smoothed loss
ENOUGH = 10  # points before any suggestion


@dataclass(frozen=True)
class LRSearch:
    """What a range test saw.

    Attributes:
        lrs: LR of the head at each step.
        losses: Smoothed training loss at each step.
        suggestion: The LR where the loss falls fastest over the logarithm of the LR, or ``None`` when it never does.
        tenth_of_minimum: A tenth of the LR with the smallest loss, or ``None``.
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    suggestion: float | None
    tenth_of_minimum: float | None

    def plot(self, path: str | Path) -> None:
        """Write the curve as PNG, suggestions marked. Raises `StorageError`."""
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axis = figure.subplots()
        axis.plot(self.lrs, self.losses, color="#1f5fa8")
        for value, name, colour in (
            (self.suggestion, "steepest", "#d1701a"),
            (self.tenth_of_minimum, "minimum / 10", "#4b8b3b"),
        ):
            if value is not None:
                axis.axvline(value, color=colour, linestyle="--", label=f"{name}: {value:.2g}")
        axis.set_xscale("log")
        axis.set_xlabel("learning rate of the head")
        axis.set_ylabel("training loss, smoothed")
        axis.grid(color="#dddddd", linewidth=0.6)
        if self.suggestion is not None:
            axis.legend()
        save_figure(figure, Path(path))


def find_lr(
    model: TransferModule, data: ImageData, *, steps: int = 100, lr_min: float = 1e-6, lr_max: float = 1.0
) -> LRSearch:
    """Train a copy of the model while the LR rises, and suggest one. Model, data and random state stay as they were.

    Args:
        model: What will be trained; the parameters that require a gradient now are trained.
        data: Its training batches are cycled through when there are fewer than `steps`.
        steps: Length of the test, at least 30.
        lr_min: First LR of the head.
        lr_max: Last LR of the head.

    Raises:
        ConfigError: An argument is out of range, or nothing in the model trains.
        TrainingError: The loss is not finite from the first step on.
    """
    problems = []
    if steps < 30:
        problems.append(f"steps is {steps}, expected at least 30")
    if not (0 < lr_min < lr_max and math.isfinite(lr_max)):
        problems.append(f"lr_min is {lr_min} and lr_max {lr_max}, expected 0 < lr_min < lr_max")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        problems.append("nothing in the model requires a gradient, expected something to train")
    if problems:
        raise ConfigError(gather(problems))
    state = random_state()
    mode = model.training
    try:
        lrs, losses = _sweep(_detached_copy(model), data, steps, lr_min, lr_max)
    finally:
        restore_random_state(state)
        model.train(mode)
    if len(losses) < 2:
        raise TrainingError(
            f"the loss is not finite from the first step on, at LR {lr_min:.2g} - check the pictures, or --precision 32"
        )
    steepest, tenth = suggest(lrs, losses)
    return LRSearch(tuple(lrs), tuple(losses), steepest, tenth)


def suggest(lrs: list[float], losses: list[float]) -> tuple[float | None, float | None]:
    """Return the LR of the steepest fall over log LR, and a tenth of the LR of the smallest loss.

    Both are ``None`` when there are too few points or the loss never falls below where it began.
    """
    if len(losses) < ENOUGH or min(losses) >= losses[0]:
        return None, None
    lowest = losses.index(min(losses))
    logs = [math.log(lr) for lr in lrs]
    # Slope over five points: a single step is noise.
    slopes = {
        middle: (losses[middle + 2] - losses[middle - 2]) / (logs[middle + 2] - logs[middle - 2])
        for middle in range(2, min(lowest, len(losses) - 3) + 1)
    }
    if not slopes or min(slopes.values()) >= 0:
        return None, None
    return lrs[min(slopes, key=slopes.__getitem__)], lrs[lowest] / 10


def _detached_copy(model: TransferModule) -> TransferModule:
    """A copy without ties to a Trainer."""
    trainer = model._trainer
    model._trainer = None
    try:
        return copy.deepcopy(model)
    finally:
        model._trainer = trainer


def _endless(loader: ImageLoader) -> Iterator[tuple[Tensor, Tensor]]:
    epoch = 0
    while True:
        if isinstance(loader.sampler, EpochSampler):
            loader.sampler.set_epoch(epoch)
        yield from loader
        epoch += 1


def _sweep(
    model: TransferModule, data: ImageData, steps: int, lr_min: float, lr_max: float
) -> tuple[list[float], list[float]]:
    model.train()
    optimizer = model.configure_optimizers()
    ratios = [group["lr"] / model.optimizer_options["lr"] for group in optimizer.param_groups]
    batches = _endless(data.train_dataloader())
    lrs: list[float] = []
    losses: list[float] = []
    average = 0.0
    for step in range(steps):
        lr = lr_min * (lr_max / lr_min) ** (step / (steps - 1))
        for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
            group["lr"] = lr * ratio
        images, targets = (tensor.to(model.device) for tensor in next(batches))
        images, targets = data.on_after_batch_transfer((images, targets), 0)
        optimizer.zero_grad(set_to_none=True)
        loss = model.training_step((images, targets), step)
        value = float(loss.detach())
        if not math.isfinite(value):
            break
        average = SMOOTHING * average + (1 - SMOOTHING) * value
        smoothed = average / (1 - SMOOTHING ** (step + 1))
        if losses and smoothed > DIVERGED * min(losses):
            break
        lrs.append(lr)
        losses.append(smoothed)
        torch.autograd.backward(loss)
        optimizer.step()
    return lrs, losses
