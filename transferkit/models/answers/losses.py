"""Losses: cross entropy and focal loss, on class indices or on soft targets, with class weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from transferkit.core.errors import ConfigError, did_you_mean, gather

__all__ = ["LOSSES", "CrossEntropy", "FocalLoss", "balanced_class_weights", "make_loss"]

LOSSES = ("cross_entropy", "focal")


class CrossEntropy(nn.Module):
    """torch's cross entropy, with class weights that move with the module and are no part of its state dict.

    Called with logits ``(B, C) float32`` and targets ``(B,) int64 in [0, C)`` or soft targets ``(B, C) float32`` whose
    rows sum to 1; gives a scalar. As torch has it, a weighted loss is divided by the sum of the weights of the batch's
    classes for class indices, but by B for soft targets.

    Args:
        class_weights: ``(C,)``, each at least 0.
        label_smoothing: In [0, 1).
    """

    class_weights: Tensor | None

    def __init__(self, class_weights: Tensor | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch. Raises `ConfigError` where the weights are of another number of classes."""
        _check_width(self.class_weights, logits)
        return functional.cross_entropy(
            logits, targets, weight=self.class_weights, label_smoothing=self.label_smoothing
        )

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"weighted={self.class_weights is not None}, label_smoothing={self.label_smoothing}"


class FocalLoss(nn.Module):
    """Focal loss: cross entropy that counts well-classified pictures less.

    Lin et al. 2017 (*Focal Loss for Dense Object Detection*): ``-(1 - p_t)^gamma log p_t`` (eq. 4), and with class
    weights as alpha ``-alpha_t (1 - p_t)^gamma log p_t`` (eq. 5). There p is a sigmoid per class; here it is the
    softmax over the classes, and p_t the probability of the true one.

    For soft targets y, which the paper does not have, the sum over the classes stands for the true one:
    ``-sum_c alpha_c y_c (1 - p_c)^gamma log p_c``. For y with a single 1 that is eq. 5, and for gamma = 0 cross entropy
    on y. It is linear in y, so a mixture of two labels costs the mixture of their losses. Label smoothing makes y soft
    in the same way as in cross entropy. Inputs and the division of weighted losses are those of `CrossEntropy`.

    Args:
        gamma: Finite and at least 0; the paper's best is 2.
        class_weights: ``(C,)``, each at least 0.
        label_smoothing: In [0, 1).
    """

    class_weights: Tensor | None

    def __init__(self, gamma: float = 2.0, class_weights: Tensor | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.gamma = gamma
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch. Raises `ConfigError` where the weights are of another number of classes."""
        _check_width(self.class_weights, logits)
        classes = logits.shape[1]
        indices = targets.ndim == 1
        soft = functional.one_hot(targets, classes).to(logits.dtype) if indices else targets
        if self.label_smoothing:
            soft = soft * (1 - self.label_smoothing) + self.label_smoothing / classes
        log_probs = logits.log_softmax(dim=1)
        # 1 - p without cancellation near 1; not quite 0, where the slope of a power below 1 would be infinite.
        missing = (-log_probs.expm1()).clamp_min(torch.finfo(logits.dtype).tiny)
        losses = -soft * missing.pow(self.gamma) * log_probs
        if self.class_weights is None:
            return losses.sum() / len(losses)
        total = self.class_weights[targets].sum() if indices else len(losses)
        return (losses * self.class_weights).sum() / total

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"gamma={self.gamma}, weighted={self.class_weights is not None}, label_smoothing={self.label_smoothing}"


def make_loss(
    name: str, *, gamma: float = 2.0, class_weights: Tensor | None = None, label_smoothing: float = 0.0
) -> nn.Module:
    """Return the loss that `name` names: a module from logits ``(B, C)`` and targets to a scalar.

    Args:
        name: One of `LOSSES`.
        gamma: Of the focal loss, finite and at least 0; 0 makes it cross entropy.
        class_weights: ``(C,)``, each finite and at least 0, not all 0.
        label_smoothing: In [0, 1).

    Raises:
        ConfigError: With everything that is wrong.
    """
    problems = []
    if name not in LOSSES:
        problems.append(f"unknown loss {name!r}.{did_you_mean(name, LOSSES)} Known: {', '.join(LOSSES)}")
    if not (math.isfinite(gamma) and gamma >= 0):
        problems.append(f"gamma is {gamma}, expected a finite number of at least 0")
    if not 0.0 <= label_smoothing < 1.0:
        problems.append(f"label_smoothing is {label_smoothing}, expected a number in [0, 1)")
    if class_weights is not None:
        class_weights = class_weights.detach().clone().float()
        if class_weights.ndim != 1 or not class_weights.isfinite().all() or (class_weights < 0).any():
            problems.append("class_weights must be one finite number of at least 0 per class")
        elif not class_weights.any():
            problems.append("class_weights are all 0, expected at least one above")
    if problems:
        raise ConfigError(gather(problems))
    if name == "focal":
        return FocalLoss(gamma, class_weights, label_smoothing)
    return CrossEntropy(class_weights, label_smoothing)


def balanced_class_weights(counts: Sequence[int]) -> Tensor:
    """Return weights that make every class count the same, ``(C,) float32``.

    ``n / (classes * count)``, as scikit-learn's ``compute_class_weight("balanced")``: n pictures in all, and as there
    only classes with pictures are counted, so that the mean weight of a picture is 1. A class without pictures, which
    scikit-learn refuses, gets weight 0: there is nothing to weigh.

    Args:
        counts: Training pictures of each class, in index order.

    Raises:
        ConfigError: A count is negative, or there are no pictures at all.
    """
    if counts and min(counts) < 0:
        raise ConfigError(f"a class count is {min(counts)}, expected whole numbers of at least 0")
    present = sum(count > 0 for count in counts)
    if not present:
        raise ConfigError("there are no pictures to derive class weights from, expected at least one")
    total = sum(counts)
    return torch.tensor([total / (present * count) if count else 0.0 for count in counts], dtype=torch.float32)


def _check_width(class_weights: Tensor | None, logits: Tensor) -> None:
    if class_weights is not None and len(class_weights) != logits.shape[1]:
        raise ConfigError(
            f"there are {len(class_weights)} class weights for {logits.shape[1]} classes - give one per class"
        )
