"""The objects of a data set as its annotation files state them, before any picture is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from transferkit.core.errors import DataError
from transferkit.core.records import Finding
from transferkit.core.text import listing, shown
from transferkit.data.scan.records import Kind
from transferkit.data.scan.walking import Report

__all__ = ["MOST_BYTES", "Box", "Outline", "StatedObject", "StatedPicture", "StatedSet", "read_text", "tell_missing"]

Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right and bottom, edges of pixels: the first pixel of a row lies between 0 and 1."""

Outline: TypeAlias = list[list[float]] | dict[str, Any]
"""Polygons, each ``[x, y, x, y, ...]``, or run lengths as COCO has them: ``{"size": [h, w], "counts": ...}``."""

MOST_BYTES: Final = 4 << 30
"""Of one file of annotations; those of COCO's 118,000 training pictures have 450 MB."""


@dataclass(frozen=True, slots=True)
class StatedObject:
    """One object, as a file has it.

    Attributes:
        name: Of its class; ``None`` where the number that the file gives has no name.
        box: In the unit of the set; numbers may be anything.
        place: Where it stands, for messages: ``"annotation 12"``, ``"line 3"``.
        crowd: Whether it is neither to be learnt nor counted: COCO ``iscrowd``, VOC ``difficult``.
        outline: In the unit of the set; ``None`` where only the box is known.
        number: The class as the file gives it, where it has no name.
    """

    name: str | None
    box: Box
    place: str
    crowd: bool = False
    outline: Outline | None = None
    number: str = ""


@dataclass(frozen=True, slots=True)
class StatedPicture:
    """A picture and what is stated of it.

    Attributes:
        path: The picture.
        source: The file that states it.
        split: As in `ScannedFile`.
        size: Height and width, as the file says; ``None`` where it does not, or says 0.
        objects: In the order of the file.
    """

    path: str
    source: str
    split: str | None
    size: tuple[int, int] | None
    objects: tuple[StatedObject, ...] = ()


@dataclass(slots=True)
class StatedSet:
    """A data set, as it is stated.

    Attributes:
        kind: ``"COCO"``, ``"Pascal VOC"`` or ``"YOLO"``.
        names: Of classes that the set lists, whether it has objects of them or not.
        pictures: All of them.
        shares: Whether boxes are shares of the picture's sides instead of pixels.
        line: What was understood of the coordinates, for people.
        report: What was met on the way.
    """

    kind: str
    names: tuple[str, ...] = ()
    pictures: list[StatedPicture] = field(default_factory=list)
    shares: bool = False
    line: str = ""
    report: Report = field(default_factory=Report)


def read_text(path: Path) -> str:
    """Return the text of a file of annotations. Raises `DataError`."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"{str(path)!r} is larger than {MOST_BYTES >> 30} GiB - cut it into one file per split")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror} - check the path and its permissions") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{str(path)!r} is no UTF-8 text - save it as UTF-8") from error


def tell_missing(report: Report, items: Sequence[str], what: str, *, lenient: bool) -> None:
    """Note annotations whose pictures are not there: refused, or left out where `lenient`.

    Args:
        report: Where to.
        items: The pictures, as the files name them.
        what: Where they stand.
        lenient: Whether they are left out.
    """
    if not items:
        return
    named = listing([shown(item)[1:-1] for item in items], limit=5)
    if lenient:
        message = f"annotations of {len(items)} pictures that are not there are left out, {what}: {named}"
        report.notes.append(Finding(Kind.BOX, message, tuple(items)))
    else:
        message = (
            f"annotations of {len(items)} pictures that are not there, {what}: {named} - add the pictures, or pass "
            "--skip-bad to leave the annotations out"
        )
        report.add(message, items, Kind.BOX)
