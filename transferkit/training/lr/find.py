"""`find_lr`: which learning rate to start from, without a trace on the model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from transferkit.core.errors import ConfigError, DataError, TrainingError, gather
from transferkit.data.augment.normalise import normalise
from transferkit.data.batches.datamodule import ImageData
from transferkit.data.batches.samplers import EpochSampler
from transferkit.machine.random import undisturbed
from transferkit.models.module import TransferModule
from transferkit.models.tuning.layout import layout_of, train_parts
from transferkit.training.head.train import feature_batches, in_steps
from transferkit.training.lr.range_test import Batch, RangeTest, detached_copy, sweep
from transferkit.training.lr.result import LRSearch, Measure, Spacing
from transferkit.training.lr.rules import DEFAULT_RULE, judge
from transferkit.training.plan.phases import HEAD, Phase, check_phases
from transferkit.training.plan.plan import Plan, lr_cuts
from transferkit.training.ranks.parallel import rank, world

__all__ = ["find_lr", "run_range_test"]

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
    It can be called at any point of a run. Under `torch.distributed` every rank has to call it; all get the same curve.

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
    test = RangeTest(steps, lr_min, lr_max, spacing, measure, clip, accumulate)
    return run_range_test(model, data, test, phase=phase, device=device, progress=progress)


def run_range_test(
    model: TransferModule,
    data: ImageData,
    test: RangeTest,
    *,
    phase: Phase | None = None,
    features: tuple[Tensor, Tensor] | None = None,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LRSearch:
    """Run a range test on pictures, as `find_lr` says, or on features.

    Args:
        model: What will be trained.
        data: Pictures, batch size and seed.
        test: The LRs, and how steps are taken.
        phase: See `find_lr`.
        features: ``(N, D)`` and targets ``(N,)`` of the training pictures as they are evaluated, for a phase of the
            head alone. The backbone is frozen in it, so they stand for the pictures; only augmentation is left out.
        device: See `find_lr`.
        progress: Called with steps done and steps in all.

    Raises:
        ConfigError: See `find_lr`.
        DataError: Likewise.
        TrainingError: Likewise.
    """
    problems = [*test.problems(), *_problems(model, phase)]
    if problems:
        raise ConfigError(gather(problems))
    if test.measure == "val" and not data.index.split("val"):
        raise DataError(
            'measure="val" needs validation pictures, and the data have none - add a val folder, make val_split larger '
            'than 0, or pass measure="train"'
        )
    with undisturbed(data.seed + rank(), model.device if device is None else device):
        twin = detached_copy(model, device)
        if phase is not None:
            layout = layout_of(twin)
            twin.lr_cuts = lr_cuts((phase,), layout)
            train_parts(twin, phase.parts(layout))
        optimizer = _one_optimizer(twin)
        names, ratios = _ratios(model, twin, optimizer, phase)
        own = data.detached(twin.data_config)
        if features is None:
            epochs = _picture_batches(own, phase, twin.device, test.steps)
        else:
            twin.passage.open_boundary("")  # training steps take features from here on
            X, y = (rows.to(twin.device) for rows in features)
            epochs = feature_batches(X, y, batch_size=data.batch_size, seed=data.seed, rank=rank(), world_size=world())
        evaluate = _validation(twin, own) if test.measure == "val" else None
        try:
            curve = sweep(
                twin, optimizer, ratios, in_steps(epochs, test.accumulate), test, evaluate=evaluate, progress=progress
            )
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"out of memory beside the model, in batches of {data.batch_size} - pass a smaller batch size (such as "
                f"{max(1, data.batch_size // 2)}) or image size"
            ) from error
    by_group = dict(zip(names, ratios, strict=True))
    verdict = judge(curve.lrs, curve.losses, ended=curve.ended)
    return LRSearch(
        lrs=tuple(curve.lrs),
        losses=verdict.losses,
        raw_losses=tuple(curve.losses),
        suggestions=verdict.suggestions,
        suggestion_rule=DEFAULT_RULE,
        ratios=by_group,
        axis=HEAD if phase is not None or by_group.get(HEAD) == 1.0 else names[ratios.index(1.0)],
        spacing=test.spacing,
        measure=test.measure,
        reason=verdict.reason,
        warning=verdict.warning,
    )


def _problems(model: TransferModule, phase: Phase | None) -> list[str]:
    if phase is None:
        learns = any(parameter.requires_grad for parameter in model.parameters())
        nothing = "nothing in the model requires a gradient, expected something to train - or pass phase="
        return [] if learns else [nothing]
    problems = check_phases((phase,), layout_of(model))
    if phase.solve:
        problems.insert(0, f"phase {phase.name!r} is solved, which takes no LR - pass a phase that is trained")
    return problems


# ---- ratios -----------------------------------------------------------------------------------------------------


def _one_optimizer(model: TransferModule) -> Optimizer:
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


def _ratios(
    model: TransferModule, twin: TransferModule, optimizer: Optimizer, phase: Phase | None
) -> tuple[list[str], list[float]]:
    """Return names and ratios of the groups of the copy's `optimizer`; 0 for what does not train."""
    groups = optimizer.param_groups
    names = [str(group.get("group", group.get("name", f"group {number}"))) for number, group in enumerate(groups)]
    if phase is not None:
        if not all("group" in group for group in groups):
            raise ConfigError(
                f"the optimizer of {type(model).__name__} does not say which layer group its parameters are of, and "
                "phases go by layer groups - build it over transferkit.models.optimizers.param_groups"
            )
        plan = Plan((phase,), layout_of(twin), 1)
        return names, [plan.scale(0, name) for name in names]
    trains = [any(parameter.requires_grad for parameter in group["params"]) for group in groups]
    lrs = [lr if learns else 0.0 for lr, learns in zip(_own_lrs(model, groups), trains, strict=True)]
    for name, lr, learns in zip(names, lrs, trains, strict=True):
        if learns and not lr > 0:
            raise ConfigError(
                f"{name} trains, and its LR in the optimizer is {lr}, which says nothing of the ratio it will have - "
                "pass phase=, the phase to find the LR of"
            )
    return names, [lr / max(lrs) for lr in lrs]


def _own_lrs(model: TransferModule, groups: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the LRs of a running optimizer's groups, else those that `groups` are built with."""
    running = model._trainer.optimizers if model._trainer is not None else []
    own = running[0].param_groups if running else groups
    if len(own) != len(groups):
        raise ConfigError(
            f"the running optimizer has {len(own)} parameter groups, configure_optimizers() builds {len(groups)} - "
            "pass phase=, or find the LR before `fit`"
        )
    lrs = [float(group["lr"]) for group in own]
    # A scheduler that warms up from 0 has the LR it starts from as ``initial_lr``.
    return lrs if running and any(lrs) else [float(group.get("initial_lr", group["lr"])) for group in own]


# ---- pictures ---------------------------------------------------------------------------------------------------


def _picture_batches(
    data: ImageData, phase: Phase | None, device: torch.device, epochs: int
) -> Iterator[Iterator[Batch]]:
    """Yield epochs of training batches on `device`, as a Trainer would hand them to the model."""
    data.show_as_evaluated(range(epochs) if phase is not None and phase.test_view else ())
    loader = data.train_loader(rank(), world())
    for epoch in itertools.count():
        if isinstance(loader.sampler, EpochSampler):
            loader.sampler.set_epoch(epoch)
        yield (data.prepare((images.to(device), targets.to(device)), train=True) for images, targets in loader)


def _validation(model: TransferModule, data: ImageData) -> Callable[[], Tensor]:
    """Return a function that measures the loss of some validation pictures, the same ones at every call."""
    dataset = data.dataset("val")
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(data.seed))
    images, targets = dataset.batch(sorted(order[:VAL_PICTURES].tolist())).labelled()
    images, targets = normalise(images.to(model.device), data.data_config), targets.to(model.device)

    def measure() -> Tensor:
        model.eval()
        with torch.no_grad():
            return model.task.objective.item_losses(model(images).float(), targets).mean()

    return measure
