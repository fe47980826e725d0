"""A head trained on cached features: the same batches as in a run, without the backbone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from transferkit.core.errors import ConfigError, gather
from transferkit.data.batches.samplers import EpochSampler
from transferkit.models.freezing import restored_modes
from transferkit.models.heads import takes_maps
from transferkit.models.optimizers import build_optimizer, param_groups
from transferkit.training.lr.sweep import undisturbed

__all__ = ["feature_batches", "train_head_on_features"]


def feature_batches(
    X: Tensor, y: Tensor, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches without end, in the order in which a run with this seed sees the pictures.

    Args:
        X: (N, D) features.
        y: (N,) labels, or (N, C) shares of the classes.
        batch_size: Rows per batch and rank.
        seed: Of the order, epoch by epoch.
        rank: This process.
        world_size: Number of processes.
    """
    sampler = EpochSampler(len(X), batch_size=batch_size, seed=seed, rank=rank, world_size=world_size)
    epoch = 0
    while True:
        sampler.set_epoch(epoch)
        rows = torch.tensor([job.picture for job in sampler], device=X.device)
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            yield X[batch], y[batch.to(y.device)]
        epoch += 1


def train_head_on_features(
    head: nn.Module,
    X: Tensor,
    y: Tensor,
    *,
    lrs: Sequence[float],
    batch_size: int,
    optimizer: str,
    weight_decay: float,
    label_smoothing: float,
    seed: int,
    momentum: float = 0.9,
    nesterov: bool = True,
) -> None:
    """Train a head in place on features, one step per LR. The random generators are put back.

    Biases and norms do not decay, as in a run. The head's mode is put back, its gradients are gone.

    Args:
        head: Takes features ``(B, D)``; on the device of `X`. What requires a gradient is trained.
        X: (N, D) float32 features, N at least 1.
        y: (N,) int64 labels in [0, C).
        lrs: LR of each step.
        batch_size: Rows per step.
        optimizer: ``"adamw"``, ``"sgd"``, ``"adam"`` or ``"rmsprop"``.
        weight_decay: Of the weights.
        label_smoothing: In [0, 1).
        seed: Of the order of the rows, and of dropout.
        momentum: For ``sgd`` and ``rmsprop``.
        nesterov: For ``sgd``.

    Raises:
        ConfigError: The optimizer is unknown, the head takes feature maps, or `X` and `y` do not fit.
    """
    problems = []
    if takes_maps(head):
        problems.append(f"a {type(head).__name__} takes feature maps, expected a head that takes features")
    if not len(X) or len(X) != len(y):
        problems.append(f"X has {len(X)} rows and y {len(y)}, expected as many, and at least one")
    if batch_size < 1:
        problems.append(f"batch_size is {batch_size}, expected at least 1")
    if problems:
        raise ConfigError(gather(problems))
    groups = param_groups([("head", list(head.named_parameters()))], weight_decay=weight_decay)
    stepper = build_optimizer(optimizer, groups, lr=lrs[0] if lrs else 0.0, momentum=momentum, nesterov=nesterov)
    batches = feature_batches(X, y, batch_size=batch_size, seed=seed)
    try:
        with restored_modes(head), undisturbed(seed, X.device):
            head.train()
            for lr in lrs:
                for group in stepper.param_groups:
                    group["lr"] = lr
                features, targets = next(batches)
                stepper.zero_grad(set_to_none=True)
                loss = functional.cross_entropy(head(features).float(), targets, label_smoothing=label_smoothing)
                torch.autograd.backward(loss)
                stepper.step()
    finally:
        stepper.zero_grad(set_to_none=True)
