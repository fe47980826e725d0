"""A small picture file of every kind that is read: format, colours, depth, orientation, frames, transparency."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pillow_heif
from PIL import Image
from PIL.PngImagePlugin import PngInfo

SUFFIXES = {"JPEG": "jpg", "MPO": "mpo", "TIFF": "tif", "HEIF": "heic"}


def encode(image: Image.Image, kind: str, **options) -> bytes:
    """Return the bytes of a file."""
    stream = io.BytesIO()
    if kind == "HEIF":
        pillow_heif.from_pillow(image).save(stream, **options)
    else:
        if "append_images" in options:  # saving as JPEG leaves its settings on a picture
            options = {**options, "append_images": [frame.copy() for frame in options["append_images"]]}
        image.copy().save(stream, kind, **options)
    return stream.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """Return a chunk as the PNG specification has it."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def raw_png(width: int, height: int, depth: int, colour: int, rows: list[bytes], extra: bytes = b"") -> bytes:
    """Write a PNG by hand, so that no library of ours is its own reference."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def raw_tiff(
    values: np.ndarray, bits: int, *, photometric: int = 1, sample_format: int = 1, packed: bytes | None = None
) -> bytes:
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


def every_kind(height: int = 40, width: int = 56) -> dict[str, bytes]:
    """Return files by name; smooth pictures, so that those that lose something still look alike."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [x * 255 / (width - 1), y * 255 / (height - 1), (np.sin(x / 7) * np.cos(y / 5) + 1) * 127]
    pixels = np.stack(planes, axis=-1).astype(np.uint8)
    colour, grey = Image.fromarray(pixels), Image.fromarray(pixels[..., 2])
    other = Image.fromarray(pixels[::-1].copy())
    alpha = Image.fromarray(np.where((x // 8 + y // 8) % 2, 255, (x * 4) % 256).astype(np.uint8))
    clear = colour.copy()
    clear.putalpha(alpha)
    deep = (pixels[..., 2].astype(np.uint16) * 257) - (x % 2).astype(np.uint16)
    ten = (pixels[..., 2].astype(np.uint16) << 2) + (y % 3).astype(np.uint16)
    turned, mirrored = _orientation(6), _orientation(5)
    frames = {"save_all": True, "append_images": [other]}
    text = PngInfo()
    text.add_text("workflow", "x" * 2_000_000, zip=True)
    return {
        "colour.jpg": encode(colour, "JPEG", quality=92),
        "grey.jpg": encode(grey, "JPEG"),
        "progressive.jpg": encode(colour, "JPEG", progressive=True),
        "cmyk.jpg": encode(colour.convert("CMYK"), "JPEG"),
        "turned.jpg": encode(colour, "JPEG", exif=turned),
        "mirrored.jpg": encode(colour, "JPEG", exif=mirrored),
        "garbled exif.jpg": encode(colour, "JPEG", exif=b"Exif\0\0II\x2a\0\xff\xff\xff\x7f"),
        "large.jpg": encode(colour.resize((1200, 900), Image.Resampling.BICUBIC), "JPEG"),
        "large grey turned.jpg": encode(grey.resize((900, 1200), Image.Resampling.BICUBIC), "JPEG", exif=turned),
        "two.mpo": encode(colour, "MPO", **frames),
        "colour.png": encode(colour, "PNG"),
        "bits.png": encode(colour.convert("1"), "PNG"),
        "grey.png": encode(grey, "PNG"),
        "grey and alpha.png": encode(Image.merge("LA", (grey, alpha)), "PNG"),
        "palette.png": encode(colour.quantize(32), "PNG"),
        "palette and alpha.png": encode(clear.quantize(32), "PNG"),
        "palette and level.png": encode(colour.quantize(32), "PNG", transparency=3),
        "level.png": encode(colour, "PNG", transparency=tuple(pixels[9, 9].tolist())),
        "alpha.png": encode(clear, "PNG"),
        "turned.png": encode(clear, "PNG", exif=turned),
        "sixteen.png": encode(Image.fromarray(deep), "PNG"),
        "ten.png": encode(Image.fromarray(ten), "PNG"),
        "sixteen and level.png": raw_png(
            width, height, 16, 0, [row.astype(">u2").tobytes() for row in ten],
            png_chunk(b"tRNS", struct.pack(">H", int(ten[5, 5]))),
        ),
        "sixteen colour.png": raw_png(
            width, height, 16, 2, [row.tobytes() for row in (pixels.astype(np.uint16) * 257).astype(">u2")]
        ),
        "animated.png": encode(colour, "PNG", **frames),
        "metadata.png": encode(colour, "PNG", pnginfo=text),
        "profile.png": encode(colour, "PNG", icc_profile=bytes(3_000_000)),
        "interlaced.png": _interlaced(pixels[:8, :8]),
        "colour.webp": encode(colour, "WEBP"),
        "alpha.webp": encode(clear, "WEBP", lossless=True),
        "animated.webp": encode(colour, "WEBP", **frames),
        "turned.webp": encode(colour, "WEBP", exif=turned),
        "colour.bmp": encode(colour, "BMP"),
        "palette.bmp": encode(colour.quantize(16), "BMP"),
        "bits.bmp": encode(colour.convert("1"), "BMP"),
        "palette.gif": encode(colour.quantize(64), "GIF"),
        "level.gif": encode(colour.quantize(64), "GIF", transparency=5),
        "animated.gif": encode(colour.quantize(64), "GIF", save_all=True, append_images=[other.quantize(64)]),
        "colour.tif": encode(colour, "TIFF"),
        "packed.tif": encode(colour, "TIFF", compression="tiff_lzw"),
        "jpeg.tif": encode(colour, "TIFF", compression="jpeg"),
        "alpha.tif": encode(clear, "TIFF"),
        "cmyk.tif": encode(colour.convert("CMYK"), "TIFF"),
        "turned.tif": encode(colour, "TIFF", exif=turned),
        "pages.tif": encode(colour, "TIFF", **frames),
        "sixteen.tif": encode(Image.fromarray(deep), "TIFF"),
        "ten.tif": encode(Image.fromarray(ten), "TIFF"),
        "twelve.tif": raw_tiff(deep, 12, packed=_packed(deep >> 4)),
        "white is 0.tif": raw_tiff(deep, 16, photometric=0),
        "colour.avif": encode(colour, "AVIF"),
        "alpha.avif": encode(clear, "AVIF", quality=90),
        "turned.avif": encode(colour, "AVIF", exif=turned),
        "animated.avif": encode(colour, "AVIF", **frames),
        "colour.heic": encode(colour, "HEIF"),
        "alpha.heic": encode(clear, "HEIF", quality=90),
        "turned.heic": encode(colour, "HEIF", exif=turned),
        "grey.heic": encode(grey, "HEIF"),
        "thumbnail.heic": encode(colour.resize((512, 384)), "HEIF", thumbnails=[64]),
    }  # fmt: skip


def _orientation(number: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif.tobytes()


def _packed(values: np.ndarray) -> bytes:
    """Return 12-bit values, two in three bytes, each row on whole bytes."""
    first, second = values[:, ::2].astype(np.uint32), values[:, 1::2].astype(np.uint32)
    both = (first << 12) | second
    return np.stack([both >> 16, (both >> 8) & 255, both & 255], axis=-1).astype(np.uint8).tobytes()


def _interlaced(pixels: np.ndarray) -> bytes:
    """Return an 8 x 8 PNG in the seven passes of Adam7."""
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    rows = [
        b"\0" + pixels[row, left::across].tobytes() for top, left, down, across in passes for row in range(top, 8, down)
    ]
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 1)
    body = png_chunk(b"IDAT", zlib.compress(b"".join(rows)))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + body + png_chunk(b"IEND", b"")
