"""A pyramid from any backbone: the last feature map at each stride, measured, not looked up by family."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["LAST", "Level", "as_map", "choose_levels", "finer_stages", "recorded"]

LAST = ""
"""Name of the level that is what `Backbone.forward_maps` returns."""


@dataclass(frozen=True)
class Level:
    """One feature map of a pyramid.

    Attributes:
        name: The stage of the backbone whose output it is; `LAST` for the last feature map.
        stride: Pixels of the picture for one position of the map, along each side; at least 1. Rounded, for networks
            whose convolutions do not pad.
        channels: Of the map.
    """

    name: str
    stride: int
    channels: int


def as_map(value: object, image: tuple[int, int], *, channels_last: bool, prefix_tokens: int) -> Tensor | None:
    """Return what a stage gave as a feature map ``(B, C, h, w)``; ``None`` where it is none.

    Args:
        value: Maps ``(B, C, h, w)`` or ``(B, h, w, C)``, or tokens ``(B, N, C)``, of which the patches are laid out as
            the picture's sides ask for.
        image: Height and width of the picture.
        channels_last: Whether maps are ``(B, h, w, C)``; where the sides of the picture say the opposite, they count.
        prefix_tokens: Class and register tokens before those of patches.
    """
    if not isinstance(value, Tensor):
        return None
    if value.ndim == 4:
        either = (value.permute(0, 3, 1, 2), value) if channels_last else (value, value.permute(0, 3, 1, 2))
        return next((maps for maps in either if len(set(_strides(maps, image))) == 1), None)
    if value.ndim != 3 or value.shape[1] <= prefix_tokens:
        return None
    tokens = value[:, prefix_tokens:]
    # The patches are square: as many along a side as the picture has of their side.
    side = round((image[0] * image[1] / tokens.shape[1]) ** 0.5)
    rows, columns = image[0] // max(side, 1), image[1] // max(side, 1)
    if rows * columns != tokens.shape[1]:
        return None
    return tokens.transpose(1, 2).reshape(len(tokens), tokens.shape[2], rows, columns)


def choose_levels(maps: Mapping[str, Tensor], image: tuple[int, int]) -> tuple[Level, ...]:
    """Return the last map at each stride, from fine to coarse.

    Args:
        maps: By name, ``(1, C, h, w)`` each, in the order in which they were computed.
        image: Height and width of the picture they are of.

    """
    levels: dict[int, Level] = {}
    for name, value in maps.items():
        stride = _strides(value, image)[0]
        if levels and stride < max(levels):
            continue  # a branch that goes back to fine maps: the trunk only gets coarser
        levels[stride] = Level(name, stride, int(value.shape[1]))
    return tuple(levels[stride] for stride in sorted(levels))


def finer_stages(network: nn.Module) -> dict[str, nn.Module]:
    """Return what a network's sequences hold, for one whose layer groups are too coarse to be stages."""
    modules = dict(network.named_children())
    for name, module in list(modules.items()):
        if isinstance(module, nn.Sequential | nn.ModuleList):
            modules |= {f"{name}.{key}": child for key, child in module.named_children()}
    return modules


def _strides(maps: Tensor, image: tuple[int, int]) -> tuple[int, int]:
    """Return pixels of the picture for one position of maps ``(B, C, h, w)``, along each side, rounded."""
    # Under torch.jit.trace sides are tensors; those of a network are fixed.
    return round(int(image[0]) / int(maps.shape[2])), round(int(image[1]) / int(maps.shape[3]))


@contextmanager
def recorded(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, object]]:
    """Keep what modules return, by name, in the order in which they finish, for the time of the block."""
    outputs: dict[str, object] = {}

    def keeper(name: str) -> torch.utils.hooks.RemovableHandle:
        def keep(module: nn.Module, args: object, output: object) -> None:
            outputs.pop(name, None)  # of a module that runs twice the second place counts
            outputs[name] = output

        return modules[name].register_forward_hook(keep)

    handles = [keeper(name) for name in modules]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
