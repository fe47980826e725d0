"""`Feed`: what a head is given of a backbone - features, a feature map, or the picture and its last map or pyramid."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeAlias

import torch
from torch import Tensor

from transferkit.core.errors import ConfigError
from transferkit.models.backbones.interface import Backbone

__all__ = ["Feed", "HeadInput", "as_float", "detached", "dry_run", "feed", "pooled"]

HeadInput: TypeAlias = Tensor | tuple[Tensor, ...]
"""Features ``(B, D)``; a feature map ``(B, C, H, W)`` or tokens; or images ``(B, 3, H, W)``, and one map or more."""


class Feed(StrEnum):
    """What a head is given."""

    FEATURES = "features"
    MAPS = "maps"
    LAST_MAP = "last-map"
    PYRAMID = "pyramid"

    @property
    def on_pixels(self) -> bool:
        """Whether a head of it answers for the pixels of a picture."""
        return self in (Feed.LAST_MAP, Feed.PYRAMID)


def feed(backbone: Backbone, kind: Feed, images: Tensor) -> HeadInput:
    """Return the input of a head, by one pass.

    Args:
        backbone: The backbone.
        kind: What it is.
        images: ``(B, 3, H, W) float32, normalised``.

    Raises:
        BackboneError: The backbone has no such thing.
    """
    if kind is Feed.FEATURES:
        return backbone(images)  # type: ignore[no-any-return]
    if kind is Feed.MAPS:
        return backbone.forward_maps(images)
    if kind is Feed.LAST_MAP:
        return (images, backbone.forward_last_map(images))
    return (images, *backbone.forward_pyramid(images))


def pooled(backbone: Backbone, kind: Feed, inputs: HeadInput) -> Tensor:
    """Return penultimate features ``(B, D)`` from what a head was given; not where it answers for pixels.

    Raises:
        ConfigError: It does: its maps are laid out anew, and need not be what the backbone pools.
    """
    if isinstance(inputs, tuple):
        raise ConfigError(f"{backbone.name} gives maps to a head of pixels - take features from the backbone alone")
    return backbone.pool(inputs) if kind is Feed.MAPS else inputs


def as_float(inputs: HeadInput) -> HeadInput:
    """Return the same in float32."""
    return tuple(level.float() for level in inputs) if isinstance(inputs, tuple) else inputs.float()


def detached(inputs: HeadInput) -> HeadInput:
    """Return ordinary tensors of the same values, which a head may keep for its backward pass."""
    return tuple(level.clone() for level in inputs) if isinstance(inputs, tuple) else inputs.clone()


def dry_run(backbone: Backbone, kind: Feed) -> HeadInput:
    """Return what a head is given for one blank picture; the backbone's modes are its own business."""
    with torch.no_grad():
        return feed(backbone, kind, torch.zeros(1, *backbone.data_config.input_shape))
