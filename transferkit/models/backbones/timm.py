"""Backbones from timm, with their own preprocessing facts; weights are fetched and checked here, not by timm."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, final

import timm
from timm.models import group_parameters
from torch import Tensor, nn

from transferkit.core.errors import BackboneError
from transferkit.models.backbones.groups import LayerGroup, child_groups, named_groups
from transferkit.models.backbones.interface import Backbone, BackboneFacts
from transferkit.models.backbones.timm_facts import (
    checked_arguments,
    config_of,
    data_config_of,
    facts_from_hub,
    weights_of,
)
from transferkit.models.backbones.timm_loading import build_network, load_network
from transferkit.models.weights import hub
from transferkit.models.weights.sources import Checkpoint, data_config_beside, read_fetched, read_file

__all__ = ["TimmBackbone", "build_timm", "list_timm"]


@final
class TimmBackbone(Backbone):
    """A timm network with its classifier taken off.

    Features are ``forward_head(forward_features(images), pre_logits=True)``. Maps of networks that work
    channels-last (Swin) are turned to ``(B, C, H, W)``.
    """

    def __init__(self, model: nn.Module, facts: BackboneFacts) -> None:
        # Facts that timm's networks carry where they differ from the usual.
        super().__init__(
            model,
            facts,
            prefix_tokens=int(getattr(model, "num_prefix_tokens", getattr(model, "cls_token", None) is not None)),
            channels_last=str(getattr(model, "output_fmt", "NCHW")) == "NHWC",
        )
        self.measure()

    def forward_maps(self, images: Tensor) -> Tensor:
        """Return the last feature map ``(B, C, H, W)`` or tokens ``(B, N, C)``; raise `BackboneError` if none."""
        maps: Any = self.model.forward_features(images)  # type: ignore[operator]
        if not isinstance(maps, Tensor) or maps.ndim not in (3, 4):
            raise BackboneError(
                f"backbone {self.name!r} has no single feature map - use a head that takes features, such as 'linear'"
            )
        return maps.permute(0, 3, 1, 2) if self.channels_last and maps.ndim == 4 else maps

    def pool(self, maps: Tensor) -> Tensor:
        """Return features ``(B, D)``: timm's pooling and whatever else comes before the classifier."""
        return self._before_logits(maps.permute(0, 2, 3, 1) if self.channels_last and maps.ndim == 4 else maps)

    def forward(self, images: Tensor) -> Tensor:
        """Return features ``(B, D)`` of images ``(B, 3, H, W)``."""
        return self._before_logits(self.model.forward_features(images))  # type: ignore[operator]

    def layer_groups(self) -> tuple[LayerGroup, ...]:
        """Return timm's coarse groups (stages, or transformer blocks); top-level children where timm names none."""
        try:
            matcher = self.model.group_matcher(coarse=True)  # type: ignore[operator]
            groups = group_parameters(self.model, matcher)
        except (AttributeError, NotImplementedError, AssertionError):  # what timm's networks without groups raise
            return child_groups(self.model, prefix="model.")
        return named_groups(self.model, [groups[key] for key in sorted(groups)], prefix="model.")

    def _before_logits(self, maps: Any) -> Tensor:
        features: Tensor = self.model.forward_head(maps, pre_logits=True)  # type: ignore[operator]
        return features


def list_timm(pattern: str = "*", *, pretrained_only: bool = False) -> list[str]:
    """Return timm's names that match `pattern`: ``arch``, or ``arch.tag`` where a tag is asked for by a dot."""
    listed: Sequence[str] = timm.list_models(pattern, pretrained=pretrained_only, include_tags="." in pattern)
    return list(listed)


def build_timm(
    name: str,
    architecture: str,
    *,
    weights: str,
    image_size: tuple[int, int] | None,
    backbone_args: Mapping[str, Any],
) -> TimmBackbone:
    """Build a timm backbone.

    Args:
        name: As the user wrote it.
        architecture: timm's ``arch[.tag]``.
        weights: ``"pretrained"``, ``"random"``, ``"hf-hub:ID"`` or a file.
        image_size: ``(height, width)`` in place of the configured one. Networks of fixed input size are built for it,
            and their position embeddings are resampled by timm's own filter as the weights are loaded.
        backbone_args: Passed to the network's constructor.

    Raises:
        BackboneError: A name or an argument is unknown, or the weights cannot be had or do not fit exactly.
    """
    cfg = config_of(name, architecture)
    arguments = checked_arguments(name, backbone_args)
    checkpoint: Checkpoint | None = None
    data_config = None
    if weights == "pretrained":
        checkpoint = read_fetched(weights_of(name, cfg), cfg.license)
    elif weights.startswith("hf-hub:"):
        repo = weights.removeprefix("hf-hub:")
        cfg, saved_arguments = facts_from_hub(name, cfg, repo)
        arguments = {**saved_arguments, **arguments}
        checkpoint = read_fetched(hub.fetch_from_hub(repo), cfg.license)
    elif weights != "random":
        checkpoint = read_file(weights)
        data_config = data_config_beside(weights)
    data_config = data_config or data_config_of(cfg)
    if image_size is not None:
        data_config = dataclasses.replace(data_config, image_size=image_size)
    if cfg.fixed_input_size:
        arguments["img_size"] = data_config.image_size
    model = build_network(name, cfg, arguments)
    if checkpoint is not None:
        load_network(model, cfg, arguments, checkpoint)
    return TimmBackbone(model, checkpoint.facts(name, data_config) if checkpoint else BackboneFacts(name, data_config))
