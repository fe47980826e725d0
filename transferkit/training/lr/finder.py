"""The LR range test: which learning rate to start from, without a trace on the model.

Smith 2017 (*Cyclical Learning Rates for Training Neural Networks*, section 3.3). Here a copy of the model is trained
while one multiplier over all groups' own LRs rises, so that the ratios between groups hold.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import Optimizer

from transferkit.core.errors import ConfigError, DataError, TrainingError, gather
from transferkit.data.batches.datamodule import ImageData, normalise
from transferkit.data.batches.samplers import EpochSampler
from transferkit.models.module import TransferModule
from transferkit.training.lr.result import LRSearch, Measure, Spacing, make_search
from transferkit.training.lr.sweep import LRRange, detached_copy, own_place, sweep, undisturbed
from transferkit.training.plan.phases import HEAD, Phase, Plan, check_phases

__all__ = ["LRSearch", "find_lr", "one_optimizer"]

VAL_PICTURES = 64
"""Validation pictures that ``measure="val"`` looks at after every step, at most."""


def find_lr(
    model: TransferModule,
    data: ImageData,
    *,
    steps: int = 100,
    lr_min: float = 1e-7,
    lr_max: float = 1.0,
    spacing: Spacing = "exponential",
    measure: Measure = "train",
    phase: Phase | None = None,
    clip: float | None = None,
    accumulate: int = 1,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LRSearch:
    """Train a copy of the model while the LR rises, and suggest one.

    Model, optimizer, data, Trainer and random state stay bit for bit as they were, after an exception or Ctrl-C too.
    It can be called at any point of a run. Under `torch.distributed` every rank has to call it; all see the same curve.

    One multiplier is swept over the LRs of all groups. Their ratios are those of `phase`; without one, those of the
    optimizer of the Trainer that the model is attached to, relative to the largest; else those of
    `configure_optimizers`.

    Args:
        model: What will be trained.
        data: Its training batches are cycled through when there are fewer than `steps`.
        steps: Length of the test, at least 30.
        lr_min: First LR of the head, per step.
        lr_max: Last LR of the head, per step.
        spacing: How the LR rises: ``"exponential"`` or ``"linear"``.
        measure: The loss that is recorded: ``"train"``, of the step's batch before the step, or ``"val"``, of up to 64
            validation pictures after it, always the same.
        phase: The phase to find the LR of: what it trains, at which ratios, on which view of the pictures. Without
            one, the parameters that require a gradient now are trained.
        clip: Largest gradient norm, as the training will have it; ``None`` for no clipping.
        accumulate: Batches per step, as the training will have it.
        device: Where to compute; where the model is when ``None``.
        progress: Called with steps done and steps in all.

    Returns:
        The curve and what follows from it. Where nothing does, as when the loss is flat or not finite from the first
        step on, `LRSearch.suggestion` is ``None`` and `LRSearch.reason` says why.

    Raises:
        ConfigError: An argument is out of range, nothing trains, or there are no ratios to be had.
        DataError: There are no training pictures, or no validation pictures to measure.
        TrainingError: Memory ran out.
    """
    lr_range = LRRange(steps, lr_min, lr_max, spacing)
    problems = [*lr_range.problems(), *_problems(model, measure, phase, clip, accumulate)]
    if problems:
        raise ConfigError(gather(problems))
    if measure == "val" and not data.index.split("val"):
        raise DataError(
            'measure="val" needs validation pictures, and the data have none - add a val folder, make val_split larger '
            'than 0, or pass measure="train"'
        )
    seen = _as_in_training(data, model, phase, steps)
    with undisturbed(data.seed + own_place()[0], model.device if device is None else device):
        twin = detached_copy(model, device)
        if phase is not None:
            twin.train_groups(phase.trained(twin.group_names()))
        optimizer = one_optimizer(twin)
        names, ratios = _ratios(model, twin, optimizer, phase)
        try:
            swept = sweep(
                twin,
                optimizer,
                ratios,
                _batches(seen, twin.device),
                lr_range.lrs(),
                evaluate=_validation(twin, seen) if measure == "val" else None,
                clip=clip,
                accumulate=accumulate,
                progress=progress,
            )
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"out of memory beside the model, in batches of {data.batch_size} - pass a smaller batch size (such as "
                f"{max(1, data.batch_size // 2)}) or image size"
            ) from error
    by_group = dict(zip(names, ratios, strict=True))
    axis = HEAD if phase is not None or by_group.get(HEAD) == 1.0 else names[ratios.index(1.0)]
    return make_search(
        swept.lrs, swept.losses, ratios=by_group, axis=axis, ended=swept.ended, spacing=spacing, measure=measure
    )


def one_optimizer(model: TransferModule) -> Optimizer:
    """Return the optimizer that a model builds. Raises `ConfigError` when it builds anything else."""
    optimizer: Any = model.configure_optimizers()
    if isinstance(optimizer, Mapping):
        optimizer = optimizer.get("optimizer")
    if isinstance(optimizer, Optimizer):
        return optimizer
    raise ConfigError(
        f"configure_optimizers() of {type(model).__name__} returned {type(optimizer).__name__}, expected one "
        "optimizer, or a mapping with it as 'optimizer'"
    )


def _problems(
    model: TransferModule, measure: str, phase: Phase | None, clip: float | None, accumulate: int
) -> list[str]:
    found = []
    if measure not in ("train", "val"):
        found.append(f"measure is {measure!r}, expected 'train' or 'val'")
    if clip is not None and not clip > 0:
        found.append(f"clip is {clip}, expected a number above 0, or None")
    if accumulate < 1:
        found.append(f"accumulate is {accumulate}, expected at least 1")
    if phase is not None:
        if phase.solve:
            found.append(f"phase {phase.name!r} is solved, which takes no LR - pass a phase that is trained")
        found += check_phases((phase,), model.group_names())
    elif not any(parameter.requires_grad for parameter in model.parameters()):
        found.append("nothing in the model requires a gradient, expected something to train - or pass phase=")
    return found


# ---- ratios -----------------------------------------------------------------------------------------------------


def _ratios(
    model: TransferModule, twin: TransferModule, optimizer: Optimizer, phase: Phase | None
) -> tuple[list[str], list[float]]:
    """Return names and ratios of the groups of the copy's `optimizer`; 0 for what does not train."""
    groups = optimizer.param_groups
    if phase is not None:
        if not all("group" in group for group in groups):
            raise ConfigError(
                f"the optimizer of {type(model).__name__} does not say which layer group its parameters are of, and "
                "phases go by layer groups - build it over transferkit.models.optimizers.param_groups"
            )
        plan = Plan((phase,), twin.group_names(), 1)
        return _names(groups), [plan.scale(0, group["group"]) for group in groups]
    trains = [any(parameter.requires_grad for parameter in group["params"]) for group in groups]
    lrs = [lr if learns else 0.0 for lr, learns in zip(_own_lrs(model, groups), trains, strict=True)]
    largest = max(lrs)
    for name, lr, learns in zip(_names(groups), lrs, trains, strict=True):
        if learns and not lr > 0:
            raise ConfigError(
                f"{name} trains, and its LR in the optimizer is {lr}, which says nothing of the ratio it will have - "
                "pass phase=, the phase to find the LR of"
            )
    return _names(groups), [lr / largest for lr in lrs]


def _own_lrs(model: TransferModule, groups: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the LRs of a running optimizer's groups, else those that `groups` are built with."""
    running = model._trainer.optimizers if model._trainer is not None else []
    if not running:
        return [_base_lr(group) for group in groups]
    own = running[0].param_groups
    if len(own) != len(groups):
        raise ConfigError(
            f"the running optimizer has {len(own)} parameter groups, configure_optimizers() builds {len(groups)} - "
            "pass phase=, or find the LR before `fit`"
        )
    lrs = [float(group["lr"]) for group in own]
    return lrs if any(lrs) else [_base_lr(group) for group in own]


def _base_lr(group: Mapping[str, Any]) -> float:
    """A scheduler that warms up from 0 keeps the LR it starts from as ``initial_lr``."""
    return float(group.get("initial_lr", group["lr"]))


def _names(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    return [str(group.get("group", group.get("name", f"group {number}"))) for number, group in enumerate(groups)]


# ---- pictures ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Seat:
    """What `ImageData` asks of a Trainer: that it trains, and who this process is."""

    global_rank: int
    world_size: int
    training: bool = True


def _as_in_training(data: ImageData, model: TransferModule, phase: Phase | None, steps: int) -> ImageData:
    """Return the data as a Trainer would give them to the model; shares the pictures, and nothing that moves."""
    data.index  # noqa: B018  # read once, for both
    seen = copy.copy(data)
    seen.trainer = cast("L.Trainer", _Seat(*own_place()))
    if data.adopts_config:
        seen.data_config = dataclasses.replace(model.data_config, image_size=data.data_config.image_size)
    test_view = phase is not None and phase.test_view
    seen.show_as_evaluated(range(steps) if test_view else ())
    return seen


def _batches(data: ImageData, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield training batches on `device`, epoch after epoch."""
    loader = data.train_dataloader()
    epoch = 0
    while True:
        if isinstance(loader.sampler, EpochSampler):
            loader.sampler.set_epoch(epoch)
        for images, targets in loader:
            yield data.on_after_batch_transfer((images.to(device), targets.to(device)), 0)
        epoch += 1


def _validation(model: TransferModule, data: ImageData) -> Callable[[], Tensor]:
    """Return what measures the loss of some validation pictures, the same ones at every call."""
    dataset = data.dataset("val")
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(data.seed))
    images, targets = dataset.batch(sorted(order[:VAL_PICTURES].tolist())).labelled()
    images, targets = normalise(images.to(model.device), data.data_config), targets.to(model.device)

    def measure() -> Tensor:
        model.eval()
        with torch.no_grad():
            return functional.cross_entropy(model(images).float(), targets)

    return measure
