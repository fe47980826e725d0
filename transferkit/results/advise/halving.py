"""Successive halving on pictures: who is measured on how many of them, and who is dropped. Pure.

Jamieson and Talwalkar 2016 (*Non-stochastic Best Arm Identification and Hyperparameter Optimization*), after Karnin et
al. 2013 (*Almost Optimal Exploration in Multi-Armed Bandits*): all candidates are measured on few pictures, the better
half on twice as many, and so on to all of them. There the worse half is dropped, however close it was. Here a candidate
of the worse half is dropped only where it is *clearly* behind the leader on the same pictures, because features that
are wide, or far from the task, may need more pictures than others to show what they are worth. So the best one is lost
only where few pictures mislead twice: half of the others have to be before it, and clearly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Final, Generic, TypeVar

from transferkit.core.errors import StoreError, TrainingError

__all__ = ["Gap", "Lap", "Place", "race", "rungs"]

START: Final = 256
"""Pictures of the first rung, at least."""

A_CLASS: Final = 10
"""Pictures for each stratum on the first rung, at least, in the mean."""

LEVEL: Final = 0.05
"""Chance that any of the comparisons of a race calls a candidate clearly behind that is as good as the leader."""

Measured = TypeVar("Measured")


@dataclass(frozen=True)
class Gap:
    """How far a candidate is behind another one on the same pictures.

    Attributes:
        lead: Of the other one, in the figure, above 0 where it is better.
        low: Lower end of the 95 % interval of the lead.
        high: Upper end.
    """

    lead: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """Return plain values for JSON; what is not known is ``None``."""
        return {name: value if math.isfinite(value) else None for name, value in vars(self).items()}

    @property
    def deviations(self) -> float:
        """The lead over its standard error; infinite where the interval has no width and the lead is one."""
        error = (self.high - self.low) / (2 * NormalDist().inv_cdf(0.975))
        if error > 0:
            return self.lead / error
        return float("inf") if self.lead > 0 else 0.0 if self.lead == 0 else float("-inf")


@dataclass(frozen=True)
class Lap(Generic[Measured]):
    """One candidate on one rung.

    Attributes:
        rung: From 0.
        pictures: Of the rung.
        result: What was measured.
        behind: Behind the leader of the rung; ``None`` of the leader.
    """

    rung: int
    pictures: int
    result: Measured
    behind: Gap | None


@dataclass
class Place(Generic[Measured]):
    """What became of one candidate.

    Attributes:
        number: Among the candidates, from 0.
        laps: One for each rung that it was measured on.
        dropped: The rung after which it was dropped; ``None`` where it was not.
        failed: Why it could not be measured any more; ``None`` where it could.
    """

    number: int
    laps: list[Lap[Measured]] = field(default_factory=list)
    dropped: int | None = None
    failed: str | None = None


def rungs(total: int, strata: int, *, halving: bool = True) -> list[int]:
    """Return how many pictures each rung has, ascending; the last one has all of them.

    Halves of halves, so that every rung doubles the one before exactly, and the last one is whole: a ladder that starts
    from the bottom may stop short of all pictures.

    Args:
        total: Pictures in all.
        strata: Classes, or what else pictures are balanced by.
        halving: ``False`` for a single rung.
    """
    sizes, least = [total], max(START, A_CLASS * strata)
    while halving and sizes[0] // 2 >= least:
        sizes.insert(0, sizes[0] // 2)
    return sizes


def race(
    candidates: int,
    sizes: Sequence[int],
    measure: Callable[[int, int], Measured],
    compare: Callable[[Measured, Measured], Gap],
    better: Callable[[Measured], float],
) -> list[Place[Measured]]:
    """Measure candidates on rung after rung, and drop those that are clearly behind.

    A candidate that cannot be measured (its features are not finite, memory runs out) is out, with its reason; where
    that is true of all, the last reason is raised. The limit is simultaneous: `LEVEL` shared out between all pairs on
    all rungs (Bonferroni), and not between those that are compared, as the leader is the luckiest of many.

    Args:
        candidates: How many.
        sizes: Pictures of each rung, see `rungs`.
        measure: From the number of a candidate and of a rung to what is measured.
        compare: From the leader and another one to how far the latter is behind, on the same pictures.
        better: What is higher the better a result is.

    Returns:
        A place for each candidate, in their order.

    Raises:
        StoreError: The last candidate has features that are not finite.
        TrainingError: Memory ran out for the last one.
    """
    places: list[Place[Measured]] = [Place(number) for number in range(candidates)]
    pairs = candidates * (candidates - 1) * len(sizes)
    limit = NormalDist().inv_cdf(1 - LEVEL / max(1, pairs))
    running = list(range(candidates))
    for rung, size in enumerate(sizes):
        results: dict[int, Measured] = {}
        for number in running:
            try:
                results[number] = measure(number, rung)
            except (StoreError, TrainingError) as error:
                places[number].failed = str(error)
                if not results and number == running[-1]:
                    raise
        order = sorted(results, key=lambda number: (-better(results[number]), number))
        behind = _behind(order, results, compare)
        for number in order:
            places[number].laps.append(Lap(rung, size, results[number], behind.get(number)))
        running = [number for number in running if number in results]
        if rung + 1 < len(sizes):
            worse = order[(len(order) + 1) // 2 :]
            dropped = {number for number in worse if behind[number].deviations > limit}
            for number in dropped:
                places[number].dropped = rung
            running = [number for number in running if number not in dropped]
    return places


def _behind(
    order: Sequence[int], results: Mapping[int, Measured], compare: Callable[[Measured, Measured], Gap]
) -> dict[int, Gap]:
    """Return how far each but the first is behind it."""
    return {number: compare(results[order[0]], results[number]) for number in order[1:]}
