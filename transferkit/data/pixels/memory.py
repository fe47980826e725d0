"""Decoded pictures in memory that processes share: handed over as a descriptor, never copied.

The memory is a file without a name, on Linux one that lies in memory alone (`memfd_create`) and is not bounded by
``/dev/shm``. It is as large as the budget, but takes only what is written. Pictures are written through the descriptor,
so that a lack of room is an error and not the end of the process, and are read through a map that cannot be written.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing.context
import os
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping
from multiprocessing import reduction
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

if TYPE_CHECKING:
    from transferkit.data.images.decode import Pixels


__all__ = ["MemoryPixels"]


class _Slot(NamedTuple):
    """The place of a picture: a byte that is 1 once it is filled, behind it the pixels."""

    offset: int
    height: int
    width: int
    channels: int

    @property
    def pixels(self) -> int:
        """Bytes of them."""
        return self.height * self.width * self.channels


class MemoryPixels:
    """Pictures in memory, by the content of their files.

    Only the process that made it adds pictures. Others, forked or spawned, read them without a copy, and fill the slots
    that were reserved before they started. Where there is no memory to share (on Windows, or where the system refuses)
    pictures lie in this process's own, and a process that is spawned gets a copy.

    Args:
        size: Bytes for pixels, and a byte for each picture.
        channels: Of each picture.
    """

    def __init__(self, size: int, channels: int = 3) -> None:
        self._size, self._channels = size, channels
        self._slots: dict[str, _Slot] = {}
        self._end = 0
        self._own: dict[str, Pixels] = {}
        self._area: _Area | None = None
        self._owner = os.getpid()
        self._lock = threading.Lock()
        if size and sys.platform != "win32":  # which hands no descriptors over
            with contextlib.suppress(OSError, OverflowError):
                self._area = _Area(_descriptor(size), size)

    def __len__(self) -> int:
        """Return the number of pictures that can be had."""
        return sum(self.get(sha256) is not None for sha256 in {**self._own, **self._slots})

    @property
    def room(self) -> int:
        """Bytes that are left."""
        return self._size - self._end

    @property
    def shared(self) -> bool:
        """Whether other processes get the pictures without a copy."""
        return self._area is not None

    def get(self, sha256: str) -> Pixels | None:
        """Return a picture, ``(H, W, C) uint8``, read-only; ``None`` where it is not there."""
        slot = self._slots.get(sha256)
        if self._area is None or slot is None:
            return self._own.get(sha256)
        return self._area.read(slot)

    def reserve(self, sha256: str, height: int, width: int) -> bool:
        """Reserve a slot for a picture that will be decoded later, by whichever process comes to it first.

        Args:
            sha256: Hex digest of its file's bytes.
            height: Of the picture as it will be decoded.
            width: Likewise.

        Returns:
            Whether it has one now.
        """
        with self._lock:
            return self._slot(sha256, height, width) is not None

    def put(self, sha256: str, pixels: Pixels) -> Pixels | None:
        """Keep a picture where there is room; return it as it is kept, ``None`` where it is not.

        A slot may be filled by two processes at once: both write the same.
        """
        height, width, _ = pixels.shape
        slot = self._slots.get(sha256)
        if slot is None and self._owner == os.getpid():
            with self._lock:
                slot = self._slot(sha256, height, width)
        if slot is None or pixels.shape != slot[1:]:
            return None
        if self._area is None:
            if sha256 not in self._own:
                kept = np.array(pixels)
                kept.flags.writeable = False
                self._own[sha256] = kept
            return self._own[sha256]
        view = self._area.read(slot)
        if view is None:
            try:
                self._area.write(slot, pixels)
            except OSError:  # no room after all: its slot stays empty
                return None
            view = self._area.read(slot)
        return view

    def _slot(self, sha256: str, height: int, width: int) -> _Slot | None:
        slot = self._slots.get(sha256)
        if slot is None:
            slot = _Slot(self._end, height, width, self._channels)
            if 1 + slot.pixels > self.room:
                return None
            self._end += 1 + slot.pixels
            self._slots[sha256] = slot
        return slot

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # what it keeps never changes

    def __reduce__(self) -> tuple[Any, ...]:
        area = self._area
        if area is not None and multiprocessing.context.get_spawning_popen() is not None:
            return _attached, (reduction.DupFd(area.descriptor), self._size, self._slots)
        pictures = {
            sha256: pixels for sha256 in {**self._own, **self._slots} if (pixels := self.get(sha256)) is not None
        }
        return _copied, (pictures,)

    @classmethod
    def _of(cls, area: _Area | None, slots: Mapping[str, _Slot], own: Mapping[str, Pixels]) -> MemoryPixels:
        memory = cls(0)
        memory._area, memory._slots, memory._own = area, dict(slots), dict(own)
        memory._owner = 0  # it adds nothing
        return memory


class _Area:
    """A file in memory, mapped."""

    def __init__(self, descriptor: int, size: int) -> None:
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)
        self._map = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)

    def read(self, slot: _Slot) -> Pixels | None:
        """Return a picture, ``None`` where it is not written yet."""
        if not self._map[slot.offset]:
            return None
        pixels = np.frombuffer(self._map, np.uint8, slot.pixels, slot.offset + 1)
        return pixels.reshape(slot[1:])

    def write(self, slot: _Slot, pixels: Pixels) -> None:
        """Write a picture: first its pixels, then that they are there. Raises `OSError` where there is no room."""
        data = np.ascontiguousarray(pixels).reshape(-1).data
        done = 0
        while done < len(data):
            done += os.pwrite(self.descriptor, data[done:], slot.offset + 1 + done)
        os.pwrite(self.descriptor, b"\1", slot.offset)


def _descriptor(size: int) -> int:
    """Return the descriptor of a file of zeros without a name. Raises `OSError`."""
    descriptor = _file_in_memory()
    if descriptor is None:
        with tempfile.TemporaryFile(prefix="transferkit-") as file:
            descriptor = os.dup(file.fileno())
    try:
        os.truncate(descriptor, size)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _file_in_memory() -> int | None:
    if sys.platform != "linux":
        return None
    try:
        return os.memfd_create("transferkit-pixels")
    except OSError:  # an old kernel, or a sandbox
        return None


def _attached(descriptor: Any, size: int, slots: Mapping[str, _Slot]) -> MemoryPixels:
    return MemoryPixels._of(_Area(descriptor.detach(), size), slots, {})


def _copied(pictures: Mapping[str, Pixels]) -> MemoryPixels:
    for pixels in pictures.values():
        pixels.flags.writeable = False
    return MemoryPixels._of(None, {}, pictures)
