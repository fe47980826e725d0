"""The places where features are taken from a backbone: which layer, and how its map or tokens become one vector."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from transferkit.core.errors import ConfigError, did_you_mean
from transferkit.models.backbones.interface import Backbone
from transferkit.models.dense.linear import column_levels
from transferkit.models.freezing import evaluation_mode

__all__ = [
    "ALL",
    "CELLS",
    "LAST_CELLS",
    "MOST_PLACES",
    "POOLED",
    "POOLS",
    "PYRAMID_CELLS",
    "Tap",
    "cell_maps",
    "cells",
    "find_taps",
    "places",
    "pool_maps",
]

POOLED: Final = "pooled"
"""The penultimate layer: what the backbone hands to a head."""

ALL: Final = "all"
"""Every stage, then the penultimate layer."""

POOLS: Final = ("avg", "max", "avgmax", "cls")

OWN: Final = "own"

CELLS: Final = "cells"
"""Not one vector per picture but those of the `places` of a map, one after the other."""

MOST_PLACES: Final = 64
"""Places of a map that are cells, at most. It is a part of what `CELLS` means in a store: another number, another name.
"""


@dataclass(frozen=True)
class Tap:
    """One place features are taken from.

    Attributes:
        layer: ``"pooled"`` or the name of a stage, such as ``"layer3"``.
        pool: ``"avg"``, ``"max"``, ``"avgmax"`` (both, 2 C wide), ``"cls"`` (the first token), ``"own"``: the
            backbone's own pooling and what it has behind it; or ``"cells"``: K C wide, for heads that answer for
            pixels.
    """

    layer: str
    pool: str


LAST_CELLS: Final = Tap(POOLED, CELLS)
"""The cells of the last map."""

PYRAMID_CELLS: Final = Tap("pyramid", CELLS)
"""The cells of the finest map that a hypercolumn joins, each with what all of them know of its middle."""


def find_taps(backbone: Backbone, layer: str = POOLED, pool: str | None = None) -> tuple[Tap, ...]:
    """Return the places that `layer` names, from input to output.

    Args:
        backbone: The backbone.
        layer: ``"pooled"``; a stage by its name (``"layer3"``, ``"blocks.5"``) or number (``"stage3"``, from 1);
            or ``"all"``.
        pool: One of `POOLS`. Default: the backbone's own for the penultimate layer, the average for stages.

    Raises:
        ConfigError: There is no such layer, or it cannot be pooled that way.
    """
    if pool == CELLS:
        raise ConfigError(
            f"pool {CELLS!r} gives many vectors per picture, and features are one - use avg, max or avgmax"
        )
    if pool is not None and pool not in POOLS:
        raise ConfigError(f"unknown pool {pool!r}.{did_you_mean(pool, POOLS)} Known: {', '.join(POOLS)}")
    if pool == "cls" and not backbone.prefix_tokens:
        raise ConfigError(f"pool 'cls' needs a class token, which {backbone.name} has not - use avg, max or avgmax")
    if layer in (POOLED, ALL) and pool is not None and backbone.map_channels is None:
        raise ConfigError(f"{backbone.name} has no one feature map to pool by {pool!r} - leave the pool out")
    stages = list(backbone.stages())
    pooled = Tap(POOLED, pool or OWN)
    if layer == POOLED:
        return (pooled,)
    refusals = _refusals(backbone)
    if layer == ALL:
        return (*(Tap(name, pool or "avg") for name in stages if refusals[name] is None), pooled)
    numbered = re.fullmatch(r"stage(\d+)", layer)
    if numbered and layer not in stages and 1 <= int(numbered[1]) <= len(stages):
        layer = stages[int(numbered[1]) - 1]
    if layer not in stages:
        known = [POOLED, *(f"stage{number}" for number in range(1, len(stages) + 1)), *stages, ALL]
        raise ConfigError(
            f"{backbone.name} has no layer {layer!r}.{did_you_mean(layer, known)} Known: {POOLED}, "
            f"stage1 to stage{len(stages)} ({', '.join(stages)}), {ALL}"
        )
    if refusals[layer] is not None:
        raise ConfigError(
            f"layer {layer!r} of {backbone.name} {refusals[layer]}, expected a feature map or tokens - take {ALL}"
        )
    return (Tap(layer, pool or "avg"),)


def _refusals(backbone: Backbone) -> dict[str, str | None]:
    """Return, by stage, why no features can be taken from it, or ``None`` where they can; by a dry forward."""
    stages = backbone.stages()
    refusals: dict[str, str | None] = dict.fromkeys(stages, "is not called as one module")

    def listen(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            fits = isinstance(output, Tensor) and output.ndim in (2, 3, 4) and output.is_floating_point()
            refusals[name] = None if fits else f"returns {type(output).__name__}"

        return hook

    handles = [module.register_forward_hook(listen(name)) for name, module in stages.items()]
    try:
        with evaluation_mode(backbone), torch.no_grad():
            backbone(torch.zeros(1, *backbone.data_config.input_shape))
    finally:
        for handle in handles:
            handle.remove()
    return refusals


def pool_maps(maps: Tensor, pool: str, *, prefix_tokens: int = 0) -> Tensor:
    """Return one vector per picture.

    Args:
        maps: Feature maps ``(B, C, H, W)``, tokens ``(B, N, C)``, or vectors ``(B, C)``, returned as they are.
        pool: One of `POOLS`.
        prefix_tokens: Class and register tokens, left out of averages and maxima.

    Returns:
        ``(B, C)``, or ``(B, 2 C)`` for ``"avgmax"``.
    """
    if maps.ndim == 2:
        return maps
    if pool == "cls":
        return maps[:, 0]
    places = maps.flatten(2).transpose(1, 2) if maps.ndim == 4 else maps[:, prefix_tokens:]
    if pool == "avg":
        return places.mean(dim=1)
    if pool == "max":
        return places.amax(dim=1)
    return torch.cat((places.mean(dim=1), places.amax(dim=1)), dim=1)


def places(height: int, width: int) -> Tensor:
    """Return the places of a map that are cells, ``(K,) int64``, ascending; they are counted row by row.

    All of them where there are no more than `MOST_PLACES`. Else a part that lies evenly and follows from the size of
    the map alone: the lowest of the mask of Roberts 2018 ("The Unreasonable Effectiveness of Quasirandom Sequences",
    section on dithering), whose steps are powers of the plastic number, here over 2**32, so that every machine has the
    same.

    Args:
        height: Of the map, at least 1.
        width: Likewise.
    """
    everything = torch.arange(height * width)
    if len(everything) <= MOST_PLACES:
        return everything
    rows, columns = everything // width, everything % width
    order = (rows * _ROW_STEP + columns * _COLUMN_STEP) % (1 << 32)
    return order.argsort(stable=True)[:MOST_PLACES].sort().values


def cell_maps(backbone: Backbone, tap: Tap, images: Tensor) -> list[Tensor]:
    """Return the maps ``(B, C, h, w)`` that cells are of, from fine to coarse: the first one's places count.

    Args:
        backbone: The backbone.
        tap: `LAST_CELLS` or `PYRAMID_CELLS`.
        images: ``(B, 3, H, W) float32, normalised``.

    Raises:
        BackboneError: The backbone has no such maps.
    """
    if tap == LAST_CELLS:
        return [backbone.forward_last_map(images)]
    return list(backbone.forward_pyramid(images)[-len(column_levels(backbone.pyramid())) :])


def cells(maps: Sequence[Tensor], chosen: Tensor) -> Tensor:
    """Return what maps have at some places of the first one, ``(B, K C)``: of others as they are enlarged bilinearly.

    Args:
        maps: ``(B, C, h, w)`` each.
        chosen: ``(K,)``, see `places`.
    """
    height, width = maps[0].shape[2:]
    middles = torch.stack((chosen % width * 2 + 1 - width, chosen // width * 2 + 1 - height), dim=1).float()
    grid = (middles / middles.new_tensor((width, height)))[None, :, None].expand(len(maps[0]), -1, -1, -1)
    columns = [maps[0].float().flatten(2)[:, :, chosen]]
    columns += [
        functional.grid_sample(level.float(), grid, padding_mode="border", align_corners=False).squeeze(3)
        for level in maps[1:]
    ]
    return torch.cat(columns, dim=1).transpose(1, 2).flatten(1)


_COLUMN_STEP, _ROW_STEP = 3242174889, 2447445414
"""The inverse of the plastic number, and its square, times 2**32."""
