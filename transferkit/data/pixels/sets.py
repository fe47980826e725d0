"""The folders of the pixel store: where they lie, how large they are, which were used last, what has to go."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from transferkit.core.files import user_cache
from transferkit.data.pixels.shards import SUFFIX

__all__ = ["DAMAGED", "IN_USE_S", "USED", "SetFiles", "last_used", "mark_used", "names", "pixel_root", "remove_oldest",
           "set_folders", "sets_of", "shard_files"]  # fmt: skip

USED: Final = "used"
"""A file without content; its time is that of the set's last use."""

DAMAGED: Final = ".damaged"
"""The ending that a shard gets when it is found not to be what was written."""

IN_USE_S: Final = 3600.0
"""A set that was used within so many seconds counts as in use."""

_FOLDER: Final = re.compile(r"pillow-.+-side(?:\d+|full)-[0-9a-f]{16}")
_SHARD: Final = re.compile(rf"[0-9a-f]{{24}}{re.escape(SUFFIX)}")


class SetFiles(NamedTuple):
    """The shards of a set, the oldest first: paths, bytes, and when each was written; and when the set was used."""

    folder: Path
    shards: list[tuple[Path, int, float]]
    used: float

    @property
    def bytes(self) -> int:
        """Of all shards."""
        return sum(size for _, size, _ in self.shards)


def pixel_root() -> Path:
    """Return the directory of the pixel store, in the user's cache. Raises `StorageError`: there is no home folder."""
    return user_cache() / "pixels"


def names(folder: Path) -> list[str]:
    """Return the names of a folder's files, sorted. Raises `OSError`."""
    return sorted(path.name for path in folder.iterdir())


def shard_files(folder: Path) -> list[str]:
    """Return the names of a set's shards, sorted. Raises `OSError`."""
    return [name for name in names(folder) if _SHARD.fullmatch(name)]


def set_folders(root: Path) -> list[Path]:
    """Return the directories of the sets, sorted by name; none where there is no store. Raises `OSError`."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if _FOLDER.fullmatch(path.name) and path.is_dir())


def sets_of(root: Path) -> Iterator[SetFiles]:
    """Yield every set with its shards; what vanishes meanwhile is left out. Raises `OSError`."""
    for folder in set_folders(root):
        shards = []
        for name in shard_files(folder):
            with contextlib.suppress(FileNotFoundError):
                facts = (folder / name).stat()
                shards.append((folder / name, facts.st_size, facts.st_mtime))
        shards.sort(key=lambda shard: shard[2])
        yield SetFiles(folder, shards, last_used(folder))


def last_used(folder: Path) -> float:
    """Return when a set was used last, in seconds since the epoch."""
    for path in (folder / USED, folder):
        with contextlib.suppress(OSError):
            return path.stat().st_mtime
    return 0.0


def mark_used(folder: Path) -> None:
    """Note that a set is used now; nothing is noted where nothing can be written."""
    with contextlib.suppress(OSError):
        (folder / USED).touch()


def remove_oldest(root: Path, own: Path, nbytes: int, limit: int) -> bool:
    """Make room for a new shard: of sets that nobody uses, shards go, those of the set used longest ago first.

    Args:
        root: The store.
        own: The set that is written to.
        nbytes: The size of the new shard.
        limit: Bytes of all sets at most.

    Returns:
        Whether there is room.

    Raises:
        OSError: The store cannot be read.
    """
    sets = sorted(sets_of(root), key=lambda each: each.used)
    size = sum(each.bytes for each in sets)
    now = time.time()
    for each in sets:
        if each.folder == own or now - each.used < IN_USE_S:
            continue
        for path, of_shard, _ in each.shards:
            if size + nbytes <= limit:
                return True
            with contextlib.suppress(OSError):
                path.unlink()
                size -= of_shard
    return size + nbytes <= limit
