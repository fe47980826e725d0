"""Folders: layouts, what is skipped, what is refused."""

import errno
import os
import random
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from data_sets import draw, folder, index, labels_of, refused, three_splits

from transferkit.core.errors import DataError
from transferkit.core.records import SkippedFile
from transferkit.data.scan.class_names import order_classes
from transferkit.data.scan.records import Kind
from transferkit.data.scan.scan import scan_data


def deny(monkeypatch, end):
    scandir = os.scandir

    def denied(path):
        if os.fspath(path).endswith(end):
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)


# --- classes ----------------------------------------------------------------------------------------------------------


def test_the_order_of_the_directory_does_not_matter(pets, monkeypatch):
    expected = index(pets)
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
    assert index(pets) == expected


def test_class_order(tmp_path):  # fault 7
    root = folder(tmp_path / "d", ["2", "10", "1", "b", "B2", "a"], count=1)
    assert index(root, val_split=0, test_split=0).class_names == ("1", "10", "2", "B2", "a", "b")
    accent = unicodedata.normalize("NFD", "é")  # as text 'e' + accent comes before 'f', NFC 'é' after 'z'
    assert order_classes([accent, "f", "z"]) == ("f", "z", accent)


def test_deeper_folders_belong_to_their_class(tmp_path):  # fault 8
    root = tmp_path / "d"
    for number, name in enumerate(["a/cat", "b/cat", "a/dog/deep"]):
        for picture in range(6):
            draw(root / name / f"{picture}.bmp", number * 100 + picture)
    indexed = index(root, val_split=0)
    assert indexed.class_names == ("a", "b")
    assert labels_of(indexed)["a/dog/deep/0.bmp"] == "a"
    note, scattered = indexed.findings
    assert "--group-by folder" in scattered.message
    assert note.kind == Kind.NOTE and note.items == ("cat",) and "are the folders 'a', 'b'" in note.message


def test_very_deep_folders(tmp_path):
    root = folder(tmp_path / "d", count=3)
    draw(root / "cat" / "deep.bmp", 7)
    here, limit, depth = Path.cwd(), sys.getrecursionlimit(), 1050
    sys.setrecursionlimit(1000)  # a compiler that ran before may have raised it, and paths end at 4,096 bytes
    try:
        os.chdir(root / "cat")
        for _ in range(depth):
            Path("d").mkdir()
            os.chdir("d")
        Path("bottom.bmp").write_bytes((root / "cat" / "deep.bmp").read_bytes())
        indexed = index(root, val_split=0, test_split=0)
    finally:  # pytest's own cleaning would recurse
        Path("bottom.bmp").unlink(missing_ok=True)
        while Path.cwd().name == "d" and Path.cwd() != root:
            os.chdir("..")
            Path("d").rmdir()
        os.chdir(here)
        sys.setrecursionlimit(limit)
    assert len(indexed.records) == 8 and max(len(record.path) for record in indexed.records) > 2 * depth


@pytest.mark.parametrize(
    ("first", "second"),
    [("Cat", "cat"), (unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")), ("cat", "cat ")],
)
def test_class_names_that_clash(tmp_path, first, second):  # fault 9
    _, (clash,) = refused(folder(tmp_path / "d", [first, second, "dog"], count=2), Kind.CLASS_NAMES)
    assert set(clash.items[0].split(" and ")) == {ascii(first), ascii(second)}


def test_class_names_that_clash_between_splits(tmp_path):  # fault 9
    folder(tmp_path / "d" / "train", ["Cat", "dog"], count=2)
    folder(tmp_path / "d" / "val", ["cat", "dog"], count=2, start=500)
    _, (clash, _) = refused(tmp_path / "d", Kind.CLASS_NAMES, Kind.UNTRAINED)
    assert clash.items == ("'Cat' and 'cat'",)


def test_class_names_that_cannot_be_used(tmp_path):  # fault 90
    bad = ["tab\there", os.fsdecode(b"latin\xe9"), " ", "back\\slash"]
    message, (finding,) = refused(folder(tmp_path / "d", ["ok", "fine", *bad], count=1), Kind.CLASS_NAMES)
    assert finding.items == tuple(sorted(bad))
    assert all(repr(name) in message for name in bad)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_data_missing_or_a_file(tmp_path, monkeypatch):  # fault 1
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    folder(tmp_path / "locked", count=1)
    deny(monkeypatch, "locked")
    for name, words in (
        ("none", "nothing found at"),
        ("notes.txt", "is a file - expected a folder"),
        ("locked", "Permission denied"),
    ):
        message, _ = refused(tmp_path / name)
        assert words in message and str(tmp_path / name) in message


def test_no_class_folders(tmp_path):  # fault 2
    for number in range(3):
        for place in ("flat", "splits/train", "splits/val"):
            draw(tmp_path / place / f"{number}.bmp", number)
    message, _ = refused(tmp_path / "flat")
    assert "found 3 pictures directly in the folder" in message and "/<class>/*.jpg" in message
    _, findings = refused(tmp_path / "splits", Kind.LAYOUT, Kind.LAYOUT, Kind.EMPTY)
    assert [len(finding.items) for finding in findings] == [3, 3, 0]


def test_unreadable_folder_inside(pets, monkeypatch):  # fault 22
    deny(monkeypatch, "dog")
    message, _ = refused(pets, Kind.LAYOUT, Kind.EMPTY)
    assert f"folders that cannot be read: '{pets}/dog': Permission denied" in message


# --- what is skipped --------------------------------------------------------------------------------------------------


def test_what_is_no_picture_is_skipped_by_rule(pets, tmp_path, without_heif):  # fault 22
    expected = labels_of(index(pets))
    cat = pets / "cat"
    for name in (".DS_Store", "Thumbs.db", "._000.bmp", ".hidden.bmp", "desktop.ini"):
        (cat / name).write_bytes(b"junk")
    draw(cat / "__MACOSX" / "1.bmp", 1)
    draw(cat / ".git" / "1.bmp", 1)
    assert index(pets).skipped == () and labels_of(index(pets)) == expected

    draw(cat / "folder.jpg" / "1.bmp", 2)
    for name in ("notes.txt", "meta.json", "noextension", "phone.HEIC"):
        (cat / name).write_bytes(b"x")
    draw(pets / "stray.bmp", 3)
    os.mkfifo(cat / "pipe.bmp")
    (cat / "dangling.bmp").symlink_to(tmp_path / "nowhere.bmp")
    (cat / "self.bmp").symlink_to(cat / "self.bmp")
    (cat / "loop").symlink_to(cat, target_is_directory=True)
    indexed = index(pets)
    assert labels_of(indexed) == expected
    reasons = {os.path.relpath(file.path, pets): file.reason for file in indexed.skipped}
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
    said = "4 files with endings none (1), .heic (1), .json (1), .txt (1) are not read; "
    assert indexed.notes == (f"{said}pip install 'transferkit[heif]' to read .heic",)


def test_links_are_followed(pets, tmp_path):  # fault 22
    elsewhere = folder(tmp_path / "elsewhere", ["emu"], count=8, start=9000)
    (pets / "emu").symlink_to(elsewhere / "emu", target_is_directory=True)
    (pets / "cat" / "link.bmp").symlink_to(draw(tmp_path / "one.bmp", 12345))
    (pets / "emu2").mkdir()
    (pets / "emu2" / "back").symlink_to(tmp_path / "elsewhere2", target_is_directory=True)
    folder(tmp_path / "elsewhere2", ["x"], count=8, start=9900)
    (tmp_path / "elsewhere2" / "round").symlink_to(tmp_path / "elsewhere2", target_is_directory=True)
    labels = labels_of(index(pets, val_split=0))
    for path, label in (("emu/000.bmp", "emu"), ("cat/link.bmp", "cat"), ("emu2/back/x/000.bmp", "emu2")):
        assert labels[path] == label
    assert sum(label == "emu2" for label in labels.values()) == 8


# --- folders with splits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_splits_of_the_folder_are_kept(tmp_path, val):
    indexed = index(three_splits(tmp_path / "d", val), val_split=0.5, test_split=0.4)
    for name, split in (("train", "train"), (val, "val"), ("test", "test")):
        assert {Path(record.path).parts[-3] for record in indexed.split(split)} == {name}
        assert len(indexed.split(split)) == 8


def test_odd_split_folders(tmp_path):
    root = three_splits(tmp_path / "d")
    draw(root / "extra" / "owl" / "1.bmp", 1)
    (root / "docs").mkdir()
    (root / "README.md").write_text("x", encoding="utf-8")
    _, (finding,) = refused(root, Kind.LAYOUT)
    assert finding.items == ("extra",)
    (root / "extra" / "owl" / "1.bmp").unlink()
    indexed = index(root)
    assert (
        len(indexed.records) == 24
        and SkippedFile(str(root / "README.md"), indexed.skipped[0].reason) in indexed.skipped
    )
    folder(root / "valid", count=1, start=7000)
    _, (finding,) = refused(root, Kind.LAYOUT)
    assert finding.items == ("val", "valid")
    folder(tmp_path / "e" / "val", count=2)
    _, (finding, _) = refused(tmp_path / "e", Kind.NO_TRAIN, Kind.UNTRAINED)
    assert finding.items == ("val",)


def test_a_class_may_be_called_train(tmp_path):
    indexed = index(folder(tmp_path / "d", ["train", "plane", "test"], count=3), val_split=0, test_split=0)
    assert indexed.class_names == ("plane", "test", "train")


def test_the_sample_set_is_a_data_set():
    indexed = index("sample")
    assert len(indexed.records) == 360 and indexed.root == "sample" and indexed.findings == ()


def test_paths_are_the_users(pets, monkeypatch):
    monkeypatch.setenv("HOME", str(pets.parent))
    assert scan_data(f"~/{pets.name}").files == scan_data(str(pets)).files


def test_a_folder_called_sample_is_never_taken_for_the_bundled_pictures(tmp_path, monkeypatch):  # fault 108
    monkeypatch.chdir(tmp_path)
    assert len(scan_data("sample").files) == 360
    for name in ("red", "blue"):
        (tmp_path / "sample" / name).mkdir(parents=True)
        (tmp_path / "sample" / name / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"'sample' stands for the bundled pictures, and there is .* pass '\./sample'"):
        scan_data("sample")
    assert scan_data("./sample").class_names == ("blue", "red")


# --- layouts as people have them --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("Training", "Testing"), ("train", "test")), (("seg_train", "seg_test"), ("train", "test")),
        (("training_set", "test_set"), ("train", "test")), (("TrainingSet", "validation-images"), ("train", "val")),
        (("train2017", "val2017"), ("train", "val")), (("train", "dev"), ("train", "val")),
    ],
)  # fmt: skip
def test_splits_by_other_names(tmp_path, names, splits):  # fault 95
    for number, name in enumerate(names):
        folder(tmp_path / "d" / name, count=3, start=5000 * number)
    scan = scan_data(str(tmp_path / "d"))
    assert scan.class_names == ("cat", "dog")
    assert {(Path(file.path).parts[-3], file.split) for file in scan.files} == set(zip(names, splits, strict=True))
    said = [note.message for note in scan.notes]
    assert all(any(repr(name) in message for message in said) for name in names if name not in ("train",))


@pytest.mark.parametrize(
    "names", [("test 1", "test 2", "train 3"), ("contest", "sunset", "trainer"), ("training", "testing")]
)
def test_classes_that_sound_like_splits(tmp_path, names):
    root = folder(tmp_path / "d", names, count=3)  # pictures directly inside: they are classes
    assert scan_data(str(root)).class_names == tuple(sorted(names))


def test_doubled_folders_and_pictures_without_classes(tmp_path):  # fault 95
    root = tmp_path / "d"
    folder(root / "seg_train" / "seg_train", count=4)
    folder(root / "seg_test" / "seg_test", count=2, start=5000)
    for number in range(3):
        draw(root / "seg_pred" / "seg_pred" / f"{number}.bmp", 9000 + number)
    scan = scan_data(str(root))
    assert scan.problems == ()
    assert (scan.class_names, len(scan.files), len(scan.skipped)) == (("cat", "dog"), 12, 3)
    (note,) = [note.message for note in scan.notes if "without classes" in note.message]
    assert note.startswith("3 pictures") and "transferkit predict RUN" in note and "seg_pred" in note


def test_loose_pictures_to_predict_beside_train(tmp_path):  # fault 95
    root = folder(tmp_path / "d" / "train", count=4).parent
    for number in range(3):
        draw(root / "test" / f"{number}.bmp", 9000 + number)
    indexed = index(root)
    assert indexed.class_names == ("cat", "dog")
    assert all(record.path.startswith(str(root / "train")) for record in indexed.records)
    assert any("3 pictures without classes are left out" in note for note in indexed.notes)
    draw(root / "val" / "0.bmp", 1)  # what is validated on needs classes
    _, (finding,) = refused(root, Kind.LAYOUT)
    assert "no class folders" in finding.message


def test_what_transferkit_wrote_is_no_class(pets):  # fault 96
    for name, mark in (("runs/pets-mini-1", "plan.json"), ("why", "explain.csv"), ("measured", "metrics.json")):
        draw(pets / name / "curves.bmp", 77)
        (pets / name / mark).write_text("{}", encoding="utf-8")
    scan = scan_data(str(pets))
    assert (scan.class_names, len(scan.files), scan.skipped) == (("cat", "dog"), 40, ())
    assert [note.message for note in scan.notes] == ["3 folders that transferkit itself wrote are left out"]


def test_a_folder_of_the_folder_that_was_meant(tmp_path):  # fault 97
    inner = folder(tmp_path / "archive" / "PetImages", count=2)
    with pytest.raises(DataError, match=f"2 folders of pictures: 'cat', 'dog' - pass '{inner}'"):
        scan_data(str(inner.parent))


def test_a_class_of_endings_that_are_not_read_says_so(pets, without_heif):  # fault 109
    for number in range(3):
        (pets / "emu").mkdir(exist_ok=True)
        (pets / "emu" / f"{number}.heic").write_bytes(b"x")
    _, (finding,) = refused(pets, Kind.EMPTY)
    said = "(3 files with endings .heic (3) are not read; pip install 'transferkit[heif]' to read .heic)"
    assert f"'emu' {said}" in finding.message
    with pytest.raises(DataError, match="found 0 pictures directly in the folder") as caught:
        scan_data(str(pets / "emu"))
    assert said in str(caught.value)


def test_names_are_the_same_under_every_locale(tmp_path):  # fault 102
    folder(tmp_path / "d", ["Kätzchen", "Öl"], count=2)
    code = "from transferkit.data.scan.scan import scan_data; print(ascii(scan_data('d').class_names))"
    for locale in ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONUTF8": "1"}):
        words = [sys.executable, "-c", code]
        done = subprocess.run(
            words, cwd=tmp_path, env=os.environ | locale, capture_output=True, encoding="utf-8", check=True
        )
        assert done.stdout.strip() == ascii(("Kätzchen", "Öl"))


def test_each_file_is_looked_at_once(tmp_path, monkeypatch):
    """Pictures of many classes on a network disk: each further look at every file is a wait for each."""
    for label in ("a", "b"):
        (tmp_path / "d" / label).mkdir(parents=True)
        for number in range(30):
            draw(tmp_path / "d" / label / f"{number}.png", number)
    looks = []
    real = os.scandir

    class Entry:
        def __init__(self, entry):
            self._entry = entry

        def __getattr__(self, name):
            value = getattr(self._entry, name)
            if name in ("stat", "is_file", "is_dir", "is_symlink"):
                looks.append(self._entry.path)
            return value

    class Listed:
        def __init__(self, folder):
            self._entries = real(folder)

        def __enter__(self):
            return (Entry(entry) for entry in self._entries)

        def __exit__(self, *_):
            self._entries.close()

    monkeypatch.setattr(os, "scandir", Listed)
    scan = scan_data(str(tmp_path / "d"))
    assert len(scan.files) == 60
    of_pictures = [path for path in looks if path.endswith(".png")]
    assert len(of_pictures) <= 60 + 2 * 2  # each once, and one of each class to see that it is one
