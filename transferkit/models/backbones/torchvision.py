"""Backbones from torchvision: its classification networks with the last layer of the classifier taken off."""

from __future__ import annotations

import fnmatch
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, final

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.vision_transformer import interpolate_embeddings

from transferkit.core.errors import BackboneError
from transferkit.core.records import DataConfig
from transferkit.models.backbones.facts import BackboneFacts, Request, construction
from transferkit.models.backbones.groups import LEAST, LayerGroup, named_groups
from transferkit.models.backbones.interface import Backbone
from transferkit.models.weights import downloads
from transferkit.models.weights.checkpoint import Checkpoint, read_fetched
from transferkit.models.weights.loading import load_backbone_weights

__all__ = ["PREFIX", "TorchvisionBackbone", "build_torchvision", "list_torchvision", "pretrained_torchvision",
           "whole_torchvision"]  # fmt: skip

PREFIX = "torchvision/"

_LICENSE, _SWAG_LICENSE = "BSD-3-Clause", "CC-BY-NC-4.0"
_OURS = (
    "aux_logits",
    "image_size",
    "input_size",
    "num_classes",
    "progress",
    "transform_input",
    "weights",
    "weights_backbone",
)
# Modules that only hold the stages, and are opened to find the layer groups.
_HOLDERS = frozenset({"blocks", "encoder", "encoder.layers", "features", "trunk_output"})
_RESNET_LIKE = ("resnet", "resnext", "wide_resnet")
_POOLED_LATE = ("googlenet", "inception_v3")
_FEATURES_FIRST = ("alexnet", "convnext", "efficientnet", "mobilenet", "squeezenet", "vgg")
# Names in densenet files from before torch 0.4.1.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


@final
class TorchvisionBackbone(Backbone):
    """A torchvision classification network; its features are the input of its last layer.

    VGG and AlexNet keep their first two fully connected layers (4096 features). The dropout right before the last
    layer goes with it: the new head has its own. Feature maps exist for the families built as stages and pooling:
    ResNets, RegNets, DenseNets, Inceptions, ShuffleNets, Swin and those with a ``features`` stage.
    """

    def __init__(self, model: nn.Module, facts: BackboneFacts, architecture: str) -> None:
        super().__init__(
            model,
            facts,
            prefix_tokens=int(architecture.startswith("vit")),
            channels_last=architecture.startswith("swin"),
        )
        self.architecture = architecture
        self.measure()

    def forward_maps(self, images: Tensor) -> Tensor:
        """Return the last feature map ``(B, C, H, W)``; raise `BackboneError` where the network has none to give."""
        net: Any = self.model
        maps: Tensor
        if self.architecture.startswith(_RESNET_LIKE):
            maps = net.maxpool(net.relu(net.bn1(net.conv1(images))))
            for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
                maps = stage(maps)
        elif self.architecture.startswith("regnet"):
            maps = net.trunk_output(net.stem(images))
        elif self.architecture.startswith("densenet"):
            maps = functional.relu(net.features(images))
        elif self.architecture.startswith("swin"):
            maps = net.permute(net.norm(net.features(images)))
        elif self.architecture.startswith(_FEATURES_FIRST):
            maps = net.features(images)
        elif self.architecture.startswith("shufflenet"):
            maps = net.maxpool(net.conv1(images))
            for stage in (net.stage2, net.stage3, net.stage4, net.conv5):
                maps = stage(maps)
        elif self.architecture.startswith("maxvit"):
            maps = net.stem(images)
            for block in net.blocks:
                maps = block(maps)
        elif self.architecture.startswith(_POOLED_LATE):
            maps = _input_of(net.avgpool, net, images)
        else:
            raise BackboneError(
                f"backbone {self.name!r} gives no feature map - use a head that takes features, such as 'linear', or a "
                "ResNet, or the same architecture from timm"
            )
        return maps

    def pool(self, maps: Tensor) -> Tensor:
        """Return features ``(B, D)`` from a feature map, through what the network has before its last layer."""
        net: Any = self.model
        if self.architecture.startswith(
            ("densenet", "mobilenet_v2", "shufflenet")
        ):  # these pool in `forward`, without a module
            maps = functional.adaptive_avg_pool2d(maps, (1, 1))
        elif not self.architecture.startswith(("maxvit", "squeezenet")):  # which pool in their classifiers
            maps = net.avgpool(maps)
        if not self.architecture.startswith(
            ("convnext", "maxvit", "squeezenet")
        ):  # their classifiers want the map's shape
            maps = maps.flatten(1)
        features: Tensor = _last_part(self.model)[1](maps)
        return features.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Return features ``(B, D)`` of images ``(B, 3, H, W)``."""
        features: Tensor = self.model(images)
        return features

    def layer_groups(self) -> tuple[LayerGroup, ...]:
        """Return a group for each stage or block; norms and loose parameters go with what comes before them."""
        groups: list[list[str]] = []
        stem_open = True  # until the first stage: class token, patch embedding and position embedding are one stem
        for names, loose in _units(self.model, ""):
            if groups and (loose or stem_open):
                groups[-1] += names
            else:
                groups.append(list(names))
            stem_open = stem_open and loose
        return named_groups(self.model, groups, prefix="model.", least=LEAST)


# ---- names ------------------------------------------------------------------------------------------------------


def list_torchvision(pattern: str) -> list[str]:
    """Return the names of torchvision's classification networks that match, sorted; all have pretrained weights.

    Without its MNASNets: they refuse state dicts that carry no version mark, and safetensors cannot. timm has them.
    """
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return fnmatch.filter(sorted(PREFIX + name for name in names if not name.startswith("mnasnet")), pattern)


def pretrained_torchvision(request: Request) -> tuple[str, str]:
    """Return where torchvision's pretrained weights come from, and their licence."""
    entry = torchvision.models.get_model_weights(request.architecture).DEFAULT
    return str(entry.url), _SWAG_LICENSE if "SWAG" in entry.name else _LICENSE


# ---- building ---------------------------------------------------------------------------------------------------


def build_torchvision(request: Request) -> TorchvisionBackbone:
    """Build a torchvision backbone.

    Vision transformers are built for the image size (square only), and their position embeddings are resampled.

    Raises:
        BackboneError: An argument is unknown, or the weights cannot be had or do not fit exactly.
    """

    def pretrained() -> Checkpoint:
        url, license_ = pretrained_torchvision(request)
        return read_fetched(downloads.fetch_url(url), license_)

    checkpoint = request.checkpoint(pretrained)
    facts = request.facts(_data_config(request.architecture), checkpoint)
    size = facts.data_config.image_size
    model, classifier = _network(request, size)
    if checkpoint is not None:
        state = _adapted(model, request.architecture, size, checkpoint.state)
        load_backbone_weights(model, state, source=checkpoint.source, classifier=classifier)
    return TorchvisionBackbone(model, facts, request.architecture)


def whole_torchvision(request: Request) -> nn.Module:
    """Build the network with its classifier, without the auxiliary ones that only training has."""
    return _whole(request.architecture, request.arguments)


def _data_config(architecture: str) -> DataConfig:
    """Return the preprocessing of the default weights, which random ones share."""
    preset = torchvision.models.get_model_weights(architecture).DEFAULT.transforms()
    size = int(preset.crop_size[0])
    return DataConfig(
        image_size=(size, size),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=str(preset.interpolation.value),
        crop_pct=size / int(preset.resize_size[0]),
    )


def _network(request: Request, image_size: tuple[int, int]) -> tuple[nn.Module, tuple[str, ...]]:
    """Build the network without its last layer; return it and the names under which files have the rest."""
    name, architecture = request.name, request.architecture
    refused = sorted(set(request.arguments) & set(_OURS))
    if refused:
        raise BackboneError(
            f"backbone {name!r}: {', '.join(refused)} in backbone_args is decided by transferkit - leave it out"
        )
    options = dict(request.arguments)
    if architecture.startswith("vit"):
        if image_size[0] != image_size[1]:
            raise BackboneError(f"backbone {name!r} takes square pictures only, not {image_size[0]}x{image_size[1]}")
        options["image_size"] = image_size[0]
    if architecture.startswith("maxvit"):  # its positions are those of windows that divide the picture
        options["input_size"] = image_size
    with construction(name, options):
        model = _whole(architecture, options)
    return model, (_cut(model), "AuxLogits", "aux1", "aux2")


def _whole(architecture: str, options: Mapping[str, Any]) -> nn.Module:
    fixed: dict[str, Any] = {}
    if architecture in ("googlenet", "inception_v3"):
        # As with their pretrained weights: pictures arrive in ImageNet's normalisation and are rescaled inside.
        fixed = {"aux_logits": False, "transform_input": True, "init_weights": False}
    model: nn.Module = torchvision.models.get_model(architecture, weights=None, **options, **fixed)
    return model


def _last_part(model: nn.Module) -> tuple[str, nn.Module]:
    """Return the child that holds the classifier, and its name."""
    children = dict(model.named_children())
    name = next(name for name in ("fc", "classifier", "heads", "head") if name in children)
    return name, children[name]


def _cut(model: nn.Module) -> str:
    """Take the last layer of the classifier off, in place, with the dropout before it; return that layer's name.

    Pooling behind it (SqueezeNet classifies before it pools) is kept.
    """
    name, part = _last_part(model)
    if not isinstance(part, nn.Sequential):
        setattr(model, name, nn.Identity())
        for place, child in list(model.named_children()):
            if isinstance(child, nn.Dropout):
                setattr(model, place, nn.Identity())
        return name
    layers = list(part.named_children())
    last = max(index for index, (_, layer) in enumerate(layers) if isinstance(layer, nn.Linear | nn.Conv2d))
    rest = layers[:last]
    if rest and isinstance(rest[-1][1], nn.Dropout):
        rest.pop()
    rest += [entry for entry in layers[last + 1 :] if isinstance(entry[1], nn.AdaptiveAvgPool2d)]
    setattr(model, name, nn.Sequential(OrderedDict(rest)))
    return f"{name}.{layers[last][0]}"


def _input_of(module: nn.Module, network: nn.Module, images: Tensor) -> Tensor:
    """Run a network, and return what one of its modules was given."""
    inputs: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    try:
        network(images)
    finally:
        handle.remove()
    return inputs[-1]


def _adapted(
    model: nn.Module, architecture: str, image_size: tuple[int, int], state: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the file's tensors under today's names, with position embeddings for `image_size`."""
    if architecture.startswith("densenet"):
        return {_OLD_DENSENET.sub(r"\1\2", key): value for key, value in state.items()}
    key = "encoder.pos_embedding"
    position = state.get(key)
    if not architecture.startswith("vit") or position is None or position.ndim != 3 or position.shape[0] != 1:
        return state
    shape = model.get_parameter(key).shape
    if position.shape == shape or position.shape[-1] != shape[-1]:
        return state
    try:
        resampled = interpolate_embeddings(
            image_size=image_size[0],
            patch_size=int(model.patch_size),  # type: ignore[arg-type]
            model_state=OrderedDict({key: position.to(torch.float32)}),
        )
    except ValueError:  # not a square grid: another network's; the loader says what does not match
        return state
    return {**state, key: resampled[key]}


def _units(module: nn.Module, path: str) -> Iterator[tuple[list[str], bool]]:
    """Yield the parameter names of each stage in order, and whether they are loose ends rather than layers."""
    direct = [path + name for name, _ in module.named_parameters(recurse=False)]
    if direct:
        yield direct, True
    for name, child in module.named_children():
        if path + name in _HOLDERS:
            yield from _units(child, f"{path}{name}.")
            continue
        named = [(f"{path}{name}.{key}", parameter) for key, parameter in child.named_parameters()]
        if named:
            yield [key for key, _ in named], all(parameter.ndim <= 1 for _, parameter in named)
