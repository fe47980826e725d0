"""Files that are known from before: read once, found out when they change, and never a reason to stop."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from data_sets import draw
from PIL import Image

from transferkit.core import database
from transferkit.core.errors import DataError
from transferkit.core.files import user_cache
from transferkit.core.records import DataConfig, Decoding
from transferkit.data.augment.transform import eval_transform
from transferkit.data.augment.views import Views
from transferkit.data.batches.dataset import ImageDataset, Picture
from transferkit.data.images import decode, known_files, reading, sketchbook
from transferkit.data.images.known_files import KnownFiles, hash_files, read_files
from transferkit.data.images.reading import ReadResult, hash_images, read_images

pytestmark = pytest.mark.usefixtures("settled")

DAY_NS = 86_400 * 10**9


@pytest.fixture
def paths(tmp_path):
    (tmp_path / "pictures").mkdir()
    return [str(draw(tmp_path / "pictures" / f"{number}.png", number)) for number in range(5)]


def tick(folder):
    """Wait until the clock of the disk has moved on."""
    probe = Path(folder) / "clock"
    probe.touch()
    before = probe.stat().st_ctime_ns
    while probe.stat().st_ctime_ns == before:
        probe.touch()
    probe.unlink()


def file(name="files-*"):
    (only,) = user_cache().glob(name)
    return only


def everything(results):
    """All that results say, also what does not count for equality; pixels as bytes."""
    names = [item.name for item in fields(ReadResult) if item.name != "pixels"]
    return [
        (*(getattr(one, name) for name in names), None if one.pixels is None else one.pixels.tobytes())
        for one in results
    ]


# ---- what is read, and what is not --------------------------------------------------------------------------------


def test_a_file_is_hashed_once(paths, read):
    truth = hash_images([*paths, "gone.png"])
    read.clear()
    assert hash_files([*paths, "gone.png"], workers=2) == truth
    assert sorted(read) == ["0.png", "1.png", "2.png", "3.png", "4.png", "gone.png"]
    read.clear()
    done = []
    assert hash_files([*paths, "gone.png"], progress=done.append) == truth
    assert read == ["gone.png"] and done == [5, 6]
    read.clear()
    assert hash_files([paths[3], paths[3]]) == [truth[3]] * 2 and read == []
    assert hash_files([]) == []


def test_rescan_reads_all_and_writes_it_down(paths, read):
    hash_files(paths[:2])
    read.clear()
    assert hash_files(paths, rescan=True) == hash_files(paths)
    assert read == ["0.png", "1.png", "2.png", "3.png", "4.png"]


def test_pictures_are_decoded_once(paths, read):
    truth = everything(read_images(paths, min_side=64))
    read.clear()
    for expected in (5, 0, 0):
        assert everything(read_files(paths, min_side=64, workers=2)) == truth
        assert len(read) == expected
        read.clear()
    hash_files(paths)
    assert read == []  # the hashes are known, too
    read_files(paths, min_side=64, rescan=True)
    assert len(read) == 5


def test_hashes_alone_are_no_pictures(paths, read):
    hash_files(paths)
    read.clear()
    assert everything(read_files(paths, min_side=64)) == everything(read_images(paths, min_side=64))
    assert len(read) == 10


def test_pixels_are_to_be_had(paths):
    read_files(paths[:2], min_side=None)
    truth = everything(read_images(paths, min_side=None, keep=lambda _, pixels: pixels))
    results = everything(read_files(paths, min_side=None, keep=lambda _, pixels: pixels))
    assert [one[:-1] for one in results] == [one[:-1] for one in truth]
    assert [one[-1] is None for one in results] == [True, True, False, False, False]  # of those that are read
    assert everything(read_files(paths, min_side=None, keep=lambda _, pixels: pixels, again=True)) == truth


def test_what_is_known_is_not_written_again(paths, monkeypatch):
    read_files(paths, min_side=None)
    monkeypatch.setattr(database.CacheDatabase, "write", lambda *_: pytest.fail("nothing is new"))
    read_files(paths, min_side=None, again=True)
    hash_files(paths)


def test_by_side_and_decoding_on_their_own(tmp_path, read):
    large = str(draw(tmp_path / "large.jpg", 1, (400, 300)))
    clear = tmp_path / "clear.png"
    Image.new("RGBA", (9, 9), (0, 0, 0, 0)).save(clear)
    for options in (
        {"min_side": None}, {"min_side": 32}, {"min_side": 64},
        {"min_side": 64, "decoding": Decoding(ground="#000000")},
        {"min_side": 64, "decoding": Decoding(grey_bits=10)},
    ):  # fmt: skip
        truth = everything(read_images([large, str(clear)], **options))
        read.clear()
        assert everything(read_files([large, str(clear)], **options)) == truth
        assert len(read) == 2
        assert everything(read_files([large, str(clear)], **options)) == truth
        assert len(read) == 2


def test_a_lower_limit_of_pixels_holds(paths, read):
    low, high = Decoding(max_pixels=319), Decoding(max_pixels=320)
    for decoding, reads in ((Decoding(), 5), (high, 5), (Decoding(), 0), (high, 0), (low, 5), (low, 5), (high, 0)):
        truth = everything(read_images(paths, min_side=None, decoding=decoding))
        read.clear()
        assert everything(read_files(paths, min_side=None, decoding=decoding)) == truth
        assert len(read) == reads
        assert (truth[0][2] is None) == (decoding is not low)


def test_bad_files_are_read_each_time(tmp_path, paths, read):
    Path(paths[0]).write_bytes(b"no picture")
    Path(paths[1]).write_bytes(b"")
    Path(paths[2]).write_bytes(Path(paths[2]).read_bytes()[:-30])
    (tmp_path / "folder.png").mkdir()
    files = [*paths, str(tmp_path / "folder.png"), str(tmp_path / "gone.png")]
    truth = everything(read_images(files, min_side=None))
    assert everything(read_files(files, min_side=None)) == truth
    read.clear()
    assert everything(read_files(files, min_side=None)) == truth
    assert read == ["0.png", "1.png", "2.png", "folder.png", "gone.png"]


def test_what_another_package_decodes_is_decoded_each_time(tmp_path, read, monkeypatch):
    path = str(draw(tmp_path / "a.png", 1))
    monkeypatch.setattr(sketchbook, "_ELSEWHERE", ("PNG",))
    read_files([path], min_side=None)
    read_files([path], min_side=None)
    assert read == ["a.png"] * 2


def test_every_kind_of_picture(tmp_path, read):
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=turned)
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg")
    picture.convert("L").save(tmp_path / "grey.png")
    picture.convert("P").save(tmp_path / "palette.gif")
    picture.save(tmp_path / "frames.gif", save_all=True, append_images=[Image.fromarray(255 - noise)])
    picture.save(tmp_path / "wrong.bmp", "PNG")
    picture.save(tmp_path / "lossy.webp")
    picture.save(tmp_path / "pages.tif", save_all=True, append_images=[picture])
    picture.resize((900, 700)).save(tmp_path / "large.jpg")
    Image.new("RGB", (20, 20), "red").save(tmp_path / "blank.png")
    Image.new("RGBA", (20, 20), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20)).save(tmp_path / "deep.png")
    Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20)).save(tmp_path / "deep.tif")
    files = [str(path) for path in sorted(tmp_path.iterdir())]
    for side in (None, 64):
        truth = everything(read_images(files, min_side=side))
        assert all(one[2] is None for one in truth)
        for _ in range(2):
            assert everything(read_files(files, min_side=side)) == truth
            read.clear()
        read_files(files, min_side=side)
        assert read == []


# ---- files that change ---------------------------------------------------------------------------------------------


def restore(path, facts):
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def rewritten(one, _):
    facts = one.stat()
    one.write_bytes(bytes([*one.read_bytes()[:-1], 7]))
    restore(one, facts)


def grown(one, _):
    facts = one.stat()
    one.write_bytes(one.read_bytes() + b"x")
    restore(one, facts)


def replaced(one, other):
    facts, new = one.stat(), one.with_suffix(".new")
    new.write_bytes(other.read_bytes()[: facts.st_size].ljust(facts.st_size, b"x"))
    restore(new, facts)
    new.replace(one)


def swapped(one, other):
    aside = one.with_suffix(".aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def through_a_hard_link(one, _):
    link = one.with_suffix(".link")
    os.link(one, link)
    rewritten(link, None)
    link.unlink()


def by_a_link(one, other):
    one.unlink()
    one.symlink_to(other)


def by_a_copy_with_its_times(one, other):
    facts = one.stat()
    shutil.copy2(other, one)
    restore(one, facts)


CHANGES = {
    "touched": lambda one, _: one.touch(),
    "grown": lambda one, _: one.write_bytes(one.read_bytes() + b"x"),
    "grown at its time": grown,
    "rewritten at its size": lambda one, _: one.write_bytes(bytes([*one.read_bytes()[:-1], 7])),
    "rewritten at its size and time": rewritten,
    "another file at its size and time": replaced,
    "names swapped": swapped,
    "through a hard link": through_a_hard_link,
    "a link to another": by_a_link,
    "a copy with its times": by_a_copy_with_its_times,
    "removed": lambda one, _: one.unlink(),
    "a folder": lambda one, _: (one.unlink(), one.mkdir()),
    "rights": lambda one, _: one.chmod(0o400),
}  # fmt: skip


IN_PLACE = ("rewritten at its size and time", "through a hard link", "a copy with its times")
"""Changes that the time of changes alone tells of."""


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_is_read_again(paths, change):  # fault 206
    for path in paths:
        os.utime(path, ns=(10**18, 10**18))  # as pictures of one archive may have
    read_files(paths, min_side=None)
    tick(Path(paths[0]).parent)
    CHANGES[change](Path(paths[1]), Path(paths[2]))
    for _ in range(2):
        assert hash_files(paths) == hash_images(paths)
        assert everything(read_files(paths, min_side=None)) == everything(read_images(paths, min_side=None))


@pytest.mark.parametrize("change", [name for name in CHANGES if name not in IN_PLACE])
def test_where_no_time_of_changes_is_to_be_had(paths, change, monkeypatch):
    """As on Windows, where that is the time of making a file: the inode tells files of one size and time apart."""
    own = os.stat
    for path in paths:
        os.utime(path, ns=(10**18, 10**18))
    monkeypatch.setattr(known_files.os, "stat", lambda path, **options: _without_change_time(own(path, **options)))
    assert None not in [one.sha256 for one in read_files(paths, min_side=None)]
    CHANGES[change](Path(paths[1]), Path(paths[2]))
    assert hash_files(paths) == hash_images(paths)


def _without_change_time(facts):
    return os.stat_result(facts[:10], {"st_mtime_ns": facts.st_mtime_ns, "st_ctime_ns": 0, "st_atime_ns": 0})


def test_links_are_followed_and_folders_may_move(tmp_path, paths, read):
    one, other = tmp_path / "pictures", tmp_path / "moved"
    folder = tmp_path / "folder"
    folder.symlink_to(one)
    hash_files(paths)
    read.clear()
    assert [r.sha256 for r in hash_files([str(folder / Path(path).name) for path in paths])] == [
        r.sha256 for r in hash_files(paths)
    ]
    assert read == []  # the same files by another way
    shutil.copytree(one, other)
    for path in sorted(other.iterdir()):
        path.write_bytes(path.read_bytes() + b" ")
    one.rename(tmp_path / "aside")
    other.rename(one)
    assert hash_files(paths) == hash_images(paths)
    (tmp_path / "empty").mkdir()
    folder.unlink()
    folder.symlink_to(tmp_path / "aside")
    files = [str(folder / Path(path).name) for path in paths]
    assert hash_files(files) == hash_images(files)


@pytest.fixture
def decoded(monkeypatch):
    """How many files are decoded; that it may pay to look for contents from three files on."""
    calls = []
    decode_one = reading.decode_with_info
    monkeypatch.setattr(known_files, "MANY", 3)
    monkeypatch.setattr(known_files, "SAMPLE", 2)
    monkeypatch.setattr(reading, "decode_with_info", lambda *a, **k: (calls.append(1), decode_one(*a, **k))[1])
    return calls


def moved(folder):
    return [str(path) for path in sorted(Path(folder).rename(Path(folder).with_name("elsewhere")).iterdir())]


def touched(folder):
    for path in Path(folder).iterdir():
        path.touch()
    return [str(path) for path in sorted(Path(folder).iterdir())]


def with_other_rights(folder):
    for path in Path(folder).iterdir():
        path.chmod(0o600)
    return [str(path) for path in sorted(Path(folder).iterdir())]


def copied(folder):
    return [str(path) for path in sorted(Path(shutil.copytree(folder, f"{folder} again")).iterdir())]


@pytest.mark.parametrize("change", [moved, touched, with_other_rights, copied])
def test_known_contents_in_files_of_another_state_are_not_decoded(paths, decoded, read, change, tmp_path):  # fault 214
    read_files(paths, min_side=64)
    decoded.clear()
    tick(tmp_path)
    others = change(Path(paths[0]).parent)
    done = []
    results = read_files(others, min_side=64, workers=2, progress=done.append)
    assert decoded == [] and done[-1] == 5 and done == sorted(done)
    assert everything(results) == everything(read_images(others, min_side=64))
    decoded.clear()
    read.clear()
    assert read_files(others, min_side=64) == results and read == decoded == []  # they are known files from now on


def test_only_what_was_decoded_in_the_same_way_is_known(paths, decoded, tmp_path):
    read_files(paths, min_side=64)
    others = moved(Path(paths[0]).parent)
    for options in (
        {"min_side": 32},
        {"min_side": 64, "decoding": Decoding(ground="#000000")},
        {"min_side": 64, "decoding": Decoding(max_pixels=100)},
        {"min_side": 64, "rescan": True},
    ):
        decoded.clear()
        for path in others:
            os.utime(path, ns=(1, 10**18 + len(decoded)))
        read_files(others, **options)
        assert len(decoded) == 5


def test_contents_that_are_new_are_decoded_among_known_ones(paths, decoded):
    read_files(paths[:4], min_side=64)
    others = moved(Path(paths[0]).parent)
    Path(others[1]).write_bytes(b"no picture")
    decoded.clear()
    results = read_files(others, min_side=64)
    assert len(decoded) == 2 and everything(results) == everything(read_images(others, min_side=64))
    assert [one.error is None for one in results] == [True, False, True, True, True]


def test_pixels_of_known_contents_are_to_be_had(paths, decoded):
    read_files(paths, min_side=None)
    others = moved(Path(paths[0]).parent)
    results = read_files(others, min_side=None, keep=lambda _, pixels: pixels, again=True)
    assert all(one.pixels is not None for one in results)


def test_few_files_and_new_ones_are_read_once(paths, decoded, read, monkeypatch):
    read_files(paths[:1], min_side=64)
    read.clear()
    read_files(paths[1:], min_side=64)
    assert len(read) == 4 + 2  # but for the sample
    monkeypatch.setattr(known_files, "MANY", 6)
    others = moved(Path(paths[0]).parent)
    read.clear()
    read_files(others, min_side=64)
    assert len(read) == 5


def test_a_file_that_changes_while_it_is_read(paths, monkeypatch):
    def rewriting(path):
        data = decode.read_bytes(path)
        Path(path).write_bytes(data + b"x")
        return data

    tick(Path(paths[0]).parent)
    with monkeypatch.context() as patch:
        patch.setattr(reading, "read_bytes", rewriting)
        hash_files(paths)
    assert hash_files(paths) == hash_images(paths)


def test_a_file_is_left_alone_until_its_times_would_show_a_change(paths, read, monkeypatch):
    monkeypatch.undo()
    assert known_files.TICK_NS >= 2 * 10**9  # FAT
    os.utime(paths[0], ns=(10**18, 10**18))
    hash_files(paths)
    assert KnownFiles(paths).hashes == [None] * 5  # this very moment they may be written to, and look the same
    clock = known_files.time.time_ns
    monkeypatch.setattr(known_files.time, "time_ns", lambda: clock() + 3 * 10**9)
    hash_files(paths)
    assert None not in KnownFiles(paths).hashes
    monkeypatch.setattr(known_files.time, "time_ns", lambda: clock() - DAY_NS)  # the clock is set back
    assert KnownFiles(paths).hashes == [None] * 5


def test_times_to_come_are_not_trusted(paths, read):
    os.utime(paths[0], ns=(2 * 10**18, 2 * 10**18))
    hash_files(paths)
    read.clear()
    hash_files(paths)
    assert read == ["0.png"]


def test_disks_that_number_no_files(paths, read, monkeypatch):
    own = os.stat

    def stat(path, *args, **options):
        facts = own(path, *args, **options)
        if str(path) != paths[0]:
            return facts
        more = {name: getattr(facts, name) for name in ("st_mtime_ns", "st_ctime_ns", "st_atime_ns")}
        return os.stat_result([facts[0], 0, *facts[2:10]], more)

    monkeypatch.setattr(os, "stat", stat)
    assert hash_files(paths) == hash_files(paths)
    assert read.count("0.png") == 2 and read.count("1.png") == 1


def test_a_change_that_nothing_shows_is_found_when_the_file_is_read(paths, monkeypatch):  # fault 207
    own, before = os.stat, {path: Path(path).stat() for path in paths}
    truth = hash_files(paths)
    Path(paths[0]).write_bytes(Path(paths[1]).read_bytes())
    monkeypatch.setattr(os, "stat", lambda path, *a, **b: before.get(str(path)) or own(path, *a, **b))
    assert hash_files(paths) == truth  # nothing shows it
    assert hash_files(paths, rescan=True) == hash_files(paths) == hash_images(paths) != truth
    Path(paths[0]).write_bytes(Path(paths[2]).read_bytes())
    known = hash_files(paths)
    config = DataConfig(image_size=(16, 16))
    pictures = [Picture(one.path, one.sha256) for one in known]
    with pytest.raises(DataError, match="its content changed"):
        ImageDataset(pictures, Views(eval_transform(config)))[0]
    assert hash_files(paths) == hash_images(paths)  # so it is forgotten


# ---- names ---------------------------------------------------------------------------------------------------------


def test_names_of_any_bytes(tmp_path, read):
    names = [
        b"caf\xe9.png",
        "café.png".encode(),
        "cafe\u0301.png".encode(),
        b"A.png",
        b"a.png",
        b"line\n.png",
        b"'.png",
    ]
    files = []
    for seed, name in enumerate(names):
        files.append(str(draw(tmp_path / os.fsdecode(name), seed)))
    odd = [*files, "\ud800.png", "nul\0.png", "", str(tmp_path / ("x" * 300))]
    truth = hash_images(odd)
    for _ in range(2):
        assert hash_files(odd) == truth
    read.clear()
    hash_files(files)
    assert read == []


def test_relative_paths_and_a_folder_that_is_gone(tmp_path, paths, read, monkeypatch):
    hash_files(paths)
    monkeypatch.chdir(tmp_path / "pictures")
    read.clear()
    names = ["0.png", "./0.png", "../pictures/0.png"]
    assert {one.sha256 for one in hash_files(names)} == {hash_files(paths)[0].sha256}
    assert read == []
    (tmp_path / "going").mkdir()
    monkeypatch.chdir(tmp_path / "going")
    (tmp_path / "going").rmdir()
    assert hash_files(names) == hash_images(names)


def test_nobody_learns_names_and_every_user_has_own_entries(paths, read, monkeypatch):
    hash_files(paths)
    assert b"0.png" not in file().read_bytes() and b"pictures" not in file().read_bytes()
    read.clear()
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    hash_files(paths)
    assert len(read) == 5


# ---- the database --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [b"", b"nothing of the kind" * 100, None])
@pytest.mark.parametrize("name", ["files-*", "sketches-*"])
def test_a_damaged_file_is_made_anew(paths, read, damage, name):
    truth = everything(read_files(paths, min_side=None))
    whole = file(name).read_bytes()
    file(name).write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    for _ in range(3):
        assert everything(read_files(paths, min_side=None)) == truth
    read.clear()
    assert everything(read_files(paths, min_side=None)) == truth and read == []


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("files-*", "UPDATE files SET sha256 = zeroblob(32)"),
        ("files-*", "UPDATE files SET sha256 = 'text', mark = NULL"),
        ("files-*", "UPDATE files SET mark = (SELECT max(mark) FROM files), sha256 = (SELECT max(sha256) FROM files)"),
        ("files-*", "DROP TABLE files"),
        ("sketches-*", "UPDATE sketches SET cells = zeroblob(1024)"),
        ("sketches-*", "DELETE FROM sketches"),
        ("sketches-*", "UPDATE decoded SET facts = '[]'"),
        ("sketches-*", "UPDATE decoded SET facts = CAST('[]' AS BLOB)"),
        ("sketches-*", "UPDATE decoded SET facts = (SELECT min(facts) FROM decoded)"),
        ("sketches-*", "UPDATE decoded SET max_pixels = 5"),
        ("sketches-*", "DROP TABLE decoded"),
    ],
)
def test_rows_that_something_else_wrote(paths, read, name, command):
    truth = everything(read_files(paths, min_side=None))
    Path(paths[0]).write_bytes(b"now another size, so that facts differ")
    draw(paths[0], 77, (40, 20))
    truth = everything(read_images(paths, min_side=None))
    read_files(paths, min_side=None)
    with contextlib.closing(sqlite3.connect(file(name))) as other, other:
        other.execute(command)
    for _ in range(2):
        assert everything(read_files(paths, min_side=None)) == truth
    read.clear()
    assert everything(read_files(paths, min_side=None)) == truth and read == []


def test_facts_of_another_release_are_not_read(paths, read, monkeypatch):
    read_files(paths, min_side=None)
    read.clear()
    monkeypatch.setattr(sketchbook, "_FACTS", "format,mode")
    read_files(paths, min_side=None)
    assert len(read) == 5


@pytest.mark.parametrize("place", ["a file", "a long name", "no home"])
def test_a_cache_that_cannot_be_had(paths, place, monkeypatch, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ("file" if place == "a file" else "x" * 300)))
    if place == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError))
    for _ in range(2):
        assert hash_files(paths) == hash_images(paths)
        assert everything(read_files(paths, min_side=None)) == everything(read_images(paths, min_side=None))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can become somebody else")
def test_a_cache_that_may_not_be_looked_into(paths, tmp_path):
    """As somebody who may neither read nor write it, nor the folder that it is in."""
    hash_files(paths)
    shut = user_cache().parent
    program = (
        "import os, sys\n"
        "from transferkit.data.images.known_files import hash_files\n"
        "from transferkit.data.images.sketchbook import Sketchbook\n"
        "os.setuid(4242)\n"
        "print(len(hash_files(sys.argv[1:])), Sketchbook().digests(['ab' * 32]))\n"
    )
    shut.chmod(0o700)
    done = subprocess.run(
        [sys.executable, "-c", program, *paths], capture_output=True, encoding="utf-8", check=False,
        env={**os.environ, "XDG_CACHE_HOME": str(shut)},
    )  # fmt: skip
    assert (done.stdout, done.stderr, done.returncode) == ("5 {}\n", "", 0)


def test_a_file_that_is_read_only(paths, read, monkeypatch):
    hash_files(paths[:3])
    own = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **options: own(f"file:{path}?mode=ro", uri=True, **options))
    read.clear()
    for _ in range(2):
        assert [one.sha256 is None for one in hash_files(paths)] == [False] * 5
    assert read == ["3.png", "4.png"] * 2


def test_others_that_hold_it_cost_one_wait(paths, read, monkeypatch):
    monkeypatch.setattr(database, "WAIT_S", 0.01)
    hash_files(paths[:3])
    tries, own = [], sqlite3.connect
    with contextlib.closing(own(file())) as other:
        other.execute("BEGIN EXCLUSIVE")
        monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: (tries.append(1), own(*args, **options))[1])
        read.clear()
        assert hash_files(paths) == hash_images(paths)
        assert len(tries) == 1  # on disks whose locks do not work each would wait in vain
    monkeypatch.setattr(database, "WAIT_S", 20.0)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda path: hash_files([path]), paths * 3))
    read.clear()
    hash_files(paths)
    assert read == []


def test_several_processes_at_once(paths):
    program = (
        "import sys\n"
        "from transferkit.data.images import known_files\n"
        "known_files.TICK_NS = 0\n"
        "for _ in range(20):\n"
        "    known_files.read_files(sys.argv[1:], min_side=None, rescan=True)\n"
    )
    started = [subprocess.Popen([sys.executable, "-c", program, *paths]) for _ in range(3)]
    assert [one.wait() for one in started] == [0, 0, 0]
    assert None not in KnownFiles(paths).hashes
    with contextlib.closing(sqlite3.connect(file())) as other:
        assert other.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_more_than_fit_in_one_question(paths, read, monkeypatch):
    monkeypatch.setattr(database, "AT_ONCE", 2)
    monkeypatch.setattr(known_files, "_SLICE", 2)
    truth = everything(read_files(paths, min_side=None))
    read.clear()
    assert everything(read_files(paths, min_side=None)) == truth and read == []


# ---- its growth ----------------------------------------------------------------------------------------------------


@pytest.fixture
def on_day(monkeypatch):
    """Let so many days pass."""
    clock = known_files.time.time_ns

    def go(days):
        monkeypatch.setattr(known_files.time, "time_ns", lambda: clock() + days * DAY_NS)

    return go


def rows():
    with contextlib.closing(sqlite3.connect(file())) as other:
        return other.execute("SELECT count(*) FROM files").fetchone()[0]


def test_files_that_are_not_met_are_forgotten(paths, read, on_day):
    hash_files(paths)
    on_day(known_files.UNSEEN_DAYS - 1)
    read.clear()
    hash_files(paths[:2])  # met again
    assert read == [] and rows() == 5
    on_day(known_files.UNSEEN_DAYS)
    hash_files(paths[4:], rescan=True)
    assert rows() == 3
    read.clear()
    hash_files(paths)
    assert read == ["2.png", "3.png"]


def test_no_more_than_so_many_are_remembered(paths, monkeypatch, on_day):
    monkeypatch.setattr(known_files, "MOST", 3)
    for day, path in enumerate(paths):
        on_day(day)
        hash_files([path])
    assert rows() == 3
    assert [one is None for one in KnownFiles(paths).hashes] == [True, True, False, False, False]


def test_results_can_be_copied(paths):
    """The shape travels with a result, as a slot for its pixels is as large as that."""
    (one,) = read_files(paths[:1], min_side=None)
    assert replace(one, error="later").shape == (16, 20)
