"""A head trained on cached features: the batches, steps and figures of a run, without the backbone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from transferkit.core.errors import ConfigError, gather
from transferkit.data.batches.samplers import EpochSampler
from transferkit.machine.random import undisturbed
from transferkit.models.freezing import restored_modes
from transferkit.models.heads import takes_maps
from transferkit.models.optimizers import build_optimizer, param_groups
from transferkit.options.training import TrainingOptions
from transferkit.training.plan.phases import HEAD, Phase
from transferkit.training.schedules.schedules import simulate

__all__ = ["HeadTraining", "feature_batches", "in_steps", "train_head"]

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class HeadTraining:
    """How a head is trained on features.

    Attributes:
        lrs: LR of each step.
        batch_size: Rows per batch, at least 1.
        optimizer: ``"adamw"``, ``"sgd"``, ``"adam"`` or ``"rmsprop"``.
        weight_decay: Of the weights; biases and norms do not decay, as in a run.
        momentum: For ``sgd`` and ``rmsprop``.
        nesterov: For ``sgd``.
        clip: Largest gradient norm; ``None`` for no clipping.
        accumulate: Batches per step, at least 1.
        seed: Of the order of the rows, and of dropout.
    """

    lrs: Sequence[float]
    batch_size: int
    optimizer: str
    weight_decay: float
    momentum: float = 0.9
    nesterov: bool = True
    clip: float | None = None
    accumulate: int = 1
    seed: int = 0

    @classmethod
    def of_phase(cls, config: TrainingOptions, phase: Phase, rows: int, batch_size: int) -> Self:
        """Return how a run with these options trains the head in a phase of its own.

        Args:
            config: The options.
            phase: The phase.
            rows: Training pictures.
            batch_size: Pictures per batch.
        """
        steps = math.ceil(_epoch_batches(rows, batch_size) / config.accumulate)
        factors = simulate(phase.curve, phase.epochs * steps, steps_per_epoch=steps)
        return cls(
            lrs=[phase.lr * factor for factor in factors],
            batch_size=batch_size,
            optimizer=config.optimizer,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            nesterov=config.nesterov,
            clip=config.clip,
            accumulate=config.accumulate,
            seed=config.seed,
        )


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
    head: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], X: Tensor, y: Tensor, training: HeadTraining
) -> None:
    """Train a head in place on features. Its mode and the random generators are put back, its gradients are gone.

    Args:
        head: Takes features ``(B, D)``; on the device of `X`. What requires a gradient is trained.
        loss: From outputs ``(B, C)`` and targets to a scalar.
        X: (N, D) float32 features, N at least 1.
        y: (N,) int64 labels in [0, C).
        training: How.

    Raises:
        ConfigError: The optimizer is unknown, the head takes feature maps, or `X` and `y` do not fit.
    """
    problems = []
    if takes_maps(head):
        problems.append(f"a {type(head).__name__} takes feature maps, expected a head that takes features")
    if not len(X) or len(X) != len(y):
        problems.append(f"X has {len(X)} rows and y {len(y)}, expected as many, and at least one")
    if training.batch_size < 1:
        problems.append(f"batch_size is {training.batch_size}, expected at least 1")
    if problems:
        raise ConfigError(gather(problems))
    groups = param_groups([(HEAD, list(head.named_parameters()))], weight_decay=training.weight_decay)
    optimizer = build_optimizer(
        training.optimizer, groups, lr=0.0, momentum=training.momentum, nesterov=training.nesterov
    )
    epochs = feature_batches(X, y, batch_size=training.batch_size, seed=training.seed)
    try:
        with restored_modes(head), undisturbed(training.seed, X.device):
            head.train()
            for lr, batches in zip(training.lrs, in_steps(epochs, training.accumulate), strict=False):
                for group in optimizer.param_groups:
                    group["lr"] = lr
                optimizer.zero_grad(set_to_none=True)
                for features, targets in batches:
                    torch.autograd.backward(loss(head(features).float(), targets) / training.accumulate)
                if training.clip is not None:
                    nn.utils.clip_grad_norm_(head.parameters(), training.clip)
                optimizer.step()
    finally:
        optimizer.zero_grad(set_to_none=True)


def _epoch_batches(rows: int, batch_size: int) -> int:
    """Return the batches of an epoch; a last one of a single picture is left out."""
    return math.ceil(len(EpochSampler(rows, batch_size=batch_size, seed=0)) / batch_size)
