"""From a mask file to the values that it stores, upright, whatever they mean.

- Formats without loss alone: PNG, TIFF, BMP. JPEG and its like change values at every edge and are refused; so is GIF,
  whose writers number colours anew.
- Of indexed colours the index counts, of grey the level (1 to 16 bits, as stored), of RGB whose channels are equal the
  level, too; other colours are packed into one number.
- A mask is turned by its own EXIF orientation, and by its picture's where it fits only the unturned picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from transferkit.core.errors import DataError
from transferkit.core.records import USUAL
from transferkit.data.images.decode import (
    UnreadableImage,
    check_size,
    kind_of,
    orientation_of,
    read_bytes,
    reading_errors,
)
from transferkit.data.images.readers import Refused, open_picture, quiet_pillow
from transferkit.data.scan.palette import Colour

__all__ = [
    "Stored",
    "UnusableMask",
    "Values",
    "colour_text",
    "mask_bytes",
    "packed",
    "stored_values",
    "turned",
    "turned_to",
]

_LOSSLESS: Final = ("PNG", "TIFF", "BMP")
_PNG_DEPTH, _PNG_KIND, _PNG_GREY, _PNG_RGB = 24, 25, 0, 2  # PNG specification, 11.2.1 IHDR
_BITS_PER_SAMPLE: Final = 258  # TIFF 6.0

_Values: TypeAlias = npt.NDArray[Any]
"""``(H, W)``, of any kind of whole numbers."""


Values: TypeAlias = npt.NDArray[Any]
"""``(H, W)``, of any kind of whole numbers."""


class UnusableMask(DataError):
    """A mask is missing, is no mask, or does not fit its picture.

    Attributes:
        path: The file.
        reason: Why, without the path.
    """

    def __init__(self, message: str, *, path: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.path = path
        self.reason = reason or message

    @classmethod
    def of(cls, path: str, reason: str) -> UnusableMask:
        """Return the error for a file."""
        message = f"cannot use mask {path!r}: {reason} - correct or remove it, or pass --skip-bad to leave it out"
        return cls(message, path=path, reason=reason)


class Stored(StrEnum):
    """How values stand in a file."""

    INDEX = "indexed"
    GREY = "grey"
    BIT = "of one bit"
    COLOUR = "coloured"


def mask_bytes(path: str) -> bytes:
    """Return the bytes of a mask file. Raises `UnusableMask`."""
    try:
        return read_bytes(path)
    except UnreadableImage as error:
        raise UnusableMask.of(path, error.reason) from error


def stored_values(data: bytes, path: str, *, coloured: bool) -> tuple[Values, Stored, tuple[Colour, ...]]:
    """Return the values of a file as they are stored, how they are, and the colours of an indexed one."""
    try:
        with reading_errors(path), quiet_pillow():
            image = _opened(data)
            orientation = orientation_of(image)
            values, stored, legend = _values(image, data)
    except UnreadableImage as error:
        raise UnusableMask.of(path, error.reason) from error
    values = turned(values, orientation)
    if values.ndim == 3:
        return _packed_pixels(values), Stored.COLOUR, ()
    if coloured:
        return _in_colours(path, values, stored, legend), Stored.COLOUR, ()
    return values, stored, legend


def _opened(data: bytes) -> Image.Image:
    kind = kind_of(data)
    if kind not in _LOSSLESS:
        raise Refused(f"{kind} does not keep values as they are - save masks as PNG, from before they were {kind}")
    image = open_picture(data, kind, USUAL.max_pixels)
    check_size(*image.size, USUAL.max_pixels)
    compression = str(image.info.get("compression", ""))
    if kind == "TIFF" and ("jpeg" in compression or "webp" in compression):
        raise Refused(f"its pixels are compressed as {compression}, which does not keep values as they are")
    if getattr(image, "n_frames", 1) > 1:
        raise Refused(f"it has {image.n_frames} pages, expected one")  # type: ignore[attr-defined]
    image.load()
    return image


def _values(image: Image.Image, data: bytes) -> tuple[Values, Stored, tuple[Colour, ...]]:
    deep = image.format == "PNG" and data[_PNG_DEPTH] > 8
    if image.mode in ("RGBA", "LA", "PA"):
        if image.getchannel("A").getextrema() != (255, 255):
            raise Refused("it has transparent pixels, which stand for no class - save it without transparency")
        image = image.convert("RGB") if image.mode == "RGBA" else image.getchannel(0)
    if image.mode == "RGB":
        if deep:
            raise Refused("its colours have 16 bits, expected 8")
        pixels = np.asarray(image)
        if (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all():
            return np.ascontiguousarray(pixels[..., 0]), Stored.GREY, ()
        return pixels, Stored.COLOUR, ()
    if image.mode == "P":
        flat = image.getpalette("RGB") or []
        legend = tuple((flat[at], flat[at + 1], flat[at + 2]) for at in range(0, len(flat) - 2, 3))
        return np.asarray(image), Stored.INDEX, legend
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8), Stored.BIT, ()
    if image.mode == "L":
        levels = np.asarray(image)
        bits = _grey_bits(image, data)
        return (levels // (255 // ((1 << bits) - 1)) if bits in (2, 4) else levels), Stored.GREY, ()
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16), Stored.GREY, ()
    if image.mode == "I":
        numbers = np.asarray(image)
        if numbers.min() < 0:
            raise Refused(f"it holds numbers below 0, such as {numbers.min()}")
        return numbers, Stored.GREY, ()
    raise Refused(f"its pixels are of mode {image.mode}, expected indices, grey levels or RGB colours")


def _grey_bits(image: Image.Image, data: bytes) -> int:
    """Return the bits of grey levels, which Pillow stretches to eight: 3 of two bits becomes 255."""
    if image.format == "PNG":
        return data[_PNG_DEPTH] if data[_PNG_KIND] == _PNG_GREY else 8
    return int(image.tag_v2.get(_BITS_PER_SAMPLE, (8,))[0]) if isinstance(image, TiffImageFile) else 8


def _in_colours(path: str, values: Values, stored: Stored, legend: Sequence[Colour]) -> Values:
    """Return the colours that indices or grey levels are seen as."""
    if stored is Stored.INDEX:
        if int(values.max()) >= len(legend):
            raise UnusableMask.of(path, f"it holds index {values.max()}, and its palette has {len(legend)} colours")
        return np.array([packed(colour) for colour in legend], dtype=np.int32)[values]
    levels = values.astype(np.int32) * (255 if stored is Stored.BIT else 1)
    if int(levels.max()) > 255:
        raise UnusableMask.of(path, f"it holds level {levels.max()}, and the palette names colours of 8 bits")
    return levels * 0x010101


def turned_to(path: str, values: Values, size: tuple[int, int], orientation: int) -> tuple[Values, int]:
    """Return a mask upright, and the orientation it was turned by: where it fits only the unturned picture."""
    if values.shape == size:
        return values, 1
    if orientation >= 5 and values.shape == size[::-1]:
        return turned(values, orientation), orientation
    height, width = values.shape
    reason = f"it has {width} x {height} pixels, and its picture {size[1]} x {size[0]}"
    raise UnusableMask.of(path, reason)


def turned(values: Values, orientation: int) -> Values:
    """Return an array as EXIF orientation wants it seen: EXIF 2.32, 4.6.4."""
    match orientation:
        case 2:
            turned = values[:, ::-1]
        case 3:
            turned = values[::-1, ::-1]
        case 4:
            turned = values[::-1]
        case 5:
            turned = values.swapaxes(0, 1)
        case 6:
            turned = np.rot90(values, -1)
        case 7:
            turned = values[::-1, ::-1].swapaxes(0, 1)
        case 8:
            turned = np.rot90(values)
        case _:
            return values
    return np.ascontiguousarray(turned)


def packed(value: int | Colour) -> int:
    """Return a colour as ``r << 16 | g << 8 | b``, and a number as it is."""
    return value if isinstance(value, int) else value[0] << 16 | value[1] << 8 | value[2]


def _packed_pixels(pixels: Values) -> Values:
    wide = pixels.astype(np.int32)
    packed: Values = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
    return packed


def colour_text(packed: int) -> str:
    """Return a packed colour as ``#rrggbb``."""
    return f"#{packed:06x}"
