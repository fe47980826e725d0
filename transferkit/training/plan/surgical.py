"""Surgical fine-tuning: which layer groups to train, proposed from their gradients before training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from transferkit.core.errors import ConfigError, DataError, TrainingError, gather
from transferkit.models.freezing import evaluation_mode
from transferkit.models.module import HEAD, TransferModule

__all__ = ["THRESHOLD", "propose_groups", "relative_gradient_norms"]

THRESHOLD = 0.5
"""Of the largest relative gradient norm in the backbone: what a group must reach to be proposed."""


def relative_gradient_norms(module: TransferModule, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Return ``||gradient|| / ||weights||`` of each layer group, Euclidean norms over all its parameters.

    The relative gradient norm (RGN) of Lee et al. 2023 (*Surgical Fine-Tuning Improves Adaptation to Distribution
    Shifts*, section 4.1), there per tensor and during training, here per group and before it: of the mean plain loss
    over the pictures, in eval mode, so that nothing draws and no batch-norm statistics move. The gradients of the
    backbone pass through the head, so a head that knows the task (a solved probe) says more than a new one.

    The module comes back as it was: weights, gradients, what trains, modes.

    Args:
        module: On the device of the batches.
        batches: Images ``(B, 3, H, W) float32, normalised``, and targets ``(B, ...)``.

    Returns:
        RGN by group name, from input to output, the head last; ``inf`` for a group whose weights are all 0 and whose
        gradient is not.

    Raises:
        DataError: There are no pictures.
        TrainingError: A gradient is not finite.
    """
    groups = module.groups()
    parameters = [parameter for _, members in groups for _, parameter in members]
    trains = [parameter.requires_grad for parameter in parameters]
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    count = 0
    try:
        for parameter in parameters:
            parameter.requires_grad_()
        with evaluation_mode(module), torch.enable_grad():
            for images, targets in batches:
                loss = module.task.objective.item_losses(module.learn(images).float(), targets).sum()
                # Not `backward`: the gradients that a run may be holding stay where they are.
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
                for total, gradient in zip(sums, gradients, strict=True):
                    if gradient is not None:
                        total += gradient
                count += len(targets)
    finally:
        for parameter, learns in zip(parameters, trains, strict=True):
            parameter.requires_grad_(learns)
    if not count:
        raise DataError("there are no pictures to take gradients of, expected at least one batch of training pictures")
    ratios, rest = {}, iter(sums)
    for name, members in groups:
        weights = _norm(parameter.detach() for _, parameter in members)
        gradient_norm = _norm(next(rest) for _ in members) / count
        if not math.isfinite(gradient_norm):
            raise TrainingError(
                f"the gradient of group {name!r} is {gradient_norm}, expected a finite one - the weights or a picture "
                "hold values that are not finite"
            )
        ratios[name] = gradient_norm / weights if weights else (math.inf if gradient_norm else 0.0)
    return ratios


def propose_groups(rgn: Mapping[str, float], group_names: Sequence[str]) -> tuple[str, ...]:
    """Return the groups to train: backbone groups of a large relative gradient norm, and the head.

    The paper scales learning rates by the RGN and chooses no groups by it; ours is a choice: a group is proposed when
    its RGN is at least `THRESHOLD` of the largest in the backbone. The head is new and always trains; its own RGN is
    of another kind and does not count.

    Args:
        rgn: From `relative_gradient_norms`.
        group_names: The model's groups from input to output; the head is ``"head"``.

    Returns:
        In the order of `group_names`. Only the head where no backbone group has a gradient.

    Raises:
        ConfigError: A group has no RGN, or one that is not a number of at least 0.
    """
    problems = [
        f"group {name!r} has a relative gradient norm of {rgn.get(name)}, expected a number of at least 0"
        for name in group_names
        if name != HEAD and not rgn.get(name, -1.0) >= 0
    ]
    if problems:
        raise ConfigError(gather(problems) + " - take them from relative_gradient_norms of the same model")
    largest = max((rgn[name] for name in group_names if name != HEAD and math.isfinite(rgn[name])), default=0.0)
    return tuple(name for name in group_names if name == HEAD or (rgn[name] > 0 and rgn[name] >= THRESHOLD * largest))


def _norm(tensors: Iterable[Tensor]) -> float:
    squares = [torch.linalg.vector_norm(tensor, dtype=torch.float64).square() for tensor in tensors]
    return math.sqrt(float(torch.stack(squares).sum())) if squares else 0.0
