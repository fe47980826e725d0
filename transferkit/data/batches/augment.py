"""From a decoded picture to the network's input size: evaluation and augmentation, albumentations behind one adapter.

Every random choice follows from a seed that comes with the picture, so a result does not depend on the worker, the
thread, the calls before, or the global generators. (albumentations 2.0.8 itself forks one generator unchanged into
every worker and every epoch.) Nothing else in the package imports albumentations.
"""

from __future__ import annotations

import copy
import math
import os
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, final

import cv2
import numpy as np

from transferkit.core.errors import ConfigError, DataError, did_you_mean
from transferkit.core.records import DataConfig
from transferkit.core.targets import IGNORED
from transferkit.data.images.annotation import Annotation, Mask
from transferkit.data.images.decode import Pixels
from transferkit.data.images.resize import (
    INTERPOLATIONS,
    check_config,
    fit,
    fit_mask,
    random_box,
    resize,
    resize_mask,
)

# albumentations asks the package index for a newer version, over the network, when it is imported without this.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A  # type: ignore[import-untyped]  # the name its own documentation uses

__all__ = ["AUGMENTATIONS", "Transform", "eval_transform", "mirror_transform", "train_transform"]

Step: TypeAlias = Any  # A.BasicTransform or A.BaseCompose; albumentations carries no type marker

_SEED_MASK = 2**64 - 1
_BORDER = {"border_mode": cv2.BORDER_REFLECT_101}  # mirrored, so that no black wedge gives a rotation away


@final
class Transform:
    """One pipeline: ``transform(image, seed)`` gives the picture at the size the network takes.

    Safe to share between threads (each works on its own copy of the steps) and picklable.

    Attributes:
        name: The preset.
        config: Size, crop and interpolation. Mean and standard deviation are applied to whole batches elsewhere.
    """

    def __init__(self, name: str, steps: Sequence[Step], config: DataConfig) -> None:
        check_config(config)
        self.name = name
        self.config = config
        self._steps = copy.deepcopy(list(steps))  # never run themselves: the pattern for the copies of the threads
        self._local = threading.local()

    def __call__(self, image: Pixels, seed: int = 0, *, whole: tuple[int, int] | None = None) -> Pixels:
        """Transform one picture.

        Args:
            image: ``(H, W, 3)`` uint8, RGB, any size from 1x1; left unchanged.
            seed: The only source of randomness, any whole number. Ignored where nothing is random.
            whole: See `transferkit.data.images.resize.fit`.

        Returns:
            ``(h, w, 3)`` uint8, RGB, contiguous, at ``config.image_size``.

        Raises:
            DataError: `image` is not such an array.
        """
        _check_image(image)
        # OpenCV's own threads on top of the loader's workers only fight over the cores. Said here, where the work is
        # done and at half a microsecond, because neither an import nor a fork carries it safely.
        cv2.setNumThreads(0)
        return self._augment(image, seed) if self._steps else fit(image, self.config, whole=whole)

    def carry(self, image: Pixels, annotation: Annotation, seed: int = 0) -> tuple[Pixels, Annotation]:
        """Transform one picture and the answers on its pixels by the same draw.

        Masks go by the nearest pixel. What is not the picture has no class: `IGNORED`, on padding and where a piece was
        blotted out; a border that is mirrored has the classes of what is mirrored.

        Args:
            image: As for a call.
            annotation: Of the upright picture, at its whole size; `image` may be decoded at a fraction of that.
            seed: As for a call, which gives the same picture, but for a pixel of padding where it was so decoded.

        Returns:
            The picture, and a mask ``(h, w) uint8`` at ``config.image_size``.

        Raises:
            DataError: `image` or the mask is no such array.
        """
        _check_image(image)
        mask = annotation.mask
        if mask is None:
            return self(image, seed), annotation
        _check_mask(mask)
        cv2.setNumThreads(0)
        if self._steps:
            image, mask = self._augment_both(image, mask, seed)
        else:
            size = (mask.shape[0], mask.shape[1])
            mask = fit_mask(mask, self.config, decoded=(image.shape[0], image.shape[1]))
            image = fit(image, self.config, whole=size)
        return image, replace(annotation, mask=mask)

    def describe(self) -> dict[str, Any]:
        """Return the name, the configuration and each step with its arguments, as values for JSON."""
        return {"name": self.name, "config": self.config.key_values(), "steps": [repr(step) for step in self._steps]}

    def __repr__(self) -> str:
        return f"Transform({self.name!r}, {self.config.image_size[0]}x{self.config.image_size[1]})"

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "config": self.config, "steps": self._steps}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.name, self.config, self._steps = state["name"], state["config"], state["steps"]
        self._local = threading.local()

    def _augment(self, image: Pixels, seed: int) -> Pixels:
        return np.ascontiguousarray(self._pipeline(seed)(image=image)["image"])

    def _augment_both(self, image: Pixels, mask: Mask, seed: int) -> tuple[Pixels, Mask]:
        same = resize_mask(mask, (image.shape[0], image.shape[1]))
        both = self._pipeline(seed)(image=image, mask=same)
        return np.ascontiguousarray(both["image"]), np.ascontiguousarray(both["mask"])

    def _pipeline(self, seed: int) -> Step:
        """Return the thread's own steps, about to draw from a seed."""
        pipeline = getattr(self._local, "pipeline", None)
        if pipeline is None:
            pipeline = self._local.pipeline = A.Compose(copy.deepcopy(self._steps))
        seed &= _SEED_MASK  # numpy refuses negative seeds, `random` drops their sign
        pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        return pipeline


def eval_transform(config: DataConfig) -> Transform:
    """Build the evaluation transform: the centre box, resized; nothing random.

    See `transferkit.data.images.resize.fit`.

    Raises:
        ConfigError: A value of `config` is out of range.
    """
    return Transform("none", [], config)


def mirror_transform(config: DataConfig) -> Transform:
    """Build the mirror image of the evaluation view; nothing random.

    Raises:
        ConfigError: A value of `config` is out of range.
    """
    check_config(config)
    return Transform("mirror", [_Fit(config), A.HorizontalFlip(p=1.0)], config)


def train_transform(name: str, config: DataConfig, *, flip: bool = True) -> Transform:
    """Build a training transform by preset.

    Args:
        name: ``"none"`` (the evaluation transform), ``"light"`` (random resized crop and flip), ``"standard"``
            (stronger crop, flip, small rotation, shear or perspective, colour shift) or ``"heavy"`` (stronger still,
            with elastic deformation, noise or blur, and coarse dropout).
        config: Size and interpolation. Crops are drawn from the whole picture: `crop_pct` is evaluation's.
        flip: Whether a picture may be its mirror image; not where that is another class: arrows, digits, text.

    Raises:
        ConfigError: `name` is unknown, or a value of `config` is out of range.
    """
    if name not in _PRESETS:
        raise ConfigError(
            f"unknown augmentation {name!r}.{did_you_mean(name, AUGMENTATIONS)} Known: {', '.join(AUGMENTATIONS)}"
        )
    check_config(config)
    steps = [step for step in _PRESETS[name](config) if flip or not isinstance(step, A.HorizontalFlip)]
    return Transform(name, steps, config)


class _Fit(A.DualTransform):  # type: ignore[misc]  # an untyped base
    """The evaluation view as a step."""

    def __init__(self, config: DataConfig) -> None:
        super().__init__(p=1.0)
        self.config = config

    def apply(self, img: Pixels, **params: Any) -> Pixels:
        return fit(img, self.config)

    def apply_to_mask(self, mask: Mask, *args: Any, **params: Any) -> Mask:
        return fit_mask(mask, self.config)

    def get_transform_init_args_names(self) -> tuple[str, ...]:
        return ("config",)


class _RandomBox(A.RandomResizedCrop):  # type: ignore[misc]  # an untyped base
    """Random resized crop that takes any picture, and averages areas along every side that shrinks."""

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        height, width = params["shape"][:2]
        return {"crop_coords": random_box(height, width, scale=self.scale, ratio=self.ratio, rng=self.py_random)}

    def apply(self, img: Pixels, crop_coords: tuple[int, int, int, int], **params: Any) -> Pixels:
        left, top, right, bottom = crop_coords
        return resize(img[top:bottom, left:right], self.size, self.interpolation)

    def apply_to_mask(self, mask: Mask, crop_coords: tuple[int, int, int, int], **params: Any) -> Mask:
        left, top, right, bottom = crop_coords
        return resize_mask(mask[top:bottom, left:right], self.size)


def _none(config: DataConfig) -> list[Step]:
    return []


def _light(config: DataConfig) -> list[Step]:
    return [_crop(config, 0.5), A.HorizontalFlip(p=0.5)]


def _standard(config: DataConfig) -> list[Step]:
    return [
        _crop(config, 0.35),
        A.HorizontalFlip(p=0.5),
        A.OneOf([A.Affine(rotate=(-12, 12), shear=(-8, 8), **_BORDER), A.Perspective((0.02, 0.06), **_BORDER)], p=0.5),
        A.ColorJitter(brightness=0.25, contrast=0.25, saturation=0.25, hue=0.03, p=0.7),
    ]


def _heavy(config: DataConfig) -> list[Step]:
    side = min(config.image_size)
    sigma = max(1.0, side / 20)  # of the smoothing, in pixels: bends about a tenth of the picture wide
    # Smoothing uniform noise on [-1, 1] leaves a deviation of 0.577 / (2 sqrt(pi) sigma); scaled to 1.2 % of the side.
    alpha = 0.012 * side * 2 * math.sqrt(math.pi) * sigma / 0.577
    return [
        _crop(config, 0.2),
        A.HorizontalFlip(p=0.5),
        A.OneOf([A.Affine(rotate=(-25, 25), shear=(-15, 15), **_BORDER), A.Perspective((0.04, 0.1), **_BORDER)], p=0.7),
        A.ElasticTransform(alpha, sigma, noise_distribution="uniform", **_BORDER, p=0.25),
        A.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.06, p=0.8),
        A.ToGray(p=0.05),
        A.OneOf([A.GaussianBlur(blur_limit=(3, 5)), A.GaussNoise(std_range=(0.02, 0.08))], p=0.2),
        # Random erasing (Zhong et al. 2020; DeVries & Taylor 2017).
        A.CoarseDropout((1, 3), (0.08, 0.25), (0.08, 0.25), fill="random_uniform", fill_mask=IGNORED, p=0.5),
    ]


_PRESETS: dict[str, Callable[[DataConfig], list[Step]]] = {
    "none": _none,
    "light": _light,
    "standard": _standard,
    "heavy": _heavy,
}
AUGMENTATIONS: tuple[str, ...] = tuple(_PRESETS)


def _crop(config: DataConfig, smallest: float) -> Step:
    """Build the random crop. Its ratios are relative to the target's: a wide input is not fed squeezed boxes."""
    height, width = config.image_size
    ratio = (0.75 * width / height, width / height / 0.75)
    return _RandomBox(config.image_size, (smallest, 1.0), ratio, interpolation=INTERPOLATIONS[config.interpolation])


def _check_image(image: Any) -> None:
    array = isinstance(image, np.ndarray)
    if not (array and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size):
        kind = f"{image.shape} {image.dtype}" if array else type(image).__name__
        raise DataError(
            f"a picture must be an (H, W, 3) uint8 RGB array with at least one pixel, got {kind} - decode files with "
            "transferkit.data.images.decode"
        )


def _check_mask(mask: Any) -> None:
    array = isinstance(mask, np.ndarray)
    if not (array and mask.dtype == np.uint8 and mask.ndim == 2 and mask.size):
        kind = f"{mask.shape} {mask.dtype}" if array else type(mask).__name__
        raise DataError(f"a mask must be an (H, W) uint8 array of class indices with at least one pixel, got {kind}")
