"""The training pictures that candidates are compared on, cut into rungs and folds that are the same for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from transferkit.core.errors import DataError, gather
from transferkit.core.records import ImageRecord
from transferkit.core.targets import TargetSpec
from transferkit.data.augment.transform import eval_transform
from transferkit.data.augment.views import Views
from transferkit.data.batches.dataset import Picture
from transferkit.data.images.reading import CHECK_SIDE
from transferkit.data.index.index import ImageIndex, index_images, warn_of
from transferkit.data.pixels.store import read_pixels
from transferkit.features.engine.compute import Compute
from transferkit.features.engine.taps import Tap
from transferkit.features.extract.extraction import extract_pictures
from transferkit.features.probe.curves import nested_subsets
from transferkit.features.probe.selection import Folds
from transferkit.features.store.store import FeatureStore
from transferkit.machine.cores import available_cores
from transferkit.models.heads.solver import Array, LabelledRows, Solver
from transferkit.models.task import Task
from transferkit.options.advise import AdviseConfig
from transferkit.results.advise.candidates import Contender
from transferkit.results.advise.halving import rungs
from transferkit.results.advise.scoring import make_folds
from transferkit.training.head.features import units_of

__all__ = ["Rung", "TrainingPictures", "read_training_pictures"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Rung:
    """Some of the training pictures, within all of every later rung.

    Attributes:
        places: Their positions among the training pictures, ascending.
        folds: Of positions within `places`.
    """

    places: Array
    folds: Folds

    def __len__(self) -> int:
        """Return how many pictures there are."""
        return len(self.places)


@dataclass(frozen=True, eq=False)
class TrainingPictures:
    """The training split of a data set. Val and test are not looked at, so that figures on them stay clean.

    Attributes:
        index: Of the whole data set.
        task: Bound to what the answers mean.
        config: The options.
        y: ``(N, ...)`` targets.
        strata: ``(N,)``, by which rungs and folds are balanced.
        units: ``(N,)``, what stays together.
    """

    index: ImageIndex
    task: Task
    config: AdviseConfig
    y: Array
    strata: Array
    units: Array

    @property
    def spec(self) -> TargetSpec:
        """The meaning of the targets."""
        return self.index.targets.spec

    @cached_property
    def records(self) -> tuple[ImageRecord, ...]:
        """The pictures."""
        return self.index.split("train")

    def __len__(self) -> int:
        """Return N."""
        return len(self.y)

    @cached_property
    def rungs(self) -> list[Rung]:
        """The ladder, from few pictures to all that count. Raises `DataError`, see `make_folds`."""
        config, total = self.config, len(self)
        most = total if config.pictures is None else min(total, config.pictures)
        sizes = rungs(most, len(np.unique(self.strata)), halving=config.halving)
        return [self._rung(places) for places in self._subsets([size / total for size in sizes])]

    def part(self, most: int) -> Rung:
        """Return a rung of about so many pictures, or all."""
        return self._rung(self._subsets([min(1.0, most / len(self))])[0])

    def features(
        self,
        contender: Contender,
        taps: Sequence[Tap],
        places: Array,
        compute: Compute,
        progress: Progress | None = None,
    ) -> list[Array]:
        """Return the features ``(n, D) float32`` of some pictures at each tap, through the store.

        Raises:
            DataError: A picture is gone, or has changed since it was indexed.
            StoreError: A feature is not finite.
            TrainingError: Memory ran out.
        """
        pictures = [Picture(self.records[at].path, self.records[at].sha256) for at in places]
        rows = self.features_of(contender, pictures, taps, compute, progress)
        bad = np.flatnonzero(~np.isfinite(rows[0]).all(axis=1))
        if len(bad):  # they were read when the data were indexed
            raise DataError(f"{pictures[bad[0]].name}: cannot be read any more - run again")
        return rows

    def features_of(
        self,
        contender: Contender,
        pictures: Sequence[Picture],
        taps: Sequence[Tap],
        compute: Compute,
        progress: Progress | None = None,
    ) -> list[Array]:
        """Return what `features` does, of any pictures; rows of those that cannot be decoded are NaN."""
        extraction = extract_pictures(
            pictures, contender.frozen, taps, Views(eval_transform(contender.prepared), seed=self.config.seed),
            FeatureStore(self.config.store), compute, progress=progress, pixels=read_pixels(contender.prepared),
        )  # fmt: skip
        return [extraction.rows[tap][0] for tap in taps]

    def _subsets(self, shares: Sequence[float]) -> list[Array]:
        rows = LabelledRows(np.zeros((len(self), 1)), self.strata, int(self.strata.max()) + 1, self.units)
        return nested_subsets(rows, shares, seed=self.config.seed)

    def _rung(self, places: Array) -> Rung:
        config = self.config
        return Rung(places, make_folds(self.strata[places], self.units[places], folds=config.folds, seed=config.seed))


def read_training_pictures(config: AdviseConfig, task: Task, progress: Progress | None = None) -> TrainingPictures:
    """Read and check a data set as `finetune` does.

    Args:
        config: The options.
        task: Of the data set; with a solver.
        progress: Called with files read and files in all.

    Raises:
        DataError: Everything that is wrong with the data set, or that there is nothing to compare backbones by.
    """
    index = warn_of(
        index_images(
            config,
            reader=task.targets,
            min_side=CHECK_SIDE,
            decoding=config.decoding(),
            workers=available_cores(),
            progress=progress,
        )
    )  # fmt: skip
    records = index.split("train")
    task = task.of(index.targets.spec)
    labels = [record.label for record in records]
    y = index.targets.encode(labels)
    solver: Solver = task.require("solver", "advise")
    if problems := solver.problems(y):
        raise DataError(f"{config.data}: the training split holds {gather(problems)}")
    units: Any = np.unique(units_of(records), return_inverse=True)[1]
    return TrainingPictures(index, task, config, y, index.targets.strata(labels), units)
