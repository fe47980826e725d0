"""Folders of pictures: ``DATA/<class>/*`` and ``DATA/{train,val,test}/<class>/*``.

A class is a first-level folder (below the split); pictures may lie deeper, and the names of deeper folders mean
nothing. Symbolic links are followed, and no folder is entered twice on the way through one class, so that loops end.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from transferkit.core.errors import DataError
from transferkit.core.records import Finding, SkippedFile
from transferkit.core.text import listing, name_text
from transferkit.data.scan.class_names import class_name_problems, order_classes
from transferkit.data.scan.formats import read_extensions, unread_text
from transferkit.data.scan.records import SPLIT_NAMES, Kind, Scan, ScannedFile, split_named

__all__ = ["SYSTEM_NAMES", "scan_folder"]

SYSTEM_NAMES: Final = {"thumbs.db", "desktop.ini", "__macosx", "@eadir"}
"""Of files and folders that systems leave about, in lower case; those that are hidden besides."""

OUTPUTS: Final = (".lock", "plan.json", "metrics.json", "model.json", "lr.csv", "explain.csv", "check.json")
"""Files that mark a folder as one that transferkit wrote: a run, a plan, an evaluation, an audit."""


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

    ``DATA/train`` (or ``Training``, ``seg_train``) makes a folder one with splits when it holds folders and no
    pictures, or when there is nothing but ``train``, ``val`` and ``test``; so a class may well be called ``train``.
    Folders that transferkit wrote are no classes.

    Raises:
        DataError: The folder cannot be read, holds no class folders, or only a folder of them. What is wrong inside
            goes to `Scan.problems`.
    """
    report, root = _Report(), Path(data)
    top = _without_outputs(root, _level(root, report), report)
    if report.unreadable:
        raise DataError(f"{'; '.join(report.unreadable)} - check the path and its permissions")
    if not top.folders:
        unread = f" ({unread_text(report.extensions)})" if report.extensions else ""
        raise DataError(
            f"no class folders in {data!r}: expected {str(root / '<class>' / '*.jpg')!r}, found {len(top.pictures)}"
            f" pictures directly in the folder{unread} - move each into a folder named after its class"
        )
    named = {name: split for name in top.folders if (split := split_named(name)) is not None}
    if named and _has_splits(root, top, named):
        class_names, files = _scan_splits(root, top, named, report)
    else:
        _refuse_wrapper(root, top)
        report.notes.clear()
        report.skipped.clear()  # this level is read again, as that of the classes
        report.extensions.clear()
        class_names, files = _scan_classes(root, None, report)
    if report.unreadable:
        report.add(
            f"folders that cannot be read: {listing(report.unreadable, quote=False)} - check permissions",
            report.unreadable,
        )
    if report.extensions:
        report.notes.append(Finding(Kind.NOTE, unread_text(report.extensions), tuple(sorted(report.extensions))))
    return Scan(
        order_classes(class_names),
        tuple(sorted(files, key=lambda file: file.path)),
        tuple(sorted(report.skipped, key=lambda file: file.path)),
        tuple(report.notes),
        (*report.problems, *class_name_problems([*class_names, *(file.label for file in files)])),
    )


def _without_outputs(root: Path, level: _Level, report: _Report) -> _Level:
    """Leave out what transferkit wrote, and folders of nothing else, such as ``runs``."""

    def written(folder: Path) -> bool:
        return any((folder / name).is_file() for name in OUTPUTS)

    def full_of_them(folder: Path) -> bool:
        inside = _level(folder, _Report())
        return bool(inside.folders) and not inside.pictures and all(written(folder / name) for name in inside.folders)

    own = [name for name in level.folders if written(root / name) or full_of_them(root / name)]
    if own:
        message = f"{len(own)} folders that transferkit itself wrote are left out"
        report.notes.append(Finding(Kind.NOTE, message, tuple(own)))
    return _Level(tuple(name for name in level.folders if name not in own), level.pictures)


def _refuse_wrapper(root: Path, top: _Level) -> None:
    """Refuse a folder of one folder that holds what was meant."""
    if len(top.folders) != 1 or top.pictures:
        return
    inner = root / top.folders[0]
    inside = _level(inner, _Report())
    names = [name for name in inside.folders if _pictures_below(inner / name, _Report())]
    if len(names) > 1 and not inside.pictures:
        raise DataError(
            f"{str(root)!r} holds one folder, and that holds {len(names)} folders of pictures: {listing(names)} - pass "
            f"{str(inner)!r} if they are the classes or splits, or add folders of other classes"
        )


def _has_splits(root: Path, top: _Level, named: dict[str, str]) -> bool:
    if len(named) == len(top.folders) and any(name.lower() in SPLIT_NAMES for name in named):
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
    if unusual := [name for name in named if name.lower() not in SPLIT_NAMES]:
        meanings = ", ".join(f"{name!r} is {named[name]}" for name in unusual)
        report.notes.append(Finding(Kind.NOTE, f"folders of splits: {meanings}", tuple(unusual)))
    holding = []
    for name in top.folders:
        paths = [] if name in named else _pictures_below(root / name, report)
        if paths and not _level(_doubled(root / name), _Report()).folders:
            _leave_out(root / name, paths, report)
        elif paths:
            holding.append(name)
    if holding:
        message = (
            f"folders with pictures beside the split folders: {listing(holding)} - move them into train, val or test"
        )
        report.add(message, holding)
    class_names: list[str] = []
    files: list[ScannedFile] = []
    for name, split in named.items():
        base = _doubled(root / name)
        level = _level(base, _Report())
        if split == "test" and level.pictures and not level.folders:
            _leave_out(base, level.pictures, report)
            continue
        labels, inside = _scan_classes(base, split, report)
        class_names += labels if split == "train" else []
        files += inside
    return class_names, files


def _doubled(folder: Path) -> Path:
    """Return the folder, or that of its name inside where there is nothing else, as some archives have it."""
    level = _level(folder, _Report())
    return folder / folder.name if level.folders == (folder.name,) and not level.pictures else folder


def _leave_out(folder: Path, paths: Sequence[str], report: _Report) -> None:
    """Leave out pictures that nobody has put into classes."""
    for path in paths:
        report.skip(path, "has no class")
    message = (
        f"{len(paths)} pictures without classes are left out - predict them later: "
        f"transferkit predict RUN {shlex.quote(str(folder))}"
    )
    report.notes.append(Finding(Kind.NOTE, message, (str(folder),)))


def _scan_classes(base: Path, split: str | None, report: _Report) -> tuple[list[str], list[ScannedFile]]:
    level = _without_outputs(base, _level(base, report), report) if split is None else _level(base, report)
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
        files += [ScannedFile(path, name_text(label), split) for path in paths]
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
    return [name_text(name) for name in level.folders], files


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
    folders, pictures, read = [], [], read_extensions()
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
            if extension in read:
                report.skip(entry.path, "a folder with the name of a picture")
            else:
                folders.append(entry.name)
        elif not stat.S_ISREG(kind):
            report.skip(entry.path, "not a regular file")
        elif extension in read:
            pictures.append(entry.path)
        else:
            report.extensions[extension] += 1
            report.skip(entry.path, f"extension {extension!r} is not that of a picture format that is read")
    return _Level(tuple(folders), tuple(pictures))
