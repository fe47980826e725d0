"""Pictures of equal pixels under other bytes: found whatever was done to the file, kept in one split and class."""

import io
import itertools

import numpy as np
import pytest
from data_sets import draw, folder, index, refused, table
from PIL import Image, ImageOps

from transferkit.core.records import USUAL, Decoding
from transferkit.data.images import decode
from transferkit.data.images.reading import CHECK_SIDE, read_images
from transferkit.data.images.sketchbook import Sketchbook
from transferkit.data.index import copies
from transferkit.data.index.copies import equal_pictures
from transferkit.data.pixels.memory import MemoryPixels
from transferkit.data.scan.records import Kind


def photo(seed, size=(48, 32)):
    """Smooth colours, as JPEG takes them, of a seed."""
    few = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(few).resize(size, Image.Resampling.BICUBIC)


def jpeg(image, **options):
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90, **options)
    return stream.getvalue()


def turned(image, orientation):
    """Return EXIF data of an orientation, and the picture as it must be stored to be seen as it was."""
    back = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # Pillow's numbers of transpositions
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif, image if back is None else image.transpose(Image.Transpose(back))


def families(paths, **options):
    """Return the sets of files that are told to be equal."""
    results = read_images([str(path) for path in paths], **{"min_side": None, **options})
    assert [result.error for result in results] == [None] * len(results)
    book = Sketchbook(options.get("decoding", USUAL))
    same, found = equal_pictures(results, book, workers=2), {}
    for result in results:
        found.setdefault(same.get(result.sha256, result.sha256), set()).add(result.path.rpartition("/")[2])
    return sorted((family for family in found.values() if len(family) > 1), key=min)


def test_saved_again(tmp_path):
    image = photo(0)
    for name, options in {
        "a.png": {}, "a1.png": {"compress_level": 1}, "a.bmp": {}, "a.tif": {}, "a.webp": {"lossless": True},
        "a2.tif": {"compression": "tiff_lzw"}, "exif.png": {"exif": turned(image, 1)[0]},
    }.items():  # fmt: skip
        image.save(tmp_path / name, **options)
    image.convert("RGBA").save(tmp_path / "alpha.png")
    for orientation in range(2, 9):
        exif, stored = turned(image, orientation)
        stored.save(tmp_path / f"turned{orientation}.png", exif=exif)
        assert np.array_equal(ImageOps.exif_transpose(Image.open(tmp_path / f"turned{orientation}.png")), image)
    (tmp_path / "b.jpg").write_bytes(jpeg(photo(1)))
    (tmp_path / "b2.jpg").write_bytes(jpeg(photo(1), comment=b"holiday"))
    (tmp_path / "b3.jpg").write_bytes(jpeg(photo(1), progressive=True))
    Image.open(tmp_path / "b.jpg").save(tmp_path / "b.png")
    alone = {"other.png": photo(2), "grey.png": image.convert("L"), "wide.png": image.resize((50, 32)),
             "mirror.png": ImageOps.mirror(image)}  # fmt: skip
    for name, picture in alone.items():
        picture.save(tmp_path / name)
    Image.open(tmp_path / "b.jpg").save(tmp_path / "again.jpg", quality=70)
    paths = sorted(tmp_path.iterdir())
    names = {path.name for path in paths} - {*alone, "again.jpg"}
    assert families(paths) == [{n for n in names if not n.startswith("b")}, {n for n in names if n.startswith("b")}]


@pytest.mark.parametrize("keep_bytes", [0, 10**9])
def test_photos_that_are_decoded_at_a_fraction(tmp_path, keep_bytes):
    for seed in range(6):
        (tmp_path / f"{seed}.jpg").write_bytes(jpeg(photo(seed, (604, 403))))
        (tmp_path / f"{seed}-exif.jpg").write_bytes(jpeg(photo(seed, (604, 403)), comment=b"x"))
    Image.open(tmp_path / "3.jpg").save(tmp_path / "3.png")
    exif, stored = turned(Image.open(tmp_path / "4.jpg"), 6)
    stored.save(tmp_path / "4.png", exif=exif)
    Image.open(tmp_path / "5.jpg").save(tmp_path / "5-other.jpg", quality=60)
    paths = sorted(tmp_path.iterdir())
    expected = [{f"{seed}.jpg", f"{seed}-exif.jpg"} | ({f"{seed}.png"} if seed in (3, 4) else set())
                for seed in range(6)]  # fmt: skip
    for side in (CHECK_SIDE, 200, None):
        assert [scale.sketch.scale for scale in read_images([str(paths[0])], min_side=side)] == [
            {CHECK_SIDE: 4, 200: 2}.get(side, 1)
        ]
        assert families(paths, min_side=side, keep=MemoryPixels(keep_bytes).put) == [set(family) for family in expected]


def test_one_level_of_one_pixel(tmp_path):
    pixels = np.array(photo(0))
    Image.fromarray(pixels).save(tmp_path / "a.png")
    pixels[3, 3, 0] ^= 1
    Image.fromarray(pixels).save(tmp_path / "b.png")
    results = read_images([str(tmp_path / "a.png"), str(tmp_path / "b.png")], min_side=None)
    assert results[0].sketch == results[1].sketch  # so it is the second look that tells them apart
    assert equal_pictures(results, Sketchbook()) == {}


def test_only_what_may_be_equal_is_looked_at_again(tmp_path, monkeypatch):
    paths = [draw(tmp_path / f"{number}.png", number, size=(64, 48)) for number in range(30)]
    paths += [tmp_path / "again.png"]
    Image.open(paths[7]).save(paths[-1], compress_level=0)
    looked = []
    monkeypatch.setattr(
        copies, "decode_image", lambda data, *, decoding, name: looked.append(name) or decode.decode_image(data)
    )
    assert families(paths) == [{"7.png", "again.png"}]
    assert sorted(looked) == sorted([str(paths[7]), str(paths[-1])])
    looked.clear()
    assert families(paths) == [{"7.png", "again.png"}]
    assert looked == []  # they are known from before
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert families(paths, keep=MemoryPixels(10**9).put) == [{"7.png", "again.png"}]
    assert looked == []  # their pixels are in memory


def test_files_that_are_gone_are_what_they_look_like(tmp_path):
    pixels = np.array(photo(0))
    for number in range(3):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png", compress_level=number)
    pixels[3, 3, 0] ^= 1
    Image.fromarray(pixels).save(tmp_path / "other.png")
    results = read_images([str(path) for path in sorted(tmp_path.iterdir())], min_side=None)
    hashes = [result.sha256 for result in results]
    (tmp_path / "0.png").rename(tmp_path / "0")
    (tmp_path / "1.png").rename(tmp_path / "1")
    (tmp_path / "1.png").write_bytes(b"")
    assert equal_pictures(results[:2], Sketchbook()) == dict.fromkeys(hashes[:2], min(hashes[:2]))
    assert equal_pictures(results[:3], Sketchbook()) == dict.fromkeys(hashes[:3], min(hashes[:3]))
    assert equal_pictures(results, Sketchbook()) == {}  # they may be copies of either
    (tmp_path / "0").rename(tmp_path / "0.png")
    (tmp_path / "1").rename(tmp_path / "1.png")
    assert equal_pictures(results, Sketchbook()) == dict.fromkeys(hashes[:3], min(hashes[:3]))


def test_photos_too_large_for_their_full_size(tmp_path):
    few = Decoding(max_pixels=20_000)
    (tmp_path / "a.jpg").write_bytes(jpeg(photo(0, (400, 300))))
    (tmp_path / "b.jpg").write_bytes(jpeg(photo(0, (400, 300)), comment=b"x"))
    (tmp_path / "c.jpg").write_bytes(jpeg(photo(1, (400, 300))))
    assert families(sorted(tmp_path.iterdir()), min_side=CHECK_SIDE, decoding=few) == [{"a.jpg", "b.jpg"}]


# --- what an index does about them ------------------------------------------------------------------------------------


def test_copies_share_a_split_and_a_fold(tmp_path):
    root = folder(tmp_path / "d")
    before = {record.path: record.split for record in index(root).records}
    for path in [*root.glob("*/*.bmp")]:
        Image.open(path).save(path.with_suffix(".png"))
    indexed = index(root)
    by_picture = {}
    for record in indexed.records:
        by_picture.setdefault(record.path.rpartition(".")[0], []).append(record)
    assert len(by_picture) == 40
    for pair in by_picture.values():
        assert len({record.split for record in pair}) == len({record.content for record in pair}) == 1
        assert {record.content for record in pair} == {min(record.sha256 for record in pair)}
        smallest = min(pair, key=lambda record: record.sha256)
        if smallest.path in before:
            assert smallest.split == before[smallest.path]
    assert len({record.split for record in indexed.records}) == 3


def test_groups_and_copies_tie_pictures_together(tmp_path):
    folder(tmp_path / "d", count=6)
    for name in ("cat/000", "cat/003"):
        Image.open(tmp_path / "d" / f"{name}.bmp").save(tmp_path / "d" / f"{name}.png")
    rows = [f"cat/00{number}.bmp,cat,g{number // 2}" for number in range(6)]
    rows += ["cat/000.png,cat,g1", "cat/003.png,cat,"] + [f"dog/00{number}.bmp,dog," for number in range(6)]
    manifest = table(tmp_path / "d" / "m.csv", *rows, header="path,label,group")
    for seed in range(5):
        indexed = index(manifest, seed=seed, val_split=0.3, test_split=0.3)
        units = {}
        for record in indexed.records:
            units.setdefault(record.unit, []).append(record)
        assert sorted(map(len, units.values())) == [1] * 6 + [2, 6]
        assert all(len({record.split for record in unit}) == 1 for unit in units.values())


@pytest.mark.parametrize("near", [True, False])
def test_near_copies_are_kept_together_on_request(tmp_path, near):
    for label, number in itertools.product("ab", range(20)):
        picture = photo(100 * ord(label) + number, (200, 150))
        (tmp_path / "d" / label).mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / "d" / label / f"{number}-0.png")
        small = picture.resize((150, 110)).crop((2, 2, 149, 109))
        (tmp_path / "d" / label / f"{number}-1.jpg").write_bytes(jpeg(small))
    progress = []
    indexed = index(tmp_path / "d", group_near=near, progress=lambda *each: progress.append(each), workers=2)
    apart, places = 0, {}
    for record in indexed.records:
        places.setdefault(record.path.rpartition("-")[0], []).append(record)
    for pair in places.values():
        apart += len({record.split for record in pair}) > 1
        assert (len({record.unit for record in pair}) == 1) == near
    assert (apart == 0) == near
    assert progress.count((80, 80)) == 1 + near
    notes = [note for note in indexed.notes if "80 pictures are kept together with their near copies: " in note]
    assert len(notes) == near


def test_near_copies_in_two_given_splits_are_refused_on_request(tmp_path):
    for split, seed in itertools.product(("train", "test"), range(8)):
        path = tmp_path / "d" / split / "ab"[seed % 2] / f"{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(seed if (split, seed) == ("test", 5) or split == "train" else seed + 50, (200, 150)).save(path)
    Image.open(path.with_name("5.png")).resize((180, 140)).save(path.with_name("5.png"))
    assert index(tmp_path / "d").findings == ()
    message, (finding,) = refused(tmp_path / "d", Kind.LEAK, group_near=True)
    assert "1 pictures with near copies in more than one split: " in message and "--allow-leaks" in message
    assert finding.items == (f"{str(tmp_path / 'd/test/b/5.png')!r} ~ {str(tmp_path / 'd/train/b/5.png')!r}",)
    assert index(tmp_path / "d", group_near=True, allow_leaks=True).findings


def test_a_copy_in_another_split_or_class_is_refused(tmp_path):  # fault 24
    folder(tmp_path / "d", count=4)
    Image.open(tmp_path / "d" / "cat" / "001.bmp").save(tmp_path / "d" / "dog" / "liar.png")
    message, _ = refused(tmp_path / "d", Kind.LEAK)
    assert "1 pictures with more than one label" in message and "liar.png" in message and "001.bmp" in message
    assert any("liar.png" in note for note in index(tmp_path / "d", allow_leaks=True).notes)
    rows = ["cat/000.bmp,cat,train", "cat/001.bmp,cat,train", "cat/copy.png,cat,test", "dog/000.bmp,dog,train"]
    Image.open(tmp_path / "d" / "cat" / "001.bmp").save(tmp_path / "d" / "cat" / "copy.png")
    message, _ = refused(table(tmp_path / "d" / "m.csv", *rows, header="path,label,split"), Kind.LEAK)
    assert "1 pictures in more than one split" in message and "copy.png" in message


def test_pictures_of_one_colour_are_no_copies(tmp_path):
    """White drawings on a transparent ground are white all over: not one picture under many labels (fault 107)."""
    for number, name in enumerate(("circle", "square", "star")):
        image = Image.new("RGBA", (30, 30), (255, 255, 255, 0))
        image.putpixel((number, 3), (255, 255, 255, 255))
        image.save(tmp_path / f"{name}.png")
    paths = sorted(tmp_path.iterdir())
    assert families(paths) == []
    assert (
        len(
            {
                result.pixels.tobytes()
                for result in read_images(list(map(str, paths)), min_side=None, keep=MemoryPixels(9999).put)
            }
        )
        == 1
    )
    photo(3).save(tmp_path / "a.png")
    photo(3).save(tmp_path / "b.bmp")
    assert families(sorted(tmp_path.iterdir())) == [{"a.png", "b.bmp"}]
