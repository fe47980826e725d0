"""Steps of albumentations done to a picture, to its answers, or in numbers alone: each by a seed and nothing else."""

from __future__ import annotations

import copy
import math
import random
import threading
from collections.abc import Iterator, Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import ConfigError
from transferkit.core.records import DataConfig, Frame
from transferkit.core.text import first_line
from transferkit.data.augment.custom import certain
from transferkit.data.augment.draws import HUES, JITTER, MIRROR, OWN, Draw, Piece
from transferkit.data.augment.objects import POINTS, left_of, objects_seen, outline_points, seen_in, uncovered
from transferkit.data.augment.presets import A, Blots, RandomBox, RandomPart, Step
from transferkit.data.images.decode import Pixels
from transferkit.data.images.resize import INTERPOLATIONS, frame, mean_colour, resize, resize_mask
from transferkit.data.masks.annotation import Annotation, Mask

__all__ = ["Augmentation"]

_SEED_MASK = 2**64 - 1
_NEXT_DRAW = 0x9E3779B97F4A7C15  # added to a seed for another draw: far from the seeds of other views
_LARGEST = 16  # times the target's pixels: a larger crop costs more to hand over than to resize here
_DRAWS = 4  # of one view, until an object is left on it


@final
class Augmentation:
    """The steps of a `Transform`, at least one.

    Safe to share between threads (each works on its own copy of the steps) and picklable.

    Args:
        name: The preset, or `OWN`.
        steps: Of albumentations.
        objects: The same steps for pictures with objects, where they differ: borders are of one colour.
        config: Size and interpolation.
    """

    def __init__(self, name: str, steps: Sequence[Step], objects: Sequence[Step], config: DataConfig) -> None:
        self.name, self.config = name, config
        self._steps, self._objects = list(steps), list(objects)  # never run themselves: the pattern for the copies
        self._local = threading.local()

    def view(self, image: Pixels, seed: int) -> Pixels:
        """Return a view ``(h, w, C) uint8`` of a picture ``(H, W, C)``."""
        return np.ascontiguousarray(self._run(self._pipeline(seed), image=image)["image"])

    def view_with_mask(self, image: Pixels, mask: Mask, seed: int) -> tuple[Pixels, Mask]:
        """Return a view of a picture and of its mask, which may be the larger one of the two."""
        same = resize_mask(mask, (image.shape[0], image.shape[1]))
        both = self._run(self._pipeline(seed), image=image, mask=same)
        return np.ascontiguousarray(both["image"]), np.ascontiguousarray(both["mask"])

    def view_with_objects(
        self, image: Pixels, annotation: Annotation, boxes: npt.NDArray[np.float64], seed: int
    ) -> tuple[Pixels, Annotation]:
        """Return a view of a picture and what is seen of its objects.

        Args:
            image: As above.
            annotation: Of the objects.
            boxes: Theirs ``(n, 4)``, in pixels of `image`.
            seed: As above.
        """
        numbers = annotation.instances
        numbers = None if numbers is None else resize_mask(numbers, (image.shape[0], image.shape[1]))
        learnable = annotation.crowd is not None and bool((~annotation.crowd).any())
        for draw in range(_DRAWS):
            both = self._draw_objects(image, annotation, boxes, numbers, seed + draw * _NEXT_DRAW)
            if not learnable or bool((~both[1].crowd).any()):  # type: ignore[operator]
                break
        return both

    def draw(self, image: Pixels, seed: int) -> Piece:
        """Return what `view` would do with the same seed, see `Transform.draw`."""
        draw = _draw_of(self._pipeline(seed), (image.shape[0], image.shape[1]), self.config.image_size)
        left, top, right, bottom = draw.crop
        box = image[top:bottom, left:right]
        height, width = self.config.image_size
        place = Frame(0, 0, height, width)
        if self.config.crop_mode == "pad" and any(isinstance(step, RandomPart) for step in self._steps):
            place = frame((box.shape[0], box.shape[1]), self.config)
        if box.shape[0] * box.shape[1] > _LARGEST * height * width:
            box = resize(box, (place.height, place.width), INTERPOLATIONS[self.config.interpolation])
        return Piece(box, draw, self.config.image_size, self.config.interpolation, place, mean_colour(self.config))

    def certain(self) -> Augmentation:
        """Return the same with every step that may happen happening."""
        return Augmentation(self.name, certain(self._steps), certain(self._objects), self.config)

    def describe(self) -> list[str]:
        """Return each step with its arguments."""
        return [repr(step) for step in self._steps]

    def __reduce__(self) -> tuple[Any, ...]:
        return Augmentation, (self.name, self._steps, self._objects, self.config)

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
        shown = objects_seen(annotation, carried, None if self.name == MIRROR else shares, left, self.config.image_size)
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
            points = A.KeypointParams(format="xy", remove_invisible=False) if objects else None  # none is lost
            pipeline = A.Compose(copy.deepcopy(steps), keypoint_params=points)
            setattr(self._local, name, pipeline)
        seed &= _SEED_MASK  # numpy refuses negative seeds, `random` drops their sign
        pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        return pipeline


def _draw_of(pipeline: Step, size: tuple[int, int], target: tuple[int, int]) -> Draw:
    """Return what a pipeline would do next to a picture; its generators move on as if it had.

    Args:
        pipeline: Of one of `DRAWABLE`, seeded.
        size: Height and width of the picture.
        target: Height and width that the crop is brought to.
    """
    crop, flip, matrix = (0, 0, size[1], size[0]), False, np.eye(3)
    factors, order = (1.0, 1.0, 1.0, 0.0), tuple(range(len(JITTER)))
    for step, numbers in _drawn(pipeline, [size, target]):
        if isinstance(step, RandomBox | RandomPart):
            crop = numbers["crop_coords"]
        elif isinstance(step, A.HorizontalFlip):
            flip = True
        elif isinstance(step, A.Affine):
            matrix = np.linalg.inv(numbers["matrix"])
        elif isinstance(step, A.Perspective):
            back = np.diag([numbers["max_width"] / target[1], numbers["max_height"] / target[0], 1.0])
            matrix = np.linalg.inv(numbers["matrix"]) @ back
        elif isinstance(step, A.ColorJitter):
            # albumentations moves hues of 8 bits by a table that drops what is behind the point.
            hue = math.floor(HUES * numbers["hue"])
            factors = (numbers["brightness"], numbers["contrast"], numbers["saturation"], float(hue))
            order = tuple(int(part) for part in numbers["order"])
        else:
            raise ValueError(f"{type(step).__name__} cannot be drawn without its pixels")
    return Draw(crop, flip, matrix, factors, order)


def _drawn(pipeline: Step, shapes: list[tuple[int, int]]) -> Iterator[tuple[Step, dict[str, Any]]]:
    """Yield the steps that apply, with what was drawn for each: by the very calls by which a step draws for itself.

    Args:
        pipeline: The steps.
        shapes: Of the picture before the first step, and after it.
    """
    pipeline.py_random.random()  # whether to run at all, which it always does
    for number, step in enumerate(pipeline.transforms):
        forced = isinstance(step, A.OneOf)
        if forced:
            if step.py_random.random() >= step.p:
                continue
            step = step.transforms[step.random_generator.choice(len(step.transforms), p=step.transforms_ps)]
        if step.should_apply(force_apply=forced):
            params = {**step.get_params(), "shape": (*shapes[min(number, 1)], 3)}
            params.update(step.get_params_dependent_on_data(params=params, data={}))
            yield step, params
