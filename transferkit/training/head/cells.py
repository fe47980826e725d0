"""Cells of maps: the rows that a linear head of masks is fitted on, a cell and a class of its pixels each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import ConfigError, DataError
from transferkit.core.records import ImageRecord
from transferkit.core.targets import IGNORED
from transferkit.data.images.annotation import Annotations, Mask
from transferkit.data.images.resize import fit_mask
from transferkit.features.engine.taps import LAST_CELLS, places
from transferkit.features.linear.logistic import softmax
from transferkit.features.probe.curves import nested_subsets
from transferkit.features.probe.selection import score
from transferkit.machine.cores import available_cores
from transferkit.models.feed import Feed, dry_run
from transferkit.models.freezing import evaluation_mode
from transferkit.models.solver import Array, LabelledRows
from transferkit.runs.measure import running_figures
from transferkit.training.head.features import Progress, SplitFeatures, units_of

__all__ = ["MOST_CELLS", "CellRows", "cell_rows", "cells_of_pixels", "pixels_by_class"]

MOST_CELLS: Final = 100_000
"""Cells that a head is fitted on, at most; of more pictures than have so many, a part is drawn."""

NO_VIEWS: Final = (
    "--probe-views adds views to one answer per picture, and a head of masks is solved on pictures as they are - leave "
    "it out, or train the head by steps: --probe sgd"
)

Counts = npt.NDArray[np.int64]


class CellRows:
    """The cells of the training pictures with the classes of their pixels; see `HeadRows`.

    Args:
        features: Give the vectors of cells.
        views: Augmented views to fit on besides: there are none.
        progress: Called with pictures computed and pictures to compute.

    Raises:
        ConfigError: There are to be views.
        DataError: No pixel counts; or a picture or a mask has changed since it was indexed.
    """

    def __init__(self, features: SplitFeatures, *, views: int = 0, progress: Progress | None = None) -> None:
        if views:
            raise ConfigError(NO_VIEWS)
        self._features = features
        module, data = features.module, features.data
        grid = _size_of_map(features)
        chosen = places(*grid).numpy()
        everything = data.index.split("train")
        records = _drawn(everything, features, most=max(1, MOST_CELLS // len(chosen)))
        vectors = features.extract(records, (LAST_CELLS,), progress=progress).rows[LAST_CELLS][0]
        cells = cells_of_pixels(data.data_config.image_size, grid, chosen)
        pixels = _pixels(records, features, lambda mask: pixels_by_class(mask, cells, len(chosen), module.num_classes))
        self._rows = cell_rows(vectors.reshape(*pixels.shape[:2], -1), pixels, units_of(records))
        if not len(self._rows):
            raise DataError(f"the training masks hold no pixel that counts, all are {IGNORED} - give them classes")
        self._facts = {
            "pictures": len(records) + len(data.index.split("val")),
            "fitted_on": f"{np.count_nonzero(pixels.sum(axis=2)):,} cells of {len(records):,} training pictures"
            + (f", drawn of {len(everything):,}" if len(records) < len(everything) else ""),
        }

    @property
    def facts(self) -> Mapping[str, Any]:
        """How many pictures were used, and the cells of the fit, in words."""
        return self._facts

    @property
    def X(self) -> Array:
        """The vectors ``(R, D)`` of the rows."""
        return self._rows.X

    @property
    def y(self) -> Array:
        """The classes ``(R,)`` of the rows."""
        return self._rows.y

    def rows(self) -> LabelledRows:
        """Return what a head is fitted on."""
        return self._rows

    def train_figures(self, outputs: Array) -> dict[str, float]:
        """Return figures of the cells, as if each of a cell's pixels had its logits ``(R, C)``: nothing is enlarged."""
        acc, nll = score(softmax(outputs.astype(np.float64)), self._rows.y, np.asarray(self._rows.weight))
        return {"train_pixel_acc": acc, "train_loss": nll}

    def val_figures(self, outputs_of: Callable[[Array], Array]) -> dict[str, float | None]:
        """Return figures of the network on the canvas, whose head is the solved one by now."""
        features = self._features
        objective = features.module.task.objective
        names = list(dict.fromkeys((*objective.running, *objective.watched, "loss")))
        if not features.data.index.split("val"):
            return {f"val_{name}": None for name in names}
        values = running_figures(
            features.module, features.data.evaluation_loader("val"), names, device=features.compute.device
        )
        return {f"val_{name}": values[name] for name in names}


def cell_rows(vectors: Array, pixels: Counts, units: Sequence[str]) -> LabelledRows:
    """Return a row for each cell and each class that its pixels have.

    A row weighs what these pixels are of all of the picture's that count, in these cells: a picture weighs 1, and the
    weighted loss is the mean over pictures of the mean over their pixels, each with the logits of its cell.

    Args:
        vectors: ``(N, K, D)`` of the cells of N pictures.
        pixels: ``(N, K, C)``, of each class in each cell; where there are none the cell is left out.
        units: ``(N,)``, what keeps pictures together in one fold.
    """
    picture, cell, label = np.nonzero(pixels)
    totals = pixels.sum(axis=(1, 2))
    weight = pixels[picture, cell, label] / totals[picture]
    numbers = np.unique(np.asarray(units, dtype=object).astype(str), return_inverse=True)[1]
    return LabelledRows(vectors[picture, cell], label, pixels.shape[2], numbers[picture], weight)


def cells_of_pixels(canvas: tuple[int, int], grid: tuple[int, int], chosen: Array) -> Counts:
    """Return which of K chosen cells each pixel of the canvas lies in, ``(H, W)``; K where it lies in none of them.

    A map lies on the canvas as `torch.nn.functional.interpolate` enlarges it, with ``align_corners=False``: its
    places share the sides evenly. A pixel is where its middle is.

    Args:
        canvas: Height and width in pixels.
        grid: Height and width of the map.
        chosen: ``(K,)`` places of the map, counted row by row.
    """
    rows, columns = ((2 * np.arange(side) + 1) * count // (2 * side) for side, count in zip(canvas, grid, strict=True))
    slots = np.full(grid[0] * grid[1], len(chosen), dtype=np.int64)
    slots[chosen] = np.arange(len(chosen))
    cells: Counts = slots[rows[:, None] * grid[1] + columns]
    return cells


def pixels_by_class(mask: Mask, cells: Counts, count: int, width: int) -> Counts:
    """Return the pixels of each class in each cell, ``(count, width)``.

    Args:
        mask: ``(H, W)`` classes on the canvas, `IGNORED` where no pixel counts.
        cells: ``(H, W)``, see `cells_of_pixels`.
        count: Number of the cells.
        width: Number of the classes.
    """
    counts = (mask != IGNORED) & (cells < count)
    numbers = np.bincount(cells[counts] * width + mask[counts], minlength=count * width)
    return numbers.reshape(count, width)


def _size_of_map(features: SplitFeatures) -> tuple[int, int]:
    """Return height and width of the last map."""
    with evaluation_mode(features.module.backbone):
        last = dry_run(features.module.backbone, Feed.LAST_MAP)[1]
    return last.shape[2], last.shape[3]


def _drawn(records: Sequence[ImageRecord], features: SplitFeatures, *, most: int) -> Sequence[ImageRecord]:
    """Return all pictures or, where they are more than `most`, about so many: of each stratum its share."""
    if len(records) <= most:
        return records
    targets = features.data.index.targets
    strata, units = targets.strata(record.label for record in records), units_of(records)
    rows = LabelledRows(np.zeros((len(records), 0)), strata, len(targets.stratum_names), units)
    (drawn,) = nested_subsets(rows, [most / len(records)], seed=features.seed)
    return [records[at] for at in drawn]


def _pixels(records: Sequence[ImageRecord], features: SplitFeatures, count: Callable[[Mask], Counts]) -> Counts:
    """Return the pixels by cell and class of each picture's mask on the canvas, ``(N, K, C)``."""
    config = features.data.data_config
    targets = features.data.index.targets
    annotations: Annotations | None = targets.annotate(
        [record.label for record in records], [record.path for record in records]
    )
    if annotations is None:
        raise TypeError("a head on maps is solved of answers on pixels, and these targets have none")
    read = annotations.read

    def of(row: int) -> Counts:
        mask = read(row).mask
        if mask is None:
            raise TypeError("an annotation without a mask has no pixels")
        return count(fit_mask(mask, config))

    with ThreadPoolExecutor(available_cores(), thread_name_prefix="mask") as pool:
        return np.stack(list(pool.map(of, range(len(records)))))
