"""Boxes and instance masks, as a model sees them: what detections are worth, and from which score on they are told.

Predictions of boxes are lists of `BoxTally`, one per picture.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from transferkit.core.errors import CheckpointError, ConfigError, TransferkitWarning
from transferkit.core.targets import TargetSpec
from transferkit.models.calibration.calibration import FOLDS, MIN_PICTURES, Calibration
from transferkit.models.calibration.scaling import stratified_folds
from transferkit.models.detections.counts import BoxCounts, best_thresholds
from transferkit.models.figures.boxes import BoxTally, Thresholds
from transferkit.models.figures.detection import box_figures, box_metrics
from transferkit.models.figures.figure import Figure
from transferkit.models.parts import FittedCalibration

__all__ = ["THRESHOLDS", "BoxCalibration", "BoxCalibrator", "BoxScores", "BoxWidths", "thresholds_from"]

THRESHOLDS: Final = "thresholds"
"""The fact of a `TargetSpec` that holds the scores chosen on held-out pictures."""
SHOWN: Final = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Scores of which a person reads what they would bring."""


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


@dataclass(frozen=True)
class BoxCalibration:
    """The scores from which on boxes are told, chosen on held-out pictures. Scores themselves stay as they are.

    Attributes:
        thresholds: Of best F1 at overlaps of a half.
        fitted_on: The pictures, in words.
        folds: Of the cross-fitting.
        figures: ``n``, pictures; ``f1, precision, recall`` of held-out pictures, each at a threshold chosen without it.
    """

    thresholds: Thresholds
    fitted_on: str | None = None
    folds: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)
    method: str = "threshold"
    temperature: float = 1.0
    covers: bool = False

    @property
    def facts(self) -> Mapping[str, Any]:
        """The thresholds."""
        return {THRESHOLDS: {"every": self.thresholds.every, "of_class": list(self.thresholds.of_class)}}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for `model.json`."""
        return {
            "method": self.method,
            "temperature": self.temperature,
            **self.facts,
            "fitted_on": self.fitted_on,
            "folds": self.folds,
            "figures": dict(self.figures),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return what `to_dict` gave.

        Raises:
            CheckpointError: It is not that.
        """
        try:
            if values["method"] != "threshold":
                raise ValueError(f"method {values['method']!r}")
            figures = {str(name): float(value) for name, value in values["figures"].items()}
            return cls(_thresholds(values[THRESHOLDS]), values["fitted_on"], int(values["folds"]), figures)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"calibration: cannot be read ({type(error).__name__}: {error}) - run `transferkit calibrate` again"
            ) from error


@dataclass(frozen=True)
class BoxCalibrator:
    """The score from which on a box is told, by the best F1 at overlaps of a half on held-out pictures.

    Attributes:
        classes: C.
    """

    classes: int = 0
    methods: tuple[str, ...] = ("threshold",)

    def fit(
        self, outputs: Sequence[BoxTally], targets: object, *, method: str, seed: int
    ) -> tuple[FittedCalibration, list[BoxTally]]:
        """Return the thresholds, and the tallies with thresholds that were chosen without the picture.

        Args:
            outputs: Of N pictures.
            targets: Not looked at: objects stand in the tallies.
            method: ``"auto"`` or ``"threshold"``, or ``"none"``.
            seed: Of the folds.

        Raises:
            ConfigError: There is no such method.
        """
        known = ("none", *self.methods)
        if method not in (*known, "auto"):
            raise ConfigError(f"method is {method!r}, expected one of {', '.join(known)}")
        if method == "none":
            return Calibration(), list(outputs)
        reason = self.problem(outputs, targets)
        if reason is not None:
            warnings.warn(f"no threshold is chosen: {reason}", TransferkitWarning, stacklevel=2)
            return Calibration(), list(outputs)
        places = stratified_folds(torch.from_numpy(self._strata(outputs)), FOLDS, seed=seed)
        folds = int(places.max()) + 1
        others = [self._best([one for one, at in zip(outputs, places, strict=True) if at != fold])
                  for fold in range(folds)]  # fmt: skip
        judged = [replace(one, thresholds=others[at]) for one, at in zip(outputs, places, strict=True)]
        chosen = self._best(outputs)
        outcomes, _ = BoxCounts(judged, range(self.classes), masks=False).at(chosen)
        right, wrong, objects = outcomes.sum(axis=0).tolist()
        figures = {
            "n": float(len(outputs)), "f1": 2 * right / (right + wrong + objects),
            "precision": right / max(1, right + wrong), "recall": right / objects,
        }  # fmt: skip
        return BoxCalibration(chosen, "val", folds, figures), judged

    def at_precision(self, rate: float) -> None:
        """Return that there is none: thresholds are those of best F1."""
        return

    def read(self, values: Mapping[str, Any]) -> FittedCalibration:
        """Return the calibration of which `values` are the `to_dict`. Raises `CheckpointError`."""
        return Calibration.from_dict(values) if values.get("method") == "none" else BoxCalibration.from_dict(values)

    def apply(self, calibration: FittedCalibration, outputs: Any) -> Any:
        """Return the outputs: scores stay as they are."""
        return outputs

    def problem(self, outputs: Sequence[BoxTally], targets: object) -> str | None:
        """Return why nothing can be chosen on these pictures; ``None`` where it can."""
        if len(outputs) < MIN_PICTURES:
            return f"{len(outputs)} held-out pictures are too few, expected {MIN_PICTURES} or more"
        if self._best(outputs).every is None:
            return "no object of the held-out pictures is found"
        return None

    def summary(
        self,
        calibration: BoxCalibration,
        outputs: Sequence[BoxTally],
        targets: object,
        predictions: Sequence[BoxTally],
        *,
        seed: int,
    ) -> tuple[list[tuple[str, str]], tuple[str, ...], list[tuple[str, ...]]]:
        """Return the threshold and what it brings, and how precision and recall go with others."""
        figures, counts = calibration.figures, BoxCounts(outputs, range(self.classes), masks=False)
        every = calibration.thresholds.every
        lines = [("threshold", "none" if every is None else f"{every:.3f}")]
        lines += [(name, f"{figures[key]:.1%}") for name, key in
                  (("F1", "f1"), ("precision", "precision"), ("recall", "recall"))]  # fmt: skip
        rows: list[tuple[str, ...]] = []
        for score in SHOWN:
            outcomes, _ = counts.at(Thresholds(score, (score,) * self.classes))
            right, wrong, objects = outcomes.sum(axis=0).tolist()
            precision = "n/a" if not right + wrong else f"{right / (right + wrong):.1%}"
            rows.append((f"{score:.1f}", f"{right + wrong:,}", precision, f"{right / max(1, objects):.1%}"))
        return lines, ("boxes from a score of", "boxes", "right", "objects found"), rows

    def _best(self, tallies: Sequence[BoxTally]) -> Thresholds:
        return best_thresholds(BoxCounts(tallies, range(self.classes), masks=False))

    def _strata(self, tallies: Sequence[BoxTally]) -> npt.NDArray[np.int64]:
        """Return, of each picture, which of its classes the fewest pictures have; C where it has none."""
        there = np.array([np.bincount(one.true_classes[~one.crowd], minlength=self.classes) > 0 for one in tallies])
        held = np.where(there, there.sum(axis=0), len(tallies) + 1)
        return np.asarray(np.where(there.any(axis=1), held.argmin(axis=1), self.classes), dtype=np.int64)


def thresholds_from(spec: TargetSpec) -> Thresholds | None:
    """Return the thresholds among the facts of a spec; ``None`` where there are none."""
    limits = spec.facts.get(THRESHOLDS)
    return None if limits is None else _thresholds(limits)


def _thresholds(limits: Mapping[str, Any]) -> Thresholds:
    every, *of_class = (None if value is None else float(value) for value in (limits["every"], *limits["of_class"]))
    return Thresholds(every, tuple(of_class))


@dataclass(frozen=True)
class BoxWidths:
    """A class each for the boxes of a head."""

    def width(self, spec: TargetSpec) -> int:
        """Return the number of classes."""
        return len(spec.names)

    def problems(self, width: int) -> list[str]:
        """Return what is wrong with so many classes."""
        return [] if width >= 1 else [f"num_classes is {width}, expected at least 1"]

    def row(
        self, values: Tensor, *, bias: bool, theirs: tuple[TargetSpec, int], ours: tuple[TargetSpec, int]
    ) -> Tensor:
        """Return the row as it is."""
        return values

    def joined(self, taken: Tensor, solved: Tensor, places: Sequence[int]) -> Tensor:
        """Return rows of both."""
        rows = solved.clone()
        rows[list(places)] = taken[list(places)]
        return rows
