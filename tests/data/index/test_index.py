"""Data sets: layouts, what is skipped, what is refused, what is kept."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import re
import sys
import threading
import unicodedata
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transferkit.data.scan.problems import order_classes

from transferkit.core.errors import ConfigError, DataError, TransferkitWarning
from transferkit.core.records import ImageRecord, SkippedFile
from transferkit.core.text import listing
from transferkit.data.images.decode import UnreadableImage, decode_image
from transferkit.data.images.reading import read_images
from transferkit.data.index.index import ImageIndex, index_images
from transferkit.data.index.splits import unit_interval
from transferkit.data.scan.scan import scan_data


def draw(path, seed, size=(20, 16), mode="RGB", kind=None, **options):
    """Write noise. As BMP the bytes, and so the splits, are the same whatever the version of the encoder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path, kind, **options)
    return path


def folder(root, classes=("cat", "dog"), count=20, start=0):
    for number, name in enumerate(classes):
        for picture in range(count):
            draw(Path(root) / name / f"{picture:03}.bmp", start + 1000 * number + picture)
    return Path(root)


@pytest.fixture
def pets(tmp_path):
    return folder(tmp_path / "pets")


def table(path, *rows, header="path,label"):
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def labels_of(index):
    return {os.path.relpath(record.path, index.root): record.label for record in index.records}


def refused(data, match, **options):
    with pytest.raises(DataError, match=match) as caught:
        index_images(data, **options)
    assert "\n" not in str(caught.value) and caught.value.exit_status == 3
    return str(caught.value)


# --- the plain folder -------------------------------------------------------------------------------------------------


def test_a_plain_folder(pets):
    index = index_images(pets)
    assert index.root == str(pets) and index.class_names == ("cat", "dog")
    assert len(index.records) == 40 and index.skipped == () and index.notes == ()
    for record in index.records:
        assert record.sha256 == hashlib.sha256(Path(record.path).read_bytes()).hexdigest()
        assert Path(record.path).parent.name == record.label and record.path.startswith(str(pets))
    assert [record.path for record in index.records] == sorted(record.path for record in index.records)
    counts = index.counts()
    assert sum(sum(of.values()) for of in counts.values()) == 40
    for split in ("train", "val", "test"):
        assert Counter(record.label for record in index.split(split)) == Counter(counts[split])
        assert index.split(split)
    with pytest.raises(ConfigError, match="unknown split 'valid' - expected train, val, test"):
        index.split("valid")


def test_the_order_of_the_directory_does_not_matter(pets, monkeypatch):
    expected = index_images(pets)
    scandir = os.scandir

    class Shuffled:
        def __init__(self, path):
            self.inner = scandir(path)

        def __enter__(self):
            entries = list(self.inner)
            random.Random(1).shuffle(entries)
            return iter(entries)

        def __exit__(self, *_):
            self.inner.close()

    monkeypatch.setattr(os, "scandir", Shuffled)
    assert index_images(pets) == expected


def test_names_do_not_matter_to_split_and_digest(pets, tmp_path):
    before = index_images(pets)
    for record in before.records:
        Path(record.path).rename(Path(record.path).with_stem("x" + hashlib.md5(record.path.encode()).hexdigest()))
    pets.rename(tmp_path / "moved")
    after = index_images(tmp_path / "moved")
    assert {r.sha256: r.split for r in before.records} == {r.sha256: r.split for r in after.records}
    assert after.digest() == before.digest()


def test_the_digest_sees_content_label_and_split():
    def digest(*triples):
        records = tuple(ImageRecord(f"{n}", label, split, sha) for n, (sha, label, split) in enumerate(triples))
        return ImageIndex("r", ("a", "b"), records).digest()

    base = [("00", "a", "train"), ("11", "b", "val")]
    assert digest(*base) == digest(*reversed(base)) == hashlib.sha256(b"00\0a\0train\n11\0b\0val\n").hexdigest()
    others = [("01", "a", "train")], [("00", "b", "train")], [("00", "a", "val")], []
    assert len({digest(*base), *(digest(*other, base[1]) for other in others)}) == 5


def test_adding_pictures_moves_none(pets):
    before = {record.path: record.split for record in index_images(pets).records}
    for number in range(20):
        draw(pets / "cat" / f"new{number}.bmp", 50_000 + number)
    after = {record.path: record.split for record in index_images(pets).records}
    assert len(after) == 60 and all(after[path] == split for path, split in before.items())


def test_shares_and_seed(pets):
    assert set(index_images(pets, val_split=0, test_split=0).counts()) == {"train"}
    assert index_images(pets, seed=1).digest() != index_images(pets, seed=2).digest()
    for options, match in (
        ({"val_split": 1.0}, r"expected val_split in \[0, 1\), but got 1.0"),
        ({"test_split": -0.1}, r"expected test_split in \[0, 1\), but got -0.1"),
        ({"val_split": float("nan")}, "val_split"),
        ({"val_split": 0.5, "test_split": 0.5}, "leave nothing to train on"),
        ({"workers": 0, "min_side": 0, "keep_bytes": -1}, r"min_side .*keep_bytes .*workers "),
    ):
        with pytest.raises(ConfigError, match=match):
            index_images(pets, **options)


def test_class_order(tmp_path):  # fault 7
    root = folder(tmp_path / "d", ["2", "10", "1", "b", "B2", "a"], count=1)
    index = index_images(root, val_split=0, test_split=0)
    assert index.class_names == ("1", "10", "2", "B2", "a", "b")
    accent = unicodedata.normalize("NFD", "é")  # as text 'e' + accent comes before 'f', NFC 'é' after 'z'
    assert order_classes([accent, "f", "z"]) == ("f", "z", accent)


def test_deeper_folders_belong_to_their_class(tmp_path):  # fault 8
    root = tmp_path / "d"
    for number, name in enumerate(["a/cat", "b/cat", "a/dog/deep"]):
        for picture in range(6):
            draw(root / name / f"{picture}.bmp", number * 100 + picture)
    index = index_images(root, val_split=0)
    assert index.class_names == ("a", "b")
    assert labels_of(index)["a/dog/deep/0.bmp"] == "a"
    assert any("classes are the folders 'a', 'b'" in note and "'cat'" in note for note in index.notes)


def test_very_deep_folders(tmp_path):
    root = folder(tmp_path / "d", count=3)
    draw(root / "cat" / "deep.bmp", 7)
    here, depth = Path.cwd(), sys.getrecursionlimit() + 50
    try:
        os.chdir(root / "cat")
        for _ in range(depth):
            Path("d").mkdir()
            os.chdir("d")
        Path("bottom.bmp").write_bytes((root / "cat" / "deep.bmp").read_bytes())
        index = index_images(root, val_split=0, test_split=0)
    finally:  # pytest's own cleaning would recurse
        Path("bottom.bmp").unlink(missing_ok=True)
        while Path.cwd().name == "d" and Path.cwd() != root:
            os.chdir("..")
            Path("d").rmdir()
        os.chdir(here)
    assert len(index.records) == 8 and max(len(record.path) for record in index.records) > 2 * depth


# --- what is refused --------------------------------------------------------------------------------------------------


def test_data_missing_or_a_file(tmp_path, monkeypatch):  # fault 1
    refused(tmp_path / "none", "nothing found at .*none")
    (tmp_path / "notes.txt").write_text("x")
    refused(tmp_path / "notes.txt", "notes.txt' is a file - expected a folder")
    folder(tmp_path / "locked")

    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "scandir", denied)
    refused(tmp_path / "locked", "locked': Permission denied")


def test_no_class_folders(tmp_path):  # fault 2
    for number in range(3):
        draw(tmp_path / "flat" / f"{number}.bmp", number)
    refused(tmp_path / "flat", r"expected .*<class>.*\*.jpg.*found 3 pictures directly in the folder")
    for number in range(3):
        draw(tmp_path / "splits" / "train" / f"{number}.bmp", number)
        draw(tmp_path / "splits" / "val" / f"{number}.bmp", number)
    refused(tmp_path / "splits", r"no class folders in .*train.*found 3 pictures")


def test_empty_classes(pets):  # fault 3
    for name in ("ant", "bee", *(f"z{number:02}" for number in range(12))):
        (pets / name).mkdir()
    message = refused(pets, "classes without pictures")
    assert all(repr(name) in message for name in ("ant", "bee", *(f"z{number:02}" for number in range(12))))
    assert "--allow-empty-classes" in message
    index = index_images(pets, allow_empty_classes=True, val_split=0)
    assert index.class_names[:4] == ("ant", "bee", "cat", "dog")
    assert index.counts()["train"]["ant"] == 0


def test_one_class_only(tmp_path):  # fault 4
    refused(folder(tmp_path / "d", ["cat"]), "need at least 2 classes, found only 'cat'")


def test_nothing_at_all(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "d" / name).mkdir(parents=True)
    refused(tmp_path / "d", "no picture to train on", allow_empty_classes=True)


def test_class_with_one_picture(pets):  # fault 5
    draw(pets / "rare" / "1.bmp", 77_777)
    with pytest.warns(TransferkitWarning, match="single picture, which is used for training only: 'rare'"):
        index = index_images(pets, val_split=0.3, test_split=0.3)
    assert [record.split for record in index.records if record.label == "rare"] == ["train"]


def test_class_without_training_pictures_by_chance(pets):
    drawn = 0
    while True:  # a class of two pictures that the hash both puts elsewhere
        for number in range(2):
            draw(pets / "rare" / f"{number}.bmp", 90_000 + 10 * drawn + number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TransferkitWarning)
            index = index_images(pets, val_split=0.4, test_split=0.4)
        if moved := [note for note in index.notes if "moved to train" in note]:
            break
        drawn += 1
    assert "'rare'" in moved[0]
    assert index.counts()["train"]["rare"] == 1


def test_class_absent_from_val(tmp_path):  # fault 6
    root = folder(tmp_path / "d", count=40)
    for number in range(40):
        path = draw(root / "rare" / f"{number}.bmp", 60_000 + number)
        if unit_interval(0, f"image:{hashlib.sha256(path.read_bytes()).hexdigest()}") < 0.15:
            path.unlink()  # it would be drawn for val
    with pytest.warns(
        TransferkitWarning, match="classes without a val picture, whose val recall is therefore n/a: 'rare'"
    ):
        index = index_images(root, val_split=0.15, test_split=0)
    assert index.counts()["train"]["rare"] > 20 and index.counts()["val"]["rare"] == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index_images(root, val_split=0, test_split=0)


@pytest.mark.parametrize(
    ("first", "second"),
    [("Cat", "cat"), (unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")), ("cat", "cat ")],
)
def test_class_names_that_clash(tmp_path, first, second):  # fault 9
    message = refused(
        folder(tmp_path / "d", [first, second, "dog"], count=2), "differ only in case, accent form or spaces"
    )
    assert ascii(first) in message and ascii(second) in message and "dog" not in message


def test_class_names_that_clash_between_splits(tmp_path):  # fault 9
    folder(tmp_path / "d" / "train", ["Cat", "dog"], count=2)
    folder(tmp_path / "d" / "val", ["cat", "dog"], count=2, start=500)
    refused(tmp_path / "d", "'Cat' and 'cat'")


def test_class_names_that_cannot_be_used(tmp_path):  # fault 90
    root = folder(tmp_path / "d", ["ok", "fine", "tab\there", os.fsdecode(b"latin\xe9"), " ", "back\\slash"], count=1)
    message = refused(root, "class names that cannot be used")
    for name in (r"'tab\there'", r"'latin\udce9'", "' '", r"'back\\slash'"):
        assert name in message
    assert "'ok'" not in message


def test_bad_files_come_in_one_report(pets):  # faults 10, 11, 13, 14, 15
    (pets / "cat" / "empty.jpg").write_bytes(b"")
    (pets / "cat" / "page.jpg").write_bytes(b"<html></html>")
    whole = draw(pets / "dog" / "cut.jpg", 5, size=(200, 200)).read_bytes()
    (pets / "dog" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(draw(pets / "dog" / "flip.png", 6, size=(80, 80)).read_bytes())
    flipped[len(flipped) // 2] ^= 255
    (pets / "dog" / "flip.png").write_bytes(flipped)
    (pets / "none").mkdir()
    message = refused(pets, "4 unreadable pictures")
    assert all(name in message for name in ("empty.jpg", "page.jpg", "cut.jpg", "flip.png", "--skip-bad"))
    assert message.startswith("(1) ") and "(2) classes without pictures: 'none'" in message

    (pets / "none").rmdir()
    index = index_images(pets, skip_bad=True)
    assert {Path(file.path).name for file in index.skipped} == {"empty.jpg", "page.jpg", "cut.jpg", "flip.png"}
    assert all(file.reason for file in index.skipped) and len(index.records) == 40
    assert "4 unreadable pictures left out" in index.notes
    for file in index.skipped:
        Path(file.path).unlink()
    assert index_images(pets).records == index.records, "bad files do not move the split"


def test_a_class_of_bad_pictures_only(pets):
    (pets / "bad").mkdir()
    (pets / "bad" / "1.jpg").write_bytes(b"x")
    refused(pets, "classes without pictures: 'bad'", skip_bad=True)
    assert "bad" in index_images(pets, skip_bad=True, allow_empty_classes=True, val_split=0).class_names


def test_long_lists_are_cut(pets):
    for number in range(25):
        (pets / "cat" / f"bad{number:02}.jpg").write_bytes(b"")
    message = refused(pets, "25 unreadable pictures")
    assert message.count("the file is empty") == 10 and "and 15 more (25 in all)" in message
    assert listing(list("abc")) == "'a', 'b', 'c'" and listing(list("abc"), limit=1) == "'a' and 2 more (3 in all)"


# --- what is skipped --------------------------------------------------------------------------------------------------


def test_what_is_no_picture_is_skipped_by_rule(pets, tmp_path):  # fault 22
    expected = labels_of(index_images(pets))
    cat = pets / "cat"
    for name in (".DS_Store", "Thumbs.db", "._000.bmp", ".hidden.bmp", "desktop.ini"):
        (cat / name).write_bytes(b"junk")
    draw(cat / "__MACOSX" / "1.bmp", 1)
    draw(cat / ".git" / "1.bmp", 1)
    assert index_images(pets).skipped == () and labels_of(index_images(pets)) == expected

    draw(cat / "folder.jpg" / "1.bmp", 2)
    (cat / "notes.txt").write_text("x")
    (cat / "meta.json").write_text("{}")
    (cat / "noextension").write_text("x")
    (cat / "phone.HEIC").write_bytes(b"x")
    draw(pets / "stray.bmp", 3)
    os.mkfifo(cat / "pipe.bmp")
    (cat / "dangling.bmp").symlink_to(tmp_path / "nowhere.bmp")
    (cat / "self.bmp").symlink_to(cat / "self.bmp")
    (cat / "loop").symlink_to(cat, target_is_directory=True)
    index = index_images(pets)
    assert labels_of(index) == expected
    reasons = {os.path.relpath(file.path, pets): file.reason for file in index.skipped}
    for name, reason in {
        "cat/folder.jpg": "a folder with the name of a picture",
        "cat/notes.txt": "extension '.txt' is not that of a picture",
        "cat/meta.json": "extension '.json'",
        "cat/noextension": "extension ''",
        "cat/phone.HEIC": "extension '.heic'",
        "cat/pipe.bmp": "not a regular file",
        "cat/dangling.bmp": "a link that leads nowhere",
        "cat/self.bmp": "a link that leads nowhere",
        "stray.bmp": "lies beside the class folders",
    }.items():
        assert reasons[name].startswith(reason), name
    assert any("entered already" in reason for reason in reasons.values())
    assert "4 files skipped for their extension: 1 x '.heic', 1 x '.json', 1 x '.txt', 1 x 'none'" in index.notes


def test_links_are_followed(pets, tmp_path):  # fault 22
    elsewhere = folder(tmp_path / "elsewhere", ["emu"], count=8, start=9000)
    (pets / "emu").symlink_to(elsewhere / "emu", target_is_directory=True)
    real = draw(tmp_path / "one.bmp", 12345)
    (pets / "cat" / "link.bmp").symlink_to(real)
    (pets / "emu2").mkdir()
    (pets / "emu2" / "back").symlink_to(tmp_path / "elsewhere2", target_is_directory=True)
    folder(tmp_path / "elsewhere2", ["x"], count=8, start=9900)
    (tmp_path / "elsewhere2" / "round").symlink_to(tmp_path / "elsewhere2", target_is_directory=True)
    index = index_images(pets, val_split=0)
    labels = labels_of(index)
    assert (
        labels["emu/000.bmp"] == "emu" and labels["cat/link.bmp"] == "cat" and labels["emu2/back/x/000.bmp"] == "emu2"
    )
    assert sum(label == "emu2" for label in labels.values()) == 8


def test_unreadable_folder_inside(pets, monkeypatch):  # fault 22
    scandir = os.scandir

    def denied(path):
        if os.fspath(path).endswith("dog"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    refused(pets, r"folders that cannot be read: .*dog': Permission denied")


def test_unreadable_file_inside(pets, monkeypatch):  # fault 22
    read = Path.read_bytes

    def denied(self):
        if self.name == "003.bmp":
            raise PermissionError(errno.EACCES, "Permission denied")
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", denied)
    refused(pets, r"2 unreadable pictures: .*003.bmp' \(Permission denied\)")
    assert len(index_images(pets, skip_bad=True).records) == 38


def test_file_deleted_between_scan_and_read(pets, monkeypatch):  # fault 23
    gone = pets / "cat" / "003.bmp"

    def scan_then_delete(data):
        found = scan_data(data)
        gone.unlink(missing_ok=True)
        return found

    monkeypatch.setattr("transferkit.data.index.index.scan_data", scan_then_delete)
    refused(pets, rf"1 unreadable pictures: '{gone}' \(No such file or directory\)")
    with pytest.raises(UnreadableImage, match=str(gone)):
        decode_image(gone)


def test_odd_file_names(pets):  # fault 28
    names = ["with space.bmp", "new\nline.bmp", 'quo"te,comma.bmp', os.fsdecode(b"latin\xe9.bmp"), "x" * 250 + ".bmp"]
    for number, name in enumerate(names):
        draw(pets / "cat" / name, 4000 + number)
    index = index_images(pets)
    assert {f"cat/{name}" for name in names} <= set(labels_of(index))
    (pets / "cat" / os.fsdecode(b"\xe9\n.bmp")).write_bytes(b"")
    assert r"\udce9\n.bmp" in refused(pets, "1 unreadable pictures")


# --- leaks ------------------------------------------------------------------------------------------------------------


def test_equal_files_in_one_class_are_fine(pets):
    (pets / "cat" / "copy.bmp").write_bytes((pets / "cat" / "000.bmp").read_bytes())
    splits = {Path(record.path).name: record.split for record in index_images(pets).records if record.label == "cat"}
    assert splits["copy.bmp"] == splits["000.bmp"]


def test_equal_files_under_two_labels(pets):  # fault 24
    (pets / "dog" / "copy.bmp").write_bytes((pets / "cat" / "000.bmp").read_bytes())
    message = refused(pets, "1 pictures with more than one label")
    assert f"'{pets}/cat/000.bmp' = '{pets}/dog/copy.bmp'" in message and "--allow-leaks" in message
    with pytest.warns(TransferkitWarning, match="more than one label"):
        index = index_images(pets, allow_leaks=True)
    assert any("more than one label" in note for note in index.notes) and len(index.records) == 41


def three_splits(root, val="val"):
    for number, split in enumerate(("train", val, "test")):
        folder(root / split, count=4, start=number * 5000)
    return root


def test_equal_files_in_two_splits(tmp_path):  # fault 24
    root = three_splits(tmp_path / "d")
    (root / "test" / "cat" / "copy.bmp").write_bytes((root / "train" / "cat" / "000.bmp").read_bytes())
    message = refused(root, "1 pictures in more than one split")
    assert f"'{root}/test/cat/copy.bmp' = '{root}/train/cat/000.bmp'" in message
    with pytest.warns(TransferkitWarning, match="more than one split"):
        index_images(root, allow_leaks=True)


# --- folders with splits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_splits_of_the_folder_are_kept(tmp_path, val):
    index = index_images(three_splits(tmp_path / "d", val), val_split=0.5, test_split=0.4)
    for name, split in (("train", "train"), (val, "val"), ("test", "test")):
        assert {Path(record.path).parts[-3] for record in index.split(split)} == {name}
        assert len(index.split(split)) == 8


def test_val_is_drawn_from_train_when_there_is_none(tmp_path):
    root = tmp_path / "d"
    folder(root / "train", count=30)
    folder(root / "test", count=4, start=5000)
    index = index_images(root, val_split=0.3, test_split=0.4)
    assert {Path(record.path).parts[-3] for record in index.split("test")} == {"test"} and len(index.split("test")) == 8
    assert len(index.split("train")) + len(index.split("val")) == 60 and index.split("val")
    alone = index_images(folder(tmp_path / "e" / "train", count=30).parent, val_split=0.3, test_split=0.4)
    assert set(alone.counts()) == {"train", "val"}
    assert {r.sha256 for r in alone.split("val")} == {r.sha256 for r in index.split("val")}


def test_no_test_split_is_made_when_val_is_given(tmp_path):
    root = tmp_path / "d"
    folder(root / "train", count=10)
    folder(root / "val", count=3, start=5000)
    assert set(index_images(root, test_split=0.4).counts()) == {"train", "val"}


def test_indices_come_from_names_not_from_each_split(tmp_path):  # fault 6, trap 26
    root = tmp_path / "d"
    folder(root / "train", ["ant", "bee", "cat"], count=3)
    folder(root / "val", ["bee", "cat"], count=3, start=5000)
    with pytest.warns(TransferkitWarning, match="without a val picture.*'ant'"):
        index = index_images(root)
    assert index.class_names == ("ant", "bee", "cat")
    assert index.counts()["val"] == {"ant": 0, "bee": 3, "cat": 3}


def test_class_missing_from_train(tmp_path):  # fault 6
    root = three_splits(tmp_path / "d")
    draw(root / "val" / "emu" / "1.bmp", 99)
    draw(root / "test" / "emu" / "1.bmp", 98)
    refused(root, r"classes without training pictures that other splits have: 'emu' \(test, val\)")
    (root / "train" / "emu").mkdir()
    refused(root, "classes without training pictures that other splits have: 'emu'", allow_empty_classes=True)


def test_odd_split_folders(tmp_path):
    root = three_splits(tmp_path / "d")
    draw(root / "extra" / "1.bmp", 1)
    (root / "docs").mkdir()
    (root / "README.md").write_text("x")
    refused(root, "folders with pictures beside the split folders: 'extra'")
    (root / "extra" / "1.bmp").unlink()
    index = index_images(root)
    assert len(index.records) == 24 and SkippedFile(str(root / "README.md"), index.skipped[0].reason) in index.skipped
    folder(root / "valid", count=1, start=7000)
    refused(root, "several folders for the val split: 'val', 'valid'")
    folder(tmp_path / "e" / "val", count=2)
    refused(tmp_path / "e", "no train folder beside 'val'")


def test_a_class_may_be_called_train(tmp_path):
    index = index_images(folder(tmp_path / "d", ["train", "plane", "test"], count=3), val_split=0, test_split=0)
    assert index.class_names == ("plane", "test", "train")


# --- manifests --------------------------------------------------------------------------------------------------------


def test_a_manifest_without_splits_is_split_like_the_folder(pets):
    rows = [f"{label}/{number:03}.bmp,{label}" for label in ("dog", "cat") for number in range(20)]
    manifest = table(pets / "all.csv", *rows)
    by_table, by_folder = index_images(manifest), index_images(pets)
    assert by_table.records == by_folder.records and by_table.class_names == by_folder.class_names
    assert index_images(table(pets / "split.csv", *(f"{row}," for row in rows), header="path,label,split")).records


def test_a_manifest_with_splits_and_groups(pets):
    splits = ["train"] * 12 + ["validation"] * 4 + ["TEST"] * 4
    rows = [f"{label}/{n:03}.bmp,{label},{splits[n]},{label}{n // 4}" for label in ("dog", "cat") for n in range(20)]
    index = index_images(table(pets / "m.csv", *rows, header="path,label,split,group"))
    assert index.counts() == {s: {"cat": n, "dog": n} for s, n in (("train", 12), ("val", 4), ("test", 4))}
    assert {record.group for record in index.split("test")} == {"cat4", "dog4"}


def test_groups_of_a_manifest_stay_together(pets):
    rows = [f"{label}/{n:03}.bmp,{label},g{n // 2}" for label in ("dog", "cat") for n in range(20)]
    index = index_images(table(pets / "m.csv", *rows, header="path,label,group"), val_split=0.3, test_split=0.3)
    places = {}
    for record in index.records:
        assert places.setdefault(record.group, record.split) == record.split
    assert len(set(places.values())) == 3


def test_group_in_two_splits(pets):  # fault 24
    rows = ["cat/000.bmp,cat,train,g", "cat/001.bmp,cat,val,g", "dog/000.bmp,dog,train,", "dog/001.bmp,dog,val,"]
    manifest = table(pets / "m.csv", *rows, header="path,label,split,group")
    refused(manifest, "1 groups in more than one split: 'g'")
    with pytest.warns(TransferkitWarning, match="1 groups in more than one split"):
        index_images(manifest, allow_leaks=True)


def test_manifest_val_from_train(pets):
    rows = [f"{c}/{n:03}.bmp,{c},{'test' if n < 4 else 'train'}" for c in ("cat", "dog") for n in range(20)]
    index = index_images(table(pets / "m.csv", *rows, header="path,label,split"), val_split=0.3, test_split=0.5)
    assert len(index.split("test")) == 8 and index.split("val")
    assert all(int(Path(record.path).stem) < 4 for record in index.split("test"))


@pytest.mark.parametrize(
    "path", ["/etc/passwd.bmp", "../out.bmp", "cat/../../out.bmp", "C:\\x.bmp", "\\x.bmp", "cat\\..\\..\\x.bmp", "a/.."]
)
def test_paths_that_leave_the_folder(pets, path):  # fault 90
    rows = ["cat/000.bmp,cat", "dog/000.bmp,dog", f"{path},cat"]
    message = refused(table(pets / "m.csv", *rows), "paths that are absolute or lead out of the manifest's folder")
    assert repr(path) in message and "line 4" in message


@pytest.mark.parametrize("label", ["../x", "a/b", "..", "a\\b", '"a\tb"'])
def test_labels_that_are_no_names(pets, label):  # fault 90
    manifest = table(pets / "m.csv", "cat/000.bmp,cat", "dog/000.bmp,dog", f"cat/001.bmp,{label}")
    refused(manifest, "class names that cannot be used")


def test_odd_names_in_a_manifest(pets):  # fault 28
    names = ["a b.bmp", "new\nline.bmp", 'quo"te,comma.bmp', os.fsdecode(b"latin\xe9.bmp")]
    for number, name in enumerate(names):
        draw(pets / "cat" / name, 4000 + number)
    quoted = ['"cat/' + name.replace('"', '""') + '",cat' for name in names]
    text = "\n".join(["\ufeffpath,label", *quoted, "dog/000.bmp,dog"]) + "\n"
    (pets / "m.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    index = index_images(pets / "m.csv", val_split=0)
    assert {Path(record.path).name for record in index.records} == {*names, "000.bmp"}


def test_all_bad_rows_in_one_report(pets):
    rows = [
        "cat/000.bmp,cat,train",
        "cat/000.bmp,dog,train",
        "./cat/000.bmp,cat,train",
        "dog/000.bmp,,train",
        "dog/001.bmp,dog,trian",
        "dog/002.bmp,dog,",
        "dog/404.bmp,dog,val",
    ]
    message = refused(table(pets / "m.csv", *rows, header="path,label,split"), "rows without a path or a label: line 5")
    for part in (
        r"'cat/000.bmp' \(line 2 and line 3\), './cat/000.bmp' \(line 2 and line 4\)",
        r"unknown splits: 'trian' \(line 6\)",
        "rows without a split while others have one: line 7",
        r"dog/404.bmp' \(No such file",
    ):
        assert re.search(part, message), part


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "no column 'path'"),
        ("path,label\n", "has no rows"),
        ("path;label\na;b\n", "separated by commas"),
        ("path,lable\na,b\n", "unknown column 'lable'. Did you mean 'label'?"),
        ("path,label,spilt\na,b,train\n", "unknown column 'spilt'. Did you mean 'split'?"),
        ("path,label,label\na,b,c\n", "column 'label' appears twice"),
        ("path,label\na,b,c\n", "rows with another number of cells than the 2 columns: line 2: 3"),
        ('path,label\n"a,b\n', "is not CSV"),
        ("path,label,split\na.bmp,b,test\n", "no row whose split is 'train'"),
    ],
)
def test_tables_that_are_no_manifest(tmp_path, text, match):
    (tmp_path / "m.csv").write_text(text)
    refused(tmp_path / "m.csv", match)


def test_other_columns_are_told(pets):
    manifest = table(pets / "m.csv", "cat/000.bmp,cat,3", "dog/000.bmp,dog,4", header="path,label,width")
    assert "columns of the manifest that are not used: 'width'" in index_images(manifest, val_split=0).notes


def test_unreadable_manifest(pets, monkeypatch):  # fault 1
    manifest = table(pets / "m.csv", "cat/000.bmp,cat")

    def denied(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    refused(manifest, "cannot read manifest .*m.csv': Permission denied")


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "m.parquet").write_bytes(b"PAR1")
    refused(tmp_path / "m.parquet", "needs pyarrow: run 'pip install pyarrow', or write the manifest as CSV")


def test_parquet(pets):
    import pyarrow
    from pyarrow import parquet

    rows = [(f"{c}/{n:03}.bmp", c, "val" if n > 15 else "train", None) for c in ("cat", "dog") for n in range(20)]
    columns = dict(zip(("path", "label", "split", "group"), map(list, zip(*rows, strict=True)), strict=True))
    parquet.write_table(pyarrow.table(columns), pets / "m.parquet")
    text = [",".join(cell or "" for cell in row) for row in rows]
    expected = index_images(table(pets / "m.csv", *text, header="path,label,split,group"))
    assert index_images(pets / "m.parquet").records == expected.records
    (pets / "bad.parquet").write_bytes(b"no parquet")
    refused(pets / "bad.parquet", "is not Parquet")


# --- one pass of reading ----------------------------------------------------------------------------------------------


def test_results_are_in_order_for_any_number_of_workers(pets):
    paths = [str(path) for path in sorted(pets.rglob("*.bmp"), reverse=True)] + [str(pets / "gone.bmp")]
    one, four = (read_images(paths, min_side=None, keep_bytes=10**9, workers=workers) for workers in (1, 4))
    assert one == four and [result.path for result in one] == paths
    for result, other in zip(one[:-1], four, strict=False):
        np.testing.assert_array_equal(result.pixels, decode_image(result.path))
        np.testing.assert_array_equal(result.pixels, other.pixels)
        assert (result.info.width, result.info.height, result.error) == (20, 16, None)
    assert (one[-1].sha256, one[-1].pixels, one[-1].error) == (None, None, "No such file or directory")


@pytest.mark.parametrize("workers", [1, 3])
def test_the_budget_is_spent_in_input_order(tmp_path, workers):
    sizes = [(10, 10), (50, 50), (10, 10), (10, 10), (10, 10)]
    paths = [str(draw(tmp_path / f"{n}.bmp", n, size)) for n, size in enumerate(sizes)]
    kept = [r.pixels is not None for r in read_images(paths, min_side=None, keep_bytes=900, workers=workers)]
    assert kept == [True, False, True, True, False]
    assert all(r.pixels is None for r in read_images(paths, min_side=None, workers=workers))


def test_equal_files_are_kept_once(tmp_path):
    first = draw(tmp_path / "a.bmp", 1, (10, 10))
    (tmp_path / "b.bmp").write_bytes(first.read_bytes())
    a, b = read_images([str(first), str(tmp_path / "b.bmp")], min_side=None, keep_bytes=300)
    assert a.pixels is b.pixels and a.pixels is not None


def test_memory_is_bounded(tmp_path, monkeypatch):
    paths = [str(draw(tmp_path / f"{n}.bmp", n)) for n in range(40)]
    started, lock, worst, done = [0], threading.Lock(), [0], [0]
    from transferkit.data.images import reading

    read = reading.read_bytes

    def counting(path):
        with lock:
            started[0] += 1
            worst[0] = max(worst[0], started[0] - done[0])
        return read(path)

    def progress(count):
        with lock:
            done[0] = count

    monkeypatch.setattr(reading, "read_bytes", counting)
    read_images(paths, min_side=None, workers=3, progress=progress)
    assert done[0] == 40 and worst[0] <= 2 * 3 + 1


def test_an_interrupt_stops_the_pool(tmp_path):
    paths = [str(draw(tmp_path / f"{n}.bmp", n)) for n in range(30)]

    def stop(done):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_images(paths, min_side=None, workers=2, progress=stop)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read")]


def test_a_changed_bit_is_seen_by_the_hash(pets):  # fault 12
    photo = draw(pets / "cat" / "photo.jpg", 1, size=(64, 64))
    before = index_images(pets)
    data = bytearray(photo.read_bytes())
    data[-40] ^= 1
    photo.write_bytes(data)
    decode_image(photo)  # no error to see
    assert index_images(pets).digest() != before.digest()


def test_pixels_are_those_of_the_decoder(tmp_path):
    root = tmp_path / "d"
    for number in range(8):
        draw(root / "ab"[number % 2] / f"{number}.jpg", number, size=(320, 240))
    index = index_images(root, min_side=60, keep_bytes=10**8, workers=2, val_split=0)
    assert len(index.pixels) == 8
    for record in index.records:
        assert index.pixels[record.sha256].shape == (60, 80, 3)
        np.testing.assert_array_equal(index.pixels[record.sha256], decode_image(record.path, min_side=60))
    assert index == index_images(root, val_split=0) and "pixels=" not in repr(index)


def test_progress(pets):
    seen = []
    index_images(pets, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(number, 40) for number in range(1, 41)]


# --- notes ------------------------------------------------------------------------------------------------------------


def test_notes_count_what_is_special(pets):  # faults 14, 18, 19, 20, 29
    draw(pets / "cat" / "grey.png", 1, mode="L")
    draw(pets / "cat" / "clear.png", 2, mode="RGBA")
    draw(pets / "cat" / "png.jpg", 3, kind="PNG")
    draw(pets / "cat" / "print.jpg", 4, mode="CMYK")
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).save(pets / "cat" / "deep.png")
    frames = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (0, 99, 200)]
    frames[0].save(pets / "cat" / "film.gif", save_all=True, append_images=frames[1:])
    notes = "; ".join(index_images(pets).notes)
    for part in (
        "of 46 pictures: some are greyscale",
        "1 of 46 pictures: 16-bit greyscale: scaled to 8 bits",
        "1 of 46 pictures: with transparency: laid over white",
        "1 of 46 pictures: in CMYK",
        "1 of 46 pictures: with several frames or pages: the first is used",
        "1 of 46 pictures: with an extension that does not match the content: read by content",
    ):
        assert part in notes


def test_all_grey_is_said(tmp_path):  # fault 29
    for number in range(8):
        draw(tmp_path / "d" / "ab"[number % 2] / f"{number}.bmp", number, mode="L")
    index = index_images(tmp_path / "d", val_split=0)
    assert "8 of 8 pictures: all are greyscale: their one channel is used for all three" in index.notes
