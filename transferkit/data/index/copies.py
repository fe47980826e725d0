"""Copies of a picture under other bytes: saved again, in another format, with other metadata, turned by EXIF or not.

Equal pictures are those whose pixels, upright and at full size, are equal. To know them for sure every picture would
have to be decoded at full size; but equal pictures have the same size and all but equal sketches, and hardly any others
do. So only those are looked at closely.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from transferkit.core.records import Decoding
from transferkit.data.images.decode import UnreadableImage, decode_image, pixels_digest, read_bytes
from transferkit.data.images.known_files import read_files
from transferkit.data.images.readers import quiet_pillow
from transferkit.data.images.reading import CHECK_SIDE, ReadResult
from transferkit.data.images.sketch import Sketch
from transferkit.data.images.sketchbook import Sketchbook
from transferkit.data.index.families import Families
from transferkit.data.index.near import near_copies

__all__ = ["Copies", "equal_pictures", "find_copies"]

TOLERANCE = 12.0
"""Levels, root mean square over the cells, by which sketches of one picture at different scales may differ: photos of
400 x 533 pixels differ by 5 at most between 1/4 and full size. A wide one costs a second look, no mistake."""


@dataclass(frozen=True)
class Copies:
    """Which pictures of a data set are copies of each other.

    Attributes:
        same: What files of equal pixels are known by, see `equal_pictures`.
        near: Families of near copies, by path, where they are to be kept together; see `near_copies`.
    """

    same: Mapping[str, str] = field(default_factory=dict)
    near: tuple[tuple[str, ...], ...] = ()


def find_copies(
    results: Sequence[ReadResult],
    book: Sketchbook,
    *,
    near: bool = False,
    rescan: bool = False,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Copies:
    """Return which files are copies of each other, as far as they have sketches.

    Args:
        results: Files that were read.
        book: What is known from before; what is learnt is added.
        near: Look for near copies, too. Sketches of one small size are used for it, so that it does not depend on the
            size that pictures were decoded at, or on what is known from before, which splits they end up in.
        rescan: Read all files anew for that.
        workers: Threads.
        progress: Called with pictures read for that and pictures in all.
    """
    same = equal_pictures(results, book, workers=workers)
    if not near:
        return Copies(same)
    paths = [result.path for result in results if result.error is None]
    small = read_files(
        paths,
        min_side=CHECK_SIDE,
        decoding=book.decoding,
        rescan=rescan,
        workers=workers,
        progress=None if progress is None else lambda done: progress(done, len(paths)),
    )
    drawn = [(result.path, result.sketch) for result in small if result.sketch is not None]
    families = near_copies([sketch for _, sketch in drawn], workers=workers)
    return Copies(same, tuple(tuple(drawn[at][0] for at in family) for family in families))


def equal_pictures(results: Sequence[ReadResult], book: Sketchbook, *, workers: int = 1) -> dict[str, str]:
    """Return what files of equal pixels are known by.

    Args:
        results: Files that were read; those without a sketch are taken for unlike all others.
        book: What earlier looks found out; what this one does is added.
        workers: Threads for the second look.

    Returns:
        The smallest sha256 of the files with the same pixels, by the sha256 of each of those files. Pictures that are
        alone, or whose copies have the same bytes, are not in it. A file that is gone has the pixels of what looks the
        same from afar.
    """
    distinct = {result.sha256: result for result in results if result.sha256 is not None and result.sketch is not None}
    groups = list(_suspects(distinct))
    suspects = {sha256 for group in groups for sha256 in group}
    digests = book.digests(suspects)
    unknown = sorted(suspects - digests.keys())
    with quiet_pillow(), ThreadPoolExecutor(workers, thread_name_prefix="copies") as pool:
        looks = pool.map(lambda sha256: _digest(distinct[sha256], book.decoding), unknown)
        fresh = {sha256: digest for sha256, digest in zip(unknown, looks, strict=True) if digest is not None}
    book.keep_digests(fresh)
    digests |= fresh
    families: Families[str] = Families()
    for group in groups:
        by_pixels: dict[str | None, list[str]] = defaultdict(list)
        for sha256 in group:
            by_pixels[digests.get(sha256)].append(sha256)
        gone = by_pixels.pop(None, [])
        for family in by_pixels.values():
            families.join([*family, *gone] if len(by_pixels) == 1 else family)
        if not by_pixels:
            families.join(gone)
    return {sha256: name for name, family in families.members().items() for sha256 in family}


def _suspects(distinct: dict[str, ReadResult]) -> Iterator[list[str]]:
    """Return groups of pictures, by sha256, that may have the same pixels; a picture may be in several."""
    by_size: dict[tuple[int, int], dict[Sketch, list[str]]] = defaultdict(lambda: defaultdict(list))
    for sha256, result in distinct.items():
        if result.sketch is not None:
            by_size[result.sketch.width, result.sketch.height][result.sketch].append(sha256)
    for sketches in by_size.values():
        yield from (same for same in sketches.values() if len(same) > 1)
        scales = sorted({sketch.scale for sketch in sketches})
        for scale in scales[1:]:  # equal pictures at one scale have equal sketches
            smaller = [sketch for sketch in sketches if sketch.scale == scale]
            larger = [sketch for sketch in sketches if sketch.scale < scale]
            for one, other in _alike(smaller, larger):
                yield [*sketches[one], *sketches[other]]


def _alike(sketches: Sequence[Sketch], others: Sequence[Sketch]) -> Iterator[tuple[Sketch, Sketch]]:
    """Return pairs of sketches, one of each sort, that differ within the tolerance."""
    rows, cells = _cells(sketches), _cells(others)
    norms = np.square(cells).sum(axis=1)
    for sketch, row in zip(sketches, rows, strict=True):
        squares = norms - 2.0 * (cells @ row) + row @ row
        yield from ((sketch, others[at]) for at in np.flatnonzero(squares <= TOLERANCE**2 * row.size).tolist())


def _cells(sketches: Sequence[Sketch]) -> npt.NDArray[np.float64]:
    return np.array([np.frombuffer(sketch.cells, np.uint8) for sketch in sketches], dtype=np.float64)


def _digest(result: ReadResult, decoding: Decoding) -> str | None:
    """Return the digest of a picture at full size; ``None`` where the file is gone or another one by now."""
    if result.pixels is not None and result.sketch is not None and result.sketch.scale == 1:
        return pixels_digest(result.pixels)
    try:
        data = read_bytes(result.path)
        if hashlib.sha256(data).hexdigest() != result.sha256:
            return None
        try:
            return pixels_digest(decode_image(data, decoding=decoding, name=result.path))
        except UnreadableImage:  # too large for its full size: a JPEG, as it could be decoded at a fraction
            small = decode_image(data, min_side=CHECK_SIDE, decoding=decoding, name=result.path)
            return pixels_digest(small)
    except UnreadableImage:
        return None
