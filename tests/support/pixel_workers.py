"""What the pixel store's tests run in other processes, and the pictures they agree on; imports nothing heavy."""

import hashlib
import os
import signal

import numpy as np

from transferkit.core.records import USUAL
from transferkit.data.pixels import writing
from transferkit.data.pixels.disk import DiskPixels
from transferkit.data.pixels.spec import PixelSpec

SPEC = PixelSpec.of(64, USUAL)
LIMIT = 10**9


def name_of(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


def picture_of(number, size=(10, 12)):
    """The one right picture of each number."""
    return np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)


def fill(store, numbers):
    for number in numbers:
        store.put(name_of(number), picture_of(number))


def missing_of(store, numbers):
    """The numbers that a store has no picture of; every picture that it has must be the right one, and read-only."""
    missing = []
    for number in numbers:
        pixels = store.get(name_of(number))
        if pixels is None:
            missing.append(number)
        else:
            assert np.array_equal(pixels, picture_of(number)) and not pixels.flags.writeable
    return missing


def read_and_fill(memory, present, reserved, queue):
    """Say what is missing of some pictures, fill the slots of others, and try one that has no slot."""
    missing = missing_of(memory, present)
    fill(memory, reserved)
    queue.put((missing, missing_of(memory, reserved), memory.put(name_of("none"), picture_of(0)) is None))


def write_all(root, numbers, barrier):
    writing.SHARD_BYTES = 5 * picture_of(0).nbytes
    disk = DiskPixels(SPEC, LIMIT, root)
    barrier.wait(60)
    fill(disk, numbers)
    disk.flush()


def leave_a_tail(root, numbers):
    """End as a decoding process does, with pictures that are not enough for a shard."""
    disk = DiskPixels(SPEC, LIMIT, root)
    fill(disk, numbers)


def die_while_writing(root, numbers):
    """Be killed when half of a shard is written."""

    def half(path, parts):
        with path.open("wb") as file:
            file.writelines(parts[: len(parts) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    writing._fill = half
    disk = DiskPixels(SPEC, LIMIT, root)
    fill(disk, numbers)
    disk.flush()
