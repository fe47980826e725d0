"""Phases as records: what trains, for how long, at which LR; checked whole before the first batch.

Groups are the backbone's layer groups from input to output, then ``"head"``. Every LR follows from the plan and the
step alone (`Plan.lr`), whatever happened before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any

from transferkit.core.errors import ConfigError, did_you_mean, gather
from transferkit.training.schedules.schedules import Cosine, Schedule, make_schedule

__all__ = ["HEAD", "Phase", "Plan", "check_phases", "make_phases"]

HEAD = "head"

PROBE_CURVE = Cosine()


@dataclass(frozen=True)
class Phase:
    """One step of the unfreeze schedule.

    Args:
        name: Unique within a plan; shown in progress, history and plots.
        epochs: Length, at least 1; 0 for a phase that is solved.
        train: ``"head"``, ``"all"``, or one or more layer groups by name or glob (``["head", "layer[34]"]``).
        lr: Peak LR of the head, per step.
        schedule: Multiplies every group's peak LR; a schedule, its name, or a mapping with its options.
        layer_decay: Each layer group's peak LR over that of the next one nearer the head, in (0, 1]
            (discriminative learning rates; BEiT, Bao et al. 2022; ULMFiT, Howard & Ruder 2018, section 3.2).
        group_lrs: Peak LRs of single layer groups by name or glob, instead of what `lr` and `layer_decay` give them.
        test_view: Train on pictures as they are evaluated: at the model's own size, without augmentation (the last step
            of FixRes; Touvron et al. 2019, section 4.2).
        solve: The head is fitted at once, by logistic regression on cached features, instead of being trained for
            epochs. Possible for the first phase, with ``train="head"`` and a linear head; `finetune` does it.
    """

    name: str
    epochs: int
    train: str | tuple[str, ...] = "all"
    lr: float = 1e-3
    schedule: Schedule | str | Mapping[str, Any] = PROBE_CURVE
    layer_decay: float = 1.0
    group_lrs: Mapping[str, float] = field(default_factory=dict)
    test_view: bool = False
    solve: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedule", make_schedule(self.schedule))
        object.__setattr__(self, "group_lrs", dict(self.group_lrs))
        if not isinstance(self.train, str):
            object.__setattr__(self, "train", tuple(self.train))

    @property
    def curve(self) -> Schedule:
        """The schedule, resolved."""
        return make_schedule(self.schedule)

    @property
    def patterns(self) -> tuple[str, ...]:
        """The names and globs that `train` stands for."""
        if isinstance(self.train, str):
            return ("*",) if self.train == "all" else (self.train,)
        return tuple(pattern if pattern != "all" else "*" for pattern in self.train)

    def trained(self, group_names: Sequence[str]) -> tuple[str, ...]:
        """Return the groups this phase trains, in the order of `group_names`."""
        return tuple(name for name in group_names if any(fnmatchcase(name, pattern) for pattern in self.patterns))

    def own_lr(self, group: str) -> float | None:
        """Return the peak LR that `group_lrs` gives a group: by its name, else by the first pattern that fits."""
        if group in self.group_lrs:
            return self.group_lrs[group]
        return next((lr for pattern, lr in self.group_lrs.items() if fnmatchcase(group, pattern)), None)

    def to_dict(self) -> dict[str, Any]:
        """Return the phase as a recipe writes it."""
        if self.solve:
            return {"name": self.name, "epochs": 0, "train": HEAD, "solve": True}
        train = self.train if isinstance(self.train, str) else list(self.train)
        return {
            "name": self.name,
            "epochs": self.epochs,
            "train": train,
            "lr": self.lr,
            "schedule": self.curve.to_dict(),
            "layer_decay": self.layer_decay,
            **({"group_lrs": dict(self.group_lrs)} if self.group_lrs else {}),
            **({"test_view": True} if self.test_view else {}),
        }


def check_phases(phases: Sequence[Phase], group_names: Sequence[str] | None = None) -> list[str]:
    """Return every problem of a phase list; empty when it can run.

    Args:
        phases: The phases in order.
        group_names: The model's groups, when known; without them patterns are not checked.
    """
    if not phases:
        return ["there are no phases, expected at least one"]
    problems = []
    names = [phase.name for phase in phases]
    for phase in phases:
        problems += [f"phase {phase.name!r}: {problem}" for problem in _phase_problems(phase, group_names)]
    problems += [
        f"phase {phase.name!r}: solve comes first or not at all, expected it as the first phase"
        for phase in phases[1:]
        if phase.solve
    ]
    problems += [f"phase name {name!r} is used twice" for name in sorted({n for n in names if names.count(n) > 1})]
    return problems


def _phase_problems(phase: Phase, group_names: Sequence[str] | None) -> list[str]:
    found = []
    if phase.solve:
        found += [] if phase.epochs == 0 else [f"epochs is {phase.epochs!r}, expected 0 for a phase that is solved"]
        found += [] if phase.patterns == (HEAD,) else [f"train is {phase.train!r}, expected 'head' for a solved phase"]
        return found
    if isinstance(phase.epochs, bool) or not isinstance(phase.epochs, int) or phase.epochs < 1:
        return [f"epochs is {phase.epochs!r}, expected a whole number of at least 1"]
    if not (math.isfinite(phase.lr) and phase.lr > 0):
        found.append(f"lr is {phase.lr}, expected a finite number above 0")
    if not 0.0 < phase.layer_decay <= 1.0:
        found.append(f"layer_decay is {phase.layer_decay}, expected a ratio in (0, 1]")
    found += phase.curve.problems(phase.epochs)
    for pattern, lr in phase.group_lrs.items():
        if isinstance(lr, bool) or not isinstance(lr, int | float) or not (math.isfinite(lr) and lr > 0):
            found.append(f"group_lrs[{pattern!r}] is {lr!r}, expected a finite number above 0")
    if group_names is not None:
        for pattern in (*phase.patterns, *phase.group_lrs):
            if not any(fnmatchcase(name, pattern) for name in group_names):
                found.append(
                    f"{pattern!r} matches no layer group.{did_you_mean(pattern, group_names)} "
                    f"Known: {', '.join(group_names)}."
                )
    if not phase.patterns:
        found.append("train is empty, expected 'head', 'all' or layer groups")
    return found


def make_phases(values: Sequence[Any]) -> tuple[Phase, ...]:
    """Return the phases that a recipe lists, with all of its mistakes in one error.

    Args:
        values: Mappings with the fields of `Phase`, or phases.

    Raises:
        ConfigError: A key is unknown or missing, a value has the wrong type, or a phase cannot run.
    """
    known = [field.name for field in fields(Phase)]
    phases, problems = [], []
    for position, value in enumerate(values):
        where = f"phases[{position}]"
        if isinstance(value, Phase):
            phases.append(value)
            continue
        if not isinstance(value, Mapping):
            problems.append(f"{where} is {value!r}, expected a mapping with the keys {', '.join(known)}")
            continue
        found = [f"{where}: unknown key {key!r}.{did_you_mean(str(key), known)}" for key in value if key not in known]
        implied = {"epochs": 0, "train": HEAD} if value.get("solve") is True else {}
        found += [f"{where}: {key!r} is missing" for key in ("name", "epochs") if key not in {**implied, **value}]
        for key in ("solve", "test_view"):
            if key in value and not isinstance(value[key], bool):
                found.append(f"{where}: {key} is {value[key]!r}, expected true or false")
        if not isinstance(value.get("group_lrs", {}), Mapping):
            found.append(f"{where}: group_lrs is {value['group_lrs']!r}, expected LRs by layer group")
        for key, kinds, expected in (("lr", (int, float), "a number"), ("layer_decay", (int, float), "a number")):
            if key in value and (isinstance(value[key], bool) or not isinstance(value[key], kinds)):
                found.append(f"{where}: {key} is {value[key]!r}, expected {expected}")
        train = value.get("train", "all")
        if not isinstance(train, str) and not (
            isinstance(train, list | tuple) and all(isinstance(part, str) for part in train)
        ):
            found.append(f"{where}: train is {train!r}, expected 'head', 'all' or a list of layer groups")
        if not found:
            try:
                phases.append(Phase(**{**implied, **{str(key): part for key, part in value.items()}}))
            except ConfigError as error:
                found.append(f"{where}: {error}")
        problems += found
    problems = problems or check_phases(phases)
    if problems:
        raise ConfigError(gather(problems))
    return tuple(phases)


@dataclass(frozen=True)
class Plan:
    """A phase list over a model's groups and an epoch's length: everything that happens, as pure functions.

    Args:
        phases: In order.
        group_names: The model's groups, input to output, the head last.
        steps_per_epoch: Optimizer steps in one epoch, at least 1.
    """

    phases: tuple[Phase, ...]
    group_names: tuple[str, ...]
    steps_per_epoch: int

    @property
    def epochs(self) -> int:
        """Epochs of all phases together."""
        return sum(phase.epochs for phase in self.phases)

    @property
    def steps(self) -> int:
        """Optimizer steps of all phases together."""
        return self.epochs * self.steps_per_epoch

    def phase_at(self, epoch: int) -> int:
        """Return the index of the phase that `epoch` (from 0, over all phases) belongs to; past the end, the last."""
        for index, phase in enumerate(self.phases):
            if epoch < phase.epochs:
                return index
            epoch -= phase.epochs
        return len(self.phases) - 1

    def first_epoch(self, index: int) -> int:
        """Return the epoch, over all phases, at which phase `index` starts."""
        return sum(phase.epochs for phase in self.phases[:index])

    def given(self, values: Mapping[int, Sequence[float]]) -> Plan:
        """Return the plan as it stands once validation values are known, for schedules that go by them (`plateau`).

        Args:
            values: By phase index, the monitored loss of each of its finished epochs.
        """
        phases = [replace(phase, schedule=phase.curve.given(values.get(number, ())))
                  for number, phase in enumerate(self.phases)]  # fmt: skip
        return replace(self, phases=tuple(phases))

    def scale(self, index: int, group: str) -> float:
        """Return a group's peak LR over `Phase.lr` in phase `index`.

        0 when frozen; else what `group_lrs` say, else `layer_decay` to the distance from the head.
        """
        phase = self.phases[index]
        if group not in phase.trained(self.group_names):
            return 0.0
        own = phase.own_lr(group)
        if own is not None:
            return own / phase.lr
        return float(phase.layer_decay ** (len(self.group_names) - 1 - self.group_names.index(group)))

    def lrs(self, step: int) -> dict[str, float]:
        """Return every group's LR at optimizer step `step` (from 0, over all phases); 0 for frozen groups."""
        index, *place = self._place(step)
        phase = self.phases[index]
        factor = phase.curve.factor(*place)
        return {group: phase.lr * self.scale(index, group) * factor for group in self.group_names}

    def lr(self, group: str, step: int) -> float:
        """Return one group's LR at optimizer step `step`."""
        return self.lrs(step)[group]

    def momentum(self, step: int) -> float | None:
        """Return the momentum at optimizer step `step`, or ``None`` where the optimizer's own holds."""
        index, *place = self._place(step)
        return self.phases[index].curve.momentum(*place)

    def _place(self, step: int) -> tuple[int, int, int, int]:
        """Return the phase of a step, the step within it, the phase's steps, and those of an epoch."""
        index = self.phase_at(step // self.steps_per_epoch)
        local = step - self.first_epoch(index) * self.steps_per_epoch
        return index, local, self.phases[index].epochs * self.steps_per_epoch, self.steps_per_epoch
