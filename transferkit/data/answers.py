"""Several answers per picture, of which some may be missing: classes and numbers from the columns of one manifest.

For modules of one's own that learn several things at once; `recipes/two_heads.py` is one. The tasks of this package
read their own answers.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import ConfigError, DataError
from transferkit.core.records import DataConfig, Finding, ImageRecord
from transferkit.core.targets import TargetSpec
from transferkit.core.text import listing
from transferkit.data.index.targets import PicturesRead, Targets, refuse_columns
from transferkit.data.masks.annotation import Annotations
from transferkit.data.scan.class_names import class_name_problems, order_classes
from transferkit.data.scan.columns import Columns, number
from transferkit.data.scan.records import Kind, Scan, ScannedFile
from transferkit.options.data import DataOptions

__all__ = ["RowReader", "RowTargets"]


@dataclass(frozen=True)
class RowReader:
    """Answers are the cells of a row, classes and numbers; an empty cell is a missing answer.

    The ``reader`` of `tk.ImageData`. Targets are ``(N, T) float32``: first the classes, each by its index among those
    of the training pictures, then the numbers in their own units; NaN where an answer is missing.

    Attributes:
        classes: Columns of classes. Splits are balanced by the first of them.
        numbers: Columns of numbers.

    Raises:
        ConfigError: There is no column, or one twice.
    """

    classes: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    unusable: ClassVar[Mapping[str, str]] = {}
    tiles: ClassVar[bool] = False

    def __post_init__(self) -> None:
        columns = self.columns
        if not columns or any(isinstance(names, str) for names in (self.classes, self.numbers)):
            raise ConfigError(f"classes={self.classes!r}, numbers={self.numbers!r}: expected tuples that name columns")
        if len(set(columns)) < len(columns):
            raise ConfigError(f"columns named twice among {listing(columns)} - name each once")

    @property
    def columns(self) -> tuple[str, ...]:
        """All of them, in the order of targets."""
        return (*self.classes, *self.numbers)

    def columns_of(self, options: DataOptions) -> Columns:
        """Return the columns; a row with a number that is none, or without any answer, is refused with its place."""
        refuse_columns(options, "the columns of a RowReader", targets=False, lists=False)

        def text(names: Sequence[str], cells: Sequence[str]) -> str:
            if not any(cells):
                raise ValueError(f"nothing in {listing(names)}, expected one answer at least")
            for name, cell in zip(names, cells, strict=True):
                if name in self.numbers and cell and number(cell) is None:
                    raise ValueError(f"{cell!r} in {name!r}, expected a number")
            return json.dumps(cells, ensure_ascii=False)

        def problems(texts: Iterable[str]) -> list[Finding]:
            rows = [row for text in texts if (row := _cells(text, len(self.columns)))]
            names = [{row[at] for row in rows} - {""} for at in range(len(self.classes))]
            return [finding for known in names for finding in class_name_problems(known)]

        return Columns(
            (self.columns,), text, optional=True, name_problems=problems, path=options.path_column, root=options.root
        )

    def look(self, pictures: PicturesRead) -> Self:
        """Return this reader: there are no files of answers."""
        return self

    def of(self, spec: TargetSpec) -> RowTargets:
        """Return what the answers of these facts mean."""
        known = {name: tuple(names) for name, names in spec.facts.get("classes", {}).items()}
        return RowTargets(self, known, {name: (unit[0], unit[1]) for name, unit in spec.facts.get("units", {}).items()})

    def learn(self, scan: Scan) -> RowTargets:
        """Return the answers of a data set, with the classes of its training pictures."""
        rows = [row for file in scan.files if file.trains and (row := _cells(file.label, len(self.columns)))]
        return RowTargets(
            self, {name: order_classes({row[at] for row in rows} - {""}) for at, name in enumerate(self.classes)}
        )

    def problems(self, scan: Scan, files: Sequence[ScannedFile], options: DataOptions) -> list[Finding]:
        """Return what is wrong with the answers: none at all, classes that train has not, nothing to tell apart."""
        rows = {file.label: _cells(file.label, len(self.columns)) for file in files}
        strange = sorted(label for label, row in rows.items() if row is None)
        if strange:
            expected = f"expected a manifest with the columns {', '.join(('path', *self.columns))}"
            return [Finding(Kind.LAYOUT, f"answers that are no rows: {listing(strange, limit=3)} - {expected}")]
        trained = [rows[file.label] or [] for file in files if file.trains]
        if not trained:
            return [Finding(Kind.EMPTY, "there is no picture to train on")]
        problems = []
        for at, name in enumerate(self.columns):
            known = {row[at] for row in trained} - {""}
            others = sorted({row[at] for row in rows.values() if row} - known - {""})
            if len(known) < 2:
                message = f"column {name!r} has {len(known)} different answers in train, expected 2 - leave it out"
                problems.append(Finding(Kind.ONE_CLASS, message))
            elif others and name in self.classes:
                message = f"classes of {name!r} without training pictures: {listing(others)} - add some, or remove them"
                problems.append(Finding(Kind.UNTRAINED, message, tuple(others)))
        return problems

    def thin(self, targets: Targets, records: Sequence[ImageRecord], options: DataOptions) -> list[Finding]:
        """Return how many answers are missing."""
        rows = targets.encode(record.label for record in records)
        missing = np.isnan(rows).sum(axis=0).tolist()
        lacking = [f"{name} ({count:,})" for name, count in zip(self.columns, missing, strict=True) if count]
        message = f"answers that are missing, of {len(records):,} pictures: {listing(lacking, quote=False)}"
        return [Finding(Kind.NOTE, message)] if lacking else []

    def mixer(self, spec: TargetSpec, mixup: float, cutmix: float) -> Callable[..., Any] | None:
        """Refuse: rows with gaps cannot be blended. Raises `ConfigError`."""
        raise ConfigError("mixup and cutmix blend answers, and of rows some are classes or missing - leave them out")

    def framing(self, config: DataConfig) -> DataConfig:
        """Return the backbone's own way."""
        return config


@dataclass(frozen=True)
class RowTargets:
    """Texts that hold the cells of a row.

    Attributes:
        reader: Names the columns.
        classes: By column, the names in index order.
        units: By column of numbers, mean and standard deviation over the training pictures that have it.
    """

    reader: RowReader
    classes: Mapping[str, tuple[str, ...]]
    units: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def columns(self) -> Columns:
        """The columns of a manifest that a model is measured on."""
        return self.reader.columns_of(DataOptions(data="-"))

    @property
    def spec(self) -> TargetSpec:
        """The columns, and what is known of them."""
        units = {name: list(unit) for name, unit in self.units.items()}
        classes = {name: list(names) for name, names in self.classes.items()}
        return TargetSpec(self.reader.columns, {"classes": classes, "units": units})

    @property
    def stratum_names(self) -> tuple[str, ...]:
        """The classes of the first column, and that there is none."""
        return (*(self.classes[self.reader.classes[0]] if self.reader.classes else ()), "")

    def find(self, label: str) -> list[float] | None:
        """Return the numbers of a text, ``None`` where a class is unknown, or it holds no row."""
        cells = _cells(label, len(self.reader.columns))
        if cells is None:
            return None
        values = [float("nan") if not cell else self._value(name, cell) for name, cell in
                  zip(self.reader.columns, cells, strict=True)]  # fmt: skip
        known = [value for value in values if value is not None]
        return known if len(known) == len(values) else None

    def _value(self, name: str, cell: str) -> float | None:
        if name not in self.classes:
            return number(cell)
        names = [unicodedata.normalize("NFC", known) for known in self.classes[name]]
        nfc = unicodedata.normalize("NFC", cell)
        return float(names.index(nfc)) if nfc in names else None

    def encode(self, labels: Iterable[str]) -> npt.NDArray[np.float32]:
        """Return the numbers ``(N, T)`` of texts.

        Raises:
            DataError: A class is unknown, or a text holds no row.
        """
        rows = []
        for label in labels:
            row = self.find(label)
            if row is None:
                raise DataError(
                    f"{label!r} is no row of {', '.join(self.reader.columns)} with known classes - correct it"
                )
            rows.append(row)
        return np.array(rows, dtype=np.float32).reshape(-1, len(self.reader.columns))

    def annotate(self, labels: Sequence[str], paths: Sequence[str]) -> Annotations | None:
        """Return that the numbers say all."""
        return None

    def identity(self, label: str) -> str:
        """Return the label."""
        return label

    def strata(self, labels: Iterable[str]) -> npt.NDArray[np.int64]:
        """Return the stratum ``(N,)`` of each text: its first class."""
        none = len(self.stratum_names) - 1
        if not self.reader.classes:
            return np.full(len(list(labels)), none, dtype=np.int64)
        first = self.encode(labels)[:, 0]
        return np.where(np.isnan(first), none, np.nan_to_num(first)).astype(np.int64)

    def counts(self, labels: Iterable[str]) -> list[int]:
        """Return the number of pictures of each stratum."""
        counts: list[int] = np.bincount(self.strata(labels), minlength=len(self.stratum_names)).tolist()
        return counts

    def fitted(self, labels: Iterable[str]) -> Self:
        """Return these answers with the units of the training pictures' numbers."""
        rows = self.encode(labels).astype(np.float64)[:, len(self.reader.classes) :]
        units = {}
        for name, column in zip(self.reader.numbers, rows.T, strict=True):
            known = column[~np.isnan(column)]
            deviation = float(known.std()) if len(known) else 0.0
            units[name] = (float(known.mean()) if len(known) else 0.0, deviation if deviation > 0 else 1.0)
        return replace(self, units=units)


def _cells(label: str, count: int) -> list[str] | None:
    """Return the cells that a text holds, ``None`` where it holds something else."""
    try:
        cells = json.loads(label)
    except ValueError:
        return None
    fits = isinstance(cells, list) and len(cells) == count and all(isinstance(cell, str) for cell in cells)
    return cells if fits else None
