"""Several labels per picture, or none."""

from __future__ import annotations

from dataclasses import replace

from transferkit.core.targets import TargetSpec
from transferkit.data.index.labels import LabelReader
from transferkit.features.linear.labels import LabelSolver
from transferkit.models.answers.multilabel import LabelCalibrator, LabelHeads, LabelObjective, LabelScores
from transferkit.models.answers.teaching import LabelTeaching
from transferkit.models.task import Task
from transferkit.results.details.labels import LabelDetails
from transferkit.results.predict.labels import LabelOutput

__all__ = ["TASK"]


def _with_thresholds(task: Task, spec: TargetSpec) -> Task:
    """Return the task whose output goes by the thresholds of a model."""
    thresholds = spec.facts.get("thresholds")
    return task if thresholds is None else replace(task, output=LabelOutput(tuple(map(float, thresholds))))


TASK = Task(
    name="multilabel",
    targets=LabelReader(),
    heads=LabelHeads(),
    objective=LabelObjective(),
    output=LabelOutput(),
    scores=LabelScores(),
    calibrator=LabelCalibrator(),
    solver=LabelSolver(),
    details=LabelDetails(),
    teaching=LabelTeaching(),
    bind=_with_thresholds,
)
