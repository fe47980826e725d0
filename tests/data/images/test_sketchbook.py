"""What is known of pictures from before: by content, for every process, and never a reason to stop."""

import os
import shutil
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from data_sets import draw

from transferkit.core import database
from transferkit.core.files import user_cache
from transferkit.data.images import sketchbook
from transferkit.data.images.reading import CHECK_SIDE, hash_images, read_images
from transferkit.data.images.sketchbook import Sketchbook

ONE, OTHER = "ab" * 32, "cd" * 32


@pytest.fixture
def paths(tmp_path):
    return [str(draw(tmp_path / f"{number}.png", number)) for number in range(7)]


@pytest.fixture
def decoded(monkeypatch):
    """Files that are decoded to complete what is known."""
    names = []

    def read(files, **options):
        names.extend(files)
        return read_images(files, **options)

    monkeypatch.setattr(sketchbook, "read_images", read)
    return names


def file():
    (only,) = user_cache().glob("sketches*")
    return only


def test_a_picture_is_decoded_once_whatever_it_is_called(tmp_path, paths, decoded):
    progress = []
    made = Sketchbook().complete(
        hash_images(paths[:5]), workers=2, progress=lambda done, total: progress.append((done, total))
    )
    assert [each.sketch for each in made] == [each.sketch for each in read_images(paths[:5], min_side=CHECK_SIDE)]
    assert decoded == paths[:5] and progress[-1] == (5, 5)
    decoded.clear()
    moved = shutil.copytree(tmp_path, tmp_path.with_name("elsewhere"))
    again = Sketchbook().complete(hash_images([str(moved / Path(path).name) for path in paths]))
    assert decoded == [str(moved / "5.png"), str(moved / "6.png")]
    assert [each.sketch for each in again] == [each.sketch for each in read_images(paths, min_side=None)]
    assert Sketchbook().fill(hash_images(paths)) == hash_images(paths)  # sketches do not count for equality,
    assert all(each.sketch for each in Sketchbook().fill(hash_images(paths)))  # but they are there


def test_bad_and_changed_files_get_none(paths, decoded):
    hashed = hash_images([*paths, "gone.png"])
    Path(paths[0]).write_bytes(b"no picture")
    shutil.copy(paths[1], paths[2])
    made = Sketchbook().complete(hashed)
    assert [each.sketch is None for each in made] == [True, False, True, *[False] * 4, True]
    assert "gone.png" not in decoded
    assert [each.sketch is None for each in Sketchbook().fill(made[:3])] == [True, False, True]


def test_more_than_fit_in_one_question(paths, monkeypatch):
    monkeypatch.setattr(database, "AT_ONCE", 2)
    Sketchbook().complete(hash_images(paths))
    assert all(each.sketch for each in Sketchbook().fill(hash_images(paths)))


def test_digests():
    assert Sketchbook().digests([ONE]) == {}
    Sketchbook().keep_digests({ONE: OTHER})
    Sketchbook().keep_digests({})
    assert Sketchbook().digests([OTHER, ONE]) == {ONE: OTHER}


@pytest.mark.parametrize("damage", [b"", b"nothing of the kind" * 100, None])
def test_a_damaged_file_is_made_anew(paths, damage):
    Sketchbook().complete(hash_images(paths))
    whole = file().read_bytes()
    assert whole.startswith(b"SQLite format 3")
    file().write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    for _ in range(2):
        made = Sketchbook().complete(hash_images(paths))
        assert all(each.sketch for each in made)
    Sketchbook().keep(made)
    assert all(each.sketch for each in Sketchbook().fill(hash_images(paths)))


def test_rows_that_something_else_wrote(paths):
    Sketchbook().complete(hash_images(paths))
    with sqlite3.connect(file()) as other:
        other.execute("UPDATE sketches SET cells = 'short'")
    other.close()
    assert not any(each.sketch for each in Sketchbook().fill(hash_images(paths)))
    assert all(each.sketch for each in Sketchbook().complete(hash_images(paths)))


def test_a_cache_that_cannot_be_had(paths, monkeypatch, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert all(each.sketch for each in Sketchbook().complete(hash_images(paths)))
    Sketchbook().keep_digests({ONE: OTHER})
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError))
    assert all(each.sketch for each in Sketchbook().complete(hash_images(paths)))
    assert Sketchbook().digests([ONE]) == {}


def test_others_that_write_meanwhile(paths, monkeypatch):
    monkeypatch.setattr(database, "WAIT_S", 0.01)
    Sketchbook().keep_digests({ONE: OTHER})
    with sqlite3.connect(file()) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert all(each.sketch for each in Sketchbook().complete(hash_images(paths)))
    other.close()
    assert file().is_file() and Sketchbook().digests([ONE]) == {ONE: OTHER}
    monkeypatch.setattr(database, "WAIT_S", 20.0)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda path: Sketchbook().complete(hash_images([path])), paths * 3))
    assert all(each.sketch for each in Sketchbook().fill(hash_images(paths)))


def test_no_more_than_so_many_are_remembered(paths, monkeypatch):
    monkeypatch.setattr(sketchbook, "MOST", 3)
    for path in paths:
        Sketchbook().keep_decoded(read_images([path], min_side=None), None)
    hashes = [result.sha256 for result in hash_images(paths)]
    assert set(Sketchbook().decoded(hashes, None)) == set(hashes[-3:])
    assert [each.sketch is None for each in Sketchbook().fill(hash_images(paths))] == [True] * 4 + [False] * 3


def test_of_several_scales_each_is_known_and_the_largest_picture_counts(tmp_path):
    photo = str(draw(tmp_path / "photo.jpg", 1, (800, 640)))
    scales = {}
    for side in (64, 320, None):
        results = read_images([photo], min_side=side)
        Sketchbook().keep_decoded(results, side)
        scales[results[0].sketch.scale] = results[0]
        (known,) = Sketchbook().decoded([results[0].sha256], side).values()
        assert (known.sketch, known.info, known.shape) == (results[0].sketch, results[0].info, results[0].shape)
    assert sorted(scales) == [1, 2, 8]
    assert Sketchbook().fill(hash_images([photo]))[0].sketch == scales[1].sketch


def test_databases_of_earlier_rules_and_those_that_nobody_writes_to_go(paths):
    folder = user_cache()
    folder.mkdir(parents=True, exist_ok=True)
    current = f"sketches-{sketchbook.RULES}-pillow"
    old = ["sketches-1-pillow-11.0.0.db", "sketches-1-#000000-pillow-12.0.0.db", f"{current}-9.0.0.db"]
    own = [
        f"{current}-8.0.0.db",
        f"sketches-{sketchbook.RULES + 1}-pillow-11.0.0.db",
        "sketches-of-mine.db",
        "files-1.db",
    ]
    for name in (*old, *own):
        (folder / name).write_bytes(b"x")
    long_ago = time.time() - 86_400 * (sketchbook.UNUSED_DAYS + 1)
    os.utime(folder / old[-1], (long_ago, long_ago))
    os.utime(folder / own[-1], (long_ago, long_ago))
    Sketchbook().keep(read_images(paths, min_side=CHECK_SIDE))
    assert not {path.name for path in folder.iterdir()} & set(old)
    assert {path.name for path in folder.iterdir()} > set(own)
    (folder / old[0]).write_bytes(b"x")
    Sketchbook().keep(read_images(paths, min_side=None))
    assert (folder / old[0]).exists()  # it is looked for when a database is begun, and not each time
