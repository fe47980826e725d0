"""The layout of a model: its parameters with their kinds; and parts of it that learn."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from transferkit.models.freezing import Grouped, require_groups, set_trainable
from transferkit.models.optimizers import NamedParameters
from transferkit.models.tuning.selectors import ADAPTER, BIAS, NORM, Layout, Leaf, Selector, labels_of

__all__ = ["cut_groups", "layout_of", "norm_layers", "train_parts"]

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def layout_of(module: nn.Module) -> Layout:
    """Return the parameters of a module of layer groups, with what each is.

    A bias is called so, or ends with ``_bias``: a table of biases by position is none. A norm layer's bias is both.

    Raises:
        ConfigError: The module has no layer groups.
    """
    groups = require_groups(module, "a selector").groups()
    norms = {id(parameter) for layer in norm_layers(module) for parameter in layer.parameters(recurse=False)}
    leaves = [
        Leaf(group, name, parameter.numel(), _kinds(name, norm=id(parameter) in norms))
        for group, members in groups for name, parameter in members
    ]  # fmt: skip
    return Layout(tuple(group for group, _ in groups), tuple(leaves))


def norm_layers(module: nn.Module) -> list[nn.Module]:
    """Return the layers that normalise: torch's, and those that other libraries call so; no blocks that hold one."""
    return [
        layer for layer in module.modules()
        if isinstance(layer, _NORMS) or ("norm" in type(layer).__name__.lower() and _is_layer(layer))
    ]  # fmt: skip


def _is_layer(module: nn.Module) -> bool:
    own = next(module.parameters(recurse=False), None) is not None
    return own or next(module.children(), None) is None


def _kinds(name: str, *, norm: bool) -> frozenset[str]:
    *modules, last = name.split(".")
    kinds = {BIAS} if last == BIAS or last.endswith("_bias") else set()
    kinds |= {NORM} if norm else set()
    kinds |= {ADAPTER} if any(part.startswith("lora_") for part in modules) else set()
    return frozenset(kinds)


def train_parts(module: nn.Module, leaves: Collection[Leaf]) -> None:
    """Let exactly these parameters of a module learn; what holds none of them is frozen, see `set_trainable`.

    A layer of which anything learns is no frozen part: it is in train mode, and a norm layer moves its statistics.

    Args:
        module: Of layer groups; whole groups go through its own `Grouped.train_groups`.
        leaves: Of its layout.

    Raises:
        ConfigError: The module has no layer groups.
    """
    grouped = require_groups(module, "a phase")
    chosen = {(leaf.group, leaf.name) for leaf in leaves}
    picked = {group: [parameter for name, parameter in members if (group, name) in chosen]
              for group, members in grouped.groups()}  # fmt: skip
    whole = [group for group, members in grouped.groups() if len(picked[group]) == len(members)]
    if all(group in whole or not members for group, members in picked.items()):
        grouped.train_groups([group for group in whole if picked[group]])
        return
    set_trainable(module, [parameter for members in picked.values() for parameter in members])
    module.train(module.training)


def cut_groups(module: Grouped, layout: Layout, cuts: Sequence[Selector]) -> list[tuple[str, NamedParameters]]:
    """Return every parameter of a module exactly once, by the name of its LR, from input to output."""
    labels = {(leaf.group, leaf.name): label for leaf, label in labels_of(layout, cuts).items()}
    result: dict[str, list[tuple[str, nn.Parameter]]] = {}
    for group, members in module.groups():
        for name, parameter in members:
            result.setdefault(labels[group, name], []).append((name, parameter))
    return list(result.items())
