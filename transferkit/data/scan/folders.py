"""Folders of pictures: ``DATA/<class>/*`` and ``DATA/{train,val,test}/<class>/*``.

A class is a first-level folder (below the split); pictures may lie deeper, and the names of deeper folders mean
nothing. Symbolic links are followed, and no folder is entered twice on the way through one class, so that loops end.
"""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from transferkit.core.errors import DataError
from transferkit.core.records import Finding
from transferkit.core.text import listing, name_text
from transferkit.data.scan.class_names import class_name_problems, order_classes
from transferkit.data.scan.formats import unread_text
from transferkit.data.scan.records import SPLIT_NAMES, Kind, Scan, ScannedFile, split_named
from transferkit.data.scan.walking import Level, Report, holds_pictures, pictures_below, read_level

__all__ = ["scan_folder"]

OUTPUTS: Final = (".lock", "plan.json", "metrics.json", "model.json", "lr.csv", "explain.csv", "check.json")
"""Files that mark a folder as one that transferkit wrote: a run, a plan, an evaluation, an audit."""


def scan_folder(data: str) -> Scan:
    """List the pictures below `data`.

    ``DATA/train`` (or ``Training``, ``seg_train``) makes a folder one with splits when it holds folders and no
    pictures, or when there is nothing but ``train``, ``val`` and ``test``; so a class may well be called ``train``.
    Folders that transferkit wrote are no classes.

    Raises:
        DataError: The folder cannot be read, holds no class folders, or only a folder of them. What is wrong inside
            goes to `Scan.problems`.
    """
    report, root = Report(), Path(data)
    top = _without_outputs(root, read_level(root, report), report)
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
    scan = report.scan(files, order_classes(class_names))
    odd = class_name_problems([*class_names, *(file.label for file in files)])
    return replace(scan, problems=(*scan.problems, *odd))


def _without_outputs(root: Path, level: Level, report: Report) -> Level:
    """Leave out what transferkit wrote, and folders of nothing else, such as ``runs``."""

    def written(folder: Path) -> bool:
        return any((folder / name).is_file() for name in OUTPUTS)

    def full_of_them(folder: Path) -> bool:
        if holds_pictures(folder):  # as nearly all do: a look at every file of every class would triple the scan
            return False
        inside = read_level(folder, Report())
        return bool(inside.folders) and not inside.pictures and all(written(folder / name) for name in inside.folders)

    own = [name for name in level.folders if written(root / name) or full_of_them(root / name)]
    if own:
        message = f"{len(own)} folders that transferkit itself wrote are left out"
        report.notes.append(Finding(Kind.NOTE, message, tuple(own)))
    return Level(tuple(name for name in level.folders if name not in own), level.pictures)


def _refuse_wrapper(root: Path, top: Level) -> None:
    """Refuse a folder of one folder that holds what was meant."""
    if len(top.folders) != 1 or top.pictures:
        return
    inner = root / top.folders[0]
    inside = read_level(inner, Report())
    names = [name for name in inside.folders if pictures_below(inner / name, Report())]
    if len(names) > 1 and not inside.pictures:
        raise DataError(
            f"{str(root)!r} holds one folder, and that holds {len(names)} folders of pictures: {listing(names)} - pass "
            f"{str(inner)!r} if they are the classes or splits, or add folders of other classes"
        )


def _has_splits(root: Path, top: Level, named: dict[str, str]) -> bool:
    if len(named) == len(top.folders) and any(name.lower() in SPLIT_NAMES for name in named):
        return True
    train = next((name for name, split in named.items() if split == "train"), None)
    if train is None:
        return False
    below = read_level(root / train, Report())
    return bool(below.folders) and not below.pictures


def _scan_splits(root: Path, top: Level, named: dict[str, str], report: Report) -> tuple[list[str], list[ScannedFile]]:
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
        paths = [] if name in named else pictures_below(root / name, report)
        if paths and not read_level(_doubled(root / name), Report()).folders:
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
        level = read_level(base, Report())
        if split == "test" and level.pictures and not level.folders:
            _leave_out(base, level.pictures, report)
            continue
        labels, inside = _scan_classes(base, split, report)
        class_names += labels if split == "train" else []
        files += inside
    return class_names, files


def _doubled(folder: Path) -> Path:
    """Return the folder, or that of its name inside where there is nothing else, as some archives have it."""
    level = read_level(folder, Report())
    return folder / folder.name if level.folders == (folder.name,) and not level.pictures else folder


def _leave_out(folder: Path, paths: Sequence[str], report: Report) -> None:
    """Leave out pictures that nobody has put into classes."""
    for path in paths:
        report.skip(path, "has no class")
    message = (
        f"{len(paths)} pictures without classes are left out - predict them later: "
        f"transferkit predict RUN {shlex.quote(str(folder))}"
    )
    report.notes.append(Finding(Kind.NOTE, message, (str(folder),)))


def _scan_classes(base: Path, split: str | None, report: Report) -> tuple[list[str], list[ScannedFile]]:
    level = _without_outputs(base, read_level(base, report), report) if split is None else read_level(base, report)
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
        paths = pictures_below(folder, report)
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
