"""Pictures unlike all others: far from their neighbours, as a network sees them and as they look from afar."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from transferkit.data.images.sketch import SIDE, Sketch

__all__ = ["ENOUGH", "looks", "outliers"]

ENOUGH = 50
"""Pictures from which it makes sense to say what is usual."""

LIMITS = (4.0, 3.0)
"""Robust deviations of the logarithm of the distance above which a picture is unlike the others: by one description
alone, and by the mean over two, which errs less. Of 30 pictures of other kinds among 3,409 photos of clothes the mean
finds 13 and doubts 2 of the photos; features of the small network alone find 3."""

NEIGHBOUR = 20
"""The distance to this neighbour counts, so that a few odd pictures of one kind do not vouch for each other."""

MOST_ROWS = 20_000
"""Pictures among which neighbours are looked for."""

_BLOCK = 1024
_LEAST = 1e-3
"""Of a distance, in medians, so that its logarithm is finite."""
_SPREAD = 0.05
"""Least deviation of the logarithms: where all distances are equal, the least difference would be worth a word."""
_LEVELS = 16
_Array = npt.NDArray[np.floating]


def looks(sketches: Sequence[Sketch]) -> npt.NDArray[np.float32]:
    """Return what pictures look like from afar (N, 14): brightness, contrast, detail by size and direction, levels.

    Args:
        sketches: Of N pictures.
    """
    blocks = [_looks(sketches[start : start + _BLOCK]) for start in range(0, len(sketches), _BLOCK)]
    return np.concatenate(blocks) if blocks else _looks(sketches)


def _looks(sketches: Sequence[Sketch]) -> npt.NDArray[np.float32]:
    cells = np.frombuffer(b"".join(sketch.cells for sketch in sketches), np.uint8).astype(np.float32) / 255
    cells = cells.reshape(-1, SIDE, SIDE)
    columns = [cells.mean(axis=(1, 2)), cells.std(axis=(1, 2))]
    for size in (1, 2, 4, 8):
        coarse = cells.reshape(len(cells), SIDE // size, size, SIDE // size, size).mean(axis=(2, 4))
        down = np.abs(np.diff(coarse, axis=1)).mean(axis=(1, 2)) + 1e-3
        across = np.abs(np.diff(coarse, axis=2)).mean(axis=(1, 2)) + 1e-3
        columns += [np.log(down + across), np.log(down / across)]
    levels = np.minimum((cells * _LEVELS).astype(np.int64), _LEVELS - 1).reshape(len(cells), -1)
    shares = np.stack([(levels == level).mean(axis=1) for level in range(_LEVELS)], axis=1)
    entropy = -(shares * np.log(np.maximum(shares, 1e-9))).sum(axis=1)
    return np.stack([*columns, entropy, *np.sort(shares, axis=1)[:, -3:].T], axis=1).astype(np.float32)


def outliers(descriptions: Sequence[_Array], *, seed: int = 0) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return the pictures that are unlike all others, the most unlike first, and how far each picture is off.

    The distance to the 20th neighbour on standardised columns; of its logarithm the deviation from the median in units
    of the median absolute deviation (times 1.4826, as of a normal distribution); of several descriptions the mean.

    Args:
        descriptions: One or two of the same pictures, (N, D) each.
        seed: Of what is drawn of more than 20,000 pictures, among which neighbours are looked for.

    Returns:
        Positions, and deviations (N,); no position where there are fewer than 50 pictures.
    """
    count = len(descriptions[0])
    if count < ENOUGH:
        return np.zeros(0, dtype=np.int64), np.zeros(count)
    deviations = np.mean([_deviations(rows, seed) for rows in descriptions], axis=0)
    far = np.flatnonzero(deviations > LIMITS[len(descriptions) - 1])
    return far[np.argsort(-deviations[far], kind="stable")], deviations


def _deviations(rows: _Array, seed: int) -> npt.NDArray[np.float64]:
    scale = rows.std(axis=0)
    rows = np.asarray((rows - rows.mean(axis=0)) / np.where(scale > 0, scale, 1), dtype=np.float32)
    chosen = np.arange(len(rows))
    if len(rows) > MOST_ROWS:
        chosen = np.random.default_rng(seed).choice(len(rows), MOST_ROWS, replace=False)
    others = rows[chosen]
    norms = np.square(others).sum(axis=1)
    distances = np.empty(len(rows))
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        squares = block @ others.T  # and in place: it is 80 MB, and each further array of it takes as long as this
        squares *= -2
        squares += norms
        squares += np.square(block).sum(axis=1, keepdims=True)
        # The first neighbour is the picture itself; in a sample it may not be, which changes little.
        squares.partition(NEIGHBOUR, axis=1)
        distances[start : start + _BLOCK] = np.sqrt(np.maximum(squares[:, NEIGHBOUR], 0))
    middle = np.median(distances)
    if not middle:  # most pictures are one and the same: there is no measure of how much the others differ
        return np.zeros(len(rows))
    logs = np.log(np.maximum(distances / middle, _LEAST))
    return np.asarray(logs / max(1.4826 * np.median(np.abs(logs)), _SPREAD), dtype=np.float64)
