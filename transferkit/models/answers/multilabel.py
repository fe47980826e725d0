"""Several labels per picture, as a model sees them: a logit for each, binary cross entropy, average precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from transferkit.core.errors import ConfigError, did_you_mean, gather
from transferkit.core.targets import TargetSpec
from transferkit.models.calibration.calibration import Calibration
from transferkit.models.calibration.labels import (
    METHODS,
    NEVER,
    LabelCalibration,
    cannot_calibrate_labels,
    fit_label_calibration,
)
from transferkit.models.calibration.scaling import fit_temperature
from transferkit.models.figures.figure import Figure
from transferkit.models.figures.labels import THRESHOLD, label_figures, label_metrics
from transferkit.models.parts import FittedCalibration, LossOptions

if TYPE_CHECKING:
    from transferkit.machine.lightning_import import Metric

__all__ = ["LabelCalibrator", "LabelHeads", "LabelLoss", "LabelObjective", "LabelScores"]

MONITORS: Final[Mapping[str, bool]] = {
    "loss": False, "map": True, "f1_macro": True, "f1_micro": True, "subset_acc": True, "hamming": False,
}  # fmt: skip

GAMMA_NEGATIVE, GAMMA_POSITIVE, MARGIN = 4, 1, 0.05
"""Of the asymmetric loss."""
TINY = 1e-8


@dataclass(frozen=True)
class LabelHeads:
    """A logit per label."""

    def width(self, spec: TargetSpec) -> int:
        """Return the number of labels."""
        return len(spec.names)

    def problems(self, width: int) -> list[str]:
        """Return what is wrong with so many labels."""
        return [] if width >= 1 else [f"there are {width} labels, expected at least 1"]

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


class LabelLoss(nn.Module):
    """A loss of logits ``(B, C) float32`` and targets ``(B, C) float32`` in [0, 1]; the mean over pictures and labels.

    ``"bce"``: binary cross entropy, positives weighed. ``"focal"``: of Lin et al. 2017, eq. 4. ``"asymmetric"``: of
    Ridnik et al. 2021 (*Asymmetric Loss For Multi-Label Classification*), eq. 4 to 7, gamma 4 for negatives and 1 for
    positives, margin 0.05; there it is a sum over the labels, here the mean, so that the LR does not hang on how many
    there are. Not timm's: that is a sum over the batch in some releases and a mean in others.

    Args:
        name: One of the three.
        gamma: Of the focal loss, at least 0.
        positive_weights: ``(C,)``, how much a positive of each label counts; of ``"bce"``.
        smoothing: Takes targets towards 0.5 by this share, in [0, 1).
    """

    positive_weights: Tensor | None

    def __init__(
        self, name: str = "bce", *, gamma: float = 2.0, positive_weights: Tensor | None = None, smoothing: float = 0.0
    ) -> None:
        super().__init__()
        self.name, self.gamma, self.smoothing = name, gamma, smoothing
        self.register_buffer("positive_weights", positive_weights, persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch."""
        targets = targets.to(logits.dtype)
        if self.smoothing:
            targets = targets * (1 - self.smoothing) + self.smoothing / 2
        if self.name == "asymmetric":
            return _asymmetric(logits.float(), targets.float()).mean()
        if self.name == "focal":
            loss: Tensor = sigmoid_focal_loss(logits, targets, alpha=-1, gamma=self.gamma, reduction="mean")
            return loss
        return functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=self.positive_weights)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"{self.name}, weighted={self.positive_weights is not None}, smoothing={self.smoothing}"


def _asymmetric(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the asymmetric loss of each label, ``(B, C)``; shares as targets count as in a weighted mean."""
    positive = logits.sigmoid()
    negative = (1 - positive + MARGIN).clamp_max(1)
    loss = targets * positive.clamp_min(TINY).log() + (1 - targets) * negative.clamp_min(TINY).log()
    sure = positive * targets + negative * (1 - targets)
    return -loss * (1 - sure) ** (GAMMA_POSITIVE * targets + GAMMA_NEGATIVE * (1 - targets))


@dataclass(frozen=True)
class LabelObjective:
    """Binary cross entropy, or what the options ask for; mean average precision beside it."""

    losses: tuple[str, ...] = ("bce", "asymmetric", "focal")
    smoothing: float | None = 0.0
    monitor: str = "loss"
    running: tuple[str, ...] = ()
    by_heart: tuple[float, float] = (0.01, 0.01)
    watched: tuple[str, ...] = ("map", "f1_macro")
    monitors: Mapping[str, bool] = field(default_factory=lambda: MONITORS)

    def loss(self, options: LossOptions, width: int) -> nn.Module:
        """Return a `LabelLoss`. Raises `ConfigError`."""
        name = self.losses[0] if options.name == "auto" else options.name
        problems = []
        if name not in self.losses:
            problems.append(f"unknown loss {name!r}.{did_you_mean(name, self.losses)} Known: {', '.join(self.losses)}")
        if not options.focal_gamma >= 0:
            problems.append(f"gamma is {options.focal_gamma}, expected a finite number of at least 0")
        if options.class_weights is not None and name != "bce":
            problems.append(f"--class-weights weighs --loss bce, not {name!r}, which weighs by itself")
        if problems:
            raise ConfigError(gather(problems))
        weights = None if options.class_weights is None else torch.tensor(options.class_weights)
        return LabelLoss(name, gamma=options.focal_gamma, positive_weights=weights, smoothing=options.label_smoothing)

    def balanced(self, targets: Tensor, width: int) -> list[float]:
        """Return negatives over positives of each label, the ``pos_weight`` of torch; 1 for a label without either."""
        positives = targets.double().sum(dim=0)
        negatives = len(targets) - positives
        weights: list[float] = torch.where(positives * negatives > 0, negatives / positives, 1.0).tolist()
        return weights

    def item_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean binary cross entropy of each picture's labels, ``(B,)``."""
        losses = functional.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype), reduction="none")
        return losses.mean(dim=1)

    def scaled(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return logits ``(N, C) float64`` at the one temperature, of all labels, that suits them best.

        A logit of a label is one of two classes whose logits are it and 0.
        """
        flat = outputs.float().reshape(-1)
        pairs = torch.stack((torch.zeros_like(flat), flat), dim=1)
        return outputs.double() / fit_temperature(pairs, (targets.reshape(-1) > THRESHOLD).long(), len(targets))

    def running_sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return nothing: the loss says how training goes."""
        return outputs.new_zeros(0)

    def metrics(self, names: Sequence[str], width: int) -> dict[str, Metric]:
        """Return a metric for each of these figures."""
        unknown = [name for name in names if name not in self.monitors]
        if unknown:
            raise ConfigError(f"there is no figure {unknown[0]!r} to watch, expected one of {', '.join(self.monitors)}")
        from transferkit.models.answers.epoch import LabelFigure

        return {name: LabelFigure(name, width) for name in names}


@dataclass(frozen=True)
class LabelScores:
    """Mean average precision and its relatives."""

    def measure(
        self, predictions: Tensor, targets: Tensor, spec: TargetSpec, *, plain: Tensor | None = None, seed: int = 0
    ) -> dict[str, Any]:
        """Return the figures of probabilities ``(N, C)``, and the loss of `plain`."""
        thresholds = spec.facts.get("thresholds")
        values = label_metrics(predictions.numpy(), targets.numpy(), spec.names, thresholds, seed=seed)
        if plain is not None:
            clipped = plain.double().clamp(1e-7, 1 - 1e-7)
            loss = functional.binary_cross_entropy(clipped, targets.double())
            values["uncalibrated"] = {"loss": float(loss)}
        return values

    def figures(self, values: Mapping[str, Any]) -> list[Figure]:
        """Return the figures of all pictures, mean average precision first, then those of each label."""
        return label_figures(values)


@dataclass(frozen=True)
class LabelCalibrator:
    """Temperature or vector scaling of logits, and thresholds.

    Attributes:
        precision: That thresholds reach on held-out pictures, in (0, 1); ``None``: they have the largest F1.
    """

    methods: tuple[str, ...] = METHODS
    precision: float | None = None

    def at_precision(self, rate: float) -> LabelCalibrator:
        """Return the calibrator whose thresholds reach this precision."""
        return replace(self, precision=rate)

    def read(self, values: Mapping[str, Any]) -> LabelCalibration:
        """Return the calibration of which `values` are the `to_dict`. Raises `CheckpointError`."""
        return LabelCalibration.from_dict(values)

    def fit(
        self, outputs: Tensor, targets: Tensor, *, method: str, seed: int
    ) -> tuple[LabelCalibration | Calibration, Tensor]:
        """Return the calibration, and cross-fitted probabilities, see `fit_label_calibration`."""
        fitted, predictions = fit_label_calibration(
            outputs, targets, method=method, seed=seed, precision=self.precision
        )
        return fitted or Calibration(), predictions

    def apply(self, calibration: FittedCalibration, outputs: Tensor) -> Tensor:
        """Return calibrated probabilities for logits ``(..., C)``."""
        return calibration.probs(outputs) if isinstance(calibration, LabelCalibration) else outputs.sigmoid()

    def problem(self, outputs: Tensor, targets: Tensor) -> str | None:
        """Return why nothing can be fitted on these pictures; ``None`` where it can."""
        return cannot_calibrate_labels(outputs, targets)

    def summary(
        self, calibration: LabelCalibration, outputs: Tensor, targets: Tensor, predictions: Tensor, *, seed: int
    ) -> tuple[list[tuple[str, str]], tuple[str, ...], list[tuple[str, ...]]]:
        """Return method, log loss and F1, and how many pictures are given each number of labels."""
        figures = calibration.figures
        method = calibration.method
        if method == "temperature":
            method = f"temperature {calibration.temperature:.3f}"
        lines = [("method", method)]
        lines += [(name, f"{figures[f'{key}_before']:.4f} before, {figures[f'{key}_after']:.4f} after")
                  for name, key in (("NLL", "loss"), ("F1", "f1"))]  # fmt: skip
        limits = [limit for limit in calibration.thresholds if limit != NEVER]
        spread = f"{min(limits):.2f} to {max(limits):.2f}, by label" if limits else "none: no label is given"
        lines.append(("limits", spread))
        never = len(calibration.thresholds) - len(limits)
        if calibration.precision is not None:
            aim = f"{calibration.precision:.1%} wanted of each label"
            lines.append(
                ("precision", f"{aim}; {never:,} labels cannot reach it and are never given" if never else aim)
            )
        numbers = (predictions >= torch.tensor(calibration.thresholds)).sum(dim=1)
        rows: list[tuple[str, ...]] = []
        for count in range(int(numbers.max()) + 1):
            mine = numbers == count
            exact = (targets[mine] > 0.5).eq(predictions[mine] >= torch.tensor(calibration.thresholds)).all(dim=1)
            if len(exact):
                rows.append((str(count), f"{float(mine.double().mean()):.1%}", f"{float(exact.double().mean()):.1%}"))
        return lines, ("labels", "pictures", "all right"), rows
