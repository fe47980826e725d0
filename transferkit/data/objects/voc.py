"""Pascal VOC sets: ``JPEGImages/x.jpg``, ``Annotations/x.xml``, splits as lists of stems in ``ImageSets/Main``.

VOC numbers pixels from 1 and its boxes include both ends (VOC2012 development kit): the box of pixels 1 to 10 lies
between the edges 0 and 10. Many exporters number from 0 and give edges. One rule for a whole set: where a box begins at
0 it counts from 0, else from 1.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET  # its builder alone: the parser below refuses entities
from collections import defaultdict
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Final
from xml.parsers import expat

from transferkit.core.records import Finding
from transferkit.core.text import first_line, listing
from transferkit.data.objects.stated import StatedObject, StatedPicture, StatedSet, read_text, tell_missing
from transferkit.data.scan.columns import number
from transferkit.data.scan.records import Kind
from transferkit.data.scan.walking import pictures_below

__all__ = ["is_voc", "parse_xml", "read_voc"]

PICTURES, ANNOTATIONS, LISTS = "JPEGImages", "Annotations", Path("ImageSets") / "Main"

_NAN: Final = float("nan")
_SPLITS: Final = {"train": "train", "val": "val", "test": "test"}


def is_voc(root: Path) -> bool:
    """Whether a folder is such a set: both folders are there, and a file of the second is XML."""
    return (root / PICTURES).is_dir() and next((root / ANNOTATIONS).glob("*.xml"), None) is not None


def read_voc(root: Path, *, lenient: bool) -> StatedSet:
    """Read a Pascal VOC set.

    Args:
        root: The data set.
        lenient: Leave out annotations of pictures that are not there.

    Raises:
        DataError: It cannot be read. XML files that cannot be are among `Report.problems`.
    """
    stated = StatedSet("Pascal VOC")
    report = stated.report
    pictures: dict[str, list[str]] = defaultdict(list)
    for path in pictures_below(root / PICTURES, report):
        pictures[Path(path).stem].append(path)
    if double := [" and ".join(map(repr, paths)) for paths in pictures.values() if len(paths) > 1]:
        report.add(f"several pictures of one stem: {listing(double, quote=False)} - keep one of each", double)
    sources = {path.stem: path for path in sorted((root / ANNOTATIONS).glob("*.xml"))}
    splits = _splits(root, stated, lenient=lenient, known=pictures.keys())
    lost = [f"{stem}.xml" for stem in sources if stem not in pictures]
    tell_missing(report, lost, f"in {str(root / ANNOTATIONS)!r}", lenient=lenient)
    damaged, unlisted = [], []
    for stem, paths in pictures.items():
        if splits and stem not in splits:
            report.skip(paths[0], f"in no list of {LISTS}")
            unlisted.append(paths[0])
            continue
        source = sources.get(stem)
        size: tuple[int, int] | None = None
        objects: tuple[StatedObject, ...] = ()
        if source is not None:
            try:
                size, objects = _read(source)
            except ValueError as error:
                damaged.append(f"{str(source)!r} ({error})")
                if lenient:
                    report.skip(paths[0], f"its annotation cannot be read: {error}")
                continue
        stated.pictures.append(StatedPicture(paths[0], str(source or ""), splits.get(stem), size, objects))
    if damaged and not lenient:
        message = (
            f"{len(damaged)} annotations that cannot be read: {listing(damaged, limit=5, quote=False)} - correct them, "
            "or pass --skip-bad to leave their pictures out"
        )
        report.add(message, damaged, Kind.BOX)
    elif damaged:
        message = f"{len(damaged)} pictures left out whose annotations cannot be read: {listing(damaged, quote=False)}"
        report.notes.append(Finding(Kind.BOX, message, tuple(damaged)))
    if unlisted:
        message = f"{len(unlisted)} pictures are in no list of {LISTS} and left out: {listing(unlisted, limit=3)}"
        report.notes.append(Finding(Kind.NOTE, message, tuple(unlisted)))
    _settle_origin(stated)
    return stated


def _settle_origin(stated: StatedSet) -> None:
    """Bring boxes to edges of pixels, by one rule for all of them."""
    boxes = [one.box for picture in stated.pictures for one in picture.objects]
    zero = sum(box[0] == 0 or box[1] == 0 for box in boxes)
    if zero:
        stated.line = f"boxes count pixels from 0, as {zero} of {len(boxes)} begin there"
        return
    stated.line = "boxes count pixels from 1, as VOC does: none begins at 0"
    # One that begins and ends at the same number is left without area: a slip of the hand, not a row of pixels.
    stated.pictures = [
        replace(
            picture,
            objects=tuple(
                replace(one, box=(one.box[0] - 1, one.box[1] - 1, *one.box[2:]))
                if one.box[0] < one.box[2] and one.box[1] < one.box[3]
                else one
                for one in picture.objects
            ),
        )
        for picture in stated.pictures
    ]


def _splits(root: Path, stated: StatedSet, *, lenient: bool, known: Collection[str]) -> dict[str, str]:
    """Return the split of each stem that a list names; ``trainval`` alone is train."""
    lists = {name: root / LISTS / f"{name}.txt" for name in _SPLITS}
    lists = {name: path for name, path in lists.items() if path.is_file()}
    if not lists and (whole := root / LISTS / "trainval.txt").is_file():
        lists = {"train": whole}
    files: dict[str, str] = {}
    twice, lost = [], []
    for name, path in lists.items():
        for line in read_text(path).splitlines():
            words = line.split()
            if not words or (len(words) > 1 and words[-1] == "-1"):  # of a class: -1, it is not there
                continue
            stem = words[0] if len(words) == 1 or re.fullmatch("[01-]+", words[-1]) else line.strip()
            if files.setdefault(stem, name) != name:
                twice.append(f"{stem} ({files[stem]} and {name})")
            elif stem not in known:
                lost.append(stem)
    if twice:
        stated.report.add(f"pictures in several lists of {LISTS}: {listing(twice)} - keep one each", twice, Kind.LEAK)
    tell_missing(stated.report, lost, f"in the lists of {str(root / LISTS)!r}", lenient=lenient)
    if lists and "train" not in lists:
        stated.report.add(f"no train.txt in {str(root / LISTS)!r} - add one", (), Kind.NO_TRAIN)
    return files


def _read(path: Path) -> tuple[tuple[int, int] | None, tuple[StatedObject, ...]]:
    """Return the size and the objects that a file states. Raises `ValueError` with the reason."""
    root = parse_xml(path)
    if root.tag != "annotation":
        raise ValueError(f"it is a <{root.tag[:40]}>, expected an <annotation>")
    height, width = (number(root.findtext(f"size/{name}") or "") for name in ("height", "width"))
    size = (int(height), int(width)) if height and width and min(height, width) > 0 else None
    objects = []
    for place, one in enumerate(root.iter("object"), 1):
        corners = [_number(one.findtext(f"bndbox/{name}")) for name in ("xmin", "ymin", "xmax", "ymax")]
        name = (one.findtext("name") or "").strip()
        difficult = (one.findtext("difficult") or "0").strip().lower() in ("1", "true")
        box = (corners[0], corners[1], corners[2], corners[3])
        objects.append(StatedObject(name or None, box, f"object {place}", difficult, number="without a name"))
    return size, tuple(objects)


def _number(text: str | None) -> float:
    value = number((text or "").strip())
    return _NAN if value is None else value


def parse_xml(path: Path) -> ET.Element:
    """Return the root of an XML file. Raises `ValueError` with the reason.

    Declarations of entities are refused: a few of them nested become gigabytes of text, and others name files.
    """

    def refuse(name: str, *rest: object) -> None:
        raise ValueError("it declares entities, which annotations have no use for")

    builder = ET.TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.EntityDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(path.read_bytes(), True)
        return builder.close()
    except OSError as error:
        raise ValueError(str(error.strerror)) from error
    except expat.ExpatError as error:
        raise ValueError(f"it is not XML: {first_line(error)}") from error
