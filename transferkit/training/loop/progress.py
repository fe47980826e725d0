"""`PhaseProgress`: a bar per phase of a training."""

from __future__ import annotations

import time
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from transferkit.machine.lightning_import import Callback, L
from transferkit.models.module import TransferModule
from transferkit.show.progress import RateColumn
from transferkit.training.loop.phase_schedule import PhaseSchedule, running_epoch

__all__ = ["PhaseProgress"]

REFRESH_S = 0.5


class PhaseProgress(Callback):
    """A rich progress bar per phase: loss and figures, images/s, time left.

    The figures are those of the epoch so far. They are fetched twice a second at most; from a GPU by a copy
    that nobody waits for, so the bar shows the state of half a second ago.

    Args:
        schedule: The callback that knows the plan.
        module: What is trained.
        console: Where to draw.
    """

    def __init__(self, schedule: PhaseSchedule, module: TransferModule, console: Console) -> None:
        self.schedule = schedule
        self.module = module
        self.bar = Progress(
            TextColumn("{task.description:<16}", style="bold", markup=False),
            BarColumn(bar_width=24),
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            TextColumn("{task.fields[figures]}"),
            RateColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task: Any = None
        self._phase: str | None = None
        self._shown = 0.0
        self._pictures = 0
        self._since = 0.0
        self._pending: tuple[Tensor, Any] | None = None
        self._validation = ""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to draw."""
        self.bar.start()
        self._open(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go on to the next phase's bar when this epoch begins one."""
        self._open(trainer)
        self._pictures, self._since = 0, time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance, and refresh the figures now and then."""
        self._pictures += len(batch[1]) * trainer.world_size
        now = time.perf_counter()
        if now - self._shown < REFRESH_S and batch_idx + 1 < trainer.num_training_batches:
            return
        self._shown = now
        done = self._batches_done(trainer, batch_idx + 1)
        rate = self._pictures / max(now - self._since, 1e-9)
        self.bar.update(self._task, completed=done, rate=rate, figures=self._figures(self.module.train_sums()))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the figure of the validation pictures from here on."""
        name = next(iter(self.module.task.objective.running), None)
        if f"val_{name}" in trainer.callback_metrics and self._task is not None:
            self._validation = f" val {name} {float(trainer.callback_metrics[f'val_{name}']):.1%}"

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the finished bars on the screen."""
        self._finish()
        self.bar.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self.bar.stop()

    def _open(self, trainer: L.Trainer) -> None:
        plan = self.schedule.plan
        epoch = running_epoch(trainer)
        index = plan.phase_at(epoch)
        phase = plan.phases[index]
        if phase.name != self._phase:
            self._finish()
            self._phase = phase.name
            total = phase.epochs * trainer.num_training_batches
            self._task = self.bar.add_task(
                phase.name, total=total, epoch=1, epochs=phase.epochs, figures="", rate=None,
                completed=self._batches_done(trainer, 0),
            )  # fmt: skip
        self.bar.update(self._task, epoch=epoch - plan.first_epoch(index) + 1)

    def _finish(self) -> None:
        if self._task is not None:
            task = next(task for task in self.bar.tasks if task.id == self._task)
            figures = task.fields["figures"].split(" val ")[0]
            self.bar.update(self._task, figures=figures + self._validation)

    def _batches_done(self, trainer: L.Trainer, batches: int) -> int:
        plan = self.schedule.plan
        epoch = running_epoch(trainer)
        before = epoch - plan.first_epoch(plan.phase_at(epoch))
        return int(before * trainer.num_training_batches + batches)

    def _figures(self, sums: Tensor) -> str:
        if sums.device.type == "cuda":
            arrived = self._pending
            target = torch.empty(len(sums), pin_memory=True).copy_(sums, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self._pending = (target, event)
            if arrived is None or not arrived[1].query():
                return ""
            sums = arrived[0]
        figures = self.module.running_figures(sums)
        loss = figures.pop("loss")
        others = "".join(f" {name} {value:.1%}" for name, value in figures.items())
        return f"loss {loss:.3f}{others}{self._validation}"
