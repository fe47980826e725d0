"""Options that nobody named, chosen by how many training pictures there are, each with its reason."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from transferkit.models.freezing import has_statistics
from transferkit.models.task import Task
from transferkit.options.training import AUTO, TrainingOptions
from transferkit.training.plan.options import lacks_solver, usual_lr
from transferkit.training.plan.phases import SOLVING, Phase

__all__ = ["EVEN", "Choice", "by_amount", "phases_after", "usual_batch"]

FEW = 512
"""Training pictures below which batch norm keeps its statistics."""

STEPS = 8
"""Of an epoch, at least, where batches can be so small."""

SIZES = (32, 16, 8)

LONG = 100
"""Steps of fine-tuning, at least, for the usual LR after a solved head: fewer get a lower one.

An adaptive optimizer moves every weight by about the LR in a step, and in its first steps all one way: with few of them
features are moved away from the head and not brought back.
"""

EVEN = 14.0
"""Training pictures for each output (of classes: a class) by which fine-tuning is as likely to be worth it as not."""

NOTHING = 0.005
"""Share of pictures that a solved head gets wrong, below which fine-tuning is left out."""

Options = TypeVar("Options", bound=TrainingOptions)


@dataclass(frozen=True)
class Choice:
    """An option and why it has its value.

    Attributes:
        name: Of the option.
        value: What was chosen.
        reason: Half a sentence.
    """

    name: str
    value: Any
    reason: str

    @property
    def title(self) -> str:
        """Its name in a line of output."""
        return {"batch_size": "batch", "batch_norm": "norm"}.get(self.name, self.name)

    @property
    def sentence(self) -> str:
        """The value and its reason."""
        return f"{self.value}: {self.reason}"


def by_amount(config: Options, rows: int, task: Task, backbone: nn.Module) -> tuple[Options, tuple[Choice, ...]]:
    """Return the options with a value for each that goes by the number of pictures, and what was chosen.

    Args:
        config: The options; what they name stays.
        rows: Training pictures, or windows of them.
        task: What is learnt.
        backbone: May have batch norm.
    """
    choices = []
    processes = config.devices * config.num_nodes
    size = config.batch_size if isinstance(config.batch_size, int) else usual_batch(rows // processes)
    epoch = math.ceil(rows / (size * processes * config.accumulate))
    if config.batch_size is None:
        many = "step" if epoch == 1 else "steps"
        choices.append(Choice("batch_size", size, f"{rows:,} training pictures make {epoch:,} {many} an epoch"))
    if config.batch_norm == AUTO and has_statistics(backbone):
        keep = rows < FEW and not config.recalibrate_bn
        reason = "too few to measure statistics on" if keep else "enough to measure statistics on"
        choices.append(Choice("batch_norm", "keep" if keep else "batch", f"{rows:,} pictures are {reason}"))
    if config.lr is None and _starts_solved(config):
        steps, usual = config.epochs * epoch, usual_lr(config, task)
        if steps < LONG:
            lr = float(f"{usual * math.sqrt(steps / LONG):.2g}")
            choices.append(Choice("lr", lr, f"{usual:g} is for {LONG} steps or more after a solved head, not {steps}"))
    chosen = {choice.name: choice.value for choice in choices}
    return dataclasses.replace(config, **chosen), tuple(choices)


def usual_batch(rows: int) -> int:
    """Return the largest of `SIZES` that leaves `STEPS` steps an epoch, or the smallest."""
    return next((size for size in SIZES if size * STEPS <= rows), SIZES[-1])


def _starts_solved(config: TrainingOptions) -> bool:
    """Whether everything is trained from a solved head."""
    return config.phases in SOLVING and config.solves_probe and not lacks_solver(config)


def phases_after(
    config: TrainingOptions,
    phases: tuple[Phase, ...],
    held_out: float | None,
    rows: int,
    *,
    outputs: int,
    validated: bool,
) -> tuple[tuple[Phase, ...], Choice]:
    """Return the phases that ``--phases auto`` comes to once the head is solved, and why.

    Fine-tuning cannot win more than what the head gets wrong on pictures that it was not fitted on. Where that is less
    than one in 200, by the rule of succession, so that ten pictures of ten prove nothing, the head is the result. Else
    everything is tuned, and afterwards the val pictures tell whether it was worth it, see `ByPictures`. Where there are
    none, and few to train on, nobody could tell, and as a rule it is not.

    Args:
        config: Options that need a trained phase keep it.
        phases: The solved head first.
        held_out: Cross-validated accuracy of the head inside the training split; ``None`` where there is none.
        rows: Training pictures.
        outputs: Of the head, such as classes.
        validated: Whether there are val pictures.
    """
    needs = (config.interpolate, config.snapshots, config.ema, config.l2_sp, config.fixres_epochs, config.lr == AUTO)
    if not any(needs) and not validated and rows < EVEN * outputs:
        reason = f"{rows:,} training pictures, {rows / outputs:.2g} for each of {outputs}, and none to validate on"
        return phases[:1], Choice("phases", "probe", reason)
    if held_out is None:
        return phases, Choice("phases", "probe-finetune", "a head that is solved first, and everything after it")
    share = f"the solved head is right on {held_out:.1%} of held-out training pictures"
    wrong = ((1 - held_out) * rows + 1) / (rows + 2)
    if wrong > NOTHING or any(needs):
        return phases, Choice("phases", "probe-finetune", share)
    return phases[:1], Choice("phases", "probe", f"{share}: nothing is left to win")
