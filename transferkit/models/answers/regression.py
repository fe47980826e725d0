"""Numbers per picture, as a model sees them: deviations from the training mean inside, their own units outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

import torch
from torch import Tensor, nn

from transferkit.core.errors import ConfigError, did_you_mean, gather
from transferkit.core.targets import TargetSpec
from transferkit.models.calibration.calibration import Calibration
from transferkit.models.calibration.intervals import (
    METHODS,
    NumberCalibration,
    cannot_make_intervals,
    fit_intervals,
    half_width,
)
from transferkit.models.figures.figure import Figure
from transferkit.models.figures.numbers import number_figures, number_metrics
from transferkit.models.parts import FittedCalibration, LossOptions

if TYPE_CHECKING:
    from transferkit.machine.lightning_import import Metric

__all__ = ["NumberCalibrator", "NumberHeads", "NumberLoss", "NumberObjective", "NumberScores", "Units"]

MONITORS: Final[Mapping[str, bool]] = {
    "loss": False, "rmse": False, "mae": False, "median_ae": False, "r2": True, "spearman": True,
}  # fmt: skip

LOSSES: Final[Mapping[str, type[nn.Module]]] = {"mse": nn.MSELoss, "huber": nn.HuberLoss, "l1": nn.L1Loss}

COVERAGES: Final = (0.8, 0.9, 0.95)
"""Of the intervals that `calibrate` prints."""
LISTED: Final = 20
"""Targets that it prints."""


@dataclass(frozen=True)
class Units:
    """The units of T targets: what is 0 and what is 1 to the network.

    Attributes:
        mean: Of the training pictures, of each target; nothing where the units are not known: then 0 and 1.
        scale: Their standard deviations, above 0.
        names: Of the targets.
    """

    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, spec: TargetSpec) -> Self:
        """Return the units of a spec whose facts have been measured."""
        mean, scale = (tuple(map(float, spec.facts.get(key, ()))) for key in ("mean", "scale"))
        return cls(mean, scale, tuple(spec.names))

    def standardised(self, targets: Tensor) -> Tensor:
        """Return numbers ``(..., T)`` as deviations from the mean."""
        if not self.mean:
            return targets
        return (targets - targets.new_tensor(self.mean)) / targets.new_tensor(self.scale)

    def in_own_units(self, outputs: Tensor) -> Tensor:
        """Return deviations ``(..., T)`` as numbers."""
        if not self.mean:
            return outputs
        return outputs * outputs.new_tensor(self.scale) + outputs.new_tensor(self.mean)


@dataclass(frozen=True)
class NumberHeads:
    """An output per target."""

    def width(self, spec: TargetSpec) -> int:
        """Return the number of targets."""
        return len(spec.names)

    def problems(self, width: int) -> list[str]:
        """Return what is wrong with so many targets."""
        return [] if width >= 1 else [f"there are {width} targets, expected at least 1"]

    def row(
        self, values: Tensor, *, bias: bool, theirs: tuple[TargetSpec, int], ours: tuple[TargetSpec, int]
    ) -> Tensor:
        """Return the row in the deviations of this model's training pictures."""
        (their_mean, their_scale), (mean, scale) = (
            (units.mean[at], units.scale[at]) if units.mean else (0.0, 1.0)
            for units, at in ((Units.of(spec), at) for spec, at in (theirs, ours))
        )
        return (values * their_scale + (their_mean - mean if bias else 0.0)) / scale

    def joined(self, taken: Tensor, solved: Tensor, places: Sequence[int]) -> Tensor:
        """Return rows of both."""
        rows = solved.clone()
        rows[list(places)] = taken[list(places)]
        return rows


class NumberLoss(nn.Module):
    """A loss of outputs ``(B, T) float32``, in deviations, and targets ``(B, T) float32`` in their own units.

    Args:
        name: ``"mse"``; ``"huber"``: squares up to one deviation, then distances; ``"l1"``: distances.
        units: Of the targets.
    """

    mean: Tensor | None
    scale: Tensor | None

    def __init__(self, name: str = "mse", units: Units | None = None) -> None:
        super().__init__()
        known = units is not None and bool(units.mean)
        self.register_buffer("mean", torch.tensor(units.mean) if units and known else None, persistent=False)
        self.register_buffer("scale", torch.tensor(units.scale) if units and known else None, persistent=False)
        self.name, self.plain = name, LOSSES[name]()

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch."""
        targets = targets.to(outputs.dtype)
        if self.mean is not None and self.scale is not None:
            targets = (targets - self.mean) / self.scale
        loss: Tensor = self.plain(outputs, targets)
        return loss

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return self.name


@dataclass(frozen=True)
class NumberObjective:
    """Squared deviations, or what the options ask for.

    Attributes:
        units: Of the targets.
    """

    losses: tuple[str, ...] = tuple(LOSSES)
    smoothing: float | None = None
    monitor: str = "loss"
    running: tuple[str, ...] = ()
    by_heart: tuple[float, float] = (0.01, 0.01)
    watched: tuple[str, ...] = ("rmse", "r2")
    monitors: Mapping[str, bool] = field(default_factory=lambda: MONITORS)
    units: Units = field(default_factory=Units)

    def loss(self, options: LossOptions, width: int) -> nn.Module:
        """Return a `NumberLoss`. Raises `ConfigError`."""
        name = self.losses[0] if options.name == "auto" else options.name
        problems = []
        if name not in self.losses:
            problems.append(f"unknown loss {name!r}.{did_you_mean(name, self.losses)} Known: {', '.join(self.losses)}")
        if options.label_smoothing:
            problems.append(f"--label-smoothing is {options.label_smoothing}, but numbers have none - leave it out")
        if problems:
            raise ConfigError(gather(problems))
        return NumberLoss(name, self.units)

    def balanced(self, targets: Tensor, width: int) -> list[float]:
        """Refuse: numbers have no frequencies. Raises `ConfigError`."""
        raise ConfigError("--class-weights balanced weighs classes or labels, and these are numbers - leave it out")

    def item_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean squared deviation of each picture's numbers, ``(B,)``."""
        return (outputs - self.units.standardised(targets.to(outputs.dtype))).square().mean(dim=1)

    def scaled(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the numbers as they are."""
        return outputs.double()

    def running_sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return nothing: the loss says how training goes."""
        return outputs.new_zeros(0)

    def metrics(self, names: Sequence[str], width: int) -> dict[str, Metric]:
        """Return a metric for each of these figures."""
        unknown = [name for name in names if name not in self.monitors]
        if unknown:
            raise ConfigError(f"there is no figure {unknown[0]!r} to watch, expected one of {', '.join(self.monitors)}")
        from transferkit.models.answers.epoch import NumberFigure

        return {name: NumberFigure(name, width, self.units.scale) for name in names}


@dataclass(frozen=True)
class NumberScores:
    """Errors and correlations."""

    def measure(
        self, predictions: Tensor, targets: Tensor, spec: TargetSpec, *, plain: Tensor | None = None, seed: int = 0
    ) -> dict[str, Any]:
        """Return the figures of numbers ``(N, T)``, the loss, and how many lie in their intervals."""
        values = number_metrics(predictions.numpy(), targets.numpy(), spec.names, spec.facts, seed=seed)
        units = Units.of(spec)
        off = units.standardised(predictions.double()) - units.standardised(targets.double())
        values["loss"] = float(off.square().mean())
        errors = spec.facts.get("errors")
        if errors:
            distances = (predictions.double() - targets.double()).abs()
            values["intervals"] = {
                name: [
                    {"coverage": coverage, "half_width": width,
                     "measured": None if width is None else float((distances[:, at] <= width).double().mean())}
                    for coverage in COVERAGES
                    for width in (half_width(errors[at], coverage),)
                ]
                for at, name in enumerate(spec.names)
            }  # fmt: skip
        return values

    def figures(self, values: Mapping[str, Any]) -> list[Figure]:
        """Return the figures of all targets, those of a single one in its own unit first."""
        return number_figures(values)


@dataclass(frozen=True)
class NumberCalibrator:
    """Split-conformal intervals; predictions stay what they are.

    Attributes:
        units: Of the targets.
    """

    methods: tuple[str, ...] = METHODS
    units: Units = field(default_factory=Units)

    def at_precision(self, rate: float) -> None:
        """Return nothing: numbers are not right or wrong."""

    def read(self, values: Mapping[str, Any]) -> NumberCalibration:
        """Return the calibration of which `values` are the `to_dict`. Raises `CheckpointError`."""
        return NumberCalibration.from_dict(values)

    def fit(
        self, outputs: Tensor, targets: Tensor, *, method: str, seed: int
    ) -> tuple[NumberCalibration | Calibration, Tensor]:
        """Return the errors on these pictures, and the predictions."""
        predictions = self.units.in_own_units(outputs)
        return fit_intervals(predictions, targets, method=method) or Calibration(), predictions

    def apply(self, calibration: FittedCalibration, outputs: Tensor) -> Tensor:
        """Return numbers for outputs ``(..., T)``."""
        return self.units.in_own_units(outputs)

    def problem(self, outputs: Tensor, targets: Tensor) -> str | None:
        """Return why nothing can be measured on these pictures; ``None`` where it can."""
        return cannot_make_intervals(outputs, targets)

    def summary(
        self, calibration: NumberCalibration, outputs: Tensor, targets: Tensor, predictions: Tensor, *, seed: int
    ) -> tuple[list[tuple[str, str]], tuple[str, ...], list[tuple[str, ...]]]:
        """Return how far intervals reach to both sides, of each target (of many the first) at each coverage."""
        rows: list[tuple[str, ...]] = []
        for name, errors in zip(self.units.names[:LISTED], calibration.errors, strict=False):
            widths = (half_width(errors, coverage) for coverage in COVERAGES)
            rows.append((name, *("n/a" if width is None else f"{width:.4g}" for width in widths)))
        lines = [("method", "conformal intervals")]
        if len(self.units.names) > LISTED:
            lines.append(("targets", f"the first {LISTED} of {len(self.units.names):,}; all are in model.json"))
        return lines, ("target", *(f"{coverage:.0%} +-" for coverage in COVERAGES)), rows
