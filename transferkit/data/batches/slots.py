"""Memory that decoding processes write their batches into, and this process reads them from, where they lie.

Torch's loader makes shared memory anew for every batch: pages are zeroed, mapped, faulted in on both sides and given
back, which takes several times as long as writing the pixels. Here slots are used again and again. A batch that arrives
is a tensor over its slot, which is free once the tensor is gone; where batches are not let go, later ones come torch's
way.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import mmap
import multiprocessing.context
import os
import sys
import weakref
from collections.abc import Sequence
from multiprocessing import reduction
from typing import Any, Final, Self

import numpy as np
import torch
from torch import Tensor

from transferkit.data.images.decode import Pixels

__all__ = ["BatchSlots", "Handed"]

_PAGE: Final = mmap.ALLOCATIONGRANULARITY

_ours: weakref.WeakValueDictionary[int, BatchSlots] = weakref.WeakValueDictionary()
"""The slots that this process made, by number: a batch that arrives names its own."""

_numbers = itertools.count()


class BatchSlots:
    """Slots for batches of pictures, as many for each worker, who alone takes them; this process alone frees them.

    Args:
        descriptor: Of a file that lies in memory; closed with the slots, whose pages count only once they are used.
        number: What batches name them by.
        workers: Processes.
        each: Slots of each.
        size: Bytes of a slot, whole pages.
    """

    def __init__(self, descriptor: int, number: int, workers: int, each: int, size: int) -> None:
        self._facts = number, workers, each, size
        self._map = mmap.mmap(descriptor, _length(workers, each, size))
        self._taken = np.frombuffer(self._map, np.uint8, workers * each)
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    @classmethod
    def make(cls, workers: int, each: int, size: int) -> Self | None:
        """Return new slots; ``None`` where the system has no such memory.

        Args:
            workers: Processes, at least 1.
            each: Slots of each, at least 1.
            size: Bytes of a batch.
        """
        if sys.platform != "linux":
            return None
        size, number = math.ceil(size / _PAGE) * _PAGE, next(_numbers)
        with contextlib.suppress(OSError, OverflowError):  # an old kernel, a sandbox; or sizes beyond sense
            descriptor = os.memfd_create("transferkit-batches")
            try:
                os.truncate(descriptor, _length(workers, each, size))
                slots = cls(descriptor, number, workers, each, size)
            except BaseException:
                os.close(descriptor)
                raise
            _ours[number] = slots
            return slots
        return None

    def fill(self, worker: int, pictures: Sequence[Pixels]) -> Handed | None:
        """Write a batch into a free slot; ``None`` where there is none, or the batch is too large for one.

        Args:
            worker: Number of this worker.
            pictures: ``(h, w, 3) uint8``, all of one size, at least one.
        """
        taken = self.take(worker, (len(pictures), *pictures[0].shape))
        if taken is None:
            return None
        np.stack(pictures, out=taken[0])
        return taken[1]

    def take(self, worker: int, shape: tuple[int, ...]) -> tuple[Any, Handed] | None:
        """Take a free slot; ``None`` where there is none, or the batch is too large for one.

        Args:
            worker: Number of this worker.
            shape: Of the batch.

        Returns:
            The slot's memory in this shape, uint8, to write to, and what is handed over.
        """
        number, _, each, size = self._facts
        if math.prod(shape) > size:
            return None
        for slot in range(worker * each, (worker + 1) * each):
            if not self._taken[slot]:
                self._taken[slot] = 1
                return self._bytes(slot, math.prod(shape)).reshape(shape), Handed(number, slot, shape)
        return None

    def open(self, slot: int, shape: tuple[int, ...]) -> Tensor:
        """Return a batch as a tensor over its slot, which is free again when no tensor is left on it."""
        place = self._bytes(slot, math.prod(shape))
        weakref.finalize(place, self._free, slot).atexit = False
        return torch.from_numpy(place).view(shape)

    @property
    def free(self) -> int:
        """Slots that are not taken."""
        return int((self._taken == 0).sum())

    def _free(self, slot: int) -> None:
        self._taken[slot] = 0

    def _bytes(self, slot: int, count: int) -> Any:
        _, workers, each, size = self._facts
        return np.frombuffer(self._map, np.uint8, count, _length(workers, each, 0) + slot * size)

    def __reduce__(self) -> tuple[Any, ...]:
        if multiprocessing.context.get_spawning_popen() is None:
            return _no_slots, ()  # a copy of the data set has nothing to do with them
        return _attached, (reduction.DupFd(self._descriptor), *self._facts)


class Handed:
    """A batch in a slot, on the side of the worker; pickled, it becomes the tensor on the other side."""

    def __init__(self, number: int, slot: int, shape: tuple[int, ...]) -> None:
        self._place = number, slot, shape

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, self._place


def _length(workers: int, each: int, size: int) -> int:
    """Return the bytes of a file: one for each slot that says whether it is taken, filled up to a page; the slots."""
    return math.ceil(workers * each / _PAGE) * _PAGE + workers * each * size


def _arrived(number: int, slot: int, shape: tuple[int, ...]) -> Tensor:
    return _ours[number].open(slot, shape)


def _attached(descriptor: Any, number: int, workers: int, each: int, size: int) -> BatchSlots:
    return BatchSlots(descriptor.detach(), number, workers, each, size)


def _no_slots() -> None:
    return None
