"""Upkeep of the feature store: what is in it, what is wrong with it, and what can go. Nothing here prints."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from transferkit.core.errors import StorageError, StoreError
from transferkit.core.files import storage_errors
from transferkit.core.locks import hold
from transferkit.features.store.featureset import CLAIMS, LOCK
from transferkit.features.store.shards import (
    MANIFEST,
    SET,
    DamagedShard,
    KeyIndex,
    Keys,
    Manifest,
    Shard,
    State,
    parse_state,
    read_shard,
    read_state_bytes,
    write_manifest,
)
from transferkit.features.store.spec import FeatureSpec
from transferkit.features.store.store import FeatureStore

__all__ = ["GcReport", "Problem", "Removal", "SetSummary", "describe", "gc", "verify"]

_FOLDER = re.compile(r"[^.].*-[0-9a-f]{16}")
_SHARD = re.compile(r"[0-9a-f]{24}\.safetensors")
_LEFTOVER = re.compile(r"\..+\.tmp")


@dataclass(frozen=True)
class SetSummary:
    """A set in short: its folder, spec, numbers of rows and of unreadable pictures, bytes of its shards, last use."""

    folder: str
    spec: FeatureSpec
    rows: int
    failures: int
    bytes: int
    last_used: datetime


@dataclass(frozen=True)
class Problem:
    """Something wrong with the store: the set's folder, the file in it, and what it is or does."""

    folder: str
    file: str
    what: str


@dataclass(frozen=True)
class Removal:
    """Something `gc` removed: the set's folder, the file in it (``""`` for all of it), why, and its size in bytes."""

    folder: str
    file: str
    why: str
    bytes: int


@dataclass(frozen=True)
class GcReport:
    """The removals of `gc`, done or only planned; and a sentence for each set that it had to leave alone."""

    removed: tuple[Removal, ...]
    skipped: tuple[str, ...]
    dry_run: bool

    @property
    def freed(self) -> int:
        """Bytes in all."""
        return sum(removal.bytes for removal in self.removed)


def describe(store: FeatureStore) -> list[SetSummary]:
    """Return a summary of every readable set, sorted by folder. A damaged manifest is warned of and counts as empty.

    Raises:
        StorageError: The store cannot be read.
    """
    summaries = []
    for each in store.sets():
        manifest = each.manifest()
        with storage_errors("read", each.path / SET):
            used = datetime.fromtimestamp((each.path / SET).stat().st_mtime, UTC)
        rows, size = sum(shard.rows for shard in manifest.shards), sum(shard.bytes for shard in manifest.shards)
        summaries.append(SetSummary(each.path.name, each.spec, rows, len(manifest.failures), size, used))
    return summaries


def verify(store: FeatureStore, progress: Callable[[int, int], None] | None = None) -> list[Problem]:
    """Read every file of the store and return all that is wrong with it. Changes nothing.

    Leftovers and orphans of a set that another process is writing to at the moment are not judged.

    Args:
        store: The store.
        progress: Called with shards read and shards in all.

    Raises:
        StorageError: A file is there and cannot be read.
    """
    problems = [Problem(name, "", "is a leftover of a removed set") for name in _leftover_sets(store.root)]
    states = []
    for folder in _folders(store.root):
        try:
            with _held(folder, make=False) as free:
                state, names = _state(folder), _names(folder)
        except StoreError as error:
            problems.append(Problem(folder.name, SET, str(error)))
            continue
        if state.damaged is not None:
            problems.append(Problem(folder.name, state.damaged, "is damaged, its set counts as empty"))
        if free:
            problems += [Problem(folder.name, name, what) for name, what in _strays(names, state.manifest)]
        states.append((folder, state))
    total = sum(len(state.manifest.shards) for _, state in states)
    done = 0
    for folder, state in states:
        index, width = KeyIndex(), state.manifest.width
        for shard in state.manifest.shards:
            keys, complaint = _inspect(folder, shard, width)
            if complaint is not None and shard in _state(folder).manifest.shards:  # and not dropped meanwhile
                problems.append(Problem(folder.name, shard.file, complaint))
            if keys is not None:
                twice = len(keys) - len(np.unique(keys))
                again = int((index.find(keys)[0] >= 0).sum())
                if twice or again:
                    what = f"holds {twice} row keys twice, and {again} that other shards hold too"
                    problems.append(Problem(folder.name, shard.file, what))
                index = index.extended([(shard, keys)])
            done += 1
            if progress is not None:
                progress(done, total)
    return problems


def gc(store: FeatureStore, *, unused_days: float | None = None, dry_run: bool = False) -> GcReport:
    """Remove what serves nobody: leftovers of killed writers, orphan and damaged shards, dead claims, empty sets.

    A set that another process is writing to, or computing rows for, is left alone where that process could mind.

    Args:
        store: The store.
        unused_days: Remove whole sets that were not used for so many days.
        dry_run: Only tell.

    Raises:
        StorageError: The store cannot be read or written.
    """
    removed: list[Removal] = []
    skipped: list[str] = []
    for name in _leftover_sets(store.root):
        removed.append(Removal(name, "", "is a leftover of a removed set", _size(store.root / name)))
        if not dry_run:
            shutil.rmtree(store.root / name, ignore_errors=True)
    for folder in _folders(store.root):
        try:
            _sweep(folder, unused_days, dry_run, removed, skipped)
        except StorageError:
            raise
        except StoreError as error:
            skipped.append(str(error))
    return GcReport(tuple(removed), tuple(skipped), dry_run)


def _sweep(folder: Path, unused_days: float | None, dry_run: bool, removed: list[Removal], skipped: list[str]) -> None:
    manifest = _state(folder).manifest
    suspects = [shard for shard in manifest.shards if _inspect(folder, shard, manifest.width)[1] is not None]
    with _held(folder, make=not dry_run) as free:
        if not free:
            skipped.append(f"{folder}: another process is writing to it - run again later")
            return
        state, names = _state(folder), _names(folder)  # now nothing moves
        manifest = state.manifest
        again = [(shard, _inspect(folder, shard, manifest.width)[1]) for shard in suspects if shard in manifest.shards]
        complaints = {shard: complaint for shard, complaint in again if complaint is not None}
        left = manifest.without(complaints)
        claimed = _sweep_claims(folder, dry_run, removed)
        why = f"its {state.damaged} is damaged" if state.damaged else _why_whole(folder, left, unused_days)
        if why is not None and not claimed and all(_is_ours(name) for name in names):
            removed.append(Removal(folder.name, "", why, _size(folder)))
            if not dry_run:
                _remove_whole(folder)
            return
        if why is not None:
            busy = "another process is computing rows for it" if claimed else "it holds files that are not the store's"
            skipped.append(f"{folder}: {why}, but {busy}")
        damaged = [(shard.file, f"is damaged: it {complaint}") for shard, complaint in complaints.items()]
        strays = [*_strays(names, manifest), *damaged]
        if damaged and not dry_run:
            write_manifest(folder, left)
        for name, what in strays:
            removed.append(Removal(folder.name, name, what, _size(folder / name)))
            if not dry_run:
                with storage_errors("remove", folder / name):
                    (folder / name).unlink(missing_ok=True)


def _why_whole(folder: Path, manifest: Manifest, unused_days: float | None) -> str | None:
    if not manifest.shards and not manifest.failures:
        return "holds no rows"
    if unused_days is not None:
        with storage_errors("read", folder / SET):
            days = (time.time() - (folder / SET).stat().st_mtime) / 86400
        if days > unused_days:
            return f"was not used for {int(days)} days"
    return None


def _sweep_claims(folder: Path, dry_run: bool, removed: list[Removal]) -> bool:
    """Remove claim files that nobody holds; return whether any is held."""
    claimed = False
    for path in sorted((folder / CLAIMS).iterdir()) if (folder / CLAIMS).is_dir() else []:
        with hold(path, wait=False) as dead:
            if dead:
                removed.append(Removal(folder.name, f"{CLAIMS}/{path.name}", "is a claim of a dead process", 0))
                if not dry_run:
                    path.unlink(missing_ok=True)
            claimed |= not dead
    return claimed


def _remove_whole(folder: Path) -> None:
    """Take a set out of sight in one step, then delete it: no reader finds half of it."""
    with storage_errors("remove", folder):
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
        folder.rename(aside)  # onto an empty folder
    shutil.rmtree(aside, ignore_errors=True)


def _inspect(folder: Path, shard: Shard, width: int | None) -> tuple[Keys | None, str | None]:
    """Return a shard's keys, or what is wrong with it."""
    try:
        return read_shard(folder, shard, width).keys, None
    except DamagedShard as error:
        return None, str(error)


def _strays(names: list[str], manifest: Manifest) -> list[tuple[str, str]]:
    """Files that a killed writer or a damaged manifest left, and what they are."""
    listed = {shard.file for shard in manifest.shards}
    leftovers = [(name, "is a leftover of an unfinished write") for name in names if _LEFTOVER.fullmatch(name)]
    orphans = (name for name in names if _SHARD.fullmatch(name) and name not in listed)
    return [*leftovers, *((name, "is an orphan: no manifest lists it") for name in orphans)]


def _is_ours(name: str) -> bool:
    return name in (SET, MANIFEST, LOCK, CLAIMS) or bool(_SHARD.fullmatch(name) or _LEFTOVER.fullmatch(name))


@contextlib.contextmanager
def _held(folder: Path, *, make: bool) -> Iterator[bool]:
    """Shut writers out for the time of the block; yield whether that worked. Without `make` no lock file is made."""
    lock = folder / LOCK
    if not make and not os.access(lock, os.W_OK):
        yield True  # never written to, or a store that cannot be
        return
    with hold(lock, wait=False) as free:
        yield free


def _state(folder: Path) -> State:
    return parse_state(folder, *read_state_bytes(folder))


def _names(folder: Path) -> list[str]:
    with storage_errors("list", folder):
        return sorted(path.name for path in folder.iterdir())


def _folders(root: Path) -> list[Path]:
    """Directories that are sets, by their names and by what is in them."""
    names = _names(root) if root.exists() else []
    folders = [root / name for name in names if _FOLDER.fullmatch(name) and (root / name).is_dir()]
    return [folder for folder in folders if (folder / SET).exists() or all(_is_ours(name) for name in _names(folder))]


def _leftover_sets(root: Path) -> list[str]:
    names = _names(root) if root.exists() else []
    return [name for name in names if re.fullmatch(r"\..+-[0-9a-f]{16}\..+\.tmp", name)]


def _size(path: Path) -> int:
    """Bytes of a file, or of all files below a directory; what vanishes meanwhile counts nothing."""
    total = 0
    for place in [path, *path.rglob("*")] if path.is_dir() else [path]:
        with contextlib.suppress(OSError):
            total += place.stat().st_size if place.is_file() else 0
    return total
