"""A random view in numbers: what was drawn for a picture, and the picture with it on its way to the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from transferkit.core.records import Frame
from transferkit.data.images.decode import Pixels

__all__ = ["AUGMENTATIONS", "DRAWABLE", "HUES", "JITTER", "MIRROR", "OWN", "Draw", "Piece"]

AUGMENTATIONS: Final = ("none", "light", "standard", "heavy")
"""The presets."""

MIRROR: Final = "mirror"
"""The name of a transform that shows the mirror image of the evaluation view."""

OWN: Final = "own steps"
"""The name of a transform of own steps."""

DRAWABLE: Final = ("light", "standard")
"""Presets whose steps are all known here."""

JITTER: Final = ("brightness", "contrast", "saturation", "hue")
"""The parts of the colour jitter, by their numbers in `Draw.order`."""

HUES: Final = 180
"""Hues of an 8-bit picture, 2 degrees each: OpenCV's."""


@dataclass(frozen=True, slots=True)
class Draw:
    """One view of one picture, in numbers.

    Attributes:
        crop: Left, top, right, bottom of the box, in pixels of the picture; right and bottom exclusive.
        flip: Whether it is mirrored, after the crop.
        matrix: ``(3, 3)``: from centres of pixels of the result to those of the mirrored crop, homogeneous x, y, 1.
        factors: Of brightness, contrast and saturation, 1 for none; of hue a whole number of steps of 2 degrees.
        order: Which part of the jitter comes first, second, third and last.
    """

    crop: tuple[int, int, int, int]
    flip: bool
    matrix: npt.NDArray[np.float64]
    factors: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 0.0)
    order: tuple[int, ...] = (0, 1, 2, 3)


class Piece(NamedTuple):
    """A picture on its way to the device.

    Attributes:
        pixels: ``(h, w, 3) uint8`` of its crop.
        draw: The numbers.
        target: Height and width that the crop is brought to.
        interpolation: See `transferkit.data.images.resize.INTERPOLATIONS`.
        place: Where on the target it lies; it fills all of it, unless pictures are padded.
        ground: The colour beside it.
    """

    pixels: Pixels
    draw: Draw
    target: tuple[int, int]
    interpolation: str
    place: Frame
    ground: tuple[int, ...]
