"""What an index says of a data set is the same whether its files are known from before or not."""

from dataclasses import fields
from pathlib import Path

import data_sets
import numpy as np
import object_sets
import pytest
from data_sets import draw, folder, index, table, three_splits
from PIL import Image

from transferkit.core.errors import DataError
from transferkit.data.index.boxes import BoxReader
from transferkit.data.index.index import CLASSES, ImageIndex
from transferkit.data.index.labels import LabelReader
from transferkit.data.index.masks import MaskReader
from transferkit.data.index.numbers import NumberReader

pytestmark = pytest.mark.usefixtures("settled")


def odd(root):
    """Classes with pictures of every special kind, copies, near copies and files that are none."""
    folder(root, count=6)
    noise = np.random.default_rng(9).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC)
    picture.save(root / "cat" / "large.jpg", quality=95)
    picture.resize((320, 240)).save(root / "cat" / "near.jpg", quality=80)
    picture.save(root / "cat" / "same.png")
    picture.save(root / "cat" / "equal.bmp")
    picture.convert("L").save(root / "dog" / "grey.png")
    picture.convert("CMYK").save(root / "dog" / "cmyk.jpg")
    Image.fromarray(255 - noise).resize((90, 70)).save(root / "dog" / "called.gif", "PNG")
    picture.resize((30, 20)).save(
        root / "dog" / "frames.gif", save_all=True, append_images=[Image.new("RGB", (30, 20))]
    )
    Image.new("RGBA", (20, 20), (255, 0, 0, 0)).save(root / "dog" / "clear.png")
    Image.new("RGB", (20, 20), "red").save(root / "dog" / "red.png")
    Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20)).save(root / "dog" / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(255 - noise).save(root / "dog" / "turned.jpg", exif=exif)
    (root / "cat" / "notes.txt").write_bytes(b"none")
    return root


def bad(root):
    """The same, and files that cannot be read."""
    odd(root)
    (root / "cat" / "cut.png").write_bytes((root / "cat" / "same.png").read_bytes()[:900])
    (root / "cat" / "empty.jpg").write_bytes(b"")
    (root / "dog" / "no.jpg").write_bytes(b"no picture at all")
    return root


def leaking(root):
    three_splits(root)
    (root / "test" / "cat" / "copy.bmp").write_bytes((root / "train" / "cat" / "000.bmp").read_bytes())
    (root / "val" / "dog" / "copy.bmp").write_bytes((root / "train" / "cat" / "001.bmp").read_bytes())
    return root


def manifest(root):
    folder(root / "far", count=8)
    rows = [f"far/{name}/{at:03}.bmp,{name},p{at // 2}" for name in ("cat", "dog") for at in range(8)]
    return table(root / "list.csv", *rows, header="path,label,group")


def labels(root):
    folder(root / "far", count=8)
    rows = [f"far/{name}/{at:03}.bmp,{name if at % 3 else 'cat|dog'}" for name in ("cat", "dog") for at in range(8)]
    return table(root / "list.csv", *rows, header="path,labels")


def numbers(root):
    folder(root / "far", count=8)
    rows = [f"far/{name}/{at:03}.bmp,{at / 3}" for name in ("cat", "dog") for at in range(8)]
    return table(root / "list.csv", *rows, header="path,target")


def masks(root):
    for at in range(6):
        draw(root / "images" / f"{at}.bmp", at)
        values = np.zeros((16, 20), dtype=np.uint8)
        values[:, 8 + at :] = 1
        (root / "masks").mkdir(exist_ok=True)
        Image.fromarray(values).save(root / "masks" / f"{at}.png")
    return root


def scenes():
    return {f"{at}": object_sets.scene(at) for at in range(5)}


SETS = {
    "classes": (folder, CLASSES, {}),
    "splits": (three_splits, CLASSES, {}),
    "odd pictures": (odd, CLASSES, {"skip_bad": True, "allow_leaks": True}),
    "bad pictures": (bad, CLASSES, {"skip_bad": True, "allow_leaks": True}),
    "near copies": (odd, CLASSES, {"skip_bad": True, "allow_leaks": True, "group_near": True}),
    "on black": (odd, CLASSES, {"skip_bad": True, "allow_leaks": True, "ground": "black", "grey_bits": 10}),
    "leaks": (leaking, CLASSES, {"allow_leaks": True}),
    "a manifest": (manifest, CLASSES, {}),
    "labels": (labels, LabelReader(), {}),
    "numbers": (numbers, NumberReader(), {}),
    "masks": (masks, MaskReader(), {"val_split": 0.0, "test_split": 0.0}),
    "COCO": (lambda root: object_sets.coco(root, scenes()), BoxReader(), {"val_split": 0.0, "test_split": 0.0}),
    "VOC": (lambda root: object_sets.voc(root, scenes()), BoxReader(), {"val_split": 0.0, "test_split": 0.0}),
    "YOLO": (lambda root: object_sets.yolo(root, scenes()), BoxReader(), {"val_split": 0.0, "test_split": 0.0}),
}  # fmt: skip


def parts(one):
    """All fields of an index, by name."""
    return {item.name: getattr(one, item.name) for item in fields(ImageIndex)}


@pytest.mark.parametrize("side", [None, 64])
@pytest.mark.parametrize("name", SETS)
def test_an_index_is_the_same_each_time(tmp_path, read, name, side):
    make, reader, options = SETS[name]
    (tmp_path / "set").mkdir()
    data = make(tmp_path / "set")
    before = parts(index(data, reader=reader, min_side=side, rescan=True, **options))
    unreadable = {Path(file.path).name for file in before["skipped"]} - {"notes.txt"}
    read.clear()
    for _ in range(2):
        assert parts(index(data, reader=reader, min_side=side, workers=2, **options)) == before
    assert set(read) == unreadable
    pixels = data_sets.memory_only(side, 10**7)
    assert parts(index(data, reader=reader, min_side=side, pixels=pixels, **options)) == before
    assert len(pixels.memory) == 0 and pixels.room < 10**7  # they have their places, to be filled when they are shown
    assert set(read) == unreadable
    pictures = sorted(path for path in (tmp_path / "set").rglob("*") if path.suffix in (".bmp", ".png", ".jpg"))
    pictures = [path for path in pictures if "masks" not in path.parts and path.name not in unreadable]
    one, other = pictures[0], pictures[-1]
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
    truth = parts(index(data, reader=reader, min_side=side, rescan=True, **options))
    for path in pictures[1:3]:
        path.touch()
    assert parts(index(data, reader=reader, min_side=side, **options)) == truth
    assert {record.path: record.sha256 for record in truth["records"]} != {
        record.path: record.sha256 for record in before["records"]
    }


@pytest.mark.parametrize("near", [False, True])
def test_rescan_reads_all(tmp_path, read, near):
    data = folder(tmp_path / "set", count=4)
    for rescan, times in ((False, 1 + near), (False, 0), (True, 1 + near), (False, 0)):
        index(data, min_side=32, group_near=near, rescan=rescan)
        assert len(read) == 8 * times
        read.clear()


@pytest.mark.parametrize(("make", "kinds"), [(bad, ["unreadable"]), (leaking, ["leak", "leak"])])
def test_it_is_refused_the_same_each_time(tmp_path, make, kinds):
    data = make(tmp_path / "set")
    first = data_sets.refused(data, *kinds, rescan=True)
    for _ in range(2):
        assert data_sets.refused(data, *kinds) == first


def test_a_picture_that_became_bad_is_refused(tmp_path):
    data = folder(tmp_path / "set", count=4)
    index(data)
    (data / "cat" / "002.bmp").write_bytes(b"x" * (data / "cat" / "002.bmp").stat().st_size)
    with pytest.raises(DataError, match=r"002\.bmp"):
        index(data)


def test_the_pictures_of_a_mask_set_are_known_and_its_masks_are_read(tmp_path, read):
    data = masks(tmp_path / "set")
    index(data, reader=MaskReader(), val_split=0.0, test_split=0.0)
    values = np.full((16, 20), 1, dtype=np.uint8)
    values[:3] = 0
    Image.fromarray(values).save(data / "masks" / "0.png")
    read.clear()
    known = index(data, reader=MaskReader(), val_split=0.0, test_split=0.0)
    assert read == []
    truth = index(data, reader=MaskReader(), val_split=0.0, test_split=0.0, rescan=True)
    assert parts(known) == parts(truth)
