"""A small database in the user's cache that nothing depends on: lost, locked, damaged or read-only, it costs only time.

What it holds can be found out again. So a write that fails is left out, a question that fails has no answer, and a file
that is no database any more is removed.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from transferkit.core.errors import StorageError
from transferkit.core.files import user_cache

__all__ = ["CacheDatabase", "cache_bytes", "remove_databases"]

WAIT_S: Final = 5.0
"""Seconds to wait while another process writes."""

AT_ONCE: Final = 500
"""Keys in one question: SQLite before 3.32 takes 999 at most."""


_HELD: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)


class CacheDatabase:
    """A database of one file.

    Args:
        name: Of the file, in the user's cache.
        tables: Commands that make the tables where they are missing.

    Attributes:
        path: The file; ``None`` for a user who has no place for it, and once others hold it all the time.
    """

    def __init__(self, name: str, tables: Sequence[str]) -> None:
        self.path: Path | None = None
        self._tables = tables
        with contextlib.suppress(StorageError):
            self.path = user_cache() / name

    def select(self, command: str, keys: Sequence[bytes], values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of some keys, in no order; none where the file cannot be read.

        Args:
            command: A ``SELECT`` with ``IN ({})``, which the keys take the place of, some hundreds at a time; they come
                after all other parameters.
            keys: Any number.
            values: Of the other parameters.
        """
        rows: list[tuple[Any, ...]] = []

        def read(database: sqlite3.Connection) -> None:
            for start in range(0, len(keys), AT_ONCE):
                some = keys[start : start + AT_ONCE]
                rows.extend(database.execute(command.format(",".join("?" * len(some))), [*values, *some]))

        if keys and self.path is not None and os.path.isfile(self.path):  # noqa: PTH113  Path's raises where it may not look
            self._transact(read)
        return rows

    def write(self, work: Callable[[sqlite3.Connection], None]) -> None:
        """Do something in one transaction, the tables being there; or not at all where the file cannot be written."""

        def write(database: sqlite3.Connection) -> None:
            for table in self._tables:
                database.execute(table)
            work(database)

        if self.path is not None:
            with contextlib.suppress(OSError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
            self._transact(write)

    def _transact(self, work: Callable[[sqlite3.Connection], None]) -> None:
        path = str(self.path)
        try:
            with contextlib.closing(sqlite3.connect(path, timeout=WAIT_S)) as database, database:
                work(database)
        except sqlite3.OperationalError as error:  # it cannot be opened or written, or others write all the time
            if error.sqlite_errorcode & 0xFF in _HELD:
                self.path = None  # waiting once is enough: on some network disks it is held for ever
        except sqlite3.DatabaseError:
            for name in (path, f"{path}-journal"):  # which would be played back into the next one
                with contextlib.suppress(OSError):
                    Path(name).unlink()


def cache_bytes() -> int:
    """Return the size of all databases in the user's cache, of other releases too; 0 where nobody may look."""
    try:
        return sum(path.stat().st_size for path in user_cache().glob("*.db"))
    except (OSError, StorageError):  # or one goes this moment
        return 0


def remove_databases(pattern: str, unwanted: Callable[[str, float], bool]) -> None:
    """Remove databases from the user's cache, as far as that can be done.

    Args:
        pattern: Of their names.
        unwanted: Says by the name of one, and the days since it was written to, whether it goes.
    """
    with contextlib.suppress(OSError, StorageError):
        for path in user_cache().glob(pattern):
            if unwanted(path.name, (time.time() - path.stat().st_mtime) / 86_400):
                path.unlink()
