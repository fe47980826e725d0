"""From a decoded picture to the network's input size: evaluation and augmentation, albumentations behind one adapter.

Every random choice follows from the seed given with the picture, so a result does not depend on the worker, the
thread, the calls before, or the global generators. (albumentations 2.0.8 itself forks one generator unchanged into
every worker and every epoch.) Nothing else in the package imports albumentations.
"""

from __future__ import annotations

import copy
import inspect
import math
import os
import random
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, final

import cv2
import numpy as np

from transferkit.core.errors import ConfigError, DataError, did_you_mean, gather
from transferkit.core.records import DataConfig
from transferkit.data.images.decode import Pixels
from transferkit.data.images.resize import INTERPOLATIONS, check_config, fit, random_box, resize

# albumentations asks the package index for a newer version, over the network, when it is imported without this.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A  # type: ignore[import-untyped]  # the name its own documentation uses

__all__ = [
    "AUGMENTATIONS",
    "Transform",
    "custom_transform",
    "eval_transform",
    "train_transform",
    "transforms_from_config",
]

Step: TypeAlias = Any  # A.BasicTransform or A.BaseCompose; albumentations carries no type marker

_SEED_MASK = 2**64 - 1
_BORDER = {"border_mode": cv2.BORDER_REFLECT_101}  # mirrored, so that no black wedge gives a rotation away


@final
class Transform:
    """One pipeline: ``transform(image, seed)`` gives the picture at the size the network takes.

    Safe to share between threads (each works on its own copy of the steps) and picklable.

    Attributes:
        name: The preset, or ``"custom"``.
        config: Size, crop and interpolation. Mean and standard deviation are applied to whole batches elsewhere.
    """

    def __init__(self, name: str, steps: Sequence[Step], config: DataConfig) -> None:
        check_config(config)
        self.name = name
        self.config = config
        self._steps = copy.deepcopy(list(steps))  # never run themselves: the pattern for the copies of the threads
        self._local = threading.local()

    def __call__(self, image: Pixels, seed: int = 0) -> Pixels:
        """Transform one picture.

        Args:
            image: ``(H, W, 3)`` uint8, RGB, any size from 1x1; left unchanged.
            seed: The only source of randomness, any whole number. Ignored where nothing is random.

        Returns:
            ``(h, w, 3)`` uint8, RGB, contiguous, at ``config.image_size``.

        Raises:
            DataError: `image` is not such an array.
            ConfigError: A step fails on the picture or returns something other than an RGB uint8 picture.
        """
        _check_image(image)
        # OpenCV's own threads on top of the loader's workers only fight over the cores. Said here, where the work is
        # done and at half a microsecond, because neither an import nor a fork carries it safely.
        cv2.setNumThreads(0)
        if self._steps:
            augmented = self._augment(image, seed)
            if augmented.shape[:2] == self.config.image_size:
                return augmented.copy()  # where no step was taken it is the caller's own array
            image = augmented
        return fit(image, self.config)

    def describe(self) -> dict[str, Any]:
        """Return the name, the configuration and each step with its arguments, as values for JSON."""
        return {"name": self.name, "config": self.config.to_dict(), "steps": [repr(step) for step in self._steps]}

    def __repr__(self) -> str:
        return f"Transform({self.name!r}, {self.config.image_size[0]}x{self.config.image_size[1]})"

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "config": self.config, "steps": self._steps}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.name, self.config, self._steps = state["name"], state["config"], state["steps"]
        self._local = threading.local()

    def _augment(self, image: Pixels, seed: int) -> Pixels:
        pipeline = getattr(self._local, "pipeline", None)
        if pipeline is None:
            pipeline = self._local.pipeline = A.Compose(copy.deepcopy(self._steps))
        seed &= _SEED_MASK  # numpy refuses negative seeds, `random` drops their sign
        pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        try:
            result = pipeline(image=image)["image"]
        except Exception as error:  # a step of the user's may raise anything; albumentations' own bases are Exception
            raise ConfigError(
                f"the {self.name} augmentation failed on a picture of {image.shape[1]}x{image.shape[0]} pixels: "
                f"{_one_line(error)} - change or drop the step that cannot take it"
            ) from error
        if not _is_picture(result):
            raise ConfigError(
                f"the {self.name} augmentation returned {_kind(result)}, expected (H, W, 3) uint8 - drop the step that "
                "changes the type or the channels; normalisation is done later, on whole batches"
            )
        return result  # type: ignore[no-any-return]  # from an untyped library, checked above


def eval_transform(config: DataConfig) -> Transform:
    """Build the evaluation transform: the centre box, resized; nothing random.

    See `transferkit.data.images.resize.fit`.

    Raises:
        ConfigError: A value of `config` is out of range.
    """
    return Transform("none", [], config)


def train_transform(name: str, config: DataConfig) -> Transform:
    """Build a training transform by preset.

    Args:
        name: ``"none"`` (the evaluation transform), ``"light"`` (random resized crop and flip), ``"standard"``
            (stronger crop, flip, small rotation, shear or perspective, colour shift) or ``"heavy"`` (stronger still,
            with elastic deformation, noise or blur, and coarse dropout).
        config: Size and interpolation. Crops are drawn from the whole picture: `crop_pct` is evaluation's.

    Raises:
        ConfigError: `name` is unknown, or a value of `config` is out of range.
    """
    if name not in _PRESETS:
        raise ConfigError(
            f"unknown augmentation {name!r}.{did_you_mean(name, AUGMENTATIONS)} Known: {', '.join(AUGMENTATIONS)}"
        )
    check_config(config)
    return Transform(name, _PRESETS[name](config), config)


def custom_transform(steps: Sequence[Step], config: DataConfig) -> Transform:
    """Build a transform from albumentations steps, for training.

    The steps see the decoded picture. A result that has not the target size is cropped and resized as in evaluation.
    The steps are copied and tried once on a small picture.

    Args:
        steps: albumentations transforms or compositions, of one picture; run in order.
        config: The target size and interpolation.

    Raises:
        ConfigError: A step was built with arguments it does not know (albumentations only warns and then uses its
            defaults), is no albumentations step, or does not return an RGB uint8 picture.
    """
    if problems := [problem for step in steps for problem in _step_problems(step)]:
        raise ConfigError(gather(problems))
    transform = Transform("custom", [_Copy(p=1.0), *steps], config)
    side = config.decode_side
    ramp = np.linspace(0, 255, side, dtype=np.uint8)
    transform(np.stack(np.broadcast_arrays(ramp, ramp[:, None], ramp[::-1]), axis=-1), seed=0)
    return transform


def transforms_from_config(entries: Sequence[Mapping[str, Any]]) -> list[Step]:
    """Build albumentations steps from plain values, with every name and argument checked.

    Args:
        entries: ``[{"name": "GaussNoise", "std_range": [0.1, 0.2], "p": 0.5}, ...]``: a class of albumentations and its
            arguments.

    Raises:
        ConfigError: A class or an argument is unknown, or a value is refused; all problems in one message.
    """
    steps, problems = [], []
    for number, entry in enumerate(entries):
        try:
            steps.append(_build(entry))
        except ConfigError as error:
            problems.append(f"augmentation {number}: {error}")
    if problems:
        raise ConfigError(gather(problems))
    return steps


class _RandomBox(A.RandomResizedCrop):  # type: ignore[misc]  # an untyped base
    """Random resized crop that takes any picture, and averages areas along every side that shrinks."""

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        height, width = params["shape"][:2]
        return {"crop_coords": random_box(height, width, scale=self.scale, ratio=self.ratio, rng=self.py_random)}

    def apply(self, img: Pixels, crop_coords: tuple[int, int, int, int], **params: Any) -> Pixels:
        left, top, right, bottom = crop_coords
        return resize(img[top:bottom, left:right], self.size, self.interpolation)


class _Copy(A.ImageOnlyTransform):  # type: ignore[misc]  # an untyped base
    """A picture of its own for steps that write in place, so that one kept in memory for many epochs stays as it is."""

    def apply(self, img: Pixels, **params: Any) -> Pixels:
        return img.copy()


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
        A.CoarseDropout((1, 3), (0.08, 0.25), (0.08, 0.25), fill="random_uniform", p=0.5),
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


def _build(entry: Mapping[str, Any]) -> Step:
    """Build one step from its name and arguments. Raises `ConfigError`."""
    arguments = dict(entry)
    name = arguments.pop("name", None)
    known: dict[str, Any] = {
        key: value
        for key, value in vars(A).items()
        if inspect.isclass(value)
        and issubclass(value, (A.DualTransform, A.ImageOnlyTransform))
        and not issubclass(value, (A.Transform3D, A.Lambda))
        and value not in (A.DualTransform, A.ImageOnlyTransform)
    }
    if not isinstance(name, str) or name not in known:
        hint = did_you_mean(str(name), known)
        raise ConfigError(f"{name!r} is not the name of an albumentations transform.{hint} Example: GaussNoise")
    accepted = [word for word in inspect.signature(known[name]).parameters if word != "strict"]
    if unknown := [word for word in arguments if word not in accepted]:
        raise ConfigError(
            gather([f"{name} has no argument {word!r}.{did_you_mean(str(word), accepted)}" for word in unknown])
            + f" Known: {', '.join(accepted)}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return known[name](**arguments, strict=True)
    except (ValueError, TypeError, Warning) as error:
        raise ConfigError(f"{name} refuses its arguments: {_one_line(error)}") from error


def _step_problems(step: Step) -> list[str]:
    """Say what is wrong with one step or, for a composition, with those inside."""
    if isinstance(step, A.BaseCompose):
        return [problem for inner in step.transforms for problem in _step_problems(inner)]
    if not isinstance(step, A.BasicTransform):
        return [f"{step!r} is not an albumentations transform, expected for example A.HorizontalFlip(p=0.5)"]
    accepted = inspect.signature(type(step)).parameters
    return [
        f"{type(step).__name__} has no argument {word!r}.{did_you_mean(word, accepted)} Known: {', '.join(accepted)}"
        for word in step.invalid_args
    ]


def _check_image(image: Pixels) -> None:
    if not _is_picture(image):
        raise DataError(
            f"a picture must be an (H, W, 3) uint8 RGB array with at least one pixel, got {_kind(image)} - decode "
            "files with transferkit.data.images.decode"
        )


def _is_picture(value: Any) -> bool:
    return (
        isinstance(value, np.ndarray)
        and value.dtype == np.uint8
        and value.ndim == 3
        and value.shape[2] == 3
        and value.size > 0
    )


def _kind(value: Any) -> str:
    return f"{value.shape} {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__


def _one_line(error: BaseException) -> str:
    """Fold a message into one line, without pydantic's link to its documentation."""
    return " ".join(line.strip() for line in str(error).splitlines() if "For further information" not in line)
