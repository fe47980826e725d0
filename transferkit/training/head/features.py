"""Cached features of a split: the rows that a head is fitted or trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch

from transferkit.core.errors import DataError
from transferkit.core.records import ImageRecord
from transferkit.data.augment.views import Views
from transferkit.data.batches.datamodule import ImageData
from transferkit.data.batches.dataset import Picture
from transferkit.features.engine.compute import Compute, FrozenBackbone
from transferkit.features.engine.taps import POOLED, Tap, find_taps
from transferkit.features.extract.extract import make_views, table_of
from transferkit.features.extract.extraction import Extraction, extract_pictures
from transferkit.features.extract.table import FeatureTable
from transferkit.features.store.store import FeatureStore
from transferkit.models.heads.solver import Array, LabelledRows, ProbeOptions
from transferkit.models.module import TransferModule
from transferkit.models.tuning.adapters import without_adapter

__all__ = ["HeadRows", "PooledRows", "Progress", "SplitFeatures", "row_groups", "training_rows", "units_of"]

Progress: TypeAlias = Callable[[int, int], None]


class SplitFeatures:
    """The features of the splits of a data set, from the store as far as they are there.

    Args:
        module: Its backbone computes them, without an adapter that is on it; it must not change meanwhile.
        data: The pictures; those that are kept decoded are not decoded again.
        store: Where features are stored.
        compute: What to compute them with.
        seed: Of the augmented views.

    Attributes:
        computed: Pictures that were not in the store.
        precision: ``"32"`` or ``"bf16"``, of the last split.
    """

    def __init__(
        self, module: TransferModule, data: ImageData, store: FeatureStore, compute: Compute, *, seed: int = 0
    ) -> None:
        self.module, self.data, self.store, self.compute, self.seed = module, data, store, compute, seed
        self.computed = 0
        self.precision = ""
        self._frozen = FrozenBackbone(without_adapter(module.backbone))

    def table(self, split: str, *, views: int = 0, progress: Progress | None = None) -> FeatureTable:
        """Return the features of a split's pictures.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.
            views: Augmented views besides the evaluation view.
            progress: Called with pictures computed and pictures to compute.

        Raises:
            DataError: A picture has changed since it was indexed.
        """
        index = self.data.index
        pictures = self.pictures(index.split(split))
        extraction = self.extract(pictures, find_taps(self._frozen.backbone), views=views, progress=progress)
        return table_of(index, pictures, extraction, {}, splits=(split,))

    def extract(
        self, pictures: Sequence[Picture], taps: Sequence[Tap], *, views: int = 0, progress: Progress | None = None
    ) -> Extraction:
        """Return the features of some pictures, or windows of them, at some taps. Raises as `table`."""
        extraction = extract_pictures(
            pictures, self._frozen, taps, self.views(views), self.store, self.compute, progress=progress,
            pixels=self.data.pixels,
        )  # fmt: skip
        if extraction.failures:  # they were read when the data were indexed
            at, reason = next(iter(extraction.failures.items()))
            raise DataError(f"{pictures[at].name}: cannot be read any more ({reason}) - run again")
        self.computed += extraction.computed
        self.precision = extraction.precision.precision
        return extraction

    def views(self, count: int) -> Views:
        """Return how pictures are shown: as in evaluation, and augmented `count` times."""
        return make_views(
            self.module.data_config, count, self.data.augment, self.seed, flip=self.data.flip, whole=self.data.whole
        )

    def pictures(self, records: Sequence[ImageRecord]) -> list[Picture]:
        """Return the pictures of records."""
        return [Picture(record.path, record.sha256) for record in records]


class HeadRows(Protocol):
    """What a linear head is fitted on, and how it is measured; that depends on what the head is given."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What is told of it, as JSON values: ``pictures`` and ``views``, how many were used."""

    @property
    def X(self) -> Array:
        """Features ``(N, D)`` of the training pictures as they are, in evaluation."""

    @property
    def y(self) -> Array:
        """Their targets ``(N, ...)``."""

    @property
    def options(self) -> ProbeOptions:
        """How a head is fitted."""

    def rows(self) -> LabelledRows:
        """Return what a head is fitted on."""

    def train_figures(self, outputs: Array) -> dict[str, float]:
        """Return figures such as ``train_acc``, of the head's outputs for `X`."""

    def val_figures(self, outputs_of: Callable[[Array], Array]) -> dict[str, float | None]:
        """Return figures such as ``val_acc``, of the head that the model has by now; ``None`` without val pictures.

        Args:
            outputs_of: Returns that head's outputs ``(N, width)`` for features ``(N, D)``.
        """

    def val_losses(self, outputs_of: Callable[[Array], Array]) -> torch.Tensor | None:
        """Return the loss of each val picture under that head, ``(N,) float64``, see `picture_losses`.

        ``None`` without val pictures, and where outputs are not kept.
        """


class PooledRows:
    """The features of pictures, one row per view; see `HeadRows`.

    Args:
        features: Give them.
        views: Augmented views to fit on besides.
        progress: Called with pictures computed and pictures to compute.

    Raises:
        DataError: A picture has changed since it was indexed.
    """

    def __init__(self, features: SplitFeatures, *, views: int = 0, progress: Progress | None = None) -> None:
        self._task = features.module.task
        self._views = views = different_views(features.data, views)
        self._train = features.table("train", views=views, progress=progress)
        self._val = features.table("val", progress=progress)

    @property
    def facts(self) -> Mapping[str, Any]:
        """How many pictures and views there are."""
        return {"pictures": len(self._train) + len(self._val), "views": self._views}

    @property
    def X(self) -> Array:
        """Features ``(N, D)`` of the training pictures."""
        return self._train.X

    @property
    def y(self) -> Array:
        """Their targets."""
        return self._train.y

    @property
    def options(self) -> ProbeOptions:
        """The usual ones."""
        return ProbeOptions()

    def rows(self) -> LabelledRows:
        """Return what a head is fitted on: every view, see `training_rows`."""
        return training_rows(self._train, POOLED, "sample")

    def train_figures(self, outputs: Array) -> dict[str, float]:
        """Return the figures that a running epoch has."""
        names = self._task.objective.running or ("loss",)
        values = self._task.plain_figures(list(names), torch.from_numpy(outputs), torch.from_numpy(self.y))
        return {f"train_{name}": value for name, value in values.items()}

    def val_figures(self, outputs_of: Callable[[Array], Array]) -> dict[str, float | None]:
        """Return these figures and the one that is watched first."""
        objective = self._task.objective
        names = list(dict.fromkeys((*objective.running, *objective.watched[:1], "loss")))
        if not len(self._val):
            return {f"val_{name}": None for name in names}
        outputs, targets = torch.from_numpy(outputs_of(self._val.X)), torch.from_numpy(self._val.y)
        values = self._task.plain_figures(names, outputs, targets)
        return {f"val_{name}": value for name, value in values.items()}

    def val_losses(self, outputs_of: Callable[[Array], Array]) -> torch.Tensor | None:
        """Return them, of outputs for the cached features."""
        if not len(self._val):
            return None
        return self._task.picture_losses(torch.from_numpy(outputs_of(self._val.X)), torch.from_numpy(self._val.y))


def different_views(data: ImageData, views: int) -> int:
    """Return how many augmented views of a picture say something new: none where nothing is augmented."""
    return 0 if data.augment == "none" else views


def training_rows(train: FeatureTable, layer: str, use_views: str) -> LabelledRows:
    """Return the rows that a probe is fitted on.

    Args:
        train: The training split.
        layer: The layer of the features.
        use_views: The use of augmented views. ``"sample"``: every view is a row, and a picture's rows together weigh as
            much as one; that is the mean of drawing a view at random. ``"average"``: a picture's views are averaged
            into one row.
    """
    plain, groups, classes = train.layers[layer], row_groups(train), len(train.class_names)
    if layer not in train.views:
        return LabelledRows(plain, train.y, classes, groups)
    views = np.concatenate((plain[None], train.views[layer]))
    count = len(views)
    if use_views == "average":
        return LabelledRows(views.mean(axis=0, dtype=np.float64).astype(np.float32), train.y, classes, groups)
    weight = np.full(count * len(plain), 1.0 / count)
    return LabelledRows(
        views.reshape(-1, views.shape[2]), np.concatenate([train.y] * count), classes, groups * count, weight
    )


def row_groups(table: FeatureTable) -> list[str]:
    """Return the group of each row, see `units_of`."""
    return units_of(table.records)


def units_of(records: Iterable[ImageRecord]) -> list[str]:
    """Return the group of each picture, which stays in one fold: the user's, copies of one picture, or both."""
    return [record.unit or record.group or record.content for record in records]
