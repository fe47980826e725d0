"""What decoding pictures gave, kept in the user's cache: sketches, digests and the facts of their headers.

Verbs that only hash files (`features`, `probe`, `evaluate`) would have to decode every picture to find its copies, and
those that train would decode each anew to know that it is good. A small database has what was learnt of each, by the
sha256 of the file, wherever it lies. It costs only time to lose it, so a disk that cannot be read or written is no
error here.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, fields, replace
from typing import Any, Final, NamedTuple

import PIL

from transferkit.core.database import CacheDatabase, remove_databases
from transferkit.core.records import USUAL, Decoding
from transferkit.data.images.decode import ImageInfo
from transferkit.data.images.reading import CHECK_SIDE, ReadResult, read_images
from transferkit.data.images.sketch import SIDE, Sketch, scale_of

__all__ = ["Decoded", "Sketchbook"]

RULES: Final = 2
"""Another number where pictures are decoded or sketched in another way, or where the tables are others."""

MOST: Final = 2_000_000
"""Pictures that are remembered, about 1,600 bytes each; beyond, those that were written first go."""

UNUSED_DAYS: Final = 90
"""Databases of other decoders that nothing was written to for so long go once a new one is begun."""

_TABLES = (
    # With rowids: what is longer than a thousand bytes takes a page of its own in a table without.
    "CREATE TABLE IF NOT EXISTS sketches (sha256 BLOB, scale INTEGER, width INTEGER, height INTEGER, cells BLOB, "
    "UNIQUE (sha256, scale))",
    "CREATE TABLE IF NOT EXISTS digests (sha256 BLOB PRIMARY KEY, digest BLOB) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS decoded (sha256 BLOB, side INTEGER, max_pixels INTEGER, facts BLOB, mark BLOB, "
    "UNIQUE (sha256, side))",
)
_FACTS: Final = ",".join(field.name for field in fields(ImageInfo))
_ELSEWHERE: Final = ("HEIF",)
"""Formats that a package decodes which may be another one, or gone, the next time."""


class Decoded(NamedTuple):
    """What decoding a picture gave, but for its pixels: what its header says, their rows and columns, its sketch."""

    info: ImageInfo
    shape: tuple[int, int]
    sketch: Sketch | None


class Sketchbook:
    """What is known of pictures.

    Args:
        decoding: How they are decoded; another ground or depth of grey makes other pixels of a file.

    Attributes:
        decoding: As passed.
    """

    def __init__(self, decoding: Decoding = USUAL) -> None:
        self.decoding = decoding
        own = "".join(f"-{value}" for value in decoding.key_values().values()).replace("#", "")
        self._database = CacheDatabase(f"sketches-{RULES}{own}-pillow-{PIL.__version__}.db", _TABLES)

    def fill(self, results: Sequence[ReadResult]) -> list[ReadResult]:
        """Return results with the sketches that are known; of several scales that of the largest picture."""
        lacking = {result.sha256 for result in results if result.sha256 is not None and result.sketch is None}
        known: dict[str, Sketch] = {}
        for (sha256, scale), sketch in self._sketches(lacking).items():
            if sha256 not in known or scale < known[sha256].scale:
                known[sha256] = sketch
        return [
            replace(result, sketch=known[result.sha256]) if result.sketch is None and result.sha256 in known else result
            for result in results
        ]

    def decoded(self, hashes: Iterable[str], min_side: int | None) -> dict[str, Decoded]:
        """Return what decoding gave, of those pictures that are known to be good, by sha256.

        Args:
            hashes: Of files.
            min_side: As for `decode_image`.
        """
        hashes = set(hashes)
        sketches = self._sketches(hashes)
        command = "SELECT * FROM decoded WHERE side = ? AND max_pixels <= ? AND sha256 IN ({})"
        known = {}
        for sha256, side, limit, facts, mark in self._rows(command, hashes, (min_side or 0, self.decoding.max_pixels)):
            if not isinstance(facts, bytes) or mark != _mark(sha256, side, limit, facts):
                continue
            *values, height, width, fingerprint = json.loads(facts.decode())
            info = ImageInfo(*values)
            sketch = None if fingerprint is None else sketches.get((sha256, scale_of(info, height)))
            if fingerprint == _fingerprint(sketch):
                known[sha256] = Decoded(info, (height, width), sketch)
        return known

    def complete(
        self,
        results: Sequence[ReadResult],
        *,
        workers: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[ReadResult]:
        """Return results with the sketches that are known, and those of all others, which are decoded, but small.

        Args:
            results: Files that were read; those with an error, or whose content is another one now, get no sketch.
            workers: Threads.
            progress: Called with pictures decoded and pictures to decode.
        """
        filled = self.fill(results)
        unknown = {result.path: at for at, result in enumerate(filled) if result.sketch is None and not result.error}
        count = len(unknown)
        read = read_images(
            list(unknown),
            min_side=CHECK_SIDE,
            decoding=self.decoding,
            workers=workers,
            progress=None if progress is None else lambda done: progress(done, count),
        )
        for result in read:
            at = unknown[result.path]
            if result.sha256 == filled[at].sha256:
                filled[at] = replace(filled[at], sketch=result.sketch)
        self.keep_decoded(read, CHECK_SIDE)
        return filled

    def keep(self, results: Iterable[ReadResult]) -> None:
        """Write down the sketches of results that are not known yet."""
        self._add(("INSERT OR IGNORE INTO sketches VALUES (?, ?, ?, ?, ?)", _sketch_rows(results)))

    def keep_decoded(self, results: Sequence[ReadResult], min_side: int | None) -> None:
        """Write down what decoding gave of the pictures that are good, sketches included, whatever stood there.

        Args:
            results: Of `read_images`.
            min_side: As it was passed.
        """
        side, limit = min_side or 0, self.decoding.max_pixels
        rows: list[tuple[object, ...]] = []
        for result in results:
            info = result.info
            if result.sha256 is None or info is None or result.shape is None or info.format in _ELSEWHERE:
                continue
            facts = json.dumps([*astuple(info), *result.shape, _fingerprint(result.sketch)]).encode()
            mark = _mark(result.sha256, side, limit, facts)
            rows.append((bytes.fromhex(result.sha256), side, limit, facts, mark))
        self._add(
            ("INSERT OR REPLACE INTO sketches VALUES (?, ?, ?, ?, ?)", _sketch_rows(results)),
            ("INSERT OR REPLACE INTO decoded VALUES (?, ?, ?, ?, ?)", rows),
        )

    def digests(self, hashes: Iterable[str]) -> dict[str, str]:
        """Return the digests of pixels at full size that are known, by the sha256 of files."""
        rows = self._rows("SELECT * FROM digests WHERE sha256 IN ({})", hashes)
        return {sha256: digest.hex() for sha256, digest in rows if isinstance(digest, bytes)}

    def keep_digests(self, digests: Mapping[str, str]) -> None:
        """Write down digests of pixels at full size."""
        rows = [(bytes.fromhex(sha256), bytes.fromhex(digest)) for sha256, digest in digests.items()]
        self._add(("INSERT OR IGNORE INTO digests VALUES (?, ?)", rows))

    def _sketches(self, hashes: Iterable[str]) -> dict[tuple[str, int], Sketch]:
        """Return the sketches of some pictures, by sha256 and scale."""
        command = "SELECT sha256, scale, width, height, cells FROM sketches WHERE sha256 IN ({})"
        return {
            (sha256, scale): Sketch(width, height, scale, cells)
            for sha256, scale, width, height, cells in self._rows(command, hashes)
            if isinstance(cells, bytes) and len(cells) == SIDE * SIDE
        }

    def _rows(self, command: str, hashes: Iterable[str], values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of some pictures, each with the hash as text."""
        keys = sorted(bytes.fromhex(sha256) for sha256 in hashes)
        return [(row[0].hex(), *row[1:]) for row in self._database.select(command, keys, values)]

    def _add(self, *commands: tuple[str, Sequence[tuple[object, ...]]]) -> None:
        def add(database: sqlite3.Connection) -> None:
            for command, rows in commands:
                database.executemany(command, rows)
            for table in ("sketches", "decoded"):
                database.execute(f"DELETE FROM {table} WHERE rowid <= (SELECT max(rowid) FROM {table}) - {MOST:d}")

        if any(rows for _, rows in commands):
            if self._database.path is not None and not os.path.exists(self._database.path):  # noqa: PTH110  may not look
                remove_databases("sketches-*.db", _is_old)
            self._database.write(add)


def _is_old(name: str, days: float) -> bool:
    """Return whether a database is of earlier rules, or of a decoder or decoding that nobody uses any more."""
    rules = name.split("-")[1]
    return days > UNUSED_DAYS or (rules.isdigit() and int(rules) < RULES)


def _sketch_rows(results: Iterable[ReadResult]) -> list[tuple[object, ...]]:
    return [
        (bytes.fromhex(result.sha256), sketch.scale, sketch.width, sketch.height, sketch.cells)
        for result in results
        if result.sha256 is not None and (sketch := result.sketch) is not None
    ]


def _mark(sha256: str, side: int, max_pixels: int, facts: bytes) -> bytes:
    """Return what proves a row whole, and of the same facts as today."""
    return hashlib.blake2b(f"{_FACTS} {sha256} {side} {max_pixels} ".encode() + facts, digest_size=8).digest()


def _fingerprint(sketch: Sketch | None) -> str | None:
    """Return what a sketch is known by."""
    if sketch is None:
        return None
    head = f"{sketch.width} {sketch.height} {sketch.scale} ".encode()
    return hashlib.blake2b(head + sketch.cells, digest_size=8).hexdigest()
