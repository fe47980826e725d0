"""Exact search: the rows whose directions are nearest to those of some queries, of rows that come block by block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Nearest", "Places", "Rows", "directions"]

Rows: TypeAlias = npt.NDArray[np.float32]
Places: TypeAlias = npt.NDArray[np.int64]

AT_ONCE = 64
"""Queries whose cosines with a block are in memory at once."""


def directions(rows: Rows) -> Rows:
    """Return rows ``(N, D)`` of length 1; a row of zeros stays one."""
    # In two steps: the square of a number above 1.8e19 is no float32, and that of one below 1e-23 is 0.
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0.0)
    scaled = rows / np.where(largest > 0, largest, 1)
    lengths = np.linalg.norm(scaled, axis=1, keepdims=True)
    made: Rows = (scaled / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return made


class Nearest:
    """The k rows of the largest cosine with each query, the largest first; of equal ones the first row.

    Nothing is approximated: every row is compared with every query. Blocks of rows may be of any size, in ascending
    order of their places.

    Args:
        queries: ``(Q, D) float32``, of length 1.
        k: How many, at least 1; where fewer rows come, there are fewer.
        left_out: Places that do not count, by query.
    """

    def __init__(self, queries: Rows, k: int, left_out: Sequence[Sequence[int]] | None = None) -> None:
        self.queries = queries
        self.k = k
        self._left_out = [np.array([], np.int64)] * len(queries)
        if left_out is not None:
            self._left_out = [np.asarray(places, dtype=np.int64) for places in left_out]
        self._places = [np.empty(0, np.int64) for _ in queries]
        self._cosines = [np.empty(0, np.float32) for _ in queries]

    def see(self, places: Places, rows: Rows) -> None:
        """Take in a block.

        Args:
            places: ``(n,) int64``, ascending, all behind those of the block before.
            rows: ``(n, D) float32``, of length 1.
        """
        for start in range(0, len(self.queries), AT_ONCE):
            cosines = np.clip(self.queries[start : start + AT_ONCE] @ rows.T, -1.0, 1.0)  # roundings reach beyond 1
            for query, row in enumerate(cosines, start):
                self._merge(query, places, row)

    def _merge(self, query: int, places: Places, cosines: Rows) -> None:
        known = self._cosines[query]
        better = cosines > known[-1] if len(known) == self.k else np.ones(len(cosines), dtype=bool)
        if len(self._left_out[query]):
            better &= ~np.isin(places, self._left_out[query])
        chosen = np.flatnonzero(better)
        if len(chosen) > self.k:  # all that tie for the last place are looked at
            least = np.partition(cosines[chosen], -self.k)[-self.k]
            chosen = chosen[cosines[chosen] >= least]
        if len(chosen):
            all_cosines = np.concatenate([known, cosines[chosen]])
            all_places = np.concatenate([self._places[query], places[chosen]])
            order = np.lexsort((all_places, -all_cosines))[: self.k]
            self._cosines[query], self._places[query] = all_cosines[order], all_places[order]

    def of(self, query: int) -> tuple[Places, Rows]:
        """Return the places ``(k,)`` of the rows nearest to a query, and their cosines, in [-1, 1]."""
        return self._places[query], self._cosines[query]
