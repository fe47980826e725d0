"""`WholeNetwork`: backbone and head as one network for the inference engine."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from transferkit.core.errors import BackboneError
from transferkit.features.engine.engine import Engine
from transferkit.features.engine.taps import find_taps
from transferkit.models.backbones.facts import BackboneFacts
from transferkit.models.backbones.groups import LayerGroup
from transferkit.models.backbones.interface import Backbone
from transferkit.models.module import TransferModule

__all__ = ["WholeNetwork", "whole_engine"]


class WholeNetwork(Backbone):
    """Backbone and head as one network for the engine, whose one row per picture are the logits."""

    def __init__(self, module: TransferModule) -> None:
        backbone = module.backbone
        super().__init__(backbone, BackboneFacts(backbone.name, backbone.data_config))
        self.head: nn.Module = module.head
        self.takes_maps = module.head_takes_maps
        self.num_features = module.num_classes
        self.map_channels = None

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(B, C)``."""
        backbone = self.model
        assert isinstance(backbone, Backbone)
        features = backbone.forward_maps(images) if self.takes_maps else backbone(images)
        with torch.autocast(images.device.type, enabled=False):  # logits in bf16 would have ties
            logits: Tensor = self.head(features.float())
        return logits

    def forward_maps(self, images: Tensor) -> Tensor:
        """Refused: the logits are the one tap. Raises `BackboneError`."""
        raise BackboneError(f"{self.name} with its head has no feature map - take one from the backbone alone")

    def pool(self, maps: Tensor) -> Tensor:
        """Refused, as `forward_maps`. Raises `BackboneError`."""
        raise BackboneError(f"{self.name} with its head has no feature map to pool - take one from the backbone alone")

    def layer_groups(self) -> tuple[LayerGroup, ...]:
        """Return none: nothing of it is trained."""
        return ()


def whole_engine(
    module: TransferModule,
    *,
    device: str,
    precision: Literal["32", "bf16"],
    batch: int = 32,
    compiling: Literal["auto", "off"] = "auto",
) -> Engine:
    """Return the inference engine of a whole model, whose rows are logits. For the arguments see `Engine`."""
    network = WholeNetwork(module)
    return Engine(network, find_taps(network), device=device, precision=precision, batch=batch, compiling=compiling)
