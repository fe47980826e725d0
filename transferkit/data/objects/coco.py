"""COCO sets: a JSON file of images, annotations and categories, or a folder with one per split.

Boxes are ``[left, top, width, height]`` in pixels. The split of a file is named by its own name (``instances_val2017``)
or its folder's (``valid/_annotations.coco.json``).
"""

from __future__ import annotations

import json
import math
import mmap
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

from transferkit.core.errors import DataError
from transferkit.core.text import first_line, listing, shown
from transferkit.data.objects.stated import (
    Box,
    Outline,
    StatedObject,
    StatedPicture,
    StatedSet,
    read_text,
    tell_missing,
)
from transferkit.data.scan.records import Kind, split_named

__all__ = ["coco_files", "is_coco", "read_coco"]

ENDING: Final = ".json"

_NAN: Final = float("nan")
_FAR: Final = 1e12
_PICTURES: Final = ("images", "data", "JPEGImages")
"""Folders that pictures lie in, beside the file or its folder."""


def coco_files(root: Path) -> list[Path]:
    """Return the JSON files that may be COCO's: at the top, in ``annotations/``, or in folders of splits."""
    places = [root, *(root / name for name in _folders(root) if name.lower() == "annotations" or split_named(name))]
    return [path for place in places for path in sorted(place.glob("*.json")) if not path.name.startswith(".")]


def is_coco(path: Path) -> bool:
    """Whether a JSON file holds the lists of COCO: an object with images, annotations and categories."""
    keys = (b'"images"', b'"annotations"', b'"categories"')
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            starts = content[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
            return starts and all(content.find(key) >= 0 for key in keys)
    except (OSError, ValueError):  # an empty file cannot be mapped
        return False


def read_coco(root: Path, files: Sequence[Path], *, lenient: bool) -> StatedSet:
    """Read COCO files, one per split.

    Args:
        root: The data set.
        files: The JSON files.
        lenient: Leave out annotations of pictures that are not there.

    Raises:
        DataError: A file cannot be read or is no COCO file, or two are of one split.
    """
    stated = StatedSet("COCO", line="boxes are left, top, width, height in pixels")
    by_split: dict[str | None, list[Path]] = defaultdict(list)
    for path in files:
        by_split[_split_of(path, root)].append(path)
    names: dict[str, None] = {}
    for split, paths in by_split.items():
        path = _one_of(paths, split)
        names.update(dict.fromkeys(_read(path, root, split, stated, lenient=lenient)))
    if None not in by_split and "train" not in by_split:
        located = listing(sorted(map(str, by_split)))
        stated.report.add(
            f"no COCO file of the train split beside {located} in {str(root)!r} - add one", (), Kind.NO_TRAIN
        )
    if len(by_split) > 1 and None in by_split:
        path = by_split[None][0]
        raise DataError(
            f"the split of {str(path)!r} is in neither its name nor its folder's, and other files name theirs - "
            "rename it, such as train.json, or pass one file by --data"
        )
    stated.names = tuple(names)
    return stated


def _one_of(paths: Sequence[Path], split: str | None) -> Path:
    """Return the one file of a split: among several the one that is called ``instances``."""
    own = paths if len(paths) == 1 else [path for path in paths if path.name.lower().startswith("instances")]
    if len(own) != 1:
        raise DataError(
            f"several COCO files of {'the split ' + split if split else 'no split'}: {listing(list(map(str, paths)))} "
            "- pass one of them by --data, or name their splits: train.json, val.json, test.json"
        )
    return own[0]


def _split_of(path: Path, root: Path) -> str | None:
    """Return the split that a file's name says, or its folder's."""
    located = {split for word in re.split(r"[^A-Za-z0-9]+", path.stem) if (split := split_named(word)) is not None}
    if len(located) == 1:
        return located.pop()
    return split_named(path.parent.name) if path.parent != root else None


def _read(path: Path, root: Path, split: str | None, stated: StatedSet, *, lenient: bool) -> list[str]:
    """Add the pictures of one file; return the names of its categories."""
    images, annotations, categories = _lists(path)
    report, source = stated.report, str(path)
    names = {_key(one.get("id")): str(one.get("name", "")).strip() for one in categories}
    if len(names) < len(categories):
        double = [key for key, count in Counter(_key(one.get("id")) for one in categories).items() if count > 1]
        report.add(f"{source!r}: ids of several categories: {listing(double, quote=False)} - number them anew", double)
    by_id: dict[str, Mapping[str, Any]] = {}
    double = []
    for image in images:
        key = _key(image.get("id"))
        if key in by_id:
            double.append(key)
        by_id.setdefault(key, image)
    if double:
        report.add(f"{source!r}: ids of several images: {listing(double, quote=False)} - number them anew", double)
    objects: dict[str, list[StatedObject]] = defaultdict(list)
    lost = []
    for position, one in enumerate(annotations):
        key = _key(one.get("image_id"))
        if key in by_id:
            objects[key].append(_object(one, position, names))
        else:
            lost.append(f"image_id {key}")
    finder = _Finder(path, root, split)
    missing: list[str] = []
    seen: dict[str, str] = {}
    for key, image in by_id.items():
        name = str(image.get("file_name", ""))
        located = finder.find(name)
        if located is None:
            missing.append(name or f"image {key}")
        elif located in seen:
            message = f"{source!r}: one file of several images: {name!r} (ids {seen[located]} and {key}) - keep one"
            report.add(message, (located,))
        else:
            seen[located] = key
            stated.pictures.append(StatedPicture(located, source, split, _size(image), tuple(objects[key])))
    tell_missing(report, missing, f"in {source!r}", lenient=lenient)
    tell_missing(
        report, list(dict.fromkeys(lost)), f"whose ids are not among the images of {source!r}", lenient=lenient
    )
    return list(names.values())


def _lists(path: Path) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    text = read_text(path)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{str(path)!r} is not JSON ({first_line(error)}) - write it anew") from error
    if isinstance(values, list):
        raise DataError(f"{str(path)!r} is a list, as files of predictions are - pass the file of annotations")
    parts = [values.get(name) if isinstance(values, dict) else None for name in ("images", "annotations", "categories")]
    for name, part in zip(("images", "annotations", "categories"), parts, strict=True):
        if not isinstance(part, list) or not all(isinstance(one, dict) for one in part):
            raise DataError(
                f"{str(path)!r} has no list {name!r} of objects, expected a COCO file of images, annotations and "
                "categories - export it as COCO, or pass the right file by --data"
            )
    return parts[0] or [], parts[1] or [], parts[2] or []


def _key(value: Any) -> str:
    """Return an id as text: exporters write 7 and "7"."""
    return shown(value, limit=40).strip("'\"")


def _object(one: Mapping[str, Any], position: int, names: Mapping[str, str]) -> StatedObject:
    outline = _outline(one.get("segmentation"))
    box = _box(one.get("bbox"), outline)
    key = _key(one.get("category_id"))
    place = f"annotation {_key(one['id'])}" if "id" in one else f"annotation at place {position}"
    return StatedObject(names.get(key) or None, box, place, _key(one.get("iscrowd", 0)) in ("1", "True"), outline, key)


def _box(value: Any, outline: Outline | None) -> Box:
    """Return the box; where none is given that of the polygons; NaN where there are none, either."""
    if isinstance(value, list) and len(value) == 4 and all(map(_is_number, value)):
        left, top, width, height = map(float, value)
        return left, top, left + width, top + height
    if not value and isinstance(outline, list) and outline:
        xs = [x for polygon in outline for x in polygon[::2]]
        ys = [y for polygon in outline for y in polygon[1::2]]
        return min(xs), min(ys), max(xs), max(ys)
    return _NAN, _NAN, _NAN, _NAN


def _outline(value: Any) -> Outline | None:
    if isinstance(value, dict) and "counts" in value and "size" in value:
        return {"size": value["size"], "counts": value["counts"]}
    if isinstance(value, list):
        flat = [list(map(float, polygon)) for polygon in value
                if isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
                and all(map(_is_number, polygon))]  # fmt: skip
        return flat or None
    return None


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < _FAR and math.isfinite(value)


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    stated = [image[name] for name in ("height", "width") if _is_number(image.get(name))]
    sides = [int(side) for side in stated if side > 0]
    return (sides[0], sides[1]) if len(sides) == 2 else None


class _Finder:
    """Finds the pictures that a file names: relative to it, to the data set, or in a folder of pictures there."""

    def __init__(self, path: Path, root: Path, split: str | None) -> None:
        tops = list(dict.fromkeys((root, path.parent, path.parent.parent)))
        if root == path.parent and root.name.lower() != "annotations":
            tops = [root]
        places: dict[Path, None] = {}
        for top in tops:
            places[top] = None
            for name in _folders(top):
                if name in _PICTURES:
                    places[top / name] = None
                    for inner in _folders(top / name):
                        if split is not None and split_named(inner) == split:
                            places[top / name / inner] = None
                elif split is not None and split_named(name) == split:
                    places[top / name] = None
                    for inner in _folders(top / name):
                        if inner in _PICTURES:
                            places[top / name / inner] = None
        self._places = list(places)

    def find(self, name: str) -> str | None:
        """Return the path of a picture, or ``None``. It never leads out: of such a name the last part is taken."""
        inside = PurePosixPath(name.replace("\\", "/"))
        if "\0" in name or not inside.name:
            return None
        outside = inside.is_absolute() or ".." in inside.parts or ":" in inside.parts[0]
        relative = inside.name if outside else str(inside)
        for place in self._places:
            if (place / relative).is_file():
                if place is not self._places[0]:  # the next one lies there, too, as a rule
                    self._places.remove(place)
                    self._places.insert(0, place)
                return str(place / relative)
        return None


def _folders(place: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in place.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []
