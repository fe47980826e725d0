"""Sets of masks: what their files hold, what is understood of them together, and what is wrong, all at once."""

import json
import shutil
import struct
import zlib
from pathlib import Path

import data_sets
import numpy as np
import pytest
from data_sets import draw, index, table
from PIL import Image

from transferkit.core.errors import ConfigError, DataError
from transferkit.core.records import DataConfig
from transferkit.core.targets import IGNORED, TargetSpec
from transferkit.data.batches.datamodule import ImageData
from transferkit.data.index.index import index_images
from transferkit.data.index.masks import MaskReader, MaskTargets
from transferkit.data.index.targets import inferred_task
from transferkit.data.masks.coding import Coding, class_digest
from transferkit.data.scan.records import Kind
from transferkit.options.data import DataOptions

SIZE = (12, 16)  # rows, columns
VOC = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]


def halves(*values, size=SIZE, dtype=np.uint8):
    """Bands of values, from left to right."""
    mask = np.zeros(size, dtype=dtype)
    for place, columns in enumerate(np.array_split(np.arange(size[1]), len(values))):
        mask[:, columns] = values[place]
    return mask


def pair(root, stem, mask, split="", ending=".png", **options):
    """Draw a picture, and write its mask: an array or a Pillow picture."""
    image = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
    draw(root / split / "images" / f"{stem}.bmp", zlib.crc32(f"{split}{stem}".encode()), image.size)
    (root / split / "masks" / f"{stem}{ending}").parent.mkdir(parents=True, exist_ok=True)
    image.save(root / split / "masks" / f"{stem}{ending}", **options)


def indexed(mask, colours):
    image = Image.new("P", mask.shape[::-1])
    image.putdata(mask.ravel().tolist())
    image.putpalette([level for colour in colours for level in colour])
    return image


def look(data, **options):
    """Index a set of masks without splits, all for training."""
    options = {"val_split": 0.0, "test_split": 0.0, **options}
    return index(data, reader=MaskReader(), **options)


def refused(data, *kinds, **options):
    """The message that a set of masks is refused by; its findings are of these kinds."""
    return data_sets.refused(data, *kinds, reader=MaskReader(), **{"val_split": 0.0, "test_split": 0.0, **options})[0]


def classes(indexed_set):
    """The class indices of all masks, in order of their pictures."""
    records = indexed_set.records
    masks = indexed_set.targets.annotate([r.label for r in records], [r.path for r in records])
    return [masks.read(row).mask for row in range(len(masks))]


def line(indexed_set):
    (note,) = [note for note in indexed_set.notes if note.startswith("segmentation")]
    return note.split(": ", 1)[1]


# ---- values -----------------------------------------------------------------------------------------------------


def grey_png(values, bits):
    """A grey PNG of 1, 2, 4 bits, written by hand: Pillow writes none."""
    rows = b""
    for row in values:
        text = "".join(f"{value:0{bits}b}" for value in row)
        text += "0" * (-len(text) % 8)
        rows += b"\0" + bytes(int(text[at : at + 8], 2) for at in range(0, len(text), 8))

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def store(kind, mask):
    """The same class indices, stored in different ways."""
    match kind:
        case "indexed":
            return indexed(mask, VOC)
        case "grey":
            return Image.fromarray(mask)
        case "sixteen":
            return Image.fromarray(mask.astype(np.uint16))
        case "thirty-two":
            return Image.fromarray(mask.astype(np.int32))
        case "rgb":
            return Image.fromarray(np.repeat(mask[:, :, None], 3, axis=2))
        case "rgba":
            return Image.fromarray(mask).convert("RGBA")
        case "grey-alpha":
            return Image.fromarray(mask).convert("LA")


@pytest.mark.parametrize(("kind", "ending"), [
    ("indexed", ".png"), ("indexed", ".tif"), ("indexed", ".bmp"), ("grey", ".png"),
    ("grey", ".tif"), ("grey", ".bmp"), ("sixteen", ".png"), ("sixteen", ".tif"), ("thirty-two", ".tif"),
    ("rgb", ".png"), ("rgba", ".png"), ("grey-alpha", ".png"),
])  # fmt: skip
def test_indices_are_read_from_every_way_to_store_them(tmp_path, kind, ending):
    masks = [halves(0, 2, 3), halves(1, 0)]
    for stem, mask in zip("ab", masks, strict=True):
        pair(tmp_path, stem, store(kind, mask), ending=ending)
    found = look(tmp_path)
    assert found.class_names == ("0", "1", "2", "3") and "classes 0 to 3" in line(found)
    for read, mask in zip(classes(found), masks, strict=True):
        assert np.array_equal(read, mask) and read.dtype == np.uint8
    if kind == "indexed":
        assert found.targets.spec.facts["palette"] == [list(colour) for colour in VOC]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits_is_not_stretched(tmp_path, bits):  # Pillow makes 0, 85, 170, 255 of two bits
    mask = halves(*range(min(4, 2**bits)))
    pair(tmp_path, "a", mask)
    (tmp_path / "masks" / "a.png").write_bytes(grey_png(mask, bits))
    found = look(tmp_path)
    assert np.array_equal(classes(found)[0], mask)
    assert found.targets.spec.facts["values"] == list(range(min(4, 2**bits)))


@pytest.mark.parametrize(("values", "names", "expected", "said"), [
    ((0, 255), ("background", "foreground"), (0, 1), "0 for 'background' and 255 for 'foreground'"),
    ((0, 1), ("background", "foreground"), (0, 1), "0 for 'background' and 1 for 'foreground'"),
    ((0, 128), ("background", "foreground"), (0, 1), "0 for 'background' and 128 for 'foreground'"),
    ((0, 1, 255), ("background", "foreground"), (0, 1, IGNORED), "and 255 where no pixel counts"),
    ((1, 2), ("1", "2"), (0, 1), "1 for '1' and 2 for '2'"),
    ((0, 206, 210), ("0", "206", "210"), (0, 1, 2), "the classes 0, 206, 210"),
    ((0, 1, 2, 255), ("0", "1", "2"), (0, 1, 2, IGNORED), "the classes 0 to 2, and 255 where no pixel counts"),
])  # fmt: skip
def test_what_numbers_mean_follows_from_the_whole_set(tmp_path, values, names, expected, said):
    pair(tmp_path, "a", halves(*values))
    pair(tmp_path, "b", halves(*values[::-1]))
    found = look(tmp_path)
    assert found.class_names == names and said in line(found)
    assert np.array_equal(classes(found)[0], halves(*expected))
    assert np.array_equal(classes(found)[1], halves(*expected[::-1]))


def test_no_mask_is_understood_by_itself(tmp_path):  # fault 165
    """One that holds 0 and 255 alone is of two classes among its like, and ignored pixels among others."""
    pair(tmp_path, "a", halves(0, 255))
    pair(tmp_path, "b", halves(0, 255, 0))
    assert classes(look(tmp_path))[0].max() == 1
    pair(tmp_path, "c", halves(0, 1, 2))
    assert np.array_equal(classes(look(tmp_path))[0], halves(0, IGNORED))


def test_ones_of_one_bit_are_the_255_of_others(tmp_path):
    pair(tmp_path, "a", halves(0, 255))
    pair(tmp_path, "b", Image.fromarray(halves(0, 255)).convert("1"))
    first, second = classes(look(tmp_path))
    assert np.array_equal(first, second) and first.max() == 1
    pair(tmp_path, "a", halves(0, 1, 2))
    assert np.array_equal(classes(look(tmp_path))[1], halves(0, 1))


def test_numbered_objects_are_one_class_by_binary(tmp_path):
    pair(tmp_path, "a", halves(*range(300), size=(4, 600), dtype=np.uint16))
    pair(tmp_path, "b", halves(0, 255, 256, dtype=np.uint16))
    found = look(tmp_path, mask_values="binary")
    assert found.class_names == ("background", "foreground") and "anything above 0" in line(found)
    assert [np.unique(mask).tolist() for mask in classes(found)] == [[0, 1], [0, 1]]
    assert (classes(found)[0][:, 2:] == 1).all()
    (tmp_path / "classes.txt").write_text("slide\nnucleus\n", encoding="utf-8")
    assert look(tmp_path, mask_values="binary").class_names == ("slide", "nucleus")
    (tmp_path / "classes.txt").write_text("a\nb\nc\n", encoding="utf-8")
    with pytest.raises(DataError, match="two classes, and .*classes.txt' names 3"):
        look(tmp_path, mask_values="binary")


def test_many_values_without_names_are_refused(tmp_path):
    pair(tmp_path, "a", halves(*range(40), size=(4, 80)))
    said = refused(tmp_path, Kind.MASK)
    assert "40 different values, from 0 to 39 - if they number objects, pass --mask-values instances" in said
    (tmp_path / "classes.txt").write_text("\n".join(f"k{number}" for number in range(40)), encoding="utf-8")
    assert len(look(tmp_path).class_names) == 40


# ---- names ------------------------------------------------------------------------------------------------------


def test_a_list_of_names_is_in_index_order(tmp_path):
    pair(tmp_path, "a", halves(0, 1, 2, 255))
    (tmp_path / "classes.txt").write_text("\ufeffroad\n\ntree \nsky\n", encoding="utf-8")
    found = look(tmp_path)
    assert found.class_names == ("road", "tree", "sky") and "named by" in line(found)
    assert not any("are not read" in note for note in found.notes)  # it is read
    assert found.targets.fitted([found.records[0].label]).spec.facts["pixels"] == [48, 48, 48]
    pair(tmp_path, "b", halves(0, 255))
    (tmp_path / "classes.txt").write_text("no\nyes", encoding="utf-8")
    (tmp_path / "masks" / "a.png").unlink()
    (tmp_path / "images" / "a.bmp").unlink()
    assert np.array_equal(classes(look(tmp_path))[0], halves(0, 1))


def test_a_palette_names_values_or_colours(tmp_path):
    pair(tmp_path, "a", halves(7, 3, 9, 255))
    palette = tmp_path / "elsewhere.csv"
    palette.write_text("name,value\nsky,7\nroad,3\nIgnored,9\n", encoding="utf-8")
    found = look(tmp_path, palette=str(palette))
    assert found.class_names == ("sky", "road")
    assert np.array_equal(classes(found)[0], halves(0, 1, IGNORED, IGNORED))
    bands = halves(0, 1, 2)
    colours = np.array([(10, 0, 0), (0, 20, 0), (0, 0, 30)], dtype=np.uint8)
    pair(tmp_path, "a", colours[bands])
    pair(tmp_path, "b", indexed(bands, colours.tolist()))
    (tmp_path / "palette.csv").write_text("name, r, g, b\nleaf,0,20,0\nsoil,10,0,0\nignored,0,0,30\n", encoding="utf-8")
    found = look(tmp_path)
    assert found.class_names == ("leaf", "soil") and found.targets.spec.facts["palette"] == [[0, 20, 0], [10, 0, 0]]
    for mask in classes(found):
        assert np.array_equal(mask, halves(1, 0, IGNORED))
    again = MaskTargets(TargetSpec.from_dict(json.loads(json.dumps(found.targets.spec.to_dict()))))
    assert again.coding == found.targets.coding  # it travels with a model
    assert [again.identity(r.label) for r in found.records] == [found.targets.identity(r.label) for r in found.records]


def test_colours_without_a_palette_are_refused(tmp_path):
    pair(tmp_path, "a", np.array([(10, 0, 0), (0, 20, 0)], dtype=np.uint8)[halves(0, 1)])
    message = refused(tmp_path, Kind.MASK)
    assert "1 of 1 masks hold colours, 2 different ones: #001400, #0a0000 - say what each stands for by" in message


@pytest.mark.parametrize(("name", "text", "said"), [
    ("p.csv", "name,colour\na,1\n", "starts with 'name,colour', expected the columns name,value"),
    ("p.csv", "name,value\na,x\nb,70000\n", "rows 'a,x', 'b,70000', expected name,value"),
    ("p.csv", "name,value\na,1\nb,1\n", "values that stand twice: 1"),
    ("p.csv", "name,r,g,b\na,1,2,3\na,1,2,4\n", "names that stand twice: 'a'"),
    ("p.csv", "", "starts with '', expected"),
    ("p.txt", "a\nA\n", "differ only in case"),
    ("p.txt", "\n", "it names no class"),
    ("p.txt", "\n".join(map(str, range(256))), "it names 256 classes, expected at most 255"),
    ("gone.txt", None, "cannot read the palette"),
])  # fmt: skip
def test_a_palette_that_is_none_is_refused(tmp_path, name, text, said):
    pair(tmp_path, "a", halves(0, 1))
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as raised:
        look(tmp_path, palette=str(tmp_path / name))
    assert said in str(raised.value)


def test_two_files_of_names_are_one_too_many(tmp_path):
    pair(tmp_path, "a", halves(0, 1))
    (tmp_path / "classes.txt").write_text("a\nb", encoding="utf-8")
    (tmp_path / "palette.csv").write_text("name,value\na,0\nb,1\n", encoding="utf-8")
    with pytest.raises(DataError, match="name one of them by --palette"):
        look(tmp_path)
    assert look(tmp_path, palette=str(tmp_path / "classes.txt")).class_names == ("a", "b")


# ---- what is wrong ----------------------------------------------------------------------------------------------


def broken(root):
    """A good pair, and a mask of every kind that cannot be used."""
    pair(root, "good", halves(0, 1, 2))
    for stem in ("colour", "empty", "gone-page", "lossy", "odd", "size", "text", "thin-alpha", "webp", "gif"):
        pair(root, stem, halves(0, 1))
    masks = root / "masks"
    (root / "classes.txt").write_text("a\nb\nc", encoding="utf-8")
    (masks / "empty.png").write_bytes(b"")
    (masks / "text.png").write_text("no picture", encoding="utf-8")
    Image.fromarray(halves(0, 1)).save(masks / "lossy.png", "JPEG")
    Image.fromarray(halves(0, 1)).save(masks / "webp.png", "WEBP", lossless=True)
    indexed(halves(0, 2), VOC).save(masks / "gif.png", "GIF")  # a writer that renumbers: 2 becomes 1
    Image.fromarray(halves(0, 7)).save(masks / "odd.png")
    Image.fromarray(halves(0, 1, size=(16, 12))).save(masks / "size.png")
    Image.fromarray(halves(0, 1).astype(np.float32)).save(masks / "colour.png", "TIFF")
    pages = [Image.fromarray(halves(0, 1)), Image.fromarray(halves(1, 0))]
    pages[0].save(masks / "gone-page.png", "TIFF", save_all=True, append_images=pages[1:])
    alpha = Image.fromarray(halves(0, 1)).convert("LA")
    alpha.putpixel((0, 0), (1, 0))
    alpha.save(masks / "thin-alpha.png")


REASONS = {
    "colour": "mode F", "empty": "the file is empty", "gone-page": "it has 2 pages", "lossy": "JPEG does not keep",
    "odd": "it holds 7, which stand for no class", "size": "it has 12 x 16 pixels, and its picture 16 x 12",
    "text": "not a picture", "thin-alpha": "transparent pixels", "webp": "WEBP does not keep",
    "gif": "GIF does not keep",
}  # fmt: skip


def test_all_masks_that_cannot_be_used_are_named_at_once(tmp_path):  # fault 164
    broken(tmp_path)
    message = refused(tmp_path, Kind.MASK)
    assert message.startswith("10 pictures whose masks cannot be used: ")
    for stem, reason in REASONS.items():
        assert f"{stem}.bmp" in message and reason in message, stem
    found = look(tmp_path, skip_bad=True)
    assert [Path(record.path).stem for record in found.records] == ["good"]
    assert {Path(file.path).stem: file.reason for file in found.skipped}.keys() == REASONS.keys()
    (note,) = [note for note in found.notes if "10 pictures left out whose masks cannot be used" in note]
    assert "mask " in note and REASONS["colour"] in note


def test_pictures_and_masks_without_each_other(tmp_path):
    pair(tmp_path, "a", halves(0, 1))
    pair(tmp_path, "b", halves(0, 1))
    draw(tmp_path / "images" / "deep" / "bare.png", 1)
    Image.fromarray(halves(0, 1)).save(tmp_path / "masks" / "alone.png")
    message = refused(tmp_path, Kind.MASK, Kind.MASK)
    assert "1 pictures without a mask" in message and "1 masks without a picture" in message
    found = look(tmp_path, skip_bad=True)
    assert [file.reason for file in found.skipped] == ["has no mask", "has no picture"]
    assert len(found.records) == 2


def test_several_of_one_stem_are_refused(tmp_path):
    pair(tmp_path, "a", halves(0, 1))
    pair(tmp_path, "a", halves(0, 1), ending=".tif")
    draw(tmp_path / "images" / "a.png", 9)
    message = refused(tmp_path, Kind.LAYOUT, Kind.LAYOUT, skip_bad=True)
    assert "several masks of one stem" in message and "several pictures of one stem" in message


def test_classes_that_cannot_be_learnt(tmp_path):
    for split, values in (("train", (0, 1)), ("val", (0, 1, 3))):
        for number in range(2):
            pair(tmp_path, f"{split}{number}", halves(*values), split)
    assert "values without training pixels that masks of other splits hold: '3'" in refused(tmp_path, Kind.UNTRAINED)
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\n", encoding="utf-8")
    message = refused(tmp_path, Kind.UNTRAINED, Kind.EMPTY)
    assert "without training pixels that other splits have: 'd'" in message and "classes without pixels: 'c'" in message
    shutil.rmtree(tmp_path / "val")
    found = look(tmp_path, allow_empty_classes=True)
    assert found.class_names == ("a", "b", "c", "d")
    assert any("of which nothing can be learnt: 'c', 'd'" in finding.message for finding in found.findings)


@pytest.mark.parametrize(("values", "kind", "said"), [
    ((0, 0), Kind.ONE_CLASS, "one class alone"), ((255, 255), Kind.ONE_CLASS, "one class alone, 'foreground'"),
])  # fmt: skip
def test_masks_of_one_class_teach_nothing(tmp_path, values, kind, said):
    pair(tmp_path, "a", halves(*values))
    assert said in refused(tmp_path, kind)


def test_what_is_worth_telling(tmp_path):
    for number in range(8):
        pair(tmp_path, f"t{number}", halves(0, 1, size=(40, 60)), "train")
    scarce = halves(0, 1, size=(40, 60))
    scarce[0, 0] = 2
    pair(tmp_path, "scarce", scarce, "train")
    pair(tmp_path, "nothing", halves(255, size=(40, 60)), "train")
    pair(tmp_path, "plain", halves(0, size=(40, 60)), "val")
    found = index(tmp_path, reader=MaskReader())
    said = [finding.message for finding in found.findings]
    assert any("classes of few training pixels: 2 (0.00% of the pixels, 1 pictures)" in message for message in said)
    assert any("classes without a pixel in val, whose val figures are therefore n/a: '1', '2'" in one for one in said)
    assert any("1 masks of which no pixel counts" in message for message in said)
    assert any("1 of 11 masks hold '0' alone" in message for message in said)
    assert found.counts() == {"train": {"0": 9, "1": 9, "2": 1}, "val": {"0": 1, "1": 0, "2": 0}}
    assert found.targets.spec.facts["pixels"][2] == 1
    strata = found.targets.strata([record.label for record in found.records])
    stems = [Path(record.path).stem for record in found.records]
    assert strata[stems.index("scarce")] == 2 and strata[stems.index("t0")] == 1 and strata[stems.index("plain")] == 0


# ---- layouts ----------------------------------------------------------------------------------------------------


def test_splits_and_deeper_folders_are_mirrored(tmp_path):
    for split in ("Train", "valid", "test"):
        pair(tmp_path, "deep/er/x", halves(0, 1), split)
    found = index(tmp_path, reader=MaskReader())
    assert {(record.split, Path(record.label).suffix) for record in found.records} == {
        ("train", ".png"), ("val", ".png"), ("test", ".png"),
    }  # fmt: skip
    draw(tmp_path / "test" / "images" / "y.png", 3)
    shutil.rmtree(tmp_path / "test" / "masks")
    found = index(tmp_path, reader=MaskReader())
    assert any("2 pictures without masks are left out - predict them later" in note for note in found.notes)


def test_a_manifest_names_masks(tmp_path):
    pair(tmp_path, "a", halves(0, 1))
    pair(tmp_path, "b", halves(1, 0))
    rows = ["images/a.bmp,masks/a.png", "images/b.bmp,masks/b.png"]
    path = table(tmp_path / "set.csv", *rows, header="path,mask")
    found = look(path)
    assert [Path(record.label).name for record in found.records] == ["a.png", "b.png"]
    named = table(tmp_path / "named.csv", *rows, header="path,drawn")
    assert look(named, label_column="drawn", task="segmentation").digest() == found.digest()
    (tmp_path / "tables").mkdir()
    moved = table(tmp_path / "tables" / "m.csv", *rows, header="path,mask")
    assert look(moved, root=str(tmp_path)).digest() == found.digest()
    table(path, rows[0], "images/b.bmp,../b.png", header="path,mask")
    assert "lead out of the manifest's folder" in refused(path, Kind.LAYOUT, Kind.MASK)
    table(path, rows[0], "images/b.bmp,masks/none.png", header="path,mask")
    assert "No such file" in refused(path, Kind.MASK)


def test_moving_files_changes_nothing_and_drawing_does(tmp_path):
    for stem in "abc":
        pair(tmp_path / "one", stem, halves(0, 1, 2))
    before = look(tmp_path / "one")
    (tmp_path / "two" / "images").mkdir(parents=True)
    (tmp_path / "two" / "masks").mkdir()
    for number, stem in enumerate("abc"):
        shutil.copy(tmp_path / "one" / "images" / f"{stem}.bmp", tmp_path / "two" / "images" / f"{number}.bmp")
        indexed(halves(0, 1, 2), VOC).save(tmp_path / "two" / "masks" / f"{number}.png")
    assert look(tmp_path / "two").digest() == before.digest()
    Image.fromarray(halves(0, 2, 1)).save(tmp_path / "two" / "masks" / "0.png")
    assert look(tmp_path / "two").digest() != before.digest()


def test_equal_pictures_with_unlike_masks_leak(tmp_path):
    for stem, values in (("a", (0, 1)), ("b", (0, 1)), ("c", (1, 0))):
        pair(tmp_path, stem, halves(*values))
        draw(tmp_path / "images" / f"{stem}.bmp", 1, SIZE[::-1])
    message = refused(tmp_path, Kind.LEAK)
    assert "1 pictures with more than one label" in message
    Image.fromarray(halves(0, 1)).save(tmp_path / "masks" / "c.png")
    assert len(look(tmp_path).records) == 3  # the same mask in another file is no other answer


@pytest.mark.parametrize(("make", "task"), [
    (lambda root: pair(root, "a", halves(0, 1)), "segmentation"),
    (lambda root: pair(root, "a", halves(0, 1), "train"), "segmentation"),
    (lambda root: (draw(root / "images" / "a.png", 1), draw(root / "masks" / "b.png", 2)), "classification"),
    (lambda root: (draw(root / "cat" / "a.png", 1), draw(root / "dog" / "a.png", 2)), "classification"),
])  # fmt: skip
def test_folders_show_the_task(tmp_path, make, task):
    make(tmp_path)
    assert inferred_task(DataOptions(data=str(tmp_path)))[0] == task
    if task == "segmentation":
        assert "of the same stems lie side by side" in inferred_task(DataOptions(data=str(tmp_path)))[1]
        assert "lie side by side" in look(tmp_path).notes[-1] + "".join(look(tmp_path).notes)


def test_manifests_and_options_show_the_task(tmp_path):
    assert (
        inferred_task(DataOptions(data=str(table(tmp_path / "m.csv", "a,b", header="path,mask"))))[0] == "segmentation"
    )
    plain = str(table(tmp_path / "l.csv", "a,b", header="path,label"))
    assert inferred_task(DataOptions(data=plain, mask_values="binary"))[0] == "segmentation"
    assert inferred_task(DataOptions(data=plain, palette="p.csv")) == ("segmentation", "--palette is about masks")


@pytest.mark.parametrize("options", [{"palette": "p.csv"}, {"mask_values": "binary"}])
def test_options_of_masks_are_refused_elsewhere(tmp_path, options):
    draw(tmp_path / "cat" / "a.png", 1)
    with pytest.raises(ConfigError, match=r"masks, and the answers are one class per picture - leave it out"):
        index_images(DataOptions(data=str(tmp_path), task="classification", **options))


def test_folders_without_masks_say_what_is_expected(tmp_path):
    draw(tmp_path / "cat" / "a.png", 1)
    with pytest.raises(DataError, match="no images/ and masks/ in .*found cat/ - move them there, or pass a manifest"):
        look(tmp_path)


# ---- memory, copies, models -------------------------------------------------------------------------------------


def test_masks_are_kept_in_memory_while_they_fit(tmp_path):
    for stem in "abc":
        pair(tmp_path, stem, halves(0, 1))
    pixels, mask = SIZE[0] * SIZE[1] * 3 + 1, SIZE[0] * SIZE[1]
    found = look(tmp_path, keep_bytes=3 * pixels + 2 * mask)
    kept = [found.targets.seen[record.label].ranks is not None for record in found.records]
    assert kept == [True, True, False]
    for record in found.records:
        Path(record.label).write_bytes(b"")
    masks = found.targets.annotate([r.label for r in found.records], [r.path for r in found.records])
    assert np.array_equal(masks.read(1).mask, halves(0, 1))
    with pytest.raises(DataError, match="content changed since the data were indexed"):
        masks.read(2)


def test_a_model_reads_masks_that_it_has_not_seen(tmp_path):
    targets = MaskReader().of(TargetSpec(("no", "yes"), {"values": [0, 255], "mask_values": "classes"}))
    pair(tmp_path, "a", halves(0, 255))
    label, picture = str(tmp_path / "masks" / "a.png"), str(tmp_path / "images" / "a.bmp")
    assert np.array_equal(targets.annotate([label], [picture]).read(0).mask, halves(0, 1))
    assert targets.identity(label) == class_digest(halves(0, 1)) and targets.counts([label]) == [1, 1]
    Image.fromarray(halves(0, 9)).save(label)
    with pytest.raises(DataError, match="it holds 9, which stand for no class"):
        targets.annotate([label], [picture]).read(0)
    with pytest.raises(TypeError, match="annotate"):
        targets.encode([label])


def test_digests_tell_masks_apart():
    one = halves(0, 1, 2)
    digests = [class_digest(mask) for mask in (one, halves(0, 2, 1), halves(0, 1, 255), one.T.copy(), halves(1, 2, 3))]
    assert len(set(digests)) == 5 and class_digest(one.copy()) == digests[0]


def test_pictures_of_masks_are_shown_whole(tmp_path):
    for number in range(5):
        pair(tmp_path, str(number), halves(0, 1))
    data = ImageData(tmp_path, 32, val_split=0.0, test_split=0.0, reader=MaskReader(), augment="none")
    assert data.data_config.crop_mode == "pad" and data.data_config.crop_pct == 1.0
    images, masks = next(iter(data.train_dataloader()))
    assert images.shape == (5, 32, 32, 3) and masks.shape == (5, 32, 32) and masks.dtype.is_floating_point is False
    assert (masks[0, 0] == IGNORED).all() and set(masks[0, 16].tolist()) == {0, 1}
    assert DataConfig.from_dict(data.data_config.to_dict()) == data.data_config


def test_codings_survive_json():
    for coding in (Coding((0, 255)), Coding((0, 1), binary=True), Coding(((1, 2, 3), (4, 5, 6)), ((7, 8, 9),))):
        spec = TargetSpec(("a", "b"), json.loads(json.dumps(coding.facts())))
        assert Coding.of(spec) == coding
