"""What a training did, step by step, in a file that survives its end: for comparing runs bit for bit."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from transferkit.models.digest import tensor_digest
from transferkit.training.loop.phase_schedule import running_epoch

__all__ = ["KillAt", "Trace", "read_trace"]


class Trace(Callback):
    """Appends a line per batch: where it stands, every group's LR, the momentum, and what was in the batch.

    Args:
        path: A file of JSON lines, appended to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Write the line."""
        images, targets = batch
        groups = trainer.optimizers[0].param_groups
        line = {
            "at": f"{running_epoch(trainer)}:{batch_idx}",
            "lrs": {group["name"]: group["lr"] for group in groups},
            "momentum": groups[0]["betas"][0] if "betas" in groups[0] else groups[0]["momentum"],
            "batch": tensor_digest({"images": images, "targets": targets}),
        }
        with self.path.open("a") as stream:
            stream.write(json.dumps(line) + "\n")


def read_trace(path: Path) -> tuple[dict[str, str], list[str]]:
    """Return the line of every batch by ``epoch:batch``, and the places whose repeated lines differ.

    A resumed run repeats what came after its checkpoint; it must repeat it exactly. A last line that a killed process
    left unfinished is skipped.
    """
    lines: dict[str, str] = {}
    differing = []
    for text in path.read_text().splitlines():
        try:
            at = json.loads(text)["at"]
        except ValueError:
            continue
        if lines.setdefault(at, text) != text:
            differing.append(at)
    return lines, differing


class KillAt(Callback):
    """Kills its own process, as the system would: SIGKILL, a moment after a batch or a validation has begun.

    Args:
        epoch: Which epoch.
        batch: Which batch of it; ``None`` for the epoch's end, where validation begins and the checkpoints follow.
        delay: Seconds until the signal, so that it falls anywhere.
    """

    def __init__(self, epoch: int, batch: int | None, delay: float) -> None:
        self.epoch = epoch
        self.batch = batch
        self.delay = delay

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock at the batch."""
        if batch_idx == self.batch and running_epoch(trainer) == self.epoch:
            self._start()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock at the epoch's end."""
        if self.batch is None and trainer.current_epoch == self.epoch:
            self._start()

    def _start(self) -> None:
        timer = threading.Timer(self.delay, os.kill, (os.getpid(), signal.SIGKILL))
        timer.daemon = True
        timer.start()
