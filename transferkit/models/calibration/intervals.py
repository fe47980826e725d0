"""Intervals of numbers: split-conformal prediction from the errors on held-out pictures."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

import numpy as np
import torch
from torch import Tensor

from transferkit.core.errors import CheckpointError, ConfigError, TransferkitWarning

__all__ = ["METHODS", "NumberCalibration", "cannot_make_intervals", "fit_intervals", "half_width"]

METHODS: Final = ("conformal",)
MIN_PICTURES: Final = 10
MOST: Final = 1000
"""Errors that are kept of a target; of more, evenly spaced ones of their order."""


@dataclass(frozen=True)
class NumberCalibration:
    """The errors of a model on held-out pictures.

    Attributes:
        errors: Of each target, sorted distances of prediction and truth, in its own unit.
        fitted_on: The pictures, in words.
        figures: ``n``, how many; predictions stay what they were.
    """

    errors: tuple[tuple[float, ...], ...]
    fitted_on: str | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    method: str = "conformal"
    folds: int = 0
    temperature: float = 1.0
    covers: bool = True

    @property
    def facts(self) -> Mapping[str, Any]:
        """The errors."""
        return {"errors": [list(errors) for errors in self.errors]}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for `model.json`; the errors stand in its spec."""
        return {"method": self.method, "fitted_on": self.fitted_on, "figures": dict(self.figures),
                "errors": [list(errors) for errors in self.errors]}  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return what `to_dict` gave.

        Raises:
            CheckpointError: It is not that.
        """
        try:
            errors = tuple(tuple(map(float, row)) for row in values["errors"])
            if values["method"] not in METHODS:
                raise ValueError(f"method is {values['method']!r}")
            if any(not math.isfinite(error) or error < 0 for row in errors for error in row):
                raise ValueError("an error is no number of at least 0")
            figures = {str(name): float(value) for name, value in values["figures"].items()}
            return cls(errors, values["fitted_on"], figures)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"calibration: cannot be read ({type(error).__name__}: {error}) - run `transferkit calibrate` again"
            ) from error


def half_width(errors: Sequence[float], coverage: float) -> float | None:
    """Return how far an interval reaches to both sides of a prediction.

    Split conformal prediction with the distance as score (Lei et al. 2018, algorithm 2; Angelopoulos and Bates 2021):
    the ``ceil((n + 1) coverage)``-th smallest of n errors. Intervals of pictures like those hold the truth at least at
    the rate `coverage`, on average over pictures; all are of one width.

    Args:
        errors: Sorted, of held-out pictures.
        coverage: In (0, 1).

    Returns:
        The distance; ``None`` with fewer pictures than ``coverage / (1 - coverage)``, where no finite one will do.
    """
    place = math.ceil((len(errors) + 1) * coverage)
    return float(errors[place - 1]) if 1 <= place <= len(errors) else None


def fit_intervals(
    predictions: Tensor, targets: Tensor, *, method: str = "auto", fitted_on: str = "val"
) -> NumberCalibration | None:
    """Measure a model's errors on held-out pictures; ``None`` where there is nothing to go by, with a warning.

    Args:
        predictions: ``(N, T)``, in the targets' own units.
        targets: ``(N, T)``.
        method: One of `METHODS`, or ``"auto"``.
        fitted_on: The pictures, in words.

    Raises:
        ConfigError: There is no such method.
    """
    method = METHODS[0] if method == "auto" else method
    if method not in METHODS:
        raise ConfigError(f"--calibrate is {method!r}, expected conformal, auto or none for numbers")
    reason = cannot_make_intervals(predictions, targets)
    if reason is not None:
        warnings.warn(f"predictions have no intervals: {reason}", TransferkitWarning, stacklevel=2)
        return None
    off = (predictions.double() - targets.double()).abs().sort(dim=0).values.T.numpy()
    if off.shape[1] > MOST:  # rounded up, so that the intervals stay on the safe side
        off = off[:, np.ceil(np.linspace(0, off.shape[1] - 1, MOST)).astype(int)]
    figures = {"n": float(len(targets))}
    return NumberCalibration(tuple(tuple(row) for row in off.tolist()), fitted_on, figures)


def cannot_make_intervals(predictions: Tensor, targets: Tensor) -> str | None:
    """Return why nothing can be measured on these pictures, for a sentence; ``None`` where it can."""
    if len(targets) < MIN_PICTURES:
        return f"{len(targets)} held-out pictures are too few, expected at least {MIN_PICTURES}"
    if not bool(torch.isfinite(predictions).all()):
        return "the model returns NaN or infinity for held-out pictures"
    return None
