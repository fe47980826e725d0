"""From a decoded picture to the network's input size: evaluation and augmentation, albumentations behind one adapter.

Every random choice follows from a seed that comes with the picture, so a result does not depend on the worker, the
thread, the calls before, or the global generators. (albumentations 2.0.8 itself forks one generator unchanged into
every worker and every epoch.)
"""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, final

import cv2
import numpy as np
import numpy.typing as npt

from transferkit.core.errors import ConfigError, DataError, did_you_mean
from transferkit.core.records import DataConfig, Frame
from transferkit.core.text import first_line
from transferkit.data.augment.custom import OWN, certain, definitions_of, own_steps
from transferkit.data.augment.draws import DRAWABLE, Piece
from transferkit.data.augment.objects import (
    POINTS,
    check_objects,
    left_of,
    objects_seen,
    outline_points,
    scaled,
    seen_in,
    uncovered,
)
from transferkit.data.augment.presets import (
    AUGMENTATIONS,
    Blots,
    RandomBox,
    RandomPart,
    Step,
    composed,
    draw_of,
    mirror_steps,
    preset_steps,
)
from transferkit.data.images.decode import Pixels
from transferkit.data.images.resize import (
    INTERPOLATIONS,
    check_config,
    fit,
    fit_boxes,
    fit_mask,
    frame,
    mean_colour,
    resize,
    resize_mask,
)
from transferkit.data.masks.annotation import Annotation, Mask

__all__ = ["AUGMENTATIONS", "Transform", "eval_transform", "mirror_transform", "train_transform"]

_SEED_MASK = 2**64 - 1
_NEXT_DRAW = 0x9E3779B97F4A7C15  # added to a seed for another draw: far from the seeds of other views
_MIRROR = "mirror"
_LARGEST = 16  # times the target's pixels: a larger crop costs more to hand over than to resize here
_DRAWS = 4  # of one view, until an object is left on it


@final
class Transform:
    """One pipeline: ``transform(image, seed)`` gives the picture at the size the network takes.

    Safe to share between threads (each works on its own copy of the steps) and picklable.

    Attributes:
        name: The preset.
        config: Size, crop and interpolation. Mean and standard deviation are applied to whole batches elsewhere.

    Args:
        name: The preset.
        steps: Of albumentations; none of them for the evaluation view.
        config: As above.
        objects: The same steps for pictures with objects, where they differ: borders are of one colour.
    """

    def __init__(
        self, name: str, steps: Sequence[Step], config: DataConfig, *, objects: Sequence[Step] | None = None
    ) -> None:
        check_config(config)
        self.name = name
        self.config = config
        self._steps = list(steps)  # never run themselves: the pattern for the copies of the threads
        self._objects = self._steps if objects is None else list(objects)
        self._local = threading.local()

    def __call__(self, image: Pixels, seed: int = 0, *, whole: tuple[int, int] | None = None, part: int = 0) -> Pixels:
        """Transform one picture.

        Args:
            image: ``(H, W, C)`` uint8, any size from 1x1; left unchanged.
            seed: The only source of randomness, any whole number. Ignored where nothing is random.
            whole: See `transferkit.data.images.resize.fit`.
            part: Likewise; of the evaluation view alone, others draw their windows.

        Returns:
            ``(h, w, C)`` uint8, contiguous, at ``config.image_size``.

        Raises:
            DataError: `image` is not such an array.
        """
        _check_image(image, self.config.channels)
        # OpenCV's own threads on top of the loader's workers only fight over the cores. Said here, where the work is
        # done and at half a microsecond, because neither an import nor a fork carries it safely.
        cv2.setNumThreads(0)
        return self._augment(image, seed) if self._steps else fit(image, self.config, whole=whole, part=part)

    def carry(
        self, image: Pixels, annotation: Annotation, seed: int = 0, *, part: int = 0
    ) -> tuple[Pixels, Annotation]:
        """Transform one picture and the answers on its pixels by the same draw.

        Masks go by the nearest pixel. What is not the picture has no class: `IGNORED`, on padding and where a piece was
        blotted out; a border that is mirrored has the classes of what is mirrored.

        Boxes go as `transferkit.data.augment.objects` says. Borders of pictures with objects are of the mean colour
        instead of mirrored: a mirrored piece of an object would be one that nobody boxed. A draw that loses every
        object (crowds aside) is drawn again, three times at most; then the picture is shown without any.

        Args:
            image: As for a call.
            annotation: Of the upright picture, at its whole size; `image` may be decoded at a fraction of that.
            seed: As for a call, which gives the same picture where there are no objects, but for a pixel of padding
                where it was so decoded.
            part: As for a call.

        Returns:
            The picture, and a mask ``(h, w) uint8``, or boxes and numbers of objects, at ``config.image_size``.

        Raises:
            DataError: `image` or the annotation is no such array.
        """
        _check_image(image, self.config.channels)
        if annotation.boxes is not None:
            check_objects(annotation)
            cv2.setNumThreads(0)
            return self._carry_objects(image, annotation, seed)
        mask = annotation.mask
        if mask is None:
            return self(image, seed), annotation
        _check_mask(mask)
        cv2.setNumThreads(0)
        if self._steps:
            image, mask = self._augment_both(image, mask, seed)
        else:
            size = (mask.shape[0], mask.shape[1])
            mask = fit_mask(mask, self.config, decoded=(image.shape[0], image.shape[1]), part=part)
            image = fit(image, self.config, whole=size, part=part)
        return image, replace(annotation, mask=mask)

    @property
    def drawable(self) -> bool:
        """Whether `draw` can do it: every step is known by numbers."""
        return self.name in DRAWABLE and not self.config.tiled

    def draw(self, image: Pixels, seed: int) -> Piece:
        """Return what a call with the same seed would make a view of, for `transferkit.data.augment.device` to make it.

        Args:
            image: As for a call.
            seed: Likewise.

        Returns:
            The crop's pixels, a view of `image` or, where that is far larger than the target, at the target's size; and
            the numbers of the draw.

        Raises:
            DataError: `image` is not such an array.
        """
        _check_image(image, self.config.channels)
        draw = draw_of(self._pipeline(seed), (image.shape[0], image.shape[1]), self.config.image_size)
        left, top, right, bottom = draw.crop
        box = image[top:bottom, left:right]
        height, width = self.config.image_size
        place = Frame(0, 0, height, width)
        if self.config.crop_mode == "pad" and any(isinstance(step, RandomPart) for step in self._steps):
            place = frame((box.shape[0], box.shape[1]), self.config)
        if box.shape[0] * box.shape[1] > _LARGEST * height * width:
            cv2.setNumThreads(0)
            box = resize(box, (place.height, place.width), INTERPOLATIONS[self.config.interpolation])
        return Piece(box, draw, self.config.image_size, self.config.interpolation, place, mean_colour(self.config))

    def certain(self) -> Transform:
        """Return the same with every step that may happen happening, to be tried out."""
        return Transform(self.name, certain(self._steps), self.config, objects=certain(self._objects))

    def describe(self) -> dict[str, Any]:
        """Return the name, the configuration and each step with its arguments, as values for JSON."""
        return {"name": self.name, "config": self.config.key_values(), "steps": [repr(step) for step in self._steps]}

    def __repr__(self) -> str:
        return f"Transform({self.name!r}, {self.config.image_size[0]}x{self.config.image_size[1]})"

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "config": self.config, "steps": self._steps, "objects": self._objects}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.name, self.config, self._steps = state["name"], state["config"], state["steps"]
        self._objects = state["objects"]
        self._local = threading.local()

    def _augment(self, image: Pixels, seed: int) -> Pixels:
        return np.ascontiguousarray(self._run(self._pipeline(seed), image=image)["image"])

    def _augment_both(self, image: Pixels, mask: Mask, seed: int) -> tuple[Pixels, Mask]:
        same = resize_mask(mask, (image.shape[0], image.shape[1]))
        both = self._run(self._pipeline(seed), image=image, mask=same)
        return np.ascontiguousarray(both["image"]), np.ascontiguousarray(both["mask"])

    def _carry_objects(self, image: Pixels, annotation: Annotation, seed: int) -> tuple[Pixels, Annotation]:
        whole, size = annotation.size or (1, 1), (image.shape[0], image.shape[1])
        boxes = scaled(_boxes(annotation), whole, size)
        numbers = annotation.instances
        if not self._steps:
            if numbers is not None:
                numbers = fit_mask(numbers, self.config, decoded=size, fill=0)
            fitted = fit_boxes(scaled(boxes, size, whole), whole, self.config)
            shown = objects_seen(annotation, fitted, None, numbers, self.config.image_size)
            return fit(image, self.config, whole=whole), shown
        numbers = None if numbers is None else resize_mask(numbers, size)
        learnable = annotation.crowd is not None and bool((~annotation.crowd).any())
        for draw in range(_DRAWS):
            both = self._draw_objects(image, annotation, boxes, numbers, seed + draw * _NEXT_DRAW)
            if not learnable or bool((~both[1].crowd).any()):  # type: ignore[operator]
                break
        return both

    def _draw_objects(
        self, image: Pixels, annotation: Annotation, boxes: npt.NDArray[np.float64], numbers: Any, seed: int
    ) -> tuple[Pixels, Annotation]:
        pipeline = self._pipeline(seed, objects=True)
        for step in pipeline.transforms:
            if isinstance(step, Blots):
                step.holes = None
        mask = {} if numbers is None else {"mask": numbers}
        points = outline_points(boxes).reshape(-1, 2) - 0.5  # steps speak of centres of pixels
        both = self._run(pipeline, image=image, keypoints=points, **mask)
        points = np.asarray(both["keypoints"], dtype=np.float64).reshape(-1, POINTS, 2) + 0.5
        carried, shares = left_of(points, self.config.image_size)
        for step in pipeline.transforms:
            if isinstance(step, RandomBox) and step.crop is not None:
                shares = shares * seen_in(boxes, step.crop)
            if isinstance(step, Blots) and step.holes is not None:
                shares = shares * uncovered(carried, step.blots(self.config.image_size))
        left = both.get("mask")
        left = None if left is None else np.ascontiguousarray(left)
        shown = objects_seen(
            annotation, carried, None if self.name == _MIRROR else shares, left, self.config.image_size
        )
        return np.ascontiguousarray(both["image"]), shown

    def _run(self, pipeline: Step, **parts: Any) -> dict[str, Any]:
        """Run a pipeline; of own steps, say what is wrong with them where they fail or leave no picture."""
        if self.name != OWN:
            return pipeline(**parts)  # type: ignore[no-any-return]
        height, width = parts["image"].shape[:2]
        try:
            result: dict[str, Any] = pipeline(**parts)
        except Exception as error:  # what the steps raise is theirs
            raise ConfigError(
                f"--augment cannot be done to a picture of {height} x {width} pixels: {first_line(error)}"
            ) from error
        image = result["image"]
        if image.shape != self.config.shown_shape or image.dtype != np.uint8:
            raise ConfigError(
                f"--augment makes of a picture of {height} x {width} pixels {image.shape} of {image.dtype}, expected "
                f"{self.config.shown_shape} of uint8 - leave out what changes the kind of its values or channels"
            )
        return result

    def _pipeline(self, seed: int, *, objects: bool = False) -> Step:
        """Return the thread's own steps, about to draw from a seed."""
        name, steps = ("objects", self._objects) if objects else ("pipeline", self._steps)
        pipeline = getattr(self._local, name, None)
        if pipeline is None:
            pipeline = composed(steps, points=objects)
            setattr(self._local, name, pipeline)
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
    return Transform(_MIRROR, mirror_steps(config), config)


def train_transform(name: Any, config: DataConfig, *, flip: bool = True, whole: bool = False) -> Transform:
    """Build a training transform by preset, or of own steps.

    Args:
        name: ``"none"`` (the evaluation transform), ``"light"`` (random resized crop and flip), ``"standard"``
            (stronger crop, flip, small rotation, shear or perspective, colour shift) or ``"heavy"`` (stronger still,
            with elastic deformation, noise or blur, and coarse dropout); or own steps, see
            `transferkit.data.augment.custom`: a list by name and arguments, or of albumentations, or its `Compose`.
        config: Size and interpolation. Crops are drawn from the whole picture: `crop_pct` is evaluation's.
        flip: Whether a picture may be its mirror image; not where that is another class: arrows, digits, text.
            Own steps say so themselves.
        whole: Whether crops have about the picture's own shape, and fill the target as `config` says of a whole
            picture: stretched or padded. Own steps are what they are.

    Raises:
        ConfigError: `name` is unknown, a step is wrong, or a value of `config` is out of range.
    """
    if not isinstance(name, str):
        check_config(config)
        steps, objects = (own_steps(definitions_of(name), config, objects=objects) for objects in (False, True))
        return Transform(OWN, steps, config, objects=objects)
    if name not in AUGMENTATIONS:
        raise ConfigError(
            f"unknown augmentation {name!r}.{did_you_mean(name, AUGMENTATIONS)} Known: {', '.join(AUGMENTATIONS)}"
        )
    check_config(config)
    steps, objects = (preset_steps(name, config, flip=flip, objects=objects, whole=whole and not objects)
                      for objects in (False, True))  # fmt: skip
    return Transform(name, steps, config, objects=objects)


def _boxes(annotation: Annotation) -> npt.NDArray[np.float64]:
    if annotation.boxes is None:
        raise ValueError("these answers are no objects")
    return annotation.boxes.astype(np.float64)


def _check_image(image: Any, channels: int) -> None:
    array = isinstance(image, np.ndarray)
    if not (array and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == channels and image.size):
        kind = f"{image.shape} {image.dtype}" if array else type(image).__name__
        raise DataError(
            f"a picture must be an (H, W, {channels}) uint8 array with at least one pixel, got {kind} - decode files "
            "with transferkit.data.images.decode"
        )


def _check_mask(mask: Any) -> None:
    array = isinstance(mask, np.ndarray)
    if not (array and mask.dtype == np.uint8 and mask.ndim == 2 and mask.size):
        kind = f"{mask.shape} {mask.dtype}" if array else type(mask).__name__
        raise DataError(f"a mask must be an (H, W) uint8 array of class indices with at least one pixel, got {kind}")
