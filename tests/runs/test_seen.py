"""What a run was made with: pictures by their bytes, and by their pixels under other bytes."""

import shutil

import pytest
from data_sets import draw
from PIL import Image

from transferkit.core.csv import csv_text
from transferkit.core.files import sha256_of_file
from transferkit.data.images.reading import hash_images
from transferkit.runs.seen import run_splits

SPLITS = ("train", "train", "val", "test")


@pytest.fixture
def pictures(tmp_path):
    return [draw(tmp_path / f"{number}.png", number, size=(80, 60)) for number in range(4)]


@pytest.fixture
def run(tmp_path, pictures):
    (tmp_path / "run").mkdir()
    rows = [(split, "a", str(path), sha256_of_file(path)) for split, path in zip(SPLITS, pictures, strict=True)]
    table = csv_text([("split", "label", "path", "sha256"), *rows])
    (tmp_path / "run" / "pictures.csv").write_text(table, encoding="utf-8")
    return tmp_path / "run"


def saved_again(pictures, folder):
    folder.mkdir()
    for path in pictures:
        Image.open(path).save(folder / path.with_suffix(".bmp").name)
    draw(folder / "new.png", 9, size=(80, 60))
    return hash_images([str(path) for path in sorted(folder.iterdir())])


def test_pictures_under_other_bytes(run, pictures, tmp_path):  # fault 99
    own = {sha256_of_file(path): split for path, split in zip(pictures, SPLITS, strict=True)}
    assert run_splits(run) == own
    others = saved_again(pictures, tmp_path / "again")
    progress = []
    found = run_splits(run, others, progress=lambda done, total: progress.append((done, total)))
    assert [found.get(each.sha256) for each in others] == [*SPLITS, None]
    assert own.items() < found.items() and len(found) == 8
    assert progress[-1] == (9, 9)
    for path in pictures:
        path.unlink()
    assert run_splits(run, others, progress=None) == found  # they are known from before


def test_pictures_of_the_run_itself_are_not_looked_at(run, pictures, monkeypatch):
    monkeypatch.setattr("transferkit.data.images.sketchbook.read_images", None)
    assert set(run_splits(run, hash_images([str(path) for path in pictures])).values()) == set(SPLITS)


def test_what_is_gone_and_was_never_seen_is_known_by_its_bytes(run, pictures, tmp_path):
    others = saved_again(pictures, tmp_path / "again")
    same = shutil.copy(pictures[0], tmp_path / "same.png")
    for path in pictures:
        path.unlink()
    found = run_splits(run, [*others, *hash_images([str(same)])])
    assert sorted(found.values()) == sorted(SPLITS)


def test_a_picture_that_was_in_two_splits_was_trained_on(run, pictures, tmp_path):
    again = tmp_path / "again.bmp"
    Image.open(pictures[3]).save(again)
    with (run / "pictures.csv").open("a", encoding="utf-8") as table:
        table.write(f"train,a,{again},{sha256_of_file(again)}\n")
    third = tmp_path / "third.png"
    Image.open(pictures[3]).save(third, compress_level=1)
    (picture,) = hash_images([str(third)])
    assert run_splits(run, [picture])[picture.sha256] == "train"


def test_a_run_that_does_not_say(tmp_path):
    assert run_splits(tmp_path, hash_images([str(draw(tmp_path / "a.png", 0))])) is None
