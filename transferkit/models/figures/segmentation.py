"""Figures of masks from the tallies of many pictures, with bootstrap intervals: sums first, ratios after.

What the pixels cannot tell is ``None``: a class that neither the truth nor the prediction has has no IoU, and is left
out of the means. A class that is predicted but is nowhere has an IoU of 0, and counts. The background is a class like
others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from transferkit.core.errors import ConfigError
from transferkit.models.figures.bootstrap import RESAMPLES, bootstrap_intervals, bounds_of, known_value
from transferkit.models.figures.classification import confidence_bins, confidence_metrics
from transferkit.models.figures.figure import Figure
from transferkit.models.figures.masks import MaskTally
from transferkit.models.figures.paired import compare_figures

__all__ = ["KEYS", "MaskCounts", "compare_masks", "mask_confidence", "mask_figures", "mask_metrics"]

WORK: Final = 2e10
"""Numbers looked at by the bootstrap at most; many classes of many pictures are resampled less often."""
LEAST: Final = 100
"""Resamples at least."""

Array = npt.NDArray[Any]


class MaskCounts:
    """The tallies of N pictures as a table of numbers that add up, for figures under many weights.

    Args:
        tallies: Of C classes.
        places: Of the classes that count, C' of them; ``None`` for all. Pixels of other classes count for nothing, and
            predictions of other classes are wrong. The loss is that of all classes.
    """

    def __init__(self, tallies: Sequence[MaskTally], places: Sequence[int] | None = None) -> None:
        at = list(range(len(tallies[0].confusion)) if places is None else places)
        self.classes = len(at)
        rows = []
        for one in tallies:
            confusion, (own, _, _) = one.confusion[at], _sampled(one)
            inner = confusion[:, at]
            rows.append(np.r_[inner.diagonal(), confusion.sum(axis=1), inner.sum(axis=0), -own.sum(), len(own)])
        self.table: npt.NDArray[np.float64] = np.array(rows, dtype=np.float64)  # whole numbers up to 2^53 are exact

    def sums(self, weights: Array) -> tuple[Array, Array, Array, float, float]:
        """Return pixels right, true and predicted by class, ``(C',)`` each, the sum of the losses, and of how many."""
        right, true, called, rest = np.split(weights @ self.table, np.arange(1, 4) * self.classes)
        return right, true, called, float(rest[0]), float(rest[1])

    def figures(self, weights: Array) -> Array:
        """Return the figures `KEYS`, then IoU and Dice of each class, ``(5 + 2 C',)``; NaN where undefined.

        Args:
            weights: ``(N,)``, how often each picture counts.
        """
        right, true, called, loss, sampled = self.sums(weights)
        of_class, whole = _ratios(right, true, called)
        mean_loss = loss / sampled if sampled else np.nan
        paired = np.column_stack([of_class["miou"], of_class["dice"]])
        return np.array([*whole, mean_loss, *paired.ravel()])


def mask_metrics(
    tallies: Sequence[MaskTally],
    names: Sequence[str],
    pixels: Sequence[int] | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Return the figures of masks as plain JSON values.

    Args:
        tallies: Of N pictures.
        names: Of C classes, in index order.
        pixels: Of each class in the training masks, ``(C,)``: the most frequent one is what `always` says; ``None``:
            the most frequent one of these pictures.
        seed: Of the bootstrap.
        resamples: Of the pictures, whole ones, since the pixels of one are alike. A single picture has no interval.

    Returns:
        ``miou`` and ``dice`` (means over the classes), ``pixel_acc``, ``balanced_acc`` (mean recall of the classes that
        are there), ``loss`` (mean negative log-likelihood of the sampled pixels: pictures count alike whatever their
        size), each with ``_ci``; ``ece`` and ``reliability`` of the sampled pixels; ``n``, pictures; ``pixels`` that
        count; ``confusion``; ``per_class`` by name: ``miou, dice``, each with ``_ci``, ``recall, precision``, ``pixels,
        predicted`` and ``n``, pictures that hold it; ``always``: what always the most frequent class gives.

    Raises:
        ConfigError: There is no picture, or the tallies are of other classes.
    """
    _check(tallies, len(names))
    counts, count = MaskCounts(tallies), len(tallies)
    ones = np.ones(count)
    values: Array = counts.figures(ones)
    intervals = [(np.nan, np.nan)] * len(values)
    if count > 1:
        resamples = min(resamples, max(LEAST, int(WORK / counts.table.size)))
        intervals = bootstrap_intervals(counts.figures, count, resamples=resamples, seed=seed)
    right, true, called, _, _ = counts.sums(ones)
    result: dict[str, Any] = {"n": count, "pixels": int(true.sum())}
    for at, key in enumerate(KEYS):
        result[key], result[f"{key}_ci"] = known_value(values[at]), bounds_of(intervals[at])
    result |= mask_confidence(tallies)
    confusion = np.zeros((len(names), len(names)), dtype=np.int64)
    holding = np.zeros(len(names), dtype=np.int64)
    for one in tallies:
        confusion += one.confusion
        holding += one.confusion.any(axis=1)
    result["confusion"] = confusion.tolist()
    of_class, _ = _ratios(right, true, called)
    result["per_class"] = {
        name: {
            **{key: known_value(of_class[key][at]) for key in of_class},
            **{
                f"{key}_ci": bounds_of(intervals[len(KEYS) + 2 * at + part])
                for part, key in enumerate(("miou", "dice"))
            },
            "n": int(holding[at]),
            "pixels": int(true[at]),
            "predicted": int(called[at]),
        }
        for at, name in enumerate(names)
    }
    usual = int(np.argmax(true if pixels is None else pixels))
    only = np.arange(len(names)) == usual
    _, guess = _ratios(true * only, true, true.sum() * only)
    result["always"] = {"class": names[usual], **{key: known_value(at) for key, at in zip(KEYS, guess, strict=False)}}
    return result


def compare_masks(
    first: Sequence[MaskTally],
    second: Sequence[MaskTally],
    classes: tuple[Sequence[str], Sequence[str]],
    *,
    names: tuple[str, str] = ("the first", "the second"),
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Compare two models on the same pictures, drawn together. Differences are first minus second.

    Args:
        first: Predictions of the model in question.
        second: Those of the one it is held against, for the same pictures in the same order.
        classes: The names of each one's classes. Pixels whose true class only one of them has count for nothing.
        names: What the models are called in the verdict.
        seed: Of the bootstrap.
        resamples: Of the pictures.

    Returns:
        As `compare_figures`, mIoU first, without a loss where the classes differ; and ``classes_left_out``.

    Raises:
        ConfigError: The two have no class in common, or their pictures or masks differ.
    """
    shared = [name for name in classes[0] if name in classes[1]]
    if not shared:
        raise ConfigError(f"{names[0]} and {names[1]} have no class in common - name another run")
    for one, own in zip((first, second), classes, strict=True):
        _check(one, len(own))
    places = [[list(own).index(name) for name in shared] for own in classes]
    sides = [MaskCounts(one, at) for one, at in zip((first, second), places, strict=True)]
    true = slice(len(shared), 2 * len(shared))
    if not np.array_equal(sides[0].table[:, true], sides[1].table[:, true]):
        raise ConfigError(
            f"expected what two models say of the same pictures, but the masks of the {len(first)} and the "
            f"{len(second)} pictures have other pixels"
        )
    left = sorted({*classes[0], *classes[1]} - set(shared))
    figures = mask_figures(dict.fromkeys(KEYS) | {"per_class": {name: dict.fromkeys(_PER_CLASS) for name in shared}})
    columns = [at for at, figure in enumerate(figures) if not left or figure.key != "loss"]
    result = compare_figures(
        partial(_some, sides[0], columns),
        partial(_some, sides[1], columns),
        [figures[at] for at in columns],
        len(first),
        names=names,
        seed=seed,
        resamples=min(resamples, max(LEAST, int(WORK / (2 * sides[0].table.size)))),
    )
    return {**result, "classes_left_out": left}


_WHOLE: Final = (
    ("miou", "Mean IoU", True, "share", "mean over the classes of intersection over union, of all pixels"),
    ("dice", "Mean Dice", True, "share", "mean over the classes of Dice (F1), of all pixels"),
    ("pixel_acc", "Pixel accuracy", True, "share", "pixels whose class is right"),
    ("balanced_acc", "Balanced accuracy", True, "share", "mean recall of the classes, each counting the same"),
    ("loss", "Log loss (NLL)", False, "nats", "mean negative log-likelihood of the true class of a pixel; 0 at best"),
    ("ece", "Calibration error (ECE)", False, "", "mean distance of stated probability and accuracy; 0 at best"),
)
KEYS: Final = tuple(key for key, *_ in _WHOLE[:-1])
"""Figures that have an interval."""
_PER_CLASS: Final = {
    "miou": ("IoU", "pixels that truth and prediction share, over those that either has"),
    "dice": ("Dice", "pixels that truth and prediction share, over the mean of what each has"),
}


def mask_figures(values: Mapping[str, Any]) -> list[Figure]:
    """Return the figures of one split, of all pixels first, from what `mask_metrics` returns."""
    figures = [
        Figure(key, label, values[key], values.get(f"{key}_ci"), higher, unit, meaning)
        for key, label, higher, unit, meaning in _WHOLE
        if key in values
    ]
    for name, row in (values.get("per_class") or {}).items():
        figures += [
            Figure(key, label, row[key], row.get(f"{key}_ci"), True, "share", meaning, of=name)
            for key, (label, meaning) in _PER_CLASS.items()
        ]
    return figures


def _some(counts: MaskCounts, columns: Sequence[int], weights: Array) -> Array:
    return counts.figures(weights)[columns]


def _ratios(right: Array, true: Array, called: Array) -> tuple[dict[str, Array], list[float]]:
    """Return figures by class, ``(C,)`` each, and the first four of `KEYS`; NaN where undefined."""
    with np.errstate(invalid="ignore"):
        of_class = {
            "miou": right / (true + called - right),
            "dice": 2 * right / (true + called),
            "recall": right / true,
            "precision": right / called,
        }
        accuracy = float(np.sum(right) / np.sum(true))
    present = true + called > 0
    means = [float(each[columns].mean()) if columns.any() else np.nan
             for each, columns in ((of_class["miou"], present), (of_class["dice"], present))]  # fmt: skip
    recall = of_class["recall"][true > 0]
    return of_class, [*means, accuracy, float(recall.mean()) if len(recall) else np.nan]


def _sampled(one: MaskTally) -> tuple[Array, Array, Array]:
    """Return, of each sampled pixel, log-probability of its class, largest probability, and whether that is right."""
    log_probs = torch.from_numpy(one.logits).double().log_softmax(dim=1).numpy()
    guess = log_probs.argmax(axis=1)
    pixels = np.arange(len(guess))
    return log_probs[pixels, one.truths], np.exp(log_probs[pixels, guess]), guess == one.truths


def mask_confidence(tallies: Sequence[MaskTally]) -> dict[str, Any]:
    """Return ``loss``, ``ece`` and ``reliability`` of the sampled pixels; ``None``, no rows, where they cannot tell."""
    own, best, right = (torch.from_numpy(np.concatenate(part)) for part in zip(*map(_sampled, tallies), strict=True))
    if not len(own) or not bool(own.isfinite().all()):
        return {"loss": None, "ece": None, "reliability": []}
    ece = confidence_metrics(own.exp(), best, right)["ece"]
    return {"loss": -float(own.mean()), "ece": ece, "reliability": confidence_bins(best, right)}


def _check(tallies: Sequence[MaskTally], classes: int) -> None:
    if not len(tallies):
        raise ConfigError("there are no predictions to measure, expected at least one")
    shapes = {one.confusion.shape for one in tallies} | {one.logits.shape[1:] * 2 for one in tallies}
    if shapes != {(classes, classes)}:
        raise ConfigError(f"masks were counted by {sorted(shapes)} classes, expected {classes} by the names")
