"""Outlines of objects, polygons or run lengths, to pixels: a pixel belongs to an object that holds its centre.

pycocotools draws polygons on a grid five times as fine; edges may differ by a pixel. Run lengths are COCO's: column by
column, the first run is outside; as numbers, or packed in a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.data.objects.stated import Outline

__all__ = ["area_box", "drawn", "numbered", "packed_runs", "runs_problem"]

Bits = npt.NDArray[np.bool_]


def drawn(outline: Outline, size: tuple[int, int]) -> Bits:
    """Return the pixels ``(H, W)`` of an outline."""
    if isinstance(outline, dict):
        return _from_runs(outline["counts"], size)
    bits = np.zeros(size, dtype=np.bool_)
    for polygon in outline:
        bits |= _polygon(np.asarray(polygon, dtype=np.float64).reshape(-1, 2), size)
    return bits


def numbered(outlines: Sequence[Outline], size: tuple[int, int]) -> npt.NDArray[np.uint16]:
    """Return ``(H, W) uint16``: object k has the value k + 1; where they overlap the later one is on top."""
    numbers = np.zeros(size, dtype=np.uint16)
    for place, outline in enumerate(outlines, 1):
        numbers[drawn(outline, size)] = place
    return numbers


def area_box(bits: Bits) -> tuple[float, float, float, float] | None:
    """Return the box around pixels; ``None`` where there are none."""
    rows, columns = np.flatnonzero(bits.any(axis=1)), np.flatnonzero(bits.any(axis=0))
    if not len(rows):
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def runs_problem(outline: Outline, size: tuple[int, int]) -> str:
    """Return why run lengths cannot be used; nothing where they can, or where there are polygons."""
    if not isinstance(outline, dict):
        return ""
    stated = outline["size"]
    if not isinstance(stated, list) or stated != list(size):
        return f"its run lengths are of {stated}, its picture of {list(size)}"
    try:
        runs = _counts(outline["counts"])
    except (ValueError, TypeError, OverflowError, IndexError):
        return "its run lengths cannot be read"
    if any(run < 0 for run in runs) or sum(runs) != size[0] * size[1]:
        return f"its run lengths are of {sum(runs)} pixels, its picture of {size[0] * size[1]}"
    return ""


def packed_runs(bits: Bits) -> Outline:
    """Return run lengths, as numbers."""
    flat = bits.ravel(order="F").astype(np.int8)
    changes = np.flatnonzero(np.diff(flat, prepend=0)) if len(flat) else np.zeros(0, dtype=np.int64)
    return {"size": list(bits.shape), "counts": np.diff([0, *changes, len(flat)]).tolist()}


def _polygon(points: npt.NDArray[np.float64], size: tuple[int, int]) -> Bits:
    """Return the pixels whose centres lie inside, by the even-odd rule: each edge flips all that is right of it."""
    height, width = size
    flips = np.zeros((height, width + 1), dtype=np.int32)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if y0 > y1:
            x0, y0, x1, y1 = x1, y1, x0, y0
        first, last = max(0, int(np.ceil(y0 - 0.5))), min(height, int(np.ceil(y1 - 0.5)))
        if first < last:
            rows = np.arange(first, last)
            crossings = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            np.add.at(flips, (rows, np.clip(np.ceil(crossings - 0.5), 0, width).astype(np.int64)), 1)
    inside: Bits = np.cumsum(flips[:, :width], axis=1) % 2 == 1
    return inside


def _from_runs(counts: Any, size: tuple[int, int]) -> Bits:
    runs = np.asarray(_counts(counts), dtype=np.int64)
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(size, order="F")


def _counts(counts: Any) -> list[int]:
    """Return runs as numbers: packed ones have five bits a letter, from the third on as steps from the last but one."""
    if not isinstance(counts, str):
        return [int(run) for run in counts]
    runs: list[int] = []
    at = 0
    while at < len(counts):
        value, shift, more = 0, 0, True
        while more:
            letter = ord(counts[at]) - 48
            value |= (letter & 0x1F) << shift
            more = bool(letter & 0x20)
            at, shift = at + 1, shift + 5
            if not more and letter & 0x10:
                value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
    return runs
