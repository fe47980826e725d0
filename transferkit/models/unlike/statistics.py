"""Class means and the shared covariance of training features, in double precision."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from transferkit.models.unlike.distance import TrainingDistance

__all__ = ["MOST", "choose_pictures", "fit_distance", "groups_of"]

MOST = 10_000
"""Training pictures that statistics are taken of, at most; of 2,048 features these are 164 MB in double precision."""

Array = npt.NDArray[np.float64]


def groups_of(targets: npt.NDArray[np.generic], *, classes: bool) -> npt.NDArray[np.int64]:
    """Return which mean each picture counts for, ``(N,)``.

    Args:
        targets: ``(N, ...)``.
        classes: Whether they are classes, which have a mean each; else all pictures have one.
    """
    return targets.astype(np.int64) if classes else np.zeros(len(targets), dtype=np.int64)


def choose_pictures(groups: npt.NDArray[np.int64], *, most: int = MOST, seed: int = 0) -> npt.NDArray[np.int64]:
    """Return the places of at most so many pictures, in order; drawn so that rare classes keep theirs.

    Args:
        groups: ``(N,)``.
        most: How many.
        seed: Of the draw.
    """
    if len(groups) <= most:
        return np.arange(len(groups))
    drawn = np.random.default_rng(seed).permutation(len(groups))
    by_group = drawn[np.argsort(groups[drawn], kind="stable")]
    starts = np.searchsorted(groups[by_group], groups[by_group])
    turn = np.arange(len(by_group)) - starts  # the how manieth of its class each is: first all first ones, and so on
    return np.sort(by_group[np.argsort(turn, kind="stable")[:most]])


def fit_distance(features: npt.NDArray[np.floating], groups: npt.NDArray[np.int64]) -> TrainingDistance | None:
    """Return the distance from training pictures; held-out pictures have yet to be given to it.

    The covariance is that of pictures around the means of their classes, shrunk towards a multiple of the identity as
    Ledoit and Wolf 2004 (*A well-conditioned estimator for large-dimensional covariance matrices*) have it: much
    where there are few pictures for the width of the features, hardly where there are many.

    Args:
        features: ``(N, D)`` of training pictures, as they are evaluated.
        groups: ``(N,)``, see `groups_of`.

    Returns:
        ``None`` where there is no covariance: classes of one picture each, or of equal ones.
    """
    from scipy.linalg import solve_triangular
    from sklearn.covariance import ledoit_wolf

    rows = features.astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    present, places = np.unique(groups, return_inverse=True)
    means = np.stack([rows[places == place].mean(axis=0) for place in range(len(present))])
    centre = means.mean(axis=0)
    free = len(rows) - len(present)
    rows -= means[places]
    if free < 2 or np.square(rows).sum() < 1e-12 * len(rows):
        return None
    covariance, shrinkage = ledoit_wolf(rows, assume_centered=True)
    covariance *= len(rows) / free  # the means took a degree of freedom each
    # L L' = covariance, and rows times the inverse of L' have the identity for their covariance.
    lower = np.linalg.cholesky(covariance)
    whitening = solve_triangular(lower, np.eye(len(lower)), lower=True).T
    module = TrainingDistance(len(present), rows.shape[1])
    module.centre.copy_(torch.from_numpy(centre))
    module.whitening.copy_(torch.from_numpy(whitening))
    module.means.copy_(torch.from_numpy((means - centre) @ whitening))
    module.facts = {"pictures": len(rows), "shrinkage": round(float(shrinkage), 6)}
    return module
