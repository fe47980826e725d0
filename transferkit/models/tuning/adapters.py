"""Adapters: LoRA and DoRA on linear layers and convolutions, by peft; merged into plain weights at the end.

LoRA (Hu et al. 2022, *LoRA: Low-Rank Adaptation of Large Language Models*, section 4.1) adds a product of two small
matrices to a frozen weight; DoRA (Liu et al. 2024, *DoRA: Weight-Decomposed Low-Rank Adaptation*, section 4) learns the
length of each output's weights beside it. Of a convolution the first of the two has its kernel, the second has 1 x 1.
"""

from __future__ import annotations

import copy
import importlib.util
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MethodType
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from transferkit.core.errors import ConfigError, TrainingError, did_you_mean, gather
from transferkit.core.text import first_line
from transferkit.models.backbones.interface import Backbone
from transferkit.models.freezing import evaluation_mode
from transferkit.models.heads.feed import Feed, HeadInput, feed
from transferkit.models.tuning.selectors import HEAD, Layout, parse_selector, selector_problems

__all__ = ["ADAPTERS", "Adapter", "add_adapter", "has_adapter", "merge_adapter", "rehearse_merging", "without_adapter"]

ADAPTERS: Final = ("lora", "dora")

TOLERANCE: Final = 1e-3
"""By which merged features may differ from those of the adapter, over the largest of them."""

_PLAIN: Final = {nn.Linear.forward: "linear layers", nn.Conv2d.forward: "convolutions"}
"""What a layer must compute: a subclass of its own, such as one that standardises its weights, is no linear map."""


@dataclass(frozen=True)
class Adapter:
    """What is added to a backbone.

    Attributes:
        kind: One of `ADAPTERS`.
        rank: Of the product, at least 1.
        alpha: The product counts by ``alpha / rank``; above 0.
        targets: Selects the weights of the backbone that are adapted.
    """

    kind: str = "lora"
    rank: int = 8
    alpha: float = 16.0
    targets: str = "all"

    def __post_init__(self) -> None:
        problems = [f"adapter targets: {problem}" for problem in selector_problems(self.targets)]
        if self.kind not in ADAPTERS:
            problems.append(f"unknown adapter {self.kind!r}.{did_you_mean(self.kind, ADAPTERS)} Known: lora, dora")
        if self.rank < 1:
            problems.append(f"adapter rank is {self.rank}, expected a whole number of at least 1")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            problems.append(f"adapter alpha is {self.alpha}, expected a finite number above 0")
        if problems:
            raise ConfigError(gather(problems))

    @classmethod
    def of(cls, value: Adapter | Mapping[str, Any]) -> Adapter:
        """Return an adapter as it is, or from its `to_dict`."""
        return value if isinstance(value, Adapter) else cls(**value)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for checkpoints."""
        return asdict(self)

    def layers(self, layout: Layout) -> list[str]:
        """Return the layers of the backbone's network whose weight is selected, by name.

        Raises:
            ConfigError: A step of `targets` reaches nothing.
        """
        selector = parse_selector(self.targets)
        problems = [f"adapter targets: {problem}" for problem in selector.problems(layout)]
        if problems:
            raise ConfigError(gather(problems))
        names = [leaf.library_name for leaf in selector.select(layout) if leaf.group != HEAD]
        return [name.removesuffix(".weight") for name in names if name.endswith(".weight")]


def add_adapter(backbone: Backbone, adapter: Adapter, layers: Sequence[str]) -> str:
    """Put an adapter on layers of a backbone, which computes the same until it is trained.

    Layers that cannot be adapted rightly stay as they are: grouped and dilated convolutions, which peft cannot merge or
    build; layers that compute something of their own; and those whose weight another part of the network uses without
    calling them (attention of torch, Swin v2, BEiT): their adapter would never learn, and still be merged.

    Args:
        backbone: Changed in place; its modes stay.
        adapter: What is added.
        layers: From `Adapter.layers`.

    Returns:
        How many layers were adapted, and how many of those that were named were not, and why.

    Raises:
        ConfigError: peft is not installed, or nothing is left to adapt.
    """
    if importlib.util.find_spec("peft") is None:
        raise ConfigError(f"--adapter {adapter.kind} needs peft, which is not installed - "
                          "pip install 'transferkit[peft]'")  # fmt: skip
    modules = dict(backbone.model.named_modules())
    named = {name: modules[name] for name in layers if isinstance(modules.get(name), nn.Linear | nn.Conv2d)}
    reasons = {name: _unfit(layer) for name, layer in named.items()}
    idle = _not_called(backbone, {name: layer for name, layer in named.items() if not reasons[name]})
    reasons |= dict.fromkeys(idle, "whose weight is used without calling them")
    reasons |= dict.fromkeys(_shared(backbone.model, named), "that share their weight")
    fit = [name for name, reason in reasons.items() if not reason]
    left = Counter(reason for reason in reasons.values() if reason)
    rest = "; as they are: " + ", ".join(f"{count} {reason}" for reason, count in left.items()) if left else ""
    if not fit:
        raise ConfigError(
            f"--adapter {adapter.kind} finds no layer to adapt under {adapter.targets!r}{rest} - select linear layers "
            "or plain convolutions of the backbone"
        )
    _inject(backbone, adapter, fit)
    return f"rank {adapter.rank} on {len(fit)} layers{rest}"


def has_adapter(backbone: nn.Module) -> bool:
    """Whether any layer carries an adapter."""
    return any(".base_layer." in name for name, _ in backbone.named_parameters())


def merge_adapter(backbone: Backbone, kind: Feed, images: Tensor) -> float:
    """Make a plain backbone of one with an adapter, after having seen that it computes the same.

    Args:
        backbone: Changed in place; on the device of the pictures.
        kind: What the head is given, which is compared.
        images: ``(B, 3, H, W) float32, normalised``: real pictures.

    Returns:
        The largest difference, over the largest value.

    Raises:
        TrainingError: It does not compute the same; the backbone is as it was.
    """
    layers = dict(_adapted(backbone.model))
    before = _outputs(backbone, kind, images)
    weights = {name: layer.base_layer.weight.detach().clone() for name, layer in layers.items()}
    try:
        for layer in layers.values():
            layer.merge(safe_merge=True)
        difference = _difference(before, _outputs(backbone, kind, images))
        reason = "" if difference <= TOLERANCE else f"features differ by {difference:.2g} of the largest"
    except ValueError as error:  # what peft raises for weights that are not finite
        reason = first_line(error)
    if reason:
        for name, layer in layers.items():
            layer.merged_adapters.clear()
            layer.base_layer.weight.data.copy_(weights[name])
        raise TrainingError(
            f"the adapter cannot be merged into {backbone.name}: {reason}, expected at most {TOLERANCE:g} - the "
            "checkpoints hold it as it was trained; train without --adapter, or with other --adapter-targets"
        )
    _unload(backbone.model)
    return difference


def rehearse_merging(backbone: Backbone, kind: Feed) -> None:
    """Merge an adapter of random weights in a copy, before anything is trained. Raises as `merge_adapter`."""
    twin = copy.deepcopy(backbone)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, layer in _adapted(twin.model):
            for part in layer.lora_B.values():
                part.weight.copy_(0.02 * torch.randn(part.weight.shape, generator=generator))
    merge_adapter(twin, kind, torch.randn(2, 3, *backbone.data_config.image_size, generator=generator))


def without_adapter(backbone: Backbone) -> Backbone:
    """Return the backbone that an untrained adapter sits on: a copy without it, itself where there is none."""
    if not has_adapter(backbone):
        return backbone
    twin = copy.deepcopy(backbone)
    _unload(twin.model)
    return twin


# ---- parts ------------------------------------------------------------------------------------------------------


def _unfit(layer: nn.Module) -> str:
    """Return in words why a layer cannot be adapted; empty where it can."""
    if type(layer).forward not in _PLAIN or parametrize.is_parametrized(layer):
        return "that compute their weights anew"
    if isinstance(layer, nn.Conv2d):
        if layer.groups > 1:
            return "grouped convolutions"
        if layer.dilation != (1, 1):
            return "dilated convolutions"
        if layer.padding_mode != "zeros":
            return "convolutions that pad with something else than zeros"
    return ""


def _not_called(backbone: Backbone, layers: Mapping[str, nn.Module]) -> list[str]:
    """Return the layers whose `forward` does not run for a picture."""
    called: set[str] = set()
    handles = [layer.register_forward_hook(lambda *_, name=name: called.add(name)) for name, layer in layers.items()]
    try:
        with evaluation_mode(backbone), torch.enable_grad():  # without gradients torch takes short cuts of its own
            backbone(backbone.blank_picture())
    finally:
        for handle in handles:
            handle.remove()
    return [name for name in layers if name not in called]


def _shared(model: nn.Module, layers: Mapping[str, nn.Module]) -> list[str]:
    """Return the layers whose weight is another module's, too."""
    owners = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    return [name for name, layer in layers.items() if owners[id(layer.weight)] > 1]


def _inject(backbone: Backbone, adapter: Adapter, layers: Sequence[str]) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    # As a pattern of whole names: of a list peft takes every layer that ends with one of them.
    pattern = "|".join(map(re.escape, layers))
    alpha: Any = adapter.alpha  # peft says a whole number, and divides it
    config = LoraConfig(r=adapter.rank, lora_alpha=alpha, target_modules=pattern, use_dora=adapter.kind == "dora")
    learns = {id(parameter): parameter.requires_grad for parameter in backbone.parameters()}
    inject_adapter_in_model(config, backbone.model)
    for parameter in backbone.parameters():
        parameter.requires_grad_(learns.get(id(parameter), True))
    for _, layer in _adapted(backbone.model):
        for magnitude in layer.lora_magnitude_vector.values():
            if isinstance(layer.base_layer, nn.Conv2d):
                magnitude.get_lora_weight = MethodType(_product, magnitude)
    backbone.train(backbone.training)


def _product(magnitude: nn.Module, lora_A: nn.Conv2d, lora_B: nn.Conv2d, adapter_name: str | None = None) -> Tensor:
    """Return the product of a convolution's two small weights, flat, in whatever order they lie in memory.

    In place of peft's own for DoRA, which takes a view of them: channels-last weights have none (peft 0.21).
    """
    return lora_B.weight.flatten(1) @ lora_A.weight.flatten(1)


def _adapted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    return ((name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLayer))


def _unload(model: nn.Module) -> None:
    """Put each layer back in the place of its adapter."""
    for name, layer in list(_adapted(model)):
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer.base_layer)
    del model.peft_config


def _outputs(backbone: Backbone, kind: Feed, images: Tensor) -> HeadInput:
    with evaluation_mode(backbone), torch.no_grad():
        return feed(backbone, kind, images)


def _difference(before: HeadInput, after: HeadInput) -> float:
    """Return the largest difference over the largest value; infinity where one is no number."""
    firsts, seconds = (value if isinstance(value, tuple) else (value,) for value in (before, after))
    worst = 0.0
    for one, other in zip(firsts, seconds, strict=True):
        share = float((one - other).abs().max() / one.abs().max().clamp_min(1e-12))
        worst = max(worst, share if math.isfinite(share) else math.inf)
    return worst
