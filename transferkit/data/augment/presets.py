"""The presets of augmentation as steps of albumentations, and the steps that it has not, or has otherwise.

Whoever else needs albumentations takes it from here as `A`, and gets it without its way to the network.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from transferkit.core.records import DataConfig, Frame
from transferkit.core.targets import IGNORED
from transferkit.data.images.decode import Pixels
from transferkit.data.images.resize import (
    INTERPOLATIONS,
    fit,
    fit_boxes,
    fit_mask,
    mean_colour,
    random_box,
    resize,
    resize_mask,
)
from transferkit.data.images.windows import random_window
from transferkit.data.masks.annotation import Mask

# albumentations asks the package index for a newer version, over the network, when it is imported without this.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A  # type: ignore[import-untyped]  # the name its own documentation uses

__all__ = [
    "A",
    "Blots",
    "Elastic",
    "Fit",
    "RandomBox",
    "Step",
    "mirror_steps",
    "preset_steps",
]

Step: TypeAlias = Any  # A.BasicTransform or A.BaseCompose; albumentations carries no type marker

_MIRRORED: Mapping[str, Any] = {"border_mode": cv2.BORDER_REFLECT_101}  # no black wedge gives a rotation away


def preset_steps(name: str, config: DataConfig, *, flip: bool, objects: bool, whole: bool = False) -> list[Step]:
    """Return the steps of a preset.

    Args:
        name: One of `transferkit.data.augment.draws.AUGMENTATIONS`, but "none".
        config: Size and interpolation.
        flip: Whether a picture may be its mirror image.
        objects: Whether pictures have objects: borders are of the mean colour then, and not mirrored.
        whole: Whether crops have about the picture's own shape, and fill the target as a whole picture does.
    """
    plain = {"border_mode": cv2.BORDER_CONSTANT, "fill": mean_colour(config)}
    steps = _PRESETS[name](config, plain if objects else _MIRRORED)
    if config.channels != len("RGB"):
        steps = [step for step in map(_without_colour, steps) if step is not None]
    if whole:
        steps = [RandomPart(config, step.scale) if isinstance(step, RandomBox) else step for step in steps]
    return [step for step in steps if flip or not isinstance(step, A.HorizontalFlip)]


def mirror_steps(config: DataConfig) -> list[Step]:
    """Return the steps of the mirror image of the evaluation view."""
    return [Fit(config), A.HorizontalFlip(p=1.0)]


class Fit(A.DualTransform):  # type: ignore[misc]  # an untyped base
    """The evaluation view as a step."""

    def __init__(self, config: DataConfig) -> None:
        super().__init__(p=1.0)
        self.config = config

    def apply(self, img: Pixels, **params: Any) -> Pixels:
        """Show a picture."""
        return fit(img, self.config)

    def apply_to_mask(self, mask: Mask, *args: Any, **params: Any) -> Mask:
        """Bring a mask along."""
        numbers = mask.dtype != np.uint8
        return fit_mask(mask, self.config, fill=0 if numbers else IGNORED)

    def apply_to_keypoints(self, keypoints: npt.NDArray[Any], **params: Any) -> npt.NDArray[Any]:
        """Bring points along."""
        height, width = params["shape"][:2]
        edges = np.tile(keypoints[:, :2] + 0.5, 2)
        keypoints = keypoints.copy()
        keypoints[:, :2] = fit_boxes(edges, (height, width), self.config)[:, :2] - 0.5
        return keypoints

    def get_transform_init_args_names(self) -> tuple[str, ...]:
        """Return what `repr` shows."""
        return ("config",)


class RandomBox(A.RandomResizedCrop):  # type: ignore[misc]  # an untyped base
    """Random resized crop that takes any picture, and averages areas along every side that shrinks.

    Attributes:
        crop: The box of the last draw.
    """

    crop: tuple[int, int, int, int] | None = None

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the box."""
        height, width = params["shape"][:2]
        self.crop = random_box(height, width, scale=self.scale, ratio=self.ratio, rng=self.py_random)
        return {"crop_coords": self.crop}

    def apply(self, img: Pixels, crop_coords: tuple[int, int, int, int], **params: Any) -> Pixels:
        """Cut and resize a picture."""
        left, top, right, bottom = crop_coords
        return resize(img[top:bottom, left:right], self.size, self.interpolation)

    def apply_to_mask(self, mask: Mask, crop_coords: tuple[int, int, int, int], **params: Any) -> Mask:
        """Cut and resize a mask."""
        left, top, right, bottom = crop_coords
        return resize_mask(mask[top:bottom, left:right], self.size)

    def apply_to_keypoints(
        self, keypoints: npt.NDArray[Any], crop_coords: tuple[int, int, int, int], **params: Any
    ) -> npt.NDArray[Any]:
        """Move points, and bring those outside to the crop's edge: what lies beyond is no longer on the picture."""
        left, top, right, bottom = crop_coords
        low, high = np.array([left, top]), np.array([right, bottom])
        scale = np.array([self.size[1], self.size[0]]) / (high - low)
        keypoints = keypoints.copy()
        keypoints[:, :2] = ((keypoints[:, :2] + 0.5).clip(low, high) - low) * scale - 0.5
        return keypoints


class RandomPart(A.DualTransform):  # type: ignore[misc]  # an untyped base
    """Random crop of about the picture's own shape, which fills the target as a whole picture does in evaluation."""

    def __init__(self, config: DataConfig, scale: tuple[float, float]) -> None:
        super().__init__(p=1.0)
        self.config, self.scale = config, scale

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the box."""
        height, width = params["shape"][:2]
        ratio = (0.75 * width / height, width / height / 0.75)
        return {"crop_coords": random_box(height, width, scale=self.scale, ratio=ratio, rng=self.py_random)}

    def apply(self, img: Pixels, crop_coords: tuple[int, int, int, int], **params: Any) -> Pixels:
        """Cut a picture, and show what is left."""
        left, top, right, bottom = crop_coords
        return fit(img[top:bottom, left:right], self.config)

    def get_transform_init_args_names(self) -> tuple[str, ...]:
        """Return what `repr` shows."""
        return ("config", "scale")


class RandomWindow(A.DualTransform):  # type: ignore[misc]  # an untyped base
    """A window of the picture at about its own resolution, see `random_window`; masks alone go with it."""

    def __init__(self, config: DataConfig) -> None:
        super().__init__(p=1.0)
        self.config = config

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the window."""
        height, width = params["shape"][:2]
        part, place = random_window((height, width), self.config.image_size, self.py_random)
        return {"part": part, "place": place}

    def apply(self, img: Pixels, part: Frame, place: Frame, **params: Any) -> Pixels:
        """Show the part in its place, on the mean colour."""
        shown: Pixels = np.empty(self.config.shown_shape, dtype=np.uint8)
        shown[:] = mean_colour(self.config)
        interpolation = INTERPOLATIONS[self.config.interpolation]
        shown[place.slices] = resize(img[part.slices], (place.height, place.width), interpolation)
        return shown

    def apply_to_mask(self, mask: Mask, part: Frame, place: Frame, **params: Any) -> Mask:
        """Bring its classes there; beside them there is none."""
        shown = np.full(self.config.image_size, IGNORED, dtype=mask.dtype)
        shown[place.slices] = resize_mask(mask[part.slices], (place.height, place.width))
        return shown

    def get_transform_init_args_names(self) -> tuple[str, ...]:
        return ("config",)


class Elastic(A.ElasticTransform):  # type: ignore[misc]  # an untyped base
    """Elastic deformation that moves points, too, to parts of a pixel; albumentations 2.0.8 cuts them to whole ones."""

    def apply_to_keypoints(
        self, keypoints: npt.NDArray[Any], map_x: npt.NDArray[Any], map_y: npt.NDArray[Any], **params: Any
    ) -> npt.NDArray[Any]:
        """Solve ``q + shift(q) = p`` for each point p: the pixel at q shows what was at ``map(q)``."""
        height, width = map_x.shape
        shift_x = (map_x - np.arange(width)).astype(np.float32)
        shift_y = (map_y - np.arange(height)[:, None]).astype(np.float32)
        start = keypoints[:, :2].astype(np.float32)
        at = start.copy()
        for _ in range(8 if len(at) else 0):  # bends are gentle: each step is several times as near
            x, y = at[None, :, 0].clip(0, width - 1), at[None, :, 1].clip(0, height - 1)
            shift = [cv2.remap(part, x, y, cv2.INTER_LINEAR)[0] for part in (shift_x, shift_y)]
            at = start - np.stack(shift, axis=1)
        keypoints = keypoints.copy()
        keypoints[:, :2] = at
        return keypoints


class Blots(A.CoarseDropout):  # type: ignore[misc]  # an untyped base
    """Coarse dropout that remembers its blots.

    Attributes:
        holes: ``(n, 4)`` of the last picture: left, top, right, bottom; ``None`` where it was left as it is.
    """

    holes: npt.NDArray[Any] | None = None

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the blots."""
        draw: dict[str, Any] = super().get_params_dependent_on_data(params, data)
        self.holes = np.asarray(draw["holes"])
        return draw

    def blots(self, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
        """Return which pixels ``(h, w)`` are blotted out."""
        covered = np.zeros(size, dtype=np.bool_)
        for left, top, right, bottom in self.holes if self.holes is not None else ():
            covered[int(top) : int(bottom), int(left) : int(right)] = True
        return covered


def _light(config: DataConfig, border: Mapping[str, Any]) -> list[Step]:
    return [_crop(config, 0.8), A.HorizontalFlip(p=0.5)]


def _standard(config: DataConfig, border: Mapping[str, Any]) -> list[Step]:
    return [
        _crop(config, 0.35),
        A.HorizontalFlip(p=0.5),
        A.OneOf([A.Affine(rotate=(-12, 12), shear=(-8, 8), **border), A.Perspective((0.02, 0.06), **border)], p=0.5),
        A.ColorJitter(brightness=0.25, contrast=0.25, saturation=0.25, hue=0.03, p=0.7),
    ]


def _heavy(config: DataConfig, border: Mapping[str, Any]) -> list[Step]:
    side = min(config.image_size)
    sigma = max(1.0, side / 20)  # of the smoothing, in pixels: bends about a tenth of the picture wide
    # Smoothing uniform noise on [-1, 1] leaves a deviation of 0.577 / (2 sqrt(pi) sigma); scaled to 1.2 % of the side.
    alpha = 0.012 * side * 2 * math.sqrt(math.pi) * sigma / 0.577
    mirrored = border is _MIRRORED
    elastic, dropout = (A.ElasticTransform, A.CoarseDropout) if mirrored else (Elastic, Blots)
    return [
        _crop(config, 0.2),
        A.HorizontalFlip(p=0.5),
        A.OneOf([A.Affine(rotate=(-25, 25), shear=(-15, 15), **border), A.Perspective((0.04, 0.1), **border)], p=0.7),
        elastic(alpha, sigma, noise_distribution="uniform", **border, p=0.25),
        A.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.06, p=0.8),
        A.ToGray(p=0.05),
        A.OneOf([A.GaussianBlur(blur_limit=(3, 5)), A.GaussNoise(std_range=(0.02, 0.08))], p=0.2),
        # Random erasing (Zhong et al. 2020; DeVries & Taylor 2017).
        dropout((1, 3), (0.08, 0.25), (0.08, 0.25), fill="random_uniform", fill_mask=IGNORED if mirrored else 0, p=0.5),
    ]


def _without_colour(step: Step) -> Step | None:
    """Return what a step is to pictures that are not RGB: colours move no more, light and contrast do."""
    if isinstance(step, A.ColorJitter):
        limits = {"brightness_limit": step.brightness[1] - 1, "contrast_limit": step.contrast[1] - 1}
        return A.RandomBrightnessContrast(**limits, p=step.p)
    return None if isinstance(step, A.ToGray) else step


_PRESETS: dict[str, Callable[[DataConfig, Mapping[str, Any]], list[Step]]] = {
    "light": _light,
    "standard": _standard,
    "heavy": _heavy,
}


def _crop(config: DataConfig, smallest: float) -> Step:
    """Build the random crop. Its ratios are relative to the target's: a wide input is not fed squeezed boxes."""
    if config.tiled:
        return RandomWindow(config)
    height, width = config.image_size
    ratio = (0.75 * width / height, width / height / 0.75)
    return RandomBox(config.image_size, (smallest, 1.0), ratio, interpolation=INTERPOLATIONS[config.interpolation])
