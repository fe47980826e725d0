"""Heads that take the feature map `(B, C, H, W)`, or tokens `(B, N, C)`, and pool it in their own way."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["AttentionPoolHead", "AvgMaxHead"]

_HEAD_WIDTH = 64
"""Channels of one attention head, as in ViT; fewer where the map's are no multiple of it."""


class AvgMaxHead(nn.Module):
    """Mean and maximum over all places, side by side, then dropout and one linear layer.

    The concatenated pooling of fastai (Howard and Gugger 2020, *fastai: A Layered API for Deep Learning*), without its
    hidden layer. The maximum says that something is there, the mean how much of it.

    Shape: ``(B, C, H, W)`` or ``(B, N, C)`` -> ``(B, num_classes)``.
    """

    takes_maps = True

    def __init__(self, in_features: int, num_classes: int, *, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.drop = nn.Dropout(drop_rate)
        self.linear = nn.Linear(2 * in_features, num_classes)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, maps: Tensor) -> Tensor:
        """Return logits ``(B, num_classes)``."""
        places = _places(maps)
        both = torch.cat((places.mean(dim=1), places.amax(dim=1)), dim=1)
        logits: Tensor = self.linear(self.drop(both))
        return logits


class AttentionPoolHead(nn.Module):
    """One learned query attends to all places; what it gathers goes through a norm, dropout and one linear layer.

    The class attention of CaiT (Touvron et al. 2021, *Going deeper with Image Transformers*, section 3), one block of
    it without the feed-forward part, and what CLIP (Radford et al. 2021, section 2.4) pools its ResNets by. Two
    differences: no position embedding, so that any size of picture will do, and the query stands alone instead of being
    the mean of the places. At first all places count alike.

    Shape: ``(B, C, H, W)`` or ``(B, N, C)`` -> ``(B, num_classes)``.
    """

    takes_maps = True

    def __init__(self, in_features: int, num_classes: int, *, drop_rate: float = 0.0) -> None:
        super().__init__()
        most = max(1, in_features // _HEAD_WIDTH)
        self.heads = next(count for count in range(most, 0, -1) if in_features % count == 0)
        self.norm_in = nn.LayerNorm(in_features)
        self.query = nn.Parameter(torch.zeros(in_features))
        self.key = nn.Linear(in_features, in_features)
        self.value = nn.Linear(in_features, in_features)
        self.norm_out = nn.LayerNorm(in_features)
        self.drop = nn.Dropout(drop_rate)
        self.linear = nn.Linear(in_features, num_classes)
        for layer in (self.key, self.value):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, maps: Tensor) -> Tensor:
        """Return logits ``(B, num_classes)``."""
        places = self.norm_in(_places(maps))
        batch, count, width = places.shape
        keys, values = (
            layer(places).reshape(batch, count, self.heads, width // self.heads).transpose(1, 2)
            for layer in (self.key, self.value)
        )
        query = self.query.reshape(1, self.heads, 1, width // self.heads).expand(batch, -1, -1, -1)
        gathered = functional.scaled_dot_product_attention(query.to(keys.dtype), keys, values)
        logits: Tensor = self.linear(self.drop(self.norm_out(gathered.reshape(batch, width))))
        return logits


def _places(maps: Tensor) -> Tensor:
    """Return a map or tokens as ``(B, N, C)``."""
    return maps.flatten(2).transpose(1, 2) if maps.ndim == 4 else maps
