"""Boxes and instance masks, as a model sees them: what detections are worth. Nothing calibrates them.

Predictions of boxes are lists of `BoxTally`, one per picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from transferkit.core.targets import TargetSpec
from transferkit.models.detections.counts import Thresholds
from transferkit.models.figures.boxes import BoxTally
from transferkit.models.figures.detection import box_figures, box_metrics
from transferkit.models.figures.figure import Figure

__all__ = ["THRESHOLDS", "BoxScores", "thresholds_from", "thresholds_to"]

THRESHOLDS: Final = "thresholds"
"""The fact of a `TargetSpec` that holds the scores chosen on held-out pictures."""


@dataclass(frozen=True)
class BoxScores:
    """Average precision as COCO has it, and precision and recall at a threshold."""

    def measure(
        self,
        predictions: Sequence[BoxTally],
        targets: object,
        spec: TargetSpec,
        *,
        plain: object = None,
        seed: int = 0,
    ) -> dict[str, Any]:
        """Return the figures of predictions.

        Args:
            predictions: Of N pictures.
            targets: Not looked at: the objects of a picture stand in its tally.
            spec: Names the classes; thresholds among its facts were chosen on other pictures, else they are on these.
            plain: Not looked at: there is no calibration.
            seed: Of the bootstrap.
        """
        return box_metrics(predictions, spec.names, thresholds_from(spec), seed=seed)

    def figures(self, values: Mapping[str, Any]) -> list[Figure]:
        """Return the figures of all classes, mean average precision first, then those of each class."""
        return box_figures(values)


def thresholds_to(values: Mapping[str, Any], spec: TargetSpec) -> dict[str, Any]:
    """Return the facts that keep the thresholds which `BoxScores.measure` chose: they join those of the spec.

    Args:
        values: From `BoxScores.measure`, of held-out pictures.
        spec: The same.
    """
    rows = values["per_class"]
    of_class = {name: rows[name]["threshold"] for name in spec.names}
    return {THRESHOLDS: {"every": values["threshold"], "of_class": of_class}}


def thresholds_from(spec: TargetSpec) -> Thresholds | None:
    """Return the thresholds among the facts of a spec; ``None`` where there are none."""
    limits = spec.facts.get(THRESHOLDS)
    if limits is None:
        return None
    return Thresholds(limits["every"], tuple(limits["of_class"].get(name) for name in spec.names))
