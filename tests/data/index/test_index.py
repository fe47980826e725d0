"""The index of a data set: its checks, its splits, what it keeps and what it tells."""

import errno
import hashlib
import itertools
import os
import pickle
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from data_sets import draw, folder, index, labels_of, memory_only, refused, table, three_splits
from PIL import Image

from transferkit.core.errors import ConfigError, DataError, TransferkitWarning
from transferkit.core.records import Finding, ImageRecord
from transferkit.data.images.decode import UnreadableImage, decode_image
from transferkit.data.index.checks import odd_labels
from transferkit.data.index.index import ImageIndex, warn_of
from transferkit.data.index.splits import unit_interval
from transferkit.data.index.targets import ClassTargets
from transferkit.data.scan.records import Kind
from transferkit.data.scan.scan import scan_data


def of_kind(indexed, kind):
    """Items of the findings of a kind."""
    return [finding.items for finding in indexed.findings if finding.kind == kind]


# --- the plain folder -------------------------------------------------------------------------------------------------


def test_a_plain_folder(pets):
    indexed = index(pets)
    assert indexed.root == str(pets) and indexed.class_names == ("cat", "dog")
    assert len(indexed.records) == 40 and indexed.skipped == () and indexed.findings == ()
    for record in indexed.records:
        assert record.sha256 == hashlib.sha256(Path(record.path).read_bytes()).hexdigest()
        assert Path(record.path).parent.name == record.label and record.path.startswith(str(pets))
    assert [record.path for record in indexed.records] == sorted(record.path for record in indexed.records)
    counts = indexed.counts()
    assert sum(sum(of.values()) for of in counts.values()) == 40
    for split in ("train", "val", "test"):
        assert Counter(record.label for record in indexed.split(split)) == Counter(counts[split])
        assert indexed.split(split)
    with pytest.raises(ConfigError, match="unknown split 'valid' - expected train, val, test"):
        indexed.split("valid")


def test_names_do_not_matter_to_split_and_digest(pets, tmp_path):
    before = index(pets)
    for record in before.records:
        Path(record.path).rename(Path(record.path).with_stem("x" + hashlib.md5(record.path.encode()).hexdigest()))
    pets.rename(tmp_path / "moved")
    after = index(tmp_path / "moved")
    assert {r.sha256: r.split for r in before.records} == {r.sha256: r.split for r in after.records}
    assert after.digest() == before.digest()


def test_the_digest_sees_content_label_and_split():
    def digest(*triples):
        records = tuple(ImageRecord(f"{n}", label, split, sha) for n, (sha, label, split) in enumerate(triples))
        return ImageIndex("r", ClassTargets(("a", "b")), records).digest()

    base = [("00", "a", "train"), ("11", "b", "val")]
    assert digest(*base) == digest(*reversed(base)) == hashlib.sha256(b"00\0a\0train\n11\0b\0val\n").hexdigest()
    others = [("01", "a", "train")], [("00", "b", "train")], [("00", "a", "val")], []
    assert len({digest(*base), *(digest(*other, base[1]) for other in others)}) == 5


def test_shares_and_seed(pets):
    assert set(index(pets, val_split=0, test_split=0).counts()) == {"train"}
    assert index(pets, seed=1).digest() != index(pets, seed=2).digest()


def test_arguments_out_of_range(pets):
    with pytest.raises(ConfigError, match="min_side .*workers "):
        index(pets, workers=0, min_side=0)


def test_labels_mean_classes_by_name():
    targets = ClassTargets(("ant", "\u00e9mu", "fox"))
    assert targets.encode(["fox", "e\u0301mu", "ant", "fox"]).tolist() == [2, 1, 0, 2]  # NFC and NFD are one name
    assert targets.find("wolf") is None and targets.spec.names == ("ant", "\u00e9mu", "fox")
    assert targets.strata(["fox", "ant"]).tolist() == [2, 0]
    with pytest.raises(DataError, match="'foxx' is not one of the classes. Did you mean 'fox'?"):
        targets.encode(["foxx"])


# --- classes without pictures -----------------------------------------------------------------------------------------


def test_empty_classes(pets):  # fault 3
    empty = ("ant", "bee", *(f"z{number:02}" for number in range(12)))
    for name in empty:
        (pets / name).mkdir()
    message, (finding,) = refused(pets, Kind.EMPTY)
    assert finding.items == empty and all(repr(name) in message for name in empty)
    assert "--allow-empty-classes" in message
    indexed = index(pets, allow_empty_classes=True, val_split=0)
    assert indexed.class_names[:4] == ("ant", "bee", "cat", "dog")
    assert indexed.counts()["train"]["ant"] == 0


def test_one_class_only(tmp_path):  # fault 4
    assert "found only 'cat'" in refused(folder(tmp_path / "d", ["cat"], count=2), Kind.ONE_CLASS)[0]


def test_nothing_at_all(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "d" / name).mkdir(parents=True)
    assert "no picture to train on" in refused(tmp_path / "d", Kind.EMPTY, allow_empty_classes=True)[0]


def test_class_with_one_picture(pets):  # fault 5
    draw(pets / "rare" / "1.bmp", 77_777)
    indexed = index(pets, val_split=0.3, test_split=0.3)
    assert of_kind(indexed, Kind.THIN) == [("rare",)] and indexed.notes == ()
    assert [record.split for record in indexed.records if record.label == "rare"] == ["train"]
    with pytest.warns(TransferkitWarning, match="single picture, which is used for training only: 'rare'"):
        assert warn_of(indexed) is indexed


def test_class_without_training_pictures_by_chance(pets):
    drawn = 0
    while True:  # a class of two pictures that the hash both puts elsewhere
        for number in range(2):
            draw(pets / "rare" / f"{number}.bmp", 90_000 + 10 * drawn + number)
        indexed = index(pets, val_split=0.4, test_split=0.4)
        if moved := of_kind(indexed, Kind.NOTE):
            break
        drawn += 1
    assert moved == [("rare",)]
    assert indexed.notes == ("pictures moved to train, where their classes had none: 'rare'",)
    assert indexed.counts()["train"]["rare"] == 1


def test_class_absent_from_val(tmp_path):  # fault 6
    root = folder(tmp_path / "d", count=40)
    for number in range(40):
        path = draw(root / "rare" / f"{number}.bmp", 60_000 + number)
        if unit_interval(0, f"image:{hashlib.sha256(path.read_bytes()).hexdigest()}") < 0.15:
            path.unlink()  # it would be drawn for val
    indexed = index(root, val_split=0.15, test_split=0)
    with pytest.warns(TransferkitWarning, match="without a val picture, whose val recall is therefore n/a: 'rare'"):
        warn_of(indexed)
    assert indexed.counts()["train"]["rare"] > 20 and indexed.counts()["val"]["rare"] == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert warn_of(index(root, val_split=0, test_split=0)).findings == ()


def test_class_missing_from_train(tmp_path):  # fault 6
    root = three_splits(tmp_path / "d")
    draw(root / "val" / "emu" / "1.bmp", 99)
    draw(root / "test" / "emu" / "1.bmp", 98)
    message, (finding,) = refused(root, Kind.UNTRAINED)
    assert "'emu' (test, val)" in message and finding.items == ("emu",)
    (root / "train" / "emu").mkdir()
    refused(root, Kind.UNTRAINED, allow_empty_classes=True)


# --- pictures that cannot be read -------------------------------------------------------------------------------------


def test_bad_files_come_in_one_report(pets):  # faults 10, 11, 13, 14, 15
    names = ("empty.jpg", "page.jpg", "cut.jpg", "flip.png")
    (pets / "cat" / "empty.jpg").write_bytes(b"")
    (pets / "cat" / "page.jpg").write_bytes(b"<html></html>")
    whole = draw(pets / "dog" / "cut.jpg", 5, size=(200, 200)).read_bytes()
    (pets / "dog" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(draw(pets / "dog" / "flip.png", 6, size=(80, 80)).read_bytes())
    flipped[len(flipped) // 2] ^= 255
    (pets / "dog" / "flip.png").write_bytes(flipped)
    (pets / "none").mkdir()
    message, _ = refused(pets, Kind.UNREADABLE, Kind.EMPTY)
    assert message.startswith("(1) 4 unreadable pictures: ") and "; (2) classes without pictures: 'none'" in message
    assert all(name in message for name in (*names, "--skip-bad"))

    (pets / "none").rmdir()
    indexed = index(pets, skip_bad=True)
    assert {Path(file.path).name for file in indexed.skipped} == set(names)
    assert all(file.reason for file in indexed.skipped) and len(indexed.records) == 40
    assert "4 unreadable pictures left out" in indexed.notes
    for file in indexed.skipped:
        Path(file.path).unlink()
    assert index(pets).records == indexed.records, "bad files do not move the split"


def test_a_class_of_bad_pictures_only(pets):
    (pets / "bad").mkdir()
    (pets / "bad" / "1.jpg").write_bytes(b"x")
    assert refused(pets, Kind.EMPTY, skip_bad=True)[1][0].items == ("bad",)
    assert "bad" in index(pets, skip_bad=True, allow_empty_classes=True, val_split=0).class_names


def test_long_lists_are_cut_in_the_message(pets):
    for number in range(25):
        (pets / "cat" / f"bad{number:02}.jpg").write_bytes(b"")
    message, (finding,) = refused(pets, Kind.UNREADABLE)
    assert message.count("the file is empty") == 10 and "and 15 more (25 in all)" in message
    assert len(finding.items) == 25


def test_an_error_and_its_findings_travel_between_processes():
    error = DataError("wrong", [Finding(Kind.LEAK, "equal", ("a", "b"))])
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == "wrong" and again.findings == error.findings and again.findings[0].kind == Kind.LEAK


def test_unreadable_file_inside(pets, monkeypatch):  # fault 22
    read = Path.read_bytes

    def denied(self):
        if self.name == "003.bmp":
            raise PermissionError(errno.EACCES, "Permission denied")
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", denied)
    _, (finding,) = refused(pets, Kind.UNREADABLE)
    assert finding.items == tuple(f"'{pets}/{name}/003.bmp' (Permission denied)" for name in ("cat", "dog"))
    assert len(index(pets, skip_bad=True).records) == 38


def test_file_deleted_between_scan_and_read(pets, monkeypatch):  # fault 23
    gone = pets / "cat" / "003.bmp"

    def scan_then_delete(data, columns):
        indexed = scan_data(data, columns)
        gone.unlink(missing_ok=True)
        return indexed

    monkeypatch.setattr("transferkit.data.index.index.scan_data", scan_then_delete)
    assert refused(pets, Kind.UNREADABLE)[1][0].items == (f"'{gone}' (No such file or directory)",)
    with pytest.raises(UnreadableImage, match=str(gone)):
        decode_image(gone)


def test_odd_file_names(pets):  # fault 28
    names = ["with space.bmp", "new\nline.bmp", 'quo"te,comma.bmp', os.fsdecode(b"latin\xe9.bmp"), "x" * 250 + ".bmp"]
    for number, name in enumerate(names):
        draw(pets / "cat" / name, 4000 + number)
    assert {f"cat/{name}" for name in names} <= set(labels_of(index(pets)))
    (pets / "cat" / os.fsdecode(b"\xe9\n.bmp")).write_bytes(b"")
    assert r"\udce9\n.bmp" in refused(pets, Kind.UNREADABLE)[0]


def test_a_changed_bit_is_seen_by_the_hash(pets):  # fault 12
    photo = draw(pets / "cat" / "photo.jpg", 1, size=(64, 64))
    before = index(pets)
    data = bytearray(photo.read_bytes())
    data[-40] ^= 1
    photo.write_bytes(data)
    decode_image(photo)  # no error to see
    assert index(pets).digest() != before.digest()


# --- leaks ------------------------------------------------------------------------------------------------------------


def two_labels(root):
    folder(root)
    (root / "dog" / "copy.bmp").write_bytes((root / "cat" / "000.bmp").read_bytes())
    return root, f"'{root}/cat/000.bmp' = '{root}/dog/copy.bmp'", "1 pictures with more than one label"


def two_splits(root):
    three_splits(root)
    (root / "test" / "cat" / "copy.bmp").write_bytes((root / "train" / "cat" / "000.bmp").read_bytes())
    return root, f"'{root}/test/cat/copy.bmp' = '{root}/train/cat/000.bmp'", "1 pictures in more than one split"


def a_group(root):
    folder(root, count=2)
    rows = ["cat/000.bmp,cat,train,g", "cat/001.bmp,cat,val,g", "dog/000.bmp,dog,train,", "dog/001.bmp,dog,val,"]
    return table(root / "m.csv", *rows, header="path,label,split,group"), "g", "1 groups in more than one split: 'g'"


@pytest.mark.parametrize("make", [two_labels, two_splits, a_group])
def test_leaks(tmp_path, make):  # fault 24
    data, item, words = make(tmp_path / "d")
    message, (finding,) = refused(data, Kind.LEAK)
    assert finding.items == (item,) and words in message and "--allow-leaks" in message
    indexed = index(data, allow_leaks=True)
    assert of_kind(indexed, Kind.LEAK) == [(item,)] and any(words in note for note in indexed.notes)
    with pytest.warns(TransferkitWarning, match=words):
        warn_of(indexed)


# --- splits of the data set -------------------------------------------------------------------------------------------


def test_val_is_drawn_from_train_when_there_is_none(tmp_path):
    root = tmp_path / "d"
    folder(root / "train", count=30)
    folder(root / "test", count=4, start=5000)
    indexed = index(root, val_split=0.3, test_split=0.4)
    assert {Path(record.path).parts[-3] for record in indexed.split("test")} == {"test"} and len(
        indexed.split("test")
    ) == 8
    assert len(indexed.split("train")) + len(indexed.split("val")) == 60 and indexed.split("val")
    alone = index(folder(tmp_path / "e" / "train", count=30).parent, val_split=0.3, test_split=0.4)
    assert set(alone.counts()) == {"train", "val"}
    assert {r.sha256 for r in alone.split("val")} == {r.sha256 for r in indexed.split("val")}
    folder(tmp_path / "e" / "val", count=3, start=5000)  # no test split is made where val is named
    assert set(index(tmp_path / "e", test_split=0.4).counts()) == {"train", "val"}


def test_indices_come_from_names_not_from_each_split(tmp_path):  # fault 6, trap 26
    folder(tmp_path / "d" / "train", ["ant", "bee", "cat"], count=3)
    folder(tmp_path / "d" / "val", ["bee", "cat"], count=3, start=5000)
    indexed = index(tmp_path / "d")
    assert of_kind(indexed, Kind.THIN) == [("ant",)]
    assert indexed.class_names == ("ant", "bee", "cat")
    assert indexed.counts()["val"] == {"ant": 0, "bee": 3, "cat": 3}


# --- pixels, progress, notes ------------------------------------------------------------------------------------------


def test_pixels_are_those_of_the_decoder(tmp_path):
    root = tmp_path / "d"
    for number in range(8):
        draw(root / "ab"[number % 2] / f"{number}.jpg", number, size=(320, 240))
    pixels = memory_only(60, 10**8)
    indexed = index(root, min_side=60, pixels=pixels, workers=2, val_split=0)
    assert len(pixels.memory) == 8
    for record in indexed.records:
        assert pixels.get(record.sha256).shape == (60, 80, 3)
        np.testing.assert_array_equal(pixels.get(record.sha256), decode_image(record.path, min_side=60))
    assert indexed == index(root, val_split=0) and "sketches=" not in repr(indexed)


def test_progress(pets):
    calls = []
    index(pets, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(number, 40) for number in range(1, 41)]


def test_notes_count_what_is_special(pets):  # faults 14, 18, 19, 20, 29
    draw(pets / "cat" / "grey.png", 1, mode="L")
    draw(pets / "cat" / "clear.png", 2, mode="RGBA")
    draw(pets / "cat" / "png.jpg", 3, kind="PNG")
    draw(pets / "cat" / "print.jpg", 4, mode="CMYK")
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).save(pets / "cat" / "deep.png")
    frames = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (0, 99, 200)]
    frames[0].save(pets / "cat" / "film.gif", save_all=True, append_images=frames[1:])
    indexed = index(pets)
    assert {finding.kind for finding in indexed.findings} == {Kind.MODE, Kind.DEPTH, Kind.ONE_COLOUR, Kind.WRONG_NAME}
    notes = "; ".join(indexed.notes)
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
    notes = index(tmp_path / "d", val_split=0).notes
    assert notes == ("8 of 8 pictures: all are greyscale: their one channel is used for all three",)


# --- groups and odd labels ------------------------------------------------------------------------------------------


def patients(root):
    """Two classes of five patients with four pictures each, a folder per patient."""
    seeds = iter(range(1000))
    for name, patient, picture in itertools.product(("cat", "dog"), range(5), range(4)):
        draw(root / name / f"{name}-p{patient}" / f"{picture}.bmp", next(seeds))
    return root


@pytest.mark.parametrize("pattern", ["folder", r"-(p\d)/", r"p\d"])
def test_groups_from_the_path_stay_together(tmp_path, pattern):  # fault 123
    root = patients(tmp_path / "d")
    apart = index(root, val_split=0.3, test_split=0.3)
    assert any("--group-by folder" in note for note in apart.notes)
    together = index(root, group_by=pattern, val_split=0.3, test_split=0.3)
    splits = {}
    for record in together.records:
        splits.setdefault(record.group, set()).add(record.split)
    assert len(splits) == (10 if pattern == "folder" else 5)
    assert all(len(of_group) == 1 for of_group in splits.values())
    assert not any("--group-by" in note for note in together.notes)


def test_a_pattern_that_is_found_nowhere_is_refused(tmp_path):
    with pytest.raises(DataError, match="--group-by 'visit' is found in no path"):
        index(patients(tmp_path / "d"), group_by="visit")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([f"{number / 7:.2f}" for number in range(16)], "look like numbers"),
        (["cat|dog", "cat", "dog"], "look like lists of labels"),
        (["cat,dog", "cat"], "look like lists of labels"),
        ([str(number) for number in range(10)], None),  # digits are classes
        (["black, white", "red"], None),
    ],
)
def test_labels_that_look_like_something_else(labels, words):  # fault 114
    messages = [finding.message for finding in odd_labels(labels)]
    assert [words in message for message in messages] == ([] if words is None else [True])
