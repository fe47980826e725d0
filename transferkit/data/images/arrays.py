"""Files whose pictures are arrays: ``.npy``, and TIFF and PNG of more bands, or deeper ones, than Pillow reads."""

from __future__ import annotations

import io
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from transferkit.core.records import Decoding
from transferkit.data.images.readers import Refused

__all__ = ["ARRAY", "array_shape", "is_array", "read_array"]

ARRAY: Final = "NPY"
"""The format of numpy's files."""

_INSTALL: Final = "pip install 'transferkit[tiff]'"
_WIDTH, _HEIGHT, _BITS, _ORIENTATION, _SAMPLES, _EXTRA = 256, 257, 258, 274, 277, 338  # TIFF 6.0 tags
_ALPHA: Final = (1, 2)
_PILLOW: Final = 4
"""Samples that Pillow has modes for, at most."""
_BIG: Final = 43
_PNG_KIND: Final = slice(24, 26)
"""Where a PNG has its bit depth and colour type: PNG specification, 11.2.1 IHDR."""


class _Bands(NamedTuple):
    """What the header of a TIFF says of its first picture."""

    height: int
    width: int
    samples: int
    bits: int
    extra: tuple[int, ...]
    orientation: int


def is_array(data: bytes, kind: str, decoding: Decoding) -> bool:
    """Whether a file is read as an array: Pillow reads the others.

    Args:
        data: The file.
        kind: Its format.
        decoding: How many channels it shall have, and whether deep values have a range.
    """
    if kind == "PNG":
        return decoding.value_range is not None and data[_PNG_KIND] in (b"\x10\x02", b"\x10\x06")
    if kind != "TIFF":
        return kind == ARRAY
    if decoding.channels == len("RGB") and decoding.value_range is None:
        return False
    bands = _bands(data)
    if bands is None:  # for Pillow to say what is wrong
        return False
    if bands.samples > _PILLOW or decoding.channels == 2 or decoding.channels > _PILLOW:
        return bands.samples > 1
    deep = bands.bits > 8 and (decoding.value_range is not None or decoding.channels != 3)
    bare = bands.samples == 4 and decoding.channels == 4 and not any(extra in _ALPHA for extra in bands.extra)
    return bands.samples > 1 and (deep or bare)


def array_shape(data: bytes, kind: str) -> tuple[int, int]:
    """Return height and width of an array's picture, by its header.

    Raises:
        Refused: It is no array of a picture.
    """
    if kind == "PNG":
        return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
    if kind == "TIFF":
        bands = _bands(data)
        if bands is None:
            raise Refused("its header cannot be read")
        return bands.height, bands.width
    shape = _header(data)[0]
    if len(shape) not in (2, 3):
        raise Refused(f"an array of shape {shape}, expected (height, width) or (height, width, channels)")
    return shape[0], shape[1]


def read_array(data: bytes, kind: str) -> npt.NDArray[Any]:
    """Return the values of a file that `is_array`, ``(H, W)`` or ``(H, W, C)``, as they are stored.

    Raises:
        Refused: It holds objects, is stored turned, or needs a package that is missing.
    """
    if kind == "PNG":
        return _deep_png(data)
    if kind != "TIFF":
        if _header(data)[1].hasobject:
            raise Refused("an array of Python objects, which may run code; expected numbers")
        values: npt.NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
        return values
    bands = _bands(data)
    if bands is not None and bands.orientation != 1:
        raise Refused(f"bands that are stored turned (orientation {bands.orientation}); store them upright")
    try:
        import tifffile
    except ImportError as error:
        raise Refused(f"TIFF of several bands or deep colour needs tifffile ({_INSTALL})", passing=True) from error
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        try:
            values = page.asarray()
        except ValueError as error:  # a compression that needs a package
            raise Refused(f"tifffile says {str(error)!r}", passing=True) from error
        return np.moveaxis(values, page.axes.index("S"), -1) if "S" in page.axes and values.ndim == 3 else values


def _deep_png(data: bytes) -> npt.NDArray[Any]:
    """Return the 16 bits of a colour PNG, of which Pillow drops the low ones."""
    import cv2  # not before: a check of other pictures needs none

    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None:
        raise Refused("it is damaged")
    order = [2, 1, 0, 3][: decoded.shape[2]]
    return decoded[..., order]


def _header(data: bytes) -> tuple[tuple[int, ...], np.dtype[Any]]:
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = read(file)
    return shape, kind


def _bands(data: bytes) -> _Bands | None:
    """Return the facts of a TIFF; ``None`` where its header is damaged."""
    file = io.BytesIO(data)
    try:
        start = file.read(8)
        start += file.read(8) if _BIG in start[2:4] else b""
        tags = ImageFileDirectory_v2(start)
        file.seek(tags.next)
        tags.load(file)
        extra = tags.get(_EXTRA, ())
        return _Bands(
            int(tags[_HEIGHT]), int(tags[_WIDTH]), int(tags.get(_SAMPLES, 1)), int(tags.get(_BITS, (1,))[0]),
            tuple(extra) if isinstance(extra, tuple) else (int(extra),), int(tags.get(_ORIENTATION, 1)),
        )  # fmt: skip
    except Exception:  # Pillow's parser meets arbitrary bytes
        return None
