"""WiSE-FT: between the weights that fine-tuning starts from and those it ends with, the ones that validate best."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from transferkit.core.errors import CheckpointError, ConfigError, did_you_mean
from transferkit.core.files import atomic_write
from transferkit.models.module import HEAD, TransferModule
from transferkit.runs.measure import predictions_of
from transferkit.show.charts import Line, Lines, save_charts
from transferkit.training.craft.snapshots import load_weights, read_weights, weights_of, write_weights
from transferkit.training.loop.phase_schedule import PhaseSchedule, running_epoch
from transferkit.training.plan.plan import Plan

__all__ = ["Interpolation", "KeepStart", "choose_alpha", "interpolate_states", "load_start"]

ALPHAS = tuple(number / 10 for number in range(11))
SCORES = ("acc", "loss")


@dataclass(frozen=True)
class Interpolation:
    """What came of weights between the start (alpha 0) and the end (alpha 1) of fine-tuning, on the validation split.

    Attributes:
        alphas: Ascending, in [0, 1].
        val_acc: Of each, in [0, 1].
        val_loss: Negative log-likelihood of each.
        alpha: The one that was chosen.
        score: What it was chosen by, ``"acc"`` or ``"loss"``.
    """

    alphas: tuple[float, ...]
    val_acc: tuple[float, ...]
    val_loss: tuple[float, ...]
    alpha: float
    score: str

    def save(self, run: Path) -> None:
        """Write `interpolation.csv` and `interpolation.png`. Raises `StorageError`."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("alpha", "val_acc", "val_loss", "chosen"))
        for alpha, acc, loss in zip(self.alphas, self.val_acc, self.val_loss, strict=True):
            writer.writerow((alpha, acc, loss, int(alpha == self.alpha)))
        atomic_write(run / "interpolation.csv", text.getvalue())
        charts = [
            Lines([Line(label, self.alphas, values)], "alpha: 0 is the start of fine-tuning, 1 its end",
                  percent=percent, fractions=True, chosen=(self.alpha, f"chosen by val {self.score}"))
            .chart(label, f"{label} of the mixed weights", f"{label} over {len(self.alphas)} values of alpha")
            for label, values, percent in (("val accuracy", self.val_acc, True), ("val loss", self.val_loss, False))
        ]  # fmt: skip
        save_charts(charts, run / "interpolation.png")


def interpolate_states(start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Return ``(1 - alpha) * start + alpha * end`` (WiSE-FT; Wortsman et al. 2022, section 3, eq. 1).

    Exact at alpha 0 and 1, and wherever both agree. Integer buffers are taken from `end`. A batch norm's running
    statistics are interpolated like weights, which is only near to what the network between would measure.

    Args:
        start: Tensors by name; unchanged.
        end: Of the same names and shapes; unchanged.
        alpha: In [0, 1].

    Raises:
        ConfigError: `alpha` is out of range.
        CheckpointError: Names, shapes or types differ.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ConfigError(f"alpha is {alpha}, expected a number in [0, 1]")
    strangers = sorted(start.keys() ^ end.keys())
    if strangers:
        raise CheckpointError(
            f"cannot interpolate: {strangers[0]!r} is in one of the two states only - give two of one model"
        )
    result = {}
    for name, last in end.items():
        first = start[name]
        if (first.shape, first.dtype) != (last.shape, last.dtype):
            raise CheckpointError(
                f"cannot interpolate {name!r}: {tuple(first.shape)} {first.dtype} at the start, {tuple(last.shape)} "
                f"{last.dtype} at the end - give two states of one model"
            )
        if alpha == 1.0 or not last.is_floating_point():
            result[name] = last.clone()
        else:
            result[name] = first.clone() if alpha == 0.0 else torch.lerp(first, last, alpha)
    return result


def choose_alpha(
    module: TransferModule,
    start: Mapping[str, Tensor],
    end: Mapping[str, Tensor],
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    device: str = "cpu",
    alphas: Sequence[float] = ALPHAS,
    score: str = "acc",
) -> Interpolation:
    """Measure weights between two states on validation pictures, and leave the best in the module.

    Of equally good ones the largest alpha is taken: what was trained is changed only where that shows. The figures of
    the chosen one are optimistic, as those of every choice made on the validation split.

    Args:
        module: Takes the weights; in eval mode on `device` afterwards.
        start: Backbone and head as fine-tuning began, from `load_start`.
        end: Backbone and head as it ended, from `weights_of`.
        loader: Gives ``(B, H, W, 3) uint8`` pictures and labels.
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``.
        alphas: What to try, in [0, 1].
        score: ``"acc"``, the higher the better, or ``"loss"``, the lower the better.

    Raises:
        ConfigError: The score is unknown, or there are no alphas, or one is out of range.
        CheckpointError: The states are not of one model, or not of this one.
    """
    if score not in SCORES:
        raise ConfigError(f"unknown score {score!r}.{did_you_mean(score, SCORES)} Known: {', '.join(SCORES)}.")
    tried = tuple(sorted({float(alpha) for alpha in alphas}))
    if not tried:
        raise ConfigError("there are no alphas to try, expected at least one in [0, 1]")
    measured = []
    for alpha in tried:
        load_weights(module, interpolate_states(start, end, alpha), source=f"alpha {alpha:g}")
        measured.append(_measure(*predictions_of(module, loader, device=device)))
    accs, losses = zip(*measured, strict=True)
    merits = accs if score == "acc" else tuple(-loss for loss in losses)
    chosen = max(zip(merits, tried, strict=True))[1]
    load_weights(module, interpolate_states(start, end, chosen), source=f"alpha {chosen:g}")
    return Interpolation(tried, accs, losses, chosen, score)


def _measure(probs: Tensor, targets: Tensor) -> tuple[float, float]:
    """Accuracy and negative log-likelihood."""
    own = probs.double().gather(1, targets[:, None]).squeeze(1)
    loss = -own.clamp_min(torch.finfo(torch.float32).tiny).log().mean()
    return float((probs.argmax(dim=1) == targets).double().mean()), float(loss)


# ---- the start --------------------------------------------------------------------------------------------------


class KeepStart(Callback):
    """Saves backbone and head as the first phase that trains more than the head begins, to interpolate from.

    That is the probe, where one comes first. Its head is saved as training takes it up: softened, where it was solved.

    The file is `checkpoints/start.safetensors`. It is written once: a resumed run keeps the one that is there, and
    where it is missing or damaged after fine-tuning has begun, the run stops, for nothing could bring it back.

    Args:
        run: The run directory.
        schedule: Knows the phases; must come before this callback.

    Raises:
        CheckpointError: On a resume, the file is missing or damaged.
    """

    def __init__(self, run: Path, schedule: PhaseSchedule) -> None:
        self.run = run
        self.schedule = schedule
        self._first: int | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look up where fine-tuning begins."""
        self._first = _first_wide_epoch(self.schedule.plan)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save the weights, where fine-tuning begins with this batch; only here have all callbacks prepared them."""
        if self._first is None or running_epoch(trainer) < self._first:
            return
        begins = running_epoch(trainer) == self._first and batch_idx == 0
        self._first = None
        try:
            load_start(self.run)
        except CheckpointError:
            if not begins:
                raise
            if trainer.is_global_zero:
                write_weights(_start_path(self.run), weights_of(pl_module))


def load_start(run: Path) -> dict[str, Tensor]:
    """Return backbone and head as fine-tuning began, by name in the module's state dict.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    return read_weights(_start_path(run))


def _start_path(run: Path) -> Path:
    return run / "checkpoints" / "start.safetensors"


def _first_wide_epoch(plan: Plan) -> int | None:
    """The epoch, over all phases, in which more than the head begins to learn; ``None`` when it never does."""
    for index, phase in enumerate(plan.phases):
        if set(phase.trained(plan.group_names)) - {HEAD}:
            return plan.first_epoch(index)
    return None
