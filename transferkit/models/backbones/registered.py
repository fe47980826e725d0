"""Backbones of the user's own, made known by name."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from transferkit.core.errors import BackboneError
from transferkit.core.records import DataConfig
from transferkit.models.backbones.groups import LayerGroup, child_groups
from transferkit.models.backbones.interface import Backbone, BackboneFacts
from transferkit.models.weights.loading import load_backbone_weights
from transferkit.models.weights.sources import data_config_beside, read_file

__all__ = ["RegisteredBackbone", "Registration", "build_registered"]


@dataclass(frozen=True)
class Registration:
    """What was said when a backbone was registered.

    Attributes:
        builder: Returns the network; its parameters are the ``backbone_args`` that users may give.
        data_config: How pictures are prepared for it.
        license: Of the weights that `builder` loads.
        pretrained: Whether `builder` loads weights itself.
    """

    builder: Callable[..., nn.Module]
    data_config: DataConfig
    license: str | None
    pretrained: bool


@final
class RegisteredBackbone(Backbone):
    """A network that maps images to features ``(B, D)``, or to a feature map ``(B, C, H, W)``, which is averaged."""

    def __init__(self, model: nn.Module, facts: BackboneFacts) -> None:
        super().__init__(model, facts)
        self.measure()

    def forward_maps(self, images: Tensor) -> Tensor:
        """Return the feature map ``(B, C, H, W)``; raise `BackboneError` for a network that returns features."""
        maps: Tensor = self.model(images)
        if maps.ndim != 4:
            raise BackboneError(f"backbone {self.name!r} has no feature map - use a head that takes features")
        return maps

    def pool(self, maps: Tensor) -> Tensor:
        """Return the average over the map's positions, ``(B, D)``."""
        return maps.mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Return features ``(B, D)`` of images ``(B, 3, H, W)``."""
        out: Tensor = self.model(images)
        return self.pool(out) if out.ndim == 4 else out

    def layer_groups(self) -> tuple[LayerGroup, ...]:
        """Return the top-level children that hold parameters, in order; those of the root come first as ``stem``."""
        return child_groups(self.model, prefix="model.")


def build_registered(
    name: str,
    registration: Registration,
    *,
    weights: str,
    image_size: tuple[int, int] | None,
    backbone_args: Mapping[str, Any],
) -> RegisteredBackbone:
    """Build a registered backbone.

    Args:
        name: The registered name.
        registration: What was registered under it.
        weights: ``"pretrained"`` where the builder loads weights itself, ``"random"`` where it does not, or a file
            that replaces what the builder made.
        image_size: ``(height, width)`` in place of the registered one.
        backbone_args: Passed to the builder.

    Raises:
        BackboneError: The builder does not take the arguments or does not return a network, or the weights cannot be
            had or do not fit.
    """
    try:
        inspect.signature(registration.builder).bind(**backbone_args)
    except TypeError as error:
        raise BackboneError(
            f"backbone {name!r} does not take these backbone_args: {error} - pass what its builder declares"
        ) from error
    if weights == "pretrained" and not registration.pretrained:
        raise BackboneError(
            f"backbone {name!r} was registered without pretrained weights - pass --weights FILE or --weights random, "
            "or register it with pretrained=True if its builder loads them"
        )
    if weights == "random" and registration.pretrained:
        raise BackboneError(
            f"the builder of backbone {name!r} loads weights itself - pass --weights pretrained or FILE"
        )
    if weights.startswith("hf-hub:"):
        raise BackboneError(f"backbone {name!r} is registered here, not on the hub - pass --weights FILE")
    data_config, checkpoint = registration.data_config, None
    if weights not in ("pretrained", "random"):
        checkpoint = read_file(weights)
        data_config = data_config_beside(weights) or data_config
    if image_size is not None:
        data_config = dataclasses.replace(data_config, image_size=image_size)
    model = registration.builder(**backbone_args)
    if not isinstance(model, nn.Module):
        raise BackboneError(
            f"the builder of backbone {name!r} returned a {type(model).__name__}, expected an nn.Module"
        )
    if checkpoint is not None:
        load_backbone_weights(model, checkpoint.state, source=checkpoint.source)
        return RegisteredBackbone(model, checkpoint.facts(name, data_config))
    facts = BackboneFacts(name, data_config)
    if registration.pretrained:
        facts = BackboneFacts(name, data_config, registration.license, "registered")
    return RegisteredBackbone(model, facts)
