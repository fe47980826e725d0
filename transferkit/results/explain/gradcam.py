"""Grad-CAM: where in a picture the evidence for a class lies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from transferkit.core.errors import ConfigError
from transferkit.data.augment.normalise import normalise
from transferkit.data.images.decode import Pixels
from transferkit.data.images.resize import mean_colour
from transferkit.data.images.windows import cut, windows
from transferkit.models.boundary import Boundary
from transferkit.models.freezing import evaluation_mode
from transferkit.models.heads.feed import Feed, HeadInput
from transferkit.models.heads.neighbour import NeighbourHead
from transferkit.models.module import TransferModule
from transferkit.results.predict.predictor import Predictor

__all__ = ["Heat", "heat_of_windows", "heatmaps"]

BATCH = 16
"""Pictures at once."""

LAST = ""
"""Stands for the backbone's last feature map, among names of stages."""

SKEW = math.log(2)
"""Tokens are a grid of the picture when its cells are no more than twice as long as wide, as a logarithm."""

Heat = npt.NDArray[np.float32]


def heatmaps(
    predictor: Predictor, images: npt.NDArray[np.uint8], targets: Sequence[str], *, scaled: bool = True
) -> Heat:
    """Return how much each place of a picture speaks for a class, or for what else the model's task tells: Grad-CAM.

    Selvaraju et al. 2017 (*Grad-CAM*, section 3): the channels of the last feature map, each weighted by the mean
    gradient of the class's score with respect to it (eq. 1), are summed, and what is negative is cut off (eq. 2). The
    result is scaled up to the picture, and its maximum to 1. It is no finer than that feature map: 7 x 7 places of a
    ResNet at 224 pixels, 2 x 2 at 64. A map that is 0 everywhere says that no place speaks for the class.

    Where the score does not depend on the places of the last map (a transformer read at its class token: nothing is
    done with the other tokens after the last block), or where the backbone has no one last map, the output of the
    deepest stage that it does depend on takes its place: for such transformers, what the last block is given.

    The score is what the task's output part names, of a class its logit; for a nearest-neighbour head it is
    `NeighbourHead.evidence`. Of masks it is the class's mean logit over all pixels (Vinogradova et al. 2020, *Towards
    interpretable semantic segmentation via gradient-weighted class activation mapping*), for heads on the last map. A
    head on maps of several sizes is refused: its evidence goes through all of them, and the map of any one misleads.

    The model is left as it was: modes, gradients and what requires them.

    Args:
        predictor: The model.
        images: ``(B, h, w, 3) uint8``, evaluation views, as `Predictor.decode` gives them.
        targets: The class of each picture, or what else the model's spec names.
        scaled: Whether the maximum of each is 1; else they are as they were computed, and can be compared.

    Returns:
        ``(B, h, w) float32``, at least 0.

    Raises:
        ConfigError: `images` or `targets` are not as expected; or there can be no map: no part of the backbone works on
            a map of the picture, or the head has no gradient.
    """
    module, size = predictor.module, predictor.info.preprocessing.image_size
    heats = [np.zeros((0, *size), dtype=np.float32)]
    layer: str | None = None
    with evaluation_mode(module), torch.inference_mode(mode=False):
        places = _places(predictor, images, targets)
        for start in range(0, len(images), BATCH):
            part = torch.from_numpy(np.ascontiguousarray(images[start : start + BATCH])).to(predictor.device)
            batch = normalise(part, predictor.info.preprocessing)
            layer, heat = _explain(module, batch, places[start : start + BATCH].to(predictor.device), layer)
            heats.append(heat.cpu().numpy())
    heat_of = np.concatenate(heats)
    return _scaled(heat_of) if scaled else heat_of


def heat_of_windows(predictor: Predictor, pixels: Pixels, target: str) -> Heat:
    """Return the map of a picture that the model sees in windows, ``(H, W) float32`` in [0, 1]; see `heatmaps`.

    Each pixel has it of the window that decides of it, on one scale for all: the maximum of the picture is 1.

    Args:
        predictor: The model.
        pixels: ``(H, W, 3)`` uint8, the decoded picture.
        target: The class.

    Raises:
        ConfigError: As `heatmaps`.
    """
    config, size = predictor.info.preprocessing, (pixels.shape[0], pixels.shape[1])
    whole = np.zeros((1, *size), dtype=np.float32)
    todo = windows(size, config)
    while part := list(islice(todo, BATCH)):
        shown = np.stack([cut(pixels, window, config.image_size, mean_colour(config)) for window in part])
        for window, heat in zip(part, heatmaps(predictor, shown, [target] * len(part), scaled=False), strict=True):
            whole[0][window.core.slices] = heat[window.frame.slices]
    scaled: Heat = _scaled(whole)[0]
    return scaled


def _scaled(heat: Heat) -> Heat:
    """Return maps ``(B, h, w)`` whose maximum is 1, but for those that are 0 everywhere."""
    peak = heat.max(axis=(1, 2), keepdims=True, initial=0.0)
    return np.where(peak > 0, heat / np.maximum(peak, np.finfo(np.float32).tiny), 0.0).astype(np.float32)


# ---- the method -------------------------------------------------------------------------------------------------


def _explain(module: TransferModule, images: Tensor, targets: Tensor, layer: str | None) -> tuple[str | None, Tensor]:
    """Return the layer that was looked at, and the maps ``(B, h, w)``.

    Args:
        module: In eval mode.
        images: Normalised.
        targets: ``(B,)``.
        layer: That of an earlier batch, ``None`` to look for it.
    """
    size = images.shape[-2:]
    idle = False  # whether a layer was found that the score does not depend on at all
    for name in _layers(module, images) if layer is None else (layer,):
        evidence = _at_last_map(module, images, targets) if name == LAST else _at_stage(module, name, images, targets)
        if evidence is None:
            continue
        maps, gradients, depends = evidence
        idle = idle or not depends
        if gradients.any() or layer is not None:
            weights = gradients.mean(dim=(2, 3), keepdim=True)
            heat = functional.relu((weights * maps).sum(dim=1, keepdim=True))
            return name, functional.interpolate(heat, size=size, mode="bilinear", align_corners=False)[:, 0]
    if not idle:
        raise ConfigError(
            f"no heat map: no stage of {module.backbone.name} gives a map of the picture that the score depends on - "
            "explain by the nearest training pictures instead"
        )
    return None, images.new_zeros(len(images), *size)


def _layers(module: TransferModule, images: Tensor) -> Iterator[str]:
    """Yield the backbone's last map, where it has one, then the stages that give a grid, from output to input.

    Only the later half of the stages: what is early knows edges, not classes. For a head on pixels the last map alone.
    """
    if module.feed is Feed.PYRAMID:
        raise ConfigError(
            f"no heat map: the head {type(module.head).__name__} takes maps of several sizes, and no one of them holds "
            "its evidence - what it answers says where; explain by the nearest training pictures instead"
        )
    if module.feed is Feed.LAST_MAP:
        yield LAST
        return
    if module.backbone.map_channels is not None:
        yield LAST
    stages = dict(list(module.backbone.stages().items())[len(module.backbone.stages()) // 2 :])
    grids: set[str] = set()

    def listen(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(stage: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.is_floating_point() and _grid_of(output, module, images):
                grids.add(name)

        return hook

    handles = [stage.register_forward_hook(listen(name)) for name, stage in stages.items()]
    try:
        with torch.no_grad():
            module.backbone(images)
    finally:
        for handle in handles:
            handle.remove()
    yield from (name for name in reversed(stages) if name in grids)


def _at_last_map(module: TransferModule, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, bool] | None:
    """Return map, gradient, both ``(B, C, H, W)``, and whether the score depends on any part of what the layer gives.

    ``None`` where that is no grid.
    """
    with torch.no_grad():
        if module.feed is Feed.LAST_MAP:
            last = module.backbone.forward_last_map(images).float()
            return _differentiate(module, last, lambda maps: (images, maps), targets, images)
        maps = module.backbone.forward_maps(images)
    pool = (lambda maps: maps) if module.feed is Feed.MAPS else module.backbone.pool
    return _differentiate(module, maps, pool, targets, images)


def _at_stage(
    module: TransferModule, stage: str, images: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor, bool] | None:
    """Likewise for what a stage returns; ``None`` where the rest of the network cannot be run on it alone."""
    backbone = module.backbone
    boundary = Boundary(backbone, stage, backbone.forward_maps if module.feed is Feed.MAPS else backbone.forward)
    try:
        maps = boundary.reach(images)
        if not _goes_on(boundary, images[:2]):
            return None
        return _differentiate(module, maps, boundary.leave, targets, images)
    finally:
        boundary.close()


def _goes_on(boundary: Boundary, images: Tensor) -> bool:
    """Whether what comes after a stage sees nothing of the picture but this stage's output."""
    try:
        return boundary.agrees(images)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a stage that is called several times, with maps of several sizes: any error of any network
        return False


def _differentiate(
    module: TransferModule, maps: Tensor, rest: Callable[[Tensor], HeadInput], targets: Tensor, images: Tensor
) -> tuple[Tensor, Tensor, bool] | None:
    to_grid = _grid_of(maps, module, images)
    if to_grid is None:
        return None
    with torch.enable_grad():
        leaf = maps.detach().requires_grad_()
        features, head = rest(leaf), module.head
        scores = (
            head.evidence(features, targets)  # its outputs have no gradient where all neighbours agree
            if isinstance(head, NeighbourHead) and isinstance(features, Tensor)
            else module.task.output.explained(head(features).float(), targets)
        )
        score = scores.sum()  # of each picture by itself: eval mode mixes none
        if not score.requires_grad:
            raise ConfigError(
                f"no heat map: the head {type(module.head).__name__} has no gradient - explain by the nearest training "
                "pictures instead"
            )
        # Asked for this one tensor alone: none is computed for the parameters, and none is left in them.
        (gradients,) = torch.autograd.grad(score, leaf, allow_unused=True)
    gradients = torch.zeros_like(leaf) if gradients is None else torch.nan_to_num(gradients)
    return to_grid(maps.detach()).float(), to_grid(gradients).float(), bool(gradients.any())


# ---- grids ------------------------------------------------------------------------------------------------------


def _grid_of(maps: Tensor, module: TransferModule, images: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Return what makes ``(B, C, H, W)`` of such maps or tokens; ``None`` where they are no grid over the picture."""
    backbone, (height, width) = module.backbone, images.shape[-2:]

    def skew(rows: int, columns: int) -> float:
        return abs(math.log(rows * width / (columns * height)))

    if len(maps) != len(images) or 0 in maps.shape:  # windows instead of pictures
        return None
    if maps.ndim == 4:
        # `forward_maps` gives channels first always; stages give what the network works on.
        if skew(*maps.shape[2:]) <= skew(*maps.shape[1:3]):
            return lambda maps: maps
        return lambda maps: maps.permute(0, 3, 1, 2)
    if maps.ndim != 3 or maps.shape[1] <= backbone.prefix_tokens:
        return None
    fits = [
        (skew(rows, count // rows), number, prefix, rows)
        # Blocks before the class token is put in have none of the prefix.
        for number, prefix in enumerate(dict.fromkeys((backbone.prefix_tokens, 0)))
        for count in (maps.shape[1] - prefix,)
        for rows in range(1, count + 1)
        if count % rows == 0
    ]
    best = min(fits, default=None)
    if best is None or best[0] > SKEW:
        return None
    _, _, prefix, rows = best
    return lambda maps: maps[:, prefix:].transpose(1, 2).reshape(len(maps), maps.shape[2], rows, -1)


def _places(predictor: Predictor, images: npt.NDArray[np.uint8], targets: Sequence[str]) -> Tensor:
    """Return the places ``(B,)`` of targets among the names of the model's spec."""
    shape = predictor.info.preprocessing.shown_shape
    if images.dtype != np.uint8 or images.shape[1:] != shape:
        raise ConfigError(
            f"images are {images.shape} {images.dtype}, expected (B, {', '.join(map(str, shape))}) uint8 - take what "
            "Predictor.decode returns"
        )
    places = {name: place for place, name in enumerate(predictor.class_names)}
    if len(targets) != len(images) or not places.keys() >= set(targets):
        raise ConfigError(
            f"targets are {list(targets)[:5]}... for {len(images)} pictures, expected one of the model's names for each"
        )
    return torch.tensor([places[target] for target in targets], dtype=torch.int64)
