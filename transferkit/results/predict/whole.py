"""A finished model as one network that the inference engine can run: pictures in, logits out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from transferkit.core.errors import BackboneError
from transferkit.models.backbones.facts import BackboneFacts
from transferkit.models.backbones.groups import LayerGroup
from transferkit.models.backbones.interface import Backbone
from transferkit.models.module import TransferModule

__all__ = ["WholeNetwork"]


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
        """Not asked for."""
        return ()
