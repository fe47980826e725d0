"""Heads that compare features with one direction or point per class: prototypes, and cosines with a margin."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ArcFaceHead", "MarginLoss", "PrototypeHead"]


class PrototypeHead(nn.Module):
    """Closeness to one point per class: ``logits = -scale * |features - prototype|^2``.

    Snell et al. 2017 (*Prototypical Networks for Few-shot Learning*, eq. 2), where prototypes are class means; so they
    are here once the head is solved, and fine-tuning moves them as weights. The scale, which the paper has not, is
    learned: lengths of features differ between backbones. It is held as a logarithm, which no step turns negative.

    Shape: ``(B, in_features)`` -> ``(B, num_classes)``, each at most 0.
    """

    of_classes = True

    def __init__(self, in_features: int, num_classes: int, *, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.drop = nn.Dropout(drop_rate)
        self.weight = nn.Parameter(nn.init.normal_(torch.empty(num_classes, in_features), std=0.02))
        self.log_scale = nn.Parameter(torch.tensor(-math.log(in_features)))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(B, num_classes)``."""
        features = self.drop(features)
        products = functional.linear(features, self.weight)
        lengths = features.square().sum(dim=1, keepdim=True) + self.weight.square().sum(dim=1)
        return self.log_scale.exp() * (2 * products - lengths)


class ArcFaceHead(nn.Module):
    """Scaled cosine to one direction per class, learned with a margin between classes.

    Deng et al. 2019 (*ArcFace: Additive Angular Margin Loss for Deep Face Recognition*, eq. 3). The head itself always
    returns the plain cosines, scaled; the margin is a matter of the training loss, see `MarginLoss`: so figures of
    training and of evaluation mean the same. The paper's scale of 64 is for tens of thousands of classes; ours is 16,
    which can still make one of ten classes certain.

    Shape: ``(B, in_features)`` -> ``(B, num_classes)``, each logit within plus and minus ``scale``.
    """

    of_classes = True

    scale: Tensor

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        drop_rate: float = 0.0,
        scale: float = 16.0,
        margin: float = 0.5,
    ) -> None:
        super().__init__()
        self.margin = margin
        self.drop = nn.Dropout(drop_rate)
        self.weight = nn.Parameter(nn.init.normal_(torch.empty(num_classes, in_features), std=0.02))
        self.register_buffer("scale", torch.tensor(float(scale)))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(B, num_classes)``, without the margin."""
        directions = functional.normalize(self.weight, dim=1)
        return self.scale * functional.linear(functional.normalize(self.drop(features), dim=1), directions)


class MarginLoss(nn.Module):
    """A loss on logits in which the true class has its angle widened by a margin.

    ``cos(angle + margin)`` in place of ``cos(angle)``. Where the sum would pass 180 degrees and the cosine rise again,
    it goes on as ``cos(angle) - margin * sin(margin)``, as the authors' code has it. Of mixed pictures each class has
    its share of the margin.

    Args:
        loss: From logits ``(B, C)`` and targets to a scalar.
        scale: Of the cosines in the logits.
        margin: In radians, in [0, pi / 2].
    """

    def __init__(self, loss: nn.Module, scale: float, margin: float) -> None:
        super().__init__()
        self.loss = loss
        self.scale, self.margin = scale, margin

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of logits ``(B, C)``, for classes ``(B,)`` or shares of them ``(B, C)``."""
        cosines = (logits / self.scale).clamp(-1.0, 1.0)
        # Never quite 0: the slope of the root is infinite there, and its gradient no number.
        sines = (1 - cosines.square()).clamp_min(torch.finfo(logits.dtype).eps).sqrt()
        wider = cosines * math.cos(self.margin) - sines * math.sin(self.margin)
        past = cosines - self.margin * math.sin(self.margin)
        wider = torch.where(cosines > -math.cos(self.margin), wider, past)
        shares = functional.one_hot(targets, logits.shape[1]).to(logits.dtype) if targets.ndim == 1 else targets
        result: Tensor = self.loss(logits + shares * (self.scale * wider - logits), targets)
        return result

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"scale={self.scale}, margin={self.margin}"
