"""One class per picture."""

from __future__ import annotations

from transferkit.data.index.targets import ClassReader
from transferkit.features.probe.solver import ClassSolver
from transferkit.models.answers.classification import ClassCalibrator, ClassHeads, ClassObjective, ClassScores
from transferkit.models.answers.teaching import ClassTeaching
from transferkit.models.task import Task
from transferkit.results.details.classes import ClassDetails
from transferkit.results.predict.record import ClassOutput

__all__ = ["TASK"]

TASK = Task(
    name="classification",
    targets=ClassReader(),
    heads=ClassHeads(),
    objective=ClassObjective(),
    output=ClassOutput(),
    scores=ClassScores(),
    calibrator=ClassCalibrator(),
    solver=ClassSolver(),
    details=ClassDetails(),
    teaching=ClassTeaching(),
)
