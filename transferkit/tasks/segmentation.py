"""A class per pixel."""

from __future__ import annotations

from dataclasses import replace

from transferkit.core.targets import TargetSpec
from transferkit.data.index.masks import MaskReader
from transferkit.features.probe.solver import ClassSolver
from transferkit.models.answers.classification import ClassHeads
from transferkit.models.answers.segmentation import MaskCalibrator, MaskScores
from transferkit.models.dense.extent import MaskExtent
from transferkit.models.dense.kinds import MASK_HEADS
from transferkit.models.dense.objective import MaskObjective
from transferkit.models.parts import ON_CANVAS, Epochs
from transferkit.models.task import Task
from transferkit.results.details.masks import MaskDetails
from transferkit.results.predict.masks import MaskOutput

__all__ = ["TASK"]


def _with_counts(task: Task, spec: TargetSpec) -> Task:
    """Return the task whose weights go by the pixels of the training masks."""
    pixels = spec.facts.get("pixels")
    return task if pixels is None else replace(task, objective=MaskObjective(pixels=tuple(map(int, pixels))))


TASK = Task(
    name="segmentation",
    targets=MaskReader(),
    heads=ClassHeads(),
    objective=MaskObjective(),
    output=MaskOutput(),
    scores=MaskScores(),
    calibrator=MaskCalibrator(),
    solver=ClassSolver("L-BFGS on cached cells", "pixel_acc", "pixels"),
    details=MaskDetails(),
    head_kinds=MASK_HEADS,
    extent=MaskExtent(),
    epochs=Epochs(measured=ON_CANVAS),
    bind=_with_counts,
)
