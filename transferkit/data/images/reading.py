"""One pass over the files of a data set: read once, hash, decode fully, keep the pixels while they fit."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final, TypeAlias, TypeVar

from transferkit.core.records import USUAL, Decoding
from transferkit.data.images.decode import ImageInfo, Pixels, UnreadableImage, decode_with_info, read_bytes
from transferkit.data.images.readers import quiet_pillow
from transferkit.data.images.sketch import Sketch, sketch_of

__all__ = ["CHECK_SIDE", "Keeper", "ReadResult", "hash_images", "in_order", "read_images"]

CHECK_SIDE: Final = 64
"""Short side, in pixels, that a picture is decoded to when all that matters is whether it can be."""

Keeper: TypeAlias = Callable[[str, Pixels], Pixels | None]
"""Takes the sha256 of a file and its pixels; returns them as they lie in memory, ``None`` where they do not stay."""

_HASH_SLICE: Final = 100
_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class ReadResult:
    """The result of reading one file.

    Attributes:
        path: The file.
        sha256: Hex digest of its bytes; ``None`` when they could not be read.
        error: Why there is no picture; ``None`` for a good one.
        info: Format, mode and size from the header; ``None`` when there is an error.
        pixels: ``(H, W, 3)`` uint8 RGB, where they are kept in memory. Equal files share them.
        sketch: What copies are looked for by; ``None`` for a file that was not decoded.
        shape: Rows and columns of the pixels as decoded, whether they are here or not; likewise.
    """

    path: str
    sha256: str | None
    error: str | None = None
    info: ImageInfo | None = None
    pixels: Pixels | None = field(default=None, compare=False, repr=False)
    sketch: Sketch | None = field(default=None, compare=False, repr=False)
    shape: tuple[int, int] | None = field(default=None, compare=False, repr=False)


def read_images(
    paths: Sequence[str],
    *,
    min_side: int | None,
    decoding: Decoding = USUAL,
    keep: Keeper | None = None,
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
) -> list[ReadResult]:
    """Read and decode every file; a bad one is a result, not an exception.

    Args:
        paths: The files.
        min_side: As for `decode_image`.
        decoding: Likewise.
        keep: Takes the pixels of each picture, in input order, whatever the number of workers; besides what it keeps
            at most two pictures per worker are in memory.
        workers: Threads; Pillow decodes without holding Python's lock.
        progress: Called in the caller's thread with the number of files done.

    Returns:
        One result per path, in the same order.
    """
    results: list[ReadResult] = []
    with quiet_pillow():
        for result in in_order(lambda path: _read(path, min_side, decoding), paths, workers):
            pixels, digest = result.pixels, result.sha256
            if pixels is not None and digest is not None:
                result = replace(result, pixels=None if keep is None else keep(digest, pixels))
            results.append(result)
            if progress is not None:
                progress(len(results))
    return results


def hash_images(
    paths: Sequence[str], *, workers: int = 1, progress: Callable[[int], None] | None = None
) -> list[ReadResult]:
    """Read and hash every file without decoding it; a file that cannot be read is a result, not an exception.

    Args:
        paths: The files.
        workers: Threads; hashing does not hold Python's lock.
        progress: Called in the caller's thread with the number of files done.

    Returns:
        One result per path, in the same order, without `info` and `pixels`.
    """
    results: list[ReadResult] = []
    # A file takes tens of microseconds, handing one to a thread as much: they are handed over by the hundred.
    slices = [paths[start : start + _HASH_SLICE] for start in range(0, len(paths), _HASH_SLICE)]
    for part in in_order(lambda part: [_hash(path) for path in part], slices, workers):
        results += part
        if progress is not None:
            progress(len(results))
    return results


def _hash(path: str) -> ReadResult:
    try:
        return ReadResult(path, hashlib.sha256(read_bytes(path)).hexdigest())
    except UnreadableImage as error:
        return ReadResult(path, None, error.reason)


def _read(path: str, min_side: int | None, decoding: Decoding) -> ReadResult:
    digest = None
    try:
        data = read_bytes(path)
        digest = hashlib.sha256(data).hexdigest()
        pixels, info = decode_with_info(data, min_side=min_side, decoding=decoding, name=path)
    except UnreadableImage as error:
        return ReadResult(path, digest, error.reason)
    return ReadResult(path, digest, None, info, pixels, sketch_of(pixels, info), (pixels.shape[0], pixels.shape[1]))


def in_order(read: Callable[[_Task], _Result], tasks: Iterable[_Task], workers: int) -> Iterator[_Result]:
    """Map `read` over `tasks` on `workers` threads, in order, with at most two tasks per worker under way."""
    if workers == 1:
        yield from map(read, tasks)
        return
    todo = iter(tasks)
    with ThreadPoolExecutor(workers, thread_name_prefix="read") as pool:
        waiting: deque[Future[_Result]] = deque(pool.submit(read, task) for task in islice(todo, 2 * workers))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(read, task) for task in islice(todo, 1))
                yield result
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
