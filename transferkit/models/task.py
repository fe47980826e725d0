"""`Task`: everything that depends on the kind of answer, as a frozen record of parts.

A verb asks for the part it needs; nowhere else is the kind of answer looked at. The parts stand in the rooms that they
belong to, and a file under `tasks/` only names them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from torch import Tensor

from transferkit.core.errors import ConfigError, did_you_mean
from transferkit.core.targets import TargetSpec
from transferkit.data.index.targets import TargetReader, task_name
from transferkit.models.details import Details
from transferkit.models.extent import WHOLE_PICTURE, Extent
from transferkit.models.heads.registry import FLAT, HeadKinds
from transferkit.models.heads.solver import Heads, Solver
from transferkit.models.parts import Calibrator, Epochs, FittedCalibration, Objective, Output, Scores
from transferkit.options.data import DataOptions

if TYPE_CHECKING:
    from transferkit.models.answers.teaching import Teaching

__all__ = [
    "CLASSIFICATION",
    "Task",
    "is_registered",
    "list_tasks",
    "register_task",
    "task_named",
    "task_of",
]


def _as_it_is(task: Task, spec: TargetSpec) -> Task:
    return task


@dataclass(frozen=True)
class Task:
    """A kind of answer.

    Attributes:
        name: As ``--task`` and `model.json` have it.
        targets: See `TargetReader`.
        heads: See `Heads`.
        objective: See `Objective`.
        output: See `Output`.
        scores: See `Scores`.
        calibrator: See `Calibrator`; ``None`` where the outputs stand for themselves.
        solver: See `Solver`; ``None`` where a head can only be trained.
        details: See `Details`; ``None`` where the figures say all.
        head_kinds: See `HeadKinds`; by default heads that return a row per picture.
        extent: See `Extent`; by default an output is of a picture as a whole.
        epochs: See `Epochs`; by default there is nothing to say of curves.
        teaching: See `Teaching`; ``None`` where a model of this kind teaches no other one.
        bind: Makes the task of a spec: parts that know, say, the units of a target. By default the task itself.
    """

    name: str
    targets: TargetReader
    heads: Heads
    objective: Objective
    output: Output
    scores: Scores
    calibrator: Calibrator | None = None
    solver: Solver | None = None
    details: Details | None = None
    head_kinds: HeadKinds = FLAT
    extent: Extent = WHOLE_PICTURE
    epochs: Epochs = Epochs()
    teaching: Teaching | None = None
    bind: Callable[[Task, TargetSpec], Task] = _as_it_is

    def of(self, spec: TargetSpec) -> Task:
        """Return the task of a data set or model: its parts know what the answers mean."""
        return self.bind(self, spec)

    def predictions(self, outputs: Any, calibration: FittedCalibration) -> Any:
        """Return what users are told for outputs ``(..., width) float32``: calibrated where there is a calibration.

        Of outputs that are kept as records, see `Extent`, predictions are records, too.
        """
        return self.output.activate(outputs) if self.calibrator is None else self.calibrator.apply(calibration, outputs)

    def require(self, part: str, verb: str) -> Any:
        """Return a part that a verb needs.

        Raises:
            ConfigError: The part is ``None``.
        """
        value = getattr(self, part)
        if value is None:
            raise ConfigError(f"{verb} has no {part} for {self.name} - {_INSTEAD[part]}")
        return value

    def width_problems(self, spec: TargetSpec, width: int) -> list[str]:
        """Return what is wrong with a model of this spec that has so many outputs, a sentence each."""
        problems = self.heads.problems(width)
        if self.heads.width(spec) != max(0, width):
            problems.append(f"class_names holds {len(spec.names)} names, expected num_classes = {width}")
        return problems

    def calibration_problem(self, method: str) -> str | None:
        """Return that there is no such way to calibrate, for a message; ``None`` where there is one."""
        methods = () if self.calibrator is None else self.calibrator.methods
        known = (*dict.fromkeys((AUTO, *methods)), "none")
        if method in known:
            return None
        return f"the calibration of {self.name} cannot be {method!r}, expected one of {', '.join(known)}"

    def values(
        self, predictions: Any, targets: Any, spec: TargetSpec, *, plain: Any = None, seed: int = 0
    ) -> dict[str, Any]:
        """Return `Scores.measure`'s values of one split, with the list ``figures`` that everything else loops over."""
        values = self.scores.measure(predictions, targets, spec, plain=plain, seed=seed)
        return {**values, "n": len(targets), "figures": [figure.to_dict() for figure in self.scores.figures(values)]}

    def plain_figures(self, names: Sequence[str], outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return figures of held-out outputs as an epoch reports them, in double precision where they are means.

        Args:
            names: ``"loss"``, for the plain one, or figures that the objective can watch.
            outputs: ``(N, width)``.
            targets: ``(N, ...)``.
        """
        outputs, objective = outputs.double(), self.objective
        sums = objective.running_sums(outputs, targets).tolist()
        values = {name: total / len(targets) for name, total in zip(objective.running, sums, strict=True)}
        values["loss"] = float(objective.item_losses(outputs, targets).mean())
        others = objective.metrics([name for name in names if name not in values], outputs.shape[1])
        for name, metric in others.items():
            metric.update(self.output.activate(outputs.float()), targets)
            values[name] = float(metric.compute())
        return {name: values[name] for name in names}

    def picture_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the plain loss of each picture at the scale of all outputs that suits them, ``(N,) float64``.

        Args:
            outputs: ``(N, width)``.
            targets: ``(N, ...)``.
        """
        return self.objective.item_losses(self.objective.scaled(outputs, targets), targets)


AUTO: Final = "auto"
CLASSIFICATION: Final = "classification"

_HOMES: Final[dict[str, str]] = {
    name: f"transferkit.tasks.{name}"
    for name in (CLASSIFICATION, "multilabel", "regression", "segmentation", "detection")
}
"""Where the tasks of this package stand. Their files name parts of every room, so they are opened on first use, as the
public names are."""

_REGISTERED: dict[str, Task] = {}

_INSTEAD: Final = {
    "calibrator": "predictions and figures: predict, evaluate",
    "teaching": "finetune the small backbone on the labels",
    "solver": "train the head by steps: finetune --probe sgd",
}
"""The ways around a part that is ``None``."""


def list_tasks() -> list[str]:
    """Return the names that `task_named` knows, sorted."""
    return sorted((*_HOMES, *_REGISTERED))


def is_registered(name: str) -> bool:
    """Whether there is a task of this name: one of this package, or one that `register_task` was called with."""
    return name in _HOMES or name in _REGISTERED


def register_task(task: Task) -> Task:
    """Make a task of your own known by its name, for ``--task`` and for models that were trained with it.

    Raises:
        ConfigError: The name is taken.
    """
    if is_registered(task.name):
        raise ConfigError(f"a task named {task.name!r} exists already - register it under another name")
    _REGISTERED[task.name] = task
    return task


def task_of(options: DataOptions) -> Task:
    """Return the task that options name, or that their data set shows.

    Raises:
        ConfigError: There is none of that name.
        DataError: The manifest cannot be read.
    """
    return task_named(task_name(options))


def task_named(name: str) -> Task:
    """Return the task of this name; ``"auto"`` is classification.

    Raises:
        ConfigError: There is none.
    """
    name = CLASSIFICATION if name == AUTO else name
    if name in _REGISTERED:
        return _REGISTERED[name]
    if name not in _HOMES:
        known = list_tasks()
        raise ConfigError(f"unknown task {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}")
    task: Any = import_module(_HOMES[name]).TASK
    if not isinstance(task, Task):
        raise TypeError(f"{_HOMES[name]}.TASK is a {type(task).__name__}")
    return task
