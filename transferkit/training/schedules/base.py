"""What a learning-rate schedule is: a pure function of the step, as a frozen record; and checks that all share.

Every schedule gives a *factor* that multiplies a group's own peak LR, so ratios between groups hold at every step.
Steps count optimizer steps within one phase, from 0. Nothing is remembered between calls: resume, plots and plans
need no more than the step. A schedule that follows the validation loss gets it by `Schedule.with_values`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

__all__ = [
    "Schedule",
    "flag_problem",
    "lr_min_problem",
    "number_problem",
    "option_types",
    "ramp",
    "share_problem",
    "warmup_problem",
    "warmup_steps",
    "whole_problem",
]


@dataclass(frozen=True)
class Schedule(ABC):
    """A schedule as data: what a recipe holds and a plan can show."""

    name: ClassVar[str]
    needs_values: ClassVar[bool] = False
    """Whether it goes by the values that `with_values` takes."""

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

    def momentum(self, step: int, steps: int, steps_per_epoch: int) -> float | None:
        """Return the momentum of one step: of SGD the momentum, of Adam the first beta.

        Args:
            step: Optimizer step within the phase, in [0, steps).
            steps: Length of the phase in optimizer steps.
            steps_per_epoch: Optimizer steps in one epoch.

        Returns:
            A number in [0, 1), or ``None`` to leave the optimizer's own.
        """
        return None

    def with_values(self, values: Sequence[float]) -> Self:
        """Return this schedule as it goes on once `values` are known; itself when it does not look at them.

        Args:
            values: The validation loss of every finished epoch of the phase, in order.
        """
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return the schedule as a recipe writes it: its name and its options."""
        return {"name": self.name, **{name: getattr(self, name) for name in option_types(type(self))}}


def option_types(kind: type[Schedule]) -> dict[str, str]:
    """Return a schedule's options and the name of each one's type, its own before those that cyclic ones share."""
    options = [field for field in fields(kind) if field.init]
    return {option.name: str(option.type) for option in sorted(options, key=lambda option: bool(option.kw_only))}


def warmup_steps(warmup_epochs: float, steps_per_epoch: int) -> int:
    """Return the length of a warmup in whole steps."""
    return round(warmup_epochs * steps_per_epoch)


def ramp(step: int, warmup: int) -> float:
    """Return the linear warmup at `step`: 1/warmup at the first of `warmup` steps, 1 at the last and from then on."""
    return (step + 1) / warmup if step < warmup else 1.0


def number_problem(name: str, value: float, fits: Callable[[float], bool], expected: str) -> list[str]:
    """Return a sentence when `value` is no number or does not fit; NaN must not fit."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return [] if number and fits(value) else [f"{name} is {value!r}, expected {expected}"]


def flag_problem(name: str, value: object) -> list[str]:
    """Return a sentence when `value` is neither true nor false."""
    return [] if isinstance(value, bool) else [f"{name} is {value!r}, expected true or false"]


def whole_problem(name: str, value: int, least: int) -> list[str]:
    """Return a sentence when `value` is no whole number of at least `least`."""
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
    return [] if whole else [f"{name} is {value!r}, expected a whole number of at least {least}"]


def share_problem(name: str, value: float) -> list[str]:
    """Return a sentence when `value`, what is left of an LR, is not in (0, 1]."""
    return number_problem(name, value, lambda ratio: 0.0 < ratio <= 1.0, "a ratio in (0, 1]")


def lr_min_problem(value: float) -> list[str]:
    """Return a sentence when `lr_min_ratio` is not in [0, 1); above the peak both ends are named."""
    expected = "a ratio in [0, 1)"
    if isinstance(value, int | float) and value >= 1.0:
        expected += f": the lower LR would be {value} times the peak LR, which is 1.0 times `lr`"
    return number_problem("lr_min_ratio", value, lambda ratio: 0.0 <= ratio < 1.0, expected)


def warmup_problem(warmup_epochs: float, limit: int, where: str = "the phase") -> list[str]:
    """Return a sentence when a warmup is negative or longer than the `limit` epochs of `where`."""
    name, expected = "warmup_epochs", "a number of at least 0"
    problems = number_problem(name, warmup_epochs, lambda epochs: 0 <= epochs < math.inf, expected)
    if not problems and warmup_epochs > limit:
        problems.append(f"{name} is {warmup_epochs}, longer than {where} of {limit} epochs")
    return problems
