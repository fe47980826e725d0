"""What timm knows of a network besides its layers: preprocessing, licence, where its weights lie, its arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import timm
from timm.models import get_deprecated_models, get_pretrained_cfg
from timm.models._pretrained import PretrainedCfg

from transferkit.core.errors import BackboneError, did_you_mean, gather
from transferkit.core.records import DataConfig
from transferkit.models.weights import hub
from transferkit.models.weights.hub import WeightsFile
from transferkit.models.weights.sources import hash_in_url

__all__ = ["checked_arguments", "config_of", "data_config_of", "facts_from_hub", "pretrained_facts", "weights_of"]

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


def config_of(name: str, architecture: str) -> PretrainedCfg:
    """Return timm's facts about ``arch[.tag]``, with the default tag's where none is given.

    Raises:
        BackboneError: timm has no such network, or the network no such tag.
    """
    base, _, tag = architecture.partition(".")
    renamed = get_deprecated_models().get(base)
    if renamed:
        raise BackboneError(f"backbone {name!r} has a new name in timm - use {renamed!r}")
    if not timm.is_model(base):
        raise BackboneError(f"unknown backbone {name!r}.{did_you_mean(architecture, timm.list_models())}")
    tags = timm.list_models(f"{base}.*", include_tags=True)
    if tag and architecture not in tags:
        known = f"Known: {', '.join(tags)}" if tags else "It has no tags at all"
        raise BackboneError(
            f"backbone {name!r}: {base!r} has no weights tagged {tag!r}.{did_you_mean(architecture, tags)} {known}"
        )
    # A network that is registered without facts gets timm's defaults, and has no weights.
    cfg = get_pretrained_cfg(architecture) or PretrainedCfg()
    return dataclasses.replace(cfg, architecture=base)


def data_config_of(cfg: PretrainedCfg) -> DataConfig:
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


def pretrained_facts(name: str, architecture: str) -> tuple[str | None, str | None]:
    """Return where the pretrained weights of ``arch[.tag]`` come from, and their licence; ``None`` if there are none.

    Raises:
        BackboneError: timm has no such network, or the network no such tag.
    """
    cfg = config_of(name, architecture)
    source = f"hf-hub:{cfg.hf_hub_id}" if cfg.hf_hub_id else cfg.url
    return (source, cfg.license) if isinstance(source, str) and source else (None, None)


def checked_arguments(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
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


def weights_of(name: str, cfg: PretrainedCfg) -> WeightsFile:
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
        return hub.fetch_url(cfg.url, sha256_prefix=hash_in_url(cfg.url))
    tags = timm.list_models(f"{cfg.architecture}.*", pretrained=True)
    others = f" (weights exist for {', '.join(tags)})" if tags else ""
    raise BackboneError(
        f"backbone {name!r} has no pretrained weights{others} - pass --weights FILE, or --weights random to train from "
        "scratch"
    )


def facts_from_hub(name: str, cfg: PretrainedCfg, repo: str) -> tuple[PretrainedCfg, dict[str, Any]]:
    """Return `cfg` overlaid with what the hub's ``config.json`` records, and the constructor arguments it records.

    Raises:
        BackboneError: The repository is of another architecture, or its config is not timm's.
    """
    config = hub.hub_config(repo)
    architecture = config.get("architecture")
    if architecture != cfg.architecture:
        seen = f"of architecture {architecture!r}" if architecture else "without an architecture (not made by timm)"
        raise BackboneError(
            f"weights 'hf-hub:{repo}' are {seen}, but the backbone is {name!r} - "
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
