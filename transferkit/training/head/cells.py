"""Cells of maps: the rows that a linear head of masks is fitted on, a cell and a class of its pixels each."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from transferkit.core.errors import DataError, TransferkitWarning
from transferkit.core.targets import IGNORED
from transferkit.core.text import listing
from transferkit.data.batches.datamodule import ImageData
from transferkit.data.batches.dataset import ImageDataset, Job, Picture
from transferkit.data.batches.windows import WindowPictures
from transferkit.data.images.reading import in_order
from transferkit.data.images.resize import fit_mask
from transferkit.data.masks.annotation import Annotations, Mask
from transferkit.features.engine.taps import Tap, cell_maps, places
from transferkit.features.linear.logistic import softmax
from transferkit.features.probe.curves import nested_subsets
from transferkit.features.probe.selection import score
from transferkit.machine.cores import available_cores
from transferkit.models.freezing import evaluation_mode
from transferkit.models.heads.solver import Array, LabelledRows, ProbeOptions
from transferkit.models.module import TransferModule
from transferkit.runs.measure import running_figures
from transferkit.training.head.features import Progress, SplitFeatures, different_views, units_of

__all__ = ["MOST_CELLS", "CellRows", "Sample", "cell_rows", "cells_of_pixels", "pixels_by_class", "sample_of"]

MOST_CELLS: Final = 100_000
"""Cells that a head is fitted on, at most; of more pictures than have so many, a part is drawn."""

MOST_NUMBERS: Final = 2**26
"""Numbers that their vectors hold, at most."""

FOLDS: Final = 3
"""Of the cross-validation."""

MASKS_AT_ONCE: Final = 64
"""Pictures whose masks are shown together."""

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Sample:
    """What of a training split a head on maps is fitted on.

    Attributes:
        grid: Height and width of a map.
        chosen: ``(K,)`` places of it, counted row by row.
        pictures: As many as there are, or as `MOST_CELLS` leaves room for; or windows of them.
        views: Augmented views besides.
    """

    grid: tuple[int, int]
    chosen: Array
    pictures: int
    views: int


def sample_of(module: TransferModule, data: ImageData, tap: Tap, views: int) -> Sample:
    """Return what a head is fitted on: pictures first, as other pictures say more than other views.

    Args:
        module: Its backbone gives the maps.
        data: The pictures.
        tap: Of which maps the cells are.
        views: Augmented views that are wished for.
    """
    with evaluation_mode(module.backbone), torch.no_grad():
        blank = torch.zeros(1, *module.data_config.input_shape, device=next(module.backbone.parameters()).device)
        maps = cell_maps(module.backbone, tap, blank)
    grid = maps[0].shape[2], maps[0].shape[3]
    chosen = places(*grid).numpy()
    allowed = min(MOST_CELLS, MOST_NUMBERS // sum(level.shape[1] for level in maps))
    most = max(1, allowed // len(chosen))
    pictures = min(data.rows("train"), most)
    return Sample(grid, chosen, pictures, max(0, min(different_views(data, views), most // max(1, pictures) - 1)))


class CellRows:
    """The cells of the training pictures with the classes of their pixels; see `HeadRows`.

    Args:
        features: Give the vectors of cells.
        tap: Of which maps the cells are.
        views: Augmented views to fit on besides; fewer where `MOST_CELLS` leaves no room, see `sample_of`.
        progress: Called with pictures computed and pictures to compute.

    Raises:
        DataError: No pixel counts; or a picture or a mask has changed since it was indexed.
    """

    def __init__(self, features: SplitFeatures, tap: Tap, *, views: int = 0, progress: Progress | None = None) -> None:
        self._features = features
        module, data = features.module, features.data
        sample = sample_of(module, data, tap, views)
        chosen, views, everything = sample.chosen, sample.views, _Rows(features)
        rows_at = everything.drawn(sample.pictures)
        pictures, units = everything.pictures(rows_at), everything.units(rows_at)
        vectors = features.extract(pictures, (tap,), views=views, progress=progress).rows[tap]
        cells = cells_of_pixels(data.data_config.image_size, sample.grid, chosen)
        count = partial(pixels_by_class, cells=cells, count=len(chosen), width=module.num_classes)
        masks = _masks(pictures, everything.annotations(rows_at), features, views)
        pixels = np.stack([[count(mask) for mask in shown] for shown in masks], axis=1)
        # Of view 0 first, so that its rows are the first ones.
        rows = cell_rows(
            vectors.reshape(-1, len(chosen), vectors.shape[2] // len(chosen)),
            pixels.reshape(-1, *pixels.shape[2:]),
            units * (1 + views),
        )
        self._rows = replace(rows, weight=np.asarray(rows.weight) / (1 + views))
        self._plain = self._rows.take(np.arange(int(np.count_nonzero(pixels[0]))))
        if not len(self._plain):
            raise DataError(f"the training masks hold no pixel that counts, all are {IGNORED} - give them classes")
        _warn_of_unseen(features, pixels.sum(axis=(0, 1, 2)))
        noun = "windows of training pictures" if data.data_config.tiled else "training pictures"
        self._facts = {
            "pictures": len(pictures) + data.rows("val"),
            "views": views,
            "fitted_on": f"{np.count_nonzero(pixels.sum(axis=3)):,} cells of {len(pictures):,} {noun}"
            + (f", drawn of {len(everything):,}" if len(pictures) < len(everything) else ""),
        }

    @property
    def facts(self) -> Mapping[str, Any]:
        """How many pictures and views were used, and the cells of the fit, in words."""
        return self._facts

    @property
    def X(self) -> Array:
        """The vectors ``(R, D)`` of the rows of pictures as they are."""
        return self._plain.X

    @property
    def y(self) -> Array:
        """The classes ``(R,)`` of these rows."""
        return self._plain.y

    @property
    def options(self) -> ProbeOptions:
        """Fewer folds than usual: cells are many, and what is chosen hardly depends on which are held out."""
        return ProbeOptions(folds=FOLDS)

    def rows(self) -> LabelledRows:
        """Return what a head is fitted on."""
        return self._rows

    def train_figures(self, outputs: Array) -> dict[str, float]:
        """Return figures of the cells, as if each of a cell's pixels had its logits ``(R, C)``: nothing is enlarged."""
        acc, nll = score(softmax(outputs.astype(np.float64)), self._plain.y, np.asarray(self._plain.weight))
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

    def val_losses(self, outputs_of: Callable[[Array], Array]) -> torch.Tensor | None:
        """Return nothing: outputs for pixels are not kept."""
        return None


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


def _warn_of_unseen(features: SplitFeatures, pixels: Counts) -> None:
    """Warn of classes that training masks have, and the cells of the fit have not, by the pixels ``(C,)`` of these."""
    known = features.data.index.targets.spec.facts.get("pixels") or [0] * len(pixels)
    names = [name for name, there, here in zip(features.module.class_names, known, pixels, strict=True)
             if there and not here]  # fmt: skip
    if names:
        warnings.warn(
            f"no cell that the head is solved on holds a pixel of {listing(names)}: the solved head never answers so - "
            "fine-tune it, or train it by steps: --probe sgd",
            TransferkitWarning,
            stacklevel=2,
        )


class _Rows:
    """The rows of the training split: its pictures, or their windows.

    Args:
        features: Know the data.
    """

    def __init__(self, features: SplitFeatures) -> None:
        self._features = features
        self._records = features.data.index.split("train")
        self._windows = features.data.windows("train")

    def __len__(self) -> int:
        return len(self._records) if self._windows is None else len(self._windows)

    def drawn(self, most: int) -> Sequence[int]:
        """Return all rows or, where they are more than `most`, about so many: of each stratum of pictures its share.

        Of windows exactly so many, any as likely as any other: those of one picture differ, too.
        """
        if len(self) <= most:
            return range(len(self))
        seed = self._features.seed
        if self._windows is not None:
            return sorted(np.random.default_rng(seed).choice(len(self), most, replace=False).tolist())
        targets, units = self._features.data.index.targets, units_of(self._records)
        strata = targets.strata(record.label for record in self._records)
        rows = LabelledRows(np.zeros((len(self), 0)), strata, len(targets.stratum_names), units)
        (taken,) = nested_subsets(rows, [most / len(self)], seed=seed)
        return [int(at) for at in taken]

    def pictures(self, rows: Sequence[int]) -> list[Picture]:
        """Return the pictures of some rows."""
        pictures: Sequence[Picture] = self._features.pictures(self._records)
        pictures = pictures if self._windows is None else WindowPictures(pictures, self._windows)
        return [pictures[row] for row in rows]

    def units(self, rows: Sequence[int]) -> list[str]:
        """Return what keeps them together in one fold: windows of a picture stay together."""
        units = units_of(self._records)
        return [units[self._picture(row)] for row in rows]

    def annotations(self, rows: Sequence[int]) -> Annotations:
        """Return the answers on the pixels of their pictures."""
        records = [self._records[self._picture(row)] for row in rows]
        targets = self._features.data.index.targets
        annotations = targets.annotate([record.label for record in records], [record.path for record in records])
        if annotations is None:
            raise TypeError("a head on maps is solved of answers on pixels, and these targets have none")
        return annotations

    def _picture(self, row: int) -> int:
        return row if self._windows is None else self._windows.place(row)[0]


def _masks(
    pictures: Sequence[Picture], annotations: Annotations, features: SplitFeatures, views: int
) -> Iterator[Sequence[Mask]]:
    """Yield the masks of each picture on the canvas: of its evaluation view, then of `views` augmented ones.

    Without views no picture is decoded: its mask goes where the picture would.
    """
    if views:
        dataset = ImageDataset(
            pictures, features.views(views), annotations=annotations, pixels=features.data.pixels,
            threads=available_cores(),
        )  # fmt: skip
        try:
            for start in range(0, len(pictures), MASKS_AT_ONCE):
                jobs = [Job(row, tuple(range(1 + views))) for row in range(start, len(pictures))[:MASKS_AT_ONCE]]
                _, masks = dataset.batch(jobs).labelled()
                yield from masks.numpy().reshape(len(jobs), 1 + views, *masks.shape[1:])
        finally:
            dataset.close()
        return
    read, config = annotations.read, features.data.data_config

    def on_canvas(row: int) -> Sequence[Mask]:
        mask = read(row).mask
        if mask is None:
            raise TypeError("an annotation without a mask has no pixels")
        return (fit_mask(mask, config, part=pictures[row].part),)

    yield from in_order(on_canvas, range(len(pictures)), available_cores())
