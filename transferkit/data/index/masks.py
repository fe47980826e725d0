"""Masks as answers: read once for a whole set, understood together, checked, and what they mean to a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Final, Self

import numpy as np
import numpy.typing as npt

from transferkit.core.records import DataConfig, Finding, ImageRecord
from transferkit.core.targets import IGNORED, TargetSpec
from transferkit.core.text import listing
from transferkit.data.images.decode import UnreadableImage, header_size
from transferkit.data.images.readers import quiet_pillow
from transferkit.data.images.reading import ReadResult, in_order
from transferkit.data.index.meaning import Meaning, known_coding, legend_of, odd_values, understood
from transferkit.data.index.targets import MASK, PicturesRead, Targets, rarest_class, refuse_columns, task_reason
from transferkit.data.masks.annotation import Annotations
from transferkit.data.masks.coding import (
    BINARY,
    Coding,
    MaskAnnotations,
    MaskFacts,
    class_digest,
    identity_of,
    look_at_mask,
    read_mask,
)
from transferkit.data.masks.values import UnusableMask
from transferkit.data.scan.columns import Columns, file_column
from transferkit.data.scan.palette import Palette, read_palette
from transferkit.data.scan.records import Kind, Scan, ScannedFile
from transferkit.machine.cores import available_cores
from transferkit.options.data import DataOptions

__all__ = ["MaskReader", "MaskTargets"]

FEW: Final = 5
"""Training pictures of a class below which little can be learnt of it."""

SCARCE: Final = 0.001
"""Share of the training pixels below which the same holds."""


@dataclass(frozen=True)
class MaskReader:
    """Answers are masks: files as large as their pictures, with a class for each pixel.

    Attributes:
        seen: What is known of each mask, by file; empty before `look`.
        unusable: Pictures, by path, whose masks cannot be used, and why.
        meaning: What the masks mean, all together.
        palette: The file that names the classes, where there is one.
    """

    seen: Mapping[str, MaskFacts] = field(default_factory=dict, repr=False)
    unusable: Mapping[str, str] = field(default_factory=dict)
    meaning: Meaning | None = None
    palette: Palette | None = None
    tiles: ClassVar[bool] = True

    def columns_of(self, options: DataOptions) -> Columns:
        """Return the column ``mask``, or what the options name."""
        refuse_columns(options, "classes of pixels", targets=False, lists=False, masks=(BINARY,))
        columns = file_column(options.label_column or MASK, lenient=options.skip_bad)
        return replace(columns, path=options.path_column, root=options.root)

    def look(self, pictures: PicturesRead) -> MaskReader:
        """Return the reader that has read all masks, on all threads, and knows what they mean."""
        files, options = pictures.files, pictures.options
        if self.meaning is not None and all(file.label in self.seen or file.path in self.unusable for file in files):
            return self
        palette = read_palette(options.data, options.palette)
        coding = known_coding(palette, binary=options.mask_values == BINARY)
        readable = [pair for pair in zip(files, pictures.results, strict=True) if pair[1].error is None]
        seen: dict[str, MaskFacts] = {}
        unusable: dict[str, str] = {}
        left = pictures.keep_bytes
        with quiet_pillow():
            looks = in_order(lambda pair: _look(*pair, coding), readable, available_cores())
            for done, ((file, _), look) in enumerate(zip(readable, looks, strict=True), 1):
                if isinstance(look, str):
                    unusable[file.path] = look
                elif look.ranks is not None and look.ranks.nbytes <= left:
                    left -= look.ranks.nbytes
                    seen[file.label] = look
                else:
                    seen[file.label] = look.without_ranks()
                if pictures.progress is not None:
                    pictures.progress(done, len(readable))
        used = [(file.split, seen[file.label]) for file in files if file.label in seen and file.path not in unusable]
        meaning = understood(used, palette, coding)
        for file in files:
            facts = seen.get(file.label)
            if facts is not None and file.path not in unusable and (odd := odd_values(facts, meaning)):
                unusable[file.path] = f"mask {facts.path!r}: {odd}"
        return MaskReader(seen, unusable, meaning, palette)

    def of(self, spec: TargetSpec) -> MaskTargets:
        """Return the classes of a model."""
        return MaskTargets(spec)

    def learn(self, scan: Scan) -> MaskTargets:
        """Return the classes of a data set whose masks were looked at."""
        if self.meaning is None:
            raise TypeError("masks have to be looked at before they mean anything")
        names, coding = self.meaning.names, self.meaning.coding
        legend = legend_of(names, coding, [self.seen[file.label] for file in scan.files if file.label in self.seen])
        facts = {"palette": [list(colour) for colour in legend], **coding.facts()}
        return MaskTargets(TargetSpec(names, facts), self.seen)

    def problems(self, scan: Scan, files: Sequence[ScannedFile], options: DataOptions) -> list[Finding]:
        """Return what is wrong with the masks: all that cannot be used, and classes that cannot be trained."""
        problems = []
        if self.unusable and not options.skip_bad:
            items = [f"{path!r} ({reason})" for path, reason in sorted(self.unusable.items())]
            message = (
                f"{len(items)} pictures whose masks cannot be used: {listing(items, limit=10, quote=False)} - correct "
                "them, or pass --skip-bad to leave them out"
            )
            problems.append(Finding(Kind.MASK, message, tuple(items), tuple((path,) for path in sorted(self.unusable))))
        usable = [file for file in files if file.path not in self.unusable and file.label in self.seen]
        trained = [file for file in usable if file.trains]
        if not trained and not problems:
            return [*problems, Finding(Kind.EMPTY, "there is no picture to train on")]
        if self.meaning is None or self.meaning.problems or not trained:
            return [*problems, *(self.meaning.problems if self.meaning is not None else ())]
        targets = self.learn(scan)
        names = targets.spec.names
        held = targets.total(file.label for file in trained) > 0
        others = targets.total(file.label for file in usable) > 0
        if not held.any():
            problems.append(Finding(Kind.EMPTY, "no pixel of the training masks counts: all are 255 or ignored"))
        elif len(names) == 1 or (held.sum() == 1 and not options.allow_empty_classes):
            message = (
                f"the training masks hold one class alone, {names[int(held.argmax())]!r}: nothing can be learnt of it "
                "- add masks with another class"
            )
            problems.append(Finding(Kind.ONE_CLASS, message, names))
        else:
            elsewhere = [name for name, here, there in zip(names, held, others, strict=True) if there and not here]
            empty = [name for name, there in zip(names, others, strict=True) if not there]
            if elsewhere:
                message = (
                    f"classes without training pixels that other splits have: {listing(elsewhere)} - add them to train "
                    "or remove them"
                )
                problems.append(Finding(Kind.UNTRAINED, message, tuple(elsewhere)))
            if empty and not options.allow_empty_classes:
                message = (
                    f"classes without pixels: {listing(empty)} - remove them from the palette, or pass "
                    "--allow-empty-classes to keep their place"
                )
                problems.append(Finding(Kind.EMPTY, message, tuple(empty)))
        return problems

    def thin(self, targets: Targets, records: Sequence[ImageRecord], options: DataOptions) -> list[Finding]:
        """Return what was understood of the masks, and which classes will not be well trained or measured."""
        if not isinstance(targets, MaskTargets) or self.meaning is None:
            raise TypeError("these are not the targets of this reader")
        findings = [Finding(Kind.NOTE, f"segmentation{task_reason(options)}: {self.meaning.line}")]
        left_out = tuple(sorted(self.unusable))
        if left_out:
            items = tuple(f"{path!r} ({self.unusable[path]})" for path in left_out)
            said = listing(items, limit=5, quote=False)
            message = f"{len(left_out)} pictures left out whose masks cannot be used: {said}"
            findings.append(Finding(Kind.MASK, message, items, tuple((path,) for path in left_out)))
        turned = [record.path for record in records if self.seen[record.label].turn != 1]
        if turned:
            message = (
                f"{len(turned)} masks fit only the unturned picture, and were turned by its EXIF orientation likewise: "
                f"{listing(turned, limit=3)}"
            )
            findings.append(Finding(Kind.MASK, message, tuple(turned), tuple((path,) for path in turned)))
        return [*findings, *_thin_classes(targets, records)]

    def mixer(self, spec: TargetSpec, mixup: float, cutmix: float) -> Callable[..., Any] | None:
        """Return that masks are not mixed."""
        return None

    def framing(self, config: DataConfig) -> DataConfig:
        """Return that pictures are shown whole, or in windows where that is said: every pixel has an answer."""
        return replace(config, crop_mode="tile" if config.tiled else "pad", crop_pct=1.0)


@dataclass(frozen=True)
class MaskTargets:
    """Labels that are mask files.

    Attributes:
        spec: Names in index order; ``values``, ``ignored`` and ``mask_values`` (see `Coding`), ``palette``: a colour
            ``[r, g, b]`` per class, and of a model ``pixels``: those of each class in its training masks.
        seen: What is known of masks, by file.
    """

    spec: TargetSpec
    seen: Mapping[str, MaskFacts] = field(default_factory=dict, compare=False, repr=False)

    @property
    def columns(self) -> Columns:
        """The column ``mask``."""
        return file_column(MASK)

    @property
    def stratum_names(self) -> tuple[str, ...]:
        """The classes."""
        return self.spec.names

    @cached_property
    def coding(self) -> Coding:
        """What the values in masks mean."""
        return Coding.of(self.spec)

    def find(self, label: str) -> str:
        """Return the file: what it holds is found when it is read."""
        return label

    def encode(self, labels: Iterable[str]) -> npt.NDArray[Any]:
        """Refuse: a mask is no row of a table; see `annotate`."""
        raise TypeError("masks are not encoded as rows; read them by annotate()")

    def annotate(self, labels: Sequence[str], paths: Sequence[str]) -> Annotations:
        """Return the masks of some pictures."""
        known = {label: self.seen[label] for label in labels if label in self.seen}
        return MaskAnnotations(tuple(labels), tuple(paths), self.coding, known)

    def identity(self, label: str) -> str:
        """Return the sha256 of a mask's class indices. Raises `DataError`."""
        facts = self.seen.get(label)
        return class_digest(read_mask(label, self.coding, None)) if facts is None else identity_of(facts, self.coding)

    def pixels(self, label: str) -> npt.NDArray[np.int64]:
        """Return the pixels of each class ``(C,)`` in a mask. Raises `DataError`."""
        facts = self.seen.get(label)
        if facts is None:
            counts = np.bincount(read_mask(label, self.coding, None).ravel(), minlength=IGNORED + 1)
        else:
            counts = np.zeros(IGNORED + 1, dtype=np.int64)
            np.add.at(counts, facts.classes(self.coding), facts.counts)
        return counts[: len(self.spec.names)]

    def total(self, labels: Iterable[str]) -> npt.NDArray[np.int64]:
        """Return the pixels of each class ``(C,)`` in several masks. Raises `DataError`."""
        total = np.zeros(len(self.spec.names), dtype=np.int64)
        for label in labels:
            total += self.pixels(label)
        return total

    def presence(self, labels: Iterable[str]) -> npt.NDArray[np.bool_]:
        """Return whether each mask holds each class ``(N, C)``. Raises `DataError`."""
        rows = [self.pixels(label) > 0 for label in labels]
        return np.array(rows, dtype=np.bool_).reshape(len(rows), len(self.spec.names))

    def strata(self, labels: Iterable[str]) -> npt.NDArray[np.int64]:
        """Return the stratum ``(N,)`` of each picture: the rarest of its classes, by pictures of the set that hold it.

        A mask of which no pixel counts is in the first.
        """
        return rarest_class(self.presence(labels))

    def counts(self, labels: Iterable[str]) -> list[int]:
        """Return the pictures that hold each class."""
        counts: list[int] = self.presence(labels).sum(axis=0).tolist()
        return counts

    def fitted(self, labels: Iterable[str]) -> Self:
        """Return the classes with their pixels in the masks of the training pictures."""
        return replace(self, spec=self.spec.with_facts({"pixels": self.total(labels).tolist()}))


# ---- one mask ---------------------------------------------------------------------------------------------------


def _look(file: ScannedFile, result: ReadResult, coding: Coding | None) -> MaskFacts | str:
    """Return what is known of a picture's mask, or why it cannot be used."""
    try:
        if result.info is not None:
            height, width, orientation = result.info.height, result.info.width, result.info.orientation
        else:
            height, width, orientation = header_size(file.path)
        return look_at_mask(file.label, (height, width), orientation, coding)
    except UnreadableImage as error:
        return f"the picture itself cannot be read: {error.reason}"
    except UnusableMask as error:
        return f"mask {error.path!r}: {error.reason}"


def _thin_classes(targets: MaskTargets, records: Sequence[ImageRecord]) -> list[Finding]:
    names = targets.spec.names
    pixels = np.array([targets.pixels(record.label) for record in records]).reshape(len(records), len(names))
    splits = np.array([record.split for record in records])
    trained, checked = pixels[splits == "train"], pixels[splits == "val"]
    pictures, shares = (trained > 0).sum(axis=0), trained.sum(axis=0) / max(1, int(trained.sum()))
    few = [f"{name} ({share:.2%} of the pixels, {count} pictures)"
           for name, share, count in zip(names, shares, pictures, strict=True)
           if count and (count < FEW or share < SCARCE)]  # fmt: skip
    never = [name for name, count in zip(names, pictures, strict=True) if not count]
    absent = [name for name, count, total in zip(names, pictures, checked.sum(axis=0), strict=True)
              if count and not total] if len(checked) else []  # fmt: skip
    blank = [record.path for record, row in zip(records, pixels, strict=True) if not row.any()]
    alone = [record.path for record, row in zip(records, pixels, strict=True) if row[0] and not row[1:].any()]
    findings = []
    if few:
        message = f"classes of few training pixels: {listing(few, quote=False)}"
        findings.append(Finding(Kind.THIN, message, tuple(few)))
    if never:
        message = f"classes without training pixels, of which nothing can be learnt: {listing(never)}"
        findings.append(Finding(Kind.EMPTY, message, tuple(never)))
    if absent:
        message = f"classes without a pixel in val, whose val figures are therefore n/a: {listing(absent)}"
        findings.append(Finding(Kind.THIN, message, tuple(absent)))
    if blank:
        message = (
            f"{len(blank)} masks of which no pixel counts, so nothing is learnt of them: {listing(blank, limit=3)}"
        )
        findings.append(Finding(Kind.MASK, message, tuple(blank), tuple((path,) for path in blank)))
    if alone:
        message = f"{len(alone)} of {len(records)} masks hold {names[0]!r} alone"
        findings.append(Finding(Kind.NOTE, message, tuple(alone), tuple((path,) for path in alone)))
    return findings
