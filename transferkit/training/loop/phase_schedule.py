"""`PhaseSchedule`: the thin callback that applies a plan to a running Trainer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch.optim import Optimizer

from transferkit.core.errors import CheckpointError, ConfigError, TrainingError, gather
from transferkit.data.batches.datamodule import ImageData
from transferkit.machine.lightning_import import Callback, L
from transferkit.models.freezing import frozen_state_digest, keep_frozen_eval, require_groups
from transferkit.models.module import TransferModule
from transferkit.models.tuning.layout import layout_of, train_parts
from transferkit.training.plan.phases import Phase, check_phases
from transferkit.training.plan.plan import Plan, lr_cuts
from transferkit.training.plan.sizes import epoch_sizes
from transferkit.training.ranks.parallel import average, statistics
from transferkit.training.ranks.strategies import wrap_again

__all__ = ["PhaseSchedule", "apply_lrs", "apply_momentum", "running_epoch"]

WATCHED = ("val_loss", "train_loss")
"""What schedules that follow a value follow: the first of these that is measured."""


def apply_lrs(optimizer: Optimizer, lrs: dict[str, float]) -> None:
    """Write each group's LR into the optimizer's parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = lrs[group["group"]]


def apply_momentum(optimizer: Optimizer, momentum: float | None) -> None:
    """Write a momentum (Adam's first beta) into the optimizer's parameter groups; ``None`` for the optimizer's own."""
    for group in optimizer.param_groups:
        if "betas" in group:
            first, second = optimizer.defaults["betas"]
            group["betas"] = (first if momentum is None else momentum, second)
        else:
            group["momentum"] = optimizer.defaults["momentum"] if momentum is None else momentum


class PhaseSchedule(Callback):
    """Trains a module of layer groups phase by phase; works with a plain `lightning.Trainer`.

    The module is a `TransferModule`, or any other with its two methods `groups` and `train_groups`, and an optimizer
    over `param_groups`.

    Which groups train and at which LR follows from the plan, the epoch and the batch, at every start anew, so a resumed
    run is where it was. Only the validation values that `plateau` goes by are remembered. At the end of each phase the
    frozen part is compared with what it was at its beginning, parameters and buffers.

    Under DDP the model is wrapped anew at the beginning of each phase: the gradients that processes share are those of
    the parameters that learn. Running statistics are averaged over the processes at the end of each epoch.

    Args:
        phases: In order. The Trainer stops after the last one, unless its own limit comes first.
        solved: Whether a first phase with ``solve`` has been done already; a Trainer cannot do it.

    Raises:
        ConfigError: At the start of `fit`, with everything that is wrong with the phases.
        CheckpointError: When `fit` is to go on from a checkpoint of other phases or schedules.
    """

    def __init__(self, phases: Sequence[Phase], *, solved: bool = False) -> None:
        self.phases = tuple(phases)
        self.solved = solved
        self._plan: Plan | None = None
        self._values: dict[int, list[float]] = {}
        self._applied: int | None = None
        self._frozen_digest: str | None = None
        self._cycles = False

    @property
    def plan(self) -> Plan:
        """What happens when, with the length of an epoch. Raises `TrainingError` before a Trainer has begun to fit."""
        if self._plan is None:
            raise TrainingError("PhaseSchedule has no plan before `fit` - use it as a callback of a Trainer")
        return self._plan

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check the phases against the module's groups and bound the fit."""
        if stage != "fit":
            return
        require_groups(pl_module, "PhaseSchedule")
        layout = layout_of(pl_module)
        problems = check_phases(self.phases, layout)
        if isinstance(pl_module, TransferModule) and not problems:
            pl_module.lr_cuts = lr_cuts(self.phases, layout)
        if self.phases and self.phases[0].solve and not self.solved:
            problems.append(
                f"phase {self.phases[0].name!r} is solved on cached features, which a Trainer does not do - call "
                "transferkit.solve_head(model, data) before `fit`, and leave the phase out"
            )
        epochs = [phase for phase in self.phases for _ in range(phase.epochs)]
        views = frozenset(epoch for epoch, phase in enumerate(epochs) if phase.test_view)
        data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it before
        if isinstance(data, ImageData):
            data.show_as_evaluated(views)
            sizes = () if problems else epoch_sizes(self.phases, data.train_sizes.sides, layout)
            data.train_sizes = replace(data.train_sizes, epochs=tuple(sizes))
        elif views:
            problems.append("a phase with test_view needs ImageData, which knows how pictures are evaluated")
        if problems:
            raise ConfigError(gather(problems))
        limit = trainer.fit_loop.max_epochs
        if limit is None or limit < 0 or limit > len(epochs):
            trainer.fit_loop.max_epochs = len(epochs)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Resolve the plan now that the length of an epoch is known, and enter the phase of the current epoch."""
        steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        plan = self._plan = Plan(self.phases, layout_of(pl_module), steps).with_values(self._values)
        _check_optimizer(trainer.optimizers[0], plan)
        self._cycles = any(plan.momentum(plan.first_epoch(number) * steps) is not None
                           for number, phase in enumerate(self.phases) if phase.epochs)  # fmt: skip
        self._applied = None
        self._enter(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Enter the phase of this epoch, if it is another one than before."""
        self._enter(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set every group's LR for this step."""
        plan = self.plan
        step = running_epoch(trainer) * plan.steps_per_epoch + batch_idx // trainer.accumulate_grad_batches
        apply_lrs(trainer.optimizers[0], plan.lrs(step))
        if self._cycles:
            apply_momentum(trainer.optimizers[0], plan.momentum(step))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After the last batch, before validation, give all processes the mean of their running statistics.

        As timm's ``distribute_bn="reduce"``. Each has normalised by its own pictures until then.
        """
        if trainer.world_size > 1 and batch_idx + 1 >= trainer.num_training_batches:
            average(statistics(pl_module).values())

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the schedules what was measured."""
        name = next((name for name in WATCHED if name in trainer.callback_metrics), None)
        if name is None:
            return
        plan = self.plan
        index = plan.phase_at(trainer.current_epoch)
        epoch = trainer.current_epoch - plan.first_epoch(index)
        values = [*self._values.get(index, [])[:epoch], float(trainer.callback_metrics[name])]
        self._values[index] = values
        self._plan = plan.with_values(self._values)

    def state_dict(self) -> dict[str, Any]:
        """Return the values that schedules went by, and the phases that they belong to."""
        return {
            "values": {str(index): list(values) for index, values in self._values.items()},
            "phases": [phase.to_dict() for phase in self.phases],
        }

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other phases or with the state of other schedules; Lightning would take what fits."""
        problems = _differences(checkpoint, self)
        if problems:
            raise CheckpointError(
                f"the checkpoint is of another training: {gather(problems)} - put back config.yaml and the checkpoint "
                "of this run, or start anew"
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the values of an earlier process."""
        self._values = {int(index): list(values) for index, values in state_dict["values"].items()}

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Audit the last phase."""
        self._audit(pl_module)

    def _enter(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        plan = self.plan
        index = plan.phase_at(running_epoch(trainer))
        if index == self._applied:
            return
        self._audit(module)
        train_parts(module, plan.phases[index].parts(plan.layout))
        module.train()
        keep_frozen_eval(module)  # where the module's own `train` does not do it
        wrap_again(trainer, module)
        self._applied = index
        self._frozen_digest = frozen_state_digest(module)

    def _audit(self, module: L.LightningModule) -> None:
        if self._frozen_digest is not None and frozen_state_digest(module) != self._frozen_digest:
            raise TrainingError(
                f"frozen weights or buffers moved during phase {self.phases[self._applied or 0].name!r}, expected none "
                "to - is another callback changing the model? Remove it, and run the phase again"
            )
        self._frozen_digest = None


def running_epoch(trainer: L.Trainer) -> int:
    """The running epoch, also while Lightning is restoring its own counters."""
    # `current_epoch` lags behind between the end of one epoch and the restart of the next.
    return int(trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]  # a subclass has it


def _differences(checkpoint: Mapping[str, Any], schedule: PhaseSchedule) -> list[str]:
    """Return in words where a checkpoint is not of these phases, or not of their schedules."""
    others = len(checkpoint.get("lr_schedulers", ()))
    problems = [f"it holds the state of {others} scheduler(s) of Lightning's, expected none"] if others else []
    state = checkpoint["callbacks"].get(schedule.state_key)
    if state is None:
        return [*problems, "it holds no state of a PhaseSchedule"]
    now = [phase.to_dict() for phase in schedule.phases]
    before = state.get("phases", now)
    if [phase["name"] for phase in before] != [phase["name"] for phase in now]:
        names = [", ".join(str(phase["name"]) for phase in phases) for phases in (before, now)]
        return [*problems, f"phases were {names[0]}, are now {names[1]}"]
    for old, new in zip(before, now, strict=True):
        keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        problems += [f"{key} of phase {new['name']!r} was {old.get(key)!r}, is now {new.get(key)!r}" for key in keys]
    return problems or _missing_values(checkpoint, state["values"], schedule.phases)


def _missing_values(checkpoint: Mapping[str, Any], values: Mapping[str, Any], phases: Sequence[Phase]) -> list[str]:
    """Return in words which schedules that follow values have not one for each epoch that is over."""
    over = int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
    problems = []
    for number, phase in enumerate(phases):
        expected, count = min(phase.epochs, max(0, over)), len(values.get(str(number), ()))
        over -= phase.epochs
        if phase.curve.needs_values and count != expected:
            problems.append(f"{phase.curve.name} of phase {phase.name!r} has {count} values of {expected} epochs")
    return problems


def _check_optimizer(optimizer: Optimizer, plan: Plan) -> None:
    """Refuse an optimizer whose LRs cannot be set by layer group, or by the parts of them that have an LR."""
    named = {group.get("group") for group in optimizer.param_groups}
    if named <= set(plan.group_names) and set(plan.lr_names) - set(plan.group_names):
        raise ConfigError(
            "group_lrs take parts of layer groups, and the optimizer holds each group as one - name whole groups, or "
            "build it over transferkit.models.tuning.layout.cut_groups"
        )
    if not named <= set(plan.lr_names):
        raise ConfigError(
            "the optimizer does not say which layer group its parameters are of, and phases go by layer groups - build "
            "it over transferkit.models.optimizers.param_groups"
        )
