"""From the bytes of one picture to upright RGB pixels: the one decoder of training, caching, evaluation and prediction.

What a file becomes depends on its bytes and `min_side` alone, never on its name, the thread or earlier calls:

- The format is read from the content: JPEG (with MPO, whose first picture is a JPEG), PNG, WebP, BMP, GIF, TIFF.
- EXIF orientation is applied. Of an animation or a file with several pages the first frame counts.
- Grey is replicated to three channels; palettes and CMYK are converted; transparency is laid over `BACKGROUND`.
- 16-bit grey is scaled by its bit depth (Pillow's own conversion saturates). Floating-point, 32-bit and signed pixels
  have no agreed range and are refused.
- The pixel limit is checked on the header, before anything is decoded; of a JPEG that is decoded at a fraction of its
  size, on that fraction. Truncated files are refused. Metadata of any size are no reason to refuse a picture.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from transferkit.core.errors import ConfigError, DataError
from transferkit.data.scan.formats import FORMATS, sniff_format

__all__ = [
    "BACKGROUND",
    "MAX_FILE_BYTES",
    "MAX_PIXELS",
    "ImageInfo",
    "Pixels",
    "UnreadableImage",
    "decode_image",
    "decode_with_info",
    "image_pixels",
    "pixels_digest",
    "quiet_pillow",
    "read_bytes",
]

Pixels: TypeAlias = npt.NDArray[np.uint8]
"""``(H, W, 3) uint8``, RGB, upright."""

BACKGROUND: Final = (255, 255, 255)
"""The colour that shows through transparent pixels: white, as on a page."""

MAX_PIXELS: Final = 100_000_000
"""The largest picture decoded, in pixels; about 300 MB as RGB."""

MAX_SCALED_PIXELS: Final = 10 * MAX_PIXELS
"""The largest JPEG that is decoded at a fraction of its size: phones write 200 megapixels."""

MAX_FILE_BYTES: Final = 1 << 30
"""The largest file read, in bytes."""

# The plugin classes are called directly, not through `Image.open`: that fixes the formats, reads an MPO as the JPEG it
# starts with, and gives the size of a bomb before Pillow refuses it without naming width and height.
_PLUGINS: Final[dict[str, type[ImageFile]]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "BMP": BmpImageFile,
    "GIF": GifImageFile,
    "TIFF": TiffImageFile,
}
_METADATA: Final = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_LARGE: Final = 1024
"""Bytes of a chunk, as it is compressed; what it would become is not known."""
_ORIENTATION, _BITS_PER_SAMPLE, _PHOTOMETRIC = 0x0112, 258, 262  # TIFF 6.0 and EXIF tags
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
    """

    def __init__(self, message: str, *, path: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.path = path
        self.reason = reason or message


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """The facts in the header of a picture.

    Attributes:
        format: ``"JPEG"``, ``"PNG"``, ``"WEBP"``, ``"BMP"``, ``"GIF"`` or ``"TIFF"``.
        mode: Pillow's name for the stored pixels, as ``"RGB"``, ``"L"``, ``"I;16"``.
        width: Of the whole picture in pixels, upright and before scaled decoding.
        height: Likewise.
        animated: Whether there are further frames or pages, which are not used.
        transparent: Whether some pixels may be see-through.
        one_colour: Whether all pixels, as decoded, are equal.
        peak: Of 16-bit grey the largest value as decoded, in [0, 255]; 255 for all others.
    """

    format: str
    mode: str
    width: int
    height: int
    animated: bool
    transparent: bool
    one_colour: bool = False
    peak: int = 255

    @property
    def grey(self) -> bool:
        """Whether the picture is stored without colour."""
        return self.mode in {"1", "L", "LA", "La"} or self.mode.startswith("I;16")


def decode_image(
    source: str | os.PathLike[str] | bytes, *, min_side: int | None = None, name: str | None = None
) -> Pixels:
    """Decode one picture.

    Args:
        source: A path, or the bytes of a file.
        min_side: Lets a JPEG be decoded at 1/2, 1/4 or 1/8 of its size, as long as the short side keeps at least this
            many pixels. Much faster for photos far larger than the network's input. ``None`` decodes at full size.
        name: How messages name the picture; by default its path.

    Returns:
        ``(H, W, 3)`` uint8 RGB, upright, C-contiguous, writable.

    Raises:
        UnreadableImage: Missing, unreadable, truncated, too large, or not a picture of a known kind.
        ConfigError: `min_side` is below 1.
    """
    return decode_with_info(source, min_side=min_side, name=name)[0]


def decode_with_info(
    source: str | os.PathLike[str] | bytes, *, min_side: int | None = None, name: str | None = None
) -> tuple[Pixels, ImageInfo]:
    """Like `decode_image`, with what the header says. Raises `UnreadableImage`."""
    if min_side is not None and min_side < 1:
        raise ConfigError(f"expected min_side to be at least 1 pixel, but got {min_side}; pass None for full size")
    if name is None:
        name = "<bytes>" if isinstance(source, bytes) else os.fspath(source)
    with _unreadable(name):
        data = source if isinstance(source, bytes) else _read(source)
        with quiet_pillow():
            return _decode(data, min_side)


def image_pixels(image: Image.Image, *, name: str = "<image>") -> Pixels:
    """Return the pixels of a Pillow picture, by the rules that files are decoded by, at full size.

    Args:
        image: In any format and mode; loaded if it is not yet, else left as it is. Of several frames the current one
            counts.
        name: How messages call it.

    Returns:
        ``(H, W, 3)`` uint8 RGB, upright, C-contiguous, writable.

    Raises:
        UnreadableImage: Closed, truncated, too large, or of pixels that have no agreed range.
    """
    with _unreadable(name), quiet_pillow():
        _check_size(image.width, image.height, MAX_PIXELS)
        image.load()
        orientation = _orientation(image)
        return np.array(_turned(_to_rgb(image), orientation))


def pixels_digest(pixels: Pixels) -> str:
    """Return the sha256, in hex, that pixels ``(H, W, 3) uint8`` are known by; no file's bytes have the same."""
    height, width, _ = pixels.shape
    digest = hashlib.sha256(f"transferkit pixels\0{height} {width}\0".encode())  # no picture file starts like this
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Read a whole file, refusing what is not a regular file and what is larger than `MAX_FILE_BYTES`.

    Raises:
        UnreadableImage: With the path and the system's reason.
    """
    with _unreadable(os.fspath(path)):
        return _read(path)


class _Refused(Exception):
    """A reason of our own to refuse a picture."""


@contextlib.contextmanager
def _unreadable(name: str) -> Iterator[None]:
    """Turn whatever goes wrong in the block into an `UnreadableImage` of this name."""
    try:
        yield
    except _Refused as error:
        raise _error(name, str(error)) from None
    except OSError as error:
        raise _error(name, error.strerror or str(error)) from error
    except Exception as error:  # Pillow's parsers meet arbitrary bytes, and raise almost anything
        raise _error(name, f"{error or type(error).__name__}") from error


def _error(name: str, reason: str) -> UnreadableImage:
    reason = " ".join(reason.split())
    message = f"cannot read picture {name!r}: {reason} - replace or remove it, or pass --skip-bad to leave it out"
    return UnreadableImage(message, path=name, reason=reason)


def _read(source: str | os.PathLike[str]) -> bytes:
    path = Path(source)
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):  # a pipe would hang the run
        raise _Refused("not a regular file")
    if facts.st_size > MAX_FILE_BYTES:
        raise _Refused(f"{facts.st_size:,} bytes, more than the limit of {MAX_FILE_BYTES:,}")
    return path.read_bytes()


def _decode(data: bytes, min_side: int | None) -> tuple[Pixels, ImageInfo]:
    if not data:
        raise _Refused("the file is empty")
    kind = sniff_format(data[:16])
    if kind is None:
        raise _Refused(f"not a picture of a known format ({', '.join(FORMATS)}); it starts with {data[:8]!r}")
    if kind == "PNG":
        data = _without_large_metadata(data)
    image: Image.Image = _PLUGINS[kind](io.BytesIO(data))
    width, height = image.size
    scaled = kind == "JPEG" and min_side is not None
    _check_size(width, height, MAX_SCALED_PIXELS if scaled else MAX_PIXELS)
    mode, animated, transparent = image.mode, bool(getattr(image, "is_animated", False)), image.has_transparency_data
    if min_side is not None:
        image.draft(
            None, (min_side, min_side)
        )  # JPEG only; the side kept is the short one, however the camera was held
        _check_size(*image.size, MAX_PIXELS)
    image.load()
    orientation = _orientation(image)
    rgb = _turned(_to_rgb(image), orientation)
    if (image.width > image.height) != (width > height) and kind == "TIFF":
        width, height = height, width  # Pillow turns a TIFF itself while loading
    if orientation >= 5:
        width, height = height, width
    pixels = np.array(rgb)
    peak = int(pixels.max()) if mode.startswith("I;16") else 255
    return pixels, ImageInfo(kind, mode, width, height, animated, transparent, _is_one_colour(pixels), peak)


def _is_one_colour(pixels: Pixels) -> bool:
    few = pixels[::16, ::16]  # tells nearly all pictures apart at no cost
    return bool((few == pixels[0, 0]).all() and (pixels == pixels[0, 0]).all())


def _without_large_metadata(data: bytes) -> bytes:
    """Return a PNG without its large chunks of text and colour profiles, for which Pillow refuses the whole file."""
    parts, at, whole = [data[:8]], 8, True
    while at + 8 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind in _METADATA and size > _LARGE:
            whole = False
        else:
            parts.append(data[at : at + 12 + size])
        at += 12 + size
    return data if whole else b"".join(parts)


def _check_size(width: int, height: int, limit: int) -> None:
    if width < 1 or height < 1:
        raise _Refused(f"it has no pixels ({width} x {height})")
    if width * height > limit:
        raise _Refused(f"{width} x {height} pixels, more than the limit of {limit:,} pixels")


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where there is none or where the metadata are damaged."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged metadata do not make a picture unreadable
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in {"I", "F"}:
        kind = "floating-point" if image.mode == "F" else "32-bit or signed integer"
        raise _Refused(f"{kind} pixels have no agreed range; convert it to 8 or 16 bits")
    if image.mode.startswith("I;16"):
        image = _from_16_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        page = Image.new("RGB", image.size, BACKGROUND)
        page.paste(image, mask=image.getchannel("A"))
        return page
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Scale grey of 9 to 16 bits to 8, rounded, keeping a transparent level (PNG) as an alpha channel."""
    bits, white_is_zero = 16, False
    if isinstance(image, TiffImageFile):
        bits = image.tag_v2.get(_BITS_PER_SAMPLE, (16,))[0]
        white_is_zero = image.tag_v2.get(_PHOTOMETRIC, 1) == 0
    top = (1 << bits) - 1
    values = np.minimum(np.asarray(image).astype(np.uint32), top)
    grey = ((values * 255 + top // 2) // top).astype(np.uint8)
    if white_is_zero:
        grey = 255 - grey
    level = image.info.get("transparency")
    if isinstance(level, int):
        return Image.fromarray(np.stack([grey, np.where(values == level, 0, 255).astype(np.uint8)], axis=-1), "LA")
    return Image.fromarray(grey)


# ---- Pillow's warnings ------------------------------------------------------------------------------------------

_lock = threading.Lock()
_depth = 0
_PATTERN: Final = r"PIL\."
_FILTER: Final = ("ignore", None, Warning, re.compile(_PATTERN), 0)  # the entry `filterwarnings` makes of it


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """Ignore warnings raised inside Pillow (odd metadata, large pictures) until the last thread has left the block.

    `warnings.catch_warnings` swaps the whole list of filters, so two threads that overlap leave a wrong list behind.
    Here exactly one entry, which matches Pillow's modules alone, is put in and taken out.
    """
    global _depth
    with _lock:
        if _depth == 0:
            warnings.filterwarnings("ignore", module=_PATTERN)
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                with contextlib.suppress(ValueError):  # someone else restored the list meanwhile
                    cast(list[Any], warnings.filters).remove(_FILTER)
