"""The head of a task: what it returns; and its solver: rows of features and targets go in, a fitted head comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from transferkit.core.targets import TargetSpec

__all__ = ["Array", "HeadState", "Heads", "LabelledRows", "ProbeOptions", "Progress", "Solution", "Solver"]

Array = NDArray[Any]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class LabelledRows:
    """Features with their targets, to fit on or to measure on.

    Attributes:
        X: (N, D) float32 or float64, finite.
        y: (N, ...) targets, as the task has them; of classification (N,) integers in [0, width).
        width: Outputs of the head; of classification C, of all classes: not every one need have a row.
        groups: (N,) strings; what is of one group (a picture's views, equal pictures) is never torn apart. ``None``
            where every row stands for itself.
        weight: (N,) at least 0, what a row counts; ``None`` for 1 each.
    """

    X: Array
    y: Array
    width: int
    groups: Sequence[str] | Array | None = None
    weight: Array | None = None

    def __len__(self) -> int:
        """Return N."""
        return len(self.X)

    def take(self, index: Array) -> LabelledRows:
        """Return some of the rows."""
        groups = None if self.groups is None else np.asarray(self.groups)[index]
        weight = None if self.weight is None else np.asarray(self.weight)[index]
        return LabelledRows(self.X[index], self.y[index], self.width, groups, weight)

    def units(self) -> Array:
        """Return for each row (N,) the number of its group, or its own."""
        return np.arange(len(self)) if self.groups is None else np.unique(self.groups, return_inverse=True)[1]

    def problems(self) -> list[str]:
        """Return what is wrong with the weights, a sentence each."""
        weight = np.zeros(0) if self.weight is None else np.asarray(self.weight)
        if np.isfinite(weight).all() and (weight >= 0).all():
            return []
        return ["sample weights are negative or not finite; expected numbers of at least 0"]


@dataclass(frozen=True)
class ProbeOptions:
    """Which kind of head, and how it is fitted.

    Attributes:
        classifier: ``"auto"`` for the task's usual one. Of classification ``"logistic"``; ``"knn"``; or the import path
            of a scikit-learn classifier, fitted on standardised features as it is (nothing is chosen).
        classifier_args: ``{"C": number or list}`` for logistic, ``{"k": number or list, "temperature": number}`` for
            knn (one number: nothing is chosen), the constructor's arguments for an import path.
        class_weight: ``"balanced"`` gives every class the same total weight, in the fit and in what is chosen by.
        folds: Folds at most, at least 2; fewer where no class has so many groups, and of more than 20,000 rows.
    """

    classifier: str = "auto"
    classifier_args: Mapping[str, Any] = field(default_factory=dict)
    class_weight: str | None = None
    folds: int = 5

    def problems(self) -> list[str]:
        """Return what is out of range, a sentence each."""
        problems = []
        if self.class_weight not in (None, "balanced"):
            problems.append(f"class_weight is {self.class_weight!r}; expected None or 'balanced'")
        if self.folds < 2:
            problems.append(f"folds is {self.folds}; expected at least 2")
        return problems


@dataclass(frozen=True)
class HeadState:
    """A head of a model that computes what was fitted, on raw features.

    Attributes:
        name: As ``--head`` or a product has it: ``"linear"``, ``"knn"``.
        arguments: Of its constructor, besides the widths.
        tensors: Its state, by name.
    """

    name: str
    arguments: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


class Heads(Protocol):
    """What a head returns for a picture."""

    def width(self, spec: TargetSpec) -> int:
        """Return how many numbers that is."""

    def problems(self, width: int) -> list[str]:
        """Return what is wrong with so many, a sentence each."""

    def row(
        self, values: Tensor, *, bias: bool, theirs: tuple[TargetSpec, int], ours: tuple[TargetSpec, int]
    ) -> Tensor:
        """Return a row of the last layer of another model as one of this model computes the same answer with.

        Args:
            values: ``(D,)`` weights of an output, or its bias, a scalar.
            bias: Whether it is the bias.
            theirs: What the other model's answers mean, and which of its outputs it is.
            ours: Likewise, here.
        """

    def joined(self, taken: Tensor, solved: Tensor, places: Sequence[int]) -> Tensor:
        """Return rows ``(C, ...)`` of a last layer: those at `places` are of `taken`, the others of `solved`."""


class Solution(Protocol):
    """What a solver has fitted."""

    @property
    def name(self) -> str:
        """Of the kind of head, such as ``"logistic"``."""

    @property
    def choice(self) -> Mapping[str, Any]:
        """What was chosen, by which criterion, on what, as JSON values; with a ``"curve"`` where it was a path."""

    @property
    def estimator(self) -> Any:
        """The fitted object of scikit-learn; ``None`` where there is none."""

    def head(self) -> HeadState | None:
        """Return a head of a model that computes the same; ``None`` where there is none."""

    def outputs(self, X: Array) -> Array:
        """Return what a network with this head would return for raw features (N, D): (N, width) float32."""

    def scores(self, X: Array, y: Array) -> Array:
        """Return for each row (N,) what it adds to the mean that is the figure `Solver.figure`."""


class Solver(Protocol):
    """A head fitted at once on cached features."""

    @property
    def method(self) -> str:
        """What it does, for `metrics.json`: ``"L-BFGS on cached features"``."""

    @property
    def figure(self) -> str:
        """The figure that `Solution.scores` are of, such as ``"acc"``."""

    def start(self, head: HeadState, X: Array, outputs: Array) -> HeadState:
        """Return the head that fine-tuning starts from: it says about the same, and is not thrown off at once.

        Args:
            head: A linear one, as solved, float32.
            X: ``(N, D)`` features of the training pictures.
            outputs: ``(N, width)`` of the head for them.
        """

    def problems(self, targets: Array) -> list[str]:
        """Return why a head cannot be fitted to targets (N, ...), as words that go on "the training split holds"."""

    def fit(
        self,
        rows: LabelledRows,
        options: ProbeOptions | None = None,
        *,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Solution:
        """Fit a head, and choose by cross-validation inside these rows what there is to choose.

        Args:
            rows: To fit on.
            options: Which kind of head, and how; the task's usual one by default.
            seed: Of the folds, and of what is drawn at random.
            progress: Called with the fits done and all fits, after each.

        Raises:
            ConfigError: With everything that is wrong with the rows or the options.
        """
