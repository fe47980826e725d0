"""`MaskHeads`: the heads that a segmentation task can have, by name."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from torch import nn

from transferkit.core.errors import ConfigError, gather
from transferkit.models.backbones.interface import Backbone
from transferkit.models.dense.decoders import DeepLabHead, FPNHead, UnetHead
from transferkit.models.dense.linear import HypercolumnHead, LinearMaskHead
from transferkit.models.freezing import evaluation_mode
from transferkit.models.heads.feed import Feed, HeadInput, dry_run
from transferkit.models.heads.registry import HeadOf, check_head, head_of, list_heads, registered_head, unknown_head

__all__ = ["MASK_HEADS", "MaskHeads"]

DECODERS: Final[dict[str, Callable[..., nn.Module]]] = {
    "deeplabv3plus": DeepLabHead, "fpn": FPNHead, "unet": UnetHead,
}  # fmt: skip

LIBRARY: Final = "segmentation_models_pytorch"


@dataclass(frozen=True)
class MaskHeads:
    """Heads that return a logit per class and pixel."""

    usual: str = "linear"
    drops: bool = True
    lr: float = 1e-3
    probe_lr: float = 1e-2

    def names(self) -> list[str]:
        """Return the names of those that are known, sorted."""
        return list_heads(HeadOf.MASKS)

    def feed(self, head: str | nn.Module) -> Feed:
        """Return the last map for the linear head, the pyramid for all others."""
        return Feed.LAST_MAP if head == "linear" else Feed.PYRAMID

    def learning(self, head: nn.Module, inputs: HeadInput) -> Any:
        """Return the logits."""
        return head(inputs)

    def loss(self, head: nn.Module, loss: nn.Module) -> nn.Module:
        """Return the task's own."""
        return loss

    def build(self, head: str | nn.Module, backbone: Backbone, width: int, *, drop_rate: float = 0.0) -> nn.Module:
        """Return a head of logits ``(B, width, H, W)``.

        Raises:
            BackboneError: The backbone has no pyramid.
            ConfigError: With everything that is wrong; or the library of decoders is not installed.
        """
        problems = unknown_head(head, HeadOf.MASKS)
        if not 0 <= drop_rate < 1:
            problems.append(f"drop_rate must be in [0, 1), not {drop_rate}")
        elif drop_rate and head not in ("linear", "hypercolumns", *DECODERS):
            problems.append(f"drop_rate={drop_rate} has no effect on a head of your own - put the dropout into it")
        if isinstance(head, nn.Module) and head_of(head) is not HeadOf.MASKS:
            problems.append(
                f"head {type(head).__name__} is a head of {head_of(head)} - set `takes_pyramid = True` on its class, "
                "and no `finds_objects`"
            )
        if problems:
            raise ConfigError(gather(problems))
        with evaluation_mode(backbone):
            built = head if isinstance(head, nn.Module) else _named(head, backbone, width, drop_rate)
            height, wide = backbone.data_config.image_size
            check_head(built, dry_run(backbone, self.feed(head)), (1, width, height, wide))
        return built


MASK_HEADS = MaskHeads()


def _named(name: str, backbone: Backbone, width: int, drop_rate: float) -> nn.Module:
    if name == "linear":
        if backbone.map_channels is None:
            raise ConfigError(f"{backbone.name} has no feature map for a head of masks - use another backbone")
        return LinearMaskHead(backbone.map_channels, width, drop_rate=drop_rate)
    levels, builder = backbone.pyramid(), registered_head(name)
    if name == "hypercolumns":
        return HypercolumnHead(levels, width, drop_rate=drop_rate)
    if builder is not None:
        return builder(levels, width)
    if importlib.util.find_spec(LIBRARY) is None:
        raise ConfigError(f"--head {name} needs decoders that are not installed - pip install 'transferkit[dense]'")
    return DECODERS[name](levels, width, drop_rate=drop_rate)
