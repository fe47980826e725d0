"""Backbones by name: timm, torchvision, the bundled one, and the user's own."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import timm
from torch import nn

from transferkit.core.errors import BackboneError, ConfigError, did_you_mean
from transferkit.core.records import DataConfig
from transferkit.models.backbones.groups import LayerGroup
from transferkit.models.backbones.interface import Backbone
from transferkit.models.backbones.mini import MINI, MINI_LICENSE, build_mini
from transferkit.models.backbones.registered import Registration, build_registered
from transferkit.models.backbones.timm import build_timm, list_timm
from transferkit.models.backbones.timm_facts import pretrained_facts
from transferkit.models.backbones.torchvision import build_torchvision, list_torchvision, torchvision_facts

__all__ = ["Backbone", "LayerGroup", "create_backbone", "describe_backbone", "list_backbones", "register_backbone"]

_TIMM, _TORCHVISION, _OWN = "timm/", "torchvision/", "transferkit/"
_REGISTERED: dict[str, Registration] = {}

_Builder = TypeVar("_Builder", bound=Callable[..., nn.Module])


def register_backbone(
    name: str, *, data_config: DataConfig | None = None, license: str | None = None, pretrained: bool = False
) -> Callable[[_Builder], _Builder]:
    """Make a backbone known by `name`: a decorator for a builder, or for a class called the same way.

    The builder's parameters are the ``backbone_args`` users may give. It returns a module that maps images
    ``(B, 3, H, W)`` to features ``(B, D)`` or to a feature map ``(B, C, H, W)``, which is averaged. Its top-level
    children are the layer groups.

    Args:
        name: Any name that no other backbone has.
        data_config: How pictures are prepared; 224 px and ImageNet's mean and deviation unless told.
        license: Of the weights that the builder loads.
        pretrained: Whether the builder loads weights itself; only then does it answer to ``weights="pretrained"``.

    Raises:
        ConfigError: The name is taken.
    """
    if name in _REGISTERED or name.startswith((_TIMM, _TORCHVISION, _OWN)) or timm.is_model(name):
        raise ConfigError(f"a backbone named {name!r} exists already - register it under another name")

    def register(builder: _Builder) -> _Builder:
        _REGISTERED[name] = Registration(builder, data_config or DataConfig(), license, pretrained)
        return builder

    return register


def create_backbone(
    name: str,
    *,
    weights: str = "pretrained",
    image_size: int | tuple[int, int] | None = None,
    backbone_args: Mapping[str, Any] | None = None,
) -> Backbone:
    """Build a backbone with weights that are known to fit, tensor by tensor; never silently a random one.

    Args:
        name: ``arch[.tag]`` or ``timm/arch[.tag]`` from timm, ``torchvision/NAME``, ``transferkit/mini``, or a
            registered name.
        weights: ``"pretrained"`` (fetched once, then from the cache), ``"bundled"`` (with the package), ``"random"``,
            ``"hf-hub:ID"`` or a file.
        image_size: Side in pixels, or ``(height, width)``; the backbone's own unless told.
        backbone_args: Passed to the network's constructor, such as ``{"drop_path_rate": 0.1}``.

    Raises:
        BackboneError: The name or an argument is unknown, or the weights cannot be had or do not fit.
        ConfigError: The image size is not positive.
    """
    size = _image_size(image_size)
    arguments = dict(backbone_args or {})
    if weights == "bundled" and name != MINI:
        raise BackboneError(f"backbone {name!r} has no bundled weights - only {MINI!r} has; pass --weights pretrained")
    if name in _REGISTERED:
        registration = _REGISTERED[name]
        return build_registered(name, registration, weights=weights, image_size=size, backbone_args=arguments)
    if name == MINI:
        return build_mini(name, weights=weights, image_size=size, backbone_args=arguments)
    _check_known(name)
    if name.startswith(_TORCHVISION):
        short = name.removeprefix(_TORCHVISION)
        return build_torchvision(name, short, weights=weights, image_size=size, backbone_args=arguments)
    short = name.removeprefix(_TIMM)
    return build_timm(name, short, weights=weights, image_size=size, backbone_args=arguments)


def list_backbones(pattern: str = "*", *, pretrained_only: bool = False) -> list[str]:
    """Return the names that match `pattern`, a shell pattern: own and registered, then timm's, then torchvision's.

    timm's are bare; a dot in `pattern` lists their weights one by one (``resnet50.*``).

    Args:
        pattern: Such as ``"*resnet*"`` or ``"torchvision/*"``.
        pretrained_only: Leave out what has no pretrained weights.
    """
    own = [MINI, *(name for name, entry in _REGISTERED.items() if entry.pretrained or not pretrained_only)]
    bare = list_timm(pattern.removeprefix(_TIMM), pretrained_only=pretrained_only)
    from_timm = [_TIMM + name for name in bare] if pattern.startswith(_TIMM) else bare
    from_torchvision = [_TORCHVISION + name for name in list_torchvision()]
    return [*fnmatch.filter(sorted(own), pattern), *from_timm, *fnmatch.filter(from_torchvision, pattern)]


def describe_backbone(name: str) -> dict[str, Any]:
    """Return what is known of a backbone, as plain values. It is built with random weights; nothing is fetched.

    Returns:
        ``name``, ``parameters`` (count), ``num_features``, ``map_channels``, ``image_size``, ``mean``, ``std``,
        ``interpolation``, ``crop_pct``, ``crop_mode``, ``license`` and ``pretrained`` (where the weights come from)
        of the pretrained weights, ``None`` where there are none, and ``layer_groups``: name -> count of parameters,
        from input to output.

    Raises:
        BackboneError: The name is unknown.
    """
    weights = "pretrained" if name in _REGISTERED and _REGISTERED[name].pretrained else "random"
    backbone = create_backbone(name, weights=weights)
    if name in _REGISTERED:
        source, license_ = (backbone.weights_source if weights == "pretrained" else None), backbone.license
    elif name == MINI:
        source, license_ = "bundled", MINI_LICENSE
    elif name.startswith(_TORCHVISION):
        source, license_ = torchvision_facts(name.removeprefix(_TORCHVISION))
    else:
        source, license_ = pretrained_facts(name, name.removeprefix(_TIMM))
    groups = backbone.layer_groups()
    return {
        "name": name,
        "parameters": sum(parameter.numel() for parameter in backbone.parameters()),
        "num_features": backbone.num_features,
        "map_channels": backbone.map_channels,
        **backbone.data_config.to_dict(),
        "license": license_,
        "pretrained": source,
        "layer_groups": {group.name: sum(p.numel() for _, p in group.parameters) for group in groups},
    }


def _check_known(name: str) -> None:
    """Refuse a name that nothing answers to; an unknown tag of a known network is left to timm's adapter."""
    if name.startswith(_TORCHVISION):
        known = name.removeprefix(_TORCHVISION) in list_torchvision()
    else:
        known = timm.is_model(name.removeprefix(_TIMM))
    if not known:
        names = list_backbones("timm/*" if name.startswith(_TIMM) else "*")
        elsewhere = [known_name for known_name in names if known_name.endswith(f"/{name}")]
        hint = f" Did you mean {elsewhere[0]!r}?" if elsewhere else did_you_mean(name, names)
        raise BackboneError(
            f"unknown backbone {name!r}.{hint} List them with `transferkit backbones`, "
            "or make your own known with register_backbone"
        )


def _image_size(image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if image_size is None:
        return None
    size = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])
    if min(size) < 1:
        raise ConfigError(f"image_size is {image_size}, expected pixels: a number or (height, width), each at least 1")
    return size
