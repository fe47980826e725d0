"""`RunKeeper`: what is written after every epoch, and the clean stop after a signal."""

from __future__ import annotations

import csv
import io
import math
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint

from transferkit.errors import Interrupted, StorageError, TrainingError
from transferkit.files import atomic_write, write_atomically
from transferkit.models.heads import LinearHead
from transferkit.models.module import TransferModule
from transferkit.training.callbacks import PhaseSchedule
from transferkit.training.lpft import soften_head

__all__ = ["BEFORE_TRAINING", "RunKeeper", "SignalFlag", "random_state", "restore_random_state"]

SAME_SIGNAL_S = 1.0

BEFORE_TRAINING = -1
"""The epoch that stands for a solved head."""


class SignalFlag:
    """Remembers the first SIGINT or SIGTERM, so that training can stop between two steps; a second one ends at once.

    `timeout`, batch systems and terminals signal a process and its group, so the same wish can arrive twice: what
    follows within a second is the first one again.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._at = 0.0

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._at = signum, now
        elif now - self._at > SAME_SIGNAL_S:
            os._exit(128 + signum)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Catch the signals for the time of the block; a no-op outside the main thread."""
        try:
            before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # signals can be set in the main thread only
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def random_state() -> dict[str, Any]:
    """Return the state of every global random generator, as plain data and tensors."""
    version, internal, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)
    return {
        "python": [version, list(internal), gauss],
        "numpy": {
            "bit_generator": numpy_state["bit_generator"],
            "key": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
            "pos": int(numpy_state["state"]["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Put every global random generator back to `random_state`'s values."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    saved = state["numpy"]
    np.random.set_state(
        {
            "bit_generator": saved["bit_generator"],
            "state": {"key": saved["key"].numpy().astype(np.uint32), "pos": saved["pos"]},
            "has_gauss": saved["has_gauss"],
            "gauss": saved["gauss"],
        }
    )
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])


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
        """Take over the state of an earlier process; the random generators follow just before the first step."""
        self.history = list(state_dict["history"])
        self.best_value = state_dict["best_value"]
        self.best_epoch = state_dict["best_epoch"]
        self.stopped_early = state_dict["stopped_early"]
        self.phase_seconds = dict(state_dict["phase_seconds"])
        self.solved = state_dict.get("solved")
        self._resumed = True
        self._random = state_dict["random"]

    # ---- hooks ------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock; a run that had stopped early stays stopped; one that begins with a solved head saves it."""
        assert isinstance(pl_module, TransferModule)
        if self.solved is not None and not self._resumed:
            self._start_from(self.solved, trainer, pl_module)
        self._started = time.perf_counter()
        self._seen_before = int(pl_module.train_sums()[2].item())  # by the process that is being continued
        if self.stopped_early:
            trainer.should_stop = True

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
        self._started = time.perf_counter()
        self._seen_before = 0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Restore the random generators of the process that is being continued."""
        if self._random is not None:
            restore_random_state(self._random)
            self._random = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop after a signal, between two steps. The last step of an epoch is left to the end of the epoch."""
        last = batch_idx + 1 >= trainer.num_training_batches
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if last:
            self._train_seconds = time.perf_counter() - self._started
        if self.flag.received is not None and stepped and not last:
            _require_finite(float(pl_module.train_sums()[0].item()), "train_loss", trainer, self)  # type: ignore[operator]
            plan = self.schedule.plan
            assert plan is not None
            self._add_time(plan.phases[plan.phase_at(trainer.current_epoch)].name)
            self._save(trainer)
            self._interrupt()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the epoch down and decide whether to go on."""
        assert isinstance(pl_module, TransferModule)
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        for name in ("train_loss", "val_loss"):
            if name in values:
                _require_finite(values[name], name, trainer, self)
        plan = self.schedule.plan
        assert plan is not None
        epoch = trainer.current_epoch
        index = plan.phase_at(epoch)
        phase = plan.phases[index]
        self._add_time(phase.name)
        lrs = plan.lrs((epoch + 1) * plan.steps_per_epoch - 1)
        pictures = int(pl_module.train_sums()[2].item()) - self._seen_before
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
        self._save(trainer)
        if improved and trainer.is_global_zero:
            _copy(self.last, self.best)
        if trainer.is_global_zero:
            self.write_history()
        if self.flag.received is not None and epoch + 1 < plan.epochs and not self.stopped_early:
            self._interrupt()

    # ---- parts ------------------------------------------------------------------------------------------------

    def _improved(self, values: dict[str, float], epoch: int) -> bool:
        value = values[self.monitor]
        higher_is_better = self.monitor.endswith("acc")
        if self.best_value is None or (value > self.best_value if higher_is_better else value < self.best_value):
            self.best_value, self.best_epoch = value, epoch
            return True
        return False

    def _add_time(self, phase: str) -> None:
        self.phase_seconds[phase] = self.phase_seconds.get(phase, 0.0) + time.perf_counter() - self._started

    def _save(self, trainer: L.Trainer) -> None:
        if not self.run.is_dir():
            raise StorageError(f"{self.run}: the run directory has vanished - leave it alone while it is written to")
        trainer.save_checkpoint(self.last, weights_only=False)

    def _interrupt(self) -> None:
        signum = self.flag.received
        assert signum is not None
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


def _copy(source: Path, target: Path) -> None:
    write_atomically(target, lambda temporary: _copy_file(source, temporary))


def _copy_file(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def _column(name: str) -> tuple[int, str]:
    order = ("train_loss", "train_acc", "val_loss", "val_acc")
    return (order.index(name) if name in order else len(order), name)


def _require_finite(value: float, name: str, trainer: L.Trainer, keeper: RunKeeper) -> None:
    if math.isfinite(value):
        return
    lr = max(group["lr"] for group in trainer.optimizers[0].param_groups)
    kept = f"the last finite state is {keeper.last}" if keeper.last.exists() else "nothing was saved yet"
    raise TrainingError(
        f"{name} is {value} in epoch {trainer.current_epoch}, step {trainer.global_step}, at LR {lr:.2g}; {kept} - try "
        "a smaller --lr, or --precision 32"
    )
