"""The sketch of a picture: its size, and how bright each of 32 x 32 cells is. Copies are looked for by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from PIL import Image

from transferkit.data.images.channels import as_rgb
from transferkit.data.images.decode import ImageInfo, Pixels

__all__ = ["SIDE", "Sketch", "scale_of", "sketch_of"]

SIDE: Final = 32
"""Cells along each side, whatever the shape of the picture."""


@dataclass(frozen=True, slots=True)
class Sketch:
    """What a picture looks like from afar.

    Pictures of equal pixels that were decoded at the same scale have equal sketches; at different scales, sketches that
    differ by a few levels. Different pictures hardly ever have equal ones.

    Attributes:
        width: Of the whole picture in pixels, upright.
        height: Likewise.
        scale: It was decoded at 1/scale of its size: 1, or 2, 4 or 8 for a JPEG.
        cells: ``(32, 32) uint8`` as bytes: how bright the picture is around the middle of each cell, by rows, upright.
    """

    width: int
    height: int
    scale: int
    cells: bytes


def sketch_of(pixels: Pixels, info: ImageInfo) -> Sketch | None:
    """Return the sketch of a decoded picture; ``None`` where it is of one colour: what it shows is not to be seen.

    Args:
        pixels: ``(H, W, C) uint8``, upright; of more than three channels the first three count.
        info: What its header says.
    """
    if info.one_colour:
        return None
    # Eight lines of pixels for each line of cells will do, and cost less than all. Pillow, as `check` loads no OpenCV.
    step = max(1, len(pixels) // (8 * SIDE))
    grey = Image.fromarray(as_rgb(pixels[step // 2 :: step])).convert("L")
    cells = grey.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return Sketch(info.width, info.height, scale_of(info, len(pixels)), cells.tobytes())


def scale_of(info: ImageInfo, rows: int) -> int:
    """Return the scale that a picture was decoded at, see `Sketch`, by the rows of its pixels."""
    return max(1, round(info.height / rows))
