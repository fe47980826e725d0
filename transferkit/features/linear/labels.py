"""The solver of several labels per picture: one logistic regression per label, its strength chosen for each."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from transferkit.core.errors import ConfigError, gather
from transferkit.features.linear.softening import scaled_down
from transferkit.features.linear.solution import LinearSolution
from transferkit.models.heads.solver import Array, HeadState, LabelledRows, ProbeOptions, Progress

__all__ = ["FittedLabels", "LabelSolver"]


CRITERION = (
    "of each label the lowest cross-validated nll inside the training rows; none of a label that all rows have, or none"
)
DEFAULT_STRENGTH = 30.0
"""C times the rows' weight where a label has too few rows to cross-validate."""
EXACT = 2**26
"""Features up to which the head that is kept is fitted in float64, see `probe`."""
SMALL = 2e8
"""Multiplications of one product up to which more threads of the BLAS only get in each other's way."""


class FittedLabels(LinearSolution):
    """A logistic model of each label; its outputs are logits."""

    def probs(self, X: Array) -> Array:
        """Return the probability of every label (N, C) float32 for raw features (N, D)."""
        return torch.from_numpy(self.outputs(X)).sigmoid().numpy()

    def scores(self, X: Array, y: Array) -> Array:
        """Return 1.0 for each row (N,) whose labels are all right at 0.5, 0.0 for the others."""
        return np.asarray(((self.outputs(X) >= 0) == (np.asarray(y) > 0.5)).all(axis=1), dtype=np.float64)


@dataclass(frozen=True)
class LabelSolver:
    """One against the rest, as scikit-learn's ``OneVsRestClassifier``, with a strength chosen for each label."""

    method: str = "L-BFGS on cached features, one per label"
    figure: str = "subset_acc"

    def problems(self, targets: Array) -> list[str]:
        """Return whether no label can be told from its absence."""
        part = (targets > 0.5).mean(axis=0)
        return [] if ((part > 0) & (part < 1)).any() else ["no label that some pictures have and others lack"]

    def start(self, head: HeadState, X: Array, outputs: Array) -> HeadState:
        """Return the head with less confidence, see `scaled_down`."""
        return scaled_down(head, outputs)

    def fit(
        self,
        rows: LabelledRows,
        options: ProbeOptions | None = None,
        *,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> FittedLabels:
        """Fit a logistic regression per label.

        The strength of each is that of the lowest cross-validated log loss (the accuracy of a rare label says nothing),
        in folds that spread every label. A label that all rows have, or none, gets no weights and the bias of its rate,
        ``log((p + 0.5) / (n + 0.5))``. ``{"C": number}`` in the options' arguments gives one strength for all labels.

        Raises:
            ConfigError: With everything that is wrong with the rows or the options.
        """
        options = options or ProbeOptions()
        common = options.classifier_args.get("C")
        problems = rows.problems() + options.problems()
        if options.classifier not in ("auto", "logistic"):
            problems.append(f"classifier is {options.classifier!r}; of labels expected auto or logistic")
        problems += [f"logistic takes no argument {key!r}; expected C" for key in options.classifier_args if key != "C"]
        if common is not None and (isinstance(common, bool) or not isinstance(common, int | float) or not common > 0):
            problems.append(f"C is {common!r}; of labels expected one number above 0")
        if problems:
            raise ConfigError(gather(problems))
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        if rows.weight is not None:
            rows = rows.take(np.flatnonzero(rows.weight))
        small = rows.X.size * rows.width < SMALL
        with threadpool_limits(1, user_api="blas") if small else nullcontext():
            return _fitted(rows, options, common, seed, progress or (lambda done, total: None))


def _fitted(
    rows: LabelledRows, options: ProbeOptions, common: float | None, seed: int, progress: Progress
) -> FittedLabels:
    from transferkit.features.linear.one_vs_rest import MEMORY, LabelProblem, choose_strengths, iterative_folds

    truth, count = np.asarray(rows.y) > 0.5, rows.width
    row = np.ones(len(rows)) if rows.weight is None else np.asarray(rows.weight, dtype=np.float64)
    total = float(row.sum())
    weight, bias = np.zeros((count, rows.X.shape[1])), np.zeros(count)
    having = row @ truth
    fits = (having > 0) & (having < total) & truth.any(axis=0) & ~truth.all(axis=0)
    bias[~fits] = np.log((having[~fits] + 0.5) / (total - having[~fits] + 0.5))
    part = truth[:, fits]
    balance = None
    if options.class_weight == "balanced":  # of each label, as scikit-learn has it for two classes
        balance = np.stack([total / (2 * (total - having[fits])), total / (2 * having[fits])])

    def weights(index: Array) -> Array:
        if balance is None:
            return row[index][:, None]
        own = np.where(part[index], balance[1], balance[0]) * row[index][:, None]
        return np.asarray(own * (row[index].sum() / own.sum(axis=0)))

    choice: dict[str, Any] = {"C": [], "criterion": "given"}
    if common is not None:
        strengths = np.full(int(fits.sum()), float(common))
    else:
        units = rows.units()
        most = max(2, min(options.folds, int(MEMORY // max(1, 4 * rows.X.size))))
        held = iterative_folds(part, units, most, seed)
        strengths = np.full(part.shape[1], np.nan)
        if held:
            strengths, _ = choose_strengths(rows.X, part, row, weights, held, progress)
        default = np.isnan(strengths)
        strengths[default] = DEFAULT_STRENGTH / total
        names = np.flatnonzero(fits)
        choice = {"C": [], "criterion": CRITERION, "folds": len(held), "default": names[default].tolist()}
    chosen: list[float | None] = [None] * count
    for label, strength in zip(np.flatnonzero(fits), strengths, strict=True):
        chosen[label] = float(strength)
    X = rows.X if rows.X.size > EXACT else rows.X.astype(np.float64)
    problem = LabelProblem(X, part, row, weights(np.arange(len(rows))))
    problem.solve(strengths, np.arange(part.shape[1]), tol=1e-6)
    weight[fits], bias[fits] = problem.linear()
    progress(1, 1)
    return FittedLabels(weight, bias, {**choice, "C": chosen})
