"""From what is stated of objects to what is true of their pictures: sizes, turns, edges; all faults at once, by kind.

- A picture is known by its file: sizes in annotations only tell whether they are about this picture, upright or (where
  EXIF turns it by a quarter) as stored; then its boxes are turned likewise.
- A box that reaches over the edge is clipped; one outside, without area, that is no four numbers, of an unknown class,
  or there twice is refused, or left out where that is asked for.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from transferkit.core.records import Finding
from transferkit.core.text import listing
from transferkit.data.images.decode import UnreadableImage, header_size
from transferkit.data.images.readers import quiet_pillow
from transferkit.data.images.reading import in_order
from transferkit.data.masks.values import turned
from transferkit.data.objects.labels import Item, Objects, rounded, text_of
from transferkit.data.objects.outlines import drawn, packed_runs, runs_problem
from transferkit.data.objects.stated import Box, Outline, StatedObject, StatedPicture, StatedSet
from transferkit.data.scan.records import Kind, ScannedFile
from transferkit.machine.cores import available_cores

__all__ = ["settled"]

_LEAST: Final = 0.01
"""Pixels of a side below which a box has no area."""

_OVER: Final = 0.5
"""Pixels beyond the edge from which on it is worth a word: less is rounding."""


class _Fault(StrEnum):
    SIZE = "pictures of another size than their annotations say, turned or not"
    OUTLINE = "outlines that do not fit their pictures"
    NUMBER = "boxes that are not four numbers"
    UNKNOWN = "objects of classes that the set does not name"
    AREA = "boxes without area"
    TURNED = "boxes whose right or lower edge comes before the left or upper one"
    OUTSIDE = "boxes outside their pictures"
    DOUBLE = "objects that are annotated twice"


@dataclass(slots=True)
class _Settled:
    """One picture, as it came out."""

    objects: Objects | None
    faults: list[tuple[_Fault, str]] = field(default_factory=list)
    clipped: int = 0
    turned: bool = False


def settled(stated: StatedSet, *, lenient: bool) -> list[ScannedFile]:
    """Return the pictures of a set with their labels; what is wrong goes to its report.

    The header of every picture is read, on all threads. A picture that cannot be read has a label of no objects:
    whoever reads it whole says so.

    Args:
        stated: The set.
        lenient: Leave out what cannot be used instead of refusing it.
    """
    report, files = stated.report, []
    faults: dict[_Fault, list[tuple[str, str]]] = defaultdict(list)
    clipped, quarter, negative, pictures_clipped = 0, [], [], []
    with quiet_pillow():
        results = in_order(lambda picture: _settle(picture, stated.shares), stated.pictures, available_cores())
        for picture, result in zip(stated.pictures, results, strict=True):
            for fault, what in result.faults:
                faults[fault].append((picture.path, what))
            if result.clipped:
                clipped += result.clipped
                pictures_clipped.append(picture.path)
            if result.turned:
                quarter.append(picture.path)
            if result.objects is None:
                if lenient:
                    report.skip(picture.path, "its size is not that of its annotation")
                continue
            if not picture.objects:
                negative.append(picture.path)
            files.append(ScannedFile(picture.path, text_of(result.objects), picture.split))
    for fault, places in faults.items():
        _tell(stated, fault, places, lenient=lenient)
    notes = (
        (Kind.NOTE, negative, f"{len(negative)} of {len(files)} pictures show no object: they are negatives"),
        (Kind.BOX, pictures_clipped,
         f"{clipped} boxes of {len(pictures_clipped)} pictures reach over the edge and are clipped"),
        (Kind.BOX, quarter,
         f"{len(quarter)} annotations fit only the unturned picture, and were turned by its EXIF orientation likewise"),
    )  # fmt: skip
    for kind, paths, message in notes:
        if paths:
            families = tuple((path,) for path in paths)
            report.notes.append(Finding(kind, f"{message}: {listing(paths, limit=3)}", tuple(paths), families))
    return sorted(files, key=lambda file: file.path)


def _tell(stated: StatedSet, fault: _Fault, places: Sequence[tuple[str, str]], *, lenient: bool) -> None:
    items = tuple(f"{path!r} ({what})" for path, what in places)
    families = tuple((path,) for path in dict.fromkeys(path for path, _ in places))
    said = listing(items, limit=5, quote=False)
    if lenient:
        stated.report.notes.append(Finding(Kind.BOX, f"{len(places)} {fault} are left out: {said}", items, families))
        return
    message = f"{len(places)} {fault}: {said} - correct them, or pass --skip-bad to leave them out"
    stated.report.problems.append(Finding(Kind.BOX, message, items, families))


def _settle(picture: StatedPicture, shares: bool) -> _Settled:
    try:
        height, width, orientation = header_size(picture.path)
    except UnreadableImage:
        return _Settled(Objects((0, 0)))
    size = height, width
    turn = 1
    if picture.size is not None and picture.size != size:
        if orientation < 5 or picture.size != size[::-1]:
            said = f"{picture.size[1]} x {picture.size[0]} in {picture.source!r}, {width} x {height} in the file"
            return _Settled(None, [(_Fault.SIZE, said)])
        turn = orientation
    result = _Settled(Objects(size), turned=turn != 1)
    items: list[Item] = []
    known: set[tuple[str, Box]] = set()
    for one in picture.objects:
        item = _item(one, size, turn, shares, result)
        if item is None:
            continue
        if (item.name, item.box) in known:
            result.faults.append((_Fault.DOUBLE, f"{one.place}: {item.name}, {_shown(item.box)}"))
            continue
        known.add((item.name, item.box))
        items.append(item)
    result.objects = Objects(size, tuple(items))
    return result


def _item(one: StatedObject, size: tuple[int, int], turn: int, shares: bool, result: _Settled) -> Item | None:
    """Return an object as it is on its picture, or note why it cannot be used."""
    polygons = one.outline if isinstance(one.outline, list) else []
    numbers = [*one.box, *(value for polygon in polygons for value in polygon)]
    if not all(map(math.isfinite, numbers)):
        result.faults.append((_Fault.NUMBER, one.place))
        return None
    if one.name is None:
        result.faults.append((_Fault.UNKNOWN, f"{one.place}: class {one.number}"))
        return None
    stored = size if turn == 1 else size[::-1]
    outline = one.outline
    if outline is not None and (problem := runs_problem(outline, stored)):
        result.faults.append((_Fault.OUTLINE, f"{one.place}: {problem}"))
        return None
    scale = (stored[1], stored[0]) if shares else (1, 1)
    box = _of_points(_turned_points([value * scale[at % 2] for at, value in enumerate(one.box)], stored, turn))
    if one.box[2] < one.box[0] or one.box[3] < one.box[1]:
        result.faults.append((_Fault.TURNED, f"{one.place}: {one.name}, {_shown(one.box)}"))
        return None
    if one.box[2] <= one.box[0] or one.box[3] <= one.box[1] or min(box[2] - box[0], box[3] - box[1]) < _LEAST:
        result.faults.append((_Fault.AREA, f"{one.place}: {one.name}, {_shown(one.box)}"))
        return None
    height, width = size
    inside = max(0.0, box[0]), max(0.0, box[1]), min(float(width), box[2]), min(float(height), box[3])
    if min(inside[2] - inside[0], inside[3] - inside[1]) < _LEAST:
        result.faults.append((_Fault.OUTSIDE, f"{one.place}: {one.name}, {_shown(box)} of {width} x {height}"))
        return None
    result.clipped += max(abs(there - here) for there, here in zip(box, inside, strict=True)) > _OVER
    left, top, right, bottom = map(rounded, inside)
    return Item(one.name, (left, top, right, bottom), one.crowd, _turned_outline(outline, stored, turn, scale))


def _turned_outline(
    outline: Outline | None, stored: tuple[int, int], turn: int, scale: tuple[int, int]
) -> Outline | None:
    if isinstance(outline, dict):
        return outline if turn == 1 else packed_runs(turned(drawn(outline, stored), turn))
    if outline is None:
        return None
    return [_turned_points([value * scale[at % 2] for at, value in enumerate(one)], stored, turn) for one in outline]


def _turned_points(values: Sequence[float], stored: tuple[int, int], turn: int) -> list[float]:
    """Return points ``x, y, x, y ...`` of a picture as stored where EXIF orientation wants them seen: 5 to 8."""
    if turn == 1:
        return list(values)
    height, width = stored
    points = []
    for x, y in zip(values[::2], values[1::2], strict=True):
        match turn:
            case 5:
                points += [y, x]
            case 6:
                points += [height - y, x]
            case 7:
                points += [height - y, width - x]
            case _:
                points += [y, width - x]
    return points


def _of_points(points: Sequence[float]) -> Box:
    left, right = sorted(points[::2])
    top, bottom = sorted(points[1::2])
    return left, top, right, bottom


def _shown(box: Box) -> str:
    return f"[{', '.join(f'{value:g}' for value in box)}]"
