"""The records of an audit: what was looked at, and what is wrong or worth knowing, by kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from transferkit.core.records import Finding, SkippedFile
from transferkit.core.text import valid_text
from transferkit.data.images.reading import ReadResult
from transferkit.data.index.index import ImageIndex
from transferkit.data.scan.records import Kind, Scan, ScannedFile

__all__ = ["OBJECTS", "PICTURES", "Audit", "Issue", "Pictures", "Row", "issue_of"]

PICTURES, OBJECTS = "pictures", "objects"
"""What may be counted by class."""

TITLES: Final[dict[str, str]] = {
    Kind.LAYOUT: "Layout",
    Kind.NO_TRAIN: "Layout",
    Kind.CLASS_NAMES: "Names of classes",
    Kind.ONE_CLASS: "A single class",
    Kind.EMPTY: "Classes without pictures",
    Kind.UNTRAINED: "Classes without training pictures",
    Kind.UNREADABLE: "Unreadable pictures",
    Kind.MASK: "Masks",
    Kind.BOX: "Boxes",
    Kind.LEAK: "Leaks",
    Kind.THIN: "Classes missing in a split",
    Kind.IMBALANCE: "Imbalance",
    Kind.WRONG_NAME: "Wrongly named files",
    Kind.MODE: "Colour modes",
    Kind.DEPTH: "Bit depths",
    Kind.SIZE: "Odd sizes",
    Kind.ONE_COLOUR: "Pictures of one colour",
    Kind.COPY: "Copies",
    Kind.NEAR_COPY: "Near copies",
    Kind.WRONG_LABEL: "Likely wrong labels",
    Kind.OUTLIER: "Pictures unlike all others",
    Kind.GROUP: "Groups over splits",
    Kind.MIRROR: "Mirrored classes",
    Kind.NOTE: "Notes",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that is wrong or worth knowing.

    Attributes:
        pictures: The files that it is about; several are copies of each other. None where it is about classes.
        text: About it, in a few words.
        facts: The same for a program, as JSON values.
    """

    pictures: tuple[str, ...] = ()
    text: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Issue:
    """All of one kind.

    Attributes:
        kind: What it is.
        message: A sentence for people, with what to do.
        rows: Each case of it, the worst first.
        title: Its heading.
        refused: Whether `finetune` would refuse the data set for it, with the options given.
    """

    kind: Kind
    message: str
    rows: tuple[Row, ...] = ()
    title: str = ""
    refused: bool = False

    @property
    def heading(self) -> str:
        """The title, or the usual one of its kind."""
        return self.title or TITLES[self.kind]


def issue_of(finding: Finding, *, refused: bool = False) -> Issue:
    """Return a finding of the index as an issue; its families of pictures are its rows, else its items."""
    rows = [Row(family) for family in finding.families] or [Row(text=item) for item in finding.items]
    return Issue(Kind(finding.kind), finding.message, tuple(rows), refused=refused)


@dataclass(frozen=True)
class Pictures:
    """A data set that was scanned and read.

    Attributes:
        scan: Its files and classes.
        reads: What reading each of `scan.files` gave, in the same order.
        index: It as `finetune` would see it with all faults allowed; ``None`` where it cannot be trained on at all.
        problems: What `finetune` would refuse it for, with the options given.
        whole: Whether answers are of pictures as wholes, so that near copies have them in common.
    """

    scan: Scan
    reads: Sequence[ReadResult]
    index: ImageIndex | None
    problems: tuple[Finding, ...]
    whole: bool = True

    @property
    def files(self) -> dict[str, ScannedFile]:
        """Path, label, split and group of the files that may be pictures, by path; the split as far as it is known."""
        files = {file.path: file for file in self.scan.files}
        for record in self.index.records if self.index is not None else ():
            files[record.path] = ScannedFile(record.path, record.label, record.split, record.group)
        return files

    @property
    def answers(self) -> dict[str, ScannedFile]:
        """The `files` with what their labels say, where that is known: of a mask its content."""
        files = self.files
        for record in self.index.records if self.index is not None else ():
            identity = self.index.targets.identity(record.label) if self.index is not None else record.label
            files[record.path] = replace(files[record.path], label=identity)
        return files

    @property
    def near_answers(self) -> dict[str, ScannedFile]:
        """The `files` with labels that near copies have in common: of masks and objects none, whose places differ."""
        if self.whole:
            return self.files
        return {path: replace(file, label="") for path, file in self.files.items()}


@dataclass(frozen=True)
class Audit:
    """What an audit has found.

    Attributes:
        data: The data set, as the user wrote it.
        files: Path, label and split of its pictures, by path.
        sizes: Pictures by split.
        classes: Names of the classes, or of what else the answers are.
        counts: Pictures by split and class; of objects those.
        issues: What was found, in the order of the page.
        skipped: Files that are no part of the data set, and why.
        left_out: Parts of the audit that could not be done, a sentence each.
        features: What the network's part was done with; ``None`` where it was left out.
        probe: Held-out accuracy and confusions of the probe; ``None`` likewise.
        seconds: What it took.
        unit: What is counted by class.
    """

    data: str
    files: Mapping[str, ScannedFile]
    sizes: Mapping[str, int]
    classes: Sequence[str]
    counts: Mapping[str, Mapping[str, int]]
    issues: tuple[Issue, ...]
    skipped: tuple[SkippedFile, ...] = ()
    left_out: tuple[str, ...] = ()
    features: Mapping[str, Any] | None = None
    probe: Mapping[str, Any] | None = None
    seconds: float = 0.0
    unit: str = PICTURES

    def to_json(self) -> dict[str, Any]:
        """Return all of it as values for JSON: every case, by kind."""
        return {
            "data": valid_text(self.data),
            "pictures": sum(self.sizes.values()),
            "splits": dict(self.sizes),
            "classes": list(self.classes),
            "counts": self.counts,
            "findings": [
                {
                    "kind": str(issue.kind), "title": issue.heading, "message": valid_text(issue.message),
                    "refused": issue.refused, "count": len(issue.rows),
                    "cases": [self._case(row) for row in issue.rows],
                }
                for issue in self.issues
            ],
            "skipped": [{"path": valid_text(file.path), "reason": file.reason} for file in self.skipped],
            "left_out": list(self.left_out),
            "features": self.features,
            "probe": self.probe,
            "time_s": round(self.seconds, 3),
        }  # fmt: skip

    def _case(self, row: Row) -> dict[str, Any]:
        pictures = [
            {"path": valid_text(path), "label": valid_text(file.label), "split": file.split}
            for path in row.pictures
            if (file := self.files.get(path)) is not None
        ]
        return {**({"pictures": pictures} if pictures else {}), **({"text": row.text} if row.text else {}), **row.facts}
