"""The space of a search: options by name with a range or choices, checked whole before anything runs.

Options are drawn at random or by a model of what went well, never from a grid: of several options few matter, and a
grid tries the same few values of those again and again (Bergstra & Bengio 2012, "Random Search for Hyper-Parameter
Optimization").
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transferkit.core.errors import ConfigError, did_you_mean, gather
from transferkit.models.heads.feed import Feed
from transferkit.models.heads.registry import HeadOf, list_heads
from transferkit.models.task import task_of
from transferkit.options.fields import default_of, make_config
from transferkit.options.training import FinetuneConfig
from transferkit.runs.files import followed_figures
from transferkit.runs.write import NOT_SAVED, PATHS, absolute
from transferkit.training.plan.options import monitor_of, resolve_options
from transferkit.training.schedules.schedules import make_schedule
from transferkit.training.search.backbones import BACKBONE, OF_A_NETWORK, backbone_problems, flat

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

__all__ = [
    "DEFAULTS",
    "DEFAULT_SPACE",
    "PROBE_SPACE",
    "Choices",
    "Monitor",
    "Range",
    "SearchPlan",
    "Space",
    "plan_search",
]

DEFAULT_SPACE: Mapping[str, Any] = {
    "lr": {"low": 1e-5, "high": 1e-2, "log": True},
    "weight_decay": {"low": 1e-4, "high": 0.3, "log": True},
    "layer_decay": {"low": 0.5, "high": 1.0},
    "augment": ["none", "light", "standard", "heavy"],
    "phases": ["finetune", "probe-finetune", "gradual"],
}

PROBE_SPACE: Mapping[str, Any] = {
    "probe_lr": {"low": 1e-4, "high": 1e-1, "log": True},
    "weight_decay": {"low": 1e-4, "high": 0.3, "log": True},
    "label_smoothing": {"low": 0.0, "high": 0.2},
}
"""Where the head alone is trained."""

MEASURES = (
    "data", "val_split", "test_split", "group_by", "group_near", "skip_bad", "allow_empty_classes", "allow_leaks",
    "seed", "split_seed", "monitor",
)  # fmt: skip
PLACES = (
    "accelerator", "augment_on", "compile", "devices", "dry_run", "memory_format", "num_nodes", "overfit_batches",
    "strategy", "workers",
    *NOT_SAVED,
)  # fmt: skip

OF_A_TRAINED_HEAD = frozenset({
    "batch_size", "drop_rate", "epochs", "head", "label_smoothing", "momentum", "nesterov", "optimizer", "probe_lr",
    "schedule", "warmup_epochs", "weight_decay",
})  # fmt: skip
"""Options of how a head alone is trained; cached features answer them."""

OF_ITS_FEATURES = frozenset({
    *MEASURES, *NOT_SAVED, "accelerator", "augment", "augment_on", "backbone", "compile", "image_size", "init_from",
    "keep_activations", "layer_decay", "lr", "memory_format", "phases", "precision", "probe", "probe_epochs",
    "probe_views", "weights", "workers",
})  # fmt: skip
"""Options that may be set besides: they say what the features are, or do nothing to a head alone."""

DEFAULTS = {item.name: default_of(item) for item in dataclasses.fields(FinetuneConfig)}
"""The default of every option."""

TYPES = {item.name: str(item.type) for item in dataclasses.fields(FinetuneConfig)}

MOST_CORNERS = 512


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included.

    Args:
        low: The lowest.
        high: The highest.
        log: Whether every order of magnitude is as likely as the next.
        step: Distance of neighbouring values; ``None`` for any number (1 for whole ones).
        whole: Whether they are whole numbers.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None
    whole: bool = False

    def draw(self, trial: BaseTrial, name: str) -> float | int:
        """Return a trial's value."""
        if self.whole:
            return trial.suggest_int(name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)

    def extremes(self) -> tuple[Any, ...]:
        """Return the values that go wrong first, if any does: both ends."""
        return (self.low, self.high)

    def to_plain(self) -> dict[str, Any]:
        """Return it as a recipe writes it."""
        ends: dict[str, Any] = {"low": self.low, "high": self.high}
        return ends | ({"log": True} if self.log else {}) | ({} if self.step is None else {"step": self.step})


@dataclass(frozen=True)
class Choices:
    """A list of values, in any order; a schedule may be among them as a mapping, phases as a list."""

    values: tuple[Any, ...]

    def draw(self, trial: BaseTrial, name: str) -> Any:
        """Return a trial's value."""
        labels = [_label(value) for value in self.values]
        return self.values[labels.index(trial.suggest_categorical(name, labels))]

    def extremes(self) -> tuple[Any, ...]:
        """Return the values that go wrong first, if any does: all of them."""
        return self.values

    def to_plain(self) -> list[Any]:
        """Return it as a recipe writes it."""
        return list(self.values)


@dataclass(frozen=True)
class Space:
    """Ranges and choices by the name of an option."""

    axes: Mapping[str, Range | Choices]

    def sample(self, trial: BaseTrial) -> dict[str, Any]:
        """Return a trial's value of every option."""
        return {name: axis.draw(trial, name) for name, axis in self.axes.items()}

    def values_of(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options that Optuna's record of a trial stands for; those that were not drawn are left out."""
        values = {}
        for name, axis in self.axes.items():
            if name in params:
                labels = {_label(value): value for value in axis.values} if isinstance(axis, Choices) else {}
                values[name] = labels.get(params[name], params[name])
        return values

    def to_plain(self) -> dict[str, Any]:
        """Return it as a recipe writes it."""
        return {name: axis.to_plain() for name, axis in self.axes.items()}

    def corners(self) -> list[dict[str, Any]]:
        """Return the combinations of extreme values; of very many, some that are drawn with a fixed seed."""
        extremes = [axis.extremes() for axis in self.axes.values()]
        if math.prod(len(values) for values in extremes) <= MOST_CORNERS:
            return [dict(zip(self.axes, values, strict=True)) for values in itertools.product(*extremes)]
        drawn = random.Random(0)
        return [{name: drawn.choice(values) for name, values in zip(self.axes, extremes, strict=True)}
                for _ in range(MOST_CORNERS)]  # fmt: skip


@dataclass(frozen=True)
class Monitor:
    """The figure of `val` that trials are compared by.

    Attributes:
        name: As ``--monitor`` has it, such as ``"val_acc"``.
        higher_is_better: Its direction.
        unit: See `Figure`.
        calibrated: Whether it is the loss after calibration: trials that differ in confidence alone do not differ.
    """

    name: str
    higher_is_better: bool
    unit: str
    calibrated: bool = False

    @classmethod
    def of(cls, config: FinetuneConfig) -> Monitor:
        """Return the figure that a run with these options is chosen by."""
        monitors, monitor = task_of(config).objective.monitors, monitor_of(config)
        figure = followed_figures([{monitor: None}], {})[-1]
        calibrated = config.monitor == "auto" and monitor == "val_loss"
        return cls(monitor, monitors[monitor.removeprefix("val_")], figure.unit, calibrated)

    @property
    def key(self) -> str:
        """Its name in the metrics of a split."""
        return self.name.removeprefix("val_")

    def text(self, value: float | None) -> str:
        """Return a value as a person would write it."""
        return "" if value is None else f"{value:.1%}" if self.unit == "share" else f"{value:.4g}"


@dataclass(frozen=True)
class SearchPlan:
    """A search, checked.

    Attributes:
        options: Options of `finetune` that all trials share, without the place of their runs.
        config: The same with all defaults.
        space: The options that differ.
        head_only: Whether every trial trains a head alone, so that features that were computed once answer them all.
    """

    options: Mapping[str, Any]
    config: FinetuneConfig
    space: Space
    head_only: bool

    @property
    def monitor(self) -> Monitor:
        """The figure that trials are compared by."""
        return Monitor.of(self.config)

    def recipe(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options that repeat a trial anywhere; paths absolute."""
        values = {key: value for key, value in {**self.options, **flat(params)}.items() if key not in NOT_SAVED}
        return {key: absolute(value) if key in PATHS else value for key, value in values.items()}


def plan_search(options: Mapping[str, Any], space: Mapping[str, Any] | None = None) -> SearchPlan:
    """Check a search whole, before any picture is read.

    Args:
        options: Of `finetune`; only those that the user set. Where ``phases`` is ``"probe"``, the head alone is
            searched.
        space: By the name of an option either ``{low, high, log, step}`` or a list of choices. `DEFAULT_SPACE`
            (`PROBE_SPACE`) without the options that the user set, when ``None``. For a head alone ``lr`` means
            ``probe_lr``, the LR that it is trained at.

    Raises:
        ConfigError: With everything that is wrong with the options, or with the space.
    """
    fixed = {key: value for key, value in options.items() if key not in ("out", "quiet", "resume")}
    config = make_config(FinetuneConfig, fixed)
    probing = config.phases == "probe" and "phases" not in (space or {})
    problems = _unfit(fixed, config)
    if space is None:
        if probing and config.probe == "solve":
            problems.append("a solved probe chooses its regularisation itself - give a space, or pass --probe sgd")
        left = {*fixed, "label_smoothing"} if task_of(config).objective.smoothing is None else set(fixed)
        raw = {key: axis for key, axis in (PROBE_SPACE if probing else DEFAULT_SPACE).items() if key not in left}
    else:
        raw = dict(space)
        if probing and "lr" in raw and "probe_lr" not in raw:
            raw = {("probe_lr" if key == "lr" else key): axis for key, axis in raw.items()}
        problems += [f"{key} is searched and also given as {fixed[key]!r}, expected one of the two"
                     for key in raw if key in fixed and fixed[key] != DEFAULTS.get(key)]  # fmt: skip
    if not raw:
        problems.append("there is nothing to search, expected a space with at least one option that is not given")
    axes: dict[str, Range | Choices] = {}
    for key, value in raw.items():
        axis, own = _axis(str(key), value)
        problems += own
        if axis is not None:
            axes[key] = axis
    problems += backbone_problems(axes[BACKBONE].extremes(), axes) if BACKBONE in axes else []
    trained = sorted(OF_A_TRAINED_HEAD.intersection(axes))
    if probing and trained and config.probe == "solve":
        problems.append(f"a solved probe has no {', '.join(trained)} to search - pass --probe sgd")
    elif probing and trained:
        fixed["probe"] = "sgd"  # auto would solve a linear head, whatever these say
    fixed = {key: value for key, value in fixed.items() if key not in axes}
    problems = problems or _bad_values(Space(axes), fixed)
    if problems:
        raise ConfigError(gather(problems))
    config = make_config(FinetuneConfig, fixed)
    fixed = {key: getattr(config, key) for key in fixed}  # paths as text, whole numbers as floats
    return SearchPlan(fixed, config, Space(axes), probing and bool(trained) and _head_only(config, axes))


# ---- checks -----------------------------------------------------------------------------------------------------


def _unfit(options: Mapping[str, Any], config: FinetuneConfig) -> list[str]:
    """Return the options of finetune that a trial cannot have."""
    problems = [f"--{key.replace('_', '-')} does not go with a search, expected it to be left out"
                for key in ("overwrite", "dry_run", "overfit_batches") if options.get(key)]  # fmt: skip
    if config.devices != 1 or config.num_nodes != 1:
        problems.append("a trial runs on one device - to use more of them, start the same command once for each")
    return problems


def _axis(name: str, value: Any) -> tuple[Range | Choices | None, list[str]]:
    """Return one axis of a space, or its problems."""
    searchable = [key for key in TYPES if key not in (*MEASURES, *PLACES)]
    if name not in TYPES:
        return None, [f"space: unknown option {name!r}.{did_you_mean(name, searchable)}"]
    if name in MEASURES:
        return None, [f"space: {name} decides what is measured, and values would not compare, expected it to be fixed"]
    if name in PLACES:
        return None, [f"space: {name} says where or how to run, not what, expected it to be left out"]
    if isinstance(value, list | tuple):
        labels = [json.dumps(choice, sort_keys=True, default=str) for choice in value]
        if len(labels) < 2 or len(set(labels)) < len(labels):
            return None, [f"space: {name} is {list(value)!r}, expected at least two choices, each of them once"]
        if name == "head":
            known = sorted({head for kind in HeadOf for head in list_heads(kind)})
            unknown = [
                f"space: unknown head {head!r}.{did_you_mean(str(head), known)}" for head in value if head not in known
            ]
            return Choices(tuple(value)), unknown
        return Choices(tuple(value)), []
    number = TYPES[name].split(" ")[0]
    if number not in ("float", "int"):
        return None, [f"space: {name} is {value!r}, expected a list of choices"]
    if not isinstance(value, Mapping):
        return None, [f"space: {name} is {value!r}, expected {{low: ..., high: ...}} or a list of choices"]
    return _range(name, value, whole=number == "int")


def _range(name: str, value: Mapping[str, Any], *, whole: bool) -> tuple[Range | None, list[str]]:
    keys = ("low", "high", "log", "step")
    problems = [f"space: {name} has no {key!r}.{did_you_mean(str(key), keys)} Known: {', '.join(keys)}"
                for key in value if key not in keys]  # fmt: skip
    numbers: dict[str, float] = {}
    for key in ("low", "high", "step"):
        if key == "step" and value.get("step") is None:
            continue
        number = value.get(key)
        hint = "; YAML reads 1e-5 as text and 1.0e-5 as a number" if isinstance(number, str) else ""
        fits = isinstance(number, int if whole else int | float) and not isinstance(number, bool)
        if number is not None and fits and math.isfinite(number):
            numbers[key] = number if whole else float(number)
        else:
            problems.append(f"space: {key} of {name} is {number!r}, expected a {'whole ' * whole}number{hint}")
    log = value.get("log", False)
    if not isinstance(log, bool):
        problems.append(f"space: log of {name} is {log!r}, expected true or false")
    if problems:
        return None, problems
    low, high, step = numbers["low"], numbers["high"], numbers.get("step")
    if not low < high:
        problems.append(f"space: {name} goes from {low} to {high}, expected low below high")
    elif log and (low <= 0 or step is not None):
        problems.append(f"space: log of {name} needs low above 0 and no step, saw low {low} and step {step}")
    elif step is not None and not (step > 0 and abs((high - low) / step - round((high - low) / step)) < 1e-9):
        problems.append(f"space: {name} goes from {low} to {high} by {step}, expected a whole number of steps above 0")
    return (None, problems) if problems else (Range(low, high, log, step, whole), [])


def _bad_values(space: Space, options: Mapping[str, Any]) -> list[str]:
    """Return the problems of extreme values: of each on its own and, if there are none, of combinations."""
    before = _refused(options)  # what the other options lack may be in the space
    values = ((name, value) for name, axis in space.axes.items() for value in axis.extremes())
    refused = ((name, _refused({**options, **flat({name: value})})) for name, value in values)
    problems = [f"space: {name}: {problem}" for name, problem in refused if problem not in (None, before)]
    if not problems:
        corners = [(corner, _refused({**options, **flat(corner)})) for corner in space.corners()]
        problems = [f"space: {corner}: {problem}" for corner, problem in corners if problem is not None][:1]
        if before is not None and all(problem == before for _, problem in corners):
            problems = [before]  # whatever is searched
    return list(dict.fromkeys(problems))


def _refused(options: Mapping[str, Any]) -> str | None:
    try:
        resolve_options(options)
    except ConfigError as error:
        return str(error)
    return None


def _head_only(config: FinetuneConfig, axes: Mapping[str, Range | Choices]) -> bool:
    """Whether cached features can answer all that is fixed and searched."""
    known = OF_A_TRAINED_HEAD | OF_ITS_FEATURES
    others = [name for name, usual in DEFAULTS.items() if name not in known and getattr(config, name) != usual]
    schedules = [
        make_schedule(value) for value in (axes["schedule"].extremes() if "schedule" in axes else [config.schedule])
    ]
    plain = not any(curve.needs_values or curve.momentum(0, 2, 1) is not None for curve in schedules)
    heads, kinds = axes["head"].extremes() if "head" in axes else [config.head], task_of(config).head_kinds
    on_maps = any(kinds.feed(str(head)) is not Feed.FEATURES for head in heads)
    fits = (OF_A_TRAINED_HEAD | OF_A_NETWORK).issuperset(axes) and config.batch_size != "auto"
    return fits and plain and not on_maps and not others


def _label(value: Any) -> Any:
    """Return a choice as Optuna stores it: plain values as they are, others as text."""
    plain = value is None or isinstance(value, bool | int | float | str)
    return value if plain else json.dumps(value, sort_keys=True, default=str)
