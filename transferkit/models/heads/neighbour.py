"""The head of a nearest-neighbour probe: it holds the training features and lets the nearest ones vote."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["KNN", "NeighbourHead"]

KNN: Final = "knn"
"""Its name in a product."""


class NeighbourHead(nn.Module):
    """Votes of the ``k`` most similar training pictures, weighted by ``exp(cosine / temperature)``.

    Wu et al. 2018 (*Unsupervised Feature Learning via Non-Parametric Instance Discrimination*, section 3.4) and Caron
    et al. 2021 (DINO), on standardised features. Logits are logarithms of the shares of the vote, so their softmax is
    the shares. It has no parameters: nothing in it is trained.

    Args:
        in_features: Width D of the features.
        num_classes: Number of classes C.
        rows: Training pictures N.
        k: Neighbours that vote.
        temperature: Of the vote, above 0.

    Shape: ``(B, D)`` -> ``(B, C)``.
    """

    mean: Tensor
    scale: Tensor
    rows: Tensor
    labels: Tensor

    def __init__(self, in_features: int, num_classes: int, *, rows: int, k: int, temperature: float) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.k = k
        self.temperature = temperature
        self.register_buffer("mean", torch.zeros(in_features))
        self.register_buffer("scale", torch.ones(in_features))
        self.register_buffer("rows", torch.zeros(rows, in_features))
        self.register_buffer("labels", torch.zeros(rows, dtype=torch.int64))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(B, num_classes)``."""
        cosine, nearest = (self._queries(features) @ self.rows.T).topk(self.k, dim=1)
        votes = ((cosine - cosine[:, :1]) / self.temperature).exp()
        shares = votes.new_zeros(len(votes), self.num_classes).scatter_add_(1, self.labels[nearest], votes)
        shares = shares / shares.sum(dim=1, keepdim=True)
        return shares.clamp_min(torch.finfo(torch.float32).tiny).log()

    def evidence(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return ``log sum exp(cosine / temperature)`` over the training pictures of a class, ``(B,)``.

        The vote before it is cut to k neighbours and made a share: once all k agree the share is constant, and its
        gradient zero.

        Args:
            features: ``(B, D)``.
            labels: The class of each, ``(B,)``.
        """
        votes = self._queries(features) @ self.rows.T / self.temperature
        return votes.masked_fill(self.labels != labels[:, None], -math.inf).logsumexp(dim=1)

    def _queries(self, features: Tensor) -> Tensor:
        return functional.normalize((features.float() - self.mean) / self.scale, dim=1)
