"""Near copies: the same picture at another size or quality, brighter or darker, or cut a little at its borders.

Pictures are compared by the differences between neighbouring cells of their sketches, which do not change with
brightness and hardly with contrast, size or compression. The usual perceptual hashes compare signs of such differences;
the differences themselves tell more. That a picture was cut is found by laying windows of each sketch over the whole of
every other one that is somewhat like it.

Every picture is compared with every other one: the sketches of photos vary in too many directions to be sorted into
places. But it is done with a fraction of each, which bounds how much alike two can be, so that few are left to be
looked at closely; and what is of one family already is not compared again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from transferkit.core.errors import ConfigError
from transferkit.data.images.reading import in_order
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

COARSE: Final = 96
"""Directions by which whole sketches are compared first: of photos of clothes one in 20 pairs may be alike by them,
where one in 100 is."""

NARROW: Final = 32
"""The same for each window of those: one in 1,000 may be."""

MANY: Final = 2_000
"""Pictures from which it pays to look for the directions in which they differ most."""

MARGIN: Final = 1e-4
"""By how much rounding may lower a bound at most."""

_CELLS = 16
_PARTS = 2 * _CELLS * (_CELLS - 1)
_BLOCK = 128
_ROUNDING = 1e-6
_TILE = 8192
_Array = npt.NDArray[np.float32]
_Cells = npt.NDArray[np.uint8]


def near_copies(
    sketches: Sequence[Sketch],
    features: npt.NDArray[np.floating] | None = None,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[tuple[int, ...], ...]:
    """Return groups of pictures that are near copies of each other, equal ones among them.

    Use it with the sketches of `ImageIndex.sketches`, or of `ReadResult`; positions in the result are those in
    `sketches`. Near copies of near copies are one group. Mirrored or turned pictures are none, nor those
    without structure (all of one colour, say). Those that differ in small things only are taken for near copies: frames
    of a fixed camera, filled-in forms, drawn digits. Time grows with the square of the number of pictures, at a small
    factor: about ten seconds for 50,000 on two cores, minutes for 200,000. Memory grows with their number.

    Args:
        sketches: Of N pictures.
        features: ``(N, D)``, of a backbone, standardised. With them, pictures may be less alike from afar as long
            as their features agree, and those whose features differ are no copies, however alike they look from afar.
        workers: Threads.
        progress: Called with pictures compared and pictures in all.

    Returns:
        Positions, ascending in each group; the groups by their first one. None has fewer than two.

    Raises:
        ConfigError: There are not as many features as sketches.
    """
    if features is not None and len(features) != len(sketches):
        raise ConfigError(f"{len(features)} rows of features for {len(sketches)} pictures, expected one for each")
    cells = np.frombuffer(b"".join(sketch.cells for sketch in sketches), np.uint8).reshape(-1, SIDE, SIDE)
    unit = None if features is None else _unit(np.asarray(features, dtype=np.float32))
    families: Families[int] = Families()
    names = np.arange(len(sketches))  # equal ones are of one family, others may be
    with threadpool_limits(1, user_api="blas"):  # each worker is one, and they would wait for each other
        search = _Search(cells, unit)
        starts = range(0, len(sketches), _BLOCK)
        for start, groups in zip(
            starts, in_order(lambda start: search.near(start, names.copy()), starts, workers), strict=True
        ):
            for group in groups:
                families.join(group.tolist())
                names[group] = families.name(int(group[0]))
            if progress is not None:
                progress(min(start + _BLOCK, len(sketches)), len(sketches))
    return tuple(tuple(group) for group in families.members().values())


class _Search:
    """Looks for near copies by the block.

    Args:
        cells: ``(N, 32, 32)``, of all sketches.
        unit: ``(N, D)``, features of length 1, if any.
    """

    def __init__(self, cells: _Cells, unit: _Array | None) -> None:
        self.cells = cells
        self.unit = unit
        coarse = narrow = np.eye(_PARTS, dtype=np.float32)
        if len(cells) >= MANY:
            some = _differences(cells[:: len(cells) // MANY], _windows()[0])[0].astype(np.float64)
            directions = np.linalg.eigh(some.T @ some)[1][:, ::-1].astype(np.float32)
            coarse, narrow = directions[:, :COARSE], directions[:, :NARROW]
        self._narrow = narrow
        self.structured = np.empty(len(cells), dtype=np.bool_)
        self.coarse = np.empty((len(cells), coarse.shape[1] + 1), dtype=np.float32)
        self.narrow = np.empty((len(cells), narrow.shape[1] + 1), dtype=np.float32)
        for start in range(0, len(cells), _TILE):
            tile = slice(start, start + _TILE)
            plain, self.structured[tile] = _differences(cells[tile], _windows()[0])
            self.coarse[tile], self.narrow[tile] = _bounding(plain, coarse), _bounding(plain, narrow)

    def near(self, start: int, names: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
        """Return some pictures of a block with their near copies, as far as these are not of one family already.

        Args:
            start: The first of the block.
            names: Of the families; changed.
        """
        alike = self._may_be_alike(slice(start, start + _BLOCK), names)
        rows = np.flatnonzero(alike.any(axis=1))
        if not len(rows):
            return []
        least = SIMILAR if self.unit is None else CONFIRMED
        candidates = {}
        for row, short in zip(rows.tolist(), self._views(start + rows), strict=True):
            others = np.flatnonzero(alike[row])
            others = others[(short @ self.narrow[others].T).max(axis=0) >= least - MARGIN]
            if len(others):
                candidates[start + row] = others
        if not candidates:
            return []
        block = self.cells[list(candidates)]
        views = np.stack([_differences(block, window)[0] for window in _windows()], axis=1)
        groups = []
        for (one, others), windows in zip(candidates.items(), views, strict=True):
            others = others[names[others] != names[one]]
            plain = _differences(self.cells[others], _windows()[0])[0]
            near = (windows @ plain.T).max(axis=0) >= least
            near &= plain @ windows[0] > CANDIDATE
            if self.unit is not None:
                near &= self.unit[others] @ self.unit[one] >= FEATURES
            if near.any():
                groups.append(np.array([one, *others[near].tolist()]))
                names[groups[-1]] = names[one]
        return groups

    def _views(self, pictures: npt.NDArray[np.int64]) -> _Array:
        """Return the bounding forms of all windows of some pictures ``(n, 37, NARROW + 1)``, by few large products."""
        lines, pairs = _borders()
        inside = (lines @ self.cells[pictures].astype(np.float32).transpose(1, 0, 2).reshape(SIDE, -1)).reshape(
            -1, 2 * _CELLS - 1, len(pictures), SIDE
        )
        views = np.empty((len(pairs), len(pictures), self._narrow.shape[1] + 1), dtype=np.float32)
        columns = lines.reshape(-1, 2 * _CELLS - 1, SIDE)
        for view, (row, column) in zip(views, pairs, strict=True):
            across = inside[row, :_CELLS] @ columns[column, _CELLS:].T
            down = inside[row, _CELLS:] @ columns[column, :_CELLS].T
            values = np.concatenate([part.transpose(1, 0, 2).reshape(len(pictures), -1) for part in (across, down)], 1)
            view[:] = _bounding(_unit(values), self._narrow)
        return views.transpose(1, 0, 2)

    def _may_be_alike(self, block: slice, names: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return which pictures may be candidates, of each of a block ``(rows, N)``."""
        own = self.coarse[block]
        alike = np.empty((len(own), len(self.cells)), dtype=np.bool_)
        for first in range(0, len(self.cells), _TILE):  # products that stay in the processor
            tile = slice(first, first + _TILE)
            np.greater(own @ self.coarse[tile].T, CANDIDATE - MARGIN, out=alike[:, tile])
            alike[:, tile] &= self.structured[tile] & (names[block, None] != names[tile])
        alike &= self.structured[block, None]
        return alike


def _bounding(rows: _Array, basis: _Array) -> _Array:
    """Return rows of length 1 by a few directions and by how much is left: no product of two is less than their own."""
    short = rows @ basis
    left = np.sqrt(np.maximum(1 - np.square(short).sum(axis=1, keepdims=True), 0) + _ROUNDING)
    return np.concatenate([short, left], axis=1)


def _differences(cells: _Cells, window: tuple[_Array, _Array]) -> tuple[_Array, npt.NDArray[np.bool_]]:
    """Return the differences between neighbours ``(N, 480)`` inside a window, of length 1; and which are not flat."""
    rows, columns = window
    inside = rows @ cells.astype(np.float32) @ columns.T
    parts = (np.diff(inside, axis=2), np.diff(inside, axis=1))
    values = np.concatenate([part.reshape(len(cells), _CELLS * (_CELLS - 1)) for part in parts], axis=1)
    structured = np.sqrt(np.square(values).mean(axis=1)) >= FLAT
    return _unit(values), structured


def _unit(rows: _Array) -> _Array:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), dtype=np.float32)


@cache
def _windows() -> tuple[tuple[_Array, _Array], ...]:
    """Return windows of a sketch as pairs of averages ``(16, 32)`` over rows and columns; the whole is the first."""
    lines = _lines()
    return tuple((lines[row], lines[column]) for row, column in _borders()[1])


@cache
def _lines() -> tuple[_Array, ...]:
    """Return the averages between the borders of windows; those of the whole are the first."""
    places = [(share * cut, 1 - cut + share * cut) for cut in CUTS for share in (0.0, 0.5, 1.0)]
    return tuple(_averages(first, last) for first, last in [(0.0, 1.0), *places])


@cache
def _borders() -> tuple[_Array, tuple[tuple[int, int], ...]]:
    """Return all averages, each followed by its differences ``(13 * 31, 32)``, and which of them windows are."""
    lines = np.concatenate([part for line in _lines() for part in (line, np.diff(line, axis=0))])
    cuts = [range(first, first + 3) for first in range(1, len(_lines()), 3)]
    return lines, ((0, 0), *((row, column) for cut in cuts for row in cut for column in cut))


def _averages(first: float, last: float) -> _Array:
    """Return the weights by which cells between two shares of a side are averaged into 16 wider ones."""
    borders = np.linspace(first, last, _CELLS + 1)[:, None] * SIDE
    cells = np.arange(SIDE)
    weights = np.clip(np.minimum(borders[1:], cells + 1) - np.maximum(borders[:-1], cells), 0.0, None)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)
