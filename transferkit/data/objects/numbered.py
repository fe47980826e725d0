"""Objects as numbers in masks: ``images/`` beside ``masks/`` of the same stems, a number or a colour per object.

0, and black, is the background. All objects are of one class, and their outlines are the pixels of their numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from transferkit.core.records import Finding
from transferkit.core.text import listing
from transferkit.data.images.reading import in_order
from transferkit.data.masks.values import UnusableMask, mask_bytes, stored_values
from transferkit.data.objects.stated import Outline, StatedObject, StatedPicture, StatedSet
from transferkit.data.scan.pairs import scan_pairs
from transferkit.data.scan.records import Kind
from transferkit.machine.cores import available_cores

__all__ = ["NUMBERED", "OBJECT", "read_numbered"]

NUMBERED: Final = "instances"
"""What ``--mask-values`` calls it."""
OBJECT: Final = "object"
"""The class."""


def read_numbered(root: Path, *, lenient: bool) -> StatedSet:
    """Return the objects of a folder of pictures and numbered masks.

    Args:
        root: The folder.
        lenient: Leave out what cannot be used instead of refusing it.

    Raises:
        DataError: The folder cannot be read or holds no such folders.
    """
    scan = scan_pairs(str(root), lenient=lenient)
    stated = StatedSet("numbered masks", (OBJECT,), line="every number but 0 is an object")
    report = stated.report
    report.problems += scan.problems
    report.notes += scan.notes
    report.skipped += scan.skipped
    bad, without = [], []
    read = in_order(lambda file: _objects(file.label), scan.files, available_cores())
    for file, (size, objects, reason) in zip(scan.files, read, strict=True):
        if reason is None:
            stated.pictures.append(StatedPicture(file.path, file.label, file.split, size, objects))
            continue
        bad.append(f"{file.label!r} ({reason})")
        without.append(file.path)
        if lenient:
            report.skip(file.path, f"its mask cannot be used: {reason}")
    if bad:
        message, families = f"masks cannot be used: {listing(bad, limit=5, quote=False)}", tuple((p,) for p in without)
        if lenient:
            message = f"{len(bad)} pictures are left out whose {message}"
            report.notes.append(Finding(Kind.MASK, message, tuple(bad), families))
        else:
            message = f"{len(bad)} {message} - correct them, or pass --skip-bad to leave their pictures out"
            report.problems.append(Finding(Kind.MASK, message, tuple(bad), families))
    return stated


def _objects(path: str) -> tuple[tuple[int, int], tuple[StatedObject, ...], str | None]:
    """Return size and objects of a mask, and why it cannot be used."""
    try:
        values, _, _ = stored_values(mask_bytes(path), path, coloured=False)
    except UnusableMask as error:
        return (0, 0), (), error.reason
    height, width = values.shape
    numbers, dense = np.unique(values, return_inverse=True)
    dense = dense.reshape(values.shape) + (1 if numbers[0] else 0)  # from 1 on, and 0 the background
    known = numbers[numbers > 0]
    objects = []
    for at, place in enumerate(ndimage.find_objects(dense.astype(np.int32)), 1):
        rows, columns = place
        box = (float(columns.start), float(rows.start), float(columns.stop), float(rows.stop))
        outline = _runs(dense[place] == at, (rows.start, columns.start), (height, width))
        objects.append(StatedObject(OBJECT, box, f"number {known[at - 1]}", outline=outline))
    return (height, width), tuple(objects), None


def _runs(part: npt.NDArray[np.bool_], corner: tuple[int, int], size: tuple[int, int]) -> Outline:
    """Return run lengths of a mask ``size`` of which a part, from a corner (row, column) on, holds all."""
    columns, rows = np.nonzero(part.T)
    places = (columns + corner[1]) * size[0] + rows + corner[0]
    breaks = np.flatnonzero(np.diff(places) != 1)
    ends = np.stack([places[np.r_[0, breaks + 1]], places[np.r_[breaks, -1]] + 1], axis=1).ravel()
    counts: Any = np.diff(np.r_[0, ends, size[0] * size[1]]).tolist()
    return {"size": list(size), "counts": counts}
