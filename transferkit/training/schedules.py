"""Learning-rate schedules: pure functions of the step, in whole numbers.

Every schedule gives a *factor* that multiplies a group's own peak LR, so ratios between groups hold at every step.
Steps count optimizer steps within one phase, from 0. Nothing is remembered between calls: resume, plots and plans
need no more than the step.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from transferkit.errors import ConfigError, did_you_mean, gather

__all__ = ["SCHEDULES", "SGDR", "Constant", "Cosine", "OneCycle", "Schedule", "make_schedule", "simulate"]


@dataclass(frozen=True)
class Schedule(ABC):
    """A schedule as data: what a recipe holds and a plan can show."""

    name: ClassVar[str]

    @abstractmethod
    def factor(self, step: int, steps: int, steps_per_epoch: int) -> float:
        """Return the LR multiplier of one step.

        Args:
            step: Optimizer step within the phase, in [0, steps).
            steps: Length of the phase in optimizer steps.
            steps_per_epoch: Optimizer steps in one epoch.

        Returns:
            A number in [0, 1]; 1 is the peak LR of the group.
        """

    @abstractmethod
    def problems(self, epochs: int) -> list[str]:
        """Return what is wrong with this schedule for a phase of `epochs` epochs; empty when nothing is."""

    def to_dict(self) -> dict[str, Any]:
        """Return the schedule as a recipe writes it: its name and its options."""
        return {"name": self.name, **asdict(self)}


def _ratio_problem(name: str, value: float) -> list[str]:
    return [] if 0.0 <= value < 1.0 else [f"{name} is {value}, expected a ratio in [0, 1)"]


def _cosine(position: float, low: float) -> float:
    """Half a cosine from 1 at `position` 0 to `low` at `position` 1."""
    return low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * position))


@dataclass(frozen=True)
class Constant(Schedule):
    """The peak LR at every step, after an optional linear warmup.

    Args:
        warmup_epochs: Length of the warmup in epochs; fractions are fine.
    """

    name = "constant"
    warmup_epochs: float = 0.0

    def factor(self, step: int, steps: int, steps_per_epoch: int) -> float:  # noqa: D102
        warmup = round(self.warmup_epochs * steps_per_epoch)
        return (step + 1) / warmup if step < warmup else 1.0

    def problems(self, epochs: int) -> list[str]:  # noqa: D102
        return _warmup_problem(self.warmup_epochs, epochs)


@dataclass(frozen=True)
class Cosine(Schedule):
    """Linear warmup, then half a cosine to `lr_min_ratio` (SGDR, Loshchilov & Hutter 2017, eq. 5, one cycle).

    The first warmup step has the LR 1/warmup of the peak, the last one the peak itself. The minimum would be reached
    one step after the last, as in torch's `CosineAnnealingLR`.

    Args:
        warmup_epochs: Length of the warmup in epochs; fractions are fine.
        lr_min_ratio: Final LR over peak LR, in [0, 1).
    """

    name = "cosine"
    warmup_epochs: float = 0.0
    lr_min_ratio: float = 0.0

    def factor(self, step: int, steps: int, steps_per_epoch: int) -> float:  # noqa: D102
        warmup = round(self.warmup_epochs * steps_per_epoch)
        if step < warmup:
            return (step + 1) / warmup
        return _cosine((step - warmup) / max(1, steps - warmup), self.lr_min_ratio)

    def problems(self, epochs: int) -> list[str]:  # noqa: D102
        return _warmup_problem(self.warmup_epochs, epochs) + _ratio_problem("lr_min_ratio", self.lr_min_ratio)


@dataclass(frozen=True)
class OneCycle(Schedule):
    """Up and down once: the 1cycle policy (Smith & Topin 2018), cosine-shaped, two-phased like torch's `OneCycleLR`.

    Args:
        pct_start: Share of the phase spent rising, in (0, 1).
        div_factor: Peak LR over initial LR, at least 1.
        final_div_factor: Initial LR over final LR, at least 1.
    """

    name = "one_cycle"
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4

    def factor(self, step: int, steps: int, steps_per_epoch: int) -> float:  # noqa: D102
        start, final = 1.0 / self.div_factor, 1.0 / (self.div_factor * self.final_div_factor)
        top, end = self.pct_start * steps - 1.0, steps - 1.0
        if step <= top:
            return 1.0 + (start - 1.0) * 0.5 * (1.0 + math.cos(math.pi * step / top)) if top > 0 else 1.0
        return _cosine((step - top) / (end - top), final) if end > top else 1.0

    def problems(self, epochs: int) -> list[str]:  # noqa: D102
        found = [] if 0.0 < self.pct_start < 1.0 else [f"pct_start is {self.pct_start}, expected a share in (0, 1)"]
        for name, value in (("div_factor", self.div_factor), ("final_div_factor", self.final_div_factor)):
            if not (math.isfinite(value) and value >= 1.0):
                found.append(f"{name} is {value}, expected a finite number of at least 1")
        return found


@dataclass(frozen=True)
class SGDR(Schedule):
    """Cosine annealing with warm restarts (SGDR, Loshchilov & Hutter 2017, eq. 5).

    Cycles are counted in whole steps, so that a restart never falls between two steps; the paper's `T_mult` may be
    real, ours is a whole number.

    Args:
        cycle_epochs: Length of the first cycle in epochs, at least 1.
        cycle_mult: Each cycle is so many times longer than the one before, at least 1.
        cycle_decay: Each restart's peak over the one before, in (0, 1].
        lr_min_ratio: LR at the end of a cycle over the first peak, in [0, 1).
    """

    name = "sgdr"
    cycle_epochs: int = 1
    cycle_mult: int = 1
    cycle_decay: float = 1.0
    lr_min_ratio: float = 0.0

    def factor(self, step: int, steps: int, steps_per_epoch: int) -> float:  # noqa: D102
        length, peak = self.cycle_epochs * steps_per_epoch, 1.0
        if self.cycle_mult == 1:
            cycles, step = divmod(step, length)
            peak = self.cycle_decay**cycles
        else:
            while step >= length:
                step, length, peak = step - length, length * self.cycle_mult, peak * self.cycle_decay
        peak = max(peak, self.lr_min_ratio)
        return self.lr_min_ratio + (peak - self.lr_min_ratio) * 0.5 * (1.0 + math.cos(math.pi * step / length))

    def problems(self, epochs: int) -> list[str]:  # noqa: D102
        found = _ratio_problem("lr_min_ratio", self.lr_min_ratio)
        for name, value in (("cycle_epochs", self.cycle_epochs), ("cycle_mult", self.cycle_mult)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                found.append(f"{name} is {value!r}, expected a whole number of at least 1")
        if not 0.0 < self.cycle_decay <= 1.0:
            found.append(f"cycle_decay is {self.cycle_decay}, expected a ratio in (0, 1]")
        if not found and self.cycle_epochs > epochs:
            found.append(f"cycle_epochs is {self.cycle_epochs}, longer than the phase of {epochs} epochs")
        return found


def _warmup_problem(warmup_epochs: float, epochs: int) -> list[str]:
    if not (math.isfinite(warmup_epochs) and warmup_epochs >= 0):
        return [f"warmup_epochs is {warmup_epochs}, expected a number of at least 0"]
    if warmup_epochs > epochs:
        return [f"warmup_epochs is {warmup_epochs}, longer than the phase of {epochs} epochs"]
    return []


SCHEDULES: dict[str, type[Schedule]] = {kind.name: kind for kind in (Constant, Cosine, OneCycle, SGDR)}


def make_schedule(value: str | Mapping[str, Any] | Schedule) -> Schedule:
    """Return the schedule that a recipe names.

    Args:
        value: A name (``"cosine"``), a mapping with ``name`` and the schedule's options, or a schedule.

    Raises:
        ConfigError: The name or an option is unknown, or an option has the wrong type.
    """
    if isinstance(value, Schedule):
        return value
    options = {"name": value} if isinstance(value, str) else dict(value)
    name = options.pop("name", None)
    if name not in SCHEDULES:
        raise ConfigError(
            f"unknown schedule {name!r}.{did_you_mean(str(name), SCHEDULES)} Known: {', '.join(sorted(SCHEDULES))}."
        )
    kind = SCHEDULES[name]
    known = {field.name: field for field in fields(kind)}
    problems = []
    for key, option in options.items():
        if key not in known:
            problems.append(
                f"schedule {name!r} has no option {key!r}.{did_you_mean(str(key), known)} Known: {', '.join(known)}."
            )
        elif isinstance(option, bool) or not isinstance(option, int | float):
            problems.append(f"option {key!r} of schedule {name!r} is {option!r}, expected a number")
    if problems:
        raise ConfigError(gather(problems))
    return kind(**options)


def simulate(schedule: Schedule, steps: int, *, steps_per_epoch: int = 1) -> list[float]:
    """Return the factor of every step of a phase, without any model.

    Args:
        schedule: What to run.
        steps: Length of the phase in optimizer steps.
        steps_per_epoch: Optimizer steps in one epoch.
    """
    return [schedule.factor(step, steps, steps_per_epoch) for step in range(steps)]
