"""Prediction sets of stated coverage and thresholds of stated precision for a calibrated model.

Both are read off held-out pictures, of which a model stores four numbers each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from transferkit.core.errors import CheckpointError, ConfigError

__all__ = ["HeldOut", "cross_fitted_sets", "least_pictures"]

MOST = 20_000
"""Held-out pictures that a model stores at most; a quantile of so many is known to 0.002 or better."""
DIGITS = 6
MIN_PICTURES = 10

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class HeldOut:
    """Probabilities of held-out pictures, each from a calibration that was fitted without the picture.

    Probabilities are rounded down to 6 significant digits: a threshold made of one never shuts out its own picture.

    Attributes:
        label: N true class indices.
        predicted: N indices of the most probable classes.
        p_label: N probabilities of the true classes.
        p_predicted: N probabilities of the most probable classes.
        num_classes: C.
    """

    label: tuple[int, ...]
    predicted: tuple[int, ...]
    p_label: tuple[float, ...]
    p_predicted: tuple[float, ...]
    num_classes: int

    @classmethod
    def of(cls, probs: Tensor, targets: Tensor, *, seed: int = 0) -> Self:
        """Return the record of probabilities ``(N, C)`` and labels ``(N,)``: 20,000 pictures at most."""
        classes = probs.shape[1]
        if len(targets) > MOST:
            drawn = np.random.default_rng(seed).choice(len(targets), MOST, replace=False)
            rows = torch.from_numpy(np.sort(drawn))
            probs, targets = probs[rows], targets[rows]
        best, predicted = probs.max(dim=1)
        own = probs.gather(1, targets[:, None]).squeeze(1)
        return cls(
            tuple(targets.tolist()), tuple(predicted.tolist()), _floor(own.numpy()), _floor(best.numpy()), classes
        )  # fmt: skip

    def set_threshold(self, coverage: float) -> float:
        """Return the probability from which on a class belongs to the prediction set; see `Calibration.set_threshold`.

        Raises:
            ConfigError: `coverage` is not in (0, 1).
        """
        return _quantile(np.asarray(self.p_label), _rate("coverage", coverage))

    def class_thresholds(self, precision: float) -> tuple[float | None, ...]:
        """Return the least probability to trust, per class; see `Calibration.class_thresholds`.

        Raises:
            ConfigError: `precision` is not in (0, 1).
        """
        least, rate = least_pictures(precision), _rate("precision", precision)
        # Whole numbers, so that 19 of 20 are 0.95 exactly.
        needed = np.array([math.ceil(rate * count) for count in range(1, len(self.label) + 1)])
        label, predicted, sure = np.asarray(self.label), np.asarray(self.predicted), np.asarray(self.p_predicted)
        thresholds: list[float | None] = []
        for index in range(self.num_classes):
            mine = np.flatnonzero(predicted == index)
            order = mine[np.argsort(-sure[mine], kind="stable")]
            values, right = sure[order], np.cumsum(label[order] == index)
            last_of_equals = np.append(values[1:] != values[:-1], True)[: len(order)]
            enough = (right >= needed[: len(order)]) & (np.arange(len(order)) + 1 >= least)
            good = np.flatnonzero(enough & last_of_equals)
            thresholds.append(float(values[good[-1]]) if len(good) else None)
        return tuple(thresholds)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; the numbers of a column in one string, for a file that can still be read."""
        columns = {name: getattr(self, name) for name in ("label", "predicted", "p_label", "p_predicted")}
        return {"num_classes": self.num_classes} | {
            name: " ".join(f"{value:.{DIGITS}g}" if isinstance(value, float) else str(value) for value in column)
            for name, column in columns.items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return what `to_dict` gave.

        Raises:
            CheckpointError: It is not that.
        """
        try:
            label, predicted = (tuple(map(int, values[name].split())) for name in ("label", "predicted"))
            p_label, p_predicted = (tuple(map(float, values[name].split())) for name in ("p_label", "p_predicted"))
            classes = int(values["num_classes"])
            if len({len(label), len(predicted), len(p_label), len(p_predicted)}) != 1 or not label:
                raise ValueError("columns of different length, or empty")
            if not all(0 <= index < classes for index in (*label, *predicted)):
                raise ValueError(f"a class index outside [0, {classes})")
            if not all(0.0 <= value <= 1.0 for value in (*p_label, *p_predicted)):
                raise ValueError("a probability outside [0, 1]")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"calibration: its held_out cannot be read ({error}) - run `transferkit calibrate` again"
            ) from error
        return cls(label, predicted, p_label, p_predicted, classes)


def least_pictures(precision: float) -> int:
    """Return how many pictures must stand behind a threshold: 10, or as many as allow for one mistake, if more.

    Raises:
        ConfigError: `precision` is not in (0, 1).
    """
    return max(MIN_PICTURES, math.ceil(1 / (1 - _rate("precision", precision))))


def cross_fitted_sets(probs: Tensor, targets: Tensor, folds: Array, coverage: float) -> dict[str, float]:
    """Return coverage and size of prediction sets, measured on pictures that their threshold does not come from.

    Args:
        probs: ``(N, C) float32``, cross-fitted.
        targets: ``(N,) int64`` in [0, C).
        folds: ``(N,)``, the fold of each picture; its threshold comes from the other folds.
        coverage: That the sets are made for, in (0, 1).

    Returns:
        ``covered``, the share of sets that hold the true class; ``size``, their mean number of classes; ``single``, the
        share with exactly one class.
    """
    rate = _rate("coverage", coverage)
    own = probs.gather(1, targets[:, None]).squeeze(1).numpy()
    covered, sizes = np.zeros(len(own), dtype=bool), np.zeros(len(own), dtype=np.int64)
    for fold in np.unique(folds):
        held = folds == fold
        threshold = _quantile(own[~held], rate)
        covered[held] = own[held] >= threshold
        sizes[held] = (probs[torch.from_numpy(held)] >= threshold).sum(dim=1).numpy()
    return {"covered": float(covered.mean()), "size": float(sizes.mean()), "single": float((sizes == 1).mean())}


def _quantile(own: Array, coverage: Fraction) -> float:
    """Return 1 minus the ceil((n + 1) coverage)-th smallest of the scores ``1 - own``; 0 where there is no such one."""
    rank = math.ceil((len(own) + 1) * coverage)
    return 0.0 if rank > len(own) else float(np.sort(own)[len(own) - rank])


def _rate(name: str, value: float) -> Fraction:
    """Return a rate as the decimal number that was written: in floating point, 0.07 x 100 is more than 7."""
    if not 0.0 < value < 1.0:
        raise ConfigError(f"{name} is {value}, expected a rate in (0, 1), such as 0.95")
    return Fraction(str(float(value)))


def _floor(values: Sequence[float] | Array) -> tuple[float, ...]:
    """Round probabilities down to 6 significant digits; what is below 1e-12 loses digits."""
    exact = np.asarray(values, dtype=np.float64)
    scale = 10.0 ** (DIGITS - 1 - np.floor(np.log10(np.maximum(exact, 1e-12))))
    return tuple((np.floor(exact * scale) / scale).tolist())
