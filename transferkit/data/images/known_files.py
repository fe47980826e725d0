"""Files that were read before and are as they were: their hashes, and what decoding gave, without reading them again.

A small database in the user's cache has the sha256 of a file's bytes under its path. It counts as long as size, times,
inode and device are the same, all of them; what is decoded of a content is in the `Sketchbook`. A file is not written
down while its times are so recent that another change would not show in them, or where the disk numbers no files.

Whoever reads a file's content checks its hash, so that a file that changed unseen is found when it is read. What stands
here costs only time to lose.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Final, NamedTuple

from transferkit.core.database import CacheDatabase
from transferkit.core.records import USUAL, Decoding
from transferkit.data.images.reading import Keeper, ReadResult, hash_images, in_order, read_images
from transferkit.data.images.sketchbook import Sketchbook

__all__ = ["KnownFiles", "forget_file", "hash_files", "read_files"]

TICK_NS: Final = 2_500_000_000
"""Nanoseconds that a file is left alone for before it is written down: FAT counts time in steps of two seconds."""

REFRESH_DAYS: Final = 7
"""So often it is written down that a file was met again."""

UNSEEN_DAYS: Final = 90
"""Files that were not met for so long are forgotten."""

MOST: Final = 2_000_000
"""Files that are remembered, about 100 bytes each; beyond, those that were not met for longest go."""

MANY: Final = 256
"""Files of unknown state from which it pays to ask whether their contents are known: a folder that was moved, say."""

SAMPLE: Final = 64
"""So many of those are hashed first; where half of them are known, the others are hashed before any is decoded."""

NAME: Final = "files-1.db"

_TABLE = "CREATE TABLE IF NOT EXISTS files (key BLOB PRIMARY KEY, mark BLOB, sha256 BLOB, day INTEGER) WITHOUT ROWID"
_DAY_NS: Final = 86_400 * 10**9
_SLICE: Final = 250


class _State(NamedTuple):
    """What a file is known by: the digest of its path, and what the system says of it."""

    key: bytes
    facts: bytes


class KnownFiles:
    """Some files, as they are on disk now, and what is known of them.

    The state of each is looked at once, here: what is read afterwards and changed in between is written down under a
    state that the file will never have again.

    Args:
        paths: The files.
        rescan: Take none for known.
        workers: Threads, which wait for a disk in a network side by side.

    Attributes:
        hashes: The sha256 of each file that is as it was; ``None`` for all others.
    """

    def __init__(self, paths: Sequence[str], *, rescan: bool = False, workers: int = 1) -> None:
        self.paths = paths
        self._database = CacheDatabase(NAME, (_TABLE,))
        self._states = _states(paths, workers) if self._database.path is not None else [None] * len(paths)
        self.hashes: list[str | None] = [None] * len(paths) if rescan else self._look_up()

    def keep(self, places: Sequence[int], results: Sequence[ReadResult]) -> None:
        """Write down the hashes of files that were read since.

        Args:
            places: Which of the paths they are.
            results: Of each; those without a hash are left out.
        """
        day = time.time_ns() // _DAY_NS
        rows = [
            (state.key, _mark(state, sha256), sha256, day)
            for place, result in zip(places, results, strict=True)
            if (state := self._states[place]) is not None and result.sha256 is not None
            and (sha256 := bytes.fromhex(result.sha256)) is not None
        ]  # fmt: skip
        if rows:
            self._write("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", rows, day)

    def forget(self) -> None:
        """Take what is known of these files for wrong, and remove it."""
        keys = [(state.key,) for state in self._states if state is not None]
        self._write("DELETE FROM files WHERE key = ?", keys, time.time_ns() // _DAY_NS)
        self.hashes = [None] * len(self.paths)

    def _look_up(self) -> list[str | None]:
        states = {state.key: state for state in self._states if state is not None}
        rows = self._database.select("SELECT key, mark, sha256, day FROM files WHERE key IN ({})", sorted(states))
        today = time.time_ns() // _DAY_NS
        known: dict[bytes, str] = {}
        stale = []
        for key, mark, sha256, day in rows:
            if isinstance(sha256, bytes) and mark == _mark(states[key], sha256):
                known[key] = sha256.hex()
                if not isinstance(day, int) or not 0 <= today - day < REFRESH_DAYS:
                    stale.append((today, key))
        if stale:
            self._write("UPDATE files SET day = ? WHERE key = ?", stale, today)
        return [None if state is None else known.get(state.key) for state in self._states]

    def _write(self, command: str, rows: Sequence[tuple[object, ...]], today: int) -> None:
        def write(database: sqlite3.Connection) -> None:
            database.executemany(command, rows)
            (cleaned,) = database.execute("PRAGMA user_version").fetchone()
            if cleaned != today:  # once a day
                database.execute("DELETE FROM files WHERE day <= ?", (today - UNSEEN_DAYS,))
                oldest = database.execute("SELECT day FROM files ORDER BY day DESC LIMIT 1 OFFSET ?", (MOST,))
                if (row := oldest.fetchone()) is not None:
                    database.execute("DELETE FROM files WHERE day <= ? AND day < ?", (row[0], today))
                database.execute(f"PRAGMA user_version = {today:d}")

        self._database.write(write)


def forget_file(path: str) -> None:
    """Take a file for unknown from now on: its content is not what its state says."""
    files = KnownFiles([path])
    files.forget()


def hash_files(
    paths: Sequence[str],
    *,
    rescan: bool = False,
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
) -> list[ReadResult]:
    """Return what `hash_images` returns, without reading files that are as they were when they were read before.

    Args:
        paths: The files.
        rescan: Read all of them.
        workers: As for `hash_images`.
        progress: Likewise; files that are not read are done at once.
    """
    files = KnownFiles(paths, rescan=rescan, workers=workers)
    results = [
        None if sha256 is None else ReadResult(path, sha256) for path, sha256 in zip(paths, files.hashes, strict=True)
    ]

    def read(lacking: Sequence[str], done: Callable[[int], None] | None) -> list[ReadResult]:
        return hash_images(lacking, workers=workers, progress=done)

    return _completed(files, results, read, progress)[0]


def read_files(
    paths: Sequence[str],
    *,
    min_side: int | None,
    decoding: Decoding = USUAL,
    keep: Keeper | None = None,
    again: bool = False,
    rescan: bool = False,
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
) -> list[ReadResult]:
    """Return what `read_images` returns, without reading files that are as they were when they were decoded before.

    Bad files are read again. Of files that are not read there are no pixels; `ReadResult.shape` is theirs. Where a
    folder was moved or touched, files are read but not decoded if their contents are known: there are none then, too.

    Args:
        paths: The files.
        min_side: As for `read_images`.
        decoding: Likewise.
        keep: Likewise, of those that are read.
        again: Read known files, too, for their pixels.
        rescan: Read all of them.
        workers: As for `read_images`.
        progress: Likewise; files that are not read are done at once.
    """
    book = Sketchbook(decoding)
    files = KnownFiles(paths, rescan=rescan, workers=workers)
    results = _decoded(files.paths, files.hashes, book, min_side)
    strange = {path for path, sha256 in zip(paths, files.hashes, strict=True) if sha256 is None}

    def read(lacking: Sequence[str], done: Callable[[int], None] | None) -> list[ReadResult]:
        seen = (
            {}
            if again or rescan
            else _recognised([path for path in lacking if path in strange], book, min_side, workers)
        )
        rest = [path for path in lacking if path not in seen]
        before = len(lacking) - len(rest)
        if done is not None and before:
            done(before)
        fresh = iter(
            read_images(
                rest,
                min_side=min_side,
                decoding=decoding,
                keep=keep,
                workers=workers,
                progress=None if done is None else lambda count: done(before + count),
            )
        )
        return [seen.get(path) or next(fresh) for path in lacking]

    complete, news = _completed(files, results, read, progress, again=again)
    book.keep_decoded(news, min_side)
    return complete


def _recognised(paths: Sequence[str], book: Sketchbook, min_side: int | None, workers: int) -> dict[str, ReadResult]:
    """Return what is known of the contents of files that are not known themselves, as far as it pays to look."""
    known: dict[str, ReadResult] = {}
    rest = list(dict.fromkeys(paths))
    if len(rest) < MANY:
        return known
    for some in (rest[:: len(rest) // SAMPLE], rest):
        hashed = hash_images([path for path in some if path not in known], workers=workers)
        results = _decoded([one.path for one in hashed], [one.sha256 for one in hashed], book, min_side)
        known |= {result.path: result for result in results if result is not None}
        if len(known) < len(some) / 2:
            break
    return known


def _decoded(
    paths: Sequence[str], hashes: Sequence[str | None], book: Sketchbook, min_side: int | None
) -> list[ReadResult | None]:
    """Return what reading each file would give, but for its pixels, where its content is known to be good."""
    known = book.decoded({sha256 for sha256 in hashes if sha256 is not None}, min_side)
    results: list[ReadResult | None] = []
    for path, sha256 in zip(paths, hashes, strict=True):
        one = None if sha256 is None else known.get(sha256)
        results.append(None if one is None else ReadResult(path, sha256, None, one.info, None, one.sketch, one.shape))
    return results


_Read = Callable[[Sequence[str], Callable[[int], None] | None], list[ReadResult]]


def _completed(
    files: KnownFiles,
    known: Sequence[ReadResult | None],
    read: _Read,
    progress: Callable[[int], None] | None,
    *,
    again: bool = False,
) -> tuple[list[ReadResult], list[ReadResult]]:
    """Return results for all files, and those that say what was not known.

    Args:
        files: The files.
        known: What need not be read for.
        read: Reads files.
        progress: Called with files done.
        again: Read all of them.
    """
    places = [place for place, result in enumerate(known) if again or result is None]
    before = len(known) - len(places)
    if progress is not None and before:
        progress(before)
    results = read(
        [files.paths[place] for place in places],
        None if progress is None else lambda done: progress(before + done),
    )
    by_place = dict(zip(places, results, strict=True))
    news = {place: result for place, result in by_place.items() if result != known[place]}
    files.keep(list(news), list(news.values()))
    return [by_place.get(place) or one for place, one in enumerate(known)], list(news.values())  # type: ignore[misc]


def _states(paths: Sequence[str], workers: int) -> list[_State | None]:
    places = [os.path.split(path) for path in paths]
    prefixes = {folder: _prefix(folder) for folder in {folder for folder, _ in places}}
    files = [(path, prefixes[folder], name) for path, (folder, name) in zip(paths, places, strict=True)]
    slices = [files[start : start + _SLICE] for start in range(0, len(files), _SLICE)]
    return list(chain.from_iterable(in_order(lambda part: [_state(*file) for file in part], slices, workers)))


def _prefix(folder: str) -> bytes | None:
    """Return what the keys of all files of a folder start with, so that they lie together; ``None`` where it is none.

    Keys are digests: nobody reads of this database what somebody's files are called. Rights are each user's own.
    """
    user = os.geteuid() if os.name == "posix" else 0
    try:
        path = os.fsencode(os.path.realpath(folder))
    except (OSError, ValueError):  # the current folder is gone; a name that the system has no bytes for
        return None
    return hashlib.blake2b(f"{user}\0".encode() + path, digest_size=8).digest()


def _state(path: str, prefix: bytes | None, name: str) -> _State | None:
    """Return the state of a file; ``None`` where nothing can be told by it."""
    if prefix is None:
        return None
    now = time.time_ns()
    try:
        facts = os.stat(path)  # noqa: PTH116
        key = prefix + hashlib.blake2b(os.fsencode(name), digest_size=12).digest()
    except (OSError, ValueError):
        return None
    settled = max(facts.st_mtime_ns, facts.st_ctime_ns) <= now - TICK_NS
    if not settled or not facts.st_ino:
        return None
    own = f"{facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns} {facts.st_ino} {facts.st_dev} "
    return _State(key, own.encode())


def _mark(state: _State, sha256: bytes) -> bytes:
    """Return what proves that a hash belongs to a file in this state."""
    return hashlib.blake2b(state.key + state.facts + sha256, digest_size=16).digest()
