"""Decoded pictures on disk: the sum of the shards in a folder, which any number of processes read and add to at once.

No manifest, and no lock: a reader sees the shards that have their name, each complete, and looks for new ones when the
folder has changed and a picture is not among those it knows.
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Mapping
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from transferkit.core.errors import StorageError, TransferkitWarning
from transferkit.data.pixels.sets import DAMAGED, IN_USE_S, mark_used, pixel_root, shard_files
from transferkit.data.pixels.shards import DamagedShard, NewerShard, Place, names_of, places, read_header, read_picture
from transferkit.data.pixels.spec import PixelSpec
from transferkit.data.pixels.writing import PixelWriter

if TYPE_CHECKING:
    from transferkit.data.images.decode import Pixels

__all__ = ["DiskPixels"]

_SETTLED_NS: Final = 2_000_000_000
"""A folder that changed so long ago shows any later change by its time; two within one tick of the clock look alike."""

_PAUSE_S: Final = 0.25
"""Until then it is listed again after so many seconds."""


class DiskPixels:
    """Pictures on disk, by the content of their files. What is put there can be had again in the same process at once.

    Args:
        spec: How they are decoded.
        limit: Bytes of the whole store at most; 0 to add none.
        root: The store's directory; ``None`` for ``pixels`` in the user's cache.
    """

    def __init__(self, spec: PixelSpec, limit: int, root: Path | None = None) -> None:
        self.spec, self.limit = spec, limit
        self._problem = ""
        if root is None:
            try:
                root = pixel_root()
            except StorageError as error:
                self._problem = str(error)
        self.root = root
        self._folder = (root or Path()) / spec.folder
        self._shards: dict[str, list[str]] = {}
        self._places: dict[str, tuple[str, Place]] = {}
        self._aside: set[str] = set()
        self._checked: set[str] = set()  # what this process has read once, with its checksum
        self._changed, self._looked, self._settled = 0, 0.0, True
        self._used = 0.0
        self._writer = self._new_writer()

    @property
    def folder(self) -> Path:
        """The directory of the set."""
        return self._folder

    def get(self, sha256: str) -> Pixels | None:
        """Return a picture, ``(H, W, C) uint8``, read-only; ``None`` where it is not there, or not any more.

        Warns:
            TransferkitWarning: A shard is damaged; it is set aside.
        """
        waiting = self._writer.waiting.get(sha256)
        if waiting is not None:
            return waiting
        place = self._find(sha256)
        if place is None:
            return None
        name, where = place
        try:
            pixels = read_picture(
                self._folder / name, where, channels=self.spec.channels, check=sha256 not in self._checked
            )
        except FileNotFoundError:  # removed to make room
            self._forget(name)
            return None
        except (DamagedShard, OSError) as error:
            self._set_aside(name, str(error))
            return None
        self._checked.add(sha256)
        self._in_use()
        if self._own_writer().note_read():
            self.flush()
        return pixels

    def put(self, sha256: str, pixels: Pixels) -> None:
        """Keep a picture, unless it is there already; it is written with others. It must not be changed from now on.

        Warns:
            TransferkitWarning: Once: the disk is full, or cannot be written.
        """
        writer = self._own_writer()
        if not writer.open or self._find(sha256) is not None:
            return
        if self._problem:
            writer.close(self._problem)
        elif writer.add(sha256, pixels):
            self.flush()

    def flush(self) -> None:
        """Write what waits to be written."""
        writer = self._own_writer()
        if writer.waiting:
            self._look()
            writer.write(self._places)

    def _find(self, sha256: str) -> tuple[str, Place] | None:
        place = self._places.get(sha256)
        if place is None:
            self._look()
            place = self._places.get(sha256)  # another thread may have looked, too
        return place

    def _look(self) -> None:
        """Read the heads of shards that are new, where the folder has changed."""
        if self._problem:
            return
        now, clock = time.monotonic(), time.time_ns()
        try:
            changed = os.stat(self._folder).st_mtime_ns  # noqa: PTH116  the quick way: it is done for every miss
            settled = self._settled or now - self._looked < _PAUSE_S
            if changed == self._changed and settled:
                return
            names = shard_files(self._folder)
        except OSError:  # not there yet, or not for us to read
            return
        for name in names:
            if name in self._shards or name in self._aside:
                continue
            try:
                spec, entries = read_header(self._folder / name)
                if spec != self.spec:
                    raise DamagedShard("holds pictures that were decoded in another way")
            except DamagedShard as error:
                self._set_aside(name, str(error))
                continue
            except (NewerShard, OSError):
                continue
            keys = names_of(entries)
            for key, place in zip(keys, places(entries), strict=True):
                self._places.setdefault(key, (name, place))
            self._shards[name] = keys  # afterwards, so that no other thread takes for known what is not yet
        self._settled = clock - changed > _SETTLED_NS
        self._changed, self._looked = changed, now

    def _forget(self, name: str) -> None:
        for key in self._shards.pop(name, []):
            place = self._places.get(key)
            if place is not None and place[0] == name:
                self._places.pop(key, None)
                self._checked.discard(key)

    def _set_aside(self, name: str, what: str) -> None:
        path = self._folder / name
        self._forget(name)
        if name in self._aside:
            return
        self._aside.add(name)  # not to be looked at again, where it cannot be renamed
        with contextlib.suppress(OSError):
            path.rename(path.with_name(name + DAMAGED))
        warnings.warn(
            f"{path} {what}; its pictures are decoded again - `transferkit store gc` removes it",
            TransferkitWarning,
            stacklevel=2,
        )

    def _in_use(self) -> None:
        now = time.monotonic()
        if not self._used or now - self._used > IN_USE_S / 4:
            self._used = now
            mark_used(self._folder)

    def _own_writer(self) -> PixelWriter:
        """Return the writer of this process; one that was forked has another than its parent."""
        if self._writer.pid != os.getpid():
            before, self._writer = self._writer, self._new_writer()
            self._writer.open = before.open
        return self._writer

    def _new_writer(self) -> PixelWriter:
        writer = PixelWriter(self.spec, self._folder, self.limit)
        writer.open = self.limit > 0
        # At the end of the process, a decoding one's too, and when nobody knows this store any more.
        Finalize(self, writer.write, exitpriority=10)
        return writer

    def __deepcopy__(self, memo: dict[int, Any]) -> DiskPixels:
        return self

    def __getstate__(self) -> Mapping[str, Any]:
        facts = ("spec", "limit", "root")
        return {**{name: getattr(self, name) for name in facts}, "open": self._writer.open}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        DiskPixels.__init__(self, state["spec"], state["limit"], state["root"])
        self._writer.open = state["open"]
