"""Channels and deep values: grey, RGB, RGBA and bands, of pictures and of arrays, by independent references."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from transferkit.core.records import USUAL, DataConfig, Decoding
from transferkit.data.images.channels import as_rgb
from transferkit.data.images.decode import UnreadableImage, decode_image, decode_with_info, header_size, pixels_digest
from transferkit.data.images.resize import fit, resize
from transferkit.data.pixels.memory import MemoryPixels
from transferkit.data.pixels.shards import build_shard, places, read_header, read_picture
from transferkit.data.pixels.spec import PixelSpec


def saved(image, kind="PNG"):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def tiff(planes, bits=8, planar=1):
    """A plain TIFF of bands ``(C, H, W)``, written by hand: TIFF 6.0, section 2."""
    count, height, width = planes.shape
    order = np.moveaxis(planes, 0, -1) if planar == 1 else planes
    strips = [order.astype(f"<u{bits // 8}").tobytes()] if planar == 1 else [
        plane.astype(f"<u{bits // 8}").tobytes() for plane in order]  # fmt: skip
    extra = 8 + 2 + 12 * 11 + 4
    bits_at, offsets_at = extra, extra + 2 * count
    counts_at = offsets_at + 4 * len(strips)
    first = counts_at + 4 * len(strips)
    offsets = np.cumsum([first, *map(len, strips[:-1])])

    def entry(tag, kind, values, at):
        size = {3: 2, 4: 4}[kind] * len(values)
        inline = (
            struct.pack("<" + {3: "H", 4: "I"}[kind] * len(values), *values) if size <= 4 else struct.pack("<I", at)
        )
        return struct.pack("<HHI", tag, kind, len(values)) + inline.ljust(4, b"\0")

    entries = [
        entry(256, 4, [width], 0), entry(257, 4, [height], 0), entry(258, 3, [bits] * count, bits_at),
        entry(259, 3, [1], 0), entry(262, 3, [1], 0), entry(273, 4, list(offsets), offsets_at),
        entry(277, 3, [count], 0), entry(278, 4, [height], 0), entry(279, 4, list(map(len, strips)), counts_at),
        entry(284, 3, [planar], 0), entry(339, 3, [1], 0),
    ]  # fmt: skip
    head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 11) + b"".join(entries) + struct.pack("<I", 0)
    tables = struct.pack(f"<{count}H", *[bits] * count) + struct.pack(f"<{len(strips)}I", *offsets)
    return head + tables + struct.pack(f"<{len(strips)}I", *map(len, strips)) + b"".join(strips)


@pytest.fixture
def noise():
    return np.random.default_rng(0)


def test_grey_rgb_and_rgba_of_one_picture(noise):
    pixels = noise.integers(0, 256, (5, 7, 4), dtype=np.uint8)
    data = saved(Image.fromarray(pixels))
    assert np.array_equal(decode_image(data, decoding=Decoding(channels=4)), pixels)
    rgb = decode_image(data)
    grey = decode_image(data, decoding=Decoding(channels=1))
    assert grey.shape == (5, 7, 1)
    assert np.array_equal(grey[..., 0], np.asarray(Image.fromarray(rgb).convert("L")))
    opaque = decode_image(saved(Image.fromarray(pixels[..., :3])), decoding=Decoding(channels=4))
    assert (opaque[..., 3] == 255).all() and np.array_equal(opaque[..., :3], pixels[..., :3])


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_grey_files_keep_their_values(kind, noise):
    level = noise.integers(0, 256, (40, 40), dtype=np.uint8)
    data = saved(Image.fromarray(level), kind)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    assert np.array_equal(decode_image(data, decoding=Decoding(channels=1))[..., 0], expected)


def test_arrays_are_pictures(noise, tmp_path):
    bands = noise.integers(0, 256, (6, 9, 5), dtype=np.uint8)
    pixels, info = decode_with_info(npy(bands), decoding=Decoding(channels=5))
    assert np.array_equal(pixels, bands) and (info.height, info.width, info.format) == (6, 9, "NPY")
    assert np.array_equal(decode_image(npy(bands[..., 0]), decoding=USUAL), np.repeat(bands[..., :1], 3, axis=2))
    (tmp_path / "a.npy").write_bytes(npy(bands))
    assert header_size(tmp_path / "a.npy", Decoding(channels=5)) == (6, 9, 1)
    assert np.array_equal(as_rgb(bands), bands[..., :3])


@pytest.mark.parametrize(
    ("array", "decoding", "words"),
    [
        (np.zeros((6, 9, 5), np.uint8), USUAL, "it has 5 channels, expected 3"),
        (np.zeros((5, 6, 9), np.uint8), Decoding(channels=5), "channels come last"),
        (np.zeros((6, 9, 4), np.uint8), USUAL, "it has 4 channels, expected 3"),
        (np.zeros((6, 9), np.float32), USUAL, "float32 pixels have no agreed range"),
        (np.zeros((6, 9), np.int16), USUAL, "int16 pixels have no agreed range"),
        (np.full((6, 9), np.nan, np.float32), Decoding(value_range=(0, 1)), "some of its values are NaN"),
        (np.zeros((2, 6, 9, 3), np.uint8), USUAL, "an array of shape"),
        (np.array([[print]], dtype=object), USUAL, "Python objects"),
        (np.zeros((6, 9), np.complex64), Decoding(value_range=(0, 1)), "complex64 is no kind of pixels"),
    ],
)  # fmt: skip
def test_arrays_that_are_none(array, decoding, words):  # fault 236
    with pytest.raises(UnreadableImage, match=words):
        decode_image(npy(array), decoding=decoding)


@pytest.mark.parametrize("planar", [1, 2])
def test_bands_of_a_tiff(planar, noise):
    pytest.importorskip("tifffile")
    planes = noise.integers(0, 4096, (6, 5, 9))
    decoding = Decoding(channels=6, value_range=(96, 4000))
    pixels, info = decode_with_info(tiff(planes, 16, planar), decoding=decoding)
    expected = np.rint(255 * ((np.moveaxis(planes, 0, -1) - 96) / 3904).clip(0, 1))
    assert np.array_equal(pixels, expected) and info.peak == planes.max() and (info.height, info.width) == (5, 9)
    with pytest.raises(UnreadableImage, match="it has 6 channels, expected 4"):
        decode_image(tiff(planes, 16, planar), decoding=Decoding(channels=4))


def test_bands_without_the_package(noise, monkeypatch):  # fault 240
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    with pytest.raises(UnreadableImage, match=r"needs tifffile \(pip install 'transferkit\[tiff\]'\)") as caught:
        decode_image(tiff(noise.integers(0, 256, (6, 5, 9))), decoding=Decoding(channels=6))
    assert caught.value.passing


def test_a_range_of_deep_values(noise):
    deep = noise.integers(0, 65536, (8, 8)).astype(np.uint16)
    deep[0, 0], deep[0, 1] = 100, 1123
    expected = np.rint(255 * ((deep - 100.0) / 1023).clip(0, 1))
    for data in (saved(Image.fromarray(deep)), npy(deep), saved(Image.fromarray(deep), "TIFF")):
        pixels = decode_image(data, decoding=Decoding(value_range=(100, 1123)))
        assert np.array_equal(pixels[..., 0], expected) and np.array_equal(pixels[..., 2], expected)
    signed = noise.uniform(-1, 1, (8, 8)).astype(np.float32)
    pixels = decode_image(saved(Image.fromarray(signed), "TIFF"), decoding=Decoding(channels=1, value_range=(-1, 1)))
    assert np.abs(pixels[..., 0] - 255 * (signed + 1) / 2).max() <= 0.5 + 1e-3
    level = noise.integers(0, 256, (8, 8), dtype=np.uint8)  # of 8 bits: a range says nothing
    assert np.array_equal(decode_image(npy(level), decoding=Decoding(value_range=(0, 9)))[..., 0], level)


def test_deep_colour_keeps_its_low_bits(noise):
    cv2 = pytest.importorskip("cv2")
    deep = noise.integers(0, 1024, (8, 8, 3)).astype(np.uint16)
    data = cv2.imencode(".png", deep[..., ::-1])[1].tobytes()
    pixels = decode_image(data, decoding=Decoding(value_range=(0, 1023)))
    assert np.array_equal(pixels, np.rint(deep * (255 / 1023)))
    assert decode_image(data).max() <= 4  # as before: Pillow has the high bits alone


def test_old_keys_are_as_they_were():
    assert USUAL.key_values() == {} and PixelSpec.of(448, USUAL).to_dict()["decoding"] == {}
    assert DataConfig().to_dict()["decoding"] == {"ground": "#ffffff", "grey_bits": 16, "max_pixels": 100_000_000}
    assert set(DataConfig().key_values()) == {"image_size", "mean", "std", "interpolation", "crop_pct", "crop_mode"}
    other = Decoding(channels=6, value_range=(0, 1))
    assert other.key_values() == {"channels": 6, "value_range": [0, 1]}
    assert PixelSpec.of(448, other).key != PixelSpec.of(448, USUAL).key
    assert DataConfig.from_dict(DataConfig().of_channels(6).to_dict()) == DataConfig().of_channels(6)
    assert Decoding.from_dict(other.to_dict()) == other


@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_stores_keep_bands(count, noise, tmp_path):
    pixels = noise.integers(0, 256, (7, 5, count), dtype=np.uint8)
    digest = pixels_digest(pixels)
    memory = MemoryPixels(1000, count)
    assert np.array_equal(memory.put(digest, pixels), pixels) and np.array_equal(memory.get(digest), pixels)
    spec = PixelSpec.of(10, Decoding(channels=count))
    name, content = build_shard(spec, {digest: pixels})
    (tmp_path / name).write_bytes(b"".join(content))
    read, entries = read_header(tmp_path / name)
    assert read == spec and read.channels == count
    assert np.array_equal(read_picture(tmp_path / name, places(entries)[0], channels=count), pixels)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("mode", ["center", "squash", "pad"])
def test_bands_are_fitted_one_by_one(interpolation, mode, noise):
    pixels = noise.integers(0, 256, (30, 50, 7), dtype=np.uint8)
    config = DataConfig(image_size=(24, 64), mean=(0.5,) * 7, std=(0.2,) * 7, crop_mode=mode,
                        interpolation=interpolation)  # fmt: skip
    shown = fit(pixels, config)
    assert shown.shape == (24, 64, 7)
    for band in range(7):
        alone = fit(np.repeat(pixels[..., band : band + 1], 3, axis=2),
                    DataConfig(image_size=(24, 64), mean=(0.5,) * 3, std=(0.2,) * 3, crop_mode=mode,
                               interpolation=interpolation))  # fmt: skip
        assert np.array_equal(shown[..., band], alone[..., 0])
    assert resize(pixels[..., :1], (9, 9), 1).shape == (9, 9, 1)
