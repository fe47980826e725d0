"""A loss that is no longer finite ends a run, with the place and the pictures where it happened."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transferkit.core.errors import TrainingError
from transferkit.core.text import listing
from transferkit.data.batches.loader import ImageLoader
from transferkit.machine.lightning_import import Callback, L

__all__ = ["FiniteLoss", "require_finite"]

SHOWN = 4
"""Pictures of a batch that a message names."""


class FiniteLoss(Callback):
    """Looks at the loss of every batch, where that costs nothing: on the CPU, in a run of one process.

    On a GPU every step would wait for the device; there, and among several processes, the epoch's mean is looked at,
    by `RunRecorder`.

    Args:
        last: The newest checkpoint, for the message.

    Raises:
        TrainingError: After a batch whose loss is not finite.
    """

    def __init__(self, last: Path) -> None:
        self.last = last

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the batch's loss."""
        if trainer.world_size == 1 and pl_module.device.type == "cpu":
            loss = float(outputs["loss"])
            if not math.isfinite(loss):
                loader = trainer.train_dataloader
                paths = loader.paths_of(batch_idx) if isinstance(loader, ImageLoader) else []
                require_finite(loss, "train_loss", trainer, self.last, paths)


def require_finite(value: float, name: str, trainer: L.Trainer, last: Path, paths: Sequence[str] = ()) -> None:
    """Refuse to go on with a value that is not finite.

    Args:
        value: What was measured.
        name: How it is called.
        trainer: Where it was measured.
        last: The newest checkpoint, for the message.
        paths: Pictures that it was measured on, where they are known.

    Raises:
        TrainingError: It is infinite or not a number.
    """
    if math.isfinite(value):
        return
    lr = max(group["lr"] for group in trainer.optimizers[0].param_groups)
    where = f"epoch {trainer.current_epoch}, step {trainer.global_step}, at LR {lr:.2g}"
    pictures = f", on {listing(paths, limit=SHOWN)}" if paths else ""
    state = f"the last finite state is {last}" if last.exists() else "nothing was saved yet"
    raise TrainingError(f"{name} is {value} in {where}{pictures}; {state} - try a smaller --lr, or --precision 32")
