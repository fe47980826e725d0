"""Sketches and digests of pictures, kept in the user's cache: what was decoded once is known from then on.

Verbs that only hash files (`features`, `probe`, `evaluate`) would have to decode every picture to find its copies. A
small database has what was learnt of each, by the sha256 of the file, wherever it lies. It costs only time to lose it,
so a disk that cannot be read or written is no error here.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import PIL

from transferkit.core.errors import StorageError
from transferkit.core.files import user_cache
from transferkit.core.records import USUAL, Decoding
from transferkit.data.images.reading import CHECK_SIDE, ReadResult, read_images
from transferkit.data.images.sketch import SIDE, Sketch

__all__ = ["Sketchbook"]

RULES: Final = 1
"""Another number where pictures are decoded or sketched in another way."""

WAIT_S: Final = 5.0
"""Seconds to wait while another process writes."""

_AT_ONCE = 500
_TABLES = (
    "CREATE TABLE IF NOT EXISTS sketches (sha256 BLOB PRIMARY KEY, width INTEGER, height INTEGER, scale INTEGER, "
    "cells BLOB) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS digests (sha256 BLOB PRIMARY KEY, digest BLOB) WITHOUT ROWID",
)


class Sketchbook:
    """What is known of pictures.

    Args:
        decoding: How they are decoded; another ground or depth of grey makes other pixels of a file.

    Attributes:
        decoding: As passed.
    """

    def __init__(self, decoding: Decoding = USUAL) -> None:
        self.decoding = decoding
        self._path: Path | None = None
        own = "".join(f"-{value}" for value in decoding.key_values().values()).replace("#", "")
        with contextlib.suppress(StorageError):  # nowhere to keep it
            self._path = user_cache() / f"sketches-{RULES}{own}-pillow-{PIL.__version__}.db"

    def fill(self, results: Sequence[ReadResult]) -> list[ReadResult]:
        """Return results with the sketches that are known."""
        lacking = {result.sha256 for result in results if result.sha256 is not None and result.sketch is None}
        known = {}
        for sha256, width, height, scale, cells in self._rows("sketches", lacking):
            if isinstance(cells, bytes) and len(cells) == SIDE * SIDE:
                known[sha256] = Sketch(int(width), int(height), int(scale), cells)
        return [
            replace(result, sketch=known[result.sha256]) if result.sketch is None and result.sha256 in known else result
            for result in results
        ]

    def complete(
        self,
        results: Sequence[ReadResult],
        *,
        workers: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[ReadResult]:
        """Return results with the sketches that are known, and those of all others, which are decoded, but small.

        Args:
            results: Files that were read; those with an error, or whose content is another one now, get no sketch.
            workers: Threads.
            progress: Called with pictures decoded and pictures to decode.
        """
        filled = self.fill(results)
        unknown = {result.path: at for at, result in enumerate(filled) if result.sketch is None and not result.error}
        count = len(unknown)
        read = read_images(
            list(unknown),
            min_side=CHECK_SIDE,
            decoding=self.decoding,
            workers=workers,
            progress=None if progress is None else lambda done: progress(done, count),
        )
        for result in read:
            at = unknown[result.path]
            if result.sha256 == filled[at].sha256:
                filled[at] = replace(filled[at], sketch=result.sketch)
        self.keep(filled[at] for at in unknown.values())
        return filled

    def keep(self, results: Iterable[ReadResult]) -> None:
        """Write down the sketches of results that are not known yet."""
        self._add(
            "INSERT OR IGNORE INTO sketches VALUES (?, ?, ?, ?, ?)",
            [
                (bytes.fromhex(result.sha256), sketch.width, sketch.height, sketch.scale, sketch.cells)
                for result in results
                if result.sha256 is not None and (sketch := result.sketch) is not None
            ],
        )

    def digests(self, hashes: Iterable[str]) -> dict[str, str]:
        """Return the digests of pixels at full size that are known, by the sha256 of files."""
        return {sha256: digest.hex() for sha256, digest in self._rows("digests", hashes) if isinstance(digest, bytes)}

    def keep_digests(self, digests: Mapping[str, str]) -> None:
        """Write down digests of pixels at full size."""
        rows = [(bytes.fromhex(sha256), bytes.fromhex(digest)) for sha256, digest in digests.items()]
        self._add("INSERT OR IGNORE INTO digests VALUES (?, ?)", rows)

    def _rows(self, table: str, hashes: Iterable[str]) -> list[tuple[Any, ...]]:
        """Return the rows of some pictures, each with the hash as text."""
        keys = [bytes.fromhex(sha256) for sha256 in hashes]
        rows: list[tuple[Any, ...]] = []

        def read(database: sqlite3.Connection) -> None:
            for start in range(0, len(keys), _AT_ONCE):
                some = keys[start : start + _AT_ONCE]
                marks = ",".join("?" * len(some))
                selected = database.execute(f"SELECT * FROM {table} WHERE sha256 IN ({marks})", some)
                rows.extend((row[0].hex(), *row[1:]) for row in selected)

        if keys and self._path is not None and self._path.is_file():
            _transact(self._path, read)
        return rows

    def _add(self, command: str, rows: Sequence[tuple[object, ...]]) -> None:
        def write(database: sqlite3.Connection) -> None:
            for table in _TABLES:
                database.execute(table)
            database.executemany(command, rows)

        if rows and self._path is not None:
            with contextlib.suppress(OSError):
                self._path.parent.mkdir(parents=True, exist_ok=True)
            _transact(self._path, write)


def _transact(path: Path, work: Callable[[sqlite3.Connection], None]) -> None:
    """Do something in one transaction, or not at all where the database cannot be used; one that is damaged goes."""
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=WAIT_S)) as database, database:
            work(database)
    except sqlite3.OperationalError:  # it cannot be opened or written, or others write all the time
        pass
    except sqlite3.DatabaseError:
        with contextlib.suppress(OSError):
            path.unlink()
