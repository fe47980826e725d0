"""One or several numbers per picture."""

from __future__ import annotations

from dataclasses import replace

from transferkit.core.targets import TargetSpec
from transferkit.data.index.numbers import NumberReader
from transferkit.features.linear.ridge import RidgeSolver
from transferkit.models.answers.regression import NumberCalibrator, NumberHeads, NumberObjective, NumberScores, Units
from transferkit.models.answers.teaching import NumberTeaching
from transferkit.models.task import Task
from transferkit.results.details.numbers import NumberDetails
from transferkit.results.predict.numbers import NumberOutput

__all__ = ["TASK"]


def _in_units(task: Task, spec: TargetSpec) -> Task:
    """Return the task whose parts know the units of the targets."""
    units = Units.of(spec)
    return replace(
        task,
        objective=NumberObjective(units=units),
        output=NumberOutput(units),
        calibrator=NumberCalibrator(units=units),
        solver=RidgeSolver(units=units),
        teaching=NumberTeaching(units),
    )


TASK = Task(
    name="regression",
    targets=NumberReader(),
    heads=NumberHeads(),
    objective=NumberObjective(),
    output=NumberOutput(),
    scores=NumberScores(),
    calibrator=NumberCalibrator(),
    solver=RidgeSolver(),
    details=NumberDetails(),
    teaching=NumberTeaching(),
    bind=_in_units,
)
