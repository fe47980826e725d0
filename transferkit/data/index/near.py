"""Near copies: the same picture at another size or quality, brighter or darker, or cut a little at its borders.

Pictures are compared by the differences between neighbouring cells of their sketches, which do not change with
brightness and hardly with contrast, size or compression. The usual perceptual hashes compare signs of such differences;
the differences themselves tell more. That a picture was cut is found by laying windows of each sketch over the whole of
every other one that is somewhat like it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import ConfigError
from transferkit.data.images.sketch import SIDE, Sketch
from transferkit.data.index.families import Families

__all__ = ["SIMILAR", "near_copies"]

SIMILAR: Final = 0.955
"""Least correlation of near copies where only sketches are known: of 5.8 million pairs of photos of clothes, many of
them much alike, only the one true pair reaches it."""

CONFIRMED: Final = 0.92
"""The same where features agree, too. Of 60 photos of clothes that were cut, scaled and made brighter all are found so,
58 from sketches alone; with 0.85 there are ten false ones besides (tests/bench/audit.py has the photos)."""

FEATURES: Final = 0.85
"""Least cosine of standardised features that agree."""

CANDIDATE: Final = 0.45
"""Correlation of whole sketches from which windows are tried: cut by 5 %, 99 of 100 photos still reach it."""

FLAT: Final = 0.5
"""Levels, root mean square, of differences between cells: what has less is a plain surface and like any other one."""

CUTS: Final = (0.025, 0.05, 0.075, 0.1)
"""Shares of the sides that may be cut off."""

_CELLS = 16
_BLOCK = 512
_Array = npt.NDArray[np.float32]


def near_copies(
    sketches: Sequence[Sketch],
    features: npt.NDArray[np.floating] | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[tuple[int, ...], ...]:
    """Return groups of pictures that are near copies of each other, equal ones among them.

    Use it with the sketches of `ImageIndex.sketches`, or of `ReadResult`; positions in the result are those in
    `sketches`. Near copies of near copies are one group. Mirrored or turned pictures are none, nor those
    without structure (all of one colour, say). Those that differ in small things only are taken for near copies: frames
    of a fixed camera, filled-in forms, drawn digits. Time grows with the square of the number of pictures: seconds for
    a few thousand, minutes for 100,000.

    Args:
        sketches: Of N pictures.
        features: ``(N, D)``, of a backbone, standardised. With them, pictures may be less alike from afar as long
            as their features agree, and those whose features differ are no copies, however alike they look from afar.
        progress: Called with pictures compared and pictures in all.

    Returns:
        Positions, ascending in each group; the groups by their first one. None has fewer than two.

    Raises:
        ConfigError: There are not as many features as sketches.
    """
    if features is not None and len(features) != len(sketches):
        raise ConfigError(f"{len(features)} rows of features for {len(sketches)} pictures, expected one for each")
    cells = np.array([np.frombuffer(sketch.cells, np.uint8) for sketch in sketches], dtype=np.float32)
    cells = cells.reshape(-1, SIDE, SIDE)
    plain, structured = _differences(cells, _windows()[0])
    least = SIMILAR if features is None else CONFIRMED
    unit = None if features is None else _unit(np.asarray(features, dtype=np.float32))
    families: Families[int] = Families()
    for start in range(0, len(sketches), _BLOCK):
        block = slice(start, start + _BLOCK)
        alike = plain[block] @ plain.T > CANDIDATE
        alike[np.arange(len(alike)), np.arange(start, start + len(alike))] = False
        alike &= structured[block, None] & structured
        rows = np.flatnonzero(alike.any(axis=1))
        views = np.stack([_differences(cells[start + rows], window)[0] for window in _windows()], axis=1)
        for row, windows in zip(rows.tolist(), views, strict=True):
            others = np.flatnonzero(alike[row])
            near = (windows @ plain[others].T).max(axis=0) >= least
            if unit is not None:
                near &= unit[others] @ unit[start + row] >= FEATURES
            families.join((start + row, *others[near].tolist()))
        if progress is not None:
            progress(min(start + _BLOCK, len(sketches)), len(sketches))
    return tuple(tuple(group) for group in families.members().values())


def _differences(cells: _Array, window: tuple[_Array, _Array]) -> tuple[_Array, npt.NDArray[np.bool_]]:
    """Return the differences between neighbours ``(N, 480)`` inside a window, of length 1; and which are not flat."""
    rows, columns = window
    inside = rows @ cells @ columns.T
    parts = (np.diff(inside, axis=2), np.diff(inside, axis=1))
    values = np.concatenate([part.reshape(len(cells), _CELLS * (_CELLS - 1)) for part in parts], axis=1)
    structured = np.sqrt(np.square(values).mean(axis=1)) >= FLAT
    return _unit(values), structured


def _unit(rows: _Array) -> _Array:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), dtype=np.float32)


@cache
def _windows() -> tuple[tuple[_Array, _Array], ...]:
    """Return windows of a sketch as pairs of averages ``(16, 32)`` over rows and columns; the whole is the first."""
    windows = [(_averages(0.0, 1.0), _averages(0.0, 1.0))]
    for cut in CUTS:
        places = [_averages(share * cut, 1 - cut + share * cut) for share in (0.0, 0.5, 1.0)]
        windows += [(rows, columns) for rows in places for columns in places]
    return tuple(windows)


def _averages(first: float, last: float) -> _Array:
    """Return the weights by which cells between two shares of a side are averaged into 16 wider ones."""
    borders = np.linspace(first, last, _CELLS + 1)[:, None] * SIDE
    cells = np.arange(SIDE)
    weights = np.clip(np.minimum(borders[1:], cells + 1) - np.maximum(borders[:-1], cells), 0.0, None)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)
