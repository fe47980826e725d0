"""Windows of a picture at its own resolution: where they lie, and which of them decides of which pixel.

All windows have the size of the network's input. Each looks at least an eighth of its side beyond the pixels that it
decides of, its *core*, wherever the picture goes on: a network knows less of what lies at the edge of what it sees.
Cores do not overlap. So masks are put together of them without weights, and their counts of pixels add up to those of
the picture.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from transferkit.core.records import DataConfig, Frame, Window

__all__ = ["ZOOM", "cut", "middle_window", "random_window", "window_at", "window_count", "windows"]

_Pixels = TypeVar("_Pixels", bound=npt.NDArray[Any])

MARGIN: Final = 8
"""Side of a window over what it looks beyond its core."""

ZOOM: Final = (0.8, 1.25)
"""Range of the sizes at which a random window shows things, over their own."""


def windows(size: tuple[int, int], config: DataConfig) -> Iterator[Window]:
    """Yield the windows of a picture, row by row.

    Along a side that is longer than the window there are as few as can be, spread evenly; each ends where the picture
    does, and where two overlap the core of one ends in the middle. A shorter side lies in the middle of its window.

    Args:
        size: Height and width of the picture, upright, at least 1 each.
        config: Its `image_size` is that of the windows.
    """
    return (window_at(size, config, number) for number in range(window_count(size, config)))


def window_count(size: tuple[int, int], config: DataConfig) -> int:
    """Return how many `windows` there are."""
    rows, columns = (len(_along(*side)) for side in zip(size, config.image_size, strict=True))
    return rows * columns


def window_at(size: tuple[int, int], config: DataConfig, number: int) -> Window:
    """Return one of the `windows` by its number, counted from 0."""
    rows, columns = (_along(*side) for side in zip(size, config.image_size, strict=True))
    row, column = divmod(number, len(columns))
    (top, above, below), (left, before, behind) = rows[row], columns[column]
    return Window(top, left, Frame(above, before, below - above, behind - before))


def middle_window(size: tuple[int, int], config: DataConfig) -> int:
    """Return the number of the window in the middle of a picture, or next to it."""
    rows, columns = (len(_along(*side)) for side in zip(size, config.image_size, strict=True))
    return rows // 2 * columns + columns // 2


@lru_cache(maxsize=256)
def _along(length: int, side: int) -> tuple[tuple[int, int, int], ...]:
    """Return the windows along one side of a picture: where each begins, and where its core begins and ends."""
    if length <= side:
        return ((-((side - length) // 2), 0, length),)
    margin = side // MARGIN
    gaps = -(-(length - side) // (side - 2 * margin))
    starts = [at * (length - side) // gaps for at in range(gaps + 1)]
    cuts = [0, *((one + side + other) // 2 for one, other in pairwise(starts)), length]
    return tuple((start, *core) for start, core in zip(starts, pairwise(cuts), strict=True))


def cut(image: _Pixels, window: Window, size: tuple[int, int], ground: Any) -> _Pixels:
    """Return what a window shows of a picture, ``(h, w, ...)``: a new, contiguous array.

    Args:
        image: ``(H, W, ...)``.
        window: Where it lies.
        size: Height and width of it.
        ground: What stands beside the picture.
    """
    spans = []
    for start, side, length in zip((window.top, window.left), size, image.shape, strict=False):
        first, last = max(start, 0), min(start + side, length)
        spans.append((slice(first, last), slice(first - start, last - start)))
    (rows, to_rows), (columns, to_columns) = spans
    if (rows.stop - rows.start, columns.stop - columns.start) == size:
        return image[rows, columns].copy(order="C")  # type: ignore[return-value]
    shown = np.empty((*size, *image.shape[2:]), dtype=image.dtype)
    shown[:] = ground
    shown[to_rows, to_columns] = image[rows, columns]
    return shown  # type: ignore[return-value]


def random_window(size: tuple[int, int], window: tuple[int, int], rng: random.Random) -> tuple[Frame, Frame]:
    """Draw a window for training: which part of a picture it shows, and where on the window that lies.

    Things are shown at 0.8 to 1.25 times their own size. Places are drawn as if windows went half their side beyond the
    picture, and are brought back to its edges: else pixels there would hardly ever be seen. So about as many windows
    lie at the edges as in evaluation. A picture that is smaller than the window lies anywhere on it.

    Args:
        size: Height and width of the picture.
        window: Height and width of the window.
        rng: Where the randomness comes from.

    Returns:
        Part of the picture, and the place of it on the window, each in pixels of its own.
    """
    zoom = math.exp(rng.uniform(*map(math.log, ZOOM)))
    (top, height, above, rows), (left, width, before, columns) = (
        _drawn(length, side, zoom, rng) for length, side in zip(size, window, strict=True)
    )
    return Frame(top, left, height, width), Frame(above, before, rows, columns)


def _drawn(length: int, side: int, zoom: float, rng: random.Random) -> tuple[int, int, int, int]:
    """Return, along one side, where the shown part begins and how long it is, on the picture and on the window."""
    seen = max(1, round(side / zoom))
    if seen > length:
        shown = min(side, max(1, round(length * side / seen)))
        return 0, length, rng.randint(0, side - shown), shown
    beyond = seen // 2
    start = rng.randint(-beyond, length - seen + beyond)
    return min(max(start, 0), length - seen), seen, 0, side
