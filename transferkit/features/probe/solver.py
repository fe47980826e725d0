"""The solver of classes: logistic regression; of one per picture also nearest neighbours, or what scikit-learn has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from transferkit.features.linear.softening import scaled_down
from transferkit.models.heads.solver import Array, HeadState, LabelledRows, ProbeOptions, Progress

if TYPE_CHECKING:
    from transferkit.features.probe.probe import FittedProbe

__all__ = ["ClassSolver"]


@dataclass(frozen=True)
class ClassSolver:
    """Multinomial logistic regression, or what the options name.

    Attributes:
        method: See `Solver`.
        figure: Likewise; the share of the rows whose class is right, whatever it is called.
        things: What has a class, in words.
    """

    method: str = "L-BFGS on cached features"
    figure: str = "acc"
    things: str = "pictures"

    def problems(self, targets: Array) -> list[str]:
        """Return whether there is but one class."""
        few = len(np.unique(targets)) < 2
        return [f"{self.things} of one class, expected at least two to fit a head"] if few else []

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
