"""From the curve of an LR range test to an LR: four rules, each a pure function of LRs and losses.

A range test is read by eye where the loss begins to fall, falls fastest and turns (Smith 2017, section 3.3). The rules
put that into numbers. All of them measure along the logarithm of the LR: against the LR itself, the left of the curve,
where nothing happens yet, would look the steepest.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

__all__ = ["DEFAULT_RULE", "ENOUGH", "RULES", "Smoother", "Verdict", "judge", "minimum", "slide", "steep", "valley"]

SMOOTHING = 0.9
"""Of the loss, per step."""

ENOUGH = 10
"""Points before anything is suggested."""

DISAGREEMENT = 10.0
"""Times that the largest suggestion may be of the smallest without a warning."""

SETTLING = 5
"""First points that the rules leave out: there the mean is of too few losses."""

LEAST_FALL = 0.01
"""Share of the first losses that the loss must fall by."""

STANDS_OUT = 1.25
"""Standard deviations of one loss that the smoothed loss must fall by: of flat noise, 1 curve in 100 does."""

SLOPE_SPAN = 0.5
"""Decades of LR that a slope is taken over, and five points at least: a single step is noise."""

SLIDE_INTERVAL = 1.0
"""Decades between the two slopes that the slide rule compares."""

SLIDE_THRESHOLD = 0.1
"""Difference of two slopes that the slide rule takes for none, in falls of the whole curve per decade."""

VALLEY_PLACE = 2 / 3
"""How far down the longest valley the LR is taken, in decades of LR."""

DEFAULT_RULE = "steep"
"""The rule in use."""

Floats = Sequence[float]
Array = npt.NDArray[np.float64]


class Smoother:
    """The exponential mean of a series, corrected for its start at zero as in Adam (Kingma & Ba 2015, algorithm 1)."""

    def __init__(self) -> None:
        self._mean = 0.0
        self._left = 1.0

    def add(self, value: float) -> float:
        """Take the next value in and return the mean up to it."""
        self._mean = SMOOTHING * self._mean + (1.0 - SMOOTHING) * value
        self._left *= SMOOTHING
        return self._mean / (1.0 - self._left)


# ---- the rules --------------------------------------------------------------------------------------------------


def steep(lrs: Floats, losses: Floats) -> float | None:
    """Return the LR at which the loss falls fastest over log LR, before its minimum; ``None`` where it never falls.

    Args:
        lrs: (N,), rising, N at least 5.
        losses: (N,), smoothed.
    """
    slopes = _slopes(lrs, losses)[: int(np.argmin(losses)) + 1]
    lowest = int(np.argmin(slopes))
    rounding = 1e-9 * max(map(abs, losses))
    return lrs[lowest] if slopes[lowest] < -rounding else None


def minimum(lrs: Floats, losses: Floats) -> float | None:
    """Return a tenth of the LR of the smallest loss.

    At the minimum itself training is about to diverge (Howard & Gugger 2020, *Deep Learning for Coders*, chapter 5).

    Args:
        lrs: (N,), rising.
        losses: (N,), smoothed.
    """
    return lrs[int(np.argmin(losses))] / 10


def valley(lrs: Floats, losses: Floats) -> float | None:
    """Return the LR two thirds down the longest valley; ``None`` where there is none.

    The valley is the longest run of losses each below the one before, others in between left out. The rule is ESRI's,
    and the one that fastai's ``lr_find`` uses (fastai 2.5, ``callback/schedule.py``).

    Args:
        lrs: (N,), rising.
        losses: (N,), smoothed.
    """
    run = _longest_fall(losses)
    if len(run) < 2:
        return None
    start, end = math.log(lrs[run[0]]), math.log(lrs[run[-1]])
    place = start + VALLEY_PLACE * (end - start)
    return min(lrs, key=lambda lr: abs(math.log(lr) - place))


def slide(lrs: Floats, losses: Floats) -> float | None:
    """Return the left end of an interval that slides from the largest LR down until the slopes at its ends are equal.

    The turn and the rise are behind the interval then. The interval slide rule is Andrew Chang's (fastai 2.5,
    ``callback/schedule.py``); there interval and threshold are counted in steps and in units of the loss, here in
    decades and in falls of the whole curve, and the left end is sought before the minimum only.

    Args:
        lrs: (N,), rising, N at least 5.
        losses: (N,), smoothed.

    Returns:
        ``None`` where the curve is shorter than the interval, or no such place is found.
    """
    logs, slopes = np.log10(lrs), _slopes(lrs, losses)
    lowest = int(np.argmin(losses))
    fall = losses[0] - losses[lowest]
    for right in range(len(lrs) - 1, 0, -1):
        left = int(np.searchsorted(logs, logs[right] - SLIDE_INTERVAL + 1e-9, side="right")) - 1
        if 0 <= left < lowest and abs(slopes[right] - slopes[left]) <= SLIDE_THRESHOLD * fall:
            return lrs[left]
    return None


RULES: Mapping[str, Callable[[Floats, Floats], float | None]] = MappingProxyType(
    {"steep": steep, "minimum": minimum, "valley": valley, "slide": slide}
)


# ---- all of them ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """The rules applied to one curve.

    Attributes:
        losses: Smoothed.
        suggestions: LR by rule; ``None`` where a rule finds nothing.
        reason: Why `DEFAULT_RULE` suggests nothing; ``None`` when it does.
        warning: What speaks against trusting the suggestions, or ``None``.
    """

    losses: tuple[float, ...]
    suggestions: Mapping[str, float | None]
    reason: str | None
    warning: str | None


def judge(lrs: Floats, raw_losses: Floats, *, ended: str = "") -> Verdict:
    """Smooth a curve and apply every rule to it.

    Args:
        lrs: (N,), rising, in the order they were used.
        raw_losses: (N,), finite.
        ended: What ended the test before its last LR, in words, for the reason.
    """
    smoother = Smoother()
    losses = tuple(smoother.add(loss) for loss in raw_losses)
    reason = _nothing_to_suggest(lrs, raw_losses, losses, ended)
    if reason is not None:
        return Verdict(losses, dict.fromkeys(RULES), reason, None)
    settled = slice(SETTLING, None)
    suggestions = {name: rule(lrs[settled], losses[settled]) for name, rule in RULES.items()}
    warnings = []
    if not ended and int(np.argmin(losses)) == len(losses) - 1:
        suggestions["minimum"] = None  # it is not in the range
        warnings.append(f"the loss still falls at the largest LR, {lrs[-1]:.2g} - raise lr_max to see where it turns")
    warnings += _disagreement(suggestions)
    if suggestions[DEFAULT_RULE] is None:
        reason = f"the rule {DEFAULT_RULE!r} finds nothing in the curve - look at what the other rules suggest"
    return Verdict(losses, suggestions, reason, "; ".join(warnings) or None)


def _nothing_to_suggest(lrs: Floats, raw: Floats, losses: Floats, ended: str) -> str | None:
    if len(raw) < ENOUGH:
        cause = f"after {len(raw)} steps {ended}" if raw else ended
        return (
            f"{cause}, expected at least {ENOUGH} steps with a finite loss - check the pictures and the weights, or "
            "begin at a smaller LR"
        )
    began, lowest = sum(raw[:ENOUGH]) / ENOUGH, min(losses[ENOUGH - 1 :])
    # Half of the differences between neighbours are below 0.954 standard deviations of one loss.
    noise = float(np.median(np.abs(np.diff(raw)))) / 0.954
    if began - lowest > max(LEAST_FALL * abs(began), STANDS_OUT * noise):
        return None
    return (
        f"the loss begins at {began:.4g} and falls to {lowest:.4g} at best between LR {lrs[0]:.2g} and {lrs[-1]:.2g}, "
        f"expected a fall that stands out from its noise ({noise:.2g}) - try another range of LRs or more steps; if "
        "nothing helps, check that labels belong to their pictures, or that there is anything left to learn"
    )


def _disagreement(suggestions: Mapping[str, float | None]) -> list[str]:
    lrs = {name: lr for name, lr in suggestions.items() if lr is not None}
    times = max(lrs.values(), default=1.0) / min(lrs.values(), default=1.0)
    if times <= DISAGREEMENT:
        return []
    named = ", ".join(f"{name} {lr:.2g}" for name, lr in sorted(lrs.items(), key=lambda item: item[1]))
    return [f"the rules disagree by {times:.0f} times ({named}) - look at the curve before trusting one of them"]


def _slopes(lrs: Floats, losses: Floats) -> Array:
    """Return the slope of the loss over log10 of the LR at every point, by least squares over its neighbours."""
    logs, values = np.log10(lrs), np.asarray(losses, dtype=np.float64)
    slopes = np.empty(len(logs))
    for at, middle in enumerate(logs):
        near = np.abs(logs - middle) <= SLOPE_SPAN / 2
        near[max(0, at - 2) : at + 3] = True
        x = logs[near] - logs[near].mean()
        slopes[at] = (x @ values[near]) / (x @ x)
    return slopes


def _longest_fall(losses: Floats) -> list[int]:
    """Return the positions of the longest strictly falling subsequence (patience sorting)."""
    ends: list[float] = []  # by length, the negated loss that the best run of that length ends with
    places: list[int] = []
    before: list[int] = []
    for at, loss in enumerate(losses):
        length = bisect_left(ends, -loss)
        ends[length : length + 1] = [-loss]
        places[length : length + 1] = [at]
        before.append(places[length - 1] if length else -1)
    run = [places[-1]] if places else []
    while run and before[run[-1]] >= 0:
        run.append(before[run[-1]])
    return run[::-1]
