"""What a scan of a data set finds, before anything is opened, and the rules for the names of classes and splits."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from transferkit.core.records import SkippedFile
from transferkit.core.text import listing

__all__ = ["SPLITS", "SPLIT_NAMES", "FoundFile", "Scan", "class_name_problems", "order_classes"]

SPLITS: Final = ("train", "val", "test")

SPLIT_NAMES: Final = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Every accepted spelling of a split, in lower case; case is ignored."""


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file that is taken for a picture.

    Attributes:
        path: The path of the data set joined with that of the file inside it; not resolved.
        label: Class name.
        split: One of `SPLITS`, or ``None`` when the data set does not say.
        group: Pictures of one group must share a split; ``None`` for a picture on its own.
    """

    path: str
    label: str
    split: str | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Scan:
    """What lies in a data set.

    Attributes:
        class_names: In index order; from the training split where there are splits. A class may have no file.
        files: Sorted by path.
        skipped: Files that are no candidates, with reasons, sorted by path. Hidden and system files are not listed.
        notes: Facts worth telling.
        problems: What is wrong, a sentence each; the data set must not be used unless this is empty.
    """

    class_names: tuple[str, ...]
    files: tuple[FoundFile, ...]
    skipped: tuple[SkippedFile, ...] = ()
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def order_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct names in index order: plain text order of their NFC forms, so ``1, 10, 2`` and ``B, a``.

    The order does not depend on the language settings of the machine or on how a disk stores accents.
    """
    return tuple(sorted(set(names), key=lambda name: (unicodedata.normalize("NFC", name), name)))


def class_name_problems(names: Iterable[str]) -> list[str]:
    """Return what is wrong with class names, a sentence per kind; empty when all is well.

    A class name becomes part of file names and reports, so it must not be empty, ``.`` or ``..``, nor hold path
    separators, control characters or bytes that are no UTF-8. Names that differ only in case, in the form of their
    accents or in spaces at their ends are one folder on some disks and are refused.
    """
    problems, same = [], defaultdict(set)
    bad = [name for name in set(names) if not _usable(name)]
    if bad:
        problems.append(
            f"class names that cannot be used: {listing(sorted(bad))} - expected a non-empty name without path"
            " separators, control characters or undecodable bytes; rename them"
        )
    for name in names:
        same[unicodedata.normalize("NFC", name).lower().strip()].add(name)
    clashes = [
        " and ".join(ascii(name) for name in sorted(group)) for _, group in sorted(same.items()) if len(group) > 1
    ]
    if clashes:
        problems.append(
            "class names that differ only in case, accent form or spaces at their ends: "
            f"{listing(clashes, quote=False)} - merge or rename them"
        )
    return problems


def _usable(name: str) -> bool:
    if not name.strip() or name in {".", ".."} or "/" in name or "\\" in name:
        return False
    return not any(unicodedata.category(character) in {"Cc", "Cs"} for character in name)
