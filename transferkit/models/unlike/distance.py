"""The distance of a picture's features from those of the training pictures, as a module that travels with the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from transferkit.core.errors import CheckpointError

__all__ = ["LEAST", "SAMPLED", "TrainingDistance", "sample_places"]

LEAST: Final = 10
"""Held-out pictures below which a share of them says nothing."""

SAMPLED: Final = 500
"""Held-out pictures, at most, whose features are kept for the comparison of whole folders."""

QUANTILES: Final = 1000
"""Distances of held-out pictures that are kept, at most."""

METHOD: Final = "mahalanobis++"

TIES: Final = 1e-4
"""Share by which two distances may differ and count as equal: a held-out picture has its own distance among those that
are kept, and another batch or engine rounds it otherwise."""


class TrainingDistance(nn.Module):
    """Squared Mahalanobis distance of a picture from the nearest class, on features of length 1.

    Mueller and Hein 2025 (*Mahalanobis++: Improving OOD Detection via Feature Normalization*), after Lee et al. 2018
    (*A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks*): the classes have
    means of their own and share one covariance. Where answers are no classes there is one mean.

    The covariance lies here as a matrix that makes it the identity, and features are centred before they meet it: so
    float32 is enough, in every engine and format.

    Args:
        groups: Classes that have training pictures, G; 1 where answers are no classes.
        width: Of the features, D.
        sampled: Held-out pictures whose features are kept.

    Attributes:
        facts: What `model.json` says of how it came about, as plain values; see `to_dict`.

    Shape: ``(B, D)`` -> ``(B, 1)``, at least 0.
    """

    centre: Tensor
    whitening: Tensor
    means: Tensor
    sample: Tensor
    held_out: Tensor

    def __init__(self, groups: int, width: int, sampled: int = 0) -> None:
        super().__init__()
        self.facts: dict[str, Any] = {}
        self._ordered = np.zeros(0, dtype=np.float32)
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("whitening", torch.eye(width))
        self.register_buffer("means", torch.zeros(groups, width))
        self.register_buffer("sample", torch.zeros(sampled, width, dtype=torch.float16))
        self.register_buffer("held_out", torch.zeros(0), persistent=False)  # `model.json` has it

    def forward(self, features: Tensor) -> Tensor:
        """Return distances ``(B, 1) float32`` of features ``(B, D)``."""
        rows = (functional.normalize(features.float(), dim=1) - self.centre) @ self.whitening
        squares = rows.square().sum(dim=1, keepdim=True) + self.means.square().sum(dim=1)
        return (squares - 2.0 * (rows @ self.means.T)).amin(dim=1, keepdim=True).clamp_min(0.0)

    def share(self, distances: Tensor) -> Tensor:
        """Return the share of held-out pictures that are nearer, ``(B,)`` in [0, 1], for distances ``(B, 1)``."""
        return 1.0 - (self.held_out >= distances * (1 - TIES)).float().mean(dim=1)  # so that NaN is beyond all

    def nearer(self, distance: float) -> float:
        """Return the share of held-out pictures that are nearer than one distance; what is not finite is beyond all."""
        return float(np.searchsorted(self._ordered, np.float32(distance * (1 - TIES))) / len(self._ordered))

    def hold_out(self, distances: Tensor, features: Tensor) -> Self:
        """Remember held-out pictures, by which a distance is large or small.

        Args:
            distances: ``(N,)`` or ``(N, 1)``, of at least `LEAST` pictures.
            features: Of some of them, ``(S, D)``, for the comparison of whole folders.

        Returns:
            Itself.
        """
        ordered = distances.detach().flatten().double().cpu().sort().values.numpy()
        if len(ordered) > QUANTILES:
            ordered = ordered[((np.arange(QUANTILES) + 0.5) / QUANTILES * len(ordered)).astype(np.int64)]
        self.facts["held_out"] = len(distances)
        self.facts["quantiles"] = " ".join(f"{value:.7g}" for value in ordered)
        self._set(_numbers(self.facts["quantiles"]))
        self.sample = functional.normalize(features.float(), dim=1).half().to(self.centre.device)
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for `model.json`: sizes, what the statistics come from, and quantiles in one string."""
        groups, width = self.means.shape
        return {"method": METHOD, "groups": groups, "features": width, "sample": len(self.sample), **self.facts}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return a module that the tensors of a product fit into.

        Raises:
            CheckpointError: `values` are no `to_dict`.
        """
        try:
            if values["method"] != METHOD:
                raise ValueError(f"method {values['method']!r}, expected {METHOD!r}")
            module = cls(int(values["groups"]), int(values["features"]), int(values["sample"]))
            quantiles = _numbers(values["quantiles"])
            if not len(quantiles) or not np.isfinite(quantiles).all() or (np.diff(quantiles) < 0).any():
                raise ValueError("quantiles that do not rise")
        except (AttributeError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"unlike_training cannot be read ({error}) - was it edited? Copy it again") from error
        sizes = ("method", "groups", "features", "sample")
        module.facts = {name: value for name, value in values.items() if name not in sizes}
        module._set(quantiles)
        return module

    def _set(self, quantiles: npt.NDArray[np.float64]) -> None:
        self._ordered = quantiles.astype(np.float32)  # as the network compares them, and without waiting for a GPU
        self.held_out = torch.from_numpy(self._ordered).to(self.centre.device)


def sample_places(count: int, *, seed: int = 0) -> npt.NDArray[np.int64]:
    """Return which of so many pictures stand for all of them, `SAMPLED` at most, in order."""
    drawn = np.random.default_rng(seed).permutation(count)[:SAMPLED]
    return np.sort(drawn).astype(np.int64)


def _numbers(text: str) -> npt.NDArray[np.float64]:
    return np.array(text.split(), dtype=np.float64)
