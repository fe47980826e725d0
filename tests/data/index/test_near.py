"""Near copies: what is found, what is not, and what features have to say."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from transferkit.core.errors import ConfigError
from transferkit.data.images.decode import decode_image
from transferkit.data.images.reading import read_images
from transferkit.data.images.sketch import Sketch, sketch_of
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
