"""Phases as records: what trains, for how long, at which LR; checked whole before the first batch.

Groups are the backbone's layer groups from input to output, then ``"head"``. What trains is said by a selector, see
`transferkit.models.tuning.selectors`: names, globs and kinds, their union and difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from transferkit.core.errors import ConfigError, did_you_mean, gather
from transferkit.core.text import shown
from transferkit.models.tuning.selectors import (
    HEAD,
    Groups,
    Leaf,
    Selector,
    as_layout,
    parse_selector,
    selector_problems,
)
from transferkit.options.fields import EPOCHS, POSITIVE, type_problem
from transferkit.training.schedules.schedules import SGDR, Cosine, Schedule, make_schedule

__all__ = ["HEAD", "PRESETS", "SOLVING", "Phase", "check_phases", "make_phases", "preset_phases", "snapshot_problems"]

PROBE_CURVE = Cosine()


@dataclass(frozen=True)
class Phase:
    """One step of the unfreeze schedule.

    Args:
        name: Unique within a plan; shown in progress, history and plots.
        epochs: Length, at least 1; 0 for a phase that is solved.
        train: A selector, or a list of such that are taken together: ``"head"``, ``"all"``, ``"head, bias"``,
            ``["head", "layer[34]"]``. A layer of which anything learns is no frozen part: a norm layer that learns in
            part normalises by the batch and moves its running statistics, as one that learns wholly does.
        lr: Peak LR of the head, per step.
        schedule: Multiplies every group's peak LR; a schedule, its name, or a mapping with its options.
        layer_decay: Each layer group's peak LR over that of the next one nearer the head, in (0, 1]
            (discriminative learning rates; BEiT, Bao et al. 2022; ULMFiT, Howard & Ruder 2018, section 3.2).
        group_lrs: Peak LRs by selector, instead of what `lr` and `layer_decay` give; of several the first one counts,
            the plain name of a layer group before all.
        test_view: Train on pictures as they are evaluated: at the model's own size, without augmentation (the last step
            of FixRes; Touvron et al. 2019, section 4.2).
        solve: The head is fitted at once, on cached features, instead of being trained for epochs. Possible
            for the first phase, with ``train="head"`` and a head that can be solved; `finetune` does it.
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
        problems = _field_problems({item.name: getattr(self, item.name) for item in fields(self)})
        if problems:
            raise ConfigError(gather(problems))
        object.__setattr__(self, "schedule", make_schedule(self.schedule))
        object.__setattr__(self, "group_lrs", dict(self.group_lrs))
        if not isinstance(self.train, str):
            object.__setattr__(self, "train", tuple(self.train))

    @property
    def curve(self) -> Schedule:
        """The schedule, resolved."""
        return make_schedule(self.schedule)

    @property
    def selector(self) -> Selector:
        """What `train` stands for. Raises `ConfigError`."""
        return parse_selector(_train_text(self.train))

    @property
    def head_alone(self) -> bool:
        """Whether it says that the head trains, and nothing else."""
        return self.selector == parse_selector(HEAD)

    def parts(self, groups: Groups) -> tuple[Leaf, ...]:
        """Return the parameters of a model that this phase trains."""
        return self.selector.select(groups)

    def trained(self, groups: Groups) -> tuple[str, ...]:
        """Return the layer groups of which this phase trains anything, from input to output."""
        return as_layout(groups).groups_of(self.parts(groups))

    def own_lrs(self, groups: Groups) -> dict[Leaf, float]:
        """Return the peak LRs that `group_lrs` gives: by the name of a group, else by the first selector that fits."""
        layout = as_layout(groups)
        result: dict[Leaf, float] = {}
        for text in sorted(self.group_lrs, key=lambda text: text not in layout.names):
            for leaf in parse_selector(text).select(layout):
                result.setdefault(leaf, self.group_lrs[text])
        return result

    @property
    def cycle_ends(self) -> tuple[int, ...]:
        """Epochs of the phase, from 0, at whose end a whole cycle of SGDR is complete."""
        return self.curve.cycle_ends(self.epochs) if isinstance(self.curve, SGDR) else ()

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


def _field_problems(values: Mapping[Any, Any]) -> list[str]:
    """Return which of the fields of a phase, as far as they are there, have a value of the wrong type."""
    kinds = (("name", str), ("lr", float), ("layer_decay", float), ("test_view", bool), ("solve", bool))
    problems = [problem for key, kind in kinds if key in values for problem in type_problem(key, values[key], kind)]
    lrs = values.get("group_lrs", {})
    if not isinstance(lrs, Mapping) or not all(isinstance(name, str) for name in lrs):
        problems.append(f"group_lrs is {shown(lrs)}, expected LRs by layer group")
    train = values.get("train", "all")
    if not isinstance(train, str) and not (
        isinstance(train, list | tuple) and all(isinstance(part, str) for part in train)
    ):
        problems.append(f"train is {shown(train)}, expected 'head', 'all', or names of what trains")
    elif _train_text(train):
        problems += [f"train: {problem}" for problem in selector_problems(_train_text(train))]
    return problems


def _train_text(train: str | Sequence[str]) -> str:
    """Return the selector of several ones: each is added to those before it."""
    return train if isinstance(train, str) else ", ".join(train)


def check_phases(phases: Sequence[Phase], groups: Groups | None = None) -> list[str]:
    """Return every problem of a phase list; empty when it can run.

    Args:
        phases: The phases in order.
        groups: The model's, when known; without them it is not checked what selectors reach.
    """
    if not phases:
        return ["there are no phases, expected at least one"]
    problems = []
    names = [phase.name for phase in phases]
    for phase in phases:
        problems += [f"phase {phase.name!r}: {problem}" for problem in _phase_problems(phase, groups)]
    problems += [
        f"phase {phase.name!r}: solve comes first or not at all, expected it as the first phase"
        for phase in phases[1:]
        if phase.solve
    ]
    problems += [f"phase name {name!r} is used twice" for name in sorted({n for n in names if names.count(n) > 1})]
    return problems


def _phase_problems(phase: Phase, groups: Groups | None) -> list[str]:
    problems = []
    if phase.solve:
        if phase.epochs != 0:
            problems.append(f"epochs is {phase.epochs!r}, expected 0 for a phase that is solved")
        if not _train_text(phase.train) or not phase.head_alone:
            problems.append(f"train is {phase.train!r}, expected 'head' for a solved phase")
        return problems
    if type_problem("", phase.epochs, int) or not EPOCHS.holds(phase.epochs):
        return [f"epochs is {shown(phase.epochs)}, expected {EPOCHS.words}"]
    if not POSITIVE.holds(phase.lr):
        problems.append(f"lr is {phase.lr}, expected {POSITIVE.words}")
    if not 0.0 < phase.layer_decay <= 1.0:
        problems.append(f"layer_decay is {phase.layer_decay}, expected a ratio in (0, 1]")
    problems += phase.curve.problems(phase.epochs)
    for pattern, lr in phase.group_lrs.items():
        if type_problem("", lr, float) or not POSITIVE.holds(lr):
            problems.append(f"group_lrs[{shown(pattern)}] is {shown(lr)}, expected {POSITIVE.words}")
    if not _train_text(phase.train):
        problems.append("train is empty, expected 'head', 'all', or names of what trains")
    elif groups is not None:
        problems += phase.selector.problems(groups)
    for text in phase.group_lrs:
        unread = selector_problems(text)
        problems += [f"group_lrs: {problem}" for problem in unread]
        if groups is not None and not unread:
            problems += parse_selector(text).problems(groups)
    return problems


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
            problems.append(f"{where} is {shown(value)}, expected a mapping with the keys {', '.join(known)}")
            continue
        own = [f"{where}: unknown key {key!r}.{did_you_mean(str(key), known)}" for key in value if key not in known]
        implied = {"epochs": 0, "train": HEAD} if value.get("solve") is True else {}
        own += [f"{where}: {key!r} is missing" for key in ("name", "epochs") if key not in {**implied, **value}]
        own += [f"{where}: {problem}" for problem in _field_problems(value)]
        if not own:
            try:
                phases.append(Phase(**{**implied, **{str(key): part for key, part in value.items()}}))
            except ConfigError as error:
                own.append(f"{where}: {error}")
        problems += own
    problems = problems or check_phases(phases)
    if problems:
        raise ConfigError(gather(problems))
    return tuple(phases)


def snapshot_problems(phases: Sequence[Phase]) -> list[str]:
    """Return why snapshots cannot be had from these phases; empty when they can.

    Args:
        phases: At least one of them must be annealed by `SGDR` through two whole cycles.
    """
    if any(len(phase.cycle_ends) >= 2 for phase in phases):
        return []
    cycles = ", ".join(
        f"{phase.name!r} with {phase.curve.name} and {len(phase.cycle_ends)} whole cycle(s)" for phase in phases
    )
    return [
        f"snapshots need a phase of at least two whole sgdr cycles, saw {cycles} - use the schedule sgdr with a "
        "cycle_epochs of at most half the epochs"
    ]


# ---- ready-made lists -------------------------------------------------------------------------------------------

PRESETS = ("auto", "probe", "finetune", "probe-finetune", "gradual")

SOLVING = ("auto", "probe-finetune", "gradual")
"""Those that train more than the head after it."""


def preset_phases(preset: str, probe: Phase, tuning: Phase, group_names: Sequence[str]) -> tuple[Phase, ...]:
    """Return the phases that a preset's name stands for.

    - ``probe``: the head alone, solved, or by the schedule of `tuning`.
    - ``finetune``: everything.
    - ``auto``: as ``probe-finetune``; the latter part is left out where the former leaves nothing to win.
    - ``probe-finetune``: the head alone, then everything (LP-FT, Kumar et al. 2022: fine-tuning from a converged head
      distorts the features less).
    - ``gradual``: the head alone, then one more layer group per phase, from the output to the input (gradual
      unfreezing; ULMFiT, Howard & Ruder 2018, section 3.3). The epochs are shared out evenly, early phases get what is
      left over; with fewer epochs than groups several groups are unfrozen at a time.

    Args:
        preset: One of `PRESETS`.
        probe: The phase that trains the head alone, or solves it.
        tuning: The phase that trains everything.
        group_names: The model's groups, input to output, the head last.

    Raises:
        ConfigError: The preset is unknown.
    """
    match preset:
        case "probe":
            return (probe if probe.solve else replace(probe, schedule=tuning.schedule),)
        case "finetune":
            return (tuning,)
        case "probe-finetune" | "auto":
            return (probe, tuning)
        case "gradual":
            return (probe, *_gradual(tuning, group_names))
    raise ConfigError(
        f"unknown phases {preset!r}.{did_you_mean(preset, PRESETS)} "
        f"Known: {', '.join(PRESETS)}, or a list of phases in a recipe."
    )


def _gradual(tuning: Phase, group_names: Sequence[str]) -> Iterator[Phase]:
    layers = [name for name in group_names if name != HEAD][::-1]
    count = max(1, min(len(layers), tuning.epochs))
    for number in range(count):
        unfrozen = layers[: (number + 1) * len(layers) // count]
        yield replace(
            tuning,
            name=f"unfreeze-{unfrozen[-1]}" if unfrozen else "unfreeze",
            epochs=tuning.epochs // count + (number < tuning.epochs % count),
            train=tuple(name for name in group_names if name == HEAD or name in unfrozen),
        )
