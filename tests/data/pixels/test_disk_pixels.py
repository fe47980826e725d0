"""Pictures on disk: every process adds shards, reads those of all others, and keeps to the limit."""

import contextlib
import gc
import multiprocessing
import os
import pickle
import shutil
import threading
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from pixel_workers import LIMIT, SPEC, fill, leave_a_tail, missing_of, name_of, picture_of, write_all

from transferkit.core.records import Decoding
from transferkit.data.pixels import disk as disk_module
from transferkit.data.pixels import spec as spec_module
from transferkit.data.pixels import writing
from transferkit.data.pixels.disk import DiskPixels
from transferkit.data.pixels.sets import IN_USE_S, USED, names, shard_files
from transferkit.data.pixels.shards import build_shard, names_of, places, read_header, read_picture
from transferkit.data.pixels.spec import PixelSpec

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def disk(tmp_path):
    return DiskPixels(SPEC, LIMIT, tmp_path / "pixels")


@pytest.fixture
def five_a_shard(monkeypatch):
    monkeypatch.setattr(writing, "SHARD_BYTES", 5 * picture_of(0).nbytes)


def shards(disk):
    return shard_files(disk.folder) if disk.folder.exists() else []


def again(disk):
    """The store as another process finds it."""
    return DiskPixels(disk.spec, disk.limit, disk.root)


def test_pictures_are_written_by_the_shard_and_read_at_once(disk, five_a_shard):
    assert missing_of(disk, range(3)) == [0, 1, 2] and not disk.root.exists()
    fill(disk, range(12))
    assert len(shards(disk)) == 2 and missing_of(disk, range(13)) == [12]
    assert missing_of(again(disk), range(12)) == [10, 11]
    disk.flush()
    assert len(shards(disk)) == 3 and missing_of(again(disk), range(12)) == []
    disk.flush()
    fill(disk, range(12))
    disk.flush()
    assert len(shards(disk)) == 3, "nothing is written twice"


def test_a_shard_says_what_is_in_it(tmp_path):
    pictures = {name_of(number): picture_of(number, (number, 7)) for number in (1, 2, 30)}
    name, parts = build_shard(SPEC, pictures)
    (tmp_path / name).write_bytes(b"".join(parts))
    spec, entries = read_header(tmp_path / name)
    assert spec == SPEC and names_of(entries) == list(pictures)
    for place, pixels in zip(places(entries), pictures.values(), strict=True):
        assert np.array_equal(read_picture(tmp_path / name, place), pixels)
    assert build_shard(SPEC, pictures)[0] == name != build_shard(SPEC, dict(list(pictures.items())[::-1]))[0]


def test_what_waits_is_written_when_an_epoch_is_over(disk, monkeypatch):
    monkeypatch.setattr(writing, "CALM", 4)
    fill(disk, range(3))
    disk.flush()
    fill(disk, [3])
    for _ in range(3):
        missing_of(disk, [0])
    fill(disk, [4])
    missing_of(disk, [0, 1, 2])
    assert missing_of(again(disk), range(5)) == [3, 4], "something new came in between"
    missing_of(disk, [0])
    assert missing_of(again(disk), range(5)) == []


def test_a_store_that_nobody_knows_any_more_leaves_no_tail(disk):
    store = again(disk)
    fill(store, range(3))
    assert missing_of(disk, range(3)) == [0, 1, 2]
    del store
    gc.collect()
    assert missing_of(disk, range(3)) == []


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_process_that_ends_leaves_no_tail(disk, decoding_processes, method):
    fill(disk, [9])  # waits here, and a forked process leaves it alone
    process = multiprocessing.get_context(method).Process(target=leave_a_tail, args=(disk.root, range(3)))
    process.start()
    process.join()
    assert process.exitcode == 0 and len(shards(disk)) == 1
    assert missing_of(again(disk), [0, 1, 2, 9]) == [9]


def test_a_forked_process_writes_what_is_its_own(disk, decoding_processes):
    fill(disk, [0])

    def work():
        fill(disk, [1])
        assert missing_of(disk, [0, 1]) in ([], [0])
        disk.flush()

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == 0 and missing_of(again(disk), [0, 1]) == [0]
    disk.flush()
    assert missing_of(again(disk), [0, 1]) == []


def test_a_process_that_was_forked_by_hand_leaves_what_waits_to_its_parent(disk):
    fill(disk, [0])
    pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException):
            disk._writer.write()
        os._exit(0)
    os.waitpid(pid, 0)
    assert shards(disk) == []
    disk.flush()
    assert missing_of(again(disk), [0]) == []


def test_two_processes_at_once(disk, decoding_processes):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    parts = (range(25), range(40, 10, -1))
    processes = [context.Process(target=write_all, args=(disk.root, part, barrier)) for part in parts]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        missing_of(disk, range(41))  # right, or not there yet
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert missing_of(disk, range(41)) == [] == missing_of(again(disk), range(41))
    assert all(not name.startswith(".") for name in names(disk.folder))


def test_a_pickle_is_the_way_to_the_store(disk):
    fill(disk, range(5))
    disk.flush()
    data = pickle.dumps(disk)
    assert len(data) < 2000 and missing_of(pickle.loads(data), range(5)) == []


@pytest.mark.parametrize(
    "other",
    [
        PixelSpec.of(65, Decoding()),
        PixelSpec.of(None, Decoding()),
        PixelSpec.of(64, Decoding(ground="#000000")),
        PixelSpec.of(64, Decoding(grey_bits=10)),
        PixelSpec(64, {}, {**SPEC.versions, "pillow": "11.0.0"}),
        PixelSpec(64, {}, {**SPEC.versions, "libjpeg_turbo": "1.0"}),
    ],
)
def test_pictures_that_are_decoded_otherwise_are_other_pictures(disk, other):
    fill(disk, [0])
    disk.flush()
    assert other != SPEC and missing_of(DiskPixels(other, LIMIT, disk.root), [0]) == [0]
    assert PixelSpec.from_dict(other.to_dict()) == other


def test_another_format_is_another_set(monkeypatch):
    folder = SPEC.folder
    monkeypatch.setattr(spec_module, "FORMAT", 2)
    assert SPEC.folder != folder
    assert PixelSpec.of(64, Decoding(max_pixels=5)) == SPEC  # a limit changes no pixels


# ---- limits -----------------------------------------------------------------------------------------------------


def aged(disk, seconds):
    os.utime(disk.folder / USED, times=(time.time() - seconds,) * 2)


def test_the_limit_is_kept_and_what_was_used_longest_ago_goes(tmp_path, five_a_shard):
    nbytes = sum(part.nbytes for part in build_shard(SPEC, {name_of(n): picture_of(n) for n in range(5)})[1])
    stores = []
    for number in range(3):
        spec = PixelSpec(number, {}, SPEC.versions)
        stores.append(DiskPixels(spec, 6 * nbytes, tmp_path))
        fill(stores[-1], range(10))
    one, two, three = stores
    for store, age in ((one, 3 * IN_USE_S), (two, 2 * IN_USE_S), (three, 1)):
        aged(store, age)
    fourth = DiskPixels(PixelSpec(4, {}, SPEC.versions), 6 * nbytes, tmp_path)
    fill(fourth, range(10, 15))
    assert list(map(len, map(shards, (*stores, fourth)))) == [1, 2, 2, 1]
    fill(fourth, range(15, 25))
    assert list(map(len, map(shards, (*stores, fourth)))) == [0, 1, 2, 3]
    fill(fourth, range(25, 30))
    assert list(map(len, map(shards, (*stores, fourth)))) == [0, 0, 2, 4]
    fill(fourth, range(30, 40))  # what is left is in use: nothing goes, nothing comes
    assert list(map(len, map(shards, (*stores, fourth)))) == [0, 0, 2, 4]
    assert missing_of(again(fourth), range(10, 40)) == list(range(30, 40))
    assert missing_of(one, range(10)) == list(range(10)), "its shards are gone under its hands"


def test_the_set_that_is_written_is_never_cut(tmp_path, five_a_shard):
    disk = DiskPixels(SPEC, 3 * 5 * picture_of(0).nbytes, tmp_path)
    fill(disk, range(10))
    aged(disk, 2 * IN_USE_S)  # as a clock that was set may make it seem
    fill(disk, range(10, 30))
    assert missing_of(again(disk), range(30)) == list(range(10, 30))


def test_a_small_limit_is_used_as_far_as_it_goes(tmp_path):
    nbytes = picture_of(0).nbytes
    disk = DiskPixels(SPEC, 50 * nbytes, tmp_path)
    fill(disk, range(60))
    disk.flush()
    there = 60 - len(missing_of(again(disk), range(60)))
    assert 24 <= there < 50
    assert sum((disk.folder / name).stat().st_size for name in shards(disk)) <= disk.limit


def test_a_picture_larger_than_a_shard_and_one_larger_than_all(disk, five_a_shard):
    large = picture_of(1, (40, 50))
    disk.put(name_of("large"), large)
    assert len(shards(disk)) == 1 and np.array_equal(again(disk).get(name_of("large")), large)
    small = DiskPixels(SPEC, large.nbytes - 1, disk.root.with_name("small"))
    small.put(name_of("large"), large)
    small.flush()
    assert small.get(name_of("large")) is None and not small.root.exists()


def test_a_reserve_stays_free(disk, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 0, writing.RESERVE + (1 << 20)))
    fill(disk, range(3))
    disk.flush()
    assert len(shards(disk)) == 1


def test_threads_that_look_at_once_all_find(disk, five_a_shard, monkeypatch):
    """While one of them reads the heads, another must not take them for read."""
    fill(disk, range(20))
    read, slow = disk_module.read_header, threading.Event()

    def slowly(path):
        slow.wait(0.05)
        return read(path)

    monkeypatch.setattr(disk_module, "read_header", slowly)
    handle = again(disk)
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda number: missing_of(handle, [number]), range(20))) == [[]] * 20
