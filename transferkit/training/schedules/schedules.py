"""Every learning-rate schedule by name, from a recipe, and as a curve.

Schedules are pure functions of the step, in whole numbers: `base` says what one is, `annealing` holds those
that go one way and `cycles` those that come back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from transferkit.core.errors import ConfigError, did_you_mean, gather
from transferkit.options.fields import type_problem
from transferkit.training.schedules.annealing import (
    Constant,
    Cosine,
    Exponential,
    InverseSqrt,
    Plateau,
    Polynomial,
    Step,
)
from transferkit.training.schedules.base import Schedule, option_types
from transferkit.training.schedules.cycles import SGDR, Cyclic, ExpRange, OneCycle, Triangular, Triangular2

__all__ = [
    "SCHEDULES",
    "SGDR",
    "Constant",
    "Cosine",
    "Cyclic",
    "ExpRange",
    "Exponential",
    "InverseSqrt",
    "OneCycle",
    "Plateau",
    "Polynomial",
    "Schedule",
    "Step",
    "Triangular",
    "Triangular2",
    "make_schedule",
    "simulate",
]

KINDS: tuple[type[Schedule], ...] = (
    Constant,
    Step,
    Exponential,
    Cosine,
    OneCycle,
    Triangular,
    Triangular2,
    ExpRange,
    SGDR,
    Polynomial,
    InverseSqrt,
    Plateau,
)

SCHEDULES: dict[str, type[Schedule]] = {kind.name: kind for kind in KINDS}


def make_schedule(value: str | Mapping[str, Any] | Schedule) -> Schedule:
    """Return the schedule that a recipe names.

    Args:
        value: A name (``"cosine"``), a mapping with ``name`` and the schedule's options, or a schedule.

    Raises:
        ConfigError: The name or an option is unknown, or an option has the wrong type.
    """
    if isinstance(value, Schedule):
        return value
    if not isinstance(value, str | Mapping):
        raise ConfigError(f"schedule is {value!r}, expected a name or a mapping with name and options")
    options = {"name": value} if isinstance(value, str) else dict(value)
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in SCHEDULES:
        raise ConfigError(
            f"unknown schedule {name!r}.{did_you_mean(str(name), SCHEDULES)} Known: {', '.join(sorted(SCHEDULES))}."
        )
    kind = SCHEDULES[name]
    known = option_types(kind)
    problems = []
    for key, option in options.items():
        if key not in known:
            problems.append(
                f"schedule {name!r} has no option {key!r}.{did_you_mean(str(key), known)} Known: {', '.join(known)}."
            )
            continue
        numeral = isinstance(option, str) and re.fullmatch(r"[-+\d.]+e[-+]?\d+", option.lower())
        hint = " (YAML reads 1e-3 as text: write 1.0e-3)" if numeral and known[key] is float else ""
        wrong = type_problem(f"option {key!r} of schedule {name!r}", option, known[key])
        problems += [problem + hint for problem in wrong]
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
