"""Walking through folders: the candidates among their files, and notes of what is passed over on the way."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from transferkit.core.records import Finding, SkippedFile
from transferkit.core.text import listing
from transferkit.data.scan.formats import read_extensions, unread_text
from transferkit.data.scan.records import Kind, Scan, ScannedFile

__all__ = ["SYSTEM_NAMES", "Level", "Report", "holds_pictures", "pictures_below", "read_level"]

SYSTEM_NAMES: Final = {"thumbs.db", "desktop.ini", "__macosx", "@eadir"}
"""Of files and folders that systems leave about, in lower case; those that are hidden besides."""


@dataclass(slots=True)
class Report:
    """Notes on the way."""

    skipped: list[SkippedFile] = field(default_factory=list)
    extensions: Counter[str] = field(default_factory=Counter)
    problems: list[Finding] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)

    def skip(self, path: str, reason: str) -> None:
        """Note a file that is no candidate, and why."""
        self.skipped.append(SkippedFile(path, reason))

    def scan(self, files: Iterable[ScannedFile], class_names: tuple[str, ...] = ()) -> Scan:
        """Return the content of a folder, with all that was noted on the way."""
        if self.unreadable:
            self.add(
                f"folders that cannot be read: {listing(self.unreadable, quote=False)} - check permissions",
                self.unreadable,
            )
        if self.extensions:
            self.notes.append(Finding(Kind.NOTE, unread_text(self.extensions), tuple(sorted(self.extensions))))
        return Scan(
            class_names,
            tuple(sorted(files, key=lambda file: file.path)),
            tuple(sorted(self.skipped, key=lambda file: file.path)),
            tuple(self.notes),
            tuple(self.problems),
        )

    def add(self, message: str, items: Iterable[str] = (), kind: Kind = Kind.LAYOUT) -> None:
        """Note what is wrong."""
        self.problems.append(Finding(kind, message, tuple(items)))


@dataclass(frozen=True, slots=True)
class Level:
    """The entries of one folder, sorted: sub-folders, candidate pictures."""

    folders: tuple[str, ...]
    pictures: tuple[str, ...]


def pictures_below(folder: Path, report: Report) -> list[str]:
    """Return the candidates in `folder` and below, however deep, entering no folder twice."""
    paths: list[str] = []
    waiting, entered = [folder], set()
    while waiting:
        here = waiting.pop()
        try:
            facts = here.stat()
        except OSError:
            facts = None  # named by `read_level`
        if facts is not None:
            if (facts.st_dev, facts.st_ino) in entered:
                report.skip(str(here), "a folder that was entered already, by a link")
                continue
            entered.add((facts.st_dev, facts.st_ino))
        level = read_level(here, report)
        paths += level.pictures
        waiting += [here / name for name in reversed(level.folders)]
    return paths


def holds_pictures(folder: Path) -> bool:
    """Return whether a folder surely holds a candidate itself: the first one that is met ends the search."""
    read = read_extensions()
    try:
        with os.scandir(folder) as entries:
            return any(_named_as_picture(entry.name, read) and entry.is_file() for entry in entries)
    except OSError:  # `read_level` says why
        return False


def _named_as_picture(name: str, read: Collection[str]) -> bool:
    if name.startswith(".") or name.lower() in SYSTEM_NAMES:
        return False
    return os.path.splitext(name)[1].lower() in read  # noqa: PTH122  a Path each would double the time of a scan


def read_level(folder: Path, report: Report) -> Level:
    """Read one folder; what is skipped by rule or cannot be read goes to `report`."""
    folders, pictures, read = [], [], read_extensions()
    try:
        with os.scandir(folder) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
    except OSError as error:
        report.unreadable.append(f"{str(folder)!r}: {error.strerror}")
        return Level((), ())
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
    return Level(tuple(folders), tuple(pictures))
