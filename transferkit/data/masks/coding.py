"""What the values of masks mean, and from a file to the class index of each pixel.

What a mask becomes depends on its values (see `transferkit.data.masks.values`) and one `Coding` of the whole set,
never on other things in the file. 255 is ignored, unless it stands for a class: masks of 0 and 255 alone have two.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import DataError
from transferkit.core.targets import IGNORED, TargetSpec
from transferkit.core.text import listing
from transferkit.data.images.decode import (
    UnreadableImage,
    header_size,
)
from transferkit.data.masks.annotation import Annotation, Mask
from transferkit.data.masks.values import (
    Stored,
    UnusableMask,
    Values,
    colour_text,
    mask_bytes,
    packed,
    stored_values,
    turned,
    turned_to,
)
from transferkit.data.scan.palette import Colour

__all__ = [
    "BINARY",
    "CLASSES",
    "Coding",
    "MaskAnnotations",
    "MaskFacts",
    "class_digest",
    "identity_of",
    "look_at_mask",
    "odd_text",
    "read_mask",
]

CLASSES, BINARY = "classes", "binary"
"""What values of masks may be: class indices (or colours), or anything above 0 for the one class."""

MOST_VALUES: Final = 256
"""Different values of one mask, at most, unless it is read as ``binary``."""

_ODD: Final = 256
"""In a table of class indices: this value stands for nothing."""


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
        known |= {packed(value): IGNORED for value in self.ignored}
        known |= {packed(value): index for index, value in enumerate(self.values)}
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
    data = mask_bytes(path)
    values, stored, legend = stored_values(data, path, coloured=coding is not None and coding.coloured)
    values, turn = turned_to(path, values, size, orientation)
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
    data = mask_bytes(path)
    if facts is not None and hashlib.sha256(data).hexdigest() != facts.sha256:
        raise DataError(
            f"{path}: its content changed since the data were indexed - leave the folder alone while a run uses it, "
            "and run again"
        )
    values, stored, _ = stored_values(data, path, coloured=coding.coloured)
    if facts is not None:
        values = turned(values, facts.turn)
    elif picture is not None:
        try:
            height, width, orientation = header_size(picture)
        except UnreadableImage as error:
            raise UnusableMask.of(path, f"its picture {picture!r} cannot be read ({error.reason})") from error
        values, _ = turned_to(path, values, (height, width), orientation)
    return _classes(path, values, stored, coding)


def class_digest(mask: Mask) -> str:
    """Return what a mask is known by: the sha256, in hex, of its size and class indices, however they were stored."""
    present, ranks, _ = _ranked(mask)
    return _identity(_digest(ranks.astype(np.uint8)), present.tolist())


def identity_of(facts: MaskFacts, coding: Coding) -> str:
    """Return `class_digest` of a mask that was looked at: classes that were not known ascend as the values do."""
    return _identity(facts.ranks_sha256, facts.classes(coding).tolist())


# ---- values -----------------------------------------------------------------------------------------------------


def _classes(path: str, values: Values, stored: Stored, coding: Coding) -> Mask:
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


def _presence(values: Values, top: int) -> npt.NDArray[np.bool_]:
    present = np.zeros(top, dtype=np.bool_)
    present[values.ravel()] = True
    return present


def _ranked(values: Values) -> tuple[npt.NDArray[np.int64], Values, npt.NDArray[np.int64]]:
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


def _value(value: Any) -> int | Colour:
    if isinstance(value, int | float):
        return int(value)
    red, green, blue = map(int, value)
    return red, green, blue


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
