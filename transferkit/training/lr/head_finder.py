"""The LR range test of the head alone, on cached features: seconds, whatever the backbone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from transferkit.core.errors import ConfigError, DataError, gather
from transferkit.data.batches.datamodule import ImageData
from transferkit.features.engine.compute import Compute
from transferkit.features.store.store import FeatureStore
from transferkit.machine.cores import available_cores
from transferkit.models.module import TransferModule
from transferkit.training.head.solve import split_features
from transferkit.training.head.train import feature_batches
from transferkit.training.lr.finder import one_optimizer
from transferkit.training.lr.result import LRSearch, Measure, Spacing, make_search
from transferkit.training.lr.sweep import LRRange, detached_copy, own_place, sweep, undisturbed
from transferkit.training.plan.phases import HEAD

__all__ = ["find_head_lr"]


def find_head_lr(
    model: TransferModule,
    data: ImageData,
    *,
    steps: int = 100,
    lr_min: float = 1e-7,
    lr_max: float = 1.0,
    spacing: Spacing = "exponential",
    measure: Measure = "train",
    clip: float | None = None,
    accumulate: int = 1,
    store: str | None = None,
    compute: Compute | None = None,
    extracting: Callable[[int, int], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LRSearch:
    """Do what `find_lr` does for a phase that trains the head alone, on features that are computed once and kept.

    The backbone is frozen in such a phase, so features of the pictures as they are evaluated stand for the pictures;
    what augmentation does to them is left out. Batches come in the order that a run has. Nothing but the store changes.

    Args:
        model: With a head that takes features.
        data: Its training split is trained on; its seed, batch size and order are used.
        steps: See `find_lr`, as are the others that are not listed here.
        lr_min: First LR of the head, per step.
        lr_max: Last LR of the head, per step.
        spacing: ``"exponential"`` or ``"linear"``.
        measure: ``"train"``, or ``"val"`` for the loss of the whole validation split.
        clip: Largest gradient norm.
        accumulate: Batches per step.
        store: Directory of the feature store; the user's cache when ``None``.
        compute: What to compute features with; the model's own device when ``None``.
        extracting: Called with pictures computed and pictures to compute.
        progress: Called with steps done and steps in all.

    Raises:
        ConfigError: An argument is out of range, or the head takes feature maps.
        DataError: There are no training pictures, or no validation pictures to measure.
    """
    lr_range = LRRange(steps, lr_min, lr_max, spacing)
    problems = lr_range.problems()
    if model.head_takes_maps:
        problems.append(
            f"a {type(model.head).__name__} takes feature maps, and features are what is kept - use find_lr, which "
            "runs the backbone"
        )
    if measure not in ("train", "val"):
        problems.append(f"measure is {measure!r}, expected 'train' or 'val'")
    if problems:
        raise ConfigError(gather(problems))
    splits = ("train", "val") if measure == "val" else ("train",)
    for split in splits:
        if not data.index.split(split):
            raise DataError(f"the data have no {split} pictures, which the test needs - add a {split} folder")
    compute = compute or Compute(model.device.type, threads=available_cores())
    rank, world_size = own_place()
    with undisturbed(data.seed + rank, model.device):
        twin = detached_copy(model, None)
        twin.train_groups([HEAD])
        features = {}
        for split in splits:
            table = split_features(twin, data, split, FeatureStore(store), compute, progress=extracting)
            features[split] = tuple(torch.from_numpy(rows).to(twin.device) for rows in (table.X, table.y))
        twin.open_boundary("")  # training steps take features from here on
        optimizer = one_optimizer(twin)
        X, y = features["train"]
        swept = sweep(
            twin,
            optimizer,
            [float(group.get("group", HEAD) == HEAD) for group in optimizer.param_groups],
            feature_batches(X, y, batch_size=data.batch_size, seed=data.seed, rank=rank, world_size=world_size),
            lr_range.lrs(),
            evaluate=_validation(twin, *features["val"]) if measure == "val" else None,
            clip=clip,
            accumulate=accumulate,
            progress=progress,
        )
    return make_search(
        swept.lrs,
        swept.losses,
        ratios={name: float(name == HEAD) for name in model.group_names()},
        axis=HEAD,
        ended=swept.ended,
        spacing=spacing,
        measure=measure,
    )


def _validation(model: TransferModule, X: Tensor, y: Tensor) -> Callable[[], Tensor]:
    """Return what measures the loss of the head on features."""

    def measure() -> Tensor:
        model.eval()
        with torch.no_grad():
            return functional.cross_entropy(model.head(X).float(), y)

    return measure
