"""Windows of pictures as the rows of a data set: each stands for its picture, and has its answers on pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import overload

import numpy as np

from transferkit.core.records import DataConfig
from transferkit.data.batches.dataset import Picture
from transferkit.data.images.windows import window_count
from transferkit.data.masks.annotation import Annotation, Annotations

__all__ = ["Rows", "WindowAnnotations", "WindowPictures"]


class Rows:
    """Which windows of N pictures the rows of a data set are: all of the first picture, then all of the second.

    Args:
        sizes: Height and width of each picture, upright.
        config: How large windows are.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], config: DataConfig) -> None:
        self.counts = np.array([window_count(size, config) for size in sizes], dtype=np.int64)
        self._ends = self.counts.cumsum()

    def __len__(self) -> int:
        """Return the windows of all pictures."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def place(self, row: int) -> tuple[int, int]:
        """Return the position of the picture, and the number of the window of it."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        picture = int(np.searchsorted(self._ends, row, side="right"))
        return picture, row - int(self._ends[picture] - self.counts[picture])


class WindowPictures(Sequence[Picture]):
    """A picture for every window.

    Args:
        pictures: N pictures.
        rows: Their windows.
    """

    def __init__(self, pictures: Sequence[Picture], rows: Rows) -> None:
        self.pictures, self.rows = pictures, rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, at: int) -> Picture: ...
    @overload
    def __getitem__(self, at: slice) -> list[Picture]: ...

    def __getitem__(self, at: int | slice) -> Picture | list[Picture]:
        if isinstance(at, slice):
            return [self[row] for row in range(*at.indices(len(self)))]
        picture, part = self.rows.place(at)
        return replace(self.pictures[picture], part=part)


class WindowAnnotations:
    """The answers on pixels of whole pictures, a row for every window; see `Annotations`.

    Args:
        annotations: Of N pictures.
        rows: Their windows.
    """

    def __init__(self, annotations: Annotations, rows: Rows) -> None:
        self.annotations, self.rows = annotations, rows

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.rows)

    def read(self, row: int) -> Annotation:
        """Return the answers of a window's picture, all of them. Raises `DataError`."""
        return self.annotations.read(self.rows.place(row)[0])
