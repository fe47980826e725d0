"""Mask files: what values they store, what those mean, and from a file to the class index of each pixel.

What a mask becomes depends on its values and one `Coding` of the whole set, never on other things in the file:

- Formats without loss alone: PNG, TIFF, BMP, GIF. JPEG and its like change values at every edge and are refused.
- Of indexed colours the index counts, of grey the level (1 to 16 bits, as stored), of RGB whose channels are equal the
  level, too; other colours need a palette that says what they stand for.
- 255 is ignored, unless it stands for a class: masks of 0 and 255 alone have two classes.
- A mask is turned by its own EXIF orientation, and by its picture's where it fits only the unturned picture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from transferkit.core.errors import DataError
from transferkit.core.records import USUAL
from transferkit.core.targets import IGNORED, TargetSpec
from transferkit.core.text import listing
from transferkit.data.images.annotation import Annotation, Mask
from transferkit.data.images.decode import (
    UnreadableImage,
    check_size,
    header_size,
    kind_of,
    orientation_of,
    read_bytes,
    reading_errors,
)
from transferkit.data.images.readers import Refused, open_picture, quiet_pillow
from transferkit.data.scan.palette import Colour

__all__ = [
    "BINARY",
    "CLASSES",
    "Coding",
    "MaskAnnotations",
    "MaskFacts",
    "Stored",
    "UnusableMask",
    "class_digest",
    "colour_text",
    "identity_of",
    "look_at_mask",
    "odd_text",
    "read_mask",
]

CLASSES, BINARY = "classes", "binary"
"""What values of masks may be: class indices (or colours), or anything above 0 for the one class."""

MOST_VALUES: Final = 256
"""Different values of one mask, at most, unless it is read as ``binary``."""

_LOSSLESS: Final = ("PNG", "TIFF", "BMP", "GIF")
_PNG_DEPTH, _PNG_KIND, _PNG_GREY, _PNG_RGB = 24, 25, 0, 2  # PNG specification, 11.2.1 IHDR
_BITS_PER_SAMPLE: Final = 258  # TIFF 6.0
_ODD: Final = 256
"""In a table of class indices: this value stands for nothing."""

_Values: TypeAlias = npt.NDArray[Any]
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


@dataclass(frozen=True)
class Coding:
    """The meaning of the values in the masks of one data set or model.

    Attributes:
        values: What stands for each class: a number, or a colour. With `binary`, 0 and 1.
        ignored: Further values whose pixels do not count; of numbers besides 255, unless that stands for a class.
        binary: Whether anything above 0 is class 1.
    """

    values: tuple[int | Colour, ...]
    ignored: tuple[int | Colour, ...] = ()
    binary: bool = False

    @property
    def coloured(self) -> bool:
        """Whether colours stand for the classes."""
        return bool(self.values) and isinstance(self.values[0], tuple)

    @property
    def bit(self) -> int:
        """The number that the ones of a 1-bit mask are: 255 where that stands for a class, and 1 does not."""
        return 255 if 255 in self.values and 1 not in self.values else 1

    def facts(self) -> dict[str, Any]:
        """Return the facts of a `TargetSpec`, as JSON values."""
        plain = {
            name: [list(value) if isinstance(value, tuple) else value for value in values]
            for name, values in (("values", self.values), ("ignored", self.ignored))
        }
        return {**plain, "mask_values": BINARY if self.binary else CLASSES}

    @classmethod
    def of(cls, spec: TargetSpec) -> Coding:
        """Return the coding of a model."""

        def values(name: str) -> tuple[int | Colour, ...]:
            return tuple(_value(value) for value in spec.facts.get(name, ()))

        return cls(values("values"), values("ignored"), spec.facts.get("mask_values") == BINARY)

    def classes_of(self, values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the class index ``(V,)`` of each value, `IGNORED`, or 256 for one that stands for nothing.

        Args:
            values: Numbers, or colours as ``r << 16 | g << 8 | b``.
        """
        if self.binary:
            return (values > 0).astype(np.int64)
        known = {} if self.coloured else {255: IGNORED}
        known |= {_packed(value): IGNORED for value in self.ignored}
        known |= {_packed(value): index for index, value in enumerate(self.values)}
        return np.array([known.get(value, _ODD) for value in values.tolist()], dtype=np.int64)


@dataclass(frozen=True)
class MaskFacts:
    """What is known of one mask file of a data set.

    Attributes:
        path: The file.
        sha256: Hex digest of its bytes.
        stored: How its values stand in it.
        values: The different ones, ascending: numbers, or class indices where `coded`.
        counts: Pixels of each.
        ranks_sha256: Hex digest of size and pixels, each value by its rank.
        turn: The EXIF orientation of its picture, where it was turned by that; else 1.
        legend: The colours of an indexed file.
        coded: Whether it was known what the values mean when it was looked at.
        ranks: ``(H, W) uint8``, upright, where it is kept.
    """

    path: str
    sha256: str
    stored: Stored
    values: tuple[int, ...]
    counts: tuple[int, ...]
    ranks_sha256: str
    turn: int = 1
    legend: tuple[Colour, ...] = ()
    coded: bool = False
    ranks: Mask | None = None

    def numbers(self, bit: int) -> tuple[int, ...]:
        """Return `values`, where the ones of a 1-bit mask are `bit`."""
        return tuple(value * bit for value in self.values) if self.stored is Stored.BIT else self.values

    def classes(self, coding: Coding) -> npt.NDArray[np.int64]:
        """Return the class index of each of `values`; see `Coding.classes_of`."""
        if self.coded:
            return np.array(self.values, dtype=np.int64)
        return coding.classes_of(np.array(self.numbers(coding.bit), dtype=np.int64))

    def without_ranks(self) -> MaskFacts:
        """Return the same, of a mask that is not kept."""
        return replace(self, ranks=None)


# ---- from a file to values --------------------------------------------------------------------------------------


def look_at_mask(path: str, size: tuple[int, int], orientation: int, coding: Coding | None) -> MaskFacts:
    """Read a mask file and see what values it holds.

    Args:
        path: The file.
        size: Height and width of its picture, upright.
        orientation: The EXIF orientation of its picture.
        coding: What its values mean; ``None`` where only the whole set will tell.

    Raises:
        UnusableMask: It is missing, is no mask, does not fit its picture, or holds values that stand for nothing.
    """
    data = _bytes(path)
    values, stored, legend = _stored(data, path, coloured=coding is not None and coding.coloured)
    values, turn = _turned_to(path, values, size, orientation)
    if coding is not None:
        values = _classes(path, values, stored, coding)
    present, ranks, counts = _ranked(values)
    if len(present) > MOST_VALUES:
        what = "colours, as smoothed edges have them" if stored is Stored.COLOUR else "values"
        advice = "" if stored is Stored.COLOUR else "; if they number objects, pass --mask-values binary"
        raise UnusableMask.of(path, f"it holds {len(present):,} different {what}{advice}")
    return MaskFacts(
        path=path,
        sha256=hashlib.sha256(data).hexdigest(),
        stored=stored,
        values=tuple(present.tolist()),
        counts=tuple(counts.tolist()),
        ranks_sha256=_digest(ranks.astype(np.uint8)),
        turn=turn,
        legend=legend,
        coded=coding is not None,
        ranks=ranks.astype(np.uint8),
    )


def read_mask(path: str, coding: Coding, picture: str | None, facts: MaskFacts | None = None) -> Mask:
    """Return the class indices ``(H, W) uint8`` of a mask file, upright.

    Args:
        path: The file.
        coding: What its values mean.
        picture: The file of its picture, whose header is read where nothing is known of the mask; ``None`` where it
            does not matter how the mask is turned.
        facts: What is known of it.

    Raises:
        UnusableMask: It is missing, is no mask, does not fit its picture, or holds values that stand for nothing.
        DataError: It has changed since it was looked at.
    """
    data = _bytes(path)
    if facts is not None and hashlib.sha256(data).hexdigest() != facts.sha256:
        raise DataError(
            f"{path}: its content changed since the data were indexed - leave the folder alone while a run uses it, "
            "and run again"
        )
    values, stored, _ = _stored(data, path, coloured=coding.coloured)
    if facts is not None:
        values = _turned(values, facts.turn)
    elif picture is not None:
        try:
            height, width, orientation = header_size(picture)
        except UnreadableImage as error:
            raise UnusableMask.of(path, f"its picture {picture!r} cannot be read ({error.reason})") from error
        values, _ = _turned_to(path, values, (height, width), orientation)
    return _classes(path, values, stored, coding)


def class_digest(mask: Mask) -> str:
    """Return what a mask is known by: the sha256, in hex, of its size and class indices, however they were stored."""
    present, ranks, _ = _ranked(mask)
    return _identity(_digest(ranks.astype(np.uint8)), present.tolist())


def identity_of(facts: MaskFacts, coding: Coding) -> str:
    """Return `class_digest` of a mask that was looked at: classes that were not known ascend as the values do."""
    return _identity(facts.ranks_sha256, facts.classes(coding).tolist())


def _bytes(path: str) -> bytes:
    try:
        return read_bytes(path)
    except UnreadableImage as error:
        raise UnusableMask.of(path, error.reason) from error


def _stored(data: bytes, path: str, *, coloured: bool) -> tuple[_Values, Stored, tuple[Colour, ...]]:
    """Return the values of a file as they are stored, how they are, and the colours of an indexed one."""
    try:
        with reading_errors(path), quiet_pillow():
            image = _opened(data)
            orientation = orientation_of(image)
            values, stored, legend = _values(image, data)
    except UnreadableImage as error:
        raise UnusableMask.of(path, error.reason) from error
    values = _turned(values, orientation)
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


def _values(image: Image.Image, data: bytes) -> tuple[_Values, Stored, tuple[Colour, ...]]:
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


def _in_colours(path: str, values: _Values, stored: Stored, legend: Sequence[Colour]) -> _Values:
    """Return the colours that indices or grey levels are seen as."""
    if stored is Stored.INDEX:
        if int(values.max()) >= len(legend):
            raise UnusableMask.of(path, f"it holds index {values.max()}, and its palette has {len(legend)} colours")
        return np.array([_packed(colour) for colour in legend], dtype=np.int32)[values]
    levels = values.astype(np.int32) * (255 if stored is Stored.BIT else 1)
    if int(levels.max()) > 255:
        raise UnusableMask.of(path, f"it holds level {levels.max()}, and the palette names colours of 8 bits")
    return levels * 0x010101


def _turned_to(path: str, values: _Values, size: tuple[int, int], orientation: int) -> tuple[_Values, int]:
    """Return a mask upright, and the orientation it was turned by: where it fits only the unturned picture."""
    if values.shape == size:
        return values, 1
    if orientation >= 5 and values.shape == size[::-1]:
        return _turned(values, orientation), orientation
    height, width = values.shape
    reason = f"it has {width} x {height} pixels, and its picture {size[1]} x {size[0]}"
    raise UnusableMask.of(path, reason)


def _turned(values: _Values, orientation: int) -> _Values:
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


# ---- values -----------------------------------------------------------------------------------------------------


def _classes(path: str, values: _Values, stored: Stored, coding: Coding) -> Mask:
    if coding.binary:
        return (values > 0).astype(np.uint8)
    if stored is Stored.COLOUR and not coding.coloured:
        raise UnusableMask.of(path, "it holds colours, and numbers stand for the classes")
    if stored is Stored.BIT:
        values = values * np.uint8(coding.bit)
    top = int(values.max()) + 1
    if top > 1 << 24:
        present, where = np.unique(values, return_inverse=True)
        table = coding.classes_of(present.astype(np.int64))
        odd = present[table == _ODD].tolist()
    else:
        where, present = values, np.flatnonzero(_presence(values, top))
        table = np.zeros(top, dtype=np.int64)
        table[present] = coding.classes_of(present)
        odd = present[table[present] == _ODD].tolist()
    if odd:
        raise UnusableMask.of(path, odd_text(odd, coding))
    return table.astype(np.uint8)[where.reshape(values.shape)]


def odd_text(odd: Sequence[int], coding: Coding) -> str:
    """Return a sentence on values that stand for no class."""
    names = [colour_text(value) if coding.coloured else str(value) for value in odd]
    return f"it holds {listing(names, limit=4, quote=False)}, which stand for no class"


def _presence(values: _Values, top: int) -> npt.NDArray[np.bool_]:
    present = np.zeros(top, dtype=np.bool_)
    present[values.ravel()] = True
    return present


def _ranked(values: _Values) -> tuple[npt.NDArray[np.int64], _Values, npt.NDArray[np.int64]]:
    """Return the different values ascending, the place of each pixel's among them, and the pixels of each."""
    top = int(values.max()) + 1
    if top > 1 << 24:
        present, where, counts = np.unique(values, return_inverse=True, return_counts=True)
        return present.astype(np.int64), where.reshape(values.shape), counts
    present = np.flatnonzero(_presence(values, top))
    table = np.zeros(top, dtype=np.uint8 if len(present) <= MOST_VALUES else np.int32)
    table[present] = np.arange(len(present))
    ranks = table[values]
    return present, ranks, np.bincount(ranks.ravel(), minlength=len(present))


def _digest(ranks: Mask) -> str:
    digest = hashlib.sha256(f"transferkit mask\0{ranks.shape[0]} {ranks.shape[1]}\0".encode())
    digest.update(np.ascontiguousarray(ranks).data)
    return digest.hexdigest()


def _identity(ranks_sha256: str, classes: Sequence[int]) -> str:
    return hashlib.sha256(f"{ranks_sha256} {' '.join(map(str, classes))}".encode()).hexdigest()


def _packed(value: int | Colour) -> int:
    return value if isinstance(value, int) else value[0] << 16 | value[1] << 8 | value[2]


def _packed_pixels(pixels: _Values) -> _Values:
    wide = pixels.astype(np.int32)
    packed: _Values = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
    return packed


def _value(value: Any) -> int | Colour:
    if isinstance(value, int | float):
        return int(value)
    red, green, blue = map(int, value)
    return red, green, blue


def colour_text(packed: int) -> str:
    """Return a packed colour as ``#rrggbb``."""
    return f"#{packed:06x}"


# ---- many masks -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MaskAnnotations:
    """The masks of some pictures, from memory or from their files; see `Annotations`.

    Attributes:
        labels: The mask files.
        paths: The pictures.
        coding: What values mean.
        facts: What is known of the masks, by file.
    """

    labels: tuple[str, ...]
    paths: tuple[str, ...]
    coding: Coding
    facts: Mapping[str, MaskFacts]

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.labels)

    def read(self, row: int) -> Annotation:
        """Return the mask of one picture. Raises `DataError`."""
        facts = self.facts.get(self.labels[row])
        if facts is not None and facts.ranks is not None:
            import cv2  # here: `check` does without

            table = np.zeros(256, dtype=np.uint8)
            table[: len(facts.values)] = facts.classes(self.coding)
            return Annotation(cv2.LUT(facts.ranks, table))  # type: ignore[arg-type]
        return Annotation(read_mask(self.labels[row], self.coding, self.paths[row], facts))
