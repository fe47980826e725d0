"""The picture formats that are read, by file name and by content; standard library only."""

from __future__ import annotations

from typing import Final

__all__ = ["EXTENSIONS", "FORMATS", "sniff_format"]

FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""Every format that is decoded. JPEG includes MPO, which cameras write: a JPEG with further pictures behind it."""

EXTENSIONS: Final[dict[str, str]] = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".mpo": "JPEG",
    ".png": "PNG",
    ".apng": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".dib": "BMP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
"""File name endings, in lower case, that make a file a candidate, with the format they promise."""

_STARTS: Final = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"MM\0\x2a", "TIFF"),
    (b"II\x2a\0", "TIFF"),
    (b"MM\0\x2b", "TIFF"),  # BigTIFF
    (b"II\x2b\0", "TIFF"),
)


def sniff_format(start: bytes) -> str | None:
    """Return the format that a file's first 12 bytes or more announce, or ``None`` when it is none of `FORMATS`."""
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "WEBP"
    return next((name for magic, name in _STARTS if start.startswith(magic)), None)
