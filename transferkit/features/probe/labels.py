"""The solver of several labels per picture: one logistic regression per label, its strength chosen for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from transferkit.core.errors import ConfigError, gather
from transferkit.models.solver import Array, HeadState, LabelledRows, ProbeOptions, Progress

__all__ = ["FittedLabels", "LabelSolver"]


CRITERION = (
    "of each label the lowest cross-validated nll inside the training rows; none of a label that all rows have, or none"
)


@dataclass(frozen=True, eq=False)
class FittedLabels:
    """A linear model of each label, on raw features.

    Attributes:
        weight: ``(C, D)``.
        bias: ``(C,)``.
        choice: What was chosen for each label, by which criterion.
    """

    weight: Array
    bias: Array
    choice: Mapping[str, Any] = field(default_factory=dict)
    name: str = "logistic"
    estimator: Any = None

    def head(self) -> HeadState:
        """Return the linear head that computes the same."""
        tensors = {"linear.weight": torch.from_numpy(self.weight), "linear.bias": torch.from_numpy(self.bias)}
        return HeadState("linear", {}, tensors)

    def outputs(self, X: Array) -> Array:
        """Return logits (N, C) float32 for raw features (N, D)."""
        return np.asarray(X @ self.weight.T.astype(X.dtype) + self.bias.astype(X.dtype), dtype=np.float32)

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

    def fit(
        self,
        rows: LabelledRows,
        options: ProbeOptions | None = None,
        *,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> FittedLabels:
        """Fit a logistic regression per label.

        The strength of each is that of the lowest cross-validated log loss (the accuracy of a rare label says nothing).
        A label that all rows have, or none, gets no weights and the bias of its rate, ``log((p + 0.5) / (n + 0.5))``.

        Raises:
            ConfigError: With everything that is wrong with the rows or the options.
        """
        from transferkit.features.probe.probe import fit_probe  # scikit-learn and SciPy, which few verbs need
        from transferkit.features.probe.selection import lowest_nll

        options = options or ProbeOptions()
        problems = rows.problems() + options.problems()
        if options.classifier not in ("auto", "logistic"):
            problems.append(f"classifier is {options.classifier!r}; of labels expected auto or logistic")
        if problems:
            raise ConfigError(gather(problems))
        truth, count = np.asarray(rows.y) > 0.5, rows.width
        weight, bias = np.zeros((count, rows.X.shape[1])), np.zeros(count)
        strengths: list[float | None] = []
        for label in range(count):
            own = truth[:, label]
            if own.all() or not own.any():
                bias[label] = np.log((own.sum() + 0.5) / ((~own).sum() + 0.5))
                strengths.append(None)
            else:
                one = LabelledRows(rows.X, own.astype(np.int64), 2, rows.groups, rows.weight)
                fitted = fit_probe(one, options, seed=seed, rule=lowest_nll)
                assert fitted.linear is not None
                weight[label] = fitted.linear.weight[1] - fitted.linear.weight[0]
                bias[label] = fitted.linear.bias[1] - fitted.linear.bias[0]
                strengths.append(fitted.choice["C"])
            if progress is not None:
                progress(label + 1, count)
        return FittedLabels(weight, bias, {"C": strengths, "criterion": CRITERION})
