"""The result of a scan: the files of a data set by class and split, before anything is opened, and findings by kind."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from transferkit.core.records import Finding, SkippedFile

__all__ = ["SPLITS", "SPLIT_NAMES", "Kind", "Scan", "ScannedFile", "split_named"]

SPLITS: Final = ("train", "val", "test")

SPLIT_NAMES: Final = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""The words for a split that need no saying, in lower case; case is ignored."""

_OTHER_NAMES: Final = {**SPLIT_NAMES, "training": "train", "dev": "val", "testing": "test"}

_FILLERS: Final = re.compile(
    r"(?:[\W_]|(?<!\d)\d{4}(?!\d)|(?<![a-z])(?:seg|set|data|dataset|images|imgs|split)(?![a-z])|set$)+"
)


def split_named(name: str) -> str | None:
    """Return the split that a folder or a cell names: ``"Training"``, ``seg_train`` and ``test-set``, too."""
    return _OTHER_NAMES.get(_FILLERS.sub("", name.lower().replace("_", " ")))


class Kind(StrEnum):
    """The kinds of findings about a data set."""

    LAYOUT = "layout"  # folders, files, rows or columns that are not where or what they should be
    NO_TRAIN = "no-train"  # splits, and none to train on
    CLASS_NAMES = "class-names"  # names that cannot be used, or are too alike
    ONE_CLASS = "one-class"
    EMPTY = "empty"  # classes, or a data set, without pictures
    UNTRAINED = "untrained"  # classes that other splits have and train has not
    UNREADABLE = "unreadable"  # pictures that cannot be read or decoded
    MASK = "mask"  # pictures without masks, masks without pictures, masks that cannot be used
    BOX = "box"  # boxes that cannot be used, annotations without pictures, pictures that do not fit theirs
    LEAK = "leak"  # equal pictures, or pictures of a group, in several splits or classes
    THIN = "thin"  # classes that cannot be validated
    IMBALANCE = "imbalance"
    WRONG_NAME = "wrong-name"  # files whose endings are not those of their content
    MODE = "mode"  # grey, CMYK, transparent or animated pictures
    DEPTH = "bit-depth"  # pictures of more than 8 bits
    SIZE = "size"  # pictures far smaller, larger or longer than the others
    ONE_COLOUR = "one-colour"
    COPY = "copy"  # equal pictures of one label in one split
    NEAR_COPY = "near-copy"  # the same picture at another size or quality, or cut
    WRONG_LABEL = "wrong-label"  # labels that a probe doubts
    OUTLIER = "outlier"  # pictures unlike all others
    GROUP = "group"  # pictures that may belong together, over several splits
    MIRROR = "mirror"  # classes whose mirror images are taken for another one
    NOTE = "note"  # a fact that needs nothing done


@dataclass(frozen=True, slots=True)
class ScannedFile:
    """A file that is taken for a picture.

    Attributes:
        path: The path of the data set joined with that of the file inside it; not resolved.
        label: The answer, as one text: a class name; of several labels or numbers, joined by ``|``.
        split: One of `SPLITS`, or ``None`` when the data set does not say.
        group: Pictures of one group must share a split; ``None`` for a picture on its own.
    """

    path: str
    label: str
    split: str | None = None
    group: str | None = None

    @property
    def trains(self) -> bool:
        """Whether it may be trained on: nothing says that it is of another split."""
        return self.split in {None, "train"}


@dataclass(frozen=True, slots=True)
class Scan:
    """The content of a data set.

    Attributes:
        class_names: In index order; from the training split where there are splits. A class may have no file.
        files: Sorted by path.
        skipped: Files that are no candidates, with reasons, sorted by path. Hidden and system files are not listed.
        notes: Facts worth telling.
        problems: What is wrong; the data set must not be used for training unless this is empty.
        answers: The columns of a manifest that hold the answers; nothing for folders.
    """

    class_names: tuple[str, ...]
    files: tuple[ScannedFile, ...]
    skipped: tuple[SkippedFile, ...] = ()
    notes: tuple[Finding, ...] = ()
    problems: tuple[Finding, ...] = ()
    answers: tuple[str, ...] = ()
