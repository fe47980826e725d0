"""Linear heads of masks: one linear layer at every place, of the last map or of several levels at once.

They can be solved, see `transferkit.training.head.solve`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from transferkit.core.errors import ConfigError
from transferkit.models.backbones.pyramid import Level

__all__ = ["HypercolumnHead", "LinearMaskHead", "column_levels", "resized"]

LEAST_STRIDE: Final = 4
"""Of the levels that a hypercolumn joins: finer ones know edges and colours alone, and have many places. It is a part
of what the features of a hypercolumn mean in a store."""


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Return maps ``(B, C, h, w)`` at another size, bilinearly."""
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    return functional.interpolate(maps, (size[0], size[1]), mode="bilinear", align_corners=False)


def column_levels(levels: Sequence[Level]) -> tuple[Level, ...]:
    """Return the levels of a pyramid that a hypercolumn joins, from fine to coarse: the last ones."""
    return tuple(level for level in levels if level.stride >= LEAST_STRIDE) or tuple(levels[-1:])


class LinearMaskHead(nn.Module):
    """One linear layer at every position of the last map; its logits are enlarged bilinearly.

    Args:
        channels: Of the map.
        num_classes: Number of classes C.
        drop_rate: Share of the channels that are set to zero in training, in [0, 1).
    """

    takes_pyramid = True

    def __init__(self, channels: int, num_classes: int, *, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.drop = nn.Dropout2d(drop_rate)
        self.linear = _small(channels, num_classes)

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return logits ``(B, C, H, W)``."""
        images, last = inputs
        return resized(self.linear(self.drop(last)), images.shape[2:])


class HypercolumnHead(nn.Module):
    """One linear layer on what all levels know of a place, its hypercolumn.

    Hariharan et al. 2015 (*Hypercolumns for Object Segmentation and Fine-grained Localization*): coarse levels are
    enlarged bilinearly to the finest, and joined. A linear layer may as well come first, of each level its part of the
    weights, and its C logits be enlarged instead of all channels: the result is the same.

    Args:
        levels: Of the pyramid, from fine to coarse; those of `column_levels` are used.
        num_classes: Number of classes C.
        drop_rate: Share of the channels that are set to zero in training, in [0, 1).

    Raises:
        ConfigError: There is but one level.
    """

    takes_pyramid = True

    def __init__(self, levels: Sequence[Level], num_classes: int, *, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.levels = column_levels(levels)
        if len(self.levels) < 2:
            raise ConfigError("head hypercolumns joins levels, and the pyramid of this backbone has one - use linear")
        self.widths = [level.channels for level in self.levels]
        self.drop = nn.Dropout2d(drop_rate)
        self.linear = _small(sum(self.widths), num_classes)

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return logits ``(B, C, H, W)``."""
        images, *maps = inputs
        used = maps[len(maps) - len(self.levels) :]
        parts = torch.split(self.linear.weight, self.widths, dim=1)
        logits = [resized(functional.conv2d(self.drop(level), part), used[0].shape[2:])
                  for level, part in zip(used, parts, strict=True)]  # fmt: skip
        assert self.linear.bias is not None
        return resized(torch.stack(logits).sum(dim=0) + self.linear.bias[:, None, None], images.shape[2:])


def _small(channels: int, num_classes: int) -> nn.Conv2d:
    """Return a linear layer of every place, with small weights to begin with."""
    layer = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
