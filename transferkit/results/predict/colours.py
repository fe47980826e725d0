"""Colours of classes: masks as pictures with a palette, and laid over what they are masks of."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from transferkit.core.targets import IGNORED, TargetSpec
from transferkit.data.images.decode import Pixels
from transferkit.data.index.meaning import class_colour

__all__ = ["STRENGTH", "hex_colour", "is_mask_png", "laid_over", "mask_png", "numbers_png", "palette_of"]

Mask = npt.NDArray[np.uint8]

STRENGTH = 0.55
"""Share of a class's colour where it is laid over a picture."""

EDGE = 0.9
"""The same at the border of a class."""

MAKER: Final = ("Software", "transferkit")
"""What a file of a mask says of itself, right behind its header."""


def palette_of(spec: TargetSpec) -> Pixels:
    """Return the colour of each class and, in the last row, of pixels without one, ``(256, 3) uint8``.

    Args:
        spec: With the colours of the data, where they have any.
    """
    table = np.array([class_colour(index) for index in range(256)], dtype=np.uint8)
    own = spec.facts.get("palette")
    if own:
        table[: len(own)] = own
    table[IGNORED] = (255, 255, 255)
    return table


def hex_colour(colour: npt.NDArray[np.uint8]) -> str:
    """Return a colour ``(3,) uint8`` as ``"#rrggbb"``."""
    return "#" + "".join(f"{int(part):02x}" for part in colour)


def mask_png(mask: Mask, palette: Pixels) -> bytes:
    """Return a PNG file whose values are class indices ``(H, W)``, shown in the colours of a palette ``(256, 3)``."""
    picture = Image.fromarray(mask)
    picture.putpalette(palette.tobytes())  # which makes it one of mode P
    return _signed_png(picture)


def numbers_png(numbers: Mask | npt.NDArray[np.uint16]) -> bytes:
    """Return a PNG file whose values are numbers ``(H, W)``: of 8 bits, each in a colour of its own, or grey of 16."""
    if numbers.dtype == np.uint8:
        return mask_png(numbers.astype(np.uint8), np.array([class_colour(at) for at in range(256)], dtype=np.uint8))
    return _signed_png(Image.fromarray(numbers))


def _signed_png(picture: Image.Image) -> bytes:
    maker = PngInfo()
    maker.add_text(*MAKER)
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=False, compress_level=6, pnginfo=maker)
    return stream.getvalue()


def is_mask_png(path: Path) -> bool:
    """Whether a file is one of a mask or of numbers that was made here. Raises `OSError`."""
    with path.open("rb") as stream:
        return b"tEXt" + "\0".join(MAKER).encode() in stream.read(64)


def laid_over(image: Pixels, mask: Mask, palette: Pixels) -> Pixels:
    """Return a picture with the colours of its classes laid over it, ``(H, W, 3) uint8``.

    Class 0, as a rule the background, and pixels without a class stay as they are; the borders of the others are drawn
    stronger.

    Args:
        image: ``(H, W, 3) uint8``.
        mask: ``(H, W) uint8``, class indices.
        palette: ``(256, 3) uint8``.
    """
    shown = (mask != 0) & (mask != IGNORED)
    edge = np.zeros_like(shown)
    edge[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    edge[1:] |= mask[1:] != mask[:-1]
    share = np.where(edge & shown, EDGE, STRENGTH)[..., None] * shown[..., None]
    mixed = (1.0 - share) * image + share * palette[mask]
    laid: Pixels = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
    return laid
