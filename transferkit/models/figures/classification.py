"""The figures of a classifier, with bootstrap intervals; probabilities go in, never logits.

What a split cannot tell is ``None``: a class without pictures has no recall, and no zero stands in for it. All sums are
in double precision.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from transferkit.core.errors import ConfigError
from transferkit.models.figures.bootstrap import RESAMPLES, drawn_weights, known_value, percentile_intervals
from transferkit.models.figures.numbers import weighted_kappa

__all__ = [
    "classification_metrics",
    "confidence_bins",
    "confidence_metrics",
    "confusion_matrix",
    "negative_log",
    "reliability_bins",
]

ECE_BINS = 15
CONFUSION_LIMIT = 1000  # classes; a full matrix of 10,000 classes would take 800 MB

Array = npt.NDArray[Any]


def classification_metrics(
    probs: Tensor, targets: Tensor, class_names: Sequence[str], *, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Return accuracy and its relatives for one split.

    Args:
        probs: ``(N, C) float32``, each row summing to 1.
        targets: ``(N,) int64 in [0, C)``.
        class_names: C names, in index order.
        seed: Of the bootstrap.
        resamples: Bootstrap resamples of the pictures; the 95 % intervals are their percentiles (Efron 1979).

    Returns:
        ``acc, acc_top5, balanced_acc, f1_macro, loss, ece, n``, intervals as ``acc_ci`` and so on, and ``per_class``
        with ``recall, precision, f1, n`` by name. ``acc_top5`` is ``None`` with five classes or fewer. Where the names
        are consecutive whole numbers, grades, also ``kappa``, quadratic-weighted.

    Raises:
        ConfigError: The rows are not probabilities, or there are none.
    """
    _check(probs, targets, class_names)
    targets = targets.long()
    count, classes = probs.shape
    confidence, predicted = probs.max(dim=1)
    nll = negative_log(probs.gather(1, targets[:, None]).squeeze(1))
    hits: dict[str, Array] = {"acc": (predicted == targets).double().numpy(), "loss": nll.numpy()}
    if classes > 5:
        top5 = probs.topk(5, dim=1).indices
        hits["acc_top5"] = (top5 == targets[:, None]).any(dim=1).double().numpy()
    result: dict[str, Any] = {
        "acc": float(hits["acc"].mean()),
        "acc_top5": float(hits["acc_top5"].mean()) if classes > 5 else None,
        "loss": float(nll.mean()),
        "ece": _calibration_error(confidence, predicted == targets),
        "n": count,
    }
    true, guess = targets.numpy(), predicted.numpy()
    per_class = _per_class(true, guess, classes)
    macro = _MacroFigures(true, guess, classes)
    result["balanced_acc"], result["f1_macro"] = (float(value[0]) for value in macro(np.ones((1, count))))

    grades = _grades(class_names)
    more = () if grades is None else ("kappa",)
    if grades is not None:
        result["kappa"] = known_value(float(weighted_kappa(grades[guess], grades[true], np.ones(count))))

    def statistics(weights: Array) -> Array:
        plain = [weights @ values / count for values in hits.values()]
        agreement = [] if grades is None else [[weighted_kappa(grades[guess], grades[true], row) for row in weights]]
        return np.stack([*plain, *macro(weights), *agreement], axis=1)

    blocks = map(statistics, drawn_weights(count, resamples=resamples, seed=seed, width=3 * classes))
    intervals = percentile_intervals(np.concatenate(list(blocks)))
    for name, interval in zip((*hits, "balanced_acc", "f1_macro", *more), intervals, strict=True):
        result[f"{name}_ci"] = None if np.isnan(interval[0]) else list(interval)
    result["per_class"] = {
        name: {
            "recall": known_value(per_class["recall"][index]),
            "precision": known_value(per_class["precision"][index]),
            "f1": known_value(per_class["f1"][index]) if per_class["n"][index] else None,
            "n": int(per_class["n"][index]),
        }
        for index, name in enumerate(class_names)
    }
    return result


def confusion_matrix(probs: Tensor, targets: Tensor) -> list[list[int]] | None:
    """Return counts by true class (row) and predicted class (column); ``None`` with more than 1,000 classes."""
    classes = probs.shape[1]
    if classes > CONFUSION_LIMIT:
        return None
    flat = torch.bincount(targets * classes + probs.argmax(dim=1), minlength=classes * classes)
    return flat.view(classes, classes).tolist()


def reliability_bins(probs: Tensor, targets: Tensor) -> list[dict[str, Any]]:
    """Return what a reliability diagram shows, a row per bin of confidence (Guo et al. 2017, section 2).

    The bins are those of `ece`: a bin holds its lower edge, and the last one a confidence of 1 too.

    Args:
        probs: ``(N, C) float32``, each row summing to 1.
        targets: ``(N,) int64 in [0, C)``.

    Returns:
        ``low, high, n``, mean ``confidence`` and ``accuracy`` of each bin; the last two are ``None`` in an empty one.
    """
    confidence, predicted = probs.max(dim=1)
    return confidence_bins(confidence, predicted == targets)


def confidence_bins(confidence: Tensor, right: Tensor) -> list[dict[str, Any]]:
    """Return what `reliability_bins` does, from two numbers per picture, as for `confidence_metrics`."""
    counts, sure, hits = (sums.tolist() for sums in _binned(confidence, right))
    return [
        {
            "low": number / ECE_BINS,
            "high": (number + 1) / ECE_BINS,
            "n": count,
            "confidence": sure[number] / count if count else None,
            "accuracy": hits[number] / count if count else None,
        }
        for number, count in enumerate(counts)
    ]


def confidence_metrics(label_prob: Tensor, confidence: Tensor, right: Tensor) -> dict[str, float]:
    """Return ``loss`` and ``ece`` as `classification_metrics` does, from three numbers per picture.

    Args:
        label_prob: ``(N,)``, probability of the true class.
        confidence: ``(N,)``, probability of the predicted class.
        right: ``(N,) bool``, whether the predicted class is the true one.
    """
    return {"loss": float(negative_log(label_prob).mean()), "ece": _calibration_error(confidence, right)}


def negative_log(probs: Tensor) -> Tensor:
    """Return ``-log`` of probabilities in double precision; that of 0 is finite, about 87."""
    return -probs.double().clamp_min(torch.finfo(torch.float32).tiny).log()


def _calibration_error(confidence: Tensor, right: Tensor) -> float:
    """Return the mean distance of confidence and accuracy over bins, each weighed by its pictures (ECE, in l1)."""
    counts, sure, hits = _binned(confidence, right)
    return float((sure - hits).abs().sum() / counts.sum())


def _binned(confidence: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return, by bin of confidence, the number of pictures, the sum of their confidences, and how many are right."""
    edges = torch.linspace(0, 1, ECE_BINS + 1)
    places = (torch.bucketize(confidence.float(), edges, right=True) - 1).clamp(0, ECE_BINS - 1)
    return (
        torch.bincount(places, minlength=ECE_BINS),
        torch.bincount(places, confidence.double(), ECE_BINS),
        torch.bincount(places, right.double(), ECE_BINS),
    )


def _per_class(true: Array, guess: Array, classes: int) -> dict[str, Array]:
    support = np.bincount(true, minlength=classes)
    called = np.bincount(guess, minlength=classes)
    right = np.bincount(true[true == guess], minlength=classes)
    with np.errstate(invalid="ignore"):
        return {
            "n": support,
            "recall": right / support,
            "precision": right / called,
            "f1": 2 * right / (support + called),
        }


class _MacroFigures:
    """Mean recall and mean F1 over the classes that have pictures, for any weights: all counts in one pass.

    Args:
        true: Classes ``(N,)``.
        guess: Predicted ones ``(N,)``.
        classes: Their number C.
    """

    def __init__(self, true: Array, guess: Array, classes: int) -> None:
        right = np.flatnonzero(true == guess)
        every = np.arange(len(true))
        self._rows = np.concatenate((every, every, right))
        self._places = np.concatenate((true, classes + guess, 2 * classes + true[right]))
        self._classes = classes

    def __call__(self, weights: Array) -> tuple[Array, Array]:
        """Return both, a value for each row of the weights ``(draws, N)``."""
        draws, width = len(weights), 3 * self._classes
        places = self._places + width * np.arange(draws)[:, None]
        counts = np.bincount(places.ravel(), weights[:, self._rows].ravel(), draws * width).reshape(draws, 3, -1)
        support, called, right = counts[:, 0], counts[:, 1], counts[:, 2]
        present = support > 0
        recall, f1 = np.zeros_like(support), np.zeros_like(support)
        np.divide(right, support, out=recall, where=present)
        np.divide(2 * right, support + called, out=f1, where=present)
        return recall.sum(axis=1) / present.sum(axis=1), f1.sum(axis=1) / present.sum(axis=1)


def _grades(names: Sequence[str]) -> Array | None:
    """Return the grades ``(C,)`` that class names are: at least three consecutive whole numbers; else ``None``."""
    if len(names) < 3 or not all(re.fullmatch(r"[0-9]{1,9}", name) for name in names):
        return None
    values = np.array([float(name) for name in names])
    return values if (np.diff(np.sort(values)) == 1).all() else None


def _check(probs: Tensor, targets: Tensor, class_names: Sequence[str]) -> None:
    if probs.ndim != 2 or len(probs) != len(targets) or probs.shape[1] != len(class_names):
        raise ConfigError(
            f"probs have shape {tuple(probs.shape)}, expected (N, C) with N = {len(targets)} targets and "
            f"C = {len(class_names)} class names"
        )
    if not len(targets):
        raise ConfigError("there are no predictions to measure, expected at least one")
    if bool((probs.sum(dim=1) - 1).abs().gt(1e-4).any()):
        raise ConfigError("the rows of probs do not sum to 1 - pass probabilities, logits.softmax(dim=1)")
