"""Pictures beside masks: ``DATA/images/*`` and ``DATA/masks/*`` of the same stems, or both inside split folders.

A picture and its mask have the same path below their folders, but for the ending. Deeper folders mean nothing.
"""

from __future__ import annotations

import os
import shlex
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from transferkit.core.errors import DataError
from transferkit.core.records import Finding
from transferkit.core.text import listing
from transferkit.data.scan.palette import NAME_FILES
from transferkit.data.scan.records import SPLIT_NAMES, Kind, Scan, ScannedFile, split_named
from transferkit.data.scan.walking import Level, Report, pictures_below, read_level

__all__ = ["IMAGES", "MASKS", "pairs_reason", "scan_pairs"]

IMAGES, MASKS = "images", "masks"
"""The folders, in lower case; case is ignored."""

_SHOWN: Final = f"{IMAGES}/ and {MASKS}/"


class _Place(NamedTuple):
    """A folder that holds pictures and masks, in folders of their own; ``None`` for one that is not there."""

    folder: Path
    split: str | None
    images: Path | None
    masks: Path | None


def pairs_reason(data: str) -> str | None:
    """Return why a folder is one of pictures and masks, in words; ``None`` where it is not.

    It is one where ``images/`` and ``masks/`` lie side by side, at the top or in a split, and some picture has a mask
    of its stem: two classes of those names have none, or may be named by ``--task classification``.
    """
    try:
        places = _places(Path(data), read_level(Path(data), Report()))
    except OSError:
        return None
    for place in places:
        if place.images is not None and place.masks is not None:
            stems = _by_stem(place.images, Report()).keys()
            if not stems.isdisjoint(_by_stem(place.masks, Report())):
                inside = "" if place.split is None else f" in {place.folder.name}/"
                return f"{_SHOWN} with files of the same stems lie side by side{inside}"
    return None


def scan_pairs(data: str, *, lenient: bool = False) -> Scan:
    """List the pictures below `data` with their masks, whose paths are the labels.

    Args:
        data: The folder.
        lenient: Leave out pictures without a mask, and masks without a picture, instead of refusing them.

    Raises:
        DataError: The folder cannot be read or holds no such folders. What is wrong inside goes to `Scan.problems`.
    """
    report, root = Report(), Path(data)
    top = read_level(root, report)
    if report.unreadable:
        raise DataError(f"{'; '.join(report.unreadable)} - check the path and its permissions")
    places = _places(root, top)
    if not any(place.images and place.masks for place in places):
        present = listing([f"{name}/" for name in top.folders], quote=False) if top.folders else "no folder"
        raise DataError(
            f"no {_SHOWN} in {data!r}, at the top or in train, val and test: expected "
            f"{str(root / IMAGES / 'x.jpg')!r} with its mask {str(root / MASKS / 'x.png')!r}, found {present}"
            " - move them there, or pass a manifest of path,mask"
        )
    _tell_of_the_rest(root, top, places, report)
    files = [file for place in places for file in _pair(place, report, lenient=lenient)]
    return report.scan(files)


# ---- the folders ------------------------------------------------------------------------------------------------


def _places(root: Path, top: Level) -> list[_Place]:
    """Return the folder itself where it holds pictures or masks, else its split folders that do."""
    here = _place(root, top, None)
    if here.images is not None or here.masks is not None:
        return [here]
    named = [(name, split) for name in top.folders if (split := split_named(name)) is not None]
    inside = [_place(root / name, read_level(root / name, Report()), split) for name, split in named]
    return [place for place in inside if place.images is not None or place.masks is not None]


def _place(folder: Path, level: Level, split: str | None) -> _Place:
    known = {name.lower(): folder / name for name in level.folders}
    return _Place(folder, split, known.get(IMAGES), known.get(MASKS))


def _tell_of_the_rest(root: Path, top: Level, places: Sequence[_Place], report: Report) -> None:
    """Note what lies beside the folders that are read, and which split an unusual name is taken for."""
    named = {place.folder.name: place.split for place in places if place.split is not None}
    for split in sorted(set(named.values())):
        twice = [name for name, other in named.items() if other == split]
        if len(twice) > 1:
            report.add(f"several folders for the {split} split: {listing(twice)} - keep one", twice)
    if named and "train" not in named.values():
        message = f"no train folder beside {listing(sorted(named))} in {str(root)!r} - add one"
        report.add(message, sorted(named), Kind.NO_TRAIN)
    if unusual := [name for name in named if name.lower() not in SPLIT_NAMES]:
        meanings = ", ".join(f"{name!r} is {named[name]}" for name in unusual)
        report.notes.append(Finding(Kind.NOTE, f"folders of splits: {meanings}", tuple(unusual)))
    read = {name.lower() for name in named} or {IMAGES, MASKS}
    for folder, level, names in [
        (root, top, read),
        *((place.folder, read_level(place.folder, Report()), {IMAGES, MASKS}) for place in places if named),
    ]:
        for path in level.pictures:
            report.skip(path, f"lies beside {_SHOWN}")
        beside = listing([f"{name}/" for name in level.folders if name.lower() not in names], quote=False)
        if beside:
            report.notes.append(Finding(Kind.NOTE, f"folders of {str(folder)!r} that are not read: {beside}"))
    own = {str(root / name) for name in NAME_FILES}
    for file in [file for file in report.skipped if file.path in own]:
        report.skipped.remove(file)
        report.extensions[Path(file.path).suffix] -= 1
    report.extensions = +report.extensions  # without those that none is left of


# ---- pictures and masks -----------------------------------------------------------------------------------------


def _pair(place: _Place, report: Report, *, lenient: bool) -> list[ScannedFile]:
    images = {} if place.images is None else _by_stem(place.images, report)
    masks = {} if place.masks is None else _by_stem(place.masks, report)
    where = str(place.folder)
    for present, what in ((images, "pictures"), (masks, "masks")):
        if double := [" and ".join(map(repr, paths)) for paths in present.values() if len(paths) > 1]:
            message = f"several {what} of one stem in {where!r}: {listing(double, quote=False)} - keep one of each"
            report.add(message, double)
    bare = [paths[0] for stem, paths in images.items() if stem not in masks]
    if place.split == "test" and place.masks is None:  # nobody has drawn them
        for path in bare:
            report.skip(path, "has no mask")
        message = (
            f"{len(bare)} pictures without masks are left out - predict them later: "
            f"transferkit predict RUN {shlex.quote(str(place.images))}"
        )
        report.notes.append(Finding(Kind.NOTE, message, (where,)))
        bare = []
    alone = [paths[0] for stem, paths in masks.items() if stem not in images]
    _tell_of_single(bare, f"pictures without a mask in {where!r}", "has no mask", report, lenient=lenient)
    _tell_of_single(alone, f"masks without a picture in {where!r}", "has no picture", report, lenient=lenient)
    return [
        ScannedFile(paths[0], masks[stem][0], place.split) for stem, paths in sorted(images.items()) if stem in masks
    ]


def _tell_of_single(paths: Sequence[str], what: str, reason: str, report: Report, *, lenient: bool) -> None:
    if not paths:
        return
    if lenient:
        for path in paths:
            report.skip(path, reason)
        report.notes.append(Finding(Kind.MASK, f"{len(paths)} {what} are left out", tuple(paths)))
    else:
        message = f"{len(paths)} {what}: {listing(sorted(paths))} - give both the same stem, or pass --skip-bad"
        report.add(message, sorted(paths), Kind.MASK)


def _by_stem(folder: Path, report: Report) -> Mapping[str, list[str]]:
    """Return the files below a folder by their paths in it without endings, in one form of accents."""
    present: dict[str, list[str]] = defaultdict(list)
    for path in pictures_below(folder, report):
        inside = os.path.splitext(path[len(str(folder)) :].lstrip(os.sep))[0]  # noqa: PTH122  a Path each is slow
        present[unicodedata.normalize("NFC", inside)].append(path)
    return present
