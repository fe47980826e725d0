"""Layer groups: a backbone's parameters from input to output, each exactly once, under names a user can say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

__all__ = ["LEAST", "STEM", "LayerGroup", "child_groups", "named_groups"]

NamedParameters = tuple[tuple[str, nn.Parameter], ...]

# A backbone whose classifier was cut off may keep a norm under this name, which means the new head everywhere else.
_RESERVED = "head"

STEM = "stem"
"""The first group, where it is not one module or is called so."""


LEAST = 4
"""Groups of a library's network, where its layers can be told apart: with fewer there is nothing to thaw gradually."""


@dataclass(frozen=True)
class LayerGroup:
    """One group of layers (fastai's word): the unit of freezing and of layer-wise learning rates.

    Attributes:
        name: Unique within the backbone, such as ``stem``, ``layer1``, ``blocks.3``; never ``head``.
        parameters: Names relative to the backbone, with their parameters, in order of registration.
    """

    name: str
    parameters: NamedParameters


def named_groups(
    module: nn.Module, groups: Sequence[Sequence[str]], *, prefix: str = "", least: int = 1
) -> tuple[LayerGroup, ...]:
    """Name groups of parameters after the modules they make up.

    A group is called by the shortest module path that holds most of its weights and nothing of another group
    (``layer1``, ``blocks.3``); the first group is ``stem`` when it has several top-level modules, or parameters of the
    root.

    Args:
        module: The network.
        groups: Parameter names of `module`, from input to output. A parameter that is in none of them joins the
            group of the parameter registered before it; empty groups are left out.
        prefix: Put in front of the parameter names, not of the group names.
        least: How many groups there shall be; with fewer, the largest sequence of layers is opened.
    """
    owner = _owners(module, groups)
    while len(set(owner.values())) < least and (finer := _opened(module, owner)) is not None:
        owner = finer
    order = sorted(set(owner.values()))
    parameters = dict(module.named_parameters())
    names: list[str] = []
    for position in order:
        name = _group_name(position, owner, parameters, first=position == order[0])
        names.append(name if name not in names else f"{name}_{position}")
    return tuple(
        LayerGroup(name, tuple((prefix + key, parameters[key]) for key in parameters if owner[key] == position))
        for name, position in zip(names, order, strict=True)
    )


def child_groups(module: nn.Module, *, prefix: str = "", least: int = 1) -> tuple[LayerGroup, ...]:
    """Make a group of each top-level child with parameters; those of the root itself come first, as ``stem``.

    Prefix and least are those of `named_groups`.
    """
    direct = [name for name, _ in module.named_parameters(recurse=False)]
    children = [[f"{name}.{key}" for key, _ in child.named_parameters()] for name, child in module.named_children()]
    return named_groups(module, [direct, *children], prefix=prefix, least=least)


def _owners(module: nn.Module, groups: Sequence[Sequence[str]]) -> dict[str, int]:
    """Map every parameter name to the position of its group."""
    listed = {name: position for position, names in enumerate(groups) for name in names}
    owner: dict[str, int] = {}
    nearest = min(listed.values(), default=0)
    for name, _ in module.named_parameters():
        nearest = listed.get(name, nearest)
        owner[name] = nearest
    return owner


def _opened(module: nn.Module, owner: dict[str, int]) -> dict[str, int] | None:
    """Divide the largest group that has a sequence of layers in it; ``None`` where none has."""
    parameters = dict(module.named_parameters())
    sizes = {group: sum(parameters[name].numel() for name in owner if owner[name] == group) for group in owner.values()}
    for group in sorted(sizes, key=lambda group: -sizes[group]):
        mine = [name for name in owner if owner[name] == group]
        sequence = _sequence(module, mine, parameters)
        if sequence is None:
            continue
        # What is registered before the sequence is a part of its own, and what comes after goes with its last layer.
        parts: dict[str, list[str]] = {}
        part = ""
        for name in mine:
            if name.startswith(sequence):
                part = name[len(sequence) :].partition(".")[0]
            parts.setdefault(part, []).append(name)
        groups = [[name for name in owner if owner[name] == other] for other in sorted(sizes) if other < group]
        groups += parts.values()
        groups += [[name for name in owner if owner[name] == other] for other in sorted(sizes) if other > group]
        return _owners(module, groups)
    return None


def _sequence(module: nn.Module, names: Sequence[str], parameters: dict[str, nn.Parameter]) -> str | None:
    """Return the path, with a dot, of the sequence of layers that holds most of some parameters; ``None`` if none."""
    path, modules = "", dict(module.named_modules())
    while True:
        sizes: dict[str, int] = {}
        for name in names:
            if name.startswith(path):
                step = path + name[len(path) :].partition(".")[0]
                sizes[step] = sizes.get(step, 0) + parameters[name].numel()
        if isinstance(modules[path.removesuffix(".")], nn.Sequential | nn.ModuleList) and len(sizes) > 1:
            return path
        best = max(sizes, key=lambda step: sizes[step])
        if best in parameters:
            return None
        path = f"{best}."


def _group_name(position: int, owner: dict[str, int], parameters: dict[str, nn.Parameter], *, first: bool) -> str:
    mine = [name for name, group in owner.items() if group == position]
    others = [name for name, group in owner.items() if group != position]
    tops = {name.partition(".")[0] for name in mine}
    if first and (len(tops) > 1 or any("." not in name for name in mine)):
        return STEM
    path = ""
    while True:
        # One step down, to the child that holds most of the weights.
        sizes: dict[str, int] = {}
        for name in mine:
            if name.startswith(path):
                step = path + name[len(path) :].partition(".")[0]
                sizes[step] = sizes.get(step, 0) + parameters[name].numel()
        best = max(sizes, key=lambda step: sizes[step])
        if best in parameters or (best != _RESERVED and not any(name.startswith(f"{best}.") for name in others)):
            return best
        path = f"{best}."
