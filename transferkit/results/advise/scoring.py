"""A probe on held-out pictures: outputs of all folds, the task's figures of them, and two candidates compared."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from transferkit.core.errors import DataError
from transferkit.core.targets import TargetSpec
from transferkit.features.probe.selection import Folds, cross_validation_folds
from transferkit.models.details import Answered
from transferkit.models.figures.figure import Figure
from transferkit.models.heads.solver import Array, LabelledRows, ProbeOptions, Solver
from transferkit.models.task import Task
from transferkit.results.advise.halving import Gap

__all__ = ["Scored", "behind", "make_folds", "score_features", "widening"]

INNER = 3
"""Folds inside the training part of each fold, by which the strength of the probe is chosen."""


@dataclass(frozen=True, eq=False)
class Scored:
    """What a probe says of held-out pictures.

    Attributes:
        answered: Its predictions, the truth, and what they mean.
        figures: Of the task, the one that counts most first.
        seconds: That fitting took.
        wider: By how much intervals are wider than those of pictures that have nothing to do with each other.
    """

    answered: Answered
    figures: tuple[Figure, ...]
    seconds: float
    wider: float

    @property
    def figure(self) -> Figure:
        """The figure that candidates are ranked by."""
        return self.figures[0]

    @property
    def rank(self) -> float:
        """The figure, turned so that higher is better; a figure that is not defined comes last."""
        value = self.figure.value
        return -math.inf if value is None else value if self.figure.higher_is_better else -value


def make_folds(strata: Array, units: Array, *, folds: int, seed: int) -> Folds:
    """Cut pictures into folds: balanced by strata, and units whole.

    Args:
        strata: ``(N,)``, the stratum of each picture.
        units: ``(N,)``, what it stays together with.
        folds: Folds at most.
        seed: Of the shuffle.

    Returns:
        Positions to train on and positions held out, for each fold.

    Raises:
        DataError: There are too few pictures to hold any out.
    """
    if len(np.unique(strata)) > 1:
        rows = LabelledRows(np.zeros((len(strata), 1)), strata, int(strata.max()) + 1, units)
        parts = cross_validation_folds(rows, folds=folds, seed=seed)
    else:  # numbers, say: nothing to balance
        names = np.random.default_rng(seed).permutation(np.unique(units))
        cut = [np.isin(units, part) for part in np.array_split(names, min(folds, len(names)))]
        parts = [(np.flatnonzero(~held), np.flatnonzero(held)) for held in cut] if len(names) > 1 else []
    if not parts:
        raise DataError(
            f"{len(np.unique(units)):,} training pictures (or groups of them) of {len(np.unique(strata)):,} classes are"
            " too few to hold any out, and candidates are compared on held-out ones - add pictures, at least two of "
            "two classes"
        )
    return parts


def widening(units: Array) -> float:
    """Return by how much an interval over pictures is too narrow at most, where pictures of a unit are alike.

    The square root of the design effect (Kish 1965) of units whose pictures all say the same; 1 where each stands for
    itself.
    """
    sizes = np.bincount(np.unique(units, return_inverse=True)[1])
    return float(np.sqrt(np.square(sizes).sum() / sizes.sum()))


def score_features(
    X: Array,
    y: Array,
    units: Array,
    folds: Folds,
    task: Task,
    spec: TargetSpec,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Scored:
    """Fit the task's head on all but one fold, for each fold, and measure what is said of the held-out pictures.

    What has to be chosen is chosen inside the training part of each fold, so that no held-out picture has a say in
    what is said of it. A picture that is in no held-out part, as the only one of its class is, is not measured.

    Args:
        X: ``(N, D)`` features.
        y: ``(N, ...)`` targets.
        units: ``(N,)``, what stays together.
        folds: From `make_folds`.
        task: Has a solver.
        spec: What targets mean.
        seed: Of the inner folds and the bootstrap.
        progress: Called with folds done and all folds.
    """
    solver: Solver = task.require("solver", "advise")
    started, outputs = time.perf_counter(), np.zeros((len(X), task.heads.width(spec)), dtype=np.float32)
    held_out = np.zeros(len(X), dtype=bool)
    names = np.unique(units, return_inverse=True)[1]
    for number, (train, held) in enumerate(folds):
        rows = LabelledRows(X[train], y[train], outputs.shape[1], names[train])
        outputs[held] = solver.fit(rows, ProbeOptions(folds=INNER), seed=seed).outputs(X[held])
        held_out[held] = True
        if progress is not None:
            progress(number + 1, len(folds))
    predictions = task.output.activate(torch.from_numpy(outputs[held_out]))
    targets, wider = torch.from_numpy(np.asarray(y[held_out])), widening(units[held_out])
    values = task.scores.measure(predictions, targets, spec, seed=seed)
    figures = tuple(_widened(figure, wider) for figure in task.scores.figures(values))
    return Scored(Answered(predictions, targets, spec), figures, time.perf_counter() - started, wider)


def behind(leader: Scored, other: Scored, task: Task, *, seed: int = 0) -> Gap:
    """Return how far one candidate is behind another one, by the same pictures drawn together."""
    values = task.require("details", "advise").compare(
        leader.answered, other.answered, names=("the leader", "the other"), seed=seed
    )
    row = _compared(values, leader.figure)
    lead, ends = row["difference"], row["ci"]
    if lead is None or ends is None:
        return Gap(0.0, -math.inf, math.inf)
    sign = 1.0 if leader.figure.higher_is_better else -1.0
    middle, (low, high) = sign * lead, sorted(sign * end for end in ends)
    return Gap(middle, middle - leader.wider * (middle - low), middle + leader.wider * (high - middle))


def _compared(values: Mapping[str, Any], figure: Figure) -> Mapping[str, Any]:
    """Return the difference of a figure in what `Details.compare` says; of classes it lies under the figure's key."""
    rows: Sequence[Mapping[str, Any]] = values.get("figures", ())
    own = [row for row in rows if (row["key"], row["of"]) == (figure.key, figure.of)]
    entry: Mapping[str, Any] = own[0] if own else values[figure.key]
    return entry


def _widened(figure: Figure, wider: float) -> Figure:
    """Return a figure with an interval that is as wide as the units make it; shares stay within 0 and 1."""
    if figure.ci is None or figure.value is None or wider == 1.0:
        return figure
    low, high = (figure.value + wider * (end - figure.value) for end in figure.ci)
    return replace(figure, ci=(max(low, 0.0), min(high, 1.0)) if figure.unit == "share" else (low, high))
