"""WiSE-FT: between the weights that fine-tuning starts from and those it ends with, the ones that validate best."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transferkit.core.csv import csv_text
from transferkit.core.errors import CheckpointError
from transferkit.core.files import atomic_write
from transferkit.machine.lightning_import import Callback, L
from transferkit.models.module import HEAD, TransferModule
from transferkit.runs.files import followed_figures
from transferkit.runs.measure import network_outputs
from transferkit.show.charts import Line, Lines, save_charts
from transferkit.show.words import mid_sentence
from transferkit.training.craft.snapshots import load_weights, read_weights, weights_of, write_weights
from transferkit.training.loop.early_stop import CLEAR, Candidate, clearness
from transferkit.training.loop.phase_schedule import PhaseSchedule, running_epoch
from transferkit.training.plan.plan import Plan

__all__ = ["Interpolation", "KeepStart", "choose_alpha", "interpolate_states", "load_start"]

ALPHAS = tuple(number / 10 for number in range(11))


@dataclass(frozen=True)
class Interpolation:
    """What came of weights between the start (alpha 0) and the end (alpha 1) of fine-tuning, on the validation split.

    Attributes:
        alphas: Ascending, in [0, 1].
        figures: Of each alpha, by name as in `history.csv`: ``val_acc``, ``val_loss``.
        alpha: The one that was chosen.
        monitor: The figure that it was chosen by.
    """

    alphas: tuple[float, ...]
    figures: Mapping[str, tuple[float, ...]]
    alpha: float
    monitor: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for `metrics.json`."""
        figures = {name: list(values) for name, values in self.figures.items()}
        return {"alpha": self.alpha, "alphas": list(self.alphas), **figures}

    def save(self, run: Path) -> None:
        """Write `interpolation.csv` and `interpolation.png`. Raises `StorageError`."""
        rows = zip(
            self.alphas, *self.figures.values(), (int(alpha == self.alpha) for alpha in self.alphas), strict=True
        )
        atomic_write(run / "interpolation.csv", csv_text([("alpha", *self.figures, "chosen"), *rows]))
        charts = []
        for figure in reversed(followed_figures([self.figures], {})):
            label = f"val {mid_sentence(figure.label)}"
            lines = Lines(
                [Line(label, self.alphas, self.figures[f"val_{figure.key}"])],
                "alpha: 0 is the start of fine-tuning, 1 its end", percent=figure.unit == "share", fractions=True,
                chosen=(self.alpha, f"chosen by {self.monitor.replace('_', ' ')}"),
            )  # fmt: skip
            title = f"{label} of the mixed weights"
            charts.append(lines.chart(label, title, f"{label} over {len(self.alphas)} values of alpha"))
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
        CheckpointError: Names, shapes or types differ.
    """
    kinds = [{name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()} for state in (start, end)]
    if differing := sorted(name for name in start.keys() | end.keys() if kinds[0].get(name) != kinds[1].get(name)):
        name = differing[0]
        raise CheckpointError(
            f"cannot interpolate {name!r}: {kinds[0].get(name)} at the start, {kinds[1].get(name)} at the end - "
            "give two states of one model"
        )
    result = {}
    for name, last in end.items():
        first = start[name]
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
) -> Interpolation:
    """Measure weights between two states on validation pictures, and leave the best in the module.

    They are compared picture by picture, as epochs are: of those that are not clearly worse than the one of the lowest
    mean loss the largest alpha is taken. What was trained is changed only where that shows. The figures of the chosen
    one are optimistic, as those of every choice made on the validation split.

    Args:
        module: Takes the weights; in eval mode on `device` afterwards.
        start: Backbone and head as fine-tuning began, from `load_start`.
        end: Backbone and head as it ended, from `weights_of`.
        loader: Gives ``(B, H, W, 3) uint8`` pictures and targets.
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``.
        alphas: What to try, ascending, in [0, 1].

    Raises:
        CheckpointError: The states are not of one model, or not of this one.
    """
    task = module.task
    first = task.objective.watched[0]
    measured, candidates = [], []
    for number, alpha in enumerate(alphas):
        load_weights(module, interpolate_states(start, end, alpha), source=f"alpha {alpha:g}")
        outputs, targets = network_outputs(module, loader, device=device)
        measured.append(task.plain_figures((first, "loss"), outputs, targets))
        losses = task.picture_losses(outputs, targets)
        candidates.append(Candidate(number, float(losses.mean()), losses=losses))
    best = min(candidates, key=lambda one: one.value)
    chosen = max(alphas[one.epoch] for one in candidates if clearness(one, best) <= CLEAR)
    load_weights(module, interpolate_states(start, end, chosen), source=f"alpha {chosen:g}")
    figures = {f"val_{name}": tuple(values[name] for values in measured) for name in measured[0]}
    return Interpolation(tuple(alphas), figures, chosen, "val_loss")


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
        if set(phase.trained(plan.layout)) - {HEAD}:
            return plan.first_epoch(index)
    return None
