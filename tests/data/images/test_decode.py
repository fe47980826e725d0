"""The one decoder: formats, colours, orientation, limits, scaled decoding, threads."""

from __future__ import annotations

import io
import os
import pickle
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from transferkit.core.errors import ConfigError, DataError
from transferkit.data.images import decode
from transferkit.data.images.decode import (
    BACKGROUND,
    MAX_PIXELS,
    UnreadableImage,
    decode_image,
    decode_with_info,
    quiet_pillow,
    read_bytes,
)
from transferkit.data.images.reading import ReadResult
from transferkit.data.index.checks import special_pictures
from transferkit.data.scan.formats import EXTENSIONS, FORMATS, sniff_format


def picture(height=24, width=40, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height, width):
    y, x = np.mgrid[0:height, 0:width]
    planes = [x * 255 / max(width - 1, 1), y * 255 / max(height - 1, 1), (x + y) * 255 / max(height + width - 2, 1)]
    return np.stack(planes, axis=-1).astype(np.uint8)


def encode(array_or_image, kind, **options):
    image = array_or_image if isinstance(array_or_image, Image.Image) else Image.fromarray(array_or_image)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def raw_png(width, height, depth, colour, rows, extra=b""):
    """Write a PNG by hand, following the specification, so that no library of ours is its own reference."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def raw_tiff(values, bits, *, photometric=1, sample_format=1, packed=None):
    """Write a grey little-endian TIFF by hand (TIFF 6.0, section 2)."""
    height, width = values.shape
    data = values.tobytes() if packed is None else packed
    tags = [
        (256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric),
        (273, 4, 8), (277, 3, 1), (278, 3, height), (279, 4, len(data)), (339, 3, sample_format),
    ]  # fmt: skip
    offset = 8 + len(data)
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II\x2a\0" + struct.pack("<I", offset) + data + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"


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
        assert tuple(got[0, 0]) == BACKGROUND == (255, 255, 255)
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
    assert MAX_PIXELS == 100_000_000 and Image.MAX_IMAGE_PIXELS is not None


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


def test_a_large_photo_is_decoded_at_the_size_that_is_needed(monkeypatch):  # fault 103
    monkeypatch.setattr(decode, "MAX_PIXELS", 10_000)
    stream = io.BytesIO()
    Image.fromarray(np.full((400, 800, 3), 90, dtype=np.uint8)).save(stream, "JPEG")
    assert decode_image(stream.getvalue(), min_side=50).shape == (50, 100, 3)
    for side in (None, 200):  # more pixels than the limit would have to be decoded
        with pytest.raises(UnreadableImage, match="more than the limit of 10,000 pixels"):
            decode_image(stream.getvalue(), min_side=side)


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


@pytest.mark.parametrize(("top", "said"), [(1023, True), (65535, False)])
def test_ten_bits_in_sixteen_are_said(top, said):  # fault 125
    values = np.linspace(0, top, 600).astype(np.uint16).reshape(20, 30)
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    info = decode_with_info(stream.getvalue())[1]
    notes = [finding.message for finding in special_pictures([ReadResult("a.png", "0", info=info)])]
    assert any("less than an eighth of the range is used" in note for note in notes) == said
