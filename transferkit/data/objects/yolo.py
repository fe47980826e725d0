"""YOLO sets: ``images/x.jpg`` beside ``labels/x.txt``, a line ``class x y width height`` per object.

A line of a class and three points or more is an outline. Numbers are shares of the picture's sides, or pixels where
most of a set are far above 1. Splits are folders, above or below ``images``. Names of classes come from ``data.yaml``
(any YAML file that has ``names``) or ``classes.txt``.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from transferkit.core.errors import DataError
from transferkit.core.records import Finding
from transferkit.core.text import first_line, listing
from transferkit.data.objects.stated import StatedObject, StatedPicture, StatedSet, read_text, tell_missing
from transferkit.data.scan.columns import number
from transferkit.data.scan.records import Kind, split_named
from transferkit.data.scan.walking import Report, pictures_below

__all__ = ["is_yolo", "read_yolo"]

IMAGES, LABELS = "images", "labels"
NAME_FILES: Final = ("classes.txt", "obj.names")

_FAR: Final = 2.0
"""Above this a number of a box is no share, even of one that reaches far outside."""


def is_yolo(root: Path) -> bool:
    """Whether a folder is such a set: pictures and text files of one stem lie in ``images`` and ``labels``."""
    for place, _ in _places(root):
        stems = {_stem(path, place / LABELS) for path in _texts(place / LABELS)}
        if stems and any(_stem(path, place / IMAGES) in stems for path in _pictures(place)):
            return True
    return False


def read_yolo(root: Path, *, lenient: bool) -> StatedSet:
    """Read a YOLO set.

    Args:
        root: The data set.
        lenient: Leave out labels of pictures that are not there, and pictures whose labels cannot be read.

    Raises:
        DataError: It cannot be read. Label files that cannot be are among `Report.problems`.
    """
    stated = StatedSet("YOLO")
    report = stated.report
    names = _names(root)
    damaged: list[str] = []
    for place, outer in _places(root):
        sources = {_stem(path, place / LABELS): path for path in _texts(place / LABELS)}
        by_stem: dict[str, list[str]] = defaultdict(list)
        for path in pictures_below(place / IMAGES, report):
            by_stem[_stem(path, place / IMAGES)].append(path)
        if double := [" and ".join(map(repr, paths)) for paths in by_stem.values() if len(paths) > 1]:
            report.add(f"several pictures of one stem: {listing(double, quote=False)} - keep one of each", double)
        lost = [f"{stem}.txt" for stem in sources if stem not in by_stem]
        tell_missing(report, lost, f"in {str(place / LABELS)!r}", lenient=lenient)
        for stem, paths in by_stem.items():
            split = outer or next((name for part in Path(stem).parts[:-1] if (name := split_named(part))), None)
            source = sources.get(stem)
            objects: tuple[StatedObject, ...] = ()
            if source is not None:
                try:
                    objects = _read(source, names)
                except ValueError as error:
                    damaged.append(f"{source!r} ({error})")
                    if lenient:
                        report.skip(paths[0], f"its labels cannot be read: {error}")
                    continue
            stated.pictures.append(StatedPicture(paths[0], source or "", split, None, objects))
    if damaged and not lenient:
        message = (
            f"{len(damaged)} files of labels that cannot be read: {listing(damaged, limit=5, quote=False)} - correct "
            "them, or pass --skip-bad to leave their pictures out"
        )
        report.add(message, damaged, Kind.BOX)
    elif damaged:
        message = f"{len(damaged)} pictures left out whose labels cannot be read: {listing(damaged, quote=False)}"
        report.notes.append(Finding(Kind.BOX, message, tuple(damaged)))
    splits = {picture.split for picture in stated.pictures}
    if None in splits and len(splits) > 1:
        astray = [picture.path for picture in stated.pictures if picture.split is None]
        report.add(
            f"pictures in no folder of a split, while others are: {listing(astray, limit=3)} - move them", astray
        )
    elif splits and splits != {None} and "train" not in splits:
        report.add(f"no train folder beside {listing(sorted(map(str, splits)))} - add one", (), Kind.NO_TRAIN)
    stated.names = tuple(names.values())
    if not names:
        message = "no data.yaml or classes.txt names the classes: they go by their numbers"
        report.notes.append(Finding(Kind.NOTE, message))
    _settle_unit(stated)
    return stated


def _settle_unit(stated: StatedSet) -> None:
    """Say whether numbers are shares or pixels, by one rule for all of them."""
    boxes = [one.box for picture in stated.pictures for one in picture.objects]
    far = sum(max(map(abs, box)) > _FAR for box in boxes)
    stated.shares = 2 * far <= len(boxes)
    if stated.shares:
        stated.line = "boxes are centre, width and height as shares of the sides"
    else:
        stated.line = f"boxes are centre, width and height in pixels: {far} of {len(boxes)} have numbers above {_FAR:g}"


def _places(root: Path) -> list[tuple[Path, str | None]]:
    """Return the folders that hold ``images`` and ``labels``, with their splits: the top, else folders of splits."""
    if (root / IMAGES).is_dir() and (root / LABELS).is_dir():
        return [(root, None)]
    try:
        inside = sorted(entry for entry in root.iterdir() if entry.is_dir())
    except OSError:
        return []
    return [(entry, split) for entry in inside if (split := split_named(entry.name)) is not None
            and (entry / IMAGES).is_dir() and (entry / LABELS).is_dir()]  # fmt: skip


def _pictures(place: Path) -> Sequence[str]:
    return pictures_below(place / IMAGES, Report())


def _texts(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.rglob("*.txt")) if path.name not in NAME_FILES]


def _stem(path: str, folder: Path) -> str:
    return os.path.splitext(path[len(str(folder)) :].lstrip(os.sep))[0]  # noqa: PTH122  a Path each is slow


def _names(root: Path) -> dict[str, str]:
    """Return the names of the classes by their numbers; nothing where no file says them. Raises `DataError`."""
    for path in (*sorted(root.glob("*.yaml")), *sorted(root.glob("*.yml"))):
        listed = _yaml_names(path)
        if listed:
            return listed
    for path in (root / name for name in NAME_FILES):
        if path.is_file():
            return _numbered(read_text(path))
    path = root / LABELS / NAME_FILES[0]
    return _numbered(read_text(path)) if path.is_file() else {}


def _numbered(text: str) -> dict[str, str]:
    return {str(at): line.strip() for at, line in enumerate(text.rstrip().splitlines())}


def _yaml_names(path: Path) -> dict[str, str]:
    import yaml

    try:
        values: Any = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise DataError(f"{str(path)!r} is not YAML ({first_line(error)}) - correct it") from error
    names = values.get("names") if isinstance(values, Mapping) else None
    if names is None:
        return {}
    pairs = (
        list(names.items()) if isinstance(names, Mapping) else list(enumerate(names if isinstance(names, list) else ()))
    )
    plain = all(
        str(key).isdigit() and isinstance(key, int | str) and isinstance(name, str | int | float | bool)
        for key, name in pairs
    )
    if not pairs or not plain:
        raise DataError(f"{str(path)!r}: names is no list of names, and no name by number such as 0: cat - correct it")
    return {str(key): str(name).strip() for key, name in pairs}


def _read(path: str, names: Mapping[str, str]) -> tuple[StatedObject, ...]:
    """Return the objects of a file. Raises `ValueError` with the reason."""
    try:
        text = read_text(Path(path))
    except DataError as error:
        raise ValueError(str(error)) from error
    objects = []
    for line_number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        place = f"line {line_number}"
        values = [_number(word) for word in words[1:]]
        if len(values) == 4:
            x, y, width, height = values
            box, outline = (x - width / 2, y - height / 2, x + width / 2, y + height / 2), None
        elif len(values) >= 6 and len(values) % 2 == 0:
            xs, ys = values[::2], values[1::2]
            box, outline = (min(xs), min(ys), max(xs), max(ys)), [values]
        else:
            raise ValueError(
                f"{place} has {len(words)} numbers, expected a class and 4, or a class and the x y of 3 points or more"
            )
        index = number(words[0])
        key = str(int(index)) if index is not None and index == int(index) else words[0]
        name = names.get(key) if names else (key if key.isdigit() else None)
        objects.append(StatedObject(name, box, place, outline=outline, number=key))
    return tuple(objects)


def _number(text: str) -> float:
    value = number(text)
    return float("nan") if value is None else value
