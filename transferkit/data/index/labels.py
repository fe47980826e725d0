"""Several labels per picture: from a list or columns of 0 and 1 to a row of ones and zeros."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import DataError, did_you_mean
from transferkit.core.records import DataConfig, Finding, ImageRecord
from transferkit.core.targets import TargetSpec
from transferkit.core.text import listing
from transferkit.data.index.targets import LABELS, PicturesRead, Targets, refuse_columns
from transferkit.data.masks.annotation import Annotations
from transferkit.data.scan.class_names import order_classes
from transferkit.data.scan.columns import JOINT, Columns, label_columns, split_labels
from transferkit.data.scan.records import Kind, Scan, ScannedFile
from transferkit.options.data import DataOptions

__all__ = ["LabelReader", "LabelTargets"]

NONE = "no label"
"""The stratum of pictures without any."""

FEW = 5
"""Training pictures of a label below which little can be learnt of it."""


@dataclass(frozen=True)
class LabelReader:
    """Answers are lists of labels, which may be empty."""

    unusable: ClassVar[Mapping[str, str]] = {}
    tiles: ClassVar[bool] = False

    def columns_of(self, options: DataOptions) -> Columns:
        """Return the column of lists, or the columns of 0 and 1 that the options name."""
        refuse_columns(options, "columns of 0 and 1", targets=True, lists=not options.targets)
        lists = () if options.targets else (options.label_column or LABELS,)
        columns = label_columns(lists, options.target_names, options.label_separator)
        return replace(columns, path=options.path_column, root=options.root)

    def look(self, pictures: PicturesRead) -> Self:
        """Return this reader: there are no files of answers."""
        return self

    def of(self, spec: TargetSpec) -> LabelTargets:
        """Return the labels of a model."""
        return LabelTargets(spec.names)

    def learn(self, scan: Scan) -> LabelTargets:
        """Return the labels of a data set: its columns of 0 and 1, or all that training pictures have."""
        if len(scan.answers) > 1:
            return LabelTargets(scan.answers)
        trained = (file for file in scan.files if file.trains)
        return LabelTargets(order_classes(label for file in trained for label in split_labels(file.label)))

    def problems(self, scan: Scan, files: Sequence[ScannedFile], options: DataOptions) -> list[Finding]:
        """Return what is wrong with the labels: none at all, some that only other splits have, no positives."""
        trained = Counter(label for file in files if file.trains for label in split_labels(file.label))
        known = set(self.learn(scan).names)
        elsewhere = sorted({label for file in files for label in split_labels(file.label)} - set(trained))
        problems = []
        if not trained:
            problems.append(Finding(Kind.EMPTY, "no training picture has any label - fill the labels in"))
        elif elsewhere:
            message = (
                f"labels without training pictures that other splits have: {listing(elsewhere)} - add such pictures to "
                "train or remove the labels"
            )
            problems.append(Finding(Kind.UNTRAINED, message, tuple(elsewhere)))
        if (mark := _other_separator(set(trained))) is not None:
            problems = [replace(one, message=f"{one.message}; or pass --label-separator {mark!r}") for one in problems]
        empty = sorted(known - set(trained) - set(elsewhere))
        if trained and empty and not options.allow_empty_classes:
            message = (
                f"labels that no training picture has: {listing(empty)} - remove them, or pass --allow-empty-classes "
                "to keep their place"
            )
            problems.append(Finding(Kind.EMPTY, message, tuple(empty)))
        return problems

    def thin(self, targets: Targets, records: Sequence[ImageRecord], options: DataOptions) -> list[Finding]:
        """Return labels that few, all or no training pictures have, that val lacks, and pictures without any."""
        names = targets.spec.names
        counts = {split: Counter(label for record in records if record.split == split
                                 for label in split_labels(record.label)) for split in ("train", "val")}  # fmt: skip
        sizes = Counter(record.split for record in records)
        few = [f"{name} ({counts['train'][name]})" for name in names if 0 < counts["train"][name] < FEW]
        always = [name for name in names if counts["train"][name] == sizes["train"]]
        never = [name for name in names if not counts["train"][name]]
        absent = [name for name in names if counts["train"][name] and not counts["val"][name]] if sizes["val"] else []
        bare = sum(not split_labels(record.label) for record in records)
        findings = []
        if (mark := _other_separator(set(names))) is not None:
            message = f"labels look like lists of labels: if they are, pass --label-separator {mark!r}"
            findings.append(Finding(Kind.NOTE, message))
        if few:
            message = f"labels of fewer than {FEW} training pictures: {listing(few, quote=False)}"
            findings.append(Finding(Kind.THIN, message, tuple(few)))
        if always:
            message = f"labels that all training pictures have, so nothing can be learnt of them: {listing(always)}"
            findings.append(Finding(Kind.THIN, message, tuple(always)))
        if never:
            message = f"labels that no training picture has, so nothing can be learnt of them: {listing(never)}"
            findings.append(Finding(Kind.EMPTY, message, tuple(never)))
        if absent:
            message = f"labels without a val picture, whose val figures are therefore n/a: {listing(absent)}"
            findings.append(Finding(Kind.THIN, message, tuple(absent)))
        if bare:
            findings.append(Finding(Kind.NOTE, f"{bare:,} of {len(records):,} pictures have no label at all"))
        return findings

    def mixer(self, spec: TargetSpec, mixup: float, cutmix: float) -> Callable[..., Any] | None:
        """Return what mixes pictures, and their labels by the same shares."""
        from transferkit.data.augment.mixing import Mixer  # torchvision, which `check` does without

        return Mixer(len(spec.names), mixup, cutmix)

    def framing(self, config: DataConfig) -> DataConfig:
        """Return the backbone's own way."""
        return config


def _other_separator(labels: AbstractSet[str]) -> str | None:
    """Return the mark that lists of labels seem to be separated by, where those are taken for labels."""
    for mark in ";,/&+":
        lists = [label for label in labels if mark in label]
        parts = {part.strip() for label in labels for part in label.split(mark)}
        if len(lists) > 1 and len(parts) < len(labels):
            return mark
    return None


@dataclass(frozen=True)
class LabelTargets:
    """Texts that list labels. Names are compared in NFC form: how a disk stores accents does not matter.

    Attributes:
        names: In index order.
    """

    names: tuple[str, ...]

    @property
    def columns(self) -> Columns:
        """A column of lists, or one column per label."""
        return label_columns((LABELS, "label"), self.names, JOINT)

    @property
    def spec(self) -> TargetSpec:
        """The meaning of a model's outputs."""
        return TargetSpec(self.names)

    @property
    def stratum_names(self) -> tuple[str, ...]:
        """The labels, and that there is none."""
        return (*self.names, NONE)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {unicodedata.normalize("NFC", name): number for number, name in enumerate(self.names)}

    def find(self, label: str) -> list[int] | None:
        """Return the indices of the labels in a text, or ``None`` where one of them is unknown."""
        places = [self._index.get(unicodedata.normalize("NFC", name)) for name in split_labels(label)]
        known = [place for place in places if place is not None]
        return known if len(known) == len(places) else None

    def encode(self, labels: Iterable[str]) -> npt.NDArray[np.float32]:
        """Return ones and zeros ``(N, C)`` of texts.

        Raises:
            DataError: A label is not one of `names`.
        """
        texts = list(labels)
        rows = np.zeros((len(texts), len(self.names)), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            places = self.find(text)
            if places is None:
                raise DataError(f"{text!r} holds what is not one of the labels.{did_you_mean(text, self.names)}")
            row[places] = 1
        return rows

    def annotate(self, labels: Sequence[str], paths: Sequence[str]) -> Annotations | None:
        """Return that labels say all."""
        return None

    def identity(self, label: str) -> str:
        """Return the label."""
        return label

    def strata(self, labels: Iterable[str]) -> npt.NDArray[np.int64]:
        """Return the stratum ``(N,)`` of each text: the rarest of its labels, among all of these texts."""
        rows = self.encode(labels)
        counts = rows.sum(axis=0)
        rare = np.where(rows > 0, counts, np.inf)
        strata: npt.NDArray[np.int64] = np.where(rows.any(axis=1), rare.argmin(axis=1), len(self.names)) if len(
            self.names) else np.zeros(len(rows), dtype=np.int64)  # fmt: skip
        return strata

    def counts(self, labels: Iterable[str]) -> list[int]:
        """Return the number of pictures with each label, and with none."""
        rows = self.encode(labels)
        return [*map(int, rows.sum(axis=0)), int((~rows.any(axis=1)).sum())]

    def fitted(self, labels: Iterable[str]) -> Self:
        """Return the labels: their names are all there is."""
        return self
