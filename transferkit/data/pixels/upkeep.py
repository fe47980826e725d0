"""Upkeep of the pixel store: what is in it, what is wrong with it, and what can go. Nothing here prints."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from transferkit.core.files import storage_errors
from transferkit.data.pixels.sets import DAMAGED, USED, last_used, names, set_folders, sets_of, shard_files
from transferkit.data.pixels.shards import DamagedShard, NewerShard, names_of, places, read_header, read_picture
from transferkit.data.pixels.spec import PixelSpec

__all__ = ["LEFTOVER_S", "PixelSet", "Stray", "clean_pixels", "describe_pixels", "verify_pixels"]

LEFTOVER_S: Final = 3600.0
"""Seconds after which a file that is half written belongs to nobody: writing one takes seconds."""

_LEFTOVER: Final = re.compile(r"\..+\.tmp")


class PixelSet(NamedTuple):
    """A set in short: its folder, its facts (``None`` where no shard tells them), pictures, bytes, last use."""

    folder: str
    spec: PixelSpec | None
    pictures: int
    bytes: int
    last_used: datetime


class Stray(NamedTuple):
    """Something that is wrong or can go: the set's folder, the file in it (``""`` for all), why, its size in bytes."""

    folder: str
    file: str
    why: str
    bytes: int


def describe_pixels(root: Path) -> list[PixelSet]:
    """Return a summary of every set, sorted by folder; damaged shards count for nothing. Raises `StorageError`."""
    summaries = []
    with storage_errors("read", root):
        for each in sets_of(root):
            spec, pictures = None, 0
            for path, _, _ in each.shards:
                with contextlib.suppress(DamagedShard, NewerShard, FileNotFoundError):
                    spec, entries = read_header(path)
                    pictures += len(entries)
            used = datetime.fromtimestamp(each.used, UTC)
            summaries.append(PixelSet(each.folder.name, spec, pictures, each.bytes, used))
    return summaries


def verify_pixels(root: Path, progress: Callable[[int, int], None] | None = None) -> list[Stray]:
    """Read every picture of the store and return all that is wrong. Changes nothing.

    Args:
        root: The store.
        progress: Called with shards read and shards in all.

    Raises:
        StorageError: A file is there and cannot be read.
    """
    strays: list[Stray] = []
    with storage_errors("read", root):
        folders = set_folders(root)
        total, done = sum(len(shard_files(folder)) for folder in folders), 0
        for folder in folders:
            strays += _leftovers(folder)
            others: set[str] = set()
            for name in shard_files(folder):
                why = _complaint(folder / name, others)
                if why is not None:
                    strays.append(Stray(folder.name, name, why, _size(folder / name)))
                done += 1
                if progress is not None:
                    progress(done, total)
    return strays


def clean_pixels(root: Path, *, unused_days: float | None = None, dry_run: bool = False) -> list[Stray]:
    """Remove leftovers of killed writers, damaged shards, those whose pictures others have, and sets without any.

    Args:
        root: The store.
        unused_days: Remove whole sets that were not used for so many days.
        dry_run: Only tell.

    Returns:
        What was removed.

    Raises:
        StorageError: The store cannot be read or written.
    """
    removed: list[Stray] = []
    with storage_errors("read", root):
        for folder in set_folders(root):
            days = (time.time() - last_used(folder)) / 86400
            if unused_days is not None and days > unused_days:
                whole = [Stray(folder.name, name, "", _size(folder / name)) for name in names(folder)]
                ours = [each for each in whole if _is_ours(folder, each.file)]
                why = f"was not used for {int(days)} days"
                removed.append(Stray(folder.name, "", why, sum(each.bytes for each in ours)))
            else:
                ours = _strays(folder)
                removed += ours
            if not dry_run:
                with storage_errors("remove", folder):
                    _remove(folder, [each.file for each in ours])
    return removed


def _strays(folder: Path) -> list[Stray]:
    others: set[str] = set()
    complaints = [(name, _complaint(folder / name, others)) for name in shard_files(folder)]
    damaged = [Stray(folder.name, name, why, _size(folder / name)) for name, why in complaints if why is not None]
    return [*_leftovers(folder), *damaged]


def _complaint(path: Path, others: set[str]) -> str | None:
    """Return what is wrong with a shard, or ``None``; add its pictures to `others`."""
    try:
        spec, entries = read_header(path)
        for place in places(entries):
            read_picture(path, place, channels=spec.channels)
    except DamagedShard as error:
        return str(error)
    except (NewerShard, FileNotFoundError):
        return None
    pictures = set(names_of(entries))
    if pictures <= others:
        return "holds only pictures that other shards hold, too"
    others |= pictures
    return None


def _leftovers(folder: Path) -> list[Stray]:
    strays = []
    for name in names(folder):
        if name.endswith(DAMAGED):
            strays.append(Stray(folder.name, name, "is a damaged shard", _size(folder / name)))
        elif _LEFTOVER.fullmatch(name):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - (folder / name).stat().st_mtime > LEFTOVER_S:
                    why = "is a leftover of an unfinished write"
                    strays.append(Stray(folder.name, name, why, _size(folder / name)))
    return strays


def _remove(folder: Path, files: list[str]) -> None:
    for name in files:
        (folder / name).unlink(missing_ok=True)
    if all(name == USED for name in names(folder)):
        (folder / USED).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # somebody writes a new one
            folder.rmdir()


def _is_ours(folder: Path, name: str) -> bool:
    return name == USED or name.endswith(DAMAGED) or bool(_LEFTOVER.fullmatch(name)) or name in shard_files(folder)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
