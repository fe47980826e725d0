"""Mixup and CutMix: two pictures of a batch become one, and so do their labels."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from transferkit.core.errors import ConfigError, gather

__all__ = ["Mixer"]


class Mixer:
    """Mixes every picture of a batch with the one before it, and its label by the same share.

    torchvision's transforms. Mixup (Zhang et al. 2018, *mixup: Beyond Empirical Risk Minimization*) blends whole
    pictures by lambda ~ Beta(alpha, alpha); CutMix (Yun et al. 2019, *CutMix: Regularization Strategy to Train Strong
    Classifiers with Localizable Features*) pastes a box of the share 1 - lambda, and weighs labels by its true area.
    With both, one of the two is drawn for each batch, both equally likely. One lambda (and box) holds for the batch.

    All draws come from torch's global CPU generator, on whatever device the pictures are, so a run that saves its state
    goes on with the same mixtures.

    Args:
        num_classes: Number of classes C, or of labels or numbers per picture, at least 1.
        mixup: Alpha of mixup, 0 for none. The paper has 0.2 to 0.4 for ImageNet; larger mixes more.
        cutmix: Alpha of CutMix, 0 for none. The paper has 1.

    Raises:
        ConfigError: A number is out of range, or both alphas are 0.
    """

    def __init__(self, num_classes: int, mixup: float, cutmix: float) -> None:
        problems = [] if num_classes >= 1 else [f"num_classes is {num_classes}, expected at least 1"]
        for name, alpha in (("mixup", mixup), ("cutmix", cutmix)):
            if not (math.isfinite(alpha) and alpha >= 0):
                problems.append(f"{name} is {alpha}, expected a finite number of at least 0")
        if mixup == cutmix == 0:
            problems.append("mixup and cutmix are both 0, expected one above - or leave the mixer out")
        if problems:
            raise ConfigError(gather(problems))
        self.num_classes = num_classes
        self.mixup = mixup
        self.cutmix = cutmix
        chosen = [v2.MixUp(alpha=mixup, num_classes=num_classes)] if mixup else []
        if cutmix:
            chosen.append(v2.CutMix(alpha=cutmix, num_classes=num_classes))
        self._mix = chosen[0] if len(chosen) == 1 else v2.RandomChoice(chosen)

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mixed pictures and their soft targets; the arguments stay as they are.

        A single picture has nothing to be mixed with: it comes back as it is, and nothing is drawn.

        Args:
            images: ``(B, 3, H, W) float, normalised``.
            targets: ``(B,) int64 in [0, C)``; or ``(B, C) float32``, labels or numbers.

        Returns:
            Images of the same shape, type and memory format, and targets ``(B, C) float32``: of classes shares, whose
            rows sum to 1.
        """
        if len(images) == 1:
            return images, targets if targets.ndim == 2 else functional.one_hot(targets, self.num_classes).float()
        mixed, soft = self._mix(images, targets)
        if images.is_contiguous(memory_format=torch.channels_last):
            # On a GPU, rolling the batch would leave it in the other format.
            mixed = mixed.contiguous(memory_format=torch.channels_last)
        return mixed, soft
