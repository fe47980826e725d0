"""Boxes as answers: the objects of each picture, with outlines where all have one, and what they mean to a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Final, Self

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import DataError, did_you_mean
from transferkit.core.records import DataConfig, Finding, ImageRecord
from transferkit.core.targets import TargetSpec
from transferkit.core.text import listing
from transferkit.data.index.targets import PicturesRead, Targets, rarest_class, refuse_columns, task_reason
from transferkit.data.masks.annotation import Annotation, Annotations
from transferkit.data.objects.labels import Item, Objects, identity_of, objects_of
from transferkit.data.objects.numbered import NUMBERED
from transferkit.data.objects.outlines import numbered
from transferkit.data.objects.stated import Outline
from transferkit.data.scan.class_names import order_classes
from transferkit.data.scan.columns import Columns
from transferkit.data.scan.records import Kind, Scan, ScannedFile
from transferkit.options.data import DataOptions

__all__ = ["BoxReader", "BoxTargets"]

FEW: Final = 10
"""Training objects of a class below which little can be learnt of it."""

SHAPES = 64
"""Of typical objects, that a model remembers."""


@dataclass(frozen=True)
class BoxReader:
    """Answers are objects: a class and a box each.

    Attributes:
        all_names: Whether classes that the data set lists and has no training object of are classes of the model.
        numbered: Whether objects may be numbers in masks.
    """

    all_names: bool = False
    numbered: bool = False
    unusable: ClassVar[Mapping[str, str]] = {}
    tiles: ClassVar[bool] = False

    def columns_of(self, options: DataOptions) -> Columns:
        """Return that no manifest holds them."""
        refuse_columns(options, "objects in pictures", targets=False, lists=False, masks=(NUMBERED,))
        numbered = options.mask_values == NUMBERED
        return Columns(
            path=options.path_column, root=options.root, lenient=options.skip_bad, objects=True, numbered=numbered
        )

    def look(self, pictures: PicturesRead) -> BoxReader:
        """Return the reader of these options: labels say all that there is to say."""
        return replace(
            self, all_names=pictures.options.allow_empty_classes, numbered=pictures.options.mask_values == NUMBERED
        )

    def of(self, spec: TargetSpec) -> BoxTargets:
        """Return the classes of a model."""
        return BoxTargets(spec)

    def learn(self, scan: Scan) -> BoxTargets:
        """Return the classes that training pictures show, and whether all objects have outlines."""
        trained = (file for file in scan.files if file.trains)
        names = scan.class_names if self.all_names else order_classes(_shown(trained))
        items = [item for file in scan.files for item in objects_of(file.label).items if not item.crowd]
        facts: dict[str, Any] = {"outlines": bool(items) and all(item.outline for item in items)}
        if self.numbered:
            facts["mask_values"] = NUMBERED
        return BoxTargets(TargetSpec(names, facts))

    def problems(self, scan: Scan, files: Sequence[ScannedFile], options: DataOptions) -> list[Finding]:
        """Return why the objects cannot be trained on: there are none, or classes that only other splits have."""
        trained = [file for file in files if file.trains]
        if not trained:
            return [Finding(Kind.EMPTY, "there is no picture to train on")]
        shown = _shown(trained)
        if not shown:
            message = "the training pictures show no object to learn - add annotations, or look at what was left out"
            return [Finding(Kind.EMPTY, message)]
        elsewhere = order_classes(_shown(files) - shown)
        if not elsewhere:
            return []
        message = (
            f"classes without training objects that other splits have: {listing(elsewhere)} - add them to train or "
            "remove them"
        )
        return [Finding(Kind.UNTRAINED, message, elsewhere)]

    def thin(self, targets: Targets, records: Sequence[ImageRecord], options: DataOptions) -> list[Finding]:
        """Return how the layout was understood, and which classes will not be well trained or measured."""
        findings = []
        if options.infers_task:
            findings.append(Finding(Kind.NOTE, f"detection{task_reason(options)}"))
        names = targets.spec.names
        counts = {split: targets.counts(record.label for record in records if record.split == split)
                  for split in ("train", "val")}  # fmt: skip
        pairs = list(zip(names, counts["train"], counts["val"], strict=True))
        few = [f"{name} ({count})" for name, count, _ in pairs if 0 < count < FEW]
        never = [name for name, count, _ in pairs if not count]
        absent = [name for name, count, there in pairs if count and not there]
        if few:
            message = f"classes of few training objects: {listing(few, quote=False)}"
            findings.append(Finding(Kind.THIN, message, tuple(few)))
        if never:
            message = f"classes without training objects, of which nothing can be learnt: {listing(never)}"
            findings.append(Finding(Kind.EMPTY, message, tuple(never)))
        if absent and any(record.split == "val" for record in records):
            message = f"classes without an object in val, whose val figures are therefore n/a: {listing(absent)}"
            findings.append(Finding(Kind.THIN, message, tuple(absent)))
        return findings

    def mixer(self, spec: TargetSpec, mixup: float, cutmix: float) -> Callable[..., Any] | None:
        """Return that boxes are not mixed."""
        return None

    def framing(self, config: DataConfig) -> DataConfig:
        """Return that pictures are shown whole."""
        return replace(config, crop_mode="pad", crop_pct=1.0)


@dataclass(frozen=True)
class BoxTargets:
    """Labels that state objects; see `transferkit.data.objects.labels`.

    Attributes:
        spec: Names of the classes in index order; ``outlines``: whether objects have them, and of a model ``objects``:
            those of each class in its training pictures, and ``shapes``: width and height of typical ones of them,
            over the longer side of their picture.
    """

    spec: TargetSpec

    @property
    def columns(self) -> Columns:
        """Objects, which may be numbers in masks where those of training were."""
        return Columns(objects=True, numbered=self.spec.facts.get("mask_values") == NUMBERED)

    @property
    def stratum_names(self) -> tuple[str, ...]:
        """The classes."""
        return self.spec.names

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.spec.names)}

    def find(self, label: str) -> list[str]:
        """Return the classes of a picture's objects, one by one."""
        return [item.name for item in objects_of(label).items]

    def encode(self, labels: Iterable[str]) -> npt.NDArray[Any]:
        """Refuse: pictures have different numbers of objects; see `annotate`."""
        raise TypeError("objects are not encoded as rows; read them by annotate()")

    def annotate(self, labels: Sequence[str], paths: Sequence[str]) -> Annotations:
        """Return the objects of some pictures."""
        return BoxAnnotations(tuple(labels), self._index, outlines=bool(self.spec.facts.get("outlines", False)))

    def identity(self, label: str) -> str:
        """Return the objects, whatever their order."""
        return identity_of(label)

    def presence(self, labels: Iterable[str]) -> npt.NDArray[np.int64]:
        """Return the objects of each class ``(N, C)`` in some pictures, crowds left out."""
        rows = []
        for label in labels:
            row = np.zeros(len(self.spec.names), dtype=np.int64)
            for item in objects_of(label).items:
                if not item.crowd and item.name in self._index:
                    row[self._index[item.name]] += 1
            rows.append(row)
        return np.array(rows, dtype=np.int64).reshape(len(rows), len(self.spec.names))

    def strata(self, labels: Iterable[str]) -> npt.NDArray[np.int64]:
        """Return the stratum ``(N,)`` of each picture: the rarest of its classes, by pictures of the set that show it.

        A picture without objects is in none, -1: it stands for no class.
        """
        present = self.presence(labels) > 0
        return np.where(present.any(axis=1), rarest_class(present), -1)

    def counts(self, labels: Iterable[str]) -> list[int]:
        """Return the objects of each class, crowds left out."""
        counts: list[int] = self.presence(labels).sum(axis=0).tolist()
        return counts

    def fitted(self, labels: Iterable[str]) -> Self:
        """Return the classes with their objects in the training pictures: how many, and what shapes are typical."""
        known = tuple(labels)
        facts = {"objects": self.counts(known), "shapes": _typical_shapes(map(objects_of, known))}
        return replace(self, spec=self.spec.with_facts(facts))


@dataclass(frozen=True)
class BoxAnnotations:
    """The objects of some pictures; see `Annotations`.

    Attributes:
        labels: Of the pictures.
        index: Of the classes, by name.
        outlines: Whether numbered masks are drawn of the outlines.
    """

    labels: tuple[str, ...]
    index: Mapping[str, int] = field(repr=False)
    outlines: bool = False

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.labels)

    def read(self, row: int) -> Annotation:
        """Return the objects of one picture. Raises `DataError`."""
        objects = objects_of(self.labels[row])
        unknown = sorted({item.name for item in objects.items} - set(self.index))
        if unknown:
            hint = did_you_mean(unknown[0], tuple(self.index))
            raise DataError(f"{listing(unknown)} are not among the classes of the model.{hint}")
        return Annotation(
            boxes=np.array([item.box for item in objects.items], dtype=np.float32).reshape(-1, 4),
            classes=np.array([self.index[item.name] for item in objects.items], dtype=np.int64),
            crowd=np.array([item.crowd for item in objects.items], dtype=np.bool_),
            instances=_instances(objects) if self.outlines else None,
            size=objects.size,
        )


def _typical_shapes(pictures: Iterable[Objects]) -> list[list[float]]:
    """Return width and height of at most `SHAPES` objects, from the smallest to the largest area, crowds left out."""
    shapes = []
    for objects in pictures:
        longer = max(objects.size)
        for left, top, right, bottom in (item.box for item in objects.items if not item.crowd):
            shapes.append([round((right - left) / longer, 4), round((bottom - top) / longer, 4)])
    shapes.sort(key=lambda shape: (shape[0] * shape[1], shape))
    places = np.linspace(0, len(shapes) - 1, min(SHAPES, len(shapes))).round().astype(int)
    return [shapes[place] for place in places]


def _instances(objects: Objects) -> npt.NDArray[np.uint16]:
    return numbered([_outline(item) for item in objects.items], objects.size)


def _outline(item: Item) -> Outline:
    """Return the outline; of a crowd without one its box."""
    if item.outline is not None:
        return item.outline
    left, top, right, bottom = item.box
    return [[left, top, right, top, right, bottom, left, bottom]]


def _shown(files: Iterable[ScannedFile]) -> set[str]:
    """Return the classes of objects, crowds left out."""
    return {item.name for file in files for item in objects_of(file.label).items if not item.crowd}
