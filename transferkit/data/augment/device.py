"""Augmentation of whole batches on the device that they are on: crop, flip, turn and colours, by draws of the CPU.

It shows what albumentations shows of the same draws, step by step, rounded to whole levels where that rounds. What is
left are roundings: of OpenCV's weights where a side grows, of its hues of 8 bits, and, on a GPU, of half precision in
the averages of the crop. The tests of this module have the bounds: mostly below a tenth of a level on average.

Nothing here waits for the device, and nothing counts pictures one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from transferkit.data.augment.draws import HUES, JITTER
from transferkit.data.augment.packed import Packed

__all__ = ["shown"]

MOST: Final = 1 << 28
"""Bytes of crops that are brought to the target at once, each on a canvas of the largest."""

_GREY: Final = (0.299, 0.587, 0.114)
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(len(JITTER))
_LANCZOS: Final = 4


def shown(batch: Packed) -> Tensor:
    """Return the augmented pictures ``(B, 3, h, w) float32`` of a batch, RGB, whole numbers in 0..255."""
    with torch.no_grad(), torch.autocast(batch.device.type, enabled=False):
        images = torch.cat([_cropped(batch, part) for part in _parts(batch)])
        if batch.warps:
            images = _warped(images, batch.matrices).round_()
        return _jittered(images, batch) if batch.jitters else images


def _parts(batch: Packed) -> Iterator[slice]:
    """Yield stretches of a batch whose crops fit into `MOST` together, on canvases of the largest."""
    height, width = (max(size[side] for size in batch.sizes) for side in (0, 1))
    count = max(1, MOST // (3 * height * width))
    yield from (slice(first, first + count) for first in range(0, len(batch), count))


def _cropped(batch: Packed, part: slice) -> Tensor:
    """Return crops, mirrored or not, at the target's size: areas are averaged as `images.resize.resize` does."""
    sizes, spans = batch.sizes[part], batch.spans[part]
    height, width = (max(size[side] for size in sizes) for side in (0, 1))
    starts, heights, widths = batch.places[part].unbind(1)
    tops, lefts, rows_shown, columns_shown = batch.frames[part].unbind(1)
    # Rows of all crops, each as long as the longest: what is behind the end of a shorter one weighs nothing.
    rows = torch.arange(height, device=batch.device).clamp(max=(heights - 1)[:, None])
    places = starts[:, None] + rows * (3 * widths)[:, None]
    length = 3 * width
    every = batch.pixels.as_strided((len(batch.pixels) - length + 1, length), (1, 1))
    precise = torch.float16 if batch.device.type == "cuda" else torch.float32
    canvas = every.index_select(0, places.flatten()).view(len(sizes), height, length).to(precise)
    grows = [any(size[side] < span[side] for size, span in zip(sizes, spans, strict=True)) for side in (0, 1)]
    kernels = [batch.interpolation if grow else None for grow in grows]
    down = _weights(heights, height, batch.target[0], tops, rows_shown, kernels[0])
    across = _weights(widths, width, batch.target[1], lefts, columns_shown, kernels[1])
    across = torch.where(batch.flips[part][:, None, None], across.flip(1), across)
    low = torch.bmm(down.to(precise), canvas).view(len(sizes), batch.target[0], width, 3)
    low = low.permute(0, 3, 1, 2).reshape(len(sizes), 3 * batch.target[0], width)
    images = torch.bmm(low, across.to(precise).transpose(1, 2)).float()
    images = images.view(len(sizes), 3, *batch.target).clamp_(0, 255).round_()
    if all(span == batch.target for span in spans):
        return images
    covered = down.sum(2).round()[:, None, :, None] * across.sum(2).round()[:, None, None, :]
    ground = images.new_tensor(batch.ground)[None, :, None, None]
    return torch.where(covered > 0, images, ground)


def _weights(sizes: Tensor, most: int, target: int, starts: Tensor, spans: Tensor, interpolation: str | None) -> Tensor:
    """Return what each place of a crop's side weighs for each place of the target's: ``(B, target, most) float32``.

    Args:
        sizes: ``(B,) int64``, of the crops' sides.
        most: The largest.
        target: Size of the target's side.
        starts: ``(B,) int64``: the first place there that each crop has; those beside a crop weigh nothing.
        spans: ``(B,) int64``: how many it has.
        interpolation: For sides that grow; ``None`` where none does.
    """
    scale = (sizes / spans)[:, None, None]
    at = torch.arange(target, device=sizes.device, dtype=torch.float32)[None, :, None] - starts[:, None, None]
    beside = (at < 0) | (at >= spans[:, None, None])
    place = torch.arange(most, device=sizes.device, dtype=torch.float32)
    inside = torch.minimum((at + 1) * scale, place + 1) - torch.maximum(at * scale, place)
    weights = (inside.clamp_(min=0) / scale).masked_fill_(beside, 0.0)
    if interpolation is None:
        return weights
    centre = (at + 0.5) * scale - 0.5
    first, offsets = _taps(interpolation)
    base = (centre + first).floor()
    taps = [_kernel(interpolation, centre - base - offset) for offset in offsets]
    total = torch.stack(taps).sum(0)
    grown = torch.zeros_like(weights)
    for offset, tap in zip(offsets, taps, strict=True):
        nearest = (base + offset).clamp(min=0).minimum((sizes - 1)[:, None, None])  # the border goes on as it ends
        grown += torch.where(place == nearest, tap / total, 0.0)
    return torch.where((sizes < spans)[:, None, None], grown.masked_fill_(beside, 0.0), weights)


def _taps(interpolation: str) -> tuple[float, range]:
    """Return what makes of a place the first one whose floor counts, and which ones from there do."""
    reach = {"nearest": 0, "bilinear": 1, "bicubic": 2, "lanczos": _LANCZOS}[interpolation]
    return (0.5, range(1)) if not reach else (0.0, range(1 - reach, 1 + reach))


def _kernel(interpolation: str, distance: Tensor) -> Tensor:
    """Return OpenCV's weight of a pixel at a distance."""
    far = distance.abs()
    if interpolation == "nearest":
        return torch.ones_like(far)
    if interpolation == "bilinear":
        return (1 - far).clamp(min=0)
    if interpolation == "bicubic":
        sharp = -0.75
        near = ((sharp + 2) * far - (sharp + 3)) * far * far + 1
        return torch.where(far <= 1, near, ((sharp * far - 5 * sharp) * far + 8 * sharp) * far - 4 * sharp)
    return torch.where(far < _LANCZOS, torch.sinc(far) * torch.sinc(far / _LANCZOS), 0.0)


def _warped(images: Tensor, matrices: Tensor) -> Tensor:
    """Return pictures seen through `Draw.matrix`, between four pixels; borders are mirrored."""
    height, width = images.shape[2:]
    down, across = torch.meshgrid(
        torch.arange(height, device=images.device, dtype=torch.float32),
        torch.arange(width, device=images.device, dtype=torch.float32),
        indexing="ij",
    )
    points = torch.stack([across, down, torch.ones_like(down)], dim=-1).view(-1, 3)
    places = points @ matrices.transpose(1, 2)
    x, y, depth = places.unbind(-1)
    spans = [2 / max(side - 1, 1) for side in (width, height)]
    grid = torch.stack([x / depth * spans[0] - 1, y / depth * spans[1] - 1], dim=-1).view(-1, height, width, 2)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=True)


def _jittered(images: Tensor, batch: Packed) -> Tensor:
    """Change brightness, contrast, saturation and hue, in each picture's own order."""
    for slot in range(len(JITTER)):
        part = batch.order[:, slot, None]
        factor = torch.where(part == _HUE, 1.0, batch.factors.gather(1, part))[:, :, None, None]
        rest = 1 - factor
        grey = _grey(images)
        mean = grey.mean(dim=(2, 3), keepdim=True)
        part = part[:, :, None, None]
        # OpenCV rounds what it blends with grey; albumentations drops the fractions of what it multiplies by a table.
        level = torch.where(part == _CONTRAST, mean * rest, 0.0)
        level = level + torch.where(part == _SATURATION, 0.5, 0.0)
        other = torch.addcmul(level, grey, torch.where(part == _SATURATION, rest, 0.0))
        images = images.mul(factor).add_(other).clamp_(0, 255).floor_()
        if len(batch.hued[slot]):
            rows = batch.hued[slot]
            steps = batch.factors[:, 3].index_select(0, rows)[:, None, None]
            images.index_copy_(0, rows, _hue_moved(images.index_select(0, rows), steps))
    return images


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images[:, :1], images[:, 1:2], images[:, 2:]
    return (red * _GREY[0]).add_(green, alpha=_GREY[1]).add_(blue, alpha=_GREY[2]).round_()


def _hue_moved(images: Tensor, steps: Tensor) -> Tensor:
    """Move hues by steps of 2 degrees, by way of OpenCV's 8 bits of hue and of saturation."""
    red, green, blue = images.unbind(1)
    value = images.amax(1)
    chroma = value - images.amin(1)
    span = chroma.clamp(min=1)
    hue = torch.where(value == green, 2 + (blue - red) / span, 4 + (red - green) / span)
    hue = torch.where(value == red, (green - blue) / span, hue)
    hue = ((hue * (HUES / 6) + 0.5).floor_() + steps).remainder_(HUES).mul_(6 / HUES)
    share = (chroma * 255 / value.clamp(min=1) + 0.5).floor_() / 255
    top = value * share
    channels = []
    for shift in (5, 3, 1):
        turn = (hue + shift).remainder_(6)
        channels.append(value - top * torch.minimum(turn, 4 - turn).clamp_(0, 1))
    return torch.stack(channels, dim=1).floor_()
