"""The picture formats that are read, by file name and by content; standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from typing import Final, NamedTuple

from transferkit.core.text import listing, one_line

__all__ = [
    "EXTENSIONS",
    "EXTRAS",
    "FORMATS",
    "TEXTS",
    "Extra",
    "install_line",
    "read_extensions",
    "sniff_format",
    "unread_text",
]

FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "HEIF", "NPY")
"""Every format that is decoded. JPEG includes MPO, which cameras write: a JPEG with further pictures behind it.
NPY is numpy's."""

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
    ".avif": "AVIF",
    ".avifs": "AVIF",
    ".heic": "HEIF",
    ".heics": "HEIF",
    ".heif": "HEIF",
    ".heifs": "HEIF",
    ".hif": "HEIF",
    ".npy": "NPY",
}
"""File name endings, in lower case, with the format they promise."""


class Extra(NamedTuple):
    """What a format needs besides Pillow.

    Attributes:
        name: Of the extra of this package that installs it.
        package: As it is called where packages come from.
        module: As it is imported.
    """

    name: str
    package: str
    module: str


EXTRAS: Final = {"HEIF": Extra("heif", "pillow-heif", "pillow_heif")}
"""By format."""

_STARTS: Final = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"\x93NUMPY", "NPY"),
    (b"MM\0\x2a", "TIFF"),
    (b"II\x2a\0", "TIFF"),
    (b"MM\0\x2b", "TIFF"),  # BigTIFF
    (b"II\x2b\0", "TIFF"),
)
TEXTS: Final = frozenset(
    (".csv", ".tsv", ".txt", ".md", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml", ".html", ".log", ".parquet")
)
"""Endings of lists and notes that lie beside pictures as a rule."""
# Brands of ISO/IEC 23008-12 (HEIF), annex B, and of the AVIF specification, section 8; any other box file is a video.
_AVIF_BRANDS: Final = (b"avif", b"avis")
_HEIF_BRANDS: Final = (
    b"heic",
    b"heix",
    b"heim",
    b"heis",
    b"hevc",
    b"hevx",
    b"hevm",
    b"hevs",
    b"mif1",
    b"msf1",
    b"mif2",
)
_BRANDS_END: Final = 256
"""Bytes of a file that its brands are looked for in."""


@cache
def read_extensions() -> Mapping[str, str]:
    """Return those of `EXTENSIONS` that make a file a candidate here: whose formats need nothing that is missing."""
    missing = {kind for kind, extra in EXTRAS.items() if find_spec(extra.module) is None}
    return {ending: kind for ending, kind in EXTENSIONS.items() if kind not in missing}


def install_line(kind: str) -> str:
    """Return what to type for a format of `EXTRAS`."""
    return f"pip install 'transferkit[{EXTRAS[kind].name}]'"


def unread_text(endings: Mapping[str, int]) -> str:
    """Return a sentence on files that are not read for their endings.

    Args:
        endings: How many files have each, in lower case with the dot; ``""`` for none.
    """
    total = sum(endings.values())
    counts = [f"{one_line(ending) or 'none'} ({count})" for ending, count in sorted(endings.items())]
    missing: dict[str, list[str]] = {}
    for ending in sorted(endings):
        if ending in EXTENSIONS and ending not in read_extensions():
            missing.setdefault(EXTENSIONS[ending], []).append(ending)
    remedies = [f"{install_line(kind)} to read {', '.join(names)}" for kind, names in missing.items()]
    said = f"{total:,} files with endings {listing(counts, limit=12, quote=False)} are not read"
    return "; ".join([said, *remedies])


def sniff_format(start: bytes) -> str | None:
    """Return the format that a file's first bytes announce, or ``None`` when it is none of `FORMATS`.

    Args:
        start: 256 bytes or more, where there are so many.
    """
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "WEBP"
    if start[4:8] == b"ftyp":
        size = min(int.from_bytes(start[:4], "big"), len(start), _BRANDS_END)
        brands = [start[8:12], *(start[at : at + 4] for at in range(16, size - 3, 4))]
        known = (("AVIF", _AVIF_BRANDS), ("HEIF", _HEIF_BRANDS))
        return next((name for name, names in known if any(brand in names for brand in brands)), None)
    return next((name for magic, name in _STARTS if start.startswith(magic)), None)
