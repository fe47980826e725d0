"""`RunKeeper`: what is written after every epoch, and the clean stop after a signal."""

from __future__ import annotations

import csv
import io
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from transferkit.core.errors import Interrupted, StorageError
from transferkit.core.files import atomic_write, write_atomically
from transferkit.machine.random import random_state, restore_random_state
from transferkit.models.heads import LinearHead
from transferkit.models.module import TransferModule
from transferkit.training.craft.ema import EMA
from transferkit.training.head.solve import soften_head
from transferkit.training.loop.finite import require_finite
from transferkit.training.loop.interruption import SignalFlag
from transferkit.training.loop.phase_schedule import PhaseSchedule
from transferkit.training.ranks.parallel import agree, average, gather, on_first, require_equal, statistics

__all__ = ["BEFORE_TRAINING", "RunKeeper"]

BEFORE_TRAINING = -1
"""The epoch that stands for a solved head."""

RANKS = "transferkit_ranks"
"""In a checkpoint of several processes: what each of them has of its own."""

ASK_S, ASK_STEPS = 1.0, 10
"""Several processes ask each other for signals about every second, and at least every ten steps."""


class RunKeeper(Checkpoint):
    """After each epoch, in this order: a row of history, the best value so far, early stopping, the checkpoints.

    Early stopping looks at the last phase only, so that when a phase begins follows from the plan alone.

    Args:
        run: The run directory.
        schedule: The callback that knows the plan.
        monitor: ``"val_loss"`` or ``"val_acc"``; ``"train_loss"`` where there is no validation split.
        patience: Epochs of the last phase without improvement after which training stops; ``None`` for never.
        flag: Set by signals.
    """

    def __init__(
        self, run: Path, schedule: PhaseSchedule, *, monitor: str, patience: int | None, flag: SignalFlag
    ) -> None:
        self.run = run
        self.schedule = schedule
        self.monitor = monitor
        self.patience = patience
        self.flag = flag
        self.history: list[dict[str, float | int | str]] = []
        self.best_value: float | None = None
        self.best_epoch = -1
        self.stopped_early = False
        self.phase_seconds: dict[str, float] = {}
        self.solved: dict[str, Any] | None = None
        self._resumed = False
        self._random: dict[str, Any] | None = None
        self._started = 0.0
        self._train_seconds = 0.0
        self._seen_before = 0
        self._seen = 0
        self._own: dict[str, Any] | None = None
        self._ask_at = 0
        self._asked = 0.0

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.run / "checkpoints" / "last.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint of the best epoch."""
        return self.run / "checkpoints" / "best.ckpt"

    def begin_with(self, phase: str, figures: Mapping[str, Any]) -> None:
        """Take a solved first phase into account: its weights are the first candidate for the best.

        Args:
            phase: Its name.
            figures: What came of it, with ``val_acc``, ``val_loss`` and ``time_s``.
        """
        self.solved = {"name": phase, **figures}
        self.phase_seconds[phase] = float(figures["time_s"])

    # ---- state ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume needs; Lightning puts it into every checkpoint."""
        return {
            "history": self.history,
            "best_value": self.best_value,
            "best_epoch": self.best_epoch,
            "stopped_early": self.stopped_early,
            "phase_seconds": self.phase_seconds,
            "solved": self.solved,
            "random": random_state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state of an earlier process; the random generators follow when training starts."""
        self.history = list(state_dict["history"])
        self.best_value = state_dict["best_value"]
        self.best_epoch = state_dict["best_epoch"]
        self.stopped_early = state_dict["stopped_early"]
        self.phase_seconds = dict(state_dict["phase_seconds"])
        self.solved = state_dict.get("solved")
        self._resumed = True
        self._random = state_dict["random"]

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put in what every process has of its own; the rest is the same everywhere, and the first one's is saved."""
        if trainer.world_size > 1:
            assert isinstance(pl_module, TransferModule)
            checkpoint[RANKS] = gather(
                {
                    "random": random_state(),
                    "sums": pl_module.train_sums().detach().cpu().clone(),
                    **{f"buffer {name}": tensor.detach().cpu().clone() for name, tensor in _own(trainer, pl_module)},
                }
            )

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Find what this process had of its own; of another number of processes only what they had together."""
        ranks = checkpoint.get(RANKS)
        if ranks is not None and len(ranks) == trainer.world_size:
            self._own = ranks[trainer.global_rank]
        elif ranks is not None or trainer.world_size > 1:
            sums = [own["sums"] for own in ranks or [{"sums": checkpoint["transferkit_train_sums"]}]]
            self._own = {"sums": torch.stack(sums).sum(dim=0) * trainer.is_global_zero}

    # ---- hooks ------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock; a run that had stopped early stays stopped; one that begins with a solved head saves it.

        The random generators of a process that is being continued come back last.
        """
        assert isinstance(pl_module, TransferModule)
        self.flag.hold()
        self._settle(trainer, pl_module)
        if self.solved is not None and not self._resumed:
            self._start_from(self.solved, trainer, pl_module)
        elif not self._resumed:
            self._save(trainer)  # so that a run can be resumed whenever it ends
        self._started = time.perf_counter()
        self._seen_before = int(pl_module.train_sums()[2].item())  # by the process that is being continued
        if self.stopped_early:
            trainer.should_stop = True
        if self._random is not None:  # now, because the first batch may be mixed by them before any other hook
            restore_random_state(self._random)
            self._random = None

    def _settle(self, trainer: L.Trainer, module: TransferModule) -> None:
        """Give this one of several processes what it has of its own: random numbers, and on a resume what it had."""
        self._ask_at, self._asked = 0, time.perf_counter()
        own, self._own = self._own or {}, None
        if "random" in own:
            self._random = own["random"]
        elif trainer.global_rank:
            torch.manual_seed(torch.initial_seed() + trainer.global_rank)  # dropout of its own
            self._random = None
        if "sums" in own:
            module.train_sums().copy_(own["sums"])
        for name, tensor in _own(trainer, module):
            if f"buffer {name}" in own:
                tensor.copy_(own[f"buffer {name}"])

    def _start_from(self, solved: Mapping[str, Any], trainer: L.Trainer, module: TransferModule) -> None:
        """Make the solved head the first candidate for the best, then soften it for training and save that."""
        if self.monitor in solved:
            self._improved({self.monitor: solved[self.monitor]}, BEFORE_TRAINING)
            self._save(trainer)
            if trainer.is_global_zero:
                _copy(self.last, self.best)
        assert isinstance(module.head, LinearHead)
        soften_head(module.head, solved["logit_std"])
        self._save(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the epoch's clock."""
        self._started = self._asked = time.perf_counter()
        self._seen_before = self._ask_at = 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop after a signal, between two steps. The last step of an epoch is left to the end of the epoch."""
        last = batch_idx + 1 >= trainer.num_training_batches
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if last:
            assert isinstance(pl_module, TransferModule)
            self._seen = int(pl_module.train_sums()[2].item())
            self._train_seconds = time.perf_counter() - self._started
            if trainer.world_size > 1:
                average(tensor for name, tensor in _own(trainer, pl_module) if name.startswith("ema "))
        signum = None
        if stepped and not last:
            signum = self._wish(trainer.world_size, (batch_idx + 1) // trainer.accumulate_grad_batches)
        if signum is not None:
            assert isinstance(pl_module, TransferModule)
            require_finite(sum(gather(float(pl_module.train_sums()[0].item()))), "train_loss", trainer, self.last)
            plan = self.schedule.plan
            assert plan is not None
            self._add_time(plan.phases[plan.phase_at(trainer.current_epoch)].name)
            self._save(trainer)
            self._interrupt(signum)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the epoch down and decide whether to go on."""
        assert isinstance(pl_module, TransferModule)
        # Decisions follow from these values: were they not the same everywhere, processes would wait for each other.
        values = on_first(lambda: {name: float(value) for name, value in trainer.callback_metrics.items()})
        for name in ("train_loss", "val_loss"):
            if name in values:
                require_finite(values[name], name, trainer, self.last)
        plan = self.schedule.plan
        assert plan is not None
        epoch = trainer.current_epoch
        index = plan.phase_at(epoch)
        phase = plan.phases[index]
        self._add_time(phase.name)
        lrs = plan.lrs((epoch + 1) * plan.steps_per_epoch - 1)
        pictures = self._seen - self._seen_before
        self.history.append(
            {
                "phase": phase.name,
                "epoch": epoch,
                "step": (epoch + 1) * plan.steps_per_epoch,
                **{f"lr_{group}": lr for group, lr in lrs.items()},
                **{name: values[name] for name in sorted(values, key=_column)},
                "images_per_s": round(pictures * trainer.world_size / max(self._train_seconds, 1e-9), 1),
            }
        )
        improved = self._improved(values, epoch)
        if self.patience is not None and index == len(plan.phases) - 1:
            since = epoch - max(self.best_epoch, plan.first_epoch(index) - 1)
            if since >= self.patience:
                self.stopped_early = True
                trainer.should_stop = True
        if isinstance(trainer.strategy, DDPStrategy):  # others spread the weights over the processes
            require_equal(pl_module, f"after epoch {epoch}")
        self._save(trainer)
        if improved and trainer.is_global_zero:
            _copy(self.last, self.best)
        if trainer.is_global_zero:
            self.write_history()
        signum = agree(self.flag.received or 0)[0]
        if signum and epoch + 1 < plan.epochs and not self.stopped_early:
            self._interrupt(signum)

    # ---- parts ------------------------------------------------------------------------------------------------

    def _improved(self, values: dict[str, float], epoch: int) -> bool:
        value = values[self.monitor]
        higher_is_better = self.monitor.endswith("acc")
        if self.best_value is None or (value > self.best_value if higher_is_better else value < self.best_value):
            self.best_value, self.best_epoch = value, epoch
            return True
        return False

    def _wish(self, processes: int, step: int) -> int | None:
        """Return the signal that any process has received; asked for at the same steps by all.

        The flag is read and never set: a signal may come while the others are asked, and is told the next time.
        """
        if processes == 1:
            return self.flag.received
        if step < self._ask_at:
            return None
        now = time.perf_counter()
        steps = min(ASK_STEPS, max(1, round(ASK_S * max(1, step - self._ask_at) / max(now - self._asked, 1e-9))))
        signum, steps = agree(self.flag.received or 0, steps)
        self._ask_at, self._asked = step + steps, now
        return signum or None

    def _add_time(self, phase: str) -> None:
        self.phase_seconds[phase] = self.phase_seconds.get(phase, 0.0) + time.perf_counter() - self._started

    def _save(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero and not self.run.is_dir():
            raise StorageError(f"{self.run}: the run directory has vanished - leave it alone while it is written to")
        trainer.save_checkpoint(self.last, weights_only=False)

    def _interrupt(self, signum: int) -> None:
        name = signal.Signals(signum).name
        raise Interrupted(f"stopped by {name}; saved {self.last} - go on with --resume --out {self.run}", signum)

    def write_history(self) -> None:
        """Write `history.csv` anew, whole."""
        text = io.StringIO()
        columns: dict[str, None] = {}
        for row in self.history:
            columns.update(dict.fromkeys(row))
        writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.history)
        atomic_write(self.run / "history.csv", text.getvalue())


def _own(trainer: L.Trainer, module: TransferModule) -> Iterator[tuple[str, Tensor]]:
    """Yield by name what processes measure on their own pictures in the course of an epoch: statistics, their EMA."""
    own = statistics(module)
    yield from own.items()
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning sets it
        if isinstance(callback, EMA):
            yield from ((f"ema {name}", tensor) for name, tensor in callback.average.items() if name in own)


def _copy(source: Path, target: Path) -> None:
    write_atomically(target, lambda temporary: _copy_file(source, temporary))


def _copy_file(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def _column(name: str) -> tuple[int, str]:
    order = ("train_loss", "train_acc", "val_loss", "val_acc")
    return (order.index(name) if name in order else len(order), name)
