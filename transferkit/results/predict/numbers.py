"""A prediction of numbers: the record of one picture, its row in CSV and JSON lines."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from transferkit.core.errors import ConfigError
from transferkit.core.targets import TargetSpec
from transferkit.models.answers.regression import Units
from transferkit.models.calibration.intervals import half_width
from transferkit.models.figures.compared import Compared
from transferkit.models.parts import Request
from transferkit.models.record_files import ObjectResults, Page, RecordFiles

__all__ = ["NumberOutput", "NumberPrediction"]

Array = npt.NDArray[np.float32]

COVERAGE = 0.9
"""Of the intervals where none is asked for."""


@dataclass(frozen=True)
class NumberPrediction:
    """What the model says about one picture.

    Attributes:
        path: The file, or the place among the pictures, as ``"images[3]"``.
        names: Of the targets.
        numbers: One per target, in its own unit.
        low: Lower ends of their intervals; ``None`` where there is none.
        high: Upper ends.
        error: Why there is no prediction; ``None`` where there is one.
        abstained: Always ``False``: how sure a number is, its interval says.
        unlike_training: Share of held-out pictures that are nearer to the training pictures, in [0, 1]; ``None`` where
            the model does not know.
    """

    path: str
    names: tuple[str, ...] = ()
    numbers: tuple[float, ...] = ()
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()
    error: str | None = None
    abstained: bool = False
    unlike_training: float | None = None


@dataclass(frozen=True)
class NumberOutput:
    """The part that makes predictions of outputs: numbers in their own units, with intervals.

    Attributes:
        units: Of the targets.
    """

    units: Units = field(default_factory=Units)
    columns: tuple[str, ...] = ("target", "predicted", "loss")
    objects: ObjectResults | None = None
    files: RecordFiles | None = None
    names_one: bool = False
    labels: bool = False

    def activate(self, outputs: Tensor) -> Tensor:
        """Return numbers in their own units for deviations ``(..., T)``."""
        return self.units.in_own_units(outputs)

    def rows(self, predictions: Tensor, targets: Tensor, spec: TargetSpec) -> list[tuple[str, ...]]:
        """Return numbers, predicted numbers (both joined by ``|``) and the mean squared deviation."""
        units = Units.of(spec)
        off = units.standardised(predictions.double()) - units.standardised(targets.double())
        losses = off.square().mean(dim=1).tolist()
        return [
            (_joined(true), _joined(guess), f"{loss:.6f}")
            for true, guess, loss in zip(targets.tolist(), predictions.tolist(), losses, strict=True)
        ]

    def merge(self, predictions: Array) -> Array:
        """Return the numbers ``(T,)`` of a picture: the mean over those of its views, ``(V, T)``."""
        merged: Array = predictions[0] if len(predictions) == 1 else predictions.mean(axis=0)
        return merged

    def problem(self, spec: TargetSpec, request: Request) -> str | None:
        """Return that numbers have no ranks, abstain from nothing, or have too few held-out errors for a coverage."""
        if request.top_k is not None:
            return "--top-k is for one class per picture, and of numbers there is one value each - leave it out"
        if request.abstention is not None:
            return "--abstain is for one class per picture; how sure a number is, its interval says - pass --coverage"
        if request.coverage is None:
            return None
        errors = spec.facts.get("errors")
        if not errors:
            return "--coverage needs a model with intervals, and this one has none - run `transferkit calibrate` first"
        if half_width(errors[0], request.coverage) is None:
            needed = math.ceil(request.coverage / (1 - request.coverage))
            return (
                f"--coverage {request.coverage:g} needs the errors of {needed:,} held-out pictures, and this model "
                f"was calibrated on {len(errors[0]):,} - ask for less, or calibrate on more"
            )
        return None

    def record(self, name: str, prediction: Array, spec: TargetSpec, request: Request) -> NumberPrediction:
        """Return the prediction of a picture, of its numbers ``(T,)``, with intervals of the coverage asked for."""
        errors = spec.facts.get("errors") or [()] * len(spec.names)
        widths = [half_width(of_target, request.coverage or COVERAGE) for of_target in errors]
        numbers = tuple(map(float, prediction))
        low, high = (
            tuple(
                None if width is None else number + side * width for number, width in zip(numbers, widths, strict=True)
            )
            for side in (-1, 1)
        )
        return NumberPrediction(name, tuple(spec.names), numbers, low, high)

    def unreadable(self, name: str, error: str) -> NumberPrediction:
        """Return the record of a picture without a prediction."""
        return NumberPrediction(name, error=error)

    def unknown(self, record: NumberPrediction) -> NumberPrediction:
        """Refused: there are no labels. Raises `ConfigError`."""
        raise ConfigError("--unknown is for labels; how unlike the training pictures one is, unlike_training says")

    def header(self, spec: TargetSpec, request: Request) -> list[str]:
        """Return ``NAME, NAME_low, NAME_high`` of every target; without the last two where there are no intervals."""
        parts = ("", "_low", "_high") if spec.facts.get("errors") else ("",)
        return [f"{name}{part}" for name in spec.names for part in parts]

    def cells(self, record: NumberPrediction, spec: TargetSpec, request: Request) -> list[list[object]]:
        """Return the one row under `header`."""
        if record.error is not None:
            return [[None] * len(self.header(spec, request))]
        triples = zip(record.numbers, record.low, record.high, strict=True)
        count = 3 if spec.facts.get("errors") else 1
        return [[None if value is None else f"{value:.6g}" for triple in triples for value in triple[:count]]]

    def values(self, record: NumberPrediction) -> dict[str, Any]:
        """Return ``values``: of each target its ``value``, ``low`` and ``high``, for JSON."""
        rows = zip(record.names, record.numbers, record.low, record.high, strict=True)
        return {"values": {name: {"value": value, "low": low, "high": high} for name, value, low, high in rows}}

    def answer(self, record: NumberPrediction, spec: TargetSpec) -> str:
        """Return the first target."""
        return spec.names[0]

    def shares(self, record: NumberPrediction, spec: TargetSpec) -> dict[str, float]:
        """Return nothing: numbers are no shares."""
        return {}

    def explained(self, outputs: Tensor, places: Tensor) -> Tensor:
        """Return the output of each picture's target."""
        return outputs.gather(1, places[:, None])[:, 0]

    @property
    def page(self) -> Page:
        """Of numbers, with `facts_on_page`."""
        return Page("serve_numbers.html.j2", self.facts_on_page)

    def facts_on_page(self, spec: TargetSpec) -> dict[str, Any]:
        """Return ``targets``, ``level``, the coverage of their intervals, and ``explained``, for heat maps.

        A target has a name, the range ``low`` to ``high`` of the training pictures and their deviation ``scale``;
        ``None`` where the model does not know it.
        """
        nothing = [None] * len(spec.names)
        ranges = spec.facts.get("range") or [(None, None)] * len(spec.names)
        rows = zip(spec.names, ranges, spec.facts.get("scale") or nothing, strict=True)
        return {
            "targets": [{"name": name, "low": low, "high": high, "scale": scale} for name, (low, high), scale in rows],
            "level": f"{100 * COVERAGE:g} %",
            "explained": [(name, name) for name in spec.names] if len(spec.names) > 1 else [],
        }

    @property
    def compared(self) -> Compared:
        """Deviations of the training pictures."""
        return Compared(
            "numbers", "other numbers", "numbers, in deviations of the training pictures,", self.units.scale
        )

    def agree(self, predictions: Array, expected: Array, near: float) -> npt.NDArray[np.bool_]:
        """Return for which pictures no number is further apart than so many deviations."""
        scale = np.asarray(self.units.scale) if self.units.scale else np.ones(predictions.shape[1])
        agrees: npt.NDArray[np.bool_] = (np.abs(predictions - expected) <= near * scale).all(axis=1)
        return agrees


def _joined(numbers: list[float]) -> str:
    return "|".join(f"{number:.6g}" for number in numbers)
