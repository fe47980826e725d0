"""The simplest heads: linear, one hidden layer, cosine. Features `(B, D)` go in, logits `(B, C)` come out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["CosineHead", "LinearHead", "MLPHead"]


class LinearHead(nn.Module):
    """Dropout and one linear layer: logistic regression on the features.

    Small weights and no bias to begin with, so that the first logits are near zero and the first gradient into
    the backbone is small.

    Shape: ``(B, in_features)`` -> ``(B, num_classes)``.
    """

    def __init__(self, in_features: int, num_classes: int, *, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.drop = nn.Dropout(drop_rate)
        self.linear = nn.Linear(in_features, num_classes)
        _small(self.linear)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(B, num_classes)``."""
        logits: Tensor = self.linear(self.drop(features))
        return logits


class MLPHead(nn.Module):
    """One hidden layer, as wide as the features unless said otherwise: linear, GELU, dropout, linear.

    Shape: ``(B, in_features)`` -> ``(B, num_classes)``.
    """

    def __init__(
        self, in_features: int, num_classes: int, *, hidden: int | None = None, drop_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.hidden = nn.Linear(in_features, hidden or in_features)
        self.act = nn.GELU()
        self.drop = nn.Dropout(drop_rate)
        self.linear = nn.Linear(hidden or in_features, num_classes)
        _small(self.linear)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(B, num_classes)``."""
        logits: Tensor = self.linear(self.drop(self.act(self.hidden(features))))
        return logits


class CosineHead(nn.Module):
    """Scaled cosine similarity between the features and one learned direction per class.

    ``logits = scale * cos(features, weight)``: Gidaris and Komodakis 2018 (*Dynamic Few-Shot Visual Learning without
    Forgetting*, section 3.2), with their learned scale that begins at 10; Chen et al. 2019 (*A Closer Look at Few-shot
    Classification*, Baseline++) use the same head with a fixed scale, here ``learn_scale=False``. The length of the
    features does not count, which helps when classes have few pictures.

    Shape: ``(B, in_features)`` -> ``(B, num_classes)``, each logit within plus and minus ``scale``.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        drop_rate: float = 0.0,
        scale: float = 10.0,
        learn_scale: bool = True,
    ) -> None:
        super().__init__()
        self.drop = nn.Dropout(drop_rate)
        self.weight = nn.Parameter(nn.init.normal_(torch.empty(num_classes, in_features), std=0.02))
        self.scale: Tensor
        if learn_scale:
            self.scale = nn.Parameter(torch.tensor(float(scale)))
        else:  # a buffer, so that no phase can set it free
            self.register_buffer("scale", torch.tensor(float(scale)))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(B, num_classes)``."""
        directions = functional.normalize(self.weight, dim=1)
        return self.scale * functional.linear(functional.normalize(self.drop(features), dim=1), directions)


def _small(layer: nn.Linear) -> None:
    """Draw small weights by `normal_`: `trunc_normal_` draws other numbers from the same seed in other releases."""
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
