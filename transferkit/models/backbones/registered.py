"""Backbones of the user's own, made known by name."""

from __future__ import annotations

import dataclasses
import fnmatch
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from transferkit.core.errors import BackboneError
from transferkit.core.records import DataConfig
from transferkit.models.backbones.facts import BackboneFacts, Request
from transferkit.models.backbones.groups import LayerGroup, child_groups
from transferkit.models.backbones.interface import Backbone
from transferkit.models.weights.loading import load_backbone_weights

__all__ = [
    "REGISTRATIONS",
    "RegisteredBackbone",
    "Registration",
    "build_registered",
    "list_registered",
    "pretrained_registered",
]

BUILDER = "registered"
"""The source of weights that a builder loads itself."""


@dataclass(frozen=True)
class Registration:
    """A builder, and what was declared with it.

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


REGISTRATIONS: dict[str, Registration] = {}
"""By name, in the order of registration."""


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


def list_registered(pattern: str, pretrained_only: bool) -> list[str]:
    """Return the registered names that match, sorted."""
    names = (name for name, entry in REGISTRATIONS.items() if entry.pretrained or not pretrained_only)
    return fnmatch.filter(sorted(names), pattern)


def pretrained_registered(request: Request) -> tuple[str | None, str | None]:
    """Return `BUILDER` and the licence of the weights where the builder loads any, else ``None`` twice."""
    registration = REGISTRATIONS[request.name]
    return (BUILDER, registration.license) if registration.pretrained else (None, None)


def build_registered(request: Request) -> RegisteredBackbone:
    """Build a registered backbone.

    It answers to ``weights="pretrained"`` where the builder loads weights itself, and to ``"random"`` where it does
    not; a file replaces what the builder made.

    Raises:
        BackboneError: The builder does not take the arguments or does not return a network, or the weights cannot be
            had or do not fit.
    """
    name, registration = request.name, REGISTRATIONS[request.name]
    try:
        inspect.signature(registration.builder).bind(**request.arguments)
    except TypeError as error:
        raise BackboneError(
            f"backbone {name!r} does not take these backbone_args: {error} - pass what its builder declares"
        ) from error
    if request.weights == "pretrained" and not registration.pretrained:
        raise BackboneError(
            f"backbone {name!r} was registered without pretrained weights - pass --weights FILE or --weights random, "
            "or register it with pretrained=True if its builder loads them"
        )
    if request.weights == "random" and registration.pretrained:
        raise BackboneError(
            f"the builder of backbone {name!r} loads weights itself - pass --weights pretrained or FILE"
        )
    checkpoint = request.checkpoint(lambda: None)
    facts = request.facts(registration.data_config, checkpoint)
    model = registration.builder(**request.arguments)
    if not isinstance(model, nn.Module):
        raise BackboneError(
            f"the builder of backbone {name!r} returned a {type(model).__name__}, expected an nn.Module"
        )
    if checkpoint is not None:
        load_backbone_weights(model, checkpoint.state, source=checkpoint.source)
    elif registration.pretrained:
        facts = dataclasses.replace(facts, license=registration.license, weights_source=BUILDER)
    return RegisteredBackbone(model, facts)
