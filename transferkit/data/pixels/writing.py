"""Pictures on their way to the disk: gathered until there are enough for a shard, then written in one go.

Nothing of it is an error: a disk that is full or cannot be written costs a warning, once, and the pictures are decoded
again when they are needed.
"""

from __future__ import annotations

import os
import shutil
import threading
import warnings
from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING, Final

from transferkit.core.errors import StorageError, TransferkitWarning
from transferkit.core.files import storage_errors, write_atomically
from transferkit.core.locks import nearest_existing
from transferkit.data.pixels.sets import mark_used, remove_oldest
from transferkit.data.pixels.shards import build_shard
from transferkit.data.pixels.spec import PixelSpec

if TYPE_CHECKING:
    from transferkit.data.images.decode import Pixels

__all__ = ["PixelWriter"]

SHARD_BYTES: Final = 32 << 20
"""Bytes of pixels that a shard is written at."""

RESERVE: Final = 1 << 30
"""Bytes of the disk that stay free: other programs want to live."""

CALM: Final = 100
"""Pictures that were read in a row, and nothing new decoded, after which what waits is written: an epoch is over."""


class PixelWriter:
    """Writes shards of one set, from one process.

    Args:
        spec: Of the set.
        folder: Its directory; made with the first shard.
        limit: Bytes of the whole store at most.

    Attributes:
        pid: The process.
        open: Whether it still writes: the disk has room and lets it.
        waiting: Pictures that are not written yet, by the sha256 of their files.
    """

    def __init__(self, spec: PixelSpec, folder: Path, limit: int) -> None:
        self.spec, self.folder, self.limit = spec, folder, limit
        self.open = True
        self.waiting: dict[str, Pixels] = {}
        self._bytes = 0
        self._calm = 0
        self._lock = threading.Lock()
        self.pid = os.getpid()

    def add(self, sha256: str, pixels: Pixels) -> bool:
        """Take a picture along, which can be read only from now on; return whether there is enough to write."""
        if not self.open or pixels.nbytes > self.limit:
            return False
        pixels.flags.writeable = False
        with self._lock:
            self._calm = 0
            if sha256 not in self.waiting:
                self.waiting[sha256] = pixels
                self._bytes += pixels.nbytes
            return self._bytes >= min(SHARD_BYTES, self.limit // 8)

    def note_read(self) -> bool:
        """Note that a picture was read from the disk; return whether what waits should be written."""
        if not self.waiting:
            return False
        self._calm += 1
        return self._calm >= CALM

    def write(self, stored: Container[str] = ()) -> None:
        """Write what waits. A process that was forked leaves what waited before to its parent.

        Args:
            stored: Pictures that need not be written: others have done it meanwhile.
        """
        if self.pid != os.getpid():
            return
        with self._lock:
            pictures, self.waiting, self._bytes, self._calm = self.waiting, {}, 0, 0
        pictures = {sha256: pixels for sha256, pixels in pictures.items() if sha256 not in stored}
        if not pictures or not self.open:
            return
        name, parts = build_shard(self.spec, pictures)
        nbytes = sum(part.nbytes for part in parts)
        try:
            with storage_errors("keep pictures in", self.folder):
                if not remove_oldest(self.folder.parent, self.folder, nbytes, self.limit):
                    self.open = False  # as large as the user lets it be
                    return
                free = shutil.disk_usage(nearest_existing(self.folder)).free
                if free < nbytes + RESERVE:
                    raise StorageError(
                        f"the pixel store {str(self.folder)!r} needs {nbytes:,} bytes and a reserve of {RESERVE:,}, "
                        f"the disk has {free:,} free"
                    )
                self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / name, lambda path: _fill(path, parts))
            mark_used(self.folder)
        except StorageError as error:
            self.close(str(error))

    def close(self, reason: str) -> None:
        """Write nothing from now on, and say why."""
        self.open = False
        self.waiting = {}
        warnings.warn(
            f"pictures that do not fit into memory are decoded again in every epoch: {reason}",
            TransferkitWarning,
            stacklevel=2,
        )


def _fill(path: Path, parts: list[memoryview]) -> None:
    with path.open("wb") as file:
        file.writelines(parts)
