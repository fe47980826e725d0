"""A linear head that was solved at once: weights on raw features, and how their strength was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from transferkit.models.heads.solver import Array, HeadState

__all__ = ["LinearSolution"]


@dataclass(frozen=True, eq=False)
class LinearSolution:
    """A linear model of C outputs on D features.

    Attributes:
        weight: ``(C, D)``.
        bias: ``(C,)``.
        choice: The strength of each output, and by which criterion.
        name: Of the kind of model.
        estimator: Of scikit-learn, which a linear model of our own has not.
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
        """Return outputs (N, C) float32 for raw features (N, D)."""
        return np.asarray(X @ self.weight.T.astype(X.dtype) + self.bias.astype(X.dtype), dtype=np.float32)
