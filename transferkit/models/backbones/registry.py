"""Backbones by name: timm, torchvision, the bundled one, and the user's own."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn

from transferkit.core.errors import BackboneError, ConfigError, did_you_mean
from transferkit.core.records import DataConfig
from transferkit.machine.cores import free_memory
from transferkit.models.backbones import mini, registered, timm, torchvision
from transferkit.models.backbones.facts import MINI, Request, multiply_adds, parameter_count
from transferkit.models.backbones.field import receptive_fields
from transferkit.models.backbones.groups import LayerGroup
from transferkit.models.backbones.interface import Backbone
from transferkit.models.backbones.timm_import import is_model
from transferkit.models.weights.channels import adapt_channels
from transferkit.options.sizes import ImageSize, image_size_of

__all__ = ["Backbone", "LayerGroup", "blank_backbone", "create_backbone", "describe", "describe_backbone",
           "is_backbone", "list_backbones", "register_backbone", "require_memory"]  # fmt: skip

BYTES_OF_A_PIXEL = 200
"""What a network needs for a pixel: 64 maps of half the sides in float32, going into and out of a layer, and copies."""

_Builder = TypeVar("_Builder", bound=Callable[..., nn.Module])
_Network = TypeVar("_Network", bound=nn.Module | None)


@dataclass(frozen=True)
class _Source:
    """A library that backbones come from.

    Attributes:
        prefix: Of its names; taken off for `build` and `pretrained`.
        knows: Whether a name is one of its.
        names: Its names that match a shell pattern; with ``True`` only those with pretrained weights.
        build: Builds a backbone.
        pretrained: Where the pretrained weights come from, and their licence; ``None`` twice where there are none.
        whole: Builds the network with the classifier of its weights, random; ``None`` where it has none.
        abstract: Whether its networks can be built on the ``meta`` device, without a number in them.
    """

    prefix: str
    knows: Callable[[str], bool]
    names: Callable[[str, bool], list[str]]
    build: Callable[[Request], Backbone]
    pretrained: Callable[[Request], tuple[str | None, str | None]]
    whole: Callable[[Request], nn.Module | None] = lambda request: None
    abstract: bool = False


_SOURCES = (
    _Source(
        prefix="",
        knows=lambda name: name in registered.REGISTRATIONS,
        names=registered.list_registered,
        build=registered.build_registered,
        pretrained=registered.pretrained_registered,
    ),
    _Source(
        prefix="transferkit/",
        knows=lambda name: name == MINI,
        names=lambda pattern, pretrained_only: fnmatch.filter([MINI], pattern),
        build=mini.build_mini,
        pretrained=lambda request: ("bundled", mini.MINI_LICENSE),
    ),
    _Source(
        prefix=timm.PREFIX,
        knows=lambda name: is_model(name.removeprefix(timm.PREFIX)),
        names=timm.list_timm,
        build=timm.build_timm,
        pretrained=timm.pretrained_timm,
        whole=timm.whole_timm,
        abstract=True,
    ),
    _Source(
        prefix=torchvision.PREFIX,
        knows=lambda name: name in torchvision.list_torchvision("*"),
        names=lambda pattern, pretrained_only: torchvision.list_torchvision(pattern),
        build=torchvision.build_torchvision,
        pretrained=torchvision.pretrained_torchvision,
        whole=torchvision.whole_torchvision,
        abstract=True,
    ),
)


def register_backbone(
    name: str, *, data_config: DataConfig | None = None, license: str | None = None, pretrained: bool = False
) -> Callable[[_Builder], _Builder]:
    """Make a backbone known by `name`: a decorator for a builder, or for a class called the same way.

    The builder's parameters are the ``backbone_args`` users may give. It returns a module that maps images
    ``(B, 3, H, W)`` to features ``(B, D)`` or to a feature map ``(B, C, H, W)``, which is averaged. Its top-level
    children are the layer groups.

    Args:
        name: Any name that no other backbone has.
        data_config: How pictures are prepared; 224 px and ImageNet's mean and deviation by default.
        license: Of the weights that the builder loads.
        pretrained: Whether the builder loads weights itself; only then does it answer to ``weights="pretrained"``.

    Raises:
        ConfigError: The name is taken.
    """
    prefixes = tuple(source.prefix for source in _SOURCES if source.prefix)
    if name.startswith(prefixes) or any(source.knows(name) for source in _SOURCES):
        raise ConfigError(f"a backbone named {name!r} exists already - register it under another name")

    def register(builder: _Builder) -> _Builder:
        registered.REGISTRATIONS[name] = registered.Registration(
            builder, data_config or DataConfig(), license, pretrained
        )
        return builder

    return register


def create_backbone(
    name: str,
    *,
    weights: str = "pretrained",
    image_size: ImageSize = None,
    channels: int | None = None,
    any_size: bool = False,
    backbone_args: Mapping[str, Any] | None = None,
) -> Backbone:
    """Build a backbone with weights that are known to fit, tensor by tensor; never silently a random one.

    Args:
        name: ``arch[.tag]`` or ``timm/arch[.tag]`` from timm, ``torchvision/NAME``, ``transferkit/mini``, or a
            registered name.
        weights: ``"pretrained"`` (fetched once, then from the cache), ``"bundled"`` (with the package), ``"random"``,
            ``"hf-hub:ID"`` or a file.
        image_size: Side in pixels, or height and width, ``(224, 320)`` or ``"224x320"``; the backbone's own by default.
        channels: Of the pictures; the backbone's own by default, mostly 3. For others its first convolution is adapted,
            see `transferkit.models.weights.channels`.
        any_size: Have it take pictures of other sizes, too, where it can: timm's transformers resize their position
            embeddings to each batch then.
        backbone_args: Passed to the network's constructor, such as ``{"drop_path_rate": 0.1}``.

    Raises:
        BackboneError: The name or an argument is unknown, or the weights cannot be had or do not fit.
        ConfigError: The image size is not positive.
    """
    source, request = _find(name, weights=weights, image_size=image_size, arguments=backbone_args)
    backbone = source.build(replace(request, any_size=any_size))
    if channels is not None:
        adapt_channels(backbone, channels)
    return backbone


def list_backbones(pattern: str = "*", *, pretrained_only: bool = False) -> list[str]:
    """Return the names that match `pattern`, a shell pattern: own and registered, then timm's, then torchvision's.

    timm's are bare; a dot in `pattern` lists their weights one by one (``resnet50.*``).

    Args:
        pattern: Such as ``"*resnet*"`` or ``"torchvision/*"``.
        pretrained_only: Leave out what has no pretrained weights.
    """
    return [name for source in _SOURCES for name in source.names(pattern, pretrained_only)]


def is_backbone(name: str) -> bool:
    """Whether a backbone goes by this name; nothing is said of its weights."""
    return any(source.knows(name) for source in _SOURCES)


def describe_backbone(name: str) -> dict[str, Any]:
    """Return what is known of a backbone, as plain values. It is built with random weights; nothing is fetched.

    Returns:
        What `describe` does, and ``stages``, from input to output, where there is a pyramid, else none. Of each
        ``name``, ``stride``, ``channels``, ``field`` (pixels along a side of its receptive field, ``None`` where it is
        not one number) and ``sees_all`` (whether every position depends on the whole picture besides).

    Raises:
        BackboneError: The name is unknown.
    """
    backbone = blank_backbone(name)
    return {**describe(backbone), "stages": _stages(backbone)}


def blank_backbone(name: str) -> Backbone:
    """Build a backbone to look at: of timm and torchvision on the ``meta`` device, without a number in it.

    So large ones take neither memory nor time, but for those whose constructors compute with numbers.

    Raises:
        BackboneError: The name is unknown.
    """
    source, request = _find(name)
    # A builder that loads weights itself builds no random network.
    weights = "pretrained" if source.pretrained(request)[0] == registered.BUILDER else "random"
    if not source.abstract:
        return create_backbone(name, weights=weights)
    return _blank(lambda: create_backbone(name, weights=weights))


def describe(backbone: Backbone) -> dict[str, Any]:
    """Return what is known of a backbone as a whole, as plain values; its weights do not matter.

    Returns:
        ``name``, ``parameters`` (count), ``parameters_with_classifier`` (``None`` where there is none),
        ``multiply_adds`` (of one picture of the size below, without the classifier), ``num_features``,
        ``map_channels``, ``image_size``, ``mean``, ``std``, ``interpolation``, ``crop_pct``, ``crop_mode``,
        ``license`` and ``pretrained`` (where the weights come from) of the pretrained weights, ``None`` where there are
        none, and ``layer_groups``: name -> count of parameters, from input to output.
    """
    source, request = _find(backbone.name)
    origin, license_ = source.pretrained(request)
    whole = _blank(lambda: source.whole(request))
    return {
        "name": backbone.name,
        "parameters": parameter_count(backbone),
        "parameters_with_classifier": None if whole is None else parameter_count(whole),
        "multiply_adds": multiply_adds(backbone, backbone.blank_picture()),
        "num_features": backbone.num_features,
        "map_channels": backbone.map_channels,
        **backbone.data_config.to_dict(),
        "license": license_,
        "pretrained": origin,
        "layer_groups": {
            group.name: sum(parameter.numel() for _, parameter in group.parameters) for group in backbone.layer_groups()
        },
    }


def _blank(build: Callable[[], _Network]) -> _Network:
    """Build on the ``meta`` device; where that fails with numbers first, which also tells what else is wrong."""
    try:
        with torch.device("meta"):
            return build()
    except (BackboneError, RuntimeError):
        network = build()
        return network if network is None else network.to("meta")


def _stages(backbone: Backbone) -> list[dict[str, Any]]:
    """Return the stages of a backbone, with their fields; none where it has no pyramid."""
    try:
        stages = receptive_fields(backbone)
    except BackboneError:  # a network without a pyramid is no worse for classification
        return []
    return [{**dataclasses.asdict(level), "field": field.size, "sees_all": field.whole} for level, field in stages]


def _find(
    name: str,
    *,
    weights: str = "random",
    image_size: ImageSize = None,
    arguments: Mapping[str, Any] | None = None,
) -> tuple[_Source, Request]:
    """Return the source that knows a name, and the request to it. Raises `BackboneError` and `ConfigError`."""
    size = _image_size(image_size)
    for source in _SOURCES:
        if source.knows(name):
            return source, Request(name, name.removeprefix(source.prefix), weights, size, dict(arguments or {}))
    names = list_backbones(f"{timm.PREFIX}*" if name.startswith(timm.PREFIX) else "*")
    elsewhere = [known for known in names if known.endswith(f"/{name}")]
    hint = f" Did you mean {elsewhere[0]!r}?" if elsewhere else did_you_mean(name, names)
    raise BackboneError(
        f"unknown backbone {name!r}.{hint} List them with `transferkit backbones`, "
        "or make your own known with register_backbone"
    )


def _image_size(image_size: ImageSize) -> tuple[int, int] | None:
    try:
        size = image_size_of(image_size)
    except ValueError as error:
        raise ConfigError(f"image_size is {error}") from error
    if size is None:
        return None
    require_memory(size, "image_size (--image-size)")
    return size


def require_memory(size: tuple[int, int], flag: str, pictures: int = 1) -> None:
    """Fail where pictures are so large that no usual network can be run on them in the memory that is free.

    Asked before anything of that size is made: a system that promises more memory than it has kills who uses it.

    Args:
        size: ``(height, width)`` in pixels.
        flag: What set it.
        pictures: How many at once.

    Raises:
        ConfigError: There is not memory enough.
    """
    needed, free = pictures * size[0] * size[1] * BYTES_OF_A_PIXEL, free_memory()
    if 0 < free < needed:
        raise ConfigError(
            f"{flag} is {size[0]} x {size[1]} pixels: a network needs about {needed / 1e9:,.1f} GB of memory for "
            f"{pictures} of them, and {free / 1e9:,.1f} GB are free - pass a smaller size"
        )
