"""Schedules that go one way: constant, in drops, along a curve, or down whenever the validation loss stalls.

Every one can start with a linear warmup, whose first step has 1/warmup of the peak LR and whose last one has the peak.
Smooth curves come after it and start from their own 0 (`Cosine`, `Exponential`, `Polynomial`, `InverseSqrt`).
`Step` and `Plateau` count epochs from the start of the phase and are multiplied by the warmup, so that they drop at
the ends of epochs however long the warmup is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from transferkit.options.fields import NOT_NEGATIVE, POSITIVE, Range, at_least
from transferkit.training.schedules.base import LOWER, SHARE, WARMUP, Schedule, ramp, ranged, warmup_steps

__all__ = ["Constant", "Cosine", "Exponential", "InverseSqrt", "Plateau", "Polynomial", "Step"]


@dataclass(frozen=True)
class Constant(Schedule):
    """The peak LR at every step, after an optional linear warmup.

    Args:
        warmup_epochs: Length of the warmup in epochs; fractions are fine.
    """

    name = "constant"
    warmup_epochs: float = ranged(0.0, WARMUP)

    def factor(self, step: int, steps: int, steps_per_epoch: int) -> float:  # noqa: D102
        return ramp(step, warmup_steps(self.warmup_epochs, steps_per_epoch))


@dataclass(frozen=True)
class Step(Schedule):
    """The LR drops to `gamma` of itself, again and again.

    Args:
        step_epochs: Epochs between two drops, at least 1. With 0 it drops twice: at half and at three quarters of the
            phase, the timetable of the residual networks on CIFAR-10 (He et al. 2016, section 4.2).
        gamma: LR after a drop over LR before it, in (0, 1].
        warmup_epochs: Length of a linear warmup in epochs; fractions are fine. It moves no drop.
    """

    name = "step"
    lengths = ("step_epochs", "warmup_epochs")
    step_epochs: int = ranged(0, at_least(0))
    gamma: float = ranged(0.1, SHARE)
    warmup_epochs: float = ranged(0.0, WARMUP)

    def factor(self, step: int, steps: int, steps_per_epoch: int) -> float:  # noqa: D102
        if self.step_epochs:
            drops = step // (self.step_epochs * steps_per_epoch)
        else:
            drops = (2 * step >= steps) + (4 * step >= 3 * steps)
        return float(self.gamma**drops) * ramp(step, warmup_steps(self.warmup_epochs, steps_per_epoch))


@dataclass(frozen=True)
class Exponential(Schedule):
    """Linear warmup, then the same relative decrease at every step, `gamma` in an epoch.

    Args:
        gamma: LR one epoch later over LR now, in (0, 1].
        warmup_epochs: Length of the warmup in epochs; fractions are fine.
    """

    name = "exponential"
    gamma: float = ranged(0.9, SHARE)
    warmup_epochs: float = ranged(0.0, WARMUP)

    def factor(self, step: int, steps: int, steps_per_epoch: int) -> float:  # noqa: D102
        warmup = warmup_steps(self.warmup_epochs, steps_per_epoch)
        return ramp(step, warmup) * float(self.gamma ** (max(0, step - warmup) / steps_per_epoch))


@dataclass(frozen=True)
class Cosine(Schedule):
    """Linear warmup, then half a cosine to `lr_min_ratio` (SGDR, Loshchilov & Hutter 2017, eq. 5, one cycle).

    The first warmup step has the LR 1/warmup of the peak, the last one the peak itself. The minimum would be reached
    one step after the last, as in torch's `CosineAnnealingLR`.

    Args:
        warmup_epochs: Length of the warmup in epochs; fractions are fine.
        lr_min_ratio: Final LR over peak LR, in [0, 1).
    """

    name = "cosine"
    warmup_epochs: float = ranged(0.0, WARMUP)
    lr_min_ratio: float = ranged(0.0, LOWER)

    def factor(self, step: int, steps: int, steps_per_epoch: int) -> float:  # noqa: D102
        warmup = warmup_steps(self.warmup_epochs, steps_per_epoch)
        if step < warmup:
            return ramp(step, warmup)
        position = (step - warmup) / max(1, steps - warmup)
        return self.lr_min_ratio + (1.0 - self.lr_min_ratio) * 0.5 * (1.0 + math.cos(math.pi * position))


@dataclass(frozen=True)
class Polynomial(Schedule):
    """Linear warmup, then a power of what is left of the phase, down to `lr_min_ratio`; by default a straight line.

    The minimum would be reached one step after the last, as in torch's `PolynomialLR`.

    Args:
        power: Exponent, above 0: 1 is linear, more falls faster at first.
        lr_min_ratio: Final LR over peak LR, in [0, 1).
        warmup_epochs: Length of the warmup in epochs; fractions are fine.
    """

    name = "polynomial"
    power: float = ranged(1.0, POSITIVE)
    lr_min_ratio: float = ranged(0.0, LOWER)
    warmup_epochs: float = ranged(0.0, WARMUP)

    def factor(self, step: int, steps: int, steps_per_epoch: int) -> float:  # noqa: D102
        warmup = warmup_steps(self.warmup_epochs, steps_per_epoch)
        if step < warmup:
            return ramp(step, warmup)
        left = (steps - step) / max(1, steps - warmup)
        return self.lr_min_ratio + (1.0 - self.lr_min_ratio) * float(left**self.power)


@dataclass(frozen=True)
class InverseSqrt(Schedule):
    """Linear warmup, then down with the inverse square root of the step (Vaswani et al. 2017, section 5.3, eq. 3).

    Scaled so that the last warmup step has the peak LR, whatever the width of the network. The curve does not depend
    on the length of the phase.

    Args:
        warmup_epochs: Length of the warmup in epochs; fractions are fine. Without one the first step has the peak.
        timescale_epochs: How slowly the LR falls: so many epochs after the peak it has fallen to 1/sqrt(2) of it. With
            0 it is the length of the warmup, as in the paper, and one epoch where there is no warmup.
    """

    name = "inverse_sqrt"
    warmup_epochs: float = ranged(0.0, WARMUP)
    timescale_epochs: float = ranged(0.0, NOT_NEGATIVE)

    def factor(self, step: int, steps: int, steps_per_epoch: int) -> float:  # noqa: D102
        warmup = max(1, warmup_steps(self.warmup_epochs, steps_per_epoch))
        if step < warmup:
            return ramp(step, warmup)
        epochs = self.timescale_epochs or self.warmup_epochs or 1.0
        timescale = max(1, round(epochs * steps_per_epoch)) if math.isfinite(epochs * steps_per_epoch) else math.inf
        return math.sqrt(timescale / (timescale + step + 1 - warmup)) if timescale < math.inf else 1.0


@dataclass(frozen=True)
class Plateau(Schedule):
    """The LR drops to `gamma` of itself when the validation loss has stopped falling, as torch's `ReduceLROnPlateau`.

    The validation losses are no option: `with_values` takes them. Then every LR of the phase so far, and that of the
    next epoch, follow from the options and the losses alone; later epochs are shown at the LR of the last known one.
    Without losses the LR stays at the peak. A loss that is not a number is no improvement.

    Args:
        gamma: LR after a drop over LR before it, in (0, 1].
        patience: Epochs in a row without improvement that are put up with; the next one makes the LR drop.
        threshold: An improvement is a loss below the best one times (1 - threshold), in [0, 1).
        cooldown: Epochs after a drop in which none is counted.
        lr_min_ratio: Lowest LR over peak LR, in [0, 1).
        warmup_epochs: Length of a linear warmup in epochs; fractions are fine. Its epochs are counted like others.
    """

    name = "plateau"
    needs_values = True
    gamma: float = ranged(0.1, SHARE)
    patience: int = ranged(2, at_least(0))
    threshold: float = ranged(1e-4, Range("a ratio in [0, 1)", LOWER.holds))
    cooldown: int = ranged(0, at_least(0))
    lr_min_ratio: float = ranged(0.0, LOWER)
    warmup_epochs: float = ranged(0.0, WARMUP)
    levels: tuple[float, ...] = field(default=(1.0,), init=False)
    """LR over peak LR, without warmup, of every finished epoch and of the one after."""

    def factor(self, step: int, steps: int, steps_per_epoch: int) -> float:  # noqa: D102
        level = self.levels[min(step // steps_per_epoch, len(self.levels) - 1)]
        return level * ramp(step, warmup_steps(self.warmup_epochs, steps_per_epoch))

    def with_values(self, values: Sequence[float]) -> Self:  # noqa: D102
        best, bad, cooldown, levels = math.inf, 0, 0, [1.0]
        for value in values:
            if value < best * (1.0 - self.threshold):
                best, bad = value, 0
            else:
                bad += 1
            if cooldown > 0:
                cooldown, bad = cooldown - 1, 0
            level = levels[-1]
            if bad > self.patience:
                level, cooldown, bad = max(level * self.gamma, self.lr_min_ratio), self.cooldown, 0
            levels.append(level)
        known = replace(self)
        object.__setattr__(known, "levels", tuple(levels))
        return known

    def problems(self, epochs: int) -> list[str]:  # noqa: D102
        problems = super().problems(epochs)
        if not problems and self.patience >= epochs and self.patience != type(self).patience:  # the usual one may idle
            expected = f"expected less than the phase of {epochs} epochs, or the LR cannot drop"
            problems.append(f"patience is {self.patience}, {expected}")
        return problems
