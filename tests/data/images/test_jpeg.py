"""JPEGs that libjpeg-turbo decodes alone: Pillow's pixels, its refusals, and itself where they would differ."""

import io
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from transferkit.data.images import decode, jpeg
from transferkit.data.images.decode import UnreadableImage, decode_with_info
from transferkit.data.images.jpeg import jpeg_pixels


@pytest.fixture(autouse=True)
def tried_anew():
    yield
    jpeg._library.cache_clear()
    jpeg._agrees.cache_clear()


def drawn(height, width, seed=0):
    """Edges, colours and grain: what upsampling and rounding show in."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (height // 9 + 2, width // 7 + 2, 3), dtype=np.uint8)
    grain = generator.integers(0, 60, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(np.asarray(Image.fromarray(small).resize((width, height))) // 2 + grain)


def encoded(image, rare="", **options):
    """A JPEG; of a rare sampling, which Pillow does not write, by simplejpeg."""
    if rare:
        return simplejpeg.encode_jpeg(np.asarray(image.convert("RGB")), colorsubsampling=rare)
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def by_pillow(monkeypatch, data, **options):
    """What the decoder makes of a file without simplejpeg: pixels and facts, or the words of a refusal."""
    with monkeypatch.context() as patch:
        patch.setattr(decode, "jpeg_pixels", lambda *_: None)
        return outcome(data, **options)


def outcome(data, **options):
    try:
        pixels, info = decode_with_info(data, name="it", **options)
    except UnreadableImage as error:
        return str(error)
    return pixels.shape, pixels.tobytes(), info


KINDS = {
    "444": {"subsampling": 0},
    "422": {"subsampling": 1},
    "420": {"subsampling": 2},
    "411": {"rare": "411"},
    "440": {"rare": "440"},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "poor": {"quality": 5, "optimize": True},
    "good": {"quality": 100},
    **{f"turned {way}": {"exif": turned(way)} for way in range(2, 9)},
    "odd metadata": {"exif": b"Exif\0\0nonsense", "icc_profile": b"none", "comment": b"x" * 60_000},
    "as it is": {"keep_rgb": True},
}


@pytest.mark.parametrize(
    ("mode", "kind"), [(mode, kind) for mode in ("RGB", "L") for kind in KINDS][:-1]
)  # grey is always as it is
def test_pixels_and_facts_are_those_of_pillow(monkeypatch, kind, mode):
    for number, (height, width) in enumerate([(64, 65), (200, 97), (1030, 519)]):
        data = encoded(drawn(height, width, number).convert(mode), **KINDS[kind])
        for side in (None, 16, 64, 100):
            assert outcome(data, min_side=side) == by_pillow(monkeypatch, data, min_side=side), (height, width, side)


@pytest.mark.parametrize("mode", ["CMYK", "1"])
def test_other_colours_are_left_to_pillow(monkeypatch, mode):
    data = encoded(drawn(80, 90).convert(mode))
    assert outcome(data) == by_pillow(monkeypatch, data)


def pillow_is_asked(monkeypatch, data):
    """Whether Pillow decodes the file."""
    asked = []
    load = decode.JpegImageFile.load
    with monkeypatch.context() as patch:
        patch.setattr(decode.JpegImageFile, "load", lambda self: (asked.append(self), load(self))[1])
        decode_with_info(data)
    return bool(asked)


@pytest.mark.parametrize(
    ("options", "size", "pillow"),
    [
        ({}, (90, 70), False),
        ({"progressive": True}, (90, 70), False),
        ({"subsampling": 0}, (90, 70), False),
        ({"rare": "411"}, (90, 70), True),
        ({"rare": "440"}, (90, 70), True),
        ({"keep_rgb": True}, (90, 70), True),
        ({}, (90, 63), True),  # a side whose fractions may be equal
    ],
)
def test_who_decodes(monkeypatch, options, size, pillow):
    assert jpeg._agrees()
    assert pillow_is_asked(monkeypatch, encoded(drawn(*size), **options)) is pillow


@pytest.mark.parametrize("progressive", [False, True])
def test_cut_and_damaged_files_get_what_pillow_gives_them(monkeypatch, progressive):
    whole = encoded(drawn(66, 80), progressive=progressive)
    generator = np.random.default_rng(0)
    cases = [whole[:length] for length in range(0, len(whole), 41)]
    cases += [
        whole[:-2],
        whole[:-1],
        whole + b"more",
        whole * 2,
    ]
    for _ in range(150):
        damaged = bytearray(whole)
        for place in generator.integers(0, len(whole), generator.integers(1, 4)):
            damaged[place] = generator.integers(0, 256)
        cases.append(bytes(damaged))
    results = [outcome(case) for case in cases]
    assert results == [by_pillow(monkeypatch, case) for case in cases]
    assert {type(result) for result in results} == {str, tuple}  # some are refused, and some are not


def test_a_decoder_of_other_pixels_is_not_used(monkeypatch):
    data, exact = encoded(drawn(90, 120)), simplejpeg.decode_jpeg
    jpeg._agrees.cache_clear()
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *args, **words: exact(*args, fastdct=True, **words))
    assert not np.array_equal(jpeg._decoded(data, 90, 120), decode_with_info(data)[0])  # it does differ
    assert pillow_is_asked(monkeypatch, data)


def test_without_simplejpeg_pillow_decodes(monkeypatch):
    expected = outcome(encoded(drawn(90, 120)))
    jpeg._library.cache_clear()
    jpeg._agrees.cache_clear()
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    data = encoded(drawn(90, 120))
    assert pillow_is_asked(monkeypatch, data)
    assert outcome(data) == expected


def test_threads_get_what_one_gets():
    files = [encoded(drawn(70 + number, 90, number)) for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(outcome, files)) == list(map(outcome, files))


def test_pixels_belong_to_the_caller():
    pixels = jpeg_pixels(data := encoded(drawn(70, 90)), decode.JpegImageFile(io.BytesIO(data)))
    assert pixels.flags.owndata and pixels.flags.writeable and pixels.flags.c_contiguous
