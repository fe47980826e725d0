"""From a decoded picture to the network's input size: evaluation and augmentation, albumentations behind one adapter.

Every random choice follows from a seed that comes with the picture, so a result does not depend on the worker, the
thread, the calls before, or the global generators. (albumentations 2.0.8 itself forks one generator unchanged into
every worker and every epoch.)
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, final

import cv2
import numpy as np
import numpy.typing as npt

from transferkit.core.errors import ConfigError, DataError, did_you_mean, gather
from transferkit.core.records import DataConfig
from transferkit.data.augment.draws import AUGMENTATIONS, DRAWABLE, MIRROR, OWN, Piece
from transferkit.data.augment.objects import check_objects, objects_seen, scaled
from transferkit.data.images.decode import Pixels
from transferkit.data.images.resize import check_config, fit, fit_boxes, fit_mask
from transferkit.data.masks.annotation import Annotation

if TYPE_CHECKING:
    from transferkit.data.augment.presets import Step
    from transferkit.data.augment.steps import Augmentation

__all__ = [
    "AUGMENTATIONS",
    "Transform",
    "check_carried",
    "eval_transform",
    "mirror_transform",
    "named",
    "train_transform",
]


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
        self._augmentation = _augmentation(name, steps, steps if objects is None else objects, config)

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
        if self._augmentation is not None:
            return self._augmentation.view(image, seed)
        return fit(image, self.config, whole=whole, part=part)

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
            return self._carried(image, annotation, seed)
        mask = annotation.mask
        if mask is None:
            return self(image, seed), annotation
        _check_mask(mask)
        cv2.setNumThreads(0)
        if self._augmentation is not None:
            image, mask = self._augmentation.view_with_mask(image, mask, seed)
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
        if self._augmentation is None:
            raise ValueError("the evaluation view has no draw")
        cv2.setNumThreads(0)
        return self._augmentation.draw(image, seed)

    def certain(self) -> Transform:
        """Return the same with every step that may happen happening, to be tried out."""
        result = copy.copy(self)
        result._augmentation = None if self._augmentation is None else self._augmentation.certain()
        return result

    def describe(self) -> dict[str, Any]:
        """Return the name, the configuration and each step with its arguments, as values for JSON."""
        steps = [] if self._augmentation is None else self._augmentation.describe()
        return {"name": self.name, "config": self.config.key_values(), "steps": steps}

    def __repr__(self) -> str:
        return f"Transform({self.name!r}, {self.config.image_size[0]}x{self.config.image_size[1]})"

    def _carried(self, image: Pixels, annotation: Annotation, seed: int) -> tuple[Pixels, Annotation]:
        whole, size = annotation.size or (1, 1), (image.shape[0], image.shape[1])
        boxes = scaled(_boxes(annotation), whole, size)
        if self._augmentation is not None:
            return self._augmentation.view_with_objects(image, annotation, boxes, seed)
        numbers = annotation.instances
        if numbers is not None:
            numbers = fit_mask(numbers, self.config, decoded=size, fill=0)
        fitted = fit_boxes(scaled(boxes, size, whole), whole, self.config)
        shown = objects_seen(annotation, fitted, None, numbers, self.config.image_size)
        return fit(image, self.config, whole=whole), shown


def _augmentation(name: str, steps: Sequence[Step], objects: Sequence[Step], config: DataConfig) -> Augmentation | None:
    """Return the steps to run; ``None`` for none, for which albumentations need not be loaded."""
    if not steps:
        return None
    from transferkit.data.augment.steps import Augmentation

    return Augmentation(name, steps, objects, config)


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
    from transferkit.data.augment.presets import mirror_steps

    check_config(config)
    return Transform(MIRROR, mirror_steps(config), config)


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
        from transferkit.data.augment.custom import definitions_of, own_steps

        check_config(config)
        steps, objects = (own_steps(definitions_of(name), config, objects=objects) for objects in (False, True))
        return Transform(OWN, steps, config, objects=objects)
    if name not in AUGMENTATIONS:
        raise ConfigError(
            f"unknown augmentation {name!r}.{did_you_mean(name, AUGMENTATIONS)} Known: {', '.join(AUGMENTATIONS)}"
        )
    if name == "none":
        return eval_transform(config)
    from transferkit.data.augment.presets import preset_steps

    check_config(config)
    steps, objects = (preset_steps(name, config, flip=flip, objects=objects, whole=whole and not objects)
                      for objects in (False, True))  # fmt: skip
    return Transform(name, steps, config, objects=objects)


def named(augment: Any) -> Any:
    """Return a preset's name as it is, and own steps by name and arguments, see `custom.definitions_of`."""
    if isinstance(augment, str):
        return augment
    from transferkit.data.augment.custom import definitions_of

    return definitions_of(augment)


def check_carried(augment: Any, config: DataConfig, *, boxes: bool) -> None:
    """Check that own steps, by name and arguments, carry masks, or boxes, along.

    Raises:
        ConfigError: With those that do not.
    """
    if isinstance(augment, str):
        return
    from transferkit.data.augment.custom import carried_problems

    if problems := carried_problems(augment, config, boxes=boxes):
        raise ConfigError(gather(problems))


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
