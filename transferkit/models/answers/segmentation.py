"""A class per pixel, as a model sees it: what masks are worth, and probabilities of pixels that can be trusted.

Predictions of masks are lists of `MaskTally`, one per picture, with log-probabilities.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from transferkit.core.errors import ConfigError, TransferkitWarning
from transferkit.core.targets import TargetSpec
from transferkit.models.calibration.calibration import FOLDS, MIN_PICTURES, Calibration
from transferkit.models.calibration.scaling import fit_temperature, stratified_folds
from transferkit.models.figures.figure import Figure
from transferkit.models.figures.masks import MaskTally
from transferkit.models.figures.segmentation import mask_confidence, mask_figures, mask_metrics
from transferkit.models.parts import FittedCalibration

__all__ = ["MaskCalibrator", "MaskScores"]

NUMBERS: Final = 1 << 22
"""Logits that a temperature is fitted on at most, about, in all: it is one number."""
SURE: Final = (0.0, 0.5, 0.9, 0.99)
"""Probabilities of the table that `calibrate` prints."""


@dataclass(frozen=True)
class MaskScores:
    """Intersection over union and its relatives."""

    def measure(
        self,
        predictions: Sequence[MaskTally],
        targets: object,
        spec: TargetSpec,
        *,
        plain: Sequence[MaskTally] | None = None,
        seed: int = 0,
    ) -> dict[str, Any]:
        """Return the figures of predictions, and loss and ECE of `plain`.

        Args:
            predictions: Of N pictures.
            targets: Not looked at: the truth of a picture stands in its tally, where it was counted pixel by pixel.
            spec: Names the classes; its ``"pixels"``, of each class in the training masks, say what is most frequent.
            plain: Predictions before calibration; ``None`` where there is none.
            seed: Of the bootstrap.
        """
        values = mask_metrics(predictions, spec.names, spec.facts.get("pixels"), seed=seed)
        if plain is not None:
            before = mask_confidence(plain)
            values["uncalibrated"] = {key: before[key] for key in ("loss", "ece")}
        return values

    def figures(self, values: Mapping[str, Any]) -> list[Figure]:
        """Return the figures of all pixels, mean IoU first, then those of each class."""
        return mask_figures(values)


@dataclass(frozen=True)
class MaskCalibrator:
    """Temperature scaling of the logits of pixels, cross-fitted by pictures: the pixels of one are alike."""

    methods: tuple[str, ...] = ("temperature",)

    def at_precision(self, rate: float) -> None:
        """Return nothing: there are no thresholds of masks."""

    def read(self, values: Mapping[str, Any]) -> Calibration:
        """Return the calibration of which `values` are the `to_dict`. Raises `CheckpointError`."""
        return Calibration.from_dict(values)

    def fit(
        self, outputs: Sequence[MaskTally], targets: object, *, method: str, seed: int
    ) -> tuple[Calibration, list[MaskTally]]:
        """Return the calibration, and of each picture the prediction by a temperature of other pictures.

        Args:
            outputs: Of N pictures, with logits.
            targets: Not looked at: they stand in the tallies.
            method: ``"auto"`` or ``"temperature"``, or ``"none"``.
            seed: Of the folds.

        Raises:
            ConfigError: There is no such method.
        """
        known = ("none", *self.methods)
        if method not in (*known, "auto"):
            raise ConfigError(f"method is {method!r}, expected one of {', '.join(known)}")
        before = [one.log_probs() for one in outputs]
        if method == "none":
            return Calibration(), before
        reason = self.problem(outputs, targets)
        if reason is not None:
            warnings.warn(f"probabilities are not calibrated: {reason}", TransferkitWarning, stacklevel=2)
            return Calibration(), before
        places = stratified_folds(torch.from_numpy(_rarest(outputs)), FOLDS, seed=seed)
        folds = int(places.max()) + 1
        of_fold = [_temperature([one for one, at in zip(outputs, places, strict=True) if at != fold])
                   for fold in range(folds)]  # fmt: skip
        after = [one.log_probs(of_fold[at]) for one, at in zip(outputs, places, strict=True)]
        figures = {"n": float(len(outputs))}
        for name, side in (("before", before), ("after", after)):
            measured = mask_confidence(side)
            figures |= {f"{key}_{name}": measured[key] for key in ("ece", "loss")}
        fitted = Calibration(
            "temperature", temperature=_temperature(outputs), fitted_on="val", folds=folds, figures=figures
        )
        return fitted, after

    def apply(self, calibration: FittedCalibration, outputs: Any) -> Any:
        """Return predictions for tallies with logits; for logits ``(..., C, h, w)`` on the canvas probabilities."""
        if isinstance(outputs, Tensor):
            return (outputs / calibration.temperature).softmax(dim=-3)
        return [one.log_probs(calibration.temperature) for one in outputs]

    def problem(self, outputs: Sequence[MaskTally], targets: object) -> str | None:
        """Return why nothing can be fitted on these pictures; ``None`` where it can. `targets` stand in the tallies."""
        sampled = [one for one in outputs if len(one.truths)]
        if len(sampled) < MIN_PICTURES:
            return (
                f"{len(sampled)} held-out pictures with pixels that count are too few, expected {MIN_PICTURES} or more"
            )
        if len({int(label) for one in sampled for label in np.unique(one.truths)}) < 2:
            return "the held-out pixels are all of one class, expected at least two"
        if not all(np.isfinite(one.logits).all() for one in sampled):
            return "the model returns NaN or infinity for held-out pictures"
        return None

    def summary(
        self,
        calibration: Calibration,
        outputs: Sequence[MaskTally],
        targets: object,
        predictions: Sequence[MaskTally],
        *,
        seed: int,
    ) -> tuple[list[tuple[str, str]], tuple[str, ...], list[tuple[str, ...]]]:
        """Return method, ECE and log loss, and how many pixels are so sure, and right. `targets` are not looked at."""
        figures = calibration.figures
        lines = [("method", f"temperature {calibration.temperature:.3f}")]
        lines += [(name, f"{figures[f'{key}_before']:.4f} before, {figures[f'{key}_after']:.4f} after")
                  for name, key in (("ECE", "ece"), ("NLL", "loss"))]  # fmt: skip
        logits, truths = _pooled(predictions)
        best, guess = logits.max(dim=1)
        rows: list[tuple[str, ...]] = []
        for least in SURE:
            sure = best.exp() >= least
            right = float((guess[sure] == truths[sure]).double().mean()) if bool(sure.any()) else None
            share = "n/a" if right is None else f"{right:.1%}"
            rows.append((f"{least:.0%}", f"{float(sure.double().mean()):.1%}", share))
        return lines, ("probability from", "pixels", "right"), rows


def _rarest(tallies: Sequence[MaskTally]) -> npt.NDArray[np.int64]:
    """Return, of each picture, which of its classes the fewest pictures have; C where it has none."""
    there = np.array([one.confusion.any(axis=1) for one in tallies])
    classes = there.shape[1]
    held = np.where(there, there.sum(axis=0), len(tallies) + 1)
    return np.asarray(np.where(there.any(axis=1), held.argmin(axis=1), classes), dtype=np.int64)


def _temperature(tallies: Sequence[MaskTally]) -> float:
    return fit_temperature(*_pooled(tallies), units=len(tallies))


def _pooled(tallies: Sequence[MaskTally]) -> tuple[Tensor, Tensor]:
    """Return logits ``(M, C)`` and classes ``(M,) int64`` of pixels of all pictures, of each the same share."""
    most = max(1, NUMBERS // (len(tallies) * tallies[0].logits.shape[1]))
    logits, truths = [], []
    for one in tallies:
        count = len(one.truths)
        some = np.arange(count) if count <= most else np.arange(most) * count // most
        logits.append(one.logits[some])
        truths.append(one.truths[some].astype(np.int64))
    return torch.from_numpy(np.concatenate(logits)), torch.from_numpy(np.concatenate(truths))
