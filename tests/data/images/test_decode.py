"""The one decoder: formats, colours, orientation, limits, scaled decoding, threads."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import gallery
import numpy as np
import pillow_heif
import pytest
from gallery import png_chunk, raw_png, raw_tiff
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from transferkit.core.errors import ConfigError, DataError
from transferkit.core.records import USUAL, DataConfig, Decoding
from transferkit.data.images.decode import (
    UnreadableImage,
    decode_image,
    decode_with_info,
    image_pixels,
    pixels_digest,
    read_bytes,
)
from transferkit.data.images.readers import quiet_pillow
from transferkit.data.images.reading import ReadResult, read_images
from transferkit.data.index.checks import special_pictures
from transferkit.data.pixels.memory import MemoryPixels
from transferkit.data.scan.formats import EXTENSIONS, FORMATS, read_extensions, sniff_format, unread_text


def picture(height=24, width=40, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height, width):
    y, x = np.mgrid[0:height, 0:width]
    planes = [x * 255 / max(width - 1, 1), y * 255 / max(height - 1, 1), (x + y) * 255 / max(height + width - 2, 1)]
    return np.stack(planes, axis=-1).astype(np.uint8)


def encode(array_or_image, kind, **options):
    if kind == "NPY":
        file = io.BytesIO()
        np.save(file, np.asarray(array_or_image))
        return file.getvalue()
    image = array_or_image if isinstance(array_or_image, Image.Image) else Image.fromarray(array_or_image)
    return gallery.encode(image, kind, **options)


# --- what comes out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_give_the_pixels_back(kind):
    array = picture()
    got = decode_image(encode(array, kind, **({"lossless": True} if kind == "WEBP" else {})))
    np.testing.assert_array_equal(got, array)
    assert got.dtype == np.uint8 and got.flags.c_contiguous and got.flags.writeable


def test_jpeg_is_what_opencv_decodes():
    import cv2

    data = encode(smooth(64, 80), "JPEG", quality=95, subsampling=0)
    reference = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    assert np.abs(decode_image(data).astype(int) - reference).max() <= 2


def test_sources_agree(tmp_path):
    data = encode(picture(), "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(data)
    for source in (str(path), path, data):
        np.testing.assert_array_equal(decode_image(source), picture())
    assert read_bytes(path) == data


def test_the_content_decides_not_the_name(tmp_path):  # fault 14
    path = tmp_path / "a.jpg"
    path.write_bytes(encode(picture(), "PNG"))
    array, info = decode_with_info(path)
    np.testing.assert_array_equal(array, picture())
    assert info.format == "PNG"


def test_every_format_is_sniffed_and_named():
    for kind in FORMATS:
        assert sniff_format(encode(picture(), kind)[:16]) == kind
    assert set(EXTENSIONS.values()) == set(FORMATS)
    assert sniff_format(b"RIFF\0\0\0\0WAVEfmt ") is None


# What a viewer shows for EXIF orientation n (EXIF 2.3, tag 0x0112), written out as array operations.
VIEWS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("orientation", VIEWS)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_orientation(kind, orientation):  # fault 16
    array = picture() if kind != "JPEG" else smooth(24, 40)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 98, "subsampling": 0}}.get(kind, {})
    got, info = decode_with_info(encode(array, kind, exif=exif, **options))
    assert (info.height, info.width) == got.shape[:2]
    expected = VIEWS[orientation](array)
    assert got.shape == expected.shape and got.flags.c_contiguous
    assert np.abs(got.astype(int) - expected).max() <= (4 if kind == "JPEG" else 0)


@pytest.mark.parametrize("orientation", [1, 6])
def test_orientation_of_a_tiff_with_pages_and_of_a_compressed_one(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pages = [Image.fromarray(picture(seed=1))]
    for options in ({"save_all": True, "append_images": pages}, {"compression": "tiff_lzw"}):
        got, info = decode_with_info(encode(picture(), "TIFF", exif=exif, **options))
        np.testing.assert_array_equal(got, VIEWS[orientation](picture()))
        assert (info.height, info.width) == got.shape[:2]


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II\x2a\0\xff\xff\xff\x7f", b"Exif\0\0"])
def test_damaged_exif_is_no_reason_to_refuse(exif):
    assert decode_image(encode(smooth(24, 40), "JPEG", exif=exif)).shape == (24, 40, 3)


CMYK = [(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 0), (0, 0, 0, 255), (40, 90, 160, 30)]


def adobe_segment(data):
    start = data.index(b"\xff\xee")
    assert data[start + 4 : start + 9] == b"Adobe"
    return start, start + 2 + struct.unpack(">H", data[start + 2 : start + 4])[0]


def rgb_of(cmyk):
    return [(255 - ink) * (255 - cmyk[3]) / 255 for ink in cmyk[:3]]


@pytest.mark.parametrize("ink", CMYK)
def test_cmyk_jpeg(ink):  # fault 17
    adobe = encode(Image.new("CMYK", (16, 16), ink), "JPEG", quality=100)
    got = decode_image(adobe)
    assert got.shape == (16, 16, 3)
    assert np.abs(got[8, 8] - np.array(rgb_of(ink))).max() <= 3, "Adobe: stored inverted"
    start, stop = adobe_segment(adobe)
    np.testing.assert_array_equal(decode_image(adobe[:start] + adobe[stop:]), got, "without the mark: taken as Adobe's")


@pytest.mark.parametrize("ink", [(200, 128, 128, 0), (90, 128, 128, 60), (150, 100, 160, 20)])
def test_ycck_jpeg(ink):  # fault 17
    data = bytearray(encode(Image.new("CMYK", (16, 16), ink), "JPEG", quality=100))
    _, stop = adobe_segment(data)
    data[stop - 1] = 2  # Adobe's transform flag: the planes are Y, Cb, Cr and K
    y, cb, cr, k = (255 - value for value in ink)  # what is stored
    rgb = [y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128)]
    # YCCK is YCbCr of the complements of the stored CMY, and Adobe stores the complements of the inks
    stored = [255 - np.clip(value, 0, 255) for value in rgb]
    expected = rgb_of([*(255 - value for value in stored), 255 - k])
    assert np.abs(decode_image(bytes(data))[8, 8] - np.array(expected)).max() <= 3


def test_grey_is_replicated():  # fault 29
    ramp = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
    for kind in ("PNG", "JPEG", "BMP", "TIFF", "GIF"):
        got, info = decode_with_info(encode(ramp, kind))
        assert np.array_equal(got[..., 0], got[..., 1]) and np.array_equal(got[..., 0], got[..., 2])
        assert np.abs(got[..., 0].astype(int) - ramp).max() <= (3 if kind == "JPEG" else 0)
        assert info.grey or kind == "GIF"


RAMP = np.arange(0, 65536, 257, dtype=np.uint16).reshape(1, 256)


@pytest.mark.parametrize("order", [">u2", "<u2"])
def test_16_bit_grey_is_scaled_not_saturated(order):  # fault 18
    expected = np.arange(256, dtype=np.uint8)
    png = raw_png(256, 1, 16, 0, [RAMP.astype(">u2").tobytes()])
    tiff = encode(
        Image.frombytes("I;16B" if order == ">u2" else "I;16", (256, 1), RAMP.astype(order).tobytes()), "TIFF"
    )
    for data in (png, tiff):
        got, info = decode_with_info(data)
        np.testing.assert_array_equal(got[0, :, 0], expected)
        assert info.mode.startswith("I;16") and info.grey


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encode(np.array([[True, False, True]]), "PNG"), [255, 0, 255]),
        (raw_tiff(np.zeros((1, 4), "<u2"), 12, packed=bytes.fromhex("000" + "fff" + "800" + "400")), [0, 255, 128, 64]),
        (raw_tiff(np.array([[0, 65535]], "<u2"), 16, photometric=0), [255, 0]),  # white is 0
    ],
    ids=["1 bit", "12 bits", "white is 0"],
)
def test_grey_is_scaled_by_its_own_depth(data, expected):  # fault 18
    np.testing.assert_array_equal(decode_image(data)[0, :, 1], expected)


def test_16_bit_colour_png():
    row = np.array([[0x0000, 0x8000, 0xFFFF], [0x1200, 0x34FF, 0x5600]], dtype=">u2").tobytes()
    np.testing.assert_array_equal(decode_image(raw_png(2, 1, 16, 2, [row])), [[[0, 0x80, 255], [0x12, 0x34, 0x56]]])


@pytest.mark.parametrize(
    ("values", "bits", "sample_format", "reason"),
    [
        (np.ones((2, 2), "<f4"), 32, 3, "floating-point pixels have no agreed range"),
        (np.ones((2, 2), "<i4"), 32, 2, "32-bit or signed integer pixels have no agreed range"),
        (np.ones((2, 2), "<u4"), 32, 1, "32-bit or signed integer pixels have no agreed range"),
        (np.ones((2, 2), "<i2"), 16, 2, "32-bit or signed integer pixels have no agreed range"),
    ],
)
def test_pixels_without_a_range_are_refused(values, bits, sample_format, reason):  # fault 18
    with pytest.raises(UnreadableImage, match=reason):
        decode_image(raw_tiff(values, bits, sample_format=sample_format))


def test_transparency_shows_the_background():  # fault 19
    hidden = np.array([[[200, 0, 0, 0], [200, 0, 0, 255], [200, 0, 0, 128]]], dtype=np.uint8)
    half = [round(200 * 128 / 255 + 255 * 127 / 255), round(255 * 127 / 255), round(255 * 127 / 255)]
    for data in (encode(hidden, "PNG"), encode(hidden, "TIFF"), encode(hidden, "WEBP", lossless=True, exact=True)):
        got, info = decode_with_info(data)
        assert tuple(got[0, 0]) == (255, 255, 255)
        assert tuple(got[0, 1]) == (200, 0, 0)
        assert np.abs(got[0, 2].astype(int) - half).max() <= 1
        assert info.transparent
    grey = np.array([[[7, 0], [7, 255]]], dtype=np.uint8)
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(grey, "LA"), "PNG"))[0, :, 0], [255, 7])


def test_transparent_palettes_and_levels():  # fault 19
    palette = png_chunk(b"PLTE", bytes([200, 0, 0, 0, 200, 0]))
    alpha = png_chunk(b"tRNS", bytes([0, 255]))
    got = decode_image(raw_png(2, 1, 8, 3, [bytes([0, 1])], palette + alpha))
    np.testing.assert_array_equal(got, [[[255, 255, 255], [0, 200, 0]]])
    level = png_chunk(b"tRNS", struct.pack(">H", 7))
    np.testing.assert_array_equal(decode_image(raw_png(2, 1, 8, 0, [bytes([7, 8])], level))[0, :, 0], [255, 8])
    deep = np.array([7, 0x0808], dtype=">u2").tobytes()
    np.testing.assert_array_equal(decode_image(raw_png(2, 1, 16, 0, [deep], level))[0, :, 0], [255, 8])
    gif = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), "P")
    gif.putpalette([200, 0, 0, 0, 200, 0])
    np.testing.assert_array_equal(decode_image(encode(gif, "GIF", transparency=0)), [[[255, 255, 255], [0, 200, 0]]])


@pytest.mark.parametrize(
    ("kind", "options"),
    [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("MPO", {"quality": 98})],
)
def test_first_frame(kind, options):  # fault 20
    first, second = np.full((16, 16, 3), (200, 30, 30), np.uint8), np.full((16, 16, 3), (30, 30, 200), np.uint8)
    data = encode(first, kind, save_all=True, append_images=[Image.fromarray(second)], **options)
    got, info = decode_with_info(data)
    assert np.abs(got.astype(int) - first).max() <= 3
    assert info.animated == (kind != "MPO")
    assert info.format == ("JPEG" if kind == "MPO" else kind)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50), (50, 1), (8, 20000)])
def test_extreme_shapes(height, width):  # fault 21
    for kind in ("PNG", "JPEG"):
        assert decode_image(encode(smooth(height, width), kind), min_side=64).shape == (height, width, 3)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_errors_name_path_reason_and_remedy(tmp_path):  # fault 10
    path = tmp_path / "new\nline.jpg"
    path.write_bytes(b"")
    with pytest.raises(UnreadableImage, match="the file is empty") as caught:
        decode_image(path)
    message = str(caught.value)
    assert isinstance(caught.value, DataError) and caught.value.exit_status == 3
    assert repr(str(path)) in message and "--skip-bad" in message and "\n" not in message
    assert (caught.value.path, caught.value.reason) == (str(path), "the file is empty")


def test_what_pillow_raises_without_words_has_some():
    """A PNG without a chunk that has to be there, and a TIFF of seven planes, which is not damaged."""
    png = encode(picture(), "PNG")
    header = raw_png(4, 4, 8, 2, [])[:33]
    with pytest.raises(UnreadableImage) as caught:
        decode_image(header + png_chunk(b"tRNS", b"\0") + png[33:])
    assert " " in caught.value.reason
    with pytest.raises(UnreadableImage, match="Pillow says 'Invalid value for samples per pixel'"):
        decode_image(
            raw_tiff(np.zeros((2, 14), np.uint8), 8).replace(
                struct.pack("<HHII", 277, 3, 1, 1), struct.pack("<HHII", 277, 3, 1, 7)
            )
        )


def test_the_error_survives_a_worker_process():
    with pytest.raises(UnreadableImage) as caught:
        decode_image(b"", name="x.jpg")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (type(copy), str(copy), copy.path) == (UnreadableImage, str(caught.value), "x.jpg")
    assert str(UnreadableImage("only a message")) == "only a message"  # how a DataLoader raises it again


def test_what_is_no_file(tmp_path):  # faults 22, 23, 28
    os.mkfifo(tmp_path / "pipe.jpg")
    cases = {
        tmp_path / "gone.jpg": "No such file",
        tmp_path: "not a regular file",
        tmp_path / "pipe.jpg": "not a regular file",
        tmp_path / ("x" * 5000 + ".jpg"): "name too long",
        str(tmp_path / "a\0b.jpg"): "null",
    }
    for path, reason in cases.items():
        with pytest.raises(UnreadableImage, match=reason):
            decode_image(path)
        with pytest.raises(UnreadableImage, match=reason):
            read_bytes(path)


def test_a_file_too_large_to_read(tmp_path, monkeypatch):
    monkeypatch.setattr("transferkit.data.images.decode.MAX_FILE_BYTES", 10)
    (tmp_path / "a.png").write_bytes(encode(picture(), "PNG"))
    with pytest.raises(UnreadableImage, match="more than the limit of 10"):
        decode_image(tmp_path / "a.png")


@pytest.mark.parametrize("content", [b"<html>no</html>", b"plain text", b"\0" * 100])
def test_what_is_no_picture(content):  # fault 14
    with pytest.raises(UnreadableImage, match="not a picture of a known format"):
        decode_image(content)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_files_are_refused(kind, share):  # fault 11
    data = encode(picture(64, 64), kind)
    decode_image(data)
    with pytest.raises(UnreadableImage):
        decode_image(data[: int(len(data) * share)])


def test_truncated_file_passes_verify_but_not_us():  # fault 11
    data = encode(picture(64, 64), "JPEG")[:2000]
    Image.open(io.BytesIO(data)).verify()
    with pytest.raises(UnreadableImage, match="truncated"):
        decode_image(data)


def test_bit_flipped_png_is_refused_and_jpeg_never_crashes():  # faults 12, 13
    png = bytearray(encode(picture(64, 64), "PNG"))
    png[len(png) // 2] ^= 0xFF
    with pytest.raises(UnreadableImage):
        decode_image(bytes(png))
    jpeg, rng, decoded = encode(picture(64, 64), "JPEG"), np.random.default_rng(0), 0
    for _ in range(60):
        flipped = bytearray(jpeg)
        flipped[int(rng.integers(len(jpeg)))] ^= 1 << int(rng.integers(8))
        try:
            decode_image(bytes(flipped))
            decoded += 1
        except UnreadableImage:
            pass
    assert decoded > 30, "most flips cannot be seen by decoding: the content hash is what tells"


@pytest.mark.parametrize("side", [10_500, 30_000])
def test_bombs_are_refused_from_the_header(side):  # fault 15
    # 110 Mpx, where Pillow only warns, and 900 Mpx, where it raises an error that is no OSError
    bomb = raw_png(side, side, 8, 0, [])
    with pytest.raises(UnreadableImage, match=f"{side} x {side} pixels, more than the limit of 100,000,000"):
        decode_image(bomb)
    assert USUAL.max_pixels == 100_000_000 and Image.MAX_IMAGE_PIXELS is not None


def test_between_pillows_warning_and_our_limit_there_is_no_warning(monkeypatch):  # fault 15
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(io.BytesIO(encode(picture(24, 40), "GIF")))
    assert decode_image(encode(picture(24, 40), "GIF")).shape == (24, 40, 3)


def test_hostile_bytes_never_raise_anything_else():
    rng = np.random.default_rng(1)
    for kind in FORMATS:
        head = encode(picture(), kind)
        for _ in range(40):
            cut = int(rng.integers(4, 60))
            data = head[:cut] + rng.bytes(200)
            try:
                decode_image(data)
            except UnreadableImage:
                continue


# --- scaled decoding --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("min_side", "short"),
    [(None, 300), (301, 300), (300, 300), (151, 300), (150, 150), (75, 75), (38, 75), (37, 38), (1, 38)],
)
def test_the_short_side_is_kept(min_side, short):
    # 300 / 1, 2, 4, 8, rounded up by libjpeg
    for height, width in ((300, 400), (400, 300)):
        got, info = decode_with_info(encode(smooth(height, width), "JPEG"), min_side=min_side)
        assert min(got.shape[:2]) == short
        assert (got.shape[0] < got.shape[1]) == (height < width)
        assert (info.height, info.width) == (height, width)


def test_scaled_decoding_is_an_area_average():
    data = encode(smooth(320, 480), "JPEG", quality=98)
    full, quarter = decode_image(data), decode_image(data, min_side=80)
    mean = full.reshape(80, 4, 120, 4, 3).mean(axis=(1, 3))
    assert quarter.shape == (80, 120, 3)
    assert np.abs(quarter - mean).max() < 3


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_scaled_decoding_keeps_the_colours(mode):
    image = Image.fromarray(smooth(160, 160)).convert(mode)
    data = encode(image, "JPEG", quality=98)
    full, half = decode_image(data), decode_image(data, min_side=80)
    assert half.shape == (80, 80, 3)
    assert np.abs(half - full.reshape(80, 2, 80, 2, 3).mean(axis=(1, 3))).max() < 5


def test_scaled_decoding_of_a_turned_photo():
    exif = Image.Exif()
    exif[0x0112] = 6
    got = decode_image(encode(smooth(160, 320), "JPEG", exif=exif), min_side=40)
    assert got.shape == (80, 40, 3)
    assert got[0, 0, 0] < 20 and got[-1, 0, 0] > 235, "what grew to the right now grows downwards"


def test_min_side_must_be_positive():
    with pytest.raises(ConfigError, match="at least 1 pixel, but got 0"):
        decode_image(encode(picture(), "PNG"), min_side=0)


# --- threads and warnings ---------------------------------------------------------------------------------------------


def test_threads_agree_and_leave_the_warning_filters_alone():
    datas = [encode(smooth(100 + i, 120), "JPEG", exif=b"Exif\0\0II\x2a\0\x08\0\0\0\x02\0broken") for i in range(12)]
    expected = [decode_image(data, min_side=40) for data in datas]
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda data: decode_image(data, min_side=40), datas * 10))
    assert warnings.filters == before
    for array, reference in zip(got, expected * 10, strict=True):
        np.testing.assert_array_equal(array, reference)


def test_log_lines_of_pillow_stay_off_the_terminal():
    seven = raw_tiff(np.zeros((2, 14), np.uint8), 8).replace(b"\x15\1\3\0\1\0\0\0\1", b"\x15\1\3\0\1\0\0\0\7")
    code = f"""
from transferkit.data.images.decode import UnreadableImage, decode_image
try:
    decode_image({seven!r})
except UnreadableImage as error:
    print(error.reason)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout == "Pillow says 'Invalid value for samples per pixel'\n" and done.stderr == ""


def test_quiet_pillow_covers_overlapping_threads_and_nothing_but_pillow():
    before = list(warnings.filters)
    entered, leave = threading.Event(), threading.Event()

    def other():
        with quiet_pillow():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with quiet_pillow():
        thread.start()
        assert entered.wait(10)
    # this thread has left, the other one is still inside
    warnings.warn_explicit("odd metadata", UserWarning, "x.py", 1, module="PIL.TiffImagePlugin")
    with pytest.raises(UserWarning, match="mine"):
        warnings.warn_explicit("mine", UserWarning, "x.py", 1, module="elsewhere")
    leave.set()
    thread.join()
    assert warnings.filters == before
    with pytest.raises(UserWarning, match="odd metadata"):
        warnings.warn_explicit("odd metadata", UserWarning, "x.py", 1, module="PIL.TiffImagePlugin")


# ---- metadata, large photos, pictures of one colour ---


@pytest.mark.parametrize("extra", ["text", "zip", "profile"])
def test_large_metadata_are_no_reason_to_refuse(extra):  # fault 103
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    info = PngInfo()
    info.add_text("workflow", "x" * 3_000_000, zip=extra == "zip")
    options = {"icc_profile": bytes(3_000_000)} if extra == "profile" else {"pnginfo": info}
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", **options)
    assert np.array_equal(decode_image(stream.getvalue()), pixels)


def test_a_large_photo_is_decoded_at_the_size_that_is_needed():  # fault 103
    few = Decoding(max_pixels=40_000)
    stream = io.BytesIO()
    Image.fromarray(np.full((400, 800, 3), 90, dtype=np.uint8)).save(stream, "JPEG")
    assert decode_image(stream.getvalue(), min_side=50, decoding=few).shape == (50, 100, 3)
    for side in (None, 200):  # more pixels than the limit would have to be decoded
        with pytest.raises(UnreadableImage, match="more than the limit of [4,0]+ pixels, which --max-pixels raises"):
            decode_image(stream.getvalue(), min_side=side, decoding=few)
    with pytest.raises(UnreadableImage, match="more than the limit of 300,000 pixels"):  # ten times as much
        decode_image(stream.getvalue(), min_side=50, decoding=Decoding(max_pixels=30_000))


@pytest.mark.parametrize(("value", "expected"), [(0, True), (1, False)])
def test_one_colour(value, expected):  # fault 107
    pixels = np.zeros((50, 60, 3), dtype=np.uint8)
    pixels[49, 59, 2] = value
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    assert decode_with_info(stream.getvalue())[1].one_colour == expected
    info = decode_with_info(stream.getvalue())[1]
    notes = [finding.message for finding in special_pictures([ReadResult("a.png", "0", info=info)])]
    assert ("of one colour as decoded" in " ".join(notes)) == expected


def notes_on(*datas, decoding=USUAL):
    infos = [decode_with_info(data, decoding=decoding)[1] for data in datas]
    results = [ReadResult(f"{at}.png", str(at), info=info) for at, info in enumerate(infos)]
    return [finding.message for finding in special_pictures(results, decoding)]


def ramp(top, height=20, width=30):
    return np.linspace(0, top, height * width).round().astype(np.uint16).reshape(height, width)


@pytest.mark.parametrize(("top", "bits"), [(1023, 10), (4095, 12), (16383, 14), (900, 10), (40, 8)])
def test_ten_to_fourteen_bits_in_sixteen_are_said_and_scaled_on_request(top, bits):  # fault 125
    data = encode(ramp(top), "PNG")
    (note,) = [note for note in notes_on(data) if "few grey levels" in note]
    assert (
        f"none of whose values is above {top:,}" in note and f"--grey-bits {bits}, and {2**bits - 1:,} becomes" in note
    )
    assert len(np.unique(decode_image(data))) <= 65
    asked = Decoding(grey_bits=bits)
    got = decode_image(data, decoding=asked)[..., 0]
    np.testing.assert_array_equal(got, np.floor(ramp(top).astype(int) * 255 / (2**bits - 1) + 0.5))
    assert "levels" not in " ".join(notes_on(data, decoding=asked))
    np.testing.assert_array_equal(image_pixels(Image.open(io.BytesIO(data)), decoding=asked)[..., 0], got)


def test_depths_that_are_right_are_not_spoken_of():
    assert not [note for note in notes_on(encode(ramp(65535), "PNG")) if "levels" in note]
    packed = raw_tiff(np.zeros((1, 4), "<u2"), 12, packed=bytes.fromhex("000fff800400"))
    assert not [note for note in notes_on(packed) if "levels" in note], "it says itself that it has 12 bits"
    np.testing.assert_array_equal(decode_image(packed, decoding=Decoding(grey_bits=10))[0, :, 1], [0, 255, 128, 64])


def test_one_dark_picture_among_others_and_values_that_are_cut_off():
    notes = " ".join(notes_on(encode(ramp(65535), "PNG"), encode(ramp(1023), "PNG")))
    assert "1 of 2 pictures: 16-bit greyscale of which less than an eighth of the range is used" in notes
    data = encode(ramp(3000), "PNG")
    notes = " ".join(notes_on(data, decoding=Decoding(grey_bits=10)))
    assert "1 of 1 pictures: 16-bit greyscale with values above 1,023, which become white: --grey-bits 12" in notes
    assert decode_image(data, decoding=Decoding(grey_bits=10)).max() == 255


def test_sixteen_bit_colour_that_uses_little_is_said():
    dark, bright = (np.array([[0, 0, value]], dtype=">u2").tobytes() for value in (900, 60000))
    assert "16-bit colour of which less than an eighth" in " ".join(notes_on(raw_png(1, 1, 16, 2, [dark])))
    assert "16-bit colour" not in " ".join(notes_on(raw_png(1, 1, 16, 2, [bright])))


def test_a_transparent_level_of_deep_grey_is_that_level_alone():
    """Not every value that is cut off to the same white."""
    level = png_chunk(b"tRNS", struct.pack(">H", 1023))
    deep = np.array([1023, 5000, 1023, 4], dtype=">u2").tobytes()
    data = raw_png(4, 1, 16, 0, [deep], level)
    got = decode_image(data, decoding=Decoding(grey_bits=10, ground="#000000"))
    np.testing.assert_array_equal(got[0, :, 0], [0, 255, 0, 1])


# ---- the ground ---


@pytest.mark.parametrize(("ground", "rgb"), [("#000000", (0, 0, 0)), ("#0080ff", (0, 128, 255))])
def test_the_ground_shows_through(ground, rgb):
    pixels = np.array([[[200, 0, 0, 0], [200, 0, 0, 255], [200, 0, 0, 128]]], dtype=np.uint8)
    half = np.array((200, 0, 0)) * 128 / 255 + np.array(rgb) * 127 / 255
    files = [encode(pixels, "PNG"), encode(pixels, "TIFF"), encode(pixels, "WEBP", lossless=True, exact=True)]
    got = [decode_image(data, decoding=Decoding(ground=ground)) for data in files]
    got.append(image_pixels(Image.fromarray(pixels), decoding=Decoding(ground=ground)))
    for array in got:
        assert tuple(array[0, 0]) == rgb and tuple(array[0, 1]) == (200, 0, 0)
        assert np.abs(array[0, 2] - half).max() <= 1


def test_drawings_in_the_alpha_channel_are_said_and_show_on_another_ground():  # fault 107
    white = np.full((50, 60, 4), 255, dtype=np.uint8)
    white[10:20, 10:20, 3] = 0
    data = encode(white, "PNG")
    notes = " ".join(notes_on(data))
    assert (
        "of one colour as decoded" in notes and "1 have transparency, and may show something by --ground black" in notes
    )
    black = Decoding(ground="#000000")
    np.testing.assert_array_equal(decode_image(data, decoding=black), white[..., 3:].repeat(3, axis=2))
    notes = " ".join(notes_on(data, decoding=black))
    assert "of one colour" not in notes and "laid over black" in notes
    grey = " ".join(notes_on(data, decoding=Decoding(ground="#ffffff")))
    assert "laid over white" in grey


# ---- the limit of pixels ---


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "JPEG"])
def test_the_limit_is_read_from_the_header_of_every_format(kind):  # fault 15
    data = encode(picture(20, 30), kind)
    with pytest.raises(UnreadableImage, match="30 x 20 pixels, more than the limit of 599") as caught:
        decode_image(data, decoding=Decoding(max_pixels=599))
    assert caught.value.passing, "with another limit the same bytes are a picture"
    assert decode_image(data, decoding=Decoding(max_pixels=600)).shape == (20, 30, 3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF"])
def test_a_raised_limit_goes_before_pillows_own(kind, monkeypatch):  # fault 103
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    options = {"compression": "tiff_lzw"} if kind == "TIFF" else {}
    data = encode(picture(40, 50), kind, **options)
    with pytest.raises(UnreadableImage, match="limit of (400|1000) pixels, which --max-pixels raises"):
        decode_image(data, decoding=Decoding(max_pixels=400))
    assert Image.MAX_IMAGE_PIXELS == 500
    assert decode_image(data, decoding=Decoding(max_pixels=2000)).shape == (40, 50, 3)


def test_what_a_picture_becomes_and_whether_it_is_read_are_told_apart():
    """A limit is no part of the key of a feature; the ground and the depth are, where they are not as usual."""
    usual, config = Decoding(max_pixels=7).key_values(), DataConfig()
    assert usual == {} and "decoding" not in config.key_values()
    asked = Decoding(ground="#000000", grey_bits=10)
    assert asked.key_values() == {"ground": "#000000", "grey_bits": 10}
    assert DataConfig(decoding=asked).key_values()["decoding"] == asked.key_values()
    stored = DataConfig(decoding=Decoding("#102030", 12, 5)).to_dict()
    assert DataConfig.from_dict(stored).decoding == Decoding("#102030", 12, 5)
    del stored["decoding"]
    assert DataConfig.from_dict(stored).decoding == USUAL, "models of before"
    for wrong in ({"ground": "red"}, {"grey_bits": 7}, {"grey_bits": 17}, {"max_pixels": 0}):
        with pytest.raises(ValueError, match="expected"):
            Decoding.from_dict(wrong)


# ---- HEIC and AVIF ---


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_pictures_of_phones(kind):
    got, info = decode_with_info(encode(smooth(64, 96), kind, quality=95))
    assert info.format == kind and (info.height, info.width) == (64, 96) and not info.transparent
    assert np.abs(got.astype(int) - smooth(64, 96)).mean() < 3
    clear = np.dstack([smooth(64, 96), np.full((64, 96), 255, np.uint8)])
    clear[:32, :, 3] = 0
    got, info = decode_with_info(encode(clear, kind, quality=95), decoding=Decoding(ground="#ff0000"))
    assert info.transparent and np.abs(got[:28].astype(int) - (255, 0, 0)).max() <= 4
    grey, info = decode_with_info(encode(smooth(64, 96)[..., 0], kind, quality=95))
    assert np.abs(grey[..., 0].astype(int) - smooth(64, 96)[..., 0]).mean() < 3


@pytest.mark.parametrize("orientation", VIEWS)
@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_orientation_of_pictures_of_phones(kind, orientation):  # fault 16
    """Written as a rotation and a mirror axis of the container, which is what their viewers go by."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    array = smooth(64, 96)
    got, info = decode_with_info(encode(array, kind, quality=95, exif=exif.tobytes()))
    expected = VIEWS[orientation](array)
    assert got.shape == expected.shape and (info.height, info.width) == got.shape[:2]
    assert np.abs(got.astype(int) - expected).mean() < 3


def test_of_several_heic_pictures_the_primary_one_counts():
    frames = [Image.fromarray(np.full((64, 64, 3), colour, np.uint8)) for colour in ((200, 30, 30), (30, 30, 200))]
    heif = pillow_heif.HeifFile()
    for frame in frames:
        heif.add_from_pillow(frame)
    stream = io.BytesIO()
    heif.save(stream, primary_index=1, quality=95)
    got, info = decode_with_info(stream.getvalue())
    assert info.animated and np.abs(got.astype(int) - (30, 30, 200)).max() <= 8


def test_a_thumbnail_inside_is_not_taken_for_the_picture():
    """An edited photo may carry that of before."""
    heif = pillow_heif.from_pillow(Image.fromarray(smooth(256, 256)))
    stream = io.BytesIO()
    heif.save(stream, quality=90, thumbnails=[64])
    assert decode_image(stream.getvalue(), min_side=32).shape == (256, 256, 3)


def test_boxes_are_told_apart_by_their_brands():
    box = b"\0\0\0\x18ftyp"
    assert sniff_format(box + b"mif1\0\0\0\0mif1avif") == "AVIF"
    assert sniff_format(box + b"mif1\0\0\0\0mif1heic") == "HEIF"
    assert sniff_format(box + b"heic\0\0\0\0mif1miaf") == "HEIF"
    for brand in (b"isom", b"qt  ", b"mp42", b"M4V "):
        assert sniff_format(box + brand + b"\0\0\0\0isomavc1") is None, "a video"
    assert sniff_format(box) is None and sniff_format(b"\xff\xff\xff\xffftypheic") == "HEIF"


HEIC = encode(picture(64, 64), "HEIF")


def test_heic_without_its_package_says_what_to_type(without_heif):  # fault 109
    with pytest.raises(UnreadableImage, match=r"need pillow-heif \(pip install 'transferkit\[heif\]'\)") as caught:
        decode_image(HEIC)
    assert caught.value.passing
    copy = pickle.loads(pickle.dumps(caught.value))
    assert copy.passing and copy.reason == caught.value.reason
    assert {".heic", ".hif"}.isdisjoint(read_extensions()) and ".avif" in read_extensions()
    assert unread_text({".heic": 300, ".hif": 2, ".mov": 12, "": 1}) == (
        "315 files with endings none (1), .heic (300), .hif (2), .mov (12) are not read; "
        "pip install 'transferkit[heif]' to read .heic, .hif"
    )


def test_with_its_package_heic_files_are_candidates():
    assert read_extensions() == EXTENSIONS
    assert unread_text({".mov": 12}) == "12 files with endings .mov (12) are not read"
    assert unread_text({".x\x1b": 1}) == "1 files with endings .x\\x1b (1) are not read", "as a terminal can show it"


def test_too_little_memory_is_no_fault_of_the_picture(monkeypatch):
    def full(*arguments):
        raise MemoryError

    data = encode(picture(), "PNG")
    monkeypatch.setattr(PngImageFile, "load", full)
    with pytest.raises(UnreadableImage, match="not enough memory for it") as caught:
        decode_image(data)
    assert caught.value.passing


def test_decoding_goes_through_the_pass_over_all_files(tmp_path):
    for name, pixels in (("a", [0, 0, 0, 0]), ("b", [9, 9, 9, 255])):
        (tmp_path / f"{name}.png").write_bytes(encode(np.array([[pixels]], dtype=np.uint8), "PNG"))
    paths = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    reads = read_images(paths, min_side=None, decoding=Decoding(ground="#0000ff"), keep=MemoryPixels(100).put)
    assert [read.pixels.tolist() for read in reads] == [[[[0, 0, 255]]], [[[9, 9, 9]]]]
    assert pixels_digest(reads[0].pixels) != pixels_digest(reads[1].pixels)
