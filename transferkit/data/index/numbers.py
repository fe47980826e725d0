"""Numbers per picture: read, checked, and measured on the training pictures for the unit that a model works in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import ConfigError, DataError
from transferkit.core.records import DataConfig, Finding, ImageRecord
from transferkit.core.targets import TargetSpec
from transferkit.core.text import listing
from transferkit.data.index.targets import TARGET, PicturesRead, Targets, refuse_columns
from transferkit.data.masks.annotation import Annotations
from transferkit.data.scan.columns import JOINT, Columns, number, number_columns
from transferkit.data.scan.records import Kind, Scan, ScannedFile
from transferkit.options.data import DataOptions

__all__ = ["NumberReader", "NumberTargets"]

FAR = 6.0
"""Median absolute deviations from the median, times 1.4826, beyond which a number is worth a look."""

OTHERS = ("path", "error", "unlike_training")
"""Columns of predictions that are no target's."""
GRADES = 20
"""Different whole numbers up to which answers may be grades."""


@dataclass(frozen=True)
class NumberReader:
    """Answers are one or several numbers; of class folders, the folders' names."""

    unusable: ClassVar[Mapping[str, str]] = {}
    tiles: ClassVar[bool] = False

    def columns_of(self, options: DataOptions) -> Columns:
        """Return the columns that the options name, else ``target``."""
        refuse_columns(options, "numbers", targets=True, lists=False)
        columns = number_columns([options.target_names or (options.label_column or TARGET,)])
        return replace(columns, path=options.path_column, root=options.root)

    def look(self, pictures: PicturesRead) -> Self:
        """Return this reader: there are no files of answers."""
        return self

    def of(self, spec: TargetSpec) -> NumberTargets:
        """Return the numbers of a model."""
        return NumberTargets(spec)

    def learn(self, scan: Scan) -> NumberTargets:
        """Return the numbers of a data set: the names of their columns."""
        return NumberTargets(TargetSpec(scan.answers or (TARGET,)))

    def problems(self, scan: Scan, files: Sequence[ScannedFile], options: DataOptions) -> list[Finding]:
        """Return what is wrong with the numbers: no numbers, a constant."""
        targets = self.learn(scan)
        strange = sorted({file.label for file in files if targets.find(file.label) is None})
        if strange:
            message = f"answers that are no numbers: {listing(strange)} - correct them, or train classes"
            return [Finding(Kind.LAYOUT, message, tuple(strange))]
        trained = [file.label for file in files if file.trains]
        if not trained:
            return [Finding(Kind.EMPTY, "there is no picture to train on")]
        names = targets.spec.names
        taken = {*OTHERS, *(f"{name}{end}" for name in names for end in ("_low", "_high"))}
        if clash := [name for name in names if name in taken]:
            message = (
                f"targets called as other columns of predictions: {listing(clash)} - rename them in the table; a "
                f"target NAME has NAME, NAME_low and NAME_high, besides {listing(OTHERS, quote=False)}"
            )
            return [Finding(Kind.LAYOUT, message, tuple(clash))]
        rows = targets.encode(trained)
        same = [f"{name} ({rows[0, at]:g})" for at, name in enumerate(targets.spec.names) if np.ptp(rows[:, at]) == 0]
        if same:
            message = (
                f"targets that are the same for all training pictures: {listing(same, quote=False)} - leave them out"
            )
            return [Finding(Kind.ONE_CLASS, message, tuple(same))]
        return []

    def thin(self, targets: Targets, records: Sequence[ImageRecord], options: DataOptions) -> list[Finding]:
        """Return pictures whose numbers lie far from all others, and targets that look like classes."""
        rows = targets.encode(record.label for record in records)
        findings = []
        for at, name in enumerate(targets.spec.names):
            values = rows[:, at].astype(np.float64)
            middle = np.median(values)
            width = 1.4826 * np.median(np.abs(values - middle))
            far = [place for place, value in enumerate(values) if 0 < FAR * width < abs(value - middle)]
            if far:
                items = tuple(f"{records[place].path} ({values[place]:g})" for place in far)
                message = (
                    f"{len(far)} pictures whose {name!r} lies far from the others (median {middle:g}): "
                    f"{listing(items, limit=5, quote=False)}"
                )
                findings.append(Finding(Kind.NOTE, message, items))
        return findings

    def mixer(self, spec: TargetSpec, mixup: float, cutmix: float) -> Callable[..., Any] | None:
        """Return what blends pictures, and their numbers by the same shares.

        Raises:
            ConfigError: Parts of pictures are to be pasted.
        """
        from transferkit.data.augment.mixing import Mixer  # torchvision, which `check` does without

        if cutmix:
            raise ConfigError("--cutmix pastes parts of pictures, and a part has no number of its own - pass --mixup")
        return Mixer(len(spec.names), mixup, cutmix)

    def framing(self, config: DataConfig) -> DataConfig:
        """Return the backbone's own way."""
        return config


@dataclass(frozen=True)
class NumberTargets:
    """Texts that write numbers.

    Attributes:
        spec: Names, and of a model the ``mean`` and ``scale`` (standard deviation) of its training pictures, and
            whether they were ``grades``: whole numbers, few different ones.
    """

    spec: TargetSpec
    stratum_names: tuple[str, ...] = ("pictures",)

    @property
    def columns(self) -> Columns:
        """The columns of these names; of one number also ``target``."""
        names = self.spec.names
        return number_columns([names, *([(TARGET,)] if len(names) == 1 else [])])

    def find(self, label: str) -> list[float] | None:
        """Return the numbers of a text, or ``None`` where they are others in number, or none."""
        values = [number(part) for part in label.split(JOINT)]
        known = [value for value in values if value is not None]
        return known if len(known) == len(values) == len(self.spec.names) else None

    def encode(self, labels: Iterable[str]) -> npt.NDArray[np.float32]:
        """Return the numbers ``(N, T)`` of texts, in their own units.

        Raises:
            DataError: A text writes none.
        """
        rows = []
        for label in labels:
            values = self.find(label)
            if values is None:
                raise DataError(f"{label!r} is not {len(self.spec.names)} numbers, one for each target - correct it")
            rows.append(values)
        return np.array(rows, dtype=np.float32).reshape(-1, len(self.spec.names))

    def annotate(self, labels: Sequence[str], paths: Sequence[str]) -> Annotations | None:
        """Return that numbers say all."""
        return None

    def identity(self, label: str) -> str:
        """Return the label."""
        return label

    def strata(self, labels: Iterable[str]) -> npt.NDArray[np.int64]:
        """Return the only stratum ``(N,)``."""
        return np.zeros(len(list(labels)), dtype=np.int64)

    def counts(self, labels: Iterable[str]) -> list[int]:
        """Return the number of pictures."""
        return [len(list(labels))]

    def fitted(self, labels: Iterable[str]) -> Self:
        """Return the numbers with mean and standard deviation of those of the training pictures."""
        rows = self.encode(labels).astype(np.float64)
        scale = np.where(rows.std(axis=0) > 0, rows.std(axis=0), 1.0)
        grades = [bool((column == column.round()).all() and len(np.unique(column)) <= GRADES) for column in rows.T]
        ranges = np.stack([rows.min(axis=0), rows.max(axis=0)], axis=1).tolist()
        facts = {"mean": rows.mean(axis=0).tolist(), "scale": scale.tolist(), "grades": grades, "range": ranges}
        return replace(self, spec=TargetSpec(self.spec.names, {**self.spec.facts, **facts}))
