"""Pillow's readers of the formats, called without its guesses, its warnings and its own limit of pixels."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import threading
import warnings
from collections.abc import Iterator
from typing import Any, Final, cast

from PIL import Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from transferkit.data.scan.formats import EXTRAS, install_line

__all__ = ["Refused", "open_picture", "quiet_pillow"]

# The plugin classes are called directly, not through `Image.open`: that fixes the formats, reads an MPO as the JPEG it
# starts with, and gives the size of a bomb before Pillow refuses it without naming width and height.
_PLUGINS: Final[dict[str, type[ImageFile]]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "BMP": BmpImageFile,
    "GIF": GifImageFile,
    "TIFF": TiffImageFile,
    "AVIF": AvifImageFile,
}
_METADATA: Final = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_LARGE: Final = 1024
"""Bytes of a chunk, as it is compressed; what it would become is not known."""


class Refused(Exception):
    """A reason of our own to refuse a picture.

    Attributes:
        passing: Whether the same bytes may be read another time: with another option, or when something is installed.
    """

    def __init__(self, reason: str, *, passing: bool = False) -> None:
        super().__init__(reason)
        self.passing = passing


def open_picture(data: bytes, kind: str, max_pixels: int) -> ImageFile:
    """Return a picture whose header is read and whose pixels are not.

    Args:
        data: The bytes of its file.
        kind: Its format, as `sniff_format` says.
        max_pixels: Pillow refuses large pictures of some formats by a limit of its own; it is raised to this.

    Raises:
        Refused: The format needs a package that is not installed.
        Exception: Of Pillow, whose parsers raise almost anything.
    """
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels  # of the whole process; only where larger pictures were asked for
    if kind == "PNG":
        data = _without_large_metadata(data)
    return (_heif() if kind == "HEIF" else _PLUGINS[kind])(io.BytesIO(data))


def _heif() -> type[ImageFile]:
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise Refused(f"HEIC pictures need {EXTRAS['HEIF'].package} ({install_line('HEIF')})", passing=True) from error
    return HeifImageFile


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


# ---- Pillow's warnings ------------------------------------------------------------------------------------------

_lock = threading.Lock()
_logger: Final = logging.getLogger("PIL")
_silence: Final = logging.NullHandler()
_depth = 0
_PATTERN: Final = r"PIL\."
_FILTER: Final = ("ignore", None, Warning, re.compile(_PATTERN), 0)  # the entry `filterwarnings` makes of it


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """Ignore warnings and log lines of Pillow (odd metadata, large pictures) until the last thread has left the block.

    `warnings.catch_warnings` swaps the whole list of filters, so two threads that overlap leave a wrong list behind.
    Here exactly one entry, which matches Pillow's modules alone, is put in and taken out.
    """
    global _depth
    with _lock:
        if _depth == 0:
            warnings.filterwarnings("ignore", module=_PATTERN)
            _logger.addHandler(_silence)  # whoever has a handler gets them; the terminal does not
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                _logger.removeHandler(_silence)
                with contextlib.suppress(ValueError):  # someone else restored the list meanwhile
                    cast(list[Any], warnings.filters).remove(_FILTER)
