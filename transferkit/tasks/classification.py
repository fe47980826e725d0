"""One class per picture."""

from __future__ import annotations

from transferkit.models.classification import ClassHeads, ClassObjective, ClassOutput
from transferkit.models.task import Task

__all__ = ["TASK"]

TASK = Task(name="classification", heads=ClassHeads(), objective=ClassObjective(), output=ClassOutput())
