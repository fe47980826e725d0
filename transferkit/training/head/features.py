"""Cached features of a split: the rows that a head is fitted or trained on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from transferkit.core.errors import DataError
from transferkit.data.batches.datamodule import ImageData
from transferkit.data.batches.dataset import Picture
from transferkit.features.engine.compute import Compute, FrozenBackbone
from transferkit.features.engine.taps import find_taps
from transferkit.features.extract.extract import make_views, table_of
from transferkit.features.extract.extraction import extract_pictures
from transferkit.features.extract.table import FeatureTable
from transferkit.features.store.store import FeatureStore
from transferkit.models.module import TransferModule
from transferkit.models.solver import LabelledRows

__all__ = ["SplitFeatures", "row_groups", "training_rows"]


class SplitFeatures:
    """The features of the splits of a data set, from the store as far as they are there.

    Args:
        module: Its backbone computes them; it must not change meanwhile.
        data: The pictures; those that are in memory already are not decoded again.
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
        self._frozen = FrozenBackbone(module.backbone)

    def table(self, split: str, *, views: int = 0, progress: Callable[[int, int], None] | None = None) -> FeatureTable:
        """Return the features of a split's pictures.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.
            views: Augmented views besides the evaluation view.
            progress: Called with pictures computed and pictures to compute.

        Raises:
            DataError: A picture has changed since it was indexed.
        """
        index = self.data.index
        pictures = [Picture(record.path, record.sha256, index.pixels.get(record.sha256))
                    for record in index.split(split)]  # fmt: skip
        extraction = extract_pictures(
            pictures, self._frozen, find_taps(self.module.backbone),
            make_views(self.module.data_config, views, self.data.augment, self.seed, flip=self.data.flip), self.store,
            self.compute, progress=progress,
        )  # fmt: skip
        if extraction.failures:  # they were read when the data were indexed
            at, reason = next(iter(extraction.failures.items()))
            raise DataError(f"{pictures[at].name}: cannot be read any more ({reason}) - run again")
        self.computed += extraction.computed
        self.precision = extraction.precision.precision
        return table_of(index, pictures, extraction, {}, splits=(split,))


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
    """Return the group of each row, which stays in one fold: the user's, copies of one picture, or both together."""
    return [record.unit or record.group or record.content for record in table.records]
