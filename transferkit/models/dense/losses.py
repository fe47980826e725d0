"""Losses of masks: cross entropy, focal loss and Dice, alone or added, on the pixels that count."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from transferkit.core.errors import ConfigError, did_you_mean, gather
from transferkit.core.targets import IGNORED

__all__ = ["MASK_LOSSES", "PixelLoss", "dice_loss", "pixel_losses"]

TERMS: Final = ("cross_entropy", "dice", "focal")

MASK_LOSSES: Final = (
    "cross_entropy+dice", *(name for name in ("+".join(names) for size in (1, 2, 3)
                                              for names in combinations(TERMS, size)) if name != "cross_entropy+dice"),
)  # fmt: skip
"""The usual one first."""


def pixel_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of each picture's pixels that count, ``(B,)``; 0 where none does.

    Args:
        logits: ``(B, C, H, W)``.
        targets: ``(B, H, W)``, classes or `IGNORED`.
    """
    losses = functional.cross_entropy(logits, targets.long(), ignore_index=IGNORED, reduction="none")
    return losses.sum(dim=(1, 2)) / (targets != IGNORED).sum(dim=(1, 2)).clamp_min(1)


def dice_loss(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return 1 minus the soft Dice coefficient, over the pixels of the batch, as a mean over the classes.

    Milletari et al. 2016 (*V-Net*, eq. 1), here with ``p + y`` in the denominator, as most have it. A class that the
    batch does not show adds 0: what is predicted of it costs elsewhere.

    Args:
        logits: ``(B, C, H, W)``.
        targets: ``(B, H, W)``, classes or `IGNORED`.
        weights: ``(C,)``, of the classes in the mean.
    """
    counts = (targets != IGNORED).unsqueeze(1)
    probs = logits.softmax(dim=1) * counts
    truths = torch.zeros_like(probs).scatter_(1, torch.where(counts[:, 0], targets, 0).long().unsqueeze(1), 1) * counts
    dims = (0, 2, 3)
    shown = truths.sum(dims)
    dice = 2 * (probs * truths).sum(dims) / (probs.sum(dims) + shown).clamp_min(1e-7)
    losses = (1 - dice) * (shown > 0)
    return losses.mean() if weights is None else (losses * weights).sum() / weights.sum()


class PixelLoss(nn.Module):
    """A sum of terms on logits ``(B, C, H, W) float32`` and targets ``(B, H, W)``, classes or `IGNORED`.

    Cross entropy and the focal loss (Lin et al. 2017, on the softmax) are means over the pixels that count, weighted
    ones divided by the sum of weights, as torch has it.

    Args:
        name: One of `MASK_LOSSES`, or the same terms in another order.
        gamma: Of the focal loss, finite and at least 0.
        class_weights: ``(C,)``, each finite and at least 0, not all 0.
        label_smoothing: Of cross entropy, in [0, 1).

    Raises:
        ConfigError: With everything that is wrong.
    """

    class_weights: Tensor | None

    def __init__(
        self, name: str, *, gamma: float = 2.0, class_weights: Tensor | None = None, label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        terms = name.split("+")
        problems = []
        if set(terms) - set(TERMS) or len(set(terms)) < len(terms):
            problems.append(f"unknown loss {name!r}.{did_you_mean(name, MASK_LOSSES)} Known: {', '.join(MASK_LOSSES)}")
        if not (math.isfinite(gamma) and gamma >= 0):
            problems.append(f"gamma is {gamma}, expected a finite number of at least 0")
        if not 0.0 <= label_smoothing < 1.0:
            problems.append(f"label_smoothing is {label_smoothing}, expected a number in [0, 1)")
        elif label_smoothing and "cross_entropy" not in terms:
            problems.append(f"label_smoothing is {label_smoothing}, but {name} has none - leave it out")
        if class_weights is not None and not (
            bool(class_weights.isfinite().all()) and bool((class_weights >= 0).all()) and bool(class_weights.sum() > 0)
        ):
            problems.append(f"class weights are {class_weights.tolist()}, expected numbers of at least 0, not all 0")
        if problems:
            raise ConfigError(gather(problems))
        self.terms, self.gamma, self.label_smoothing = tuple(terms), gamma, label_smoothing
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch, a scalar; 0 where no pixel counts."""
        parts = {"cross_entropy": self._cross_entropy, "focal": self._focal, "dice": self._dice}
        return torch.stack([parts[term](logits, targets) for term in self.terms]).sum()

    def _mean(self, total: Tensor, targets: Tensor) -> Tensor:
        """Return a sum over pixels, divided by their number or weight."""
        counts = targets != IGNORED
        if self.class_weights is None:
            return total / counts.sum().clamp_min(1)
        weight = (self.class_weights[torch.where(counts, targets, 0).long()] * counts).sum()
        return total / weight.clamp_min(torch.finfo(total.dtype).tiny)

    def _cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        total = functional.cross_entropy(
            logits, targets.long(), weight=self.class_weights, ignore_index=IGNORED, reduction="sum",
            label_smoothing=self.label_smoothing,
        )  # fmt: skip
        return self._mean(total, targets)

    def _focal(self, logits: Tensor, targets: Tensor) -> Tensor:
        counts = targets != IGNORED
        classes = torch.where(counts, targets, 0).long()
        log_p = logits.log_softmax(dim=1).gather(1, classes.unsqueeze(1)).squeeze(1)
        # 1 - p without cancellation near 1; not quite 0, where the slope of a power below 1 would be infinite.
        missing = (-log_p.expm1()).clamp_min(torch.finfo(logits.dtype).tiny)
        losses = -missing.pow(self.gamma) * log_p * counts
        if self.class_weights is not None:
            losses = losses * self.class_weights[classes]
        return self._mean(losses.sum(), targets)

    def _dice(self, logits: Tensor, targets: Tensor) -> Tensor:
        return dice_loss(logits, targets, self.class_weights)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"{'+'.join(self.terms)}, weighted={self.class_weights is not None}"
