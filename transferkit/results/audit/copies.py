"""Copies of pictures: the same pixels, or nearly the same, within and across splits and labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from transferkit.data.images.reading import ReadResult
from transferkit.data.index.near import near_copies
from transferkit.data.scan.records import Kind, ScannedFile
from transferkit.machine.cores import available_cores
from transferkit.results.audit.record import Issue, Pictures, Row

__all__ = ["Families", "copy_issues", "families_of"]

Families = Sequence[tuple[str, ...]]
"""Paths of pictures that are copies of each other."""


def families_of(
    pictures: Pictures,
    features: Mapping[str, npt.NDArray[np.float32]],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Families, Families]:
    """Return the families of equal pictures, and of near copies, which hold all equal ones of their members.

    Args:
        pictures: The data set.
        features: Of pictures by path, where there are any: near copies whose features differ are none.
        progress: Called with pictures compared and pictures in all.
    """
    content = {record.path: record.content for record in pictures.index.records} if pictures.index is not None else {}
    equal: dict[str, list[str]] = defaultdict(list)
    first: dict[str, ReadResult] = {}
    for read in pictures.reads:
        if read.error is None:
            key = content.get(read.path, str(read.sha256))
            equal[key].append(read.path)
            if read.sketch is not None:
                first.setdefault(key, read)
    if features:  # all or none: one that cannot be read again has no features
        first = {key: read for key, read in first.items() if read.path in features}
    rows = _standardised(np.array([features[read.path] for read in first.values()])) if features and first else None
    keys = list(first)
    sketches = [read.sketch for read in first.values() if read.sketch is not None]
    near = [
        tuple(path for at in family for path in equal[keys[at]])
        for family in near_copies(sketches, rows, workers=available_cores(), progress=progress)
    ]
    return [tuple(paths) for paths in equal.values() if len(paths) > 1], near


def _standardised(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return features whose columns have mean 0 and deviation 1: raw ones all point much the same way."""
    scale = rows.std(axis=0)
    return np.asarray((rows - rows.mean(axis=0)) / np.where(scale > 0, scale, 1))


def copy_issues(
    equal: Families, near: Families, files: Mapping[str, ScannedFile], *, fixable: bool = True
) -> list[Issue]:
    """Return the copies that the index lets pass: equal ones of one label in one split, and near ones.

    Args:
        equal: Families of equal pictures.
        near: Families of near copies.
        files: Label and split of each picture.
        fixable: Whether `--fix` can write a manifest of them.
    """

    def labels_of(family: Sequence[str]) -> int:
        return len({files[path].label for path in family})

    def splits_of(family: Sequence[str]) -> int:
        return len({files[path].split for path in family})

    issues = []
    inside = [family for family in equal if labels_of(family) == splits_of(family) == 1]
    if inside:
        extra = sum(map(len, inside)) - len(inside)
        message = (
            f"pictures that are there more than once: {len(inside)}, which is {extra} files too many, such as "
            f"{_example(inside)} - keep one of each, or they count more than the others"
        )
        issues.append(Issue(Kind.COPY, message, tuple(map(Row, inside))))
    labels = [family for family in near if labels_of(family) > 1]
    splits = [family for family in near if labels_of(family) == 1 and splits_of(family) > 1]
    others = [family for family in near if labels_of(family) == splits_of(family) == 1]
    remedy = " (--fix does)" if fixable else " (--group-near does, where the data set has no splits of its own)"
    for families, title, what in (
        (labels, "Near copies with different labels",
         "at least one label of each is wrong, or the classes cannot be told apart"),
        (splits, "Near copies in different splits",
         f"a model is tested on what it was trained on: keep them in one split{remedy}, or remove those in train"),
        (others, "Near copies", "there are fewer different pictures than it seems"),
    ):  # fmt: skip
        if families:
            count = f"{title.lower()} (other sizes, qualities, cuts): {len(families)}"
            message = f"{count}, such as {_example(families)} - {what}"
            issues.append(Issue(Kind.NEAR_COPY, message, tuple(map(Row, families)), title=title))
    return issues


def _example(families: Families) -> str:
    return " = ".join(map(repr, families[0][:3]))
