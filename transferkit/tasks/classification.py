"""One class per picture."""

from __future__ import annotations

from transferkit.data.index.targets import ClassReader
from transferkit.models.classification import ClassCalibrator, ClassHeads, ClassObjective, ClassOutput, ClassScores
from transferkit.models.task import Task

__all__ = ["TASK"]

TASK = Task(
    name="classification",
    targets=ClassReader(),
    heads=ClassHeads(),
    objective=ClassObjective(),
    output=ClassOutput(),
    scores=ClassScores(),
    calibrator=ClassCalibrator(),
)
