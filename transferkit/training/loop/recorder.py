"""`RunRecorder`: what happens after every epoch of a run, in one order, and the clean stop after a signal."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transferkit.machine.lightning_import import Checkpoint, DDPStrategy, L, LearningRateMonitor
from transferkit.machine.random import random_state, restore_random_state
from transferkit.models.module import TransferModule
from transferkit.training.loggers.run_loggers import RunLoggers
from transferkit.training.loop.checkpoints import Checkpoints
from transferkit.training.loop.early_stop import BEFORE_TRAINING, Candidate, Selection
from transferkit.training.loop.finite import require_finite
from transferkit.training.loop.history import History
from transferkit.training.loop.interruption import Interruption, SignalFlag
from transferkit.training.loop.phase_schedule import PhaseSchedule
from transferkit.training.ranks.own_state import OwnState
from transferkit.training.ranks.parallel import gather, of_first, require_equal, statistics

__all__ = ["RunRecorder"]


class RunRecorder(Checkpoint):
    """After each epoch, in this order: a row of history, the best epoch, early stopping, the checkpoints, the loggers.

    It is the last callback of a run, so that a checkpoint holds what the others have made of the epoch. It is a
    `Checkpoint` because Lightning calls those after the module's own hook, which logs the figures of training.

    Args:
        run: The run directory.
        module: What is trained.
        schedule: The callback that knows the plan.
        selection: Chooses the best epoch.
        flag: Set by signals.
        own: Give by name what each of several processes measures on its own pictures in the course of an epoch.
        loggers: Are given each row.

    Attributes:
        history: Rows and times.
        selection: The best epoch.
        checkpoints: The files.
        training_began: Whether the state of an earlier process is back in place, if there was one.
    """

    def __init__(
        self,
        run: Path,
        module: TransferModule,
        schedule: PhaseSchedule,
        selection: Selection,
        flag: SignalFlag,
        own: Sequence[Callable[[nn.Module], Mapping[str, Tensor]]] = (statistics,),
        loggers: RunLoggers | None = None,
    ) -> None:
        self.schedule = schedule
        self.selection = selection
        objective = module.task.objective
        train, val = ("loss", *objective.running), ("loss", *objective.watched[:1])
        columns = [*(f"train_{name}" for name in train), *(f"val_{name}" for name in val)]
        self.history = History(run / "history.csv", columns)
        self.checkpoints = Checkpoints(run)
        self._module = module
        self._loggers = loggers or RunLoggers()
        self._interruption = Interruption(flag)
        self._own = OwnState(module, own)
        self._solved_head: Mapping[str, Tensor] = {}
        self._random: dict[str, Any] | None = None
        self._resumed = self.training_began = False
        self._saves_solved = False
        self._solved_losses: Tensor | None = None
        self._held: list[tuple[Tensor, Tensor]] = []  # outputs and targets of the running validation

    def begin_with(
        self, phase: str, figures: Mapping[str, Any], head: Mapping[str, Tensor], losses: Tensor | None = None
    ) -> None:
        """Take a solved first phase into account: its weights are the first candidate for the best.

        Args:
            phase: Its name.
            figures: What came of it, with ``val_acc``, ``val_loss`` and ``time_s``.
            head: State of the head as it was solved; the module's own has been softened for training.
            losses: ``(N,)``, of each val picture; see `Task.picture_losses`.
        """
        self.history.begin_with(phase, figures)
        self._solved_head, self._solved_losses = head, losses

    def chosen(self, *, tested: bool) -> dict[str, Any]:
        """Return what was chosen on which split and how clearly, for whoever reads the figures of that split.

        Args:
            tested: Whether there are test pictures.
        """
        untouched = "; test was not looked at before" if tested else ""
        selection = self.selection
        if not self.history.rows:
            note = f"nothing was chosen on val: the regularisation was cross-validated inside train{untouched}"
            return {"monitor": None, "epoch": None, "note": note, "stopped_early": False}
        solved, on_val = selection.best_epoch == BEFORE_TRAINING, selection.monitor.startswith("val")
        clarity = selection.clarity()
        how = (
            "the epoch was chosen on val, so val is optimistic"
            if on_val
            else "the epoch was chosen by the training loss"
        )
        if clarity is not None:
            how += f": {clarity.sentence}"
        return {
            "monitor": selection.monitor,
            "epoch": None if solved else selection.best_epoch,
            "kept": "the solved probe" if solved else f"epoch {selection.best_epoch}",
            "note": how + untouched,
            "rule": selection.rule.words,
            **({} if clarity is None else {"clarity": dataclasses.asdict(clarity)}),
            "stopped_early": selection.stopped_early,
        }

    # ---- state ------------------------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """Where a checkpoint holds this state: under the name that it has had since the first release."""
        return "RunKeeper"

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume needs; Lightning puts it into every checkpoint."""
        return {**self.history.state_dict(), **self.selection.state_dict(), "random": random_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state of an earlier process; the random generators follow when training starts."""
        self.history.load_state_dict(state_dict)
        self.selection.load_state_dict(state_dict)
        self._random = state_dict["random"]
        self._resumed = True

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put in what every process has of its own; the rest is the same everywhere, and the first one's is saved."""
        self._own.save(trainer, checkpoint)
        if self._saves_solved:
            checkpoint["state_dict"].update({f"head.{name}": tensor for name, tensor in self._solved_head.items()})

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Find what this process had of its own."""
        self._own.load(trainer, checkpoint)

    # ---- hooks ------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock; a run that had stopped early stays stopped; a new one is saved before its first step.

        The random generators of a process that is being continued come back last.
        """
        self._interruption.begin()
        random = self._own.restore(trainer, self._random)
        if not self._resumed:
            self._save_start(trainer)
        self.history.start_clock(self._pictures())
        if self.selection.stopped_early:
            trainer.should_stop = True
        if random is not None:  # now, because the first batch may be mixed by them before any other hook
            restore_random_state(random)
        self._random = None
        self.training_began = True

    def _save_start(self, trainer: L.Trainer) -> None:
        """Save what training starts from, so that a run can be resumed whenever it ends; a solved head is the best."""
        solved, monitor = self.history.solved, self.selection.monitor
        if solved is not None and monitor in solved:
            loss = solved.get("val_loss")
            self.selection.offer(Candidate(BEFORE_TRAINING, solved[monitor], loss, self._solved_losses))
            self._saves_solved = True
            self.checkpoints.save(trainer, best=True)
            self._saves_solved = False
        self.checkpoints.save(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the epoch's clock."""
        self.history.start_clock()
        self._interruption.start_epoch()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop after a signal, between two steps. The last step of an epoch is left to the end of the epoch."""
        if batch_idx + 1 >= trainer.num_training_batches:
            self.history.end_training(self._pictures(), trainer.world_size)
            return
        steps, rest = divmod(batch_idx + 1, trainer.accumulate_grad_batches)
        signum = None if rest else self._interruption.signal_after(steps, trainer.world_size)
        if signum is not None:
            loss = sum(gather(float(self._module.train_sums()[0].item())))
            require_finite(loss, "train_loss", trainer, self.checkpoints.last)
            plan = self.schedule.plan
            self.history.add_time(plan.phases[plan.phase_at(trainer.current_epoch)].name)
            self.checkpoints.save(trainer)
            raise self.checkpoints.interrupted(signum)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the outputs of the validation before."""
        self._held = []

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Hold the outputs, where epochs are compared picture by picture."""
        if self.selection.rule.by_pictures:
            self._held.append((outputs["outputs"], batch[1]))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the epoch down and decide whether to go on."""
        # Decisions follow from these values: were they not the same everywhere, processes would wait for each other.
        logged = _logged_by_monitors(trainer)
        values = of_first({key: float(value) for key, value in trainer.callback_metrics.items() if key not in logged})
        for name in ("train_loss", "val_loss"):
            if name in values:
                require_finite(values[name], name, trainer, self.checkpoints.last)
        plan, epoch = self.schedule.plan, trainer.current_epoch
        phase = plan.phase_at(epoch)
        self.history.add_time(plan.phases[phase].name)
        self.history.add_row(plan, epoch, values)
        value, last = values[self.selection.monitor], epoch + 1 >= plan.epochs
        candidate = Candidate(epoch, value, values.get("val_loss"), self._picture_losses(), last)
        improved = self.selection.offer(candidate)
        if phase == len(plan.phases) - 1 and self.selection.end_epoch(epoch, plan.first_epoch(phase)):
            trainer.should_stop = True
        if isinstance(trainer.strategy, DDPStrategy):  # others spread the weights over the processes
            require_equal(pl_module, f"after epoch {epoch}")
        self.checkpoints.save(trainer, best=improved)
        if trainer.is_global_zero:
            self.history.write()
            self._loggers.write(self.history.points())  # last: whatever a server does, the epoch is saved
        signum = self._interruption.signal_of_any()
        if signum is not None and epoch + 1 < plan.epochs and not self.selection.stopped_early:
            raise self.checkpoints.interrupted(signum)

    def _picture_losses(self) -> Tensor | None:
        """Return the loss of each val picture in their order, ``(N,)``, the same in every process."""
        if not self.selection.rule.by_pictures:
            return None
        mine = tuple(torch.cat(parts).cpu() for parts in zip(*self._held, strict=True))
        ranks = gather(mine)
        width, count = len(ranks), sum(len(targets) for _, targets in ranks)
        both = []
        for number in range(2):
            whole = ranks[0][number].new_empty((count, *ranks[0][number].shape[1:]))
            for place, parts in enumerate(ranks):  # as `EvaluationSampler` deals them out
                whole[place::width] = parts[number]
            both.append(whole)
        return self._module.task.picture_losses(both[0], both[1])

    def _pictures(self) -> int:
        """Return how many pictures of the epoch this process has trained on."""
        return int(self._module.train_sums()[-1].item())


def _logged_by_monitors(trainer: L.Trainer) -> set[str]:
    """Return the figures that monitors of Lightning give to the loggers themselves; a row has the LR of its own."""
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    monitors = [callback for callback in callbacks if isinstance(callback, LearningRateMonitor)]
    tables = [table for one in monitors for table in (one.lrs, one.last_momentum_values, one.last_weight_decay_values)]
    return {key for table in tables for key in table}
