"""Classes and pictures that are added to a solved probe, without the pictures that it was fitted on."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transferkit.core.errors import CheckpointError, ConfigError, TransferkitWarning, gather
from transferkit.core.text import listing
from transferkit.features.extract.table import FeatureTable
from transferkit.features.linear.statistics import RowStatistics
from transferkit.features.probe.probe import FittedProbe, add_rows
from transferkit.models.heads.solver import LabelledRows
from transferkit.options.features import ProbeConfig
from transferkit.options.fields import default_of, flag, make_config
from transferkit.runs.files import RunFiles
from transferkit.runs.seen import run_splits

__all__ = ["Base"]

SHARED = ("backbone", "weights", "image_size", "fit", "channels", "layer", "pool")
"""Options that make the features; those of the run hold."""

SAME = ("weights_sha256", "data_config", "layers")
"""Facts of features that have to be equal, so that rows of both can be fitted together."""


@dataclass(frozen=True)
class Base:
    """A run of ridge classification that pictures are added to.

    Attributes:
        run: Its directory.
        statistics: Of its training rows.
        facts: What its features were made with, and the strength of its fit.
        splits: Of its pictures, by content.
    """

    run: Path
    statistics: RowStatistics
    facts: Mapping[str, Any]
    splits: Mapping[str, str]

    @classmethod
    def of(cls, run: Path) -> Base:
        """Read a run. Raises `CheckpointError`."""
        statistics, facts = RowStatistics.read(run)
        return cls(run, statistics, facts, run_splits(run) or {})

    def config(self, config: ProbeConfig) -> ProbeConfig:
        """Return the options for what is added, whose features are made as those of the run were.

        Raises:
            ConfigError: An option says that they are to be made otherwise.
        """
        saved = RunFiles(self.run).config
        fields = {field.name: field for field in dataclasses.fields(ProbeConfig)}
        theirs = {name: saved.get(name, default_of(fields[name])) for name in SHARED}
        problems = [
            f"{flag(name)} is {getattr(config, name)!r}, and was {theirs[name]!r} in {self.run}"
            for name in SHARED
            if getattr(config, name) not in (default_of(fields[name]), theirs[name])
        ]
        if problems:
            raise ConfigError(f"{gather(problems)} - leave it out: features of one kind can be added to each other")
        values = {field: getattr(config, field) for field in fields}
        own = {"data": config.add, "classifier": "ridge", "add": None, "to": None}
        return make_config(ProbeConfig, {**values, **theirs, **own})

    def facts_of(self, table: FeatureTable) -> dict[str, Any]:
        """Return what `metrics.json` holds of the addition: the run, its pictures, and the classes that are new."""
        fresh = [name for name in table.class_names if name not in self.statistics.names]
        before = sum(split == "train" for split in self.splits.values())
        return {"added_to": str(self.run.absolute()), "pictures_before": before, "new_classes": fresh}

    def check(self, table: FeatureTable) -> None:
        """Refuse features that are not of the kind of the run's.

        Raises:
            CheckpointError: The weights, the preparation of pictures or the layer are others.
        """
        others = [name for name in SAME if table.facts[name] != self.facts.get(name)]
        if others:
            raise CheckpointError(
                f"{self.run}: its features were made with other {listing(others, quote=False)} than those of these "
                "pictures - put the weights file back, or run `transferkit probe` on all pictures"
            )

    def fit(self, rows: LabelledRows, table: FeatureTable) -> FittedProbe:
        """Return the classifier of the run's rows and these.

        Args:
            rows: Training rows, of the classes of `table`.
            table: Their pictures; one that the run was trained on already is not added again.

        Warns:
            TransferkitWarning: The run was trained on pictures that are added, or that are to be measured on.
        """
        twice = np.array([self.splits.get(record.sha256) == "train" for record in table.records], dtype=bool)
        if twice.any():
            message = f"{self.run} was trained on {twice.sum():,} of the {len(twice):,} pictures: not added again"
            warnings.warn(message, TransferkitWarning, stacklevel=2)
            rows = rows.take(np.flatnonzero(~np.tile(twice, len(rows) // len(twice))))
        return add_rows(self.statistics, rows, table.class_names, float(self.facts["strength"]))

    def warn_of_seen(self, table: FeatureTable) -> None:
        """Warn where the run was trained on pictures that are to be measured on."""
        held = [record for record in table.records if record.split != "train"]
        seen = sum(self.splits.get(record.sha256) == "train" for record in held)
        if seen:
            warnings.warn(
                f"{self.run} was trained on {seen:,} of these {len(held):,} val and test pictures, so their figures "
                "say little about new ones",
                TransferkitWarning,
                stacklevel=2,
            )
