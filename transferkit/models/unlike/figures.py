"""How well a score tells pictures that belong to no class from those that do."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["separation"]

TPR = 0.95


def separation(known: npt.NDArray[Any], other: npt.NDArray[Any]) -> dict[str, float]:
    """Return ``auroc`` and ``fpr95`` of a score that is higher for pictures that belong to no class.

    Args:
        known: ``(N,)``, scores of pictures of the model's own kind, at least one.
        other: ``(M,)``, of pictures that belong to no class, at least one.

    Returns:
        ``auroc``: how often one of the others scores higher than one of the known ones, ties by half. ``fpr95``: the
        share of the others that is still let through where at least 95 % of the known pictures are (Hendrycks and
        Gimpel 2017, *A Baseline for Detecting Misclassified and Out-of-Distribution Examples*, and all who followed).
    """
    from sklearn.metrics import roc_auc_score

    truth = np.concatenate((np.zeros(len(known)), np.ones(len(other))))
    limit = np.sort(known)[int(np.ceil(TPR * len(known))) - 1]
    return {
        "auroc": float(roc_auc_score(truth, np.concatenate((known, other)))),
        "fpr95": float((other <= limit).mean()),
    }
