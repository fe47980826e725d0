"""Folders of pictures: ``DATA/<class>/*`` and ``DATA/{train,val,test}/<class>/*``.

A class is a first-level folder (below the split); pictures may lie deeper, and the names of deeper folders mean
nothing. Symbolic links are followed, and no folder is entered twice on the way through one class, so that loops end.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from transferkit.core.errors import DataError
from transferkit.core.records import Finding, SkippedFile
from transferkit.core.text import listing
from transferkit.data.scan.class_names import class_name_problems, order_classes
from transferkit.data.scan.formats import EXTENSIONS
from transferkit.data.scan.records import SPLIT_NAMES, Kind, Scan, ScannedFile

__all__ = ["SYSTEM_NAMES", "scan_folder"]

SYSTEM_NAMES: Final = {"thumbs.db", "desktop.ini", "__macosx", "@eadir"}
"""Of files and folders that systems leave about, in lower case; those that are hidden besides."""


@dataclass(slots=True)
class _Report:
    """Notes on the way."""

    skipped: list[SkippedFile] = field(default_factory=list)
    extensions: Counter[str] = field(default_factory=Counter)
    problems: list[Finding] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)

    def skip(self, path: str, reason: str) -> None:
        self.skipped.append(SkippedFile(path, reason))

    def add(self, message: str, items: Iterable[str] = (), kind: Kind = Kind.LAYOUT) -> None:
        self.problems.append(Finding(kind, message, tuple(items)))


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
    report, root = _Report(), Path(data)
    top = _level(root, report)
    if report.unreadable:
        raise DataError(f"{'; '.join(report.unreadable)} - check the path and its permissions")
    if not top.folders:
        raise DataError(
            f"no class folders in {data!r}: expected {str(root / '<class>' / '*.jpg')!r}, found {len(top.pictures)}"
            " pictures directly in the folder - move each into a folder named after its class"
        )
    named = {name: SPLIT_NAMES[name.lower()] for name in top.folders if name.lower() in SPLIT_NAMES}
    if named and _has_splits(root, top, named):
        class_names, files = _scan_splits(root, top, named, report)
    else:
        report.skipped.clear()  # this level is read again, as that of the classes
        report.extensions.clear()
        class_names, files = _scan_classes(root, None, report)
    if report.unreadable:
        report.add(
            f"folders that cannot be read: {listing(report.unreadable, quote=False)} - check permissions",
            report.unreadable,
        )
    if report.extensions:
        counts = ", ".join(f"{count} x {extension!r}" for extension, count in sorted(report.extensions.items()))
        message = f"{report.extensions.total()} files skipped for their extension: {counts}"
        report.notes.append(Finding(Kind.NOTE, message, tuple(sorted(report.extensions))))
    return Scan(
        order_classes(class_names),
        tuple(sorted(files, key=lambda file: file.path)),
        tuple(sorted(report.skipped, key=lambda file: file.path)),
        tuple(report.notes),
        (*report.problems, *class_name_problems([*class_names, *(file.label for file in files)])),
    )


def _has_splits(root: Path, top: _Level, named: dict[str, str]) -> bool:
    if len(named) == len(top.folders):
        return True
    train = next((name for name, split in named.items() if split == "train"), None)
    if train is None:
        return False
    below = _level(root / train, _Report())
    return bool(below.folders) and not below.pictures


def _scan_splits(
    root: Path, top: _Level, named: dict[str, str], report: _Report
) -> tuple[list[str], list[ScannedFile]]:
    for path in top.pictures:
        report.skip(path, "lies beside the split folders")
    for split in sorted(set(named.values())):
        twice = [name for name, other in named.items() if other == split]
        if len(twice) > 1:
            report.add(f"several folders for the {split} split: {listing(twice)} - keep one", twice)
    if "train" not in named.values():
        message = f"no train folder beside {listing(sorted(named))} in {str(root)!r} - add one"
        report.add(message, sorted(named), Kind.NO_TRAIN)
    strangers = [name for name in top.folders if name not in named]
    holding = [name for name in strangers if _pictures_below(root / name, report)]
    if holding:
        message = (
            f"folders with pictures beside the split folders: {listing(holding)} - move them into train, val or test"
        )
        report.add(message, holding)
    class_names: list[str] = []
    files: list[ScannedFile] = []
    for name, split in named.items():
        labels, inside = _scan_classes(root / name, split, report)
        class_names += labels if split == "train" else []
        files += inside
    return class_names, files


def _scan_classes(base: Path, split: str | None, report: _Report) -> tuple[list[str], list[ScannedFile]]:
    level = _level(base, report)
    if not level.folders and level.pictures:
        report.add(
            f"no class folders in {str(base)!r}: expected {str(base / '<class>' / '*.jpg')!r},"
            f" found {len(level.pictures)} pictures directly in the folder",
            level.pictures,
        )
    for path in level.pictures:
        report.skip(path, "lies beside the class folders")
    files: list[ScannedFile] = []
    nested: dict[str, set[str]] = {}
    for label in level.folders:
        folder = base / label
        paths = _pictures_below(folder, report)
        files += [ScannedFile(path, label, split) for path in paths]
        inside = [path[len(str(folder)) :].lstrip(os.sep).split(os.sep) for path in paths]  # noqa: PTH206  likewise
        if paths and all(len(parts) > 1 for parts in inside):
            nested[label] = {parts[0] for parts in inside}
    shared = {name for name, count in Counter(name for inner in nested.values() for name in inner).items() if count > 1}
    if shared:
        message = (
            f"the classes are the folders {listing(sorted(nested))}; the folders inside them that share names"
            f" ({listing(sorted(shared))}) are not classes"
        )
        report.notes.append(Finding(Kind.NOTE, message, tuple(sorted(shared))))
    return list(level.folders), files


def _pictures_below(folder: Path, report: _Report) -> list[str]:
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
                report.skip(str(here), "a folder that was entered already, by a link")
                continue
            entered.add((facts.st_dev, facts.st_ino))
        level = _level(here, report)
        paths += level.pictures
        waiting += [here / name for name in reversed(level.folders)]
    return paths


def _level(folder: Path, report: _Report) -> _Level:
    """Read one folder; what is skipped by rule or cannot be read goes to `report`."""
    folders, pictures = [], []
    try:
        with os.scandir(folder) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
    except OSError as error:
        report.unreadable.append(f"{str(folder)!r}: {error.strerror}")
        return _Level((), ())
    for entry in entries:
        if entry.name.startswith(".") or entry.name.lower() in SYSTEM_NAMES:
            continue
        try:
            kind = entry.stat().st_mode
        except OSError as error:
            reason = f"a link that leads nowhere ({error.strerror})" if entry.is_symlink() else str(error.strerror)
            report.skip(entry.path, reason)
            continue
        extension = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122  a Path each would double the time of a scan
        if stat.S_ISDIR(kind):
            if extension in EXTENSIONS:
                report.skip(entry.path, "a folder with the name of a picture")
            else:
                folders.append(entry.name)
        elif not stat.S_ISREG(kind):
            report.skip(entry.path, "not a regular file")
        elif extension in EXTENSIONS:
            pictures.append(entry.path)
        else:
            report.extensions[extension or "none"] += 1
            report.skip(entry.path, f"extension {extension!r} is not that of a picture format that is read")
    return _Level(tuple(folders), tuple(pictures))
