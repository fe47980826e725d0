"""The files of the pixel store: each holds some pictures, is written once, and says itself what is in it.

A head of fixed size; the facts of the set as JSON; an entry per picture with its content hash, place, shape and
checksum; then the pixels, uint8, one picture behind the other. The name is the digest of what stands before the pixels.

Pictures are read, not mapped: a file that was cut after it was mapped would kill the process that touches it, a network
disk that is gone likewise, and every map would keep a descriptor. A read costs one copy in memory, a tenth of a
millisecond for a picture of 450 x 600 pixels.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from transferkit.data.pixels.spec import FORMAT, PixelSpec

if TYPE_CHECKING:
    from transferkit.data.images.decode import Pixels

__all__ = ["SUFFIX", "DamagedShard", "Entries", "NewerShard", "Place", "build_shard", "names_of", "places",
           "read_header", "read_picture"]  # fmt: skip

SUFFIX: Final = ".pixels"

_MAGIC: Final = b"tkpixels"
_HEAD: Final = struct.Struct("<8s4I")  # magic, format, bytes of facts, pictures, checksum of facts and entries
_ENTRY: Final = np.dtype(
    [("sha256", "u1", (32,)), ("offset", "<u8"), ("height", "<u4"), ("width", "<u4"), ("crc", "<u4")]
)
_MOST_FACTS: Final = 1 << 16

Entries: TypeAlias = npt.NDArray[np.void]


class DamagedShard(Exception):
    """A file of the store is not what was written; the message says what it is or has instead."""


class NewerShard(Exception):
    """A newer transferkit wrote it, in a format that is not known here."""


class Place(NamedTuple):
    """A picture in a shard: where its pixels begin, its shape, and the checksum of the pixels."""

    offset: int
    height: int
    width: int
    crc: int


def build_shard(spec: PixelSpec, pictures: Mapping[str, Pixels]) -> tuple[str, list[memoryview]]:
    """Return the name of a shard, and its content in parts.

    Args:
        spec: Of the set.
        pictures: ``(H, W, C) uint8``, by the sha256 of their files.
    """
    facts = json.dumps(spec.to_dict(), sort_keys=True).encode()
    parts = [np.ascontiguousarray(pixels).reshape(-1).data for pixels in pictures.values()]
    entries = np.zeros(len(pictures), _ENTRY)
    entries["sha256"] = [np.frombuffer(bytes.fromhex(sha256), np.uint8) for sha256 in pictures]
    entries["height"] = [pixels.shape[0] for pixels in pictures.values()]
    entries["width"] = [pixels.shape[1] for pixels in pictures.values()]
    entries["crc"] = [zlib.crc32(part) for part in parts]
    first = _HEAD.size + len(facts) + entries.nbytes
    entries["offset"] = first + np.cumsum([0, *(part.nbytes for part in parts[:-1])])
    table = entries.tobytes()
    head = _HEAD.pack(_MAGIC, FORMAT, len(facts), len(pictures), zlib.crc32(table, zlib.crc32(facts)))
    content = [memoryview(head), memoryview(facts), memoryview(table), *parts]
    digest = hashlib.sha256(b"".join(content[:3])).hexdigest()
    return f"{digest[:24]}{SUFFIX}", content


def read_header(path: Path) -> tuple[PixelSpec, Entries]:
    """Return the facts and the entries of a shard; pixels are not read, but the file is as long as they are.

    Raises:
        DamagedShard: It is not what was written.
        NewerShard: It has a newer format.
        OSError: It is gone, or cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size or not head.startswith(_MAGIC):
            raise DamagedShard("does not begin as a file of the pixel store")
        _, number, length, count, crc = _HEAD.unpack(head)
        if number > FORMAT:
            raise NewerShard(f"has format {number}, this transferkit reads formats up to {FORMAT}")
        size = file.seek(0, 2)
        if length > _MOST_FACTS or _HEAD.size + length + count * _ENTRY.itemsize > size:
            raise DamagedShard("is cut off, or has a damaged head")
        file.seek(_HEAD.size)
        facts, table = file.read(length), file.read(count * _ENTRY.itemsize)
    if zlib.crc32(table, zlib.crc32(facts)) != crc:
        raise DamagedShard("has a damaged head")
    entries = np.frombuffer(table, _ENTRY)
    end = places(entries[-1:])[0] if count else None
    try:
        spec = PixelSpec.from_dict(json.loads(facts))
    except ValueError as error:
        raise DamagedShard(str(error)) from error
    area = 0 if end is None else end.height * end.width * spec.channels
    expected = _HEAD.size + length + len(table) if end is None else end.offset + area
    if size != expected:
        raise DamagedShard(f"has {size:,} bytes, expected {expected:,}")
    return spec, entries


def places(entries: Entries) -> list[Place]:
    """Return where the pictures of some entries are."""
    columns = (entries[name].tolist() for name in ("offset", "height", "width", "crc"))
    return [Place(*values) for values in zip(*columns, strict=True)]


def names_of(entries: Entries) -> list[str]:
    """Return the sha256 of the pictures' files, in hex."""
    text = entries["sha256"].tobytes().hex()
    return [text[start : start + 64] for start in range(0, len(text), 64)]


def read_picture(path: Path, place: Place, *, channels: int = 3, check: bool = True) -> Pixels:
    """Return a picture, ``(H, W, C) uint8``, read-only.

    Args:
        path: Its shard.
        place: Where it is there.
        channels: Of the set's pictures.
        check: Whether to look at its checksum, which takes longer than to read it.

    Raises:
        DamagedShard: Its pixels are not those that were written.
        OSError: The file is gone, or cannot be read.
    """
    pixels = np.empty((place.height, place.width, channels), np.uint8)
    data = pixels.reshape(-1).data
    with path.open("rb", buffering=0) as file:
        file.seek(place.offset)
        done = 0
        while done < len(data):
            count = file.readinto(data[done:])
            if not count:
                raise DamagedShard("is cut off")
            done += count
    if check and zlib.crc32(data) != place.crc:
        raise DamagedShard("has a picture that does not have its checksum")
    pixels.flags.writeable = False
    return pixels
