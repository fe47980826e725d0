"""A box and a class per object, with outlines where the head learns them."""

from __future__ import annotations

from dataclasses import replace

from transferkit.core.targets import TargetSpec
from transferkit.data.index.boxes import BoxReader
from transferkit.models.answers.detection import BoxCalibrator, BoxScores, BoxWidths
from transferkit.models.objects.extent import BoxExtent
from transferkit.models.objects.kinds import BoxHeads
from transferkit.models.objects.objective import BoxObjective
from transferkit.models.parts import ON_CANVAS, Epochs
from transferkit.models.task import Task
from transferkit.results.details.boxes import BoxDetails
from transferkit.results.predict.boxes import BoxOutput

__all__ = ["TASK"]


def _of_classes(task: Task, spec: TargetSpec) -> Task:
    """Return the task that knows how many classes there are, whether objects have outlines, and how large they are."""
    shapes = tuple((float(width), float(height)) for width, height in spec.facts.get("shapes", ()))
    heads = BoxHeads(outlines=bool(spec.facts.get("outlines", False)), shapes=shapes)
    return replace(task, head_kinds=heads, calibrator=BoxCalibrator(len(spec.names)))


TASK = Task(
    name="detection",
    targets=BoxReader(),
    heads=BoxWidths(),
    objective=BoxObjective(),
    output=BoxOutput(),
    scores=BoxScores(),
    calibrator=BoxCalibrator(),
    details=BoxDetails(),
    head_kinds=BoxHeads(),
    extent=BoxExtent(),
    epochs=Epochs(val_loss="one minus the F1 of boxes", measured=ON_CANVAS),
    bind=_of_classes,
)
