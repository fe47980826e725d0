"""One class per picture, as a model sees it: its heads, what it minimises and what is watched meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from transferkit.core.errors import ConfigError
from transferkit.core.targets import TargetSpec
from transferkit.models.answers.losses import LOSSES, balanced_class_weights, make_loss
from transferkit.models.calibration.calibration import Calibration, cannot_calibrate, fit_calibration
from transferkit.models.calibration.conformal import cross_fitted_sets
from transferkit.models.calibration.scaling import fit_temperature, stratified_folds
from transferkit.models.figures.classification import (
    ECE_BINS,
    classification_metrics,
    confidence_metrics,
    confusion_matrix,
    reliability_bins,
)
from transferkit.models.figures.figure import Figure, classification_figures
from transferkit.models.parts import LossOptions

if TYPE_CHECKING:
    from transferkit.machine.lightning_import import Metric

__all__ = ["ClassCalibrator", "ClassHeads", "ClassObjective", "ClassScores"]

COVERAGES: Final = (0.9, 0.95, 0.99)
"""Of the prediction sets that `calibrate` prints."""

MONITORS: Final[Mapping[str, bool]] = {  # a plain dictionary: models, and their tasks with them, are copied
    "loss": False, "acc": True, "acc_top5": True, "balanced_acc": True, "f1_macro": True, "ece": False,
}  # fmt: skip


@dataclass(frozen=True)
class ClassHeads:
    """A logit per class."""

    def width(self, spec: TargetSpec) -> int:
        """Return the number of classes."""
        return len(spec.names)

    def problems(self, width: int) -> list[str]:
        """Return what is wrong with so many classes."""
        return [] if width >= 2 else [f"num_classes is {width}, expected at least 2"]

    def row(
        self, values: Tensor, *, bias: bool, theirs: tuple[TargetSpec, int], ours: tuple[TargetSpec, int]
    ) -> Tensor:
        """Return the row as it is."""
        return values

    def joined(self, taken: Tensor, solved: Tensor, places: Sequence[int]) -> Tensor:
        """Return rows of both. What is added to all logits alike says nothing, so it is made equal first."""
        at = list(places)
        rows = solved + (taken[at] - solved[at]).mean(dim=0)
        rows[at] = taken[at]
        return rows


@dataclass(frozen=True)
class ClassObjective:
    """Cross entropy, or what the options ask for; accuracy beside it."""

    losses: tuple[str, ...] = LOSSES
    smoothing: float | None = 0.1
    monitor: str = "loss"
    running: tuple[str, ...] = ("acc",)
    by_heart: tuple[float, float] = (0.01, 0.01)
    watched: tuple[str, ...] = ("acc", "f1_macro")
    monitors: Mapping[str, bool] = field(default_factory=lambda: MONITORS)

    def loss(self, options: LossOptions, width: int) -> nn.Module:
        """Return the loss from logits ``(B, C)`` and classes ``(B,)`` or shares ``(B, C)`` to a scalar."""
        weights = None if options.class_weights is None else torch.tensor(options.class_weights)
        name = self.losses[0] if options.name == "auto" else options.name
        return make_loss(
            name, gamma=options.focal_gamma, class_weights=weights, label_smoothing=options.label_smoothing
        )

    def balanced(self, targets: Tensor, width: int) -> list[float]:
        """Return a weight per class, see `balanced_class_weights`."""
        weights: list[float] = balanced_class_weights(torch.bincount(targets, minlength=width).tolist()).tolist()
        return weights

    def item_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the negative log-likelihood of each picture's class, ``(B,)``."""
        return functional.cross_entropy(outputs, targets, reduction="none")

    def scaled(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return logits ``(N, C) float64`` at the temperature that suits them best."""
        return outputs.double() / fit_temperature(outputs.float(), targets)

    def running_sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return how many of a batch are right, ``(1,)``; of mixed pictures the larger part counts."""
        labels = targets if targets.ndim == 1 else targets.argmax(dim=1)
        return (outputs.argmax(dim=1) == labels).sum().reshape(1)

    def metrics(self, names: Sequence[str], width: int) -> dict[str, Metric]:
        """Return a metric for each of these figures, of `width` classes."""
        from transferkit.machine.lightning_import import (
            MulticlassAccuracy,
            MulticlassCalibrationError,
            MulticlassF1Score,
        )
        from transferkit.models.answers.epoch import BalancedAccuracy

        # Labels are checked when the data are indexed, so the metrics need not look at every batch again (which
        # would make a GPU wait).
        made: dict[str, Metric] = {}
        for name in names:
            match name:
                case "acc":
                    made[name] = MulticlassAccuracy(width, average="micro", validate_args=False)
                case "acc_top5":
                    made[name] = MulticlassAccuracy(width, average="micro", top_k=min(5, width), validate_args=False)
                case "balanced_acc":
                    made[name] = BalancedAccuracy(width)
                case "f1_macro":
                    made[name] = MulticlassF1Score(width, average="macro", validate_args=False)
                case "ece":
                    made[name] = MulticlassCalibrationError(width, n_bins=ECE_BINS, norm="l1", validate_args=False)
                case _:
                    raise ConfigError(
                        f"there is no figure {name!r} to watch, expected one of {', '.join(self.monitors)}"
                    )
        return made


@dataclass(frozen=True)
class ClassScores:
    """Accuracy and its relatives."""

    def measure(
        self, predictions: Tensor, targets: Tensor, spec: TargetSpec, *, plain: Tensor | None = None, seed: int = 0
    ) -> dict[str, Any]:
        """Return the figures of probabilities ``(N, C)``, confusion and reliability, and loss and ECE of `plain`."""
        values = classification_metrics(predictions, targets, spec.names, seed=seed)
        values["confusion"] = confusion_matrix(predictions, targets)
        values["reliability"] = reliability_bins(predictions, targets)
        if plain is not None:
            best, guess = plain.max(dim=1)
            own = plain.gather(1, targets[:, None]).squeeze(1)
            values["uncalibrated"] = confidence_metrics(own, best, guess == targets)
        return values

    def figures(self, values: Mapping[str, Any]) -> list[Figure]:
        """Return the figures of all pictures, accuracy first, then those of each class."""
        return classification_figures(values)


@dataclass(frozen=True)
class ClassCalibrator:
    """Temperature or vector scaling of logits."""

    methods: tuple[str, ...] = ("temperature", "vector")

    def at_precision(self, rate: float) -> None:
        """Return nothing: classes have a precision by `Calibration.class_thresholds`."""

    def read(self, values: Mapping[str, Any]) -> Calibration:
        """Return the calibration of which `values` are the `to_dict`. Raises `CheckpointError`."""
        return Calibration.from_dict(values)

    def fit(self, outputs: Tensor, targets: Tensor, *, method: str, seed: int) -> tuple[Calibration, Tensor]:
        """Return the calibration, and cross-fitted probabilities, see `fit_calibration`."""
        return fit_calibration(outputs, targets, method=method, seed=seed)

    def apply(self, calibration: Calibration, outputs: Tensor) -> Tensor:
        """Return calibrated probabilities for logits ``(..., C)``."""
        return calibration.probs(outputs)

    def problem(self, outputs: Tensor, targets: Tensor) -> str | None:
        """Return why nothing can be fitted on these pictures; ``None`` where it can."""
        return cannot_calibrate(outputs, targets)

    def summary(
        self, calibration: Calibration, outputs: Tensor, targets: Tensor, predictions: Tensor, *, seed: int
    ) -> tuple[list[tuple[str, str]], tuple[str, ...], list[tuple[str, ...]]]:
        """Return method, ECE and log loss, and how large prediction sets are at each coverage."""
        method, figures = f"temperature {calibration.temperature:.3f}", calibration.figures
        lines = []
        if calibration.method == "vector":
            both = calibration.scale, calibration.bias
            scales, biases = (f"{min(values):.3f} to {max(values):.3f}" for values in both)
            method = f"vector, scales {scales}, biases {biases}"
            before, after = outputs.argmax(dim=1), predictions.argmax(dim=1)
            right = [f"{float((labels == targets).double().mean()):.1%}" for labels in (before, after)]
            changed = int((before != after).sum())
            changes = f"{changed:,} of {len(targets):,} change; {right[0]} right before, {right[1]} after"
            lines.append(("labels", changes))
        lines += [(name, f"{figures[f'{key}_before']:.4f} before, {figures[f'{key}_after']:.4f} after")
                  for name, key in (("ECE", "ece"), ("NLL", "loss"))]  # fmt: skip
        places = stratified_folds(targets, calibration.folds, seed=seed)
        rows: list[tuple[str, ...]] = []
        for coverage in COVERAGES:
            sets = cross_fitted_sets(predictions, targets, places, coverage)
            rows.append((f"{coverage:.0%}", f"{sets['covered']:.1%}", f"{sets['size']:.2f}", f"{sets['single']:.1%}"))
        return [("method", method), *lines], ("coverage", "measured", "classes", "with one class"), rows
