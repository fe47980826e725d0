"""Near copies: what is found, what is not, and what features have to say."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from transferkit.core.errors import ConfigError
from transferkit.data.images.decode import decode_image
from transferkit.data.images.reading import read_images
from transferkit.data.images.sketch import Sketch, sketch_of
from transferkit.data.index import near
from transferkit.data.index.near import near_copies
from transferkit.data.sample import sample_folder


def saved(image, quality):
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream)


def cut(image, share):
    width, height = image.size
    return image.crop((0, int(share * height / 2), int(width * (1 - share)), int(height * (1 - share / 2))))


CHANGES = {
    "smaller": lambda image: image.resize((image.width // 2, image.height // 2)),
    "larger": lambda image: image.resize((image.width * 2, image.height * 2)),
    "squeezed": lambda image: image.resize((image.width, image.height * 3 // 4)),
    "quality": lambda image: saved(image, 25),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.6),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.2),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "cut 3 %": lambda image: cut(image, 0.03),
    "cut 5 %, all at once": lambda image: saved(ImageEnhance.Brightness(cut(image, 0.05)).enhance(1.1), 50),
}


def scene(seed, size=(160, 120)):
    """Shapes before a ground of two colours: unlike each other, as photos are."""
    rng = np.random.default_rng(seed)
    few = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    return few.resize(size, Image.Resampling.BICUBIC)


def sketch(image, tmp_path):
    image.save(tmp_path / "x.png")
    return read_images([str(tmp_path / "x.png")], min_side=None)[0].sketch


def test_cells_are_as_bright_as_the_picture_is_there(tmp_path):
    image = scene(0, (450, 370))
    cells = np.frombuffer(sketch(image, tmp_path).cells, np.uint8).reshape(32, 32)
    fine = np.asarray(image.convert("L")).repeat(32, axis=0).repeat(32, axis=1)  # every cell has whole pixels of it
    means = fine.reshape(32, 370, 32, 450).mean(axis=(1, 3))
    assert np.abs(cells - means).max() < 10 and np.abs(cells - means).mean() < 2
    for turned in (cells[::-1], cells[:, ::-1], cells.T):
        assert np.abs(turned - means).mean() > 20


def test_tiny_and_long_pictures_have_sketches(tmp_path):
    for size in ((1, 7), (5, 1), (31, 33), (3000, 2)):
        picture = Image.new("RGB", size, (40, 40, 40))
        picture.putpixel((0, 0), (41, 40, 40))  # 40 of 255 in grey, too
        made = sketch(picture, tmp_path)
        assert (made.width, made.height, made.scale) == (*size, 1) and set(made.cells) == {40}
        assert sketch(Image.new("RGB", size, (40, 40, 40)), tmp_path) is None  # what it shows is not to be seen


@pytest.mark.parametrize("change", CHANGES)
def test_a_near_copy_is_found(tmp_path, change):
    pictures = [scene(seed) for seed in range(12)]
    pictures[7:7] = [CHANGES[change](pictures[3])]
    assert near_copies([sketch(picture, tmp_path) for picture in pictures]) == ((3, 7),)


def test_pictures_of_one_kind_are_no_copies():
    paths = sorted(str(path) for path in sample_folder().rglob("*.jpg"))
    results = read_images(paths, min_side=64, workers=2)
    sketches = [result.sketch for result in results]
    assert near_copies(sketches) == ()
    pixels = decode_image(paths[50])
    sketches.append(sketch_of(np.ascontiguousarray(pixels[2:-1, 1:-2]), results[50].info))
    assert near_copies(sketches) == ((50, 360),)


def test_groups_hold_near_copies_of_near_copies(tmp_path):
    first = scene(0, (400, 400))
    chain = [first, cut(first, 0.06), cut(cut(first, 0.06), 0.08), *(scene(seed) for seed in range(1, 5))]
    sketches = [sketch(picture, tmp_path) for picture in chain]
    assert near_copies([sketches[0], sketches[2]]) == ()
    assert near_copies(sketches) == ((0, 1, 2),)
    assert near_copies(sketches[::-1]) == ((4, 5, 6),)
    assert near_copies([*sketches, *sketches[3:5], sketches[3]]) == ((0, 1, 2), (3, 7, 9), (4, 8))


def test_plain_surfaces_are_like_any_other(tmp_path):
    plain = [Image.new("RGB", (60, 40), (level, level, level)) for level in (0, 0, 127, 254)]
    for picture in plain:
        picture.putpixel((0, 0), (0, 1, 0) if picture.getpixel((1, 1))[0] < 200 else (255, 255, 255))
    noise = np.random.default_rng(0).integers(126, 129, (2, 300, 300, 3), dtype=np.uint8)
    assert near_copies([sketch(picture, tmp_path) for picture in [*plain, *map(Image.fromarray, noise)]]) == ()


def test_features_confirm_and_deny(tmp_path):
    pictures = [scene(seed) for seed in range(5)]
    pictures += [pictures[0].rotate(2.5, resample=Image.Resampling.BICUBIC), saved(pictures[1], 60)]
    sketches = [sketch(picture, tmp_path) for picture in pictures]
    assert near_copies(sketches) == ((1, 6),)
    features = np.eye(7, 9)
    features[5] = 3 * features[0]
    assert near_copies(sketches, features) == ((0, 5),)  # 1 and 6 look the same to us, and not to the network
    features[6] = features[1]
    features[4] = features[2]
    assert near_copies(sketches, features) == ((0, 5), (1, 6))  # 2 and 4 are of one kind, but not one picture


def test_no_pictures_and_too_few_features(tmp_path):
    assert near_copies([]) == () == near_copies([Sketch(1, 1, 1, bytes(1024))])
    with pytest.raises(ConfigError, match="1 rows of features for 2 pictures, expected one for each"):
        near_copies([Sketch(1, 1, 1, bytes(1024))] * 2, np.ones((1, 3)))


def plainly(sketches, features=None):
    """Near copies by comparing each window with each whole sketch, pair by pair, as they are defined."""
    cells = np.array([np.frombuffer(one.cells, np.uint8) for one in sketches], np.float64).reshape(-1, 32, 32)
    borders = [(0.0, 1.0)]
    borders += [(share * cut, 1 - cut + share * cut) for cut in (0.025, 0.05, 0.075, 0.1) for share in (0, 0.5, 1)]

    def averages(first, last):
        edges = np.linspace(first, last, 17) * 32
        shares = [
            [max(0.0, min(high, cell + 1) - max(low, cell)) for cell in range(32)]
            for low, high in itertools.pairwise(edges)
        ]
        return np.array(shares) / np.sum(shares, axis=1, keepdims=True)

    def slopes(rows, columns):
        inside = averages(*rows) @ cells @ averages(*columns).T
        parts = (np.diff(inside, axis=2).reshape(-1, 240), np.diff(inside, axis=1).reshape(-1, 240))
        flat = np.concatenate(parts, axis=1)
        size = np.linalg.norm(flat, axis=1)
        return flat / np.maximum(size, 1e-12)[:, None], size / np.sqrt(480) >= 0.5

    whole, structured = slopes(borders[0], borders[0])
    cuts = [borders[:1]] + [borders[first : first + 3] for first in (1, 4, 7, 10)]
    best = np.max([slopes(one, two)[0] @ whole.T for cut in cuts for one in cut for two in cut], axis=0)
    close = (
        (whole @ whole.T > 0.45) & structured & structured[:, None] & (best >= (0.955 if features is None else 0.92))
    )
    if features is not None:
        rows = features / np.linalg.norm(features, axis=1, keepdims=True)
        close &= rows @ rows.T >= 0.85
    close |= close.T | np.eye(len(close), dtype=bool)
    name = np.arange(len(sketches))
    while (name != (lower := np.where(close, name, len(name)).min(axis=1))).any():
        name = lower
    groups = [tuple(np.flatnonzero(name == first).tolist()) for first in sorted(set(name.tolist()))]
    return tuple(group for group in groups if len(group) > 1)


def drawn(cells):
    return Sketch(64, 64, 1, np.clip(cells, 0, 255).astype(np.uint8).tobytes())


def blots(rng, count, side=6):
    """Many unlike pictures as cells: a few levels, made wider."""
    coarse = rng.integers(0, 256, (count, side, side), dtype=np.uint8)
    return [np.asarray(Image.fromarray(one).resize((32, 32), Image.Resampling.BILINEAR), float) for one in coarse]


def families_of_many(rng, count):
    """Unlike pictures, some of them again, noisy, brighter or cut."""
    base = blots(rng, count)
    again = [base[at] + rng.normal(0, spread, (32, 32)) for at, spread in ((3, 2), (7, 9), (7, 20), (11, 35), (5, 60))]
    again += [base[13] * 0.7 + 20, base[13]]
    for at, share in ((17, 0.04), (17, 0.09), (19, 0.2)):
        image = Image.fromarray(base[at].astype(np.uint8))
        again.append(np.asarray(image.resize((32, 32), box=(0, 32 * share / 2, 32 - 32 * share, 32)), float))
    return base + again


def frames(rng, count):
    """One scene that changes little by little until it is another one: a chain."""
    first, last = blots(rng, 2)
    return [first + (last - first) * share + rng.normal(0, 3, (32, 32)) for share in np.linspace(0, 1, count)]


def fine(rng):
    """Pictures of fine grain and their corners: alike as windows, but not as wholes, and so no candidates."""
    grain = [Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)) for _ in range(60)]
    whole = [one.resize((640, 640), Image.Resampling.BICUBIC) for one in grain]
    corners = [one.crop((0, 0, 576, 576)) for one in whole]
    return [np.asarray(one.resize((32, 32), Image.Resampling.BOX), float) for one in whole + corners]


def aligned(rng, count):
    """Pictures of one kind: all much alike, and none a copy."""
    (common,) = blots(rng, 1)
    return [common + 0.7 * (other - 128) for other in blots(rng, count, side=9)]


SETS = {
    "unlike": lambda rng: families_of_many(rng, 400),
    "equal": lambda rng: [cells for cells in blots(rng, 6) for _ in range(50)],
    "chain": lambda rng: frames(rng, 150) + frames(rng, 40),
    "fine": fine,
    "aligned": lambda rng: aligned(rng, 300),
    "black": lambda rng: [np.zeros((32, 32))] * 300 + blots(rng, 3) * 2,
    "faint": lambda rng: [cells / 128 for cells in families_of_many(rng, 150)],
}


@pytest.mark.parametrize("many", [near.MANY, 100])  # with the directions of 480, and with some of them
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("kind", SETS)
def test_families_are_those_of_comparing_all_with_all(monkeypatch, kind, workers, many):
    monkeypatch.setattr(near, "MANY", many)
    rng = np.random.default_rng(sorted(SETS).index(kind))
    cells = SETS[kind](rng)
    sketches = [drawn(cells[at]) for at in rng.permutation(len(cells))]
    assert near_copies(sketches, workers=workers) == plainly(sketches)


@pytest.mark.parametrize("kind", ["unlike", "equal", "aligned"])
def test_features_divide_the_families_of_many(monkeypatch, kind):
    monkeypatch.setattr(near, "MANY", 100)
    rng = np.random.default_rng(0)
    sketches = [drawn(cells) for cells in SETS[kind](rng)]
    features = rng.normal(size=(len(sketches), 6)) + 2
    groups = near_copies(sketches, features, workers=2)
    assert groups == plainly(sketches, features)
    assert (groups == near_copies(sketches)) == (kind == "aligned")  # none either way


def test_progress_counts_the_pictures():
    sketches = [drawn(cells) for cells in blots(np.random.default_rng(0), 300)]
    calls = []
    near_copies(sketches, workers=2, progress=lambda *numbers: calls.append(numbers))
    assert calls == [(128, 300), (256, 300), (300, 300)]
