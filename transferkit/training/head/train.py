"""A head trained on cached features: the batches, steps and figures of a run, without the backbone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from transferkit.data.batches.samplers import EpochSampler
from transferkit.machine.random import undisturbed
from transferkit.models.freezing import restored_modes
from transferkit.models.optimizers import Window, build_optimizer, param_groups
from transferkit.options.training import TrainingOptions
from transferkit.training.plan.phases import HEAD, Phase
from transferkit.training.schedules.schedules import simulate

__all__ = ["feature_batches", "in_steps", "train_head"]

Batch = tuple[Tensor, Tensor]


def feature_batches(
    X: Tensor, y: Tensor, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
) -> Iterator[Iterator[Batch]]:
    """Yield epochs of batches without end, in the order in which a run with this seed takes the pictures.

    Args:
        X: (N, D) features.
        y: (N,) labels, or (N, C) shares of the classes.
        batch_size: Rows per batch and rank.
        seed: Of the order, epoch by epoch.
        rank: This process.
        world_size: Number of processes.
    """
    sampler = EpochSampler(len(X), batch_size=batch_size, seed=seed, rank=rank, world_size=world_size)
    for epoch in itertools.count():
        sampler.set_epoch(epoch)
        rows = torch.tensor([job.picture for job in sampler], device=X.device)
        batches = (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
        yield ((X[batch], y[batch.to(y.device)]) for batch in batches)


def in_steps(epochs: Iterable[Iterator[Batch]], accumulate: int) -> Iterator[Iterable[Batch]]:
    """Yield the batches of each optimizer step, to be taken one by one.

    They are `accumulate` batches, and at the end of an epoch those that are left, as a Trainer takes them.
    """
    for batches in epochs:
        for first in batches:
            yield itertools.chain((first,), itertools.islice(batches, accumulate - 1))


def train_head(
    head: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    rows: Batch,
    config: TrainingOptions,
    phase: Phase,
    batch_size: int,
    pictures: int,
) -> None:
    """Train a head in place on features, as a run does in a phase that trains the head alone.

    Its mode and the random generators are put back, its gradients are gone.

    Args:
        head: Takes features ``(B, D)``; on the device of the rows. What requires a gradient is trained.
        loss: From outputs ``(B, C)`` and targets to a scalar.
        rows: (N, D) float32 features and (N, ...) targets.
        config: Its optimizer, clipping, accumulation and seed are used.
        phase: Its epochs, LR and schedule are used.
        batch_size: Rows per batch.
        pictures: Rows of an epoch: fewer than there are where a picture has several, of which it takes one at a time.
    """
    groups = param_groups([(HEAD, list(head.named_parameters()))], weight_decay=config.weight_decay)
    optimizer = build_optimizer(config.optimizer, groups, lr=0.0, momentum=config.momentum, nesterov=config.nesterov)
    X, y = rows
    epochs = feature_batches(X, y, batch_size=batch_size, seed=config.seed)
    steps = math.ceil(_epoch_batches(pictures, batch_size) / config.accumulate)
    factors = simulate(phase.curve, phase.epochs * steps, steps_per_epoch=steps)
    window = Window()
    try:
        with restored_modes(head), undisturbed(config.seed, X.device):
            head.train()
            for factor, batches in zip(factors, in_steps(epochs, config.accumulate), strict=False):
                for group in optimizer.param_groups:
                    group["lr"] = phase.lr * factor
                optimizer.zero_grad(set_to_none=True)
                for features, targets in batches:
                    weighed = window.weigh(loss(head(features).float(), targets), len(targets))
                    torch.autograd.backward(weighed / config.accumulate)
                window.settle(head.parameters(), config.accumulate)
                if config.clip is not None:
                    nn.utils.clip_grad_norm_(head.parameters(), config.clip)
                optimizer.step()
    finally:
        optimizer.zero_grad(set_to_none=True)


def _epoch_batches(rows: int, batch_size: int) -> int:
    """Return the batches of an epoch; a last one of a single picture is left out."""
    return math.ceil(len(EpochSampler(rows, batch_size=batch_size, seed=0)) / batch_size)
