"""Folders of pictures: ``DATA/<class>/*`` and ``DATA/{train,val,test}/<class>/*``.

A class is a first-level folder (below the split); pictures may lie deeper, and the names of deeper folders mean
nothing. Symbolic links are followed, and no folder is entered twice on the way through one class, so that loops end.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from transferkit.core.errors import DataError
from transferkit.core.records import SkippedFile
from transferkit.core.text import listing
from transferkit.data.scan.formats import EXTENSIONS
from transferkit.data.scan.problems import SPLIT_NAMES, FoundFile, Scan, class_name_problems, order_classes

__all__ = ["SYSTEM_NAMES", "scan_folder"]

SYSTEM_NAMES: Final = {"thumbs.db", "desktop.ini", "__macosx", "@eadir"}
"""Of files and folders that systems leave about, in lower case; those that are hidden besides."""


@dataclass(slots=True)
class _Findings:
    """What is gathered on the way."""

    skipped: list[SkippedFile] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    def skip(self, path: str, reason: str) -> None:
        self.skipped.append(SkippedFile(path, reason))


@dataclass(frozen=True, slots=True)
class _Level:
    """The entries of one folder, sorted: sub-folders, candidate pictures."""

    folders: tuple[str, ...]
    pictures: tuple[str, ...]


def scan_folder(data: str) -> Scan:
    """List the pictures below `data`.

    ``DATA/train`` makes a folder one with splits when it holds folders and no pictures, or when there is nothing but
    folders named like splits; so a class may well be called ``train``.

    Raises:
        DataError: The folder cannot be read or holds no class folders. What is wrong inside goes to `Scan.problems`.
    """
    found, root = _Findings(), Path(data)
    top = _level(root, found)
    if found.unreadable:
        raise DataError(f"{'; '.join(found.unreadable)} - check the path and its permissions")
    if not top.folders:
        raise DataError(
            f"no class folders in {data!r}: expected {str(root / '<class>' / '*.jpg')!r}, found {len(top.pictures)}"
            " pictures directly in the folder - move each into a folder named after its class"
        )
    named = {name: SPLIT_NAMES[name.lower()] for name in top.folders if name.lower() in SPLIT_NAMES}
    if named and _has_splits(root, top, named):
        class_names, files, notes = _scan_splits(root, top, named, found)
    else:
        found.skipped.clear()  # this level is read again, as that of the classes
        class_names, files, notes = _scan_classes(root, None, found)
    if found.unreadable:
        found.problems.append(
            f"folders that cannot be read: {listing(found.unreadable, quote=False)} - check permissions"
        )
    return Scan(
        order_classes(class_names),
        tuple(sorted(files, key=lambda file: file.path)),
        tuple(sorted(found.skipped, key=lambda file: file.path)),
        tuple(notes + _extension_notes(found.skipped)),
        tuple(found.problems + class_name_problems([*class_names, *(file.label for file in files)])),
    )


def _has_splits(root: Path, top: _Level, named: dict[str, str]) -> bool:
    if len(named) == len(top.folders):
        return True
    train = next((name for name, split in named.items() if split == "train"), None)
    if train is None:
        return False
    below = _level(root / train, _Findings())
    return bool(below.folders) and not below.pictures


def _scan_splits(
    root: Path, top: _Level, named: dict[str, str], found: _Findings
) -> tuple[list[str], list[FoundFile], list[str]]:
    for path in top.pictures:
        found.skip(path, "lies beside the split folders")
    for split in sorted(set(named.values())):
        twice = [name for name, other in named.items() if other == split]
        if len(twice) > 1:
            found.problems.append(f"several folders for the {split} split: {listing(twice)} - keep one")
    if "train" not in named.values():
        found.problems.append(f"no train folder beside {listing(sorted(named))} in {str(root)!r} - add one")
    strangers = [name for name in top.folders if name not in named]
    holding = [name for name in strangers if _pictures_below(root / name, found)]
    if holding:
        found.problems.append(
            f"folders with pictures beside the split folders: {listing(holding)} - move them into train, val or test"
        )
    class_names: list[str] = []
    files: list[FoundFile] = []
    notes: list[str] = []
    for name, split in named.items():
        labels, inside, told = _scan_classes(root / name, split, found)
        class_names += labels if split == "train" else []
        files += inside
        notes += told
    return class_names, files, notes


def _scan_classes(base: Path, split: str | None, found: _Findings) -> tuple[list[str], list[FoundFile], list[str]]:
    level = _level(base, found)
    if not level.folders and level.pictures:
        found.problems.append(
            f"no class folders in {str(base)!r}: expected {str(base / '<class>' / '*.jpg')!r},"
            f" found {len(level.pictures)} pictures directly in the folder"
        )
    for path in level.pictures:
        found.skip(path, "lies beside the class folders")
    files: list[FoundFile] = []
    nested: dict[str, set[str]] = {}
    for label in level.folders:
        folder = base / label
        paths = _pictures_below(folder, found)
        files += [FoundFile(path, label, split) for path in paths]
        inside = [path[len(str(folder)) :].lstrip(os.sep).split(os.sep) for path in paths]  # noqa: PTH206  likewise
        if paths and all(len(parts) > 1 for parts in inside):
            nested[label] = {parts[0] for parts in inside}
    notes = []
    shared = {name for name, count in Counter(name for inner in nested.values() for name in inner).items() if count > 1}
    if shared:
        notes.append(
            f"the classes are the folders {listing(sorted(nested))}; the folders inside them that share names"
            f" ({listing(sorted(shared))}) are not classes"
        )
    return list(level.folders), files, notes


def _pictures_below(folder: Path, found: _Findings) -> list[str]:
    """Return the candidates in `folder` and below, however deep, entering no folder twice."""
    paths: list[str] = []
    waiting, entered = [folder], set()
    while waiting:
        here = waiting.pop()
        try:
            facts = here.stat()
        except OSError:
            facts = None  # named by `_level`
        if facts is not None:
            if (facts.st_dev, facts.st_ino) in entered:
                found.skip(str(here), "a folder that was entered already, by a link")
                continue
            entered.add((facts.st_dev, facts.st_ino))
        level = _level(here, found)
        paths += level.pictures
        waiting += [here / name for name in reversed(level.folders)]
    return paths


def _level(folder: Path, found: _Findings) -> _Level:
    """Read one folder; what is skipped by rule or cannot be read goes to `found`."""
    folders, pictures = [], []
    try:
        with os.scandir(folder) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
    except OSError as error:
        found.unreadable.append(f"{str(folder)!r}: {error.strerror}")
        return _Level((), ())
    for entry in entries:
        if entry.name.startswith(".") or entry.name.lower() in SYSTEM_NAMES:
            continue
        try:
            kind = entry.stat().st_mode
        except OSError as error:
            reason = f"a link that leads nowhere ({error.strerror})" if entry.is_symlink() else str(error.strerror)
            found.skip(entry.path, reason)
            continue
        extension = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122  a Path each would double the time of a scan
        if stat.S_ISDIR(kind):
            if extension in EXTENSIONS:
                found.skip(entry.path, "a folder with the name of a picture")
            else:
                folders.append(entry.name)
        elif not stat.S_ISREG(kind):
            found.skip(entry.path, "not a regular file")
        elif extension in EXTENSIONS:
            pictures.append(entry.path)
        else:
            found.skip(entry.path, f"extension {extension!r} is not that of a picture format that is read")
    return _Level(tuple(folders), tuple(pictures))


def _extension_notes(skipped: list[SkippedFile]) -> list[str]:
    counts = Counter(
        Path(file.path).suffix.lower() or "none" for file in skipped if file.reason.startswith("extension")
    )
    if not counts:
        return []
    told = ", ".join(f"{count} x {extension!r}" for extension, count in sorted(counts.items()))
    return [f"{counts.total()} files skipped for their extension: {told}"]
