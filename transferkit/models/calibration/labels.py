"""Probabilities of labels that can be trusted, and the threshold from which on a picture is given each of them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from transferkit.core.errors import CheckpointError, ConfigError, TransferkitWarning
from transferkit.models.calibration.conformal import least_pictures
from transferkit.models.calibration.scaling import stratified_folds
from transferkit.models.figures.labels import THRESHOLD

__all__ = [
    "METHODS",
    "NEVER",
    "LabelCalibration",
    "best_threshold",
    "cannot_calibrate_labels",
    "fit_label_calibration",
    "precise_threshold",
]

METHODS: Final = ("temperature", "vector")
MIN_PICTURES: Final = 10
MIN_POSITIVES: Final = 5
"""Pictures with a label, and without, below which its own scale and threshold are not fitted."""
FOLDS: Final = 5

NEVER: Final = 2.0
"""The threshold of a label that no picture gets: no probability reaches it."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class LabelCalibration:
    """A fitted way from logits to probabilities of labels, and a threshold per label.

    Attributes:
        method: ``"temperature"``: one number for all logits. ``"vector"``: a scale and a bias per label (Platt 1999).
        scale: ``(C,)`` factors of the logits, above 0.
        bias: ``(C,)`` numbers added to them.
        thresholds: ``(C,)``, probabilities from which on a picture is given a label; `NEVER` for none.
        fitted_on: The pictures it was fitted on, in words.
        folds: Of the cross-fitting.
        figures: ``n, loss_before, loss_after, f1_before, f1_after``; those after are of cross-fitted probabilities, and
            F1 is the mean over labels, at 0.5 and at the thresholds.
        precision: That every threshold reaches on held-out pictures, in (0, 1); ``None``: it has the largest F1.
    """

    method: str
    scale: tuple[float, ...]
    bias: tuple[float, ...]
    thresholds: tuple[float, ...]
    fitted_on: str | None = None
    folds: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)
    temperature: float = 1.0
    covers: bool = False
    precision: float | None = None

    @property
    def facts(self) -> Mapping[str, Any]:
        """The thresholds."""
        return {"thresholds": list(self.thresholds)}

    def probs(self, logits: Tensor) -> Tensor:
        """Return probabilities ``(..., C) float32`` for logits ``(..., C)``.

        Raises:
            ConfigError: It was fitted for another number of labels.
        """
        if logits.shape[-1] != len(self.scale):
            raise ConfigError(
                f"logits have shape {tuple(logits.shape)}, expected (..., {len(self.scale)}): "
                "the calibration is of another model - run `transferkit calibrate` again"
            )
        logits = logits.float()
        return torch.sigmoid(logits * logits.new_tensor(self.scale) + logits.new_tensor(self.bias))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for `model.json`."""
        return {
            "method": self.method,
            "temperature": self.temperature,
            "scale": list(self.scale),
            "bias": list(self.bias),
            "thresholds": list(self.thresholds),
            "fitted_on": self.fitted_on,
            "folds": self.folds,
            "figures": dict(self.figures),
            **({} if self.precision is None else {"precision": self.precision}),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return what `to_dict` gave.

        Raises:
            CheckpointError: It is not that.
        """
        try:
            scale, bias, thresholds = (tuple(map(float, values[name])) for name in ("scale", "bias", "thresholds"))
            fitted = cls(
                str(values["method"]), scale, bias, thresholds, values["fitted_on"], int(values["folds"]),
                {str(name): float(value) for name, value in values["figures"].items()}, float(values["temperature"]),
                precision=None if values.get("precision") is None else float(values["precision"]),
            )  # fmt: skip
            if fitted.method not in METHODS or not len(scale) == len(bias) == len(thresholds):
                raise ValueError(f"{len(scale)} scales, {len(bias)} biases, {len(thresholds)} thresholds")
            if not all(map(math.isfinite, (*scale, *bias, *thresholds))):
                raise ValueError("a number is not finite")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"calibration: cannot be read ({type(error).__name__}: {error}) - run `transferkit calibrate` again"
            ) from error
        return fitted


def fit_label_calibration(
    logits: Tensor,
    targets: Tensor,
    *,
    method: str = "auto",
    seed: int = 0,
    fitted_on: str = "val",
    precision: float | None = None,
) -> tuple[LabelCalibration | None, Tensor]:
    """Fit a calibration on held-out pictures, and return probabilities of each one that do not rest on it.

    Temperature scaling minimises the mean binary cross entropy over one factor of all logits, in [0.05, 20]; vector
    scaling over a factor and a bias per label (Platt 1999), pulled towards the identity by half the squares beside the
    sum of the log-likelihoods, and only of labels with at least 5 pictures that have and 5 that lack it. The threshold
    of a label is that of the largest F1 on cross-fitted probabilities, see `best_threshold`.

    Args:
        logits: ``(N, C) float32``.
        targets: ``(N, C)``, ones and zeros.
        method: One of `METHODS`; ``"auto"`` for the first.
        seed: Of the folds.
        fitted_on: The pictures, in words.
        precision: That every label shall have on held-out pictures, in (0, 1), see `precise_threshold`; ``None`` for
            the largest F1.

    Returns:
        The calibration, fitted on all pictures, and probabilities ``(N, C) float32``: of each picture by a calibration
        of the other folds. ``None`` and plain probabilities where there is nothing to fit on, with a warning.

    Raises:
        ConfigError: There is no such method.
    """
    method = METHODS[0] if method == "auto" else method
    if method not in METHODS:
        raise ConfigError(f"--calibrate is {method!r}, expected one of {', '.join(METHODS)} or none for labels")
    logits, targets = logits.detach().float().cpu(), targets.cpu()
    before = logits.sigmoid()
    reason = cannot_calibrate_labels(logits, targets)
    if reason is not None:
        warnings.warn(f"probabilities are not calibrated: {reason}", TransferkitWarning, stacklevel=2)
        return None, before
    x, y = logits.double().numpy(), targets.double().numpy()
    places = stratified_folds(torch.from_numpy(y.any(axis=1).astype(np.int64)), FOLDS, seed=seed)
    after = np.empty_like(x)
    for fold in np.unique(places):
        held = places == fold
        scale, bias = _fit(x[~held], y[~held], method)
        after[held] = 1 / (1 + np.exp(-(x[held] * scale + bias)))
    chosen = best_threshold if precision is None else partial(precise_threshold, precision=precision)
    thresholds = tuple(chosen(after[:, at], y[:, at]) for at in range(x.shape[1]))
    scale, bias = _fit(x, y, method)
    plain, limits = before.double().numpy(), np.array(thresholds)
    figures = {
        "n": float(len(y)), "loss_before": _loss(plain, y), "loss_after": _loss(after, y),
        "f1_before": _f1(plain >= THRESHOLD, y), "f1_after": _f1(after >= limits, y),
    }  # fmt: skip
    fitted = LabelCalibration(
        method, tuple(scale.tolist()), tuple(bias.tolist()), thresholds, fitted_on, len(np.unique(places)), figures,
        precision=precision,
    )  # fmt: skip
    if method == "temperature":
        fitted = replace(fitted, temperature=1 / float(scale[0]))
    return fitted, torch.from_numpy(after.astype(np.float32))


def cannot_calibrate_labels(logits: Tensor, targets: Tensor) -> str | None:
    """Return why nothing can be fitted on these pictures, for a sentence; ``None`` where it can."""
    if len(targets) < MIN_PICTURES:
        return f"{len(targets)} held-out pictures are too few, expected at least {MIN_PICTURES}"
    if not bool(targets.any()) or bool(targets.all()):
        return "the held-out pictures have none of the labels, or all of them"
    if not bool(torch.isfinite(logits).all()):
        return "the model returns NaN or infinity for held-out pictures"
    return None


def best_threshold(probs: Array, truth: Array) -> float:
    """Return the probability from which on giving a label has the largest F1 on held-out pictures.

    Midway between the probabilities that it parts, so that it lies on none; 0.5 with fewer than 5 pictures that have
    or lack the label. It is chosen on the pictures it is true of, so new ones do a little worse.

    Args:
        probs: ``(N,)``.
        truth: ``(N,)``, ones and zeros.
    """
    positives = truth.sum()
    if min(positives, len(truth) - positives) < MIN_POSITIVES:
        return THRESHOLD
    order = np.argsort(-probs, kind="stable")
    ranked, right = probs[order], np.cumsum(truth[order])
    count = np.arange(1, len(probs) + 1)
    f1 = 2 * right / (positives + count)
    f1[:-1][ranked[1:] == ranked[:-1]] = -1.0  # equal probabilities cannot be parted
    at = int(f1.argmax())
    below = ranked[at + 1] if at + 1 < len(ranked) else 0.0
    return float((ranked[at] + below) / 2)


def precise_threshold(probs: Array, truth: Array, *, precision: float) -> float:
    """Return the smallest probability from which on a label is right at a rate on held-out pictures.

    So many have to stand behind it as behind a threshold of a class, see `least_pictures`.

    Args:
        probs: ``(N,)``.
        truth: ``(N,)``, ones and zeros.
        precision: The rate, in (0, 1).

    Returns:
        It, midway between the probabilities that it parts; `NEVER` where no probability reaches the rate.

    Raises:
        ConfigError: `precision` is not in (0, 1).
    """
    least = least_pictures(precision)
    order = np.argsort(-probs, kind="stable")
    ranked, right = probs[order], np.cumsum(truth[order])
    count = np.arange(1, len(probs) + 1)
    good = (right >= precision * count - 1e-9) & (count >= least)
    good[:-1] &= ranked[1:] != ranked[:-1]  # equal probabilities cannot be parted
    if not good.any():
        return NEVER
    at = int(np.flatnonzero(good)[-1])
    below = ranked[at + 1] if at + 1 < len(ranked) else 0.0
    return float((ranked[at] + below) / 2)


def _fit(x: Array, y: Array, method: str) -> tuple[Array, Array]:
    """Return scales and biases ``(C,)`` of logits ``(N, C)``."""
    from scipy.optimize import minimize  # half a second, which whoever fits nothing need not wait

    scale, bias = np.ones(x.shape[1]), np.zeros(x.shape[1])
    if method == "temperature":

        def loss(log: Array) -> tuple[float, Array]:
            z = x * np.exp(log[0])
            gradient = ((1 / (1 + np.exp(-z)) - y) * z).mean()
            return float((np.logaddexp(0, z) - y * z).mean()), np.array([gradient])

        limit = math.log(20.0)
        scale *= math.exp(minimize(loss, np.zeros(1), jac=True, method="L-BFGS-B", bounds=[(-limit, limit)]).x[0])
        return scale, bias
    for at in range(x.shape[1]):
        own, truth = x[:, at], y[:, at]
        if min(truth.sum(), len(truth) - truth.sum()) < MIN_POSITIVES:
            continue

        def platt(both: Array, own: Array = own, truth: Array = truth) -> tuple[float, Array]:
            z = own * both[0] + both[1]
            off, shift = 1 / (1 + np.exp(-z)) - truth, both - (1.0, 0.0)
            value = (np.logaddexp(0, z) - truth * z).sum() + 0.5 * (shift**2).sum()
            return float(value), np.array([off @ own, off.sum()]) + shift

        scale[at], bias[at] = minimize(
            platt, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=[(1e-2, 1e2), (None, None)]
        ).x
    return scale, bias


def _loss(probs: Array, y: Array) -> float:
    clipped = probs.clip(1e-7, 1 - 1e-7)
    return float(-np.where(y > 0, np.log(clipped), np.log1p(-clipped)).mean())


def _f1(answers: Array, y: Array) -> float:
    """Return the mean F1 of the labels that have positives."""
    present = y.any(axis=0)
    f1 = 2 * (answers * y).sum(axis=0) / (answers.sum(axis=0) + y.sum(axis=0)).clip(1)
    return float(f1[present].mean())
