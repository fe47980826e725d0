"""Copies of a picture under other bytes: saved again, in another format, with other metadata, turned by EXIF or not.

Equal pictures are those whose pixels, upright and at full size, are equal. To know them for sure every picture would
have to be decoded at full size; but equal pictures have the same size and all but equal sketches, and hardly any others
do. So only those are looked at closely.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from transferkit.core.records import USUAL, Decoding
from transferkit.data.images.decode import UnreadableImage, decode_image, pixels_digest, read_bytes
from transferkit.data.images.readers import quiet_pillow
from transferkit.data.images.reading import CHECK_SIDE, ReadResult
from transferkit.data.images.sketch import Sketch

__all__ = ["equal_pictures"]

TOLERANCE = 12.0
"""Levels, root mean square over the cells, by which sketches of one picture at different scales may differ: photos of
400 x 533 pixels differ by 5 at most between 1/4 and full size. A wide one costs a second look, no mistake."""


def equal_pictures(results: Sequence[ReadResult], decoding: Decoding = USUAL, *, workers: int = 1) -> dict[str, str]:
    """Return what files of equal pixels are known by.

    Args:
        results: Files that were read and decoded; those without a sketch are taken for unlike all others, and so are
            those of one colour: what they are pictures of is not to be seen.
        decoding: How they were decoded.
        workers: Threads for the second look.

    Returns:
        The smallest sha256 of the files with the same pixels, by the sha256 of each of those files. Pictures that are
        alone, or whose copies have the same bytes, are not in it.
    """
    distinct = {
        result.sha256: result
        for result in results
        if result.sha256 is not None and result.sketch is not None and not (result.info and result.info.one_colour)
    }
    suspects = [distinct[sha256] for sha256 in sorted(_suspects(distinct))]
    families: dict[str, list[str]] = defaultdict(list)
    with quiet_pillow(), ThreadPoolExecutor(workers, thread_name_prefix="copies") as pool:
        for result, digest in zip(suspects, pool.map(lambda result: _digest(result, decoding), suspects), strict=True):
            if digest is not None:
                families[digest].append(str(result.sha256))
    return {sha256: min(family) for family in families.values() if len(family) > 1 for sha256 in family}


def _suspects(distinct: dict[str, ReadResult]) -> set[str]:
    """Return the pictures, by sha256, that may have the pixels of another one."""
    by_size: dict[tuple[int, int], dict[Sketch, list[str]]] = defaultdict(lambda: defaultdict(list))
    for sha256, result in distinct.items():
        if result.sketch is not None:
            by_size[result.sketch.width, result.sketch.height][result.sketch].append(sha256)
    suspects: set[str] = set()
    for sketches in by_size.values():
        suspects.update(sha256 for same in sketches.values() if len(same) > 1 for sha256 in same)
        scales = {sketch.scale for sketch in sketches}
        for scale in scales if len(scales) > 1 else ():  # equal pictures at one scale have equal sketches
            here = [sketch for sketch in sketches if sketch.scale == scale]
            others = [sketch for sketch in sketches if sketch.scale != scale]
            suspects.update(sha256 for sketch in _alike(here, others) for sha256 in sketches[sketch])
    return suspects


def _alike(sketches: Sequence[Sketch], others: Sequence[Sketch]) -> Iterable[Sketch]:
    """Return which sketches are within the tolerance of one of the others."""
    rows, cells = _cells(sketches), _cells(others)
    norms = np.square(cells).sum(axis=1)
    for sketch, row in zip(sketches, rows, strict=True):
        squares = norms - 2.0 * (cells @ row) + row @ row
        if squares.min() <= TOLERANCE**2 * row.size:
            yield sketch


def _cells(sketches: Sequence[Sketch]) -> np.ndarray:
    return np.array([np.frombuffer(sketch.cells, np.uint8) for sketch in sketches], dtype=np.float64)


def _digest(result: ReadResult, decoding: Decoding) -> str | None:
    """Return the digest of a picture at full size; ``None`` where the file is not the one that was read any more."""
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
