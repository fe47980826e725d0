"""What a learning-rate schedule is: a pure function of the step, as a frozen record; and checks that all share.

Every schedule gives a *factor* that multiplies a group's own peak LR, so ratios between groups hold at every step.
Steps count optimizer steps within one phase, from 0. Nothing is remembered between calls: resume, plots and plans
need no more than the step. A schedule that follows the validation loss gets it by `Schedule.with_values`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, ClassVar, Self, get_type_hints

from transferkit.options.fields import NOT_NEGATIVE, Range, type_problem

__all__ = [
    "LOWER",
    "SHARE",
    "SWITCH",
    "WARMUP",
    "Schedule",
    "option_types",
    "ramp",
    "ranged",
    "too_long",
    "warmup_steps",
]

SHARE = Range("a ratio in (0, 1]", lambda value: 0.0 < value <= 1.0)
"""Of what is left of an LR."""

LOWER = Range("a ratio in [0, 1) of the peak LR, which is 1.0 times `lr`", lambda value: 0.0 <= value < 1.0)
"""Of the lowest LR over the peak."""

WARMUP = Range("a number of at least 0", NOT_NEGATIVE.holds)

SWITCH = Range("true or false", lambda value: True)


def ranged(default: Any, within: Range) -> Any:
    """Declare an option of a schedule: its default and the values that it takes, besides being of its type."""
    return field(default=default, metadata={"within": within})


@dataclass(frozen=True)
class Schedule(ABC):
    """A schedule as data: what a recipe holds and a plan can show."""

    name: ClassVar[str]
    needs_values: ClassVar[bool] = False
    """Whether it goes by the values that `with_values` takes."""
    lengths: ClassVar[tuple[str, ...]] = ("warmup_epochs",)
    """Options that are no longer than the phase, where a schedule has them."""

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

    def problems(self, epochs: int) -> list[str]:
        """Return what is wrong with this schedule for a phase of `epochs` epochs; empty when nothing is.

        Here it is what each option's declaration says; subclasses add what options have to do with each other.
        """
        problems = []
        for name, kind in option_types(type(self)).items():
            value, within = getattr(self, name), type(self).__dataclass_fields__[name].metadata["within"]
            if type_problem(name, value, kind) or not within.holds(value):
                problems.append(f"{name} is {value!r}, expected {within.words}")
            elif name in self.lengths:
                problems += too_long(name, value, epochs)
        return problems

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


@cache
def option_types(kind: type[Schedule]) -> dict[str, Any]:
    """Return a schedule's options and their types, its own before those that cyclic ones share."""
    hints = get_type_hints(kind)
    options = sorted((item for item in fields(kind) if item.init), key=lambda item: bool(item.kw_only))
    return {option.name: hints[option.name] for option in options}


def warmup_steps(warmup_epochs: float, steps_per_epoch: int) -> int:
    """Return the length of a warmup in whole steps."""
    return round(warmup_epochs * steps_per_epoch)


def ramp(step: int, warmup: int) -> float:
    """Return the linear warmup at `step`: 1/warmup at the first of `warmup` steps, 1 at the last and from then on."""
    return (step + 1) / warmup if step < warmup else 1.0


def too_long(name: str, value: float, limit: int, where: str = "the phase") -> list[str]:
    """Return a sentence when an option is longer than the `limit` epochs of `where`."""
    return [f"{name} is {value}, longer than {where} of {limit} epochs"] if value > limit else []
