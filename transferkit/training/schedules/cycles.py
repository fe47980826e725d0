"""Schedules that come back: 1cycle, the triangular policies and warm restarts; on request with momentum the other way.

Cycles are counted in whole steps, so that a peak, a minimum or a restart never falls between two steps.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

from transferkit.options.fields import BELOW_ONE, POSITIVE, Range, at_least
from transferkit.training.schedules.base import (
    LOWER,
    SHARE,
    SWITCH,
    WARMUP,
    Schedule,
    ramp,
    ranged,
    too_long,
    warmup_steps,
)

__all__ = ["SGDR", "Cyclic", "ExpRange", "OneCycle", "Triangular", "Triangular2"]

RATIO = Range("a finite number of at least 1", lambda value: 1.0 <= value < math.inf)


@dataclass(frozen=True, kw_only=True)
class Cyclic(Schedule):
    """What cyclic schedules share: momentum opposite to the LR (Smith 2018, section 4.3), as in torch's `CyclicLR`.

    Args:
        cycle_momentum: Whether momentum is lowest where the LR is highest; if not, the optimizer's own is left alone.
        momentum_min: Momentum at the peak LR, in [0, 1).
        momentum_max: Momentum at the lowest LR, in [0, 1).
    """

    cycle_momentum: bool = ranged(False, SWITCH)
    momentum_min: float = ranged(0.85, BELOW_ONE)
    momentum_max: float = ranged(0.95, BELOW_ONE)

    @abstractmethod
    def height(self, step: int, steps: int, steps_per_epoch: int) -> float:
        """Return where the LR of one step stands: 0 at the lower end, 1 at the peak."""

    def momentum(self, step: int, steps: int, steps_per_epoch: int) -> float | None:  # noqa: D102
        if not self.cycle_momentum:
            return None
        return self.momentum_max - (self.momentum_max - self.momentum_min) * self.height(step, steps, steps_per_epoch)

    def problems(self, epochs: int) -> list[str]:  # noqa: D102
        problems = super().problems(epochs)
        if not problems and self.momentum_min > self.momentum_max:
            problems.append(f"momentum_min is {self.momentum_min}, above momentum_max, which is {self.momentum_max}")
        return problems


@dataclass(frozen=True)
class OneCycle(Cyclic):
    """Up and down once: the 1cycle policy (Smith & Topin 2018), cosine-shaped, two-phased like torch's `OneCycleLR`.

    Args:
        pct_start: Share of the phase spent rising, in (0, 1).
        div_factor: Peak LR over initial LR, at least 1.
        final_div_factor: Initial LR over final LR, at least 1.
        cycle_momentum: See `Cyclic`, as for `momentum_min` and `momentum_max`.
    """

    name = "one_cycle"
    pct_start: float = ranged(0.3, Range("a share in (0, 1)", lambda value: 0.0 < value < 1.0))
    div_factor: float = ranged(25.0, RATIO)
    final_div_factor: float = ranged(1e4, RATIO)

    def factor(self, step: int, steps: int, steps_per_epoch: int) -> float:  # noqa: D102
        rising = step <= self.pct_start * steps - 1.0
        low = 1.0 / self.div_factor if rising else 1.0 / (self.div_factor * self.final_div_factor)
        return low + (1.0 - low) * self.height(step, steps, steps_per_epoch)

    def height(self, step: int, steps: int, steps_per_epoch: int) -> float:  # noqa: D102
        top, end = self.pct_start * steps - 1.0, steps - 1.0
        if step <= top:
            return 0.5 * (1.0 - math.cos(math.pi * step / top)) if top > 0 else 1.0
        return 0.5 * (1.0 + math.cos(math.pi * (step - top) / (end - top))) if end > top else 1.0


@dataclass(frozen=True)
class _Triangle(Cyclic):
    """Straight up and straight down, again and again (Smith 2017, section 3)."""

    step_size_epochs: float = ranged(0.5, POSITIVE)
    lr_min_ratio: float = ranged(0.25, LOWER)

    @abstractmethod
    def scale(self, cycle: int, step: int) -> float:
        """Return what is left of the triangle in one cycle, from 0, at one step, in [0, 1]."""

    def factor(self, step: int, steps: int, steps_per_epoch: int) -> float:
        return self.lr_min_ratio + (1.0 - self.lr_min_ratio) * self.height(step, steps, steps_per_epoch)

    def height(self, step: int, steps: int, steps_per_epoch: int) -> float:
        half = max(1, round(self.step_size_epochs * steps_per_epoch))
        cycle, place = divmod(step, 2 * half)
        return min(place, 2 * half - place) / half * self.scale(cycle, step)

    def problems(self, epochs: int) -> list[str]:
        problems, size = super().problems(epochs), self.step_size_epochs
        if not problems and 2 * size > epochs:
            half = f"half a cycle of {2 * size} epochs"
            problems.append(f"step_size_epochs is {size}, {half}, longer than the phase of {epochs} epochs")
        return problems


@dataclass(frozen=True)
class Triangular(_Triangle):
    """Straight up to the peak LR and straight down, again and again (Smith 2017, section 3; torch's `CyclicLR`).

    Args:
        step_size_epochs: Half a cycle in epochs, above 0; rounded to whole steps, at least 1. The paper advises 2 to
            10; the default makes a cycle of one epoch, which fits into any phase.
        lr_min_ratio: LR at the bottom over LR at the peak, in [0, 1); the paper advises 1/4 to 1/3.
        cycle_momentum: See `Cyclic`, as for `momentum_min` and `momentum_max`.
    """

    name = "triangular"

    def scale(self, cycle: int, step: int) -> float:  # noqa: D102
        return 1.0


@dataclass(frozen=True)
class Triangular2(_Triangle):
    """As `Triangular`, each peak half as high above the bottom as the one before (Smith 2017, section 3).

    Args:
        step_size_epochs: Half a cycle in epochs, above 0; rounded to whole steps, at least 1.
        lr_min_ratio: LR at the bottom over LR at the first peak, in [0, 1).
        cycle_momentum: See `Cyclic`, as for `momentum_min` and `momentum_max`.
    """

    name = "triangular2"

    def scale(self, cycle: int, step: int) -> float:  # noqa: D102
        return float(0.5**cycle)


@dataclass(frozen=True)
class ExpRange(_Triangle):
    """As `Triangular`, the height above the bottom decays at every step (Smith 2017, section 3).

    In the paper both ends decay; here, as in torch's `CyclicLR`, the lower end stays.

    Args:
        step_size_epochs: Half a cycle in epochs, above 0; rounded to whole steps, at least 1.
        lr_min_ratio: LR at the bottom over LR at an undecayed peak, in [0, 1).
        gamma: Height one step later over height now, in (0, 1].
        cycle_momentum: See `Cyclic`, as for `momentum_min` and `momentum_max`.
    """

    name = "exp_range"
    gamma: float = ranged(0.99994, SHARE)

    def scale(self, cycle: int, step: int) -> float:  # noqa: D102
        return float(self.gamma**step)


@dataclass(frozen=True)
class SGDR(Cyclic):
    """Cosine annealing with warm restarts (SGDR, Loshchilov & Hutter 2017, eq. 5).

    Cycles are counted in whole steps, so that a restart never falls between two steps; the paper's `T_mult` may be
    real, ours is a whole number.

    Args:
        cycle_epochs: Length of the first cycle in epochs, at least 1.
        cycle_mult: Each cycle is so many times longer than the one before, at least 1.
        cycle_decay: Each restart's peak over the one before, in (0, 1].
        lr_min_ratio: LR at the end of a cycle over the first peak, in [0, 1).
        warmup_epochs: Length of a linear warmup in epochs, at most the first cycle. It multiplies the first cycle, so
            that restarts stay at the ends of epochs.
        cycle_momentum: See `Cyclic`, as for `momentum_min` and `momentum_max`.
    """

    name = "sgdr"
    lengths = ("cycle_epochs",)
    cycle_epochs: int = ranged(1, at_least(1))
    cycle_mult: int = ranged(1, at_least(1))
    cycle_decay: float = ranged(1.0, SHARE)
    lr_min_ratio: float = ranged(0.0, LOWER)
    warmup_epochs: float = ranged(0.0, WARMUP)

    def factor(self, step: int, steps: int, steps_per_epoch: int) -> float:  # noqa: D102
        warm = ramp(step, warmup_steps(self.warmup_epochs, steps_per_epoch))
        length, peak = self.cycle_epochs * steps_per_epoch, 1.0
        if self.cycle_mult == 1:
            cycles, step = divmod(step, length)
            peak = self.cycle_decay**cycles
        else:
            while step >= length:
                step, length, peak = step - length, length * self.cycle_mult, peak * self.cycle_decay
        peak, low = max(peak, self.lr_min_ratio), self.lr_min_ratio
        return warm * (low + (peak - low) * 0.5 * (1.0 + math.cos(math.pi * step / length)))

    def height(self, step: int, steps: int, steps_per_epoch: int) -> float:  # noqa: D102
        above = self.factor(step, steps, steps_per_epoch) - self.lr_min_ratio
        return max(0.0, above / (1.0 - self.lr_min_ratio))

    def cycle_ends(self, epochs: int) -> tuple[int, ...]:
        """Return the epochs, from 0, of a phase of `epochs` at whose end a whole cycle is complete.

        There the LR is lowest: the snapshots of a snapshot ensemble (Huang et al. 2017) are taken there.
        """
        ends, length = [], self.cycle_epochs
        end = length
        while end <= epochs:
            ends.append(end - 1)
            length *= self.cycle_mult
            end += length
        return tuple(ends)

    def problems(self, epochs: int) -> list[str]:  # noqa: D102
        warmup = "warmup_epochs"
        return super().problems(epochs) or too_long(warmup, self.warmup_epochs, self.cycle_epochs, "the first cycle")
