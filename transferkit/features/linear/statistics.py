"""Sufficient statistics of ridge classification: classes and pictures are added without the old pictures, exactly."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from transferkit.core.errors import CheckpointError
from transferkit.core.files import atomic_write
from transferkit.data.scan.class_names import order_classes
from transferkit.features.linear.logistic import MISSING_LOGIT, LinearModel
from transferkit.models.heads.solver import Array

__all__ = ["STATISTICS", "RowStatistics"]

STATISTICS: Final = "statistics.safetensors"
"""The file beside a run."""

SHARPNESS: Final = 10.0
"""Factor of the outputs: a least-squares fit of ones and zeros stays within about one, too little for a softmax."""


@dataclass(frozen=True, eq=False)
class RowStatistics:
    """Sums over rows of features with classes, all that a ridge regression of one-hot targets depends on.

    Attributes:
        names: C classes, in index order.
        weight: ``(C,)`` float64, rows of each class, by their weights.
        sums: ``(D,)``, sum of the rows.
        products: ``(D, D)``, sum of the rows' outer products.
        of_class: ``(C, D)``, sum of the rows of each class.
    """

    names: tuple[str, ...]
    weight: Array
    sums: Array
    products: Array
    of_class: Array

    @classmethod
    def of(cls, X: Array, y: Array, names: Sequence[str], weight: Array | None = None) -> Self:
        """Return the statistics of features ``(N, D)`` and class indices ``(N,)``, rows weighed by ``(N,)``."""
        X = np.asarray(X, dtype=np.float64)
        share = np.ones(len(X)) if weight is None else np.asarray(weight, dtype=np.float64)
        hot = np.zeros((len(names), len(X)))
        hot[y, np.arange(len(X))] = share
        return cls(tuple(names), hot.sum(axis=1), share @ X, (X * share[:, None]).T @ X, hot @ X)

    def over(self, names: Sequence[str]) -> RowStatistics:
        """Return the same sums for more classes, in another order."""
        place = {name: at for at, name in enumerate(names)}
        weight, of_class = np.zeros(len(names)), np.zeros((len(names), self.sums.size))
        chosen = [place[name] for name in self.names]
        weight[chosen], of_class[chosen] = self.weight, self.of_class
        return RowStatistics(tuple(names), weight, self.sums, self.products, of_class)

    def __add__(self, other: RowStatistics) -> RowStatistics:
        """Return the statistics of both sets of rows, for the classes of either."""
        names = order_classes((*self.names, *other.names))
        one, two = self.over(names), other.over(names)
        return RowStatistics(
            names, one.weight + two.weight, one.sums + two.sums, one.products + two.products,
            one.of_class + two.of_class,
        )  # fmt: skip

    def __sub__(self, other: RowStatistics) -> RowStatistics:
        """Return the statistics of the rows that are not in `other`, which has the same classes."""
        return RowStatistics(
            self.names, self.weight - other.weight, self.sums - other.sums, self.products - other.products,
            self.of_class - other.of_class,
        )  # fmt: skip

    def solve(self, strengths: Sequence[float]) -> list[LinearModel]:
        """Return a model on raw features for each strength.

        It minimises ``sum_i s_i |e_i - W z_i - b|^2 + strength n |W|^2`` for features z standardised over the n rows,
        one-hot targets e, and a free intercept; outputs are multiplied by `SHARPNESS`. A class without rows gets
        `MISSING_LOGIT`.
        """
        total = float(self.weight.sum())
        mean = self.sums / total
        spread = self.products - total * np.outer(mean, mean)
        scale = np.sqrt(np.maximum(np.diag(spread), 0) / total)
        scale = np.where(scale > 1e-9 * (1 + np.abs(mean)), scale, np.inf)  # a constant feature says nothing
        variance, turn = np.linalg.eigh(spread / np.outer(scale, scale) / total)
        cross = (self.of_class - np.outer(self.weight, mean)) / scale / total
        turned = cross @ turn
        models = []
        for strength in strengths:
            weight = (turned / (np.maximum(variance, 0) + strength)) @ turn.T / scale
            bias = self.weight / total - weight @ mean
            absent = self.weight <= 0
            weight, bias = SHARPNESS * weight, np.where(absent, MISSING_LOGIT, SHARPNESS * bias)
            models.append(LinearModel(weight, bias))
        return models

    def save(self, run: Path, facts: Mapping[str, Any]) -> None:
        """Write the file beside a run, with facts as JSON values. Raises `StorageError`."""
        tensors = {name: torch.from_numpy(np.ascontiguousarray(getattr(self, name)))
                   for name in ("weight", "sums", "products", "of_class")}  # fmt: skip
        metadata = {"classes": json.dumps(self.names), "facts": json.dumps(dict(facts))}
        atomic_write(run / STATISTICS, save(tensors, metadata=metadata))

    @classmethod
    def read(cls, run: Path) -> tuple[Self, dict[str, Any]]:
        """Return the statistics beside a run, and the facts.

        Raises:
            CheckpointError: There are none, or they are damaged.
        """
        path = run / STATISTICS
        if not path.is_file():
            raise CheckpointError(
                f"{path}: missing - expected a run of `transferkit probe --classifier ridge`, which keeps what adding "
                "classes and pictures needs"
            )
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                names, facts = json.loads(metadata["classes"]), json.loads(metadata["facts"])
                parts = {name: file.get_tensor(name).numpy() for name in ("weight", "sums", "products", "of_class")}
            statistics = cls(tuple(map(str, names)), **parts)
            width = statistics.sums.size
            if statistics.products.shape != (width, width) or statistics.of_class.shape != (len(names), width):
                raise ValueError("the tables do not fit each other")
            if not all(np.isfinite(part).all() for part in parts.values()):
                raise ValueError("a number is not finite")
        except (KeyError, TypeError, ValueError, SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path}: cannot be read ({error}) - copy it again, or run `transferkit probe` again"
            ) from error
        return statistics, dict(facts)
