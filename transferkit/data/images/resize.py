"""Crop and resize pictures to the size a network takes: pure functions on arrays, for any size from 1x1."""

from __future__ import annotations

import math
import random
from typing import Any, Final, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from transferkit.core.errors import ConfigError, did_you_mean, gather
from transferkit.core.records import CROP_MODES, DataConfig, Frame
from transferkit.core.targets import IGNORED
from transferkit.data.images.channels import Pixels, shaped
from transferkit.data.images.windows import cut, window_at

__all__ = [
    "INTERPOLATIONS",
    "check_config",
    "fit",
    "fit_boxes",
    "fit_mask",
    "frame",
    "mean_colour",
    "random_box",
    "resize",
    "resize_mask",
]

_AT_ONCE: Final = 4
"""Channels that are resized together."""

_Numbers = TypeVar("_Numbers", bound=npt.NDArray[Any])

INTERPOLATIONS: dict[str, int] = {
    "nearest": cv2.INTER_NEAREST_EXACT,  # INTER_NEAREST samples half a pixel off
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "lanczos": cv2.INTER_LANCZOS4,
}


def fit(image: Pixels, config: DataConfig, *, whole: tuple[int, int] | None = None, part: int = 0) -> Pixels:
    """Show a picture as in evaluation, by `DataConfig.crop_mode`.

    - ``"center"``: the box in the middle that has the target's aspect ratio and ``crop_pct`` of the sides of the
      largest such box, resized. Cropping first gives what resize-then-centre-crop gives, up to rounding, and cannot
      blow up an extreme picture (20000x8) on the way.
    - ``"squash"``: the whole picture, stretched.
    - ``"pad"``: the whole picture on its `frame`, in the middle of the mean colour.
    - ``"tile"``: one of its windows, see `transferkit.data.images.windows`; of the mean colour beside the picture.

    Args:
        image: ``(H, W, C)`` uint8.
        config: The target.
        part: Number of the window.
        whole: Height and width of the picture's file, upright, where `image` was decoded at a fraction of it: rounding
            may move the frame by a pixel.

    Returns:
        ``(h, w, C)`` uint8 at ``config.image_size``; a new, contiguous array.
    """
    interpolation = INTERPOLATIONS[config.interpolation]
    if config.tiled:
        return cut(image, window_at(_size(image), config, part), config.image_size, mean_colour(config))
    if config.crop_mode == "pad":
        place = frame(whole or _size(image), config)
        canvas: Pixels = np.empty(config.shown_shape, dtype=np.uint8)
        canvas[:] = mean_colour(config)
        canvas[place.slices] = resize(image, (place.height, place.width), interpolation)
        return canvas
    return resize(_box(image, config), config.image_size, interpolation)


def fit_mask(
    mask: _Numbers, config: DataConfig, *, decoded: tuple[int, int] | None = None, fill: int = IGNORED, part: int = 0
) -> _Numbers:
    """Bring class indices, or numbers of objects, to where `fit` brings their pixels, each by the nearest one.

    Of a window only its core is brought: of what lies around it other windows decide.

    Args:
        mask: ``(H, W)`` uint8 or uint16 of the whole picture.
        config: The target.
        decoded: Height and width of the pixels that `fit` gets; as large as the mask when ``None``.
        fill: What stands beside the picture, or the core.
        part: Number of the window.

    Returns:
        ``(h, w)`` at ``config.image_size``; a new, contiguous array.
    """
    if config.tiled:
        window = window_at(_size(mask), config, part)
        canvas = np.full(config.image_size, fill, dtype=mask.dtype)
        canvas[window.frame.slices] = mask[window.core.slices]
        return canvas  # type: ignore[return-value]
    if config.crop_mode == "pad":
        place = frame(_size(mask), config)
        canvas = np.full(config.image_size, fill, dtype=mask.dtype)
        canvas[place.slices] = resize_mask(mask, (place.height, place.width))
        return canvas  # type: ignore[return-value]
    return resize_mask(_box(resize_mask(mask, decoded or _size(mask)), config), config.image_size)


def fit_boxes(boxes: npt.NDArray[np.float64], size: tuple[int, int], config: DataConfig) -> npt.NDArray[np.float64]:
    """Bring boxes to where `fit` brings what they hold, cut at the target's edges.

    Args:
        boxes: ``(n, 4)``: left, top, right, bottom in pixels of the picture.
        size: Height and width of the picture.
        config: The target.

    Returns:
        ``(n, 4)`` at ``config.image_size``; without area where nothing is seen of them.
    """
    height, width = config.image_size
    if config.crop_mode == "center":
        rows, columns = _inner(size, config)
        top, left, shown = rows.start, columns.start, (rows.stop - rows.start, columns.stop - columns.start)
        place = Frame(0, 0, height, width)
    else:
        top, left, shown, place = 0, 0, size, frame(size, config)
    factors = np.array([place.width / shown[1], place.height / shown[0]] * 2)
    moved = (boxes - np.array([left, top] * 2)) * factors + np.array([place.left, place.top] * 2)
    fitted: npt.NDArray[np.float64] = moved.clip(0, np.array([width, height, width, height], dtype=np.float64))
    return fitted


def mean_colour(config: DataConfig) -> tuple[int, ...]:
    """Return what stands beside a picture: the colour that is 0 to the network, but for rounding."""
    return tuple(round(255 * level) for level in config.mean)


def frame(size: tuple[int, int], config: DataConfig) -> Frame:
    """Return where the whole of a picture lies on the network's input.

    Args:
        size: Height and width of the picture, upright.
        config: Of ``crop_mode`` ``"pad"`` or ``"squash"``; a crop does not show the whole.
    """
    target_height, target_width = config.image_size
    if config.crop_mode == "squash":
        return Frame(0, 0, target_height, target_width)
    if config.crop_mode != "pad":
        raise ValueError(f"crop_mode {config.crop_mode!r} does not show whole pictures")
    scale = min(target_height / size[0], target_width / size[1])
    height, width = (min(max(1, round(side * scale)), most) for side, most in zip(size, config.image_size, strict=True))
    return Frame((target_height - height) // 2, (target_width - width) // 2, height, width)


def resize(image: Pixels, size: tuple[int, int], interpolation: int) -> Pixels:
    """Resize, averaging areas along the sides that shrink and interpolating along those that grow.

    Args:
        image: ``(H, W, C)`` uint8.
        size: ``(height, width)`` of the result, in pixels.
        interpolation: OpenCV's code, one of `INTERPOLATIONS`; for enlarging only.

    Returns:
        ``(height, width, C)`` uint8; a new, contiguous array.
    """
    height, width = size
    if image.shape[2:] > (_AT_ONCE,):  # OpenCV's Lanczos and nearest filters take no more
        parts = [resize(image[..., at : at + _AT_ONCE], size, interpolation)
                 for at in range(0, image.shape[2], _AT_ONCE)]  # fmt: skip
        return np.ascontiguousarray(np.concatenate(parts, axis=2))
    result = image
    shrunk = (min(image.shape[0], height), min(image.shape[1], width))
    if shrunk != image.shape[:2]:  # OpenCV's INTER_AREA averages only if no side grows, hence the two steps
        result = cv2.resize(result, shrunk[::-1], interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    if shrunk != size:
        result = cv2.resize(result, (width, height), interpolation=interpolation)  # type: ignore[assignment]
    if result is image:
        return image.copy(order="C")
    return shaped(result) if image.ndim > 2 else result  # own steps of augmentation may leave no channels


def resize_mask(mask: _Numbers, size: tuple[int, int]) -> _Numbers:
    """Resize class indices or numbers of objects ``(H, W)``, each pixel by its nearest one; a new, contiguous array."""
    if size == mask.shape:
        return mask.copy(order="C")
    # INTER_NEAREST samples half a pixel off
    return cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)  # type: ignore[return-value]


def random_box(
    height: int, width: int, *, scale: tuple[float, float], ratio: tuple[float, float], rng: random.Random
) -> tuple[int, int, int, int]:
    """Draw the box of a random resized crop (Szegedy et al. 2015, "Going deeper with convolutions", section 6).

    Unlike the usual fallback, a picture too long or too flat for `ratio` gives the largest box of the nearest ratio at
    a random place, not always the centre. The box is never empty.

    Args:
        height: Of the picture, in pixels, at least 1.
        width: Of the picture, in pixels, at least 1.
        scale: Range of the box's share of the picture's area, in (0, 1].
        ratio: Range of width / height, drawn log-uniformly.
        rng: Where the randomness comes from.

    Returns:
        ``(left, top, right, bottom)`` in pixels; right and bottom exclusive.
    """
    for _ in range(10):
        area = rng.uniform(*scale) * height * width
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            break
    else:
        aspect = min(max(width / height, ratio[0]), ratio[1])
        box_width = min(width, max(1, round(height * aspect)))
        box_height = min(height, max(1, round(width / aspect)))
    left, top = rng.randint(0, width - box_width), rng.randint(0, height - box_height)
    return left, top, left + box_width, top + box_height


def check_config(config: DataConfig) -> None:
    """Refuse values that cannot be meant: all problems in one `ConfigError`."""
    problems = []
    if min(config.image_size) < 1:
        problems.append(f"image_size is {config.image_size}, expected (height, width) of at least 1 pixel")
    if not 0 < config.crop_pct <= 1:
        problems.append(f"crop_pct is {config.crop_pct}, expected a share of the picture in (0, 1]")
    for field, known in (("interpolation", tuple(INTERPOLATIONS)), ("crop_mode", CROP_MODES)):
        value = getattr(config, field)
        if value not in known:
            problems.append(f"unknown {field} {value!r}.{did_you_mean(str(value), known)} Known: {', '.join(known)}")
    problems += config.decoding.problems()
    if problems:
        raise ConfigError(gather(problems))


def _size(image: npt.NDArray[Any]) -> tuple[int, int]:
    return image.shape[0], image.shape[1]


def _box(image: _Numbers, config: DataConfig) -> _Numbers:
    """View the part of the picture that is shown, by a crop mode that fills the target."""
    if config.crop_mode == "squash":
        return image
    return image[_inner(_size(image), config)]  # type: ignore[return-value]


def _inner(size: tuple[int, int], config: DataConfig) -> tuple[slice, slice]:
    """Return rows and columns of the box in the middle: equal margins keep it centred, each side is within a pixel."""
    target_height, target_width = config.image_size
    unit = config.crop_pct * min(size[0] / target_height, size[1] / target_width)
    height, width = size
    top = min(round((height - unit * target_height) / 2), (height - 1) // 2)
    left = min(round((width - unit * target_width) / 2), (width - 1) // 2)
    return slice(top, height - top), slice(left, width - left)
