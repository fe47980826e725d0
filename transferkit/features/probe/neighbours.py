"""Nearest neighbours on features: a weighted vote of the training rows that point the same way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from transferkit.features.linear.logistic import Standardiser
from transferkit.models.heads.solver import Array

__all__ = ["TEMPERATURE", "Neighbours"]

TEMPERATURE = 0.07
"""Of the votes: the value of Wu et al. 2018 and of DINO (Caron et al. 2021)."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """A weighted vote of the nearest training rows, by cosine on standardised features.

    The `k` rows with the largest cosine vote for their class with ``exp(cosine / temperature)`` (Wu et al. 2018; Caron
    et al. 2021). Unlike theirs the features are standardised first: after a ReLU, raw ones all point much the same way.

    Attributes:
        standardiser: Of the training rows.
        rows: (N, D) float32, standardised, then scaled to length 1.
        labels: (N,) int64 in [0, num_classes).
        k: Neighbours that vote, in [1, N].
        temperature: Of the vote, above 0.
        num_classes: C.
    """

    standardiser: Standardiser
    rows: Array
    labels: Array
    k: int
    temperature: float
    num_classes: int

    @classmethod
    def fit(cls, X: Array, y: Array, num_classes: int, *, k: int, temperature: float = TEMPERATURE) -> Self:
        """Keep the rows of features (N, D) with labels (N,)."""
        standardiser = Standardiser.fit(X)
        rows = _unit(standardiser.transform(X.astype(np.float32)))
        return cls(standardiser, rows, y.astype(np.int64), k, temperature, num_classes)

    def probs(self, X: Array) -> Array:
        """Return the shares of the vote (N, C) for raw features (N, D); rows sum to 1."""
        return self.votes(X, (self.k,))[0]

    def votes(self, X: Array, ks: Sequence[int]) -> list[Array]:
        """Return what `probs` would be for each of several numbers of neighbours, from one search."""
        from sklearn.neighbors import NearestNeighbors

        queries = _unit(self.standardiser.transform(X.astype(np.float32)))
        # On rows of length 1 the Euclidean order is that of the cosine, and scikit-learn searches it faster.
        search = NearestNeighbors(n_neighbors=max(ks), algorithm="brute").fit(self.rows)
        distance, nearest = search.kneighbors(queries)
        behind = np.square(distance) - np.square(distance[:, :1])  # twice what the cosine lacks to the nearest row's
        vote = np.exp(-behind / (2 * self.temperature))
        voted = self.labels[nearest]
        result = []
        for k in ks:
            shares = np.zeros((len(X), self.num_classes))
            np.add.at(shares, (np.arange(len(X))[:, None], voted[:, :k]), vote[:, :k])
            result.append(shares / shares.sum(axis=1, keepdims=True))
        return result


def _unit(X: Array) -> Array:
    """Scale rows to length 1; a row of zeros (all features at their mean) stays as it is."""
    length = np.linalg.norm(X, axis=1, keepdims=True)
    return np.asarray(X / np.where(length > 0, length, 1))
