"""Pictures in memory: within the budget, written once, and shared with processes of every start method."""

import copy
import errno
import mmap
import multiprocessing
import os
import pickle
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from pixel_workers import fill, missing_of, name_of, picture_of, read_and_fill

from transferkit.data.pixels import memory as module
from transferkit.data.pixels.memory import MemoryPixels

BYTES = picture_of(0).nbytes + 1


def no_descriptor(size):
    raise OSError(errno.ENOSYS, "no such call")


@pytest.fixture(params=["memfd", "unnamed file", "private"])
def memory(request, monkeypatch):
    """Room for five pictures, in each kind of memory."""
    if request.param == "memfd" and sys.platform != "linux":
        pytest.skip("memfd_create is of Linux")
    if request.param != "memfd":
        monkeypatch.setattr(module, "_file_in_memory", lambda: None)
    if request.param == "private":
        monkeypatch.setattr(module, "_descriptor", no_descriptor)
    pixels = MemoryPixels(5 * BYTES)
    assert pixels.shared == (request.param != "private")
    return pixels


def test_pictures_are_kept_while_they_fit(memory):
    assert memory.room == 5 * BYTES
    view = memory.put(name_of(0), picture_of(0))
    assert np.array_equal(view, picture_of(0)) and not view.flags.writeable
    assert np.shares_memory(view, memory.get(name_of(0))) and memory.room == 4 * BYTES
    assert np.shares_memory(memory.put(name_of(0), picture_of(0)), view) and memory.room == 4 * BYTES  # an equal file
    assert memory.put(name_of("large"), picture_of(1, (100, 100))) is None
    fill(memory, range(7))
    assert missing_of(memory, range(7)) == [5, 6] and memory.room == 0 and len(memory) == 5


def test_a_transposed_picture_is_kept_as_it_is(memory):
    turned = picture_of(3).transpose(1, 0, 2)
    assert not turned.flags.c_contiguous
    assert np.array_equal(memory.put(name_of(3), turned), turned)


def test_a_reserved_slot_is_filled_once_it_is_decoded(memory):
    assert memory.reserve(name_of(0), 10, 12) and memory.reserve(name_of(0), 10, 12)
    assert (memory.room, len(memory), missing_of(memory, [0])) == (4 * BYTES, 0, [0])
    assert memory.put(name_of(0), picture_of(0, (9, 12))) is None, "another shape than was reserved"
    fill(memory, [0])
    assert missing_of(memory, [0]) == [] and memory.room == 4 * BYTES
    assert not memory.reserve(name_of("large"), 100, 100)


def test_no_room_at_all():
    memory = MemoryPixels(0)
    fill(memory, [0])
    assert missing_of(memory, [0]) == [0] and not memory.shared and memory.room == 0


def test_a_budget_larger_than_any_memory_is_no_error():
    memory = MemoryPixels(2**70)
    fill(memory, range(3))
    assert missing_of(memory, range(3)) == []


def test_only_what_is_written_takes_memory():
    memory = MemoryPixels(1 << 34)
    fill(memory, range(3))
    assert os.fstat(memory._area.descriptor).st_size == 1 << 34
    assert os.fstat(memory._area.descriptor).st_blocks * 512 < 1 << 20


def test_it_is_not_in_dev_shm():  # which has 64 MB in a container
    memory = MemoryPixels(1 << 20)
    if sys.platform == "linux":
        assert Path(f"/proc/self/fd/{memory._area.descriptor}").readlink().name.startswith("memfd:")


def test_memory_that_is_full_after_all_is_no_error(monkeypatch):
    memory = MemoryPixels(5 * BYTES)
    fill(memory, [0])

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        assert memory.put(name_of(1), picture_of(1)) is None
    assert missing_of(memory, [0, 1]) == [1]
    fill(memory, [1])
    assert missing_of(memory, [0, 1]) == []


def test_half_a_write_goes_on(monkeypatch):
    memory, pwrite = MemoryPixels(5 * BYTES), os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, data, at: pwrite(handle, data[:100], at))
    fill(memory, [0])
    assert missing_of(memory, [0]) == []


def test_a_map_that_is_refused_leaves_private_memory(monkeypatch):
    def refused(*args, **options):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refused)
    memory = MemoryPixels(5 * BYTES)
    fill(memory, range(3))
    assert missing_of(memory, range(3)) == [] and not memory.shared


def test_views_outlive_the_memory():
    memory = MemoryPixels(5 * BYTES)
    view = memory.put(name_of(0), picture_of(0))
    descriptor = memory._area.descriptor
    del memory
    assert np.array_equal(view, picture_of(0))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_many_threads():
    memory, numbers = MemoryPixels(64 * BYTES), list(range(64))
    threads = [threading.Thread(target=fill, args=(memory, numbers[at:] + numbers[:at])) for at in (0, 16, 32, 48)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert missing_of(memory, numbers) == [] and memory.room == 0


def test_a_copy_of_its_owner_shares_it_and_a_pickle_has_all_of_it(memory):
    fill(memory, range(3))
    memory.reserve(name_of(4), 10, 12)
    assert copy.deepcopy(memory) is memory
    again = pickle.loads(pickle.dumps(memory))
    assert missing_of(again, range(5)) == [3, 4] and again.put(name_of(3), picture_of(3)) is None


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_another_process_reads_and_fills_the_same_memory(decoding_processes, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this system")
    memory = MemoryPixels(8 * BYTES)
    fill(memory, range(3))
    for number in (3, 4, 5):
        memory.reserve(name_of(number), 10, 12)
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=read_and_fill, args=(memory, range(3), [3, 4], queue))
    process.start()
    assert queue.get(timeout=60) == ([], [], True), "what was missing there; it adds no slots of its own"
    process.join()
    assert missing_of(memory, range(6)) == [5], "what it filled is here: the memory is the same"
    fill(memory, [6])
    assert missing_of(memory, [6]) == []
