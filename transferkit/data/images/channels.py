"""From the values of a file to ``(H, W, C) uint8``: how many channels there are, and what is black and what is white.

Pillow's pictures and arrays go by the same rules. Of `Decoding.channels` 1 is grey, 3 RGB and 4 RGBA: grey is
replicated, colour is weighed to grey, transparency is laid over a ground, and what is opaque has an alpha of 255. Any
other number is that of the file's own bands. Values of 8 bits are levels; deeper ones are scaled to 8 bits by
`Decoding.value_range`, or those of unsigned 16 bits by `Decoding.grey_bits`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from transferkit.core.records import DEEPEST, Decoding
from transferkit.data.images.readers import Refused

__all__ = ["BITS_PER_SAMPLE", "Pixels", "as_rgb", "from_array", "from_picture", "levels"]

Pixels: TypeAlias = npt.NDArray[np.uint8]
"""``(H, W, C) uint8``, of three channels RGB, upright."""

BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # TIFF 6.0 tags
_MODES: Final = {1: "L", 3: "RGB", 4: "RGBA"}


def from_picture(image: Image.Image, decoding: Decoding) -> Image.Image:
    """Return a loaded picture of mode L, RGB or RGBA, as `decoding` has it.

    Raises:
        Refused: It has another number of channels, or values without a range.
    """
    if decoding.channels not in _MODES:
        raise Refused(f"it has {len(image.getbands())} channels, expected {decoding.channels} (--channels)")
    if image.mode in {"I", "F"}:
        if decoding.value_range is None:
            kind = "floating-point" if image.mode == "F" else "32-bit or signed integer"
            raise Refused(f"{kind} pixels have no agreed range; convert it to 8 or 16 bits, or pass --value-range")
        image = Image.fromarray(levels(np.asarray(image), decoding))
    if image.mode.startswith("I;16"):
        image = _from_16_bit(image, decoding)
    if decoding.channels == 4:
        return image.convert("RGBA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        page = Image.new("RGB", image.size, decoding.ground)
        page.paste(image, mask=image.getchannel("A"))
        image = page
    mode = _MODES[decoding.channels]
    return image if image.mode == mode else image.convert(mode)


def from_array(values: npt.NDArray[Any], decoding: Decoding) -> Pixels:
    """Return the pixels of an array, ``(H, W)`` or ``(H, W, C)``, of any kind of numbers; a new one, contiguous.

    Raises:
        Refused: It has another number of channels, or values without a range.
    """
    if values.ndim not in (2, 3):
        raise Refused(f"an array of shape {values.shape}, expected (height, width) or (height, width, channels)")
    planes = values[..., None] if values.ndim == 2 else values
    count, channels = planes.shape[2], decoding.channels
    if count != channels and not (count in (1, 3) and channels in _MODES):
        first = " - channels come last, as np.moveaxis(a, 0, -1) has them" if values.shape[0] == channels else ""
        raise Refused(f"it has {count} channels, expected {channels} (--channels){first}")
    pixels = levels(planes, decoding)
    if count == channels:
        return np.ascontiguousarray(pixels)
    picture = Image.fromarray(pixels[..., 0] if count == 1 else pixels)
    return shaped(np.array(from_picture(picture, decoding)))


def levels(values: npt.NDArray[Any], decoding: Decoding) -> Pixels:
    """Return values as levels of 8 bits, rounded; those of 8 bits as they are.

    Raises:
        Refused: They have no range, or some are no numbers.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind not in "uif":
        raise Refused(f"{values.dtype} is no kind of pixels, expected numbers")
    if decoding.value_range is None:
        if values.dtype.itemsize != 2 or values.dtype.kind != "u":
            raise Refused(f"{values.dtype} pixels have no agreed range; convert it to 8 or 16 bits, or pass "
                          "--value-range")  # fmt: skip
        top = (1 << decoding.grey_bits) - 1
        whole = values.astype(np.uint32)
        whole = (np.minimum(whole, top) * 255 + top // 2) // top
        return whole.astype(np.uint8)
    low, high = decoding.value_range
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    if values.dtype.kind == "f" and np.isnan(scaled).any():
        raise Refused("some of its values are NaN; fill them before")
    rounded: Pixels = np.rint(scaled.clip(0, 255)).astype(np.uint8)
    return rounded


def shaped(pixels: Pixels) -> Pixels:
    """Return pixels with an axis for their channels, where grey has none."""
    return pixels[..., None] if pixels.ndim == 2 else pixels


def as_rgb(pixels: Pixels) -> Pixels:
    """Return what can be looked at of pixels ``(H, W, C)``: grey as it is, else the first three channels."""
    count = pixels.shape[2]
    if count == 3:
        return pixels
    return np.ascontiguousarray(np.repeat(pixels[..., :1], 3, axis=2) if count < 3 else pixels[..., :3])


def _from_16_bit(image: Image.Image, decoding: Decoding) -> Image.Image:
    """Scale grey of 9 to 16 bits to 8, keeping a transparent level (PNG) as an alpha channel."""
    white_is_zero = False
    if isinstance(image, TiffImageFile):
        named = image.tag_v2.get(BITS_PER_SAMPLE, (DEEPEST,))[0]
        decoding = decoding if named == DEEPEST else replace(decoding, grey_bits=named)
        white_is_zero = image.tag_v2.get(_PHOTOMETRIC, 1) == 0
    values = np.asarray(image)
    grey = levels(values.astype(np.uint16), decoding)
    if white_is_zero:
        grey = 255 - grey
    level = image.info.get("transparency")
    if isinstance(level, int):
        return Image.fromarray(np.stack([grey, np.where(values == level, 0, 255).astype(np.uint8)], axis=-1))
    return Image.fromarray(grey)
