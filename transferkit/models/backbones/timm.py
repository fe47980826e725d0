"""Backbones from timm, with their own preprocessing facts; weights are fetched and checked here, not by timm."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any, final

from torch import Tensor, nn

from transferkit.core.errors import BackboneError, did_you_mean, gather
from transferkit.core.records import DataConfig
from transferkit.models.backbones.facts import BackboneFacts, Request
from transferkit.models.backbones.groups import LEAST, LayerGroup, child_groups, named_groups
from transferkit.models.backbones.interface import Backbone
from transferkit.models.backbones.timm_import import (
    PretrainedCfg,
    get_deprecated_models,
    get_pretrained_cfg,
    group_parameters,
    timm,
)
from transferkit.models.backbones.timm_loading import build_network, load_network, whole_network
from transferkit.models.weights import downloads, hub
from transferkit.models.weights.checkpoint import read_fetched
from transferkit.models.weights.downloads import WeightsFile

__all__ = ["PREFIX", "TimmBackbone", "build_timm", "list_timm", "pretrained_timm", "whole_timm"]

PREFIX = "timm/"
"""May stand before a name; without it a name is timm's too."""

# Arguments of timm's factory that are decided here, or that would make something other than a backbone.
# fmt: off
_OURS = frozenset((
    "cache_dir", "checkpoint_path", "exportable", "feature_cfg", "feature_cls", "features_only", "img_size",
    "in_chans", "kwargs_filter", "model_cfg", "model_cls", "model_name", "no_jit", "num_classes", "out_indices",
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_filter_fn", "pretrained_model_args",
    "pretrained_strict", "pruned", "scriptable", "variant",
))
# fmt: on
_DESCRIBING = (
    *("input_size", "fixed_input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std"),
    *("num_classes", "classifier", "license"),
)


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
            return child_groups(self.model, prefix="model.", least=LEAST)
        return named_groups(self.model, [groups[key] for key in sorted(groups)], prefix="model.", least=LEAST)

    def _before_logits(self, maps: Any) -> Tensor:
        features: Tensor = self.model.forward_head(maps, pre_logits=True)  # type: ignore[operator]
        return features


# ---- names ------------------------------------------------------------------------------------------------------


def list_timm(pattern: str, pretrained_only: bool) -> list[str]:
    """Return timm's names that match `pattern`: ``arch``, or ``arch.tag`` where the pattern has a dot.

    They are bare unless the pattern begins with ``timm/``.
    """
    bare = pattern.removeprefix(PREFIX)
    prefix = PREFIX if pattern.startswith(PREFIX) else ""
    return [prefix + name for name in timm.list_models(bare, pretrained=pretrained_only, include_tags="." in bare)]


def pretrained_timm(request: Request) -> tuple[str | None, str | None]:
    """Return where the pretrained weights of ``arch[.tag]`` come from, and their licence; ``None`` if there are none.

    Raises:
        BackboneError: The network has another name by now, or no such tag.
    """
    cfg = _config_of(request.name, request.architecture)
    source = f"hf-hub:{cfg.hf_hub_id}" if cfg.hf_hub_id else cfg.url
    return (source, cfg.license) if isinstance(source, str) and source else (None, None)


# ---- building ---------------------------------------------------------------------------------------------------


def build_timm(request: Request) -> TimmBackbone:
    """Build a timm backbone.

    Networks of fixed input size are built for the image size, and their position embeddings are resampled by timm's
    own filter as the weights are loaded.

    Raises:
        BackboneError: A name or an argument is unknown, or the weights cannot be had or do not fit exactly.
    """
    name = request.name
    cfg, arguments = _config_of(name, request.architecture), _checked_arguments(name, request.arguments)
    if request.hub_id is not None:
        cfg, recorded = _facts_from_hub(name, cfg, request.hub_id)
        arguments = {**recorded, **arguments}
    checkpoint = request.checkpoint(
        lambda: read_fetched(_pretrained_weights(name, cfg), cfg.license),
        from_hub=lambda repo: read_fetched(hub.fetch_from_hub(repo), cfg.license),
    )
    facts = request.facts(_data_config_of(cfg), checkpoint)
    if cfg.fixed_input_size:
        arguments["img_size"] = facts.data_config.image_size
    model = None
    if cfg.fixed_input_size and request.any_size:  # windows and other fixed grids do not know it
        with contextlib.suppress(BackboneError):
            model = build_network(name, cfg, {**arguments, "dynamic_img_size": True})
    model = build_network(name, cfg, arguments) if model is None else model
    if checkpoint is not None:
        load_network(model, cfg, arguments, checkpoint)
    return TimmBackbone(model, facts)


def whole_timm(request: Request) -> nn.Module | None:
    """Build the network with the classifier of its pretrained weights; ``None`` where they have none."""
    cfg = _config_of(request.name, request.architecture)
    return whole_network(cfg) if cfg.num_classes else None


def _config_of(name: str, architecture: str) -> PretrainedCfg:
    """Return timm's facts about ``arch[.tag]``, with those of the default tag where it names none.

    Raises:
        BackboneError: The network has another name by now, or no such tag.
    """
    base, _, tag = architecture.partition(".")
    renamed = get_deprecated_models().get(base)
    if renamed:
        raise BackboneError(f"backbone {name!r} has a new name in timm - use {renamed!r}")
    tags = timm.list_models(f"{base}.*", include_tags=True)
    if tag and architecture not in tags:
        known = f"Known: {', '.join(tags)}" if tags else "It has no tags at all"
        raise BackboneError(
            f"backbone {name!r}: {base!r} has no weights tagged {tag!r}.{did_you_mean(architecture, tags)} {known}"
        )
    # A network that is registered without facts gets timm's defaults, and has no weights.
    cfg = get_pretrained_cfg(architecture) or PretrainedCfg()
    return dataclasses.replace(cfg, architecture=base)


def _checked_arguments(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the user's `backbone_args`; raise `BackboneError` for those that cannot be given here.

    What the network's constructor does not know is refused when it is built.
    """
    problems = []
    for key, value in arguments.items():
        if key == "img_size":
            problems.append("'img_size' is set by image_size (--image-size)")
        elif key in _OURS:
            problems.append(f"{key!r} is decided by transferkit")
        elif value is None:
            problems.append(f"{key!r} is None, which timm ignores")
    if problems:
        raise BackboneError(f"backbone arguments of {name!r}: {gather(problems)} - leave out what is named here")
    return dict(arguments)


def _data_config_of(cfg: PretrainedCfg) -> DataConfig:
    """Return how pictures are prepared for the network."""
    _, height, width = cfg.input_size
    red, green, blue = cfg.mean
    red_std, green_std, blue_std = cfg.std
    return DataConfig(
        image_size=(height, width),
        mean=(red, green, blue),
        std=(red_std, green_std, blue_std),
        interpolation=cfg.interpolation,
        crop_pct=cfg.crop_pct,
        # timm's third mode pads the whole picture to a square; squashing keeps the whole picture too.
        crop_mode="center" if cfg.crop_mode == "center" else "squash",
    )


def _pretrained_weights(name: str, cfg: PretrainedCfg) -> WeightsFile:
    """Fetch the pretrained weights that `cfg` points to: from the hub, else from its URL.

    Raises:
        BackboneError: There are none, they are in a format of their own, or they cannot be fetched.
    """
    if cfg.hf_hub_id:
        repo, _, revision = cfg.hf_hub_id.partition("@")
        if cfg.hf_hub_filename:
            return hub.fetch_from_hub(repo, revision=revision or None, filenames=(cfg.hf_hub_filename,))
        return hub.fetch_from_hub(repo, revision=revision or None)
    if isinstance(cfg.url, str) and cfg.url and not cfg.custom_load:
        return downloads.fetch_url(cfg.url)
    tags = timm.list_models(f"{cfg.architecture}.*", pretrained=True)
    others = f" (weights exist for {', '.join(tags)})" if tags else ""
    raise BackboneError(
        f"backbone {name!r} has no pretrained weights{others} - pass --weights FILE, or --weights random to train from "
        "scratch"
    )


def _facts_from_hub(name: str, cfg: PretrainedCfg, repo: str) -> tuple[PretrainedCfg, dict[str, Any]]:
    """Return `cfg` overlaid with what the hub's ``config.json`` records, and the constructor arguments it records.

    Raises:
        BackboneError: The repository is of another architecture, or its config is not timm's.
    """
    config = hub.hub_config(repo)
    architecture = config.get("architecture")
    if architecture != cfg.architecture:
        what = f"of architecture {architecture!r}" if architecture else "without an architecture (not made by timm)"
        raise BackboneError(
            f"weights 'hf-hub:{repo}' are {what}, but the backbone is {name!r} - "
            + (f"pass --backbone {architecture}" if architecture else "pass another id, or a file")
        )
    recorded, arguments = config.get("pretrained_cfg", config), config.get("model_args") or {}
    if not isinstance(recorded, Mapping) or not isinstance(arguments, Mapping):
        raise BackboneError(f"the config of 'hf-hub:{repo}' is not timm's - pass another id, or a file")
    # Only what describes the network and its pictures: where weights lie is not for the repository to say.
    values: dict[str, Any] = {"license": None}
    values.update((key, recorded[key]) for key in _DESCRIBING if recorded.get(key) is not None)
    if isinstance(config.get("num_classes"), int):
        values["num_classes"] = config["num_classes"]
    tuples: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    merged = dataclasses.replace(cfg, **tuples)
    return merged, {key: value for key, value in arguments.items() if key not in _OURS and value is not None}
