"""The solver of one class per picture: logistic regression, nearest neighbours, or a classifier of scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from transferkit.features.linear.softening import scaled_down
from transferkit.models.solver import Array, HeadState, LabelledRows, ProbeOptions, Progress

if TYPE_CHECKING:
    from transferkit.features.probe.probe import FittedProbe

__all__ = ["ClassSolver"]


@dataclass(frozen=True)
class ClassSolver:
    """Multinomial logistic regression, or what the options name."""

    method: str = "L-BFGS on cached features"
    figure: str = "acc"

    def problems(self, targets: Array) -> list[str]:
        """Return whether there is but one class."""
        return [] if len(np.unique(targets)) > 1 else ["pictures of one class, expected at least two to fit a head"]

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
    ) -> FittedProbe:
        """Fit a classifier, see `fit_probe`."""
        from transferkit.features.probe.probe import fit_probe  # scikit-learn and SciPy, which few verbs need

        return fit_probe(rows, options, seed=seed, progress=progress)
