"""What is wrong with single files: unreadable, wrongly named, of odd modes, bit depths or sizes, of one colour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from transferkit.core.records import USUAL, Decoding, SkippedFile
from transferkit.data.images.reading import ReadResult
from transferkit.data.index.checks import special_pictures
from transferkit.data.scan.formats import EXTENSIONS, sniff_format
from transferkit.data.scan.records import Kind
from transferkit.results.audit.record import Issue, Pictures, Row, issue_of

__all__ = ["file_issues"]

AREA: Final = 8.0
"""So many times as large or small as the median picture is odd, unless sizes vary more anyway."""

SHAPE: Final = 2.5
"""The same of the width for the height."""

SPREAD: Final = 5.0
"""Median absolute deviations that are no reason to speak of odd sizes."""

ENOUGH: Final = 20
"""Pictures from which it makes sense to say what size is usual."""

_MARKS: Final = 16
"""Bytes that a format is known by."""


def file_issues(pictures: Pictures, decoding: Decoding = USUAL, *, refused: bool) -> list[Issue]:
    """Return what is wrong with single files.

    Args:
        pictures: The data set.
        decoding: How it was decoded.
        refused: Whether unreadable files are refused.
    """
    issues = []
    bad = [Row((result.path,), result.error, {"reason": result.error}) for result in pictures.reads if result.error]
    if bad:
        message = (
            f"{len(bad)} unreadable pictures, such as {bad[0].pictures[0]!r} ({bad[0].text}) - replace or remove them, "
            "or pass --skip-bad to leave them out"
        )
        issues.append(Issue(Kind.UNREADABLE, message, tuple(bad), refused=refused))
    hidden = [Row((), f"{file.path}: {kind}", {"path": file.path, "format": kind})
              for file in pictures.scan.skipped if (kind := _format_of(file)) is not None]  # fmt: skip
    if hidden:
        message = (
            f"{len(hidden)} files are pictures by their content and not by their names, and are not read, such as "
            f"{hidden[0].facts['path']!r} ({hidden[0].facts['format']}) - rename them"
        )
        issues.append(Issue(Kind.WRONG_NAME, message, tuple(hidden), title="Pictures that are not called so"))
    issues += [issue_of(finding) for finding in special_pictures(pictures.reads, decoding)]
    odd = _odd_sizes(pictures.reads)
    return issues + ([odd] if odd is not None else [])


def _format_of(file: SkippedFile) -> str | None:
    """Return the picture format that a file which was passed over has by its content."""
    path = Path(file.path)
    if path.suffix.lower() in EXTENSIONS:
        return None  # called so, and left out for another reason
    try:
        if not path.is_file():
            return None
        with path.open("rb") as stream:
            return sniff_format(stream.read(_MARKS))
    except OSError:
        return None


def _odd_sizes(reads: Sequence[ReadResult]) -> Issue | None:
    """Return the pictures far smaller, larger or longer than the others."""
    good = [(read.path, read.info) for read in reads if read.info is not None]
    if len(good) < ENOUGH:
        return None
    sides = np.array([(info.width, info.height) for _, info in good], dtype=np.float64)
    area, shape = np.log(sides.prod(axis=1)), np.log(sides[:, 0] / sides[:, 1])
    odd = _far(area, math.log(AREA)) | _far(shape, math.log(SHAPE))
    if not odd.any():
        return None
    width, height = np.median(sides, axis=0).astype(int).tolist()
    order = np.flatnonzero(odd)[np.argsort(-np.abs(area - np.median(area))[odd], kind="stable")]
    rows = []
    for at in order.tolist():
        path, info = good[at]
        rows.append(Row((path,), f"{info.width} x {info.height}", {"width": info.width, "height": info.height}))
    message = (
        f"{len(rows)} of {len(good)} pictures: far smaller, larger or longer than the others (usual are "
        f"{width} x {height} pixels), such as {rows[0].pictures[0]!r} ({rows[0].text}) - look at them"
    )
    return Issue(Kind.SIZE, message, tuple(rows))


def _far(values: np.ndarray, least: float) -> np.ndarray:
    off = np.abs(values - np.median(values))
    return np.asarray(off > max(least, SPREAD * 1.4826 * float(np.median(off))))
