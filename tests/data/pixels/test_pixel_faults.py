"""The pixel store when things go wrong: nothing of it is an error, and no picture is ever another one."""

import contextlib
import errno
import multiprocessing
import os
import signal
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from pixel_workers import LIMIT, SPEC, die_while_writing, fill, missing_of, name_of, picture_of

from transferkit.core import files
from transferkit.core.errors import TransferkitWarning
from transferkit.data.pixels import shards as shards_module
from transferkit.data.pixels import writing
from transferkit.data.pixels.disk import DiskPixels
from transferkit.data.pixels.sets import DAMAGED, names, shard_files
from transferkit.data.pixels.shards import DamagedShard, build_shard, places, read_header, read_picture
from transferkit.data.pixels.spec import PixelSpec
from transferkit.data.pixels.upkeep import LEFTOVER_S, clean_pixels, describe_pixels, verify_pixels


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A store of three shards of five pictures."""
    monkeypatch.setattr(writing, "SHARD_BYTES", 5 * picture_of(0).nbytes)
    disk = DiskPixels(SPEC, LIMIT, tmp_path / "pixels")
    fill(disk, range(15))
    return disk


def again(disk):
    return DiskPixels(disk.spec, disk.limit, disk.root)


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


DAMAGE = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 1),
    "cut in the head": lambda path: os.truncate(path, 20),
    "cut in the entries": lambda path: os.truncate(path, 300),
    "empty": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "flipped in the magic": lambda path: flip(path, 1),
    "flipped in the length of the facts": lambda path: flip(path, 12),
    "flipped in the number of pictures": lambda path: flip(path, 18),
    "flipped in an entry": lambda path: flip(path, 300),
    "flipped in a picture": lambda path: flip(path, path.stat().st_size - 5),
    "another set's shard": lambda path: path.write_bytes(
        b"".join(build_shard(PixelSpec(7, {}, SPEC.versions), {name_of(n): picture_of(n) for n in range(15)})[1])
    ),
}


@pytest.mark.parametrize(
    ("damage", "warm"),
    [(damage, False) for damage in DAMAGE] + [(damage, True) for damage in ("truncated", "empty")],
)
def test_a_damaged_shard_is_set_aside_and_its_pictures_are_decoded_again(disk, damage, warm):  # fault 203
    path = disk.folder / shard_files(disk.folder)[1]
    handle = again(disk)
    if warm:  # it has read the head
        assert missing_of(handle, range(15)) == []
    DAMAGE[damage](path)
    with pytest.warns(TransferkitWarning, match=rf"{path.name} (is|has|does|holds) .*decoded again") as caught:
        missing = missing_of(handle, range(15))
    assert len(caught) == 1 and 1 <= len(missing) <= 5
    assert not path.exists() and path.with_name(path.name + DAMAGED).exists()
    lost = missing_of(again(disk), range(15))
    assert len(lost) == 5
    fill(handle, lost)
    handle.flush()
    assert missing_of(again(disk), range(15)) == []
    assert [stray.why for stray in clean_pixels(disk.root)] == ["is a damaged shard"] and verify_pixels(disk.root) == []


def test_a_flipped_byte_anywhere_is_found(tmp_path):
    name, parts = build_shard(SPEC, {name_of(n): picture_of(n, (2, 3)) for n in range(2)})
    data = b"".join(parts)
    path = tmp_path / name
    path.write_bytes(data)
    for at in range(len(data)):
        flip(path, at)
        with pytest.raises((DamagedShard, shards_module.NewerShard)):
            for place in places(read_header(path)[1]):
                read_picture(path, place)
        flip(path, at)
    assert len(places(read_header(path)[1])) == 2


def test_a_damaged_shard_that_cannot_be_renamed_is_told_of_once(disk, monkeypatch):
    path = disk.folder / shard_files(disk.folder)[0]
    flip(path, path.stat().st_size - 5)

    def refused(*args):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "rename", refused)
    handle = again(disk)
    with pytest.warns(TransferkitWarning, match="decoded again") as caught:
        missing_of(handle, range(15))
        missing_of(handle, range(15))
    assert len(caught) == 1 and path.exists()


def test_a_shard_that_is_gone_is_no_fault(disk):
    handle = again(disk)
    assert missing_of(handle, range(15)) == []
    for name in shard_files(disk.folder):
        (disk.folder / name).unlink()
    assert missing_of(handle, range(15)) == list(range(15))
    fill(handle, range(15))
    handle.flush()
    assert missing_of(again(disk), range(15)) == []


def test_a_newer_format_is_left_alone(disk, monkeypatch):
    name = shard_files(disk.folder)[0]
    with monkeypatch.context() as patch:
        patch.setattr(shards_module, "FORMAT", 2)
        data = b"".join(build_shard(SPEC, {name_of(99): picture_of(99)})[1])
    (disk.folder / name).write_bytes(data)
    handle = again(disk)
    assert len(missing_of(handle, range(15))) == 5 and missing_of(handle, [99]) == [99]
    assert verify_pixels(disk.root) == [] == clean_pixels(disk.root)
    assert (disk.folder / name).read_bytes() == data


# ---- disks that are full or cannot be written -------------------------------------------------------------------


def full(*args, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


def read_only(*args, **options):
    raise OSError(errno.EROFS, "Read-only file system")


@pytest.mark.parametrize(
    ("place", "name", "refuse", "reason"),
    [
        (writing, "_fill", full, "No space left on device"),
        (Path, "replace", full, "No space left on device"),
        (Path, "mkdir", read_only, "Read-only file system"),
        (files.tempfile, "mkstemp", read_only, "Read-only file system"),
        (writing.shutil, "disk_usage", lambda path: (0, 0, 5), None),
    ],
)
def test_a_disk_that_takes_nothing_costs_a_warning(tmp_path, monkeypatch, place, name, refuse, reason):  # fault 204
    disk = DiskPixels(SPEC, LIMIT, tmp_path / "pixels")
    if reason is None:
        refuse, reason = lambda path: type("Usage", (), {"free": 5}), "the disk has 5 free"
    with monkeypatch.context() as patch:
        patch.setattr(place, name, refuse)
        fill(disk, range(3))
        with pytest.warns(TransferkitWarning, match=f"decoded again in every epoch: .*{reason}") as caught:
            disk.flush()
            fill(disk, range(3))
            disk.flush()
    assert len(caught) == 1 and missing_of(disk, range(3)) == [0, 1, 2]
    assert not disk.folder.exists() or names(disk.folder) == []
    assert missing_of(again(disk), range(3)) == [0, 1, 2]


def test_what_can_only_be_read_is_read(disk, monkeypatch):
    for place, name in ((Path, "touch"), (Path, "mkdir"), (files.tempfile, "mkstemp")):
        monkeypatch.setattr(place, name, read_only)
    handle = again(disk)
    assert missing_of(handle, range(15)) == []
    fill(handle, [20])
    with pytest.warns(TransferkitWarning, match="Read-only"):
        handle.flush()
    assert missing_of(handle, range(15)) == []


def test_no_home_costs_a_warning(monkeypatch):  # fault 204
    monkeypatch.delenv("XDG_CACHE_HOME")

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    disk = DiskPixels(SPEC, LIMIT)
    assert missing_of(disk, [0]) == [0]
    with pytest.warns(TransferkitWarning, match="no home folder .* set XDG_CACHE_HOME") as caught:
        fill(disk, range(3))
    assert len(caught) == 1 and missing_of(disk, range(3)) == [0, 1, 2]
    disk.flush()


def test_the_usual_place_is_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "nowhere" / "yet"))
    disk = DiskPixels(SPEC, LIMIT)
    fill(disk, [0])
    disk.flush()
    assert disk.folder.parent == tmp_path / "nowhere" / "yet" / "transferkit" / "pixels"
    assert missing_of(DiskPixels(SPEC, LIMIT), [0]) == []


# ---- killed writers, upkeep -------------------------------------------------------------------------------------


def test_a_killed_writer_leaves_nothing_that_is_read(disk, decoding_processes):  # fault 205
    process = multiprocessing.get_context("spawn").Process(target=die_while_writing, args=(disk.root, range(20, 25)))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (leftover,) = (name for name in names(disk.folder) if name.startswith("."))
    assert missing_of(again(disk), range(25)) == list(range(15, 25))
    assert verify_pixels(disk.root) == [] == clean_pixels(disk.root), "somebody may be writing it"
    old = time.time() - LEFTOVER_S - 60
    os.utime(disk.folder / leftover, (old, old))
    assert [stray.file for stray in verify_pixels(disk.root)] == [leftover]
    assert [stray.file for stray in clean_pixels(disk.root, dry_run=True)] == [leftover]
    assert leftover in names(disk.folder)
    (stray,) = clean_pixels(disk.root)
    assert stray.file == leftover and stray.bytes > 0 and leftover not in names(disk.folder)
    assert missing_of(again(disk), range(15)) == []


def test_upkeep(disk):
    other = DiskPixels(PixelSpec(None, {"grey_bits": 10}, SPEC.versions), LIMIT, disk.root)
    fill(other, range(4))
    other.flush()
    (disk.folder / "notes.txt").write_text("mine", encoding="utf-8")
    (disk.root / "of somebody").mkdir()
    sets = {each.folder: each for each in describe_pixels(disk.root)}
    assert {each.spec: each.pictures for each in sets.values()} == {SPEC: 15, other.spec: 4}
    assert sets[disk.folder.name].bytes == sum((disk.folder / n).stat().st_size for n in shard_files(disk.folder))
    seen = []
    assert verify_pixels(disk.root, lambda done, total: seen.append((done, total))) == []
    assert seen == [(at, 4) for at in range(1, 5)]
    name = shard_files(disk.folder)[0]
    flip(disk.folder / name, 60)
    assert [(stray.folder, stray.file) for stray in verify_pixels(disk.root)] == [(disk.folder.name, name)]
    assert (disk.folder / name).exists()
    assert [stray.file for stray in clean_pixels(disk.root)] == [name]
    assert clean_pixels(disk.root, unused_days=1) == []
    removed = clean_pixels(disk.root, unused_days=0)
    assert sorted(stray.folder for stray in removed) == sorted(sets) and all(stray.bytes > 0 for stray in removed)
    assert names(disk.root) == sorted([disk.folder.name, "of somebody"])
    assert names(disk.folder) == ["notes.txt"]
    assert describe_pixels(disk.root.with_name("none")) == [] == clean_pixels(disk.root.with_name("none"))


def test_shards_that_others_make_superfluous_go(disk):
    pictures = {name_of(number): picture_of(number) for number in (3, 4, 5, 12)}
    name, parts = build_shard(SPEC, pictures)
    (disk.folder / name).write_bytes(b"".join(parts))
    before = set(shard_files(disk.folder))
    while clean_pixels(disk.root):
        pass
    assert len(before - set(shard_files(disk.folder))) <= 1
    assert missing_of(again(disk), range(15)) == []
    (disk.folder / name).write_bytes(b"".join(parts))
    last = "f" * 24 + ".pixels"  # its name comes after those whose pictures it has
    (disk.folder / name).rename(disk.folder / last)
    assert [stray.why for stray in clean_pixels(disk.root)] == ["holds only pictures that other shards hold, too"]
    assert missing_of(again(disk), range(15)) == [] and not (disk.folder / last).exists()


def test_reading_warns_of_nothing_by_itself(disk):
    with warnings.catch_warnings(), contextlib.suppress(FileNotFoundError):
        warnings.simplefilter("error")
        assert missing_of(again(disk), range(16)) == [15]
        assert np.array_equal(again(disk).get(name_of(0)), picture_of(0))


def test_a_picture_is_checked_when_a_process_first_reads_it(disk, monkeypatch):
    checks = []
    crc32 = zlib.crc32
    monkeypatch.setattr(shards_module.zlib, "crc32", lambda *data: checks.append(len(data[0])) or crc32(*data))
    handle, size = again(disk), picture_of(0).nbytes
    for _ in range(3):
        assert missing_of(handle, range(15)) == []
    assert checks.count(size) == 15
    missing_of(again(disk), range(3))
    assert checks.count(size) == 18
