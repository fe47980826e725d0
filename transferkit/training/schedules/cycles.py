"""Schedules that come back: 1cycle, the triangular policies and warm restarts; on request with momentum the other way.

Cycles are counted in whole steps, so that a peak, a minimum or a restart never falls between two steps.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

from transferkit.training.schedules.base import (
    Schedule,
    flag_problem,
    lr_min_problem,
    number_problem,
    ramp,
    share_problem,
    warmup_problem,
    warmup_steps,
    whole_problem,
)

__all__ = ["SGDR", "Cyclic", "ExpRange", "OneCycle", "Triangular", "Triangular2"]


@dataclass(frozen=True, kw_only=True)
class Cyclic(Schedule):
    """What cyclic schedules share: momentum opposite to the LR (Smith 2018, section 4.3), as in torch's `CyclicLR`.

    Args:
        cycle_momentum: Whether momentum is lowest where the LR is highest; if not, the optimizer's own is left alone.
        momentum_min: Momentum at the peak LR, in [0, 1).
        momentum_max: Momentum at the lowest LR, in [0, 1).
    """

    cycle_momentum: bool = False
    momentum_min: float = 0.85
    momentum_max: float = 0.95

    @abstractmethod
    def height(self, step: int, steps: int, steps_per_epoch: int) -> float:
        """Return where the LR of one step stands: 0 at the lower end, 1 at the peak."""

    def momentum(self, step: int, steps: int, steps_per_epoch: int) -> float | None:  # noqa: D102
        if not self.cycle_momentum:
            return None
        return self.momentum_max - (self.momentum_max - self.momentum_min) * self.height(step, steps, steps_per_epoch)

    def problems(self, epochs: int) -> list[str]:  # noqa: D102
        problems = flag_problem("cycle_momentum", self.cycle_momentum)
        for name, value in (("momentum_min", self.momentum_min), ("momentum_max", self.momentum_max)):
            problems += number_problem(name, value, lambda momentum: 0.0 <= momentum < 1.0, "a number in [0, 1)")
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
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4

    def factor(self, step: int, steps: int, steps_per_epoch: int) -> float:  # noqa: D102
        rising = step <= self.pct_start * steps - 1.0
        low = 1.0 / self.div_factor if rising else 1.0 / (self.div_factor * self.final_div_factor)
        return low + (1.0 - low) * self.height(step, steps, steps_per_epoch)

    def height(self, step: int, steps: int, steps_per_epoch: int) -> float:  # noqa: D102
        top, end = self.pct_start * steps - 1.0, steps - 1.0
        if step <= top:
            return 0.5 * (1.0 - math.cos(math.pi * step / top)) if top > 0 else 1.0
        return 0.5 * (1.0 + math.cos(math.pi * (step - top) / (end - top))) if end > top else 1.0

    def problems(self, epochs: int) -> list[str]:  # noqa: D102
        problems = number_problem("pct_start", self.pct_start, lambda share: 0.0 < share < 1.0, "a share in (0, 1)")
        for name, value in (("div_factor", self.div_factor), ("final_div_factor", self.final_div_factor)):
            problems += number_problem(
                name, value, lambda over: 1.0 <= over < math.inf, "a finite number of at least 1"
            )
        return problems + super().problems(epochs)


@dataclass(frozen=True)
class _Triangle(Cyclic):
    """Straight up and straight down, again and again (Smith 2017, section 3)."""

    step_size_epochs: float = 0.5
    lr_min_ratio: float = 0.25

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
        size, name = self.step_size_epochs, "step_size_epochs"
        problems = number_problem(name, size, lambda value: 0 < value < math.inf, "a finite number above 0")
        if not problems and 2 * size > epochs:
            problems.append(
                f"{name} is {size}, half a cycle of {2 * size} epochs, longer than the phase of {epochs} epochs"
            )
        return problems + lr_min_problem(self.lr_min_ratio) + super().problems(epochs)


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
    gamma: float = 0.99994

    def scale(self, cycle: int, step: int) -> float:  # noqa: D102
        return float(self.gamma**step)

    def problems(self, epochs: int) -> list[str]:  # noqa: D102
        return super().problems(epochs) + share_problem("gamma", self.gamma)


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
    cycle_epochs: int = 1
    cycle_mult: int = 1
    cycle_decay: float = 1.0
    lr_min_ratio: float = 0.0
    warmup_epochs: float = 0.0

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
        problems = whole_problem("cycle_epochs", self.cycle_epochs, 1) + whole_problem("cycle_mult", self.cycle_mult, 1)
        problems += share_problem("cycle_decay", self.cycle_decay) + lr_min_problem(self.lr_min_ratio)
        if not problems and self.cycle_epochs > epochs:
            problems.append(f"cycle_epochs is {self.cycle_epochs}, longer than the phase of {epochs} epochs")
        if not problems:
            problems += warmup_problem(self.warmup_epochs, self.cycle_epochs, "the first cycle")
        return problems + super().problems(epochs)
