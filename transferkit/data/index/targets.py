"""The meaning of labels: the one place where the text of a record becomes what is trained on."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import ConfigError, DataError, did_you_mean, gather
from transferkit.core.files import user_path
from transferkit.core.records import FITS, DataConfig, Finding, ImageRecord
from transferkit.core.targets import TargetSpec
from transferkit.data.images.reading import ReadResult
from transferkit.data.index.checks import class_problems, odd_labels, thin_classes
from transferkit.data.masks.annotation import Annotations
from transferkit.data.objects.layout import objects_reason
from transferkit.data.objects.numbered import NUMBERED
from transferkit.data.sample import SAMPLE
from transferkit.data.scan.class_names import order_classes
from transferkit.data.scan.columns import CLASS_COLUMN, JOINT, Columns, number
from transferkit.data.scan.manifest import is_manifest, read_table
from transferkit.data.scan.pairs import pairs_reason
from transferkit.data.scan.records import Kind, Scan, ScannedFile
from transferkit.options.data import DataOptions

__all__ = [
    "DETECTION",
    "ClassReader",
    "ClassTargets",
    "PicturesRead",
    "TargetReader",
    "Targets",
    "framed",
    "inferred_task",
    "rarest_class",
    "refuse_columns",
    "task_name",
    "task_reason",
]

LABEL, LABELS, TARGET, MASK = "label", "labels", "target", "mask"
"""Columns of a class, of a list of labels, of a number, of the file of a mask, where the options name none."""

SEGMENTATION, DETECTION = "segmentation", "detection"


def inferred_task(options: DataOptions) -> tuple[str, str]:
    """Return the name of the task that a data set shows by its layout, and why, in words.

    Nothing but the names of files, or a manifest's table, is looked at. A column ``label`` holds classes, whatever it
    looks like; `pairs_reason` says when folders hold pictures and masks, `objects_reason` when they are COCO, Pascal
    VOC or YOLO.

    Raises:
        DataError: The manifest cannot be read.
    """
    path, names = user_path(options.data), options.target_names
    if options.mask_values == NUMBERED:
        return DETECTION, "--mask-values instances is about objects"
    if options.palette is not None or options.mask_values != "classes":
        return SEGMENTATION, f"--{'mask-values' if options.palette is None else 'palette'} is about masks"
    if Path(path).is_dir() and options.data != SAMPLE and (reason := pairs_reason(path)) is not None:
        return SEGMENTATION, reason
    if options.data != SAMPLE and (reason := objects_reason(path)) is not None:
        return DETECTION, reason
    if not is_manifest(path):
        return "classification", "of folders"
    columns, rows = read_table(path, names)
    if names and set(names) <= set(columns):
        cells = {row.cells[name].strip() for row in rows for name in names}
        if all(number(cell) in (0.0, 1.0) for cell in cells if cell):
            return "multilabel", "--targets names columns of 0 and 1"
        return "regression", "--targets names columns of numbers"
    if options.label_column is None and LABEL not in columns:
        for name, task in ((LABELS, "multilabel"), (TARGET, "regression"), (MASK, SEGMENTATION)):
            if name in columns:
                return task, f"the manifest has a column {name!r}"
    return "classification", "the manifest has a column of labels"


def task_name(options: DataOptions) -> str:
    """Return the name of the task that options give, or that their data set shows. Raises as `inferred_task`."""
    return inferred_task(options)[0] if options.infers_task else options.task


def task_reason(options: DataOptions) -> str:
    """Return why a data set has its task, in brackets after a space; nothing where it is named."""
    return f" ({inferred_task(options)[1]})" if options.infers_task else ""


def refuse_columns(
    options: DataOptions, answers: str, *, targets: bool, lists: bool, masks: tuple[str, ...] = ()
) -> None:
    """Refuse options that say where answers of another kind stand: none is left out in silence.

    Args:
        options: The options.
        answers: What these are, in words.
        targets: Whether they stand in the columns that ``targets`` names.
        lists: Whether a cell lists several.
        masks: What may stand in masks.

    Raises:
        ConfigError: An option would mean nothing.
    """
    problems = []
    if options.targets and not targets:
        problems.append(f"--targets names columns of 0 and 1 or of numbers, and the answers are {answers}")
    if options.label_separator != JOINT and not lists:
        problems.append(f"--label-separator stands between the labels of one cell, and the answers are {answers}")
    if options.palette is not None and "binary" not in masks:
        problems.append(f"--palette names the classes of masks, and the answers are {answers}")
    if options.mask_values not in ("classes", *masks):
        problems.append(f"--mask-values {options.mask_values} says what stands in masks, and the answers are {answers}")
    if problems:
        raise ConfigError(f"{gather(problems)} - leave it out, or say what they are by --task")


def rarest_class(present: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return the rarest of each picture's classes ``(N, C)``, by pictures that show it; of none the first: ``(N,)``."""
    if not present.size:
        return np.zeros(len(present), dtype=np.int64)
    rarest: npt.NDArray[np.int64] = np.where(present, present.sum(axis=0), np.iinfo(np.int64).max).argmin(axis=1)
    return rarest


class Targets(Protocol):
    """The meaning of the labels of one data set or model."""

    @property
    def columns(self) -> Columns:
        """Where the answers stand in a manifest that a model is measured on."""

    @property
    def spec(self) -> TargetSpec:
        """The meaning of a model's outputs; it travels in `model.json`."""

    @property
    def stratum_names(self) -> tuple[str, ...]:
        """Names of the strata, by which pictures are counted and splits, folds and samplers are balanced."""

    def find(self, label: str) -> Any:
        """Return what a label stands for, as a plain value; ``None`` where nothing is known of it."""

    def encode(self, labels: Iterable[str]) -> npt.NDArray[Any]:
        """Return targets ``(N, ...)``, where `annotate` says nothing.

        Raises:
            DataError: A label stands for nothing.
        """

    def annotate(self, labels: Sequence[str], paths: Sequence[str]) -> Annotations | None:
        """Return the answers on pixels; ``None`` where `encode` says all that there is to say.

        Args:
            labels: Of some pictures.
            paths: Their files: an answer on pixels is turned as its picture is.
        """

    def identity(self, label: str) -> str:
        """Return what a label says, whatever its text: of a file its content, else the text itself.

        Raises:
            DataError: A file cannot be read.
        """

    def strata(self, labels: Iterable[str]) -> npt.NDArray[np.int64]:
        """Return the stratum ``(N,)`` of each label, an index into `stratum_names`."""

    def counts(self, labels: Iterable[str]) -> list[int]:
        """Return the pictures of each of `stratum_names`; one with several labels counts for each."""

    def fitted(self, labels: Iterable[str]) -> Self:
        """Return the meaning with what is measured on the labels of the training pictures, such as their mean."""


@dataclass(frozen=True)
class PicturesRead:
    """The pictures of a data set, each of them read, as a reader of answers takes them.

    Attributes:
        files: The pictures.
        results: What reading each of them gave, in the same order.
        options: How the answers are to be understood.
        keep_bytes: Memory for answers on pixels.
        progress: Called with files done and their total.
    """

    files: Sequence[ScannedFile]
    results: Sequence[ReadResult]
    options: DataOptions
    keep_bytes: int = 0
    progress: Callable[[int, int], None] | None = None


class TargetReader(Protocol):
    """The part of a task that reads answers from the rows of a data set."""

    def columns_of(self, options: DataOptions) -> Columns:
        """Return where the answers stand in a manifest."""

    @property
    def unusable(self) -> Mapping[str, str]:
        """Pictures, by path, whose answers cannot be used, and why; as far as `look` has seen."""

    @property
    def tiles(self) -> bool:
        """Whether pictures can be seen in windows: a window has the answers of its pixels, and needs no others."""

    def look(self, pictures: PicturesRead) -> Self:
        """Return the reader that has read the files of the answers, where they have some; once is enough."""

    def of(self, spec: TargetSpec) -> Targets:
        """Return what labels mean to a model."""

    def learn(self, scan: Scan) -> Targets:
        """Return what the labels of a data set mean, as far as that can be told where it has `problems`."""

    def problems(self, scan: Scan, files: Sequence[ScannedFile], options: DataOptions) -> list[Finding]:
        """Return why a data set cannot be trained on, as far as labels go.

        Args:
            scan: The data set.
            files: The pictures that count.
            options: What may be wrong with it.
        """

    def thin(self, targets: Targets, records: Sequence[ImageRecord], options: DataOptions) -> list[Finding]:
        """Return what a model will not be well trained or measured on."""

    def mixer(self, spec: TargetSpec, mixup: float, cutmix: float) -> Callable[..., Any] | None:
        """Return what mixes the pictures and targets of a batch; ``None`` where these answers cannot be mixed."""

    def framing(self, config: DataConfig) -> DataConfig:
        """Return how pictures are shown to a model of these answers: as the backbone has it, whole, or in windows."""


def framed(reader: TargetReader, config: DataConfig, fit: str | None) -> DataConfig:
    """Return how pictures fill the input of a model of some answers.

    Args:
        reader: Of the answers.
        config: Of the backbone, with what was asked for.
        fit: What was asked for, one of `FITS`; ``None`` for nothing.

    Raises:
        ConfigError: The answers lie on pixels that would not be shown.
    """
    usual = reader.framing(config)
    if fit is None or usual.crop_mode == FITS[fit]:
        return usual
    if fit == "crop":
        raise ConfigError("--fit crop shows the middle of a picture, and masks and boxes lie on all of it - "
                          "pass --fit pad or squash")  # fmt: skip
    return replace(usual, crop_mode=FITS[fit])


@dataclass(frozen=True)
class ClassReader:
    """Labels are names of classes.

    Attributes:
        known: Classes of a model that the pictures are added to: they need none here.
    """

    known: tuple[str, ...] = ()
    unusable: ClassVar[Mapping[str, str]] = {}
    tiles: ClassVar[bool] = False

    def columns_of(self, options: DataOptions) -> Columns:
        """Return the column ``label``, or what the options name."""
        refuse_columns(options, "one class per picture", targets=False, lists=False)
        return Columns(((options.label_column or LABEL,),), path=options.path_column, root=options.root)

    def look(self, pictures: PicturesRead) -> Self:
        """Return this reader: there are no files of answers."""
        return self

    def of(self, spec: TargetSpec) -> ClassTargets:
        """Return the classes of a model."""
        return ClassTargets(spec.names)

    def learn(self, scan: Scan) -> ClassTargets:
        """Return the classes of a data set, and those that are known."""
        return ClassTargets(order_classes((*self.known, *scan.class_names)))

    def problems(self, scan: Scan, files: Sequence[ScannedFile], options: DataOptions) -> list[Finding]:
        """Return what is wrong with the classes: a single one, none to train on, no pictures."""
        problems = class_problems(scan, files, options.allow_empty_classes)
        if self.known:
            problems = [problem for problem in problems if problem.kind not in (Kind.ONE_CLASS, Kind.UNTRAINED)]
        return problems

    def thin(self, targets: Targets, records: Sequence[ImageRecord], options: DataOptions) -> list[Finding]:
        """Return which classes cannot be validated, and what looks like answers of another kind."""
        names = order_classes(record.label for record in records) if self.known else targets.spec.names
        return [*odd_labels(names), *thin_classes(names, records, options.val_split)]

    def mixer(self, spec: TargetSpec, mixup: float, cutmix: float) -> Callable[..., Any] | None:
        """Return what mixes pictures, and their classes as shares."""
        from transferkit.data.augment.mixing import Mixer  # torchvision, which `check` does without

        return Mixer(len(spec.names), mixup, cutmix)

    def framing(self, config: DataConfig) -> DataConfig:
        """Return the backbone's own way."""
        return config


@dataclass(frozen=True)
class ClassTargets:
    """Labels that are names of classes. Names are compared in NFC form: how a disk stores accents does not matter.

    Attributes:
        class_names: In index order.
    """

    class_names: tuple[str, ...]
    columns: ClassVar[Columns] = CLASS_COLUMN

    @property
    def spec(self) -> TargetSpec:
        """The meaning of a model's outputs."""
        return TargetSpec(self.class_names)

    @property
    def stratum_names(self) -> tuple[str, ...]:
        """The classes."""
        return self.class_names

    @cached_property
    def _index(self) -> dict[str, int]:
        return {unicodedata.normalize("NFC", name): number for number, name in enumerate(self.class_names)}

    def find(self, label: str) -> int | None:
        """Return the class index of a label, or ``None`` where there is no such class."""
        return self._index.get(unicodedata.normalize("NFC", label))

    def encode(self, labels: Iterable[str]) -> npt.NDArray[np.int64]:
        """Return the class indices ``(N,)`` of labels.

        Raises:
            DataError: A label is not one of the classes.
        """
        indices = []
        for label in labels:
            index = self.find(label)
            if index is None:
                raise DataError(f"{label!r} is not one of the classes.{did_you_mean(label, self.class_names)}")
            indices.append(index)
        return np.array(indices, dtype=np.int64)

    def annotate(self, labels: Sequence[str], paths: Sequence[str]) -> Annotations | None:
        """Return that classes say all."""
        return None

    def identity(self, label: str) -> str:
        """Return the label."""
        return label

    def strata(self, labels: Iterable[str]) -> npt.NDArray[np.int64]:
        """Return the stratum ``(N,)`` of each label, by which splits, folds and samplers are balanced: its class."""
        return self.encode(labels)

    def counts(self, labels: Iterable[str]) -> list[int]:
        """Return the number of pictures of each class."""
        counts: list[int] = np.bincount(self.encode(labels), minlength=len(self.class_names)).tolist()
        return counts

    def fitted(self, labels: Iterable[str]) -> Self:
        """Return the classes: their names are all there is."""
        return self
