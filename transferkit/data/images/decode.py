"""From the bytes of one picture to upright pixels: the one decoder of training, caching, evaluation and prediction.

What a file becomes depends on its bytes, `min_side` and `Decoding` alone, never on its name, thread or earlier calls:

- The format is read from the content: JPEG (with MPO, whose first picture is a JPEG), PNG, WebP, BMP, GIF, TIFF, AVIF,
  and HEIC where pillow-heif is installed.
- EXIF orientation is applied. Of an animation or a file with several pages the first frame counts.
- Grey is replicated to three channels; palettes and CMYK are converted; transparency is laid over a ground. Other
  numbers of channels go as `transferkit.data.images.channels` says; arrays and TIFF of many bands have no orientation.
- 16-bit grey is scaled by its bit depth (Pillow's own conversion saturates). Floating-point, 32-bit and signed pixels
  have no agreed range and are refused, unless one is given.
- The pixel limit is checked on the header, before anything is decoded; of a JPEG that is decoded at a fraction of its
  size, on that fraction. Truncated files are refused. Metadata of any size are no reason to refuse a picture.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from transferkit.core.errors import ConfigError, DataError
from transferkit.core.records import DEEPEST, USUAL, Decoding
from transferkit.data.images.arrays import array_shape, is_array, read_array
from transferkit.data.images.channels import BITS_PER_SAMPLE, Pixels, from_array, from_picture, shaped
from transferkit.data.images.jpeg import jpeg_pixels
from transferkit.data.images.readers import Refused, open_picture, quiet_pillow
from transferkit.data.scan.formats import FORMATS, sniff_format

__all__ = [
    "MAX_FILE_BYTES",
    "ImageInfo",
    "Pixels",
    "UnreadableImage",
    "check_size",
    "decode_image",
    "decode_with_info",
    "header_size",
    "image_pixels",
    "kind_of",
    "orientation_of",
    "pixels_digest",
    "read_bytes",
    "reading_errors",
]

SCALED: Final = 10
"""Times the limit of pixels: the largest JPEG that is decoded at a fraction of its size. Phones write 200 Mpx."""

MAX_FILE_BYTES: Final = 1 << 30
"""The largest file read, in bytes."""

_SNIFFED: Final = 256
"""Bytes that a format is told by."""
_PNG_DEPTH: Final = 24
"""Where a PNG has its bit depth: PNG specification, 11.2.1 IHDR."""
_ORIENTATION = 0x0112  # TIFF 6.0 and EXIF
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImage(DataError):
    """A file is missing, cannot be read, or is not a picture that can be decoded.

    Built from its message alone, so that it survives pickling and a DataLoader worker's re-raise.

    Attributes:
        path: The file, or the name given for bytes.
        reason: Why, without the path.
        passing: Whether the same bytes may be read another time: with another option, more memory, or when something
            is installed.
    """

    def __init__(self, message: str, *, path: str = "", reason: str = "", passing: bool = False) -> None:
        super().__init__(message)
        self.path = path
        self.reason = reason or message
        self.passing = passing


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """The facts in the header of a picture.

    Attributes:
        format: One of `FORMATS`.
        mode: Pillow's name for the stored pixels, as ``"RGB"``, ``"L"``, ``"I;16"``.
        width: Of the whole picture in pixels, upright and before scaled decoding.
        height: Likewise.
        animated: Whether there are further frames or pages, which are not used.
        transparent: Whether some pixels may be see-through.
        one_colour: Whether all pixels, as decoded, are equal.
        peak: Of pixels of 16 bits the largest value, in [0, 65535]; ``None`` for all others.
        orientation: As EXIF counts, 1 to 8: how the stored pixels were turned to be upright.
    """

    format: str
    mode: str
    width: int
    height: int
    animated: bool
    transparent: bool
    one_colour: bool = False
    peak: int | None = None
    orientation: int = 1

    @property
    def grey(self) -> bool:
        """Whether the picture is stored without colour."""
        return self.mode in {"1", "L", "LA", "La", "I", "F"} or self.mode.startswith(("I;16", "1 x "))


def decode_image(
    source: str | os.PathLike[str] | bytes,
    *,
    min_side: int | None = None,
    decoding: Decoding = USUAL,
    name: str | None = None,
) -> Pixels:
    """Decode one picture.

    Args:
        source: A path, or the bytes of a file.
        min_side: Lets a JPEG be decoded at 1/2, 1/4 or 1/8 of its size, as long as the short side keeps at least this
            many pixels. Much faster for photos far larger than the network's input. ``None`` decodes at full size.
        decoding: What there is to choose.
        name: How messages name the picture; by default its path.

    Returns:
        ``(H, W, C)`` uint8, RGB of three channels, upright, C-contiguous, writable.

    Raises:
        UnreadableImage: Missing, unreadable, truncated, too large, or not a picture of a known kind.
        ConfigError: `min_side` is below 1.
    """
    return decode_with_info(source, min_side=min_side, decoding=decoding, name=name)[0]


def decode_with_info(
    source: str | os.PathLike[str] | bytes,
    *,
    min_side: int | None = None,
    decoding: Decoding = USUAL,
    name: str | None = None,
) -> tuple[Pixels, ImageInfo]:
    """Like `decode_image`, with what the header says. Raises `UnreadableImage`."""
    if min_side is not None and min_side < 1:
        raise ConfigError(f"expected min_side to be at least 1 pixel, but got {min_side}; pass None for full size")
    if name is None:
        name = "<bytes>" if isinstance(source, bytes) else os.fspath(source)
    with reading_errors(name):
        data = source if isinstance(source, bytes) else _read(source)
        with quiet_pillow():
            return _decode(data, min_side, decoding)


def image_pixels(image: Image.Image, *, decoding: Decoding = USUAL, name: str = "<image>") -> Pixels:
    """Return the pixels of a Pillow picture, by the rules that files are decoded by, at full size.

    Args:
        image: In any format and mode; loaded if it is not yet, else left as it is. Of several frames the current one
            counts.
        decoding: What there is to choose.
        name: How messages call it.

    Returns:
        ``(H, W, C)`` uint8, RGB of three channels, upright, C-contiguous, writable.

    Raises:
        UnreadableImage: Closed, truncated, too large, or of pixels that have no agreed range.
    """
    with reading_errors(name), quiet_pillow():
        check_size(image.width, image.height, decoding.max_pixels)
        image.load()
        orientation = orientation_of(image)
        return shaped(np.array(_turned(from_picture(image, decoding), orientation)))


def pixels_digest(pixels: Pixels) -> str:
    """Return the sha256, in hex, that pixels ``(H, W, C) uint8`` are known by; no file's bytes have the same."""
    height, width, channels = pixels.shape
    size = f"{height} {width}" if channels == 3 else f"{height} {width} {channels}"
    digest = hashlib.sha256(f"transferkit pixels\0{size}\0".encode())  # no picture file starts like this
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Read a whole file, refusing what is not a regular file and what is larger than `MAX_FILE_BYTES`.

    Raises:
        UnreadableImage: With the path and the system's reason.
    """
    with reading_errors(os.fspath(path)):
        return _read(path)


def header_size(path: str | os.PathLike[str], decoding: Decoding = USUAL) -> tuple[int, int, int]:
    """Return height and width of a picture, upright, and its EXIF orientation, from its header.

    Raises:
        UnreadableImage: It cannot be read, or is no picture.
    """
    data = read_bytes(path)
    with reading_errors(os.fspath(path)), quiet_pillow():
        kind = kind_of(data)
        if is_array(data, kind, decoding):
            return (*array_shape(data, kind), 1)
        image = open_picture(data, kind, decoding.max_pixels)
        orientation = orientation_of(image)
        width, height = image.size
        return (width, height, orientation) if orientation >= 5 else (height, width, orientation)


@contextlib.contextmanager
def reading_errors(name: str) -> Iterator[None]:
    """Turn whatever goes wrong in the block into an `UnreadableImage` of this name."""
    try:
        yield
    except Refused as error:
        raise _error(name, str(error), passing=error.passing) from None
    except Image.DecompressionBombError as error:  # by Pillow's own limit, of a WebP or a frame
        raise _error(name, f"{str(error).split(',')[0]}, which --max-pixels raises", passing=True) from error
    except MemoryError as error:
        raise _error(name, "there is not enough memory for it", passing=True) from error
    except OSError as error:  # of the system, which has a number, or of Pillow
        raise _error(name, error.strerror or str(error), passing=error.errno is not None) from error
    except Exception as error:  # Pillow's parsers meet arbitrary bytes, and raise almost anything
        words = str(error) if " " in str(error) else f"{type(error).__name__} {error}".rstrip()
        raise _error(name, f"Pillow says {words!r}") from error


def _error(name: str, reason: str, *, passing: bool = False) -> UnreadableImage:
    reason = " ".join(reason.split())
    message = f"cannot read picture {name!r}: {reason} - replace or remove it, or pass --skip-bad to leave it out"
    return UnreadableImage(message, path=name, reason=reason, passing=passing)


def _read(source: str | os.PathLike[str]) -> bytes:
    path = Path(source)
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):  # a pipe would hang the run
        raise Refused("not a regular file")
    if facts.st_size > MAX_FILE_BYTES:
        raise Refused(f"{facts.st_size:,} bytes, more than the limit of {MAX_FILE_BYTES:,}")
    return path.read_bytes()


def _decode(data: bytes, min_side: int | None, decoding: Decoding) -> tuple[Pixels, ImageInfo]:
    kind = kind_of(data)
    if is_array(data, kind, decoding):
        return _decode_array(data, kind, decoding)
    image = open_picture(data, kind, decoding.max_pixels)
    width, height = image.size
    side = min_side if kind == "JPEG" else None
    check_size(width, height, decoding.max_pixels * (1 if side is None else SCALED))
    mode, animated, transparent = image.mode, bool(getattr(image, "is_animated", False)), image.has_transparency_data
    if side is not None:  # it is the short one that is kept, however the camera was held
        image.draft(None, (side, side))
        check_size(*image.size, decoding.max_pixels)
    stored = orientation_of(image) if kind == "TIFF" else 1  # which forgets it while loading
    quick = isinstance(image, JpegImageFile) and decoding.channels == 3
    pixels = jpeg_pixels(data, image) if quick else None  # type: ignore[arg-type]
    if pixels is None:
        image.load()
    orientation = orientation_of(image)
    if pixels is None:
        pixels = shaped(np.array(_turned(from_picture(image, decoding), orientation)))
    elif orientation in _UPRIGHT:
        pixels = np.array(_turned(Image.fromarray(pixels), orientation))
    if (image.width > image.height) != (width > height) and kind in ("TIFF", "HEIF"):
        width, height = height, width  # those that are turned while loading
    if orientation >= 5:
        width, height = height, width
    peak = _peak(image, mode, pixels, data)
    blank = _is_one_colour(pixels)
    turned = max(orientation, stored)
    return pixels, ImageInfo(kind, mode, width, height, animated, transparent, blank, peak, turned)


def _decode_array(data: bytes, kind: str, decoding: Decoding) -> tuple[Pixels, ImageInfo]:
    height, width = array_shape(data, kind)
    check_size(width, height, decoding.max_pixels)
    values = read_array(data, kind)
    pixels = from_array(values, decoding)
    mode = f"{1 if values.ndim == 2 else values.shape[2]} x {values.dtype}"
    peak = int(values.max()) if values.dtype == np.uint16 else None
    return pixels, ImageInfo(kind, mode, width, height, False, False, _is_one_colour(pixels), peak)


def _peak(image: Image.Image, mode: str, pixels: Pixels, data: bytes) -> int | None:
    """Return the largest value of pixels of 16 bits; of colour, whose low bytes Pillow drops, about it."""
    if isinstance(image, TiffImageFile):
        deep = image.tag_v2.get(BITS_PER_SAMPLE, (1,))[0] == DEEPEST
    else:
        deep = image.format == "PNG" and data[_PNG_DEPTH] == DEEPEST
    if not deep:
        return None
    return int(np.asarray(image).max()) if mode.startswith("I;16") else int(pixels.max()) * 257


def _is_one_colour(pixels: Pixels) -> bool:
    few = pixels[::16, ::16]  # tells nearly all pictures apart at no cost
    return bool((few == pixels[0, 0]).all() and (pixels == pixels[0, 0]).all())


def kind_of(data: bytes) -> str:
    """Return the format of a file, one of `FORMATS`. Raises `Refused` for what is none."""
    if not data:
        raise Refused("the file is empty")
    kind = sniff_format(data[:_SNIFFED])
    if kind is None:
        raise Refused(f"not a picture of a known format ({', '.join(FORMATS)}); it starts with {data[:8]!r}")
    return kind


def check_size(width: int, height: int, limit: int) -> None:
    """Refuse what has no pixels, or more than `limit`. Raises `Refused`."""
    if width < 1 or height < 1:
        raise Refused(f"it has no pixels ({width} x {height})")
    if width * height > limit:
        raise Refused(
            f"{width} x {height} pixels, more than the limit of {limit:,} pixels, which --max-pixels raises",
            passing=True,
        )


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where there is none or where the metadata are damaged."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged metadata do not make a picture unreadable
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
