"""Own augmentations are tried on a few training pictures before anything is trained on what they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from transferkit.core.errors import ConfigError
from transferkit.core.records import ImageRecord
from transferkit.data.augment.views import Views
from transferkit.data.batches.datamodule import ImageData
from transferkit.data.batches.dataset import Job

__all__ = ["try_augmentation"]

VIEWS = 6
"""Of each picture; every step happens in each, of one out of several steps one."""

EPOCH = 1 << 20
"""That the views are of: one that is not shown as in evaluation."""


def try_augmentation(data: ImageData) -> None:
    """Show the smallest, the largest, the longest and some other training pictures by own steps; nothing of presets.

    Args:
        data: Prepared for the model.

    Raises:
        ConfigError: A step cannot be done, gives no picture of 8 bits and three channels, or another one by the same
            seed.
        DataError: A picture cannot be read any more.
    """
    if isinstance(data.augment, str):
        return
    records, dataset = data.index.split("train"), data.dataset("train", train=True)
    views = dataset.views
    if not isinstance(views, Views) or views.augmented is None:
        return
    dataset.views = replace(views, augmented=views.augmented.certain())
    shown = [
        dataset.batch([Job(at, tuple(range(EPOCH, EPOCH + VIEWS))) for at in _chosen(data, records)]).images
        for _ in range(2)
    ]
    dataset.close()
    if not shown[0].equal(shown[1]):
        raise ConfigError("--augment has a step that draws by itself: another picture by the same seed - leave it out")


def _chosen(data: ImageData, records: Sequence[ImageRecord]) -> list[int]:
    """Return positions of pictures that are extreme in some way, and of a few that are not."""
    sizes = [data.index.sizes.get(record.sha256, (1, 1)) for record in records]
    rows = range(len(records))
    extreme = {
        min(rows, key=lambda at: min(sizes[at])), max(rows, key=lambda at: min(sizes[at])),
        max(rows, key=lambda at: max(sizes[at]) / min(sizes[at])),
    }  # fmt: skip
    return sorted(extreme | set(rows[:: max(1, len(records) // 4)][:4]))
