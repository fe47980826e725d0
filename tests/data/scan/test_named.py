"""What a command line means by its paths: files, folders, globs, a list; each picture once, in order, as needed."""

import glob
import io
import itertools
import os
from pathlib import Path

import pytest

from transferkit.core.errors import DataError
from transferkit.data.scan import walking
from transferkit.data.scan.named import class_folders, count_pictures, find_pictures


def plant(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def found(*paths, stdin=None):
    return list(find_pictures([str(path) for path in paths], stdin))


@pytest.fixture
def tree(tmp_path, monkeypatch):
    root = tmp_path / "tree"
    plant(root, "b/2.JPG", "b/10.png", "b/deep/er/x.webp", "a.jpeg", "c.gif", "notes.txt", ".hidden.jpg",
          "b/.dir/1.jpg", *(f"{name}/1.jpg" for name in walking.SYSTEM_NAMES), "Thumbs.DB/2.jpg")  # fmt: skip
    monkeypatch.chdir(tmp_path)
    return root


# ---- files and folders ------------------------------------------------------------------------------------------


def test_a_folder_is_walked_depth_first_in_the_order_of_names(tree):
    expected = ["a.jpeg", "b/10.png", "b/2.JPG", "b/deep/er/x.webp", "c.gif"]
    assert found(tree) == [str(tree / name) for name in expected]
    assert found("tree") == [f"tree/{name}" for name in expected]


def test_files_are_taken_whatever_they_are_called_and_in_the_order_given(tree):
    assert found(tree / "notes.txt", tree / ".hidden.jpg", tree / "a.jpeg", tree / "notes.txt") == [
        str(tree / name) for name in ("notes.txt", ".hidden.jpg", "a.jpeg", "notes.txt")
    ]


def test_links_that_go_round_end_and_no_folder_is_entered_twice(tree):
    (tree / "b" / "deep" / "up").symlink_to(tree)
    (tree / "z").symlink_to(tree / "b")
    (tree / "self.jpg").symlink_to("self.jpg")
    names = [os.path.relpath(path, tree) for path in found(tree)]
    # The link to nowhere is told of when it is read.
    assert names == ["a.jpeg", "b/10.png", "b/2.JPG", "b/deep/er/x.webp", "c.gif", "self.jpg"]
    assert sorted(found(f"{tree}/**/*")) == sorted(str(tree / name) for name in names)


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tree, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert str(tree / "b" / "deep") in found(tree)
    assert str(tree / "b" / "deep") in found(f"{tree}/**/*.webp")


def test_every_missing_path_is_named_before_anything_is_done(tree):  # fault 83
    with pytest.raises(DataError, match="no such file or folder: 'gone.jpg', 'tree/none' - check"):
        find_pictures(["gone.jpg", str(tree), "tree/none"])  # at once: nothing is asked for
    with pytest.raises(DataError, match=r"no picture that matches: 'gone/\*.jpg', 'tree/\*.bmp' - check"):
        find_pictures(["gone/*.jpg", "tree/*.bmp", "tree/a*"])
    for odd in ("nul\0l", "x" * 5000, "tree/a.jpeg/b"):
        with pytest.raises(DataError, match="no such file"):
            find_pictures([odd])


def test_no_picture_at_all_is_an_error(tree):  # fault 83
    (tree / "empty").mkdir()
    with pytest.raises(DataError, match="no pictures in 'tree/empty', '-' - expected files ending in .jpg, .jpeg"):
        found("tree/empty", "-", stdin=io.StringIO("\n\n"))
    assert found("tree/empty", "tree/c.gif") == ["tree/c.gif"]


# ---- globs ------------------------------------------------------------------------------------------------------

PATTERNS = ["tree/*", "tree/*/*", "tree/**", "tree/**/*", "tree/**/*.png", "tree/b/**/deep/**/*", "*/b/*.[jJ]*",
            "tree/**/**/*.webp", "**/er/?.webp", "tree/b/deep/../*.png", "**/*.gif", "./tree/*.gif"]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_globs_match_what_those_of_python_match(tree, pattern):
    matches = {os.path.normpath(path) for path in glob.glob(pattern, recursive=True)}  # noqa: PTH207  the reference
    whole = {str(path.relative_to(Path.cwd())) for path in map(Path, found(tree))}
    if "**" not in pattern:  # the folders too, as if the shell had named them
        matches |= {path for path in whole if any(path.startswith(f"{match}/") for match in matches)}
    ours = [os.path.normpath(path) for path in found(pattern)]
    assert len(ours) == len(set(ours))
    assert set(ours) == matches & whole
    assert ours  # else nothing is compared


def test_globs_are_in_order_and_absolute_ones_stay_absolute(tree):
    assert found(f"{tree}/b/*") == [f"{tree}/b/{name}" for name in ("10.png", "2.JPG", "deep/er/x.webp")]


def test_a_file_with_the_name_of_a_glob_is_that_file(tree):
    plant(tree, "a[1].jpg", "a1.jpg", "*.png", "other.png")
    assert found("tree/a[1].jpg") == ["tree/a[1].jpg"]
    assert found("tree/*.png") == ["tree/*.png"]
    (tree / "a[1].jpg").unlink()
    assert found("tree/a[1].jpg") == ["tree/a1.jpg"]


# ---- standard input ---------------------------------------------------------------------------------------------


def test_a_list_on_standard_input(tree):
    text = "one.jpg\n\nwith space .jpg\r\ntree\nlast"
    assert found("tree/a.jpeg", "-", stdin=io.StringIO(text)) == [
        "tree/a.jpeg", "one.jpg", "with space .jpg", "tree", "last",
    ]  # fmt: skip


def test_names_that_are_no_text_come_through(tmp_path):  # fault 28
    odd = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    Path(os.fsdecode(odd)).touch()
    stream = io.TextIOWrapper(io.BytesIO(odd + b"\n"), encoding="ascii")
    assert list(map(os.fsencode, found("-", stdin=stream))) == [odd]
    assert list(map(os.fsencode, found(tmp_path))) == [odd]


def test_a_list_without_end_is_read_as_it_is_needed():
    taken = itertools.count()

    class Endless(io.StringIO):
        def __next__(self):
            return f"{next(taken)}.jpg\n"

    assert list(itertools.islice(find_pictures(["-"], Endless()), 3)) == ["0.jpg", "1.jpg", "2.jpg"]
    assert next(taken) == 3


# ---- counting ---------------------------------------------------------------------------------------------------


def test_the_number_is_known_where_it_is_cheap(tree):
    plant(tree, *(f"many/{number}.jpg" for number in range(100)))
    paths = ["tree/many", "tree/b/*.png", "tree/a.jpeg"]
    assert count_pictures(paths) == len(found(*paths)) == 102
    assert count_pictures(paths, seconds=0.0) is None
    assert count_pictures(["tree/a.jpeg", "-"]) is None


# ---- class folders ----------------------------------------------------------------------------------------------


def test_class_folders_are_those_with_pictures(tmp_path):  # fault 82
    root = plant(tmp_path, "cat/1.jpg", "dog/deep/2.png", "empty/notes.txt", ".hid/3.jpg", "loose.jpg")
    assert class_folders(str(root), ["x"]) == {"cat", "dog"}
    plant(root / "cafe\u0301", "1.jpg")
    assert class_folders(str(root), ["x"]) == {"cat", "dog", "caf\xe9"}


def test_class_folders_of_splits(tmp_path):  # fault 82
    root = plant(tmp_path, "train/cat/1.jpg", "Val/dog/2.png", "other/emu/3.jpg")
    assert class_folders(str(root), ["x"]) == {"cat", "dog"}


def test_classes_may_be_called_like_splits(tmp_path):  # fault 82
    root = plant(tmp_path / "a", "train/1.jpg", "bus/2.png")
    assert class_folders(str(root), ["x"]) == {"train", "bus"}
    root = plant(tmp_path / "b", "train/old/1.jpg", "test/2.png")
    assert class_folders(str(root), ["x"]) == {"old"}
    assert class_folders(str(root), ["test", "train"]) == {"test", "train"}
