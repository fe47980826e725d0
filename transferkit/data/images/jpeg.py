"""JPEGs of the usual kinds by libjpeg-turbo alone: the pixels that Pillow makes of them, in about half the time."""

from __future__ import annotations

import io
from functools import lru_cache
from itertools import product
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

__all__ = ["jpeg_pixels"]

_KINDS: Final = {"YCbCr": {"444", "422", "420"}, "Gray": {"Gray"}}
"""Colours and samplings that cameras, phones and programs write, of 8 bits. Pillow has all others."""

_LEAST: Final = 64
"""Pixels of a side from which a size names one scale: of 5 pixels a half and three eighths are both rounded to 3."""

_SCALES: Final = (1, 2, 4, 8)


def jpeg_pixels(data: bytes, image: JpegImageFile) -> npt.NDArray[np.uint8] | None:
    """Decode a JPEG at the size that its opened picture has, which may be drafted to 1/2, 1/4 or 1/8.

    Pillow copies every row three times on its way to an array, holding the interpreter's lock; simplejpeg has
    libjpeg-turbo write into the array, and lets other threads go on. Both ask it for the same transform ("islow") and
    the same smooth upsampling, so pixels are equal. That is tried on this machine, once per process, before it is
    relied on: so keys of stores, which name Pillow and its libraries, name these pixels, too.

    Args:
        data: The file.
        image: Its picture by Pillow, not loaded.

    Returns:
        ``(height, width, 3) uint8``, RGB, as it is stored, not turned; or ``None``, where Pillow is to decode: of
        another kind, damaged in any way (what is refused and what is not is for Pillow to say), or simplejpeg is not
        installed or makes other pixels.
    """
    width, height = image.size
    if image.mode not in ("RGB", "L") or min(width, height) < _LEAST or not _agrees():
        return None
    return _decoded(data, height, width)


def _decoded(data: bytes, height: int, width: int) -> npt.NDArray[np.uint8] | None:
    library = _library()
    try:
        _, _, colours, sampling = library.decode_jpeg_header(data)
        if sampling not in _KINDS.get(colours, ()):
            return None
        pixels: npt.NDArray[np.uint8] = library.decode_jpeg(data, "RGB", min_height=height, min_width=width)
    except ValueError:  # anything that libjpeg remarks upon
        return None
    return pixels if pixels.shape == (height, width, 3) else None


@lru_cache(maxsize=1)
def _library() -> Any:
    """Return simplejpeg, or ``None`` where it is not installed."""
    try:
        import simplejpeg  # type: ignore[import-untyped]
    except ImportError:  # no wheel for this system
        return None
    return simplejpeg


@lru_cache(maxsize=1)
def _agrees() -> bool:
    """Return whether simplejpeg makes Pillow's pixels of each kind at each scale; a few milliseconds."""
    if _library() is None:
        return False
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 256, (9, 13, 3), dtype=np.uint8)).resize((171, 131))
    noise = generator.integers(0, 40, (131, 171, 3), dtype=np.uint8)
    picture = Image.fromarray(np.asarray(coarse) // 2 + noise)
    return all(
        _agrees_on(_encoded(picture, sampling, progressive), scale)
        for sampling, progressive, scale in product((0, 1, 2, None), (False, True), _SCALES)
    )


def _encoded(picture: Image.Image, sampling: int | None, progressive: bool) -> bytes:
    """Return a JPEG of Pillow's sampling 0, 1 or 2; grey where that is ``None``."""
    file = io.BytesIO()
    if sampling is None:
        picture.convert("L").save(file, "JPEG", progressive=progressive)
    else:
        picture.save(file, "JPEG", subsampling=sampling, progressive=progressive)
    return file.getvalue()


def _agrees_on(data: bytes, scale: int) -> bool:
    image = JpegImageFile(io.BytesIO(data))
    image.draft(None, (image.width // scale, image.height // scale))
    width, height = image.size
    pixels = _decoded(data, height, width)
    return pixels is not None and np.array_equal(pixels, np.asarray(image.convert("RGB")))
