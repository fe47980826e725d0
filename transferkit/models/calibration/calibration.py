"""Probabilities that can be trusted: temperature and vector scaling of logits, fitted on held-out pictures."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

import numpy as np
import torch
from torch import Tensor

from transferkit.core.errors import CheckpointError, ConfigError, TransferkitWarning
from transferkit.models.calibration.conformal import HeldOut
from transferkit.models.calibration.scaling import centred, fit_temperature, fit_vector, stratified_folds
from transferkit.models.figures.classification import confidence_metrics

__all__ = ["METHODS", "Calibration", "cannot_calibrate", "fit_calibration"]

METHODS: Final = ("none", "temperature", "vector")
MIN_PICTURES: Final = 10

FOLDS: Final = 5
"""Of the cross-fitting; at most one per two pictures are made."""


@dataclass(frozen=True)
class Calibration:
    """A fitted way from logits to probabilities.

    Attributes:
        method: ``"none"``: the plain softmax. ``"temperature"``: one number for all logits, which changes no label.
            ``"vector"``: a scale and a bias per class, which may change labels.
        temperature: Divides the logits; 1 unless the method is ``"temperature"``.
        scale: C factors, for ``"vector"``.
        bias: C numbers added to the scaled logits, for ``"vector"``.
        fitted_on: The pictures it was fitted on, in words.
        folds: Of the cross-fitting.
        held_out: Cross-fitted probabilities of those pictures, for `set_threshold` and `class_thresholds`.
        figures: ``n, ece_before, ece_after, loss_before, loss_after``; those after are of cross-fitted probabilities.
    """

    method: str = "none"
    temperature: float = 1.0
    scale: tuple[float, ...] = ()
    bias: tuple[float, ...] = ()
    fitted_on: str | None = None
    folds: int = 0
    held_out: HeldOut | None = None
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def covers(self) -> bool:
        """Whether there are held-out probabilities, of which conformal sets are made."""
        return self.held_out is not None

    @property
    def facts(self) -> Mapping[str, Any]:
        """Nothing: predictions say all."""
        return {}

    def probs(self, logits: Tensor) -> Tensor:
        """Return probabilities ``(..., C) float32`` for logits ``(..., C)``.

        Raises:
            ConfigError: It was fitted for another number of classes.
        """
        logits = logits.float()
        if self.method == "vector":
            if logits.shape[-1] != len(self.scale):
                raise ConfigError(
                    f"logits have shape {tuple(logits.shape)}, expected (..., {len(self.scale)}): "
                    "the calibration is of another model - run `transferkit calibrate` again"
                )
            scale, bias = logits.new_tensor(self.scale), logits.new_tensor(self.bias)
            logits = centred(logits) * scale + bias
        elif self.method == "temperature":
            logits = logits / self.temperature
        return logits.softmax(dim=-1)

    def set_threshold(self, coverage: float) -> float:
        """Return the probability from which on a class belongs to a picture's prediction set.

        Split conformal prediction with the score ``1 - p_label`` (LAC, Sadinle, Lei and Wasserman 2019; Angelopoulos
        and Bates 2021, section 1): the threshold is 1 minus the ``ceil((n + 1) coverage)``-th smallest score of n
        held-out pictures. Sets of pictures like those hold the true class at least at the rate `coverage`: on average
        over pictures, not class by class. A set may be empty. The scores are cross-fitted, so the guarantee is that of
        the paper up to the difference between the calibrations of the folds and the one of all pictures.

        Args:
            coverage: In (0, 1).

        Returns:
            The threshold; 0, which takes every class, with fewer pictures than ``coverage / (1 - coverage)``.

        Raises:
            ConfigError: `coverage` is out of range, or there are no held-out pictures.
        """
        return self._held_out().set_threshold(coverage)

    def class_thresholds(self, precision: float) -> tuple[float | None, ...]:
        """Return, per class, the least probability of a predicted class from which on it can be trusted.

        The rule: of the held-out pictures predicted as the class with that probability or more, the share `precision`
        or more are of the class, and there are at least 10 of them and at least ``1 / (1 - precision)``, so that one
        mistake among them would be allowed. The least such probability is taken. It is chosen on the pictures it is
        true of, so new ones do a little worse.

        Args:
            precision: In (0, 1).

        Returns:
            C probabilities; ``None`` where no threshold will do: the class is never to be trusted.

        Raises:
            ConfigError: `precision` is out of range, or there are no held-out pictures.
        """
        return self._held_out().class_thresholds(precision)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for `model.json`."""
        return {
            "method": self.method,
            "temperature": self.temperature,
            "scale": list(self.scale),
            "bias": list(self.bias),
            "fitted_on": self.fitted_on,
            "folds": self.folds,
            "figures": dict(self.figures),
            "held_out": None if self.held_out is None else self.held_out.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return what `to_dict` gave.

        Raises:
            CheckpointError: It is not that.
        """
        try:
            held_out = None if values["held_out"] is None else HeldOut.from_dict(values["held_out"])
            calibration = cls(
                method=str(values["method"]),
                temperature=float(values["temperature"]),
                scale=tuple(map(float, values["scale"])),
                bias=tuple(map(float, values["bias"])),
                fitted_on=None if values["fitted_on"] is None else str(values["fitted_on"]),
                folds=int(values["folds"]),
                held_out=held_out,
                figures={str(name): float(value) for name, value in values["figures"].items()},
            )
            calibration._check()
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"calibration: cannot be read ({type(error).__name__}: {error}) - run `transferkit calibrate` again"
            ) from error
        return calibration

    def _check(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method is {self.method!r}, expected one of {', '.join(METHODS)}")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature is {self.temperature}, expected a number above 0")
        if not all(map(math.isfinite, (*self.scale, *self.bias, *self.figures.values()))):
            raise ValueError("a scale, bias or figure is not finite")
        if len(self.scale) != len(self.bias) or (self.method == "vector") != bool(self.scale):
            raise ValueError(f"{len(self.scale)} scales and {len(self.bias)} biases for method {self.method!r}")

    def _held_out(self) -> HeldOut:
        if self.held_out is None:
            raise ConfigError("the model has no held-out pictures to go by - run `transferkit calibrate RUN DATA`")
        return self.held_out


def fit_calibration(
    logits: Tensor,
    targets: Tensor,
    *,
    method: str = "temperature",
    seed: int = 0,
    fitted_on: str = "val",
) -> tuple[Calibration, Tensor]:
    """Fit a calibration on held-out pictures, and return probabilities of each one that do not rest on it.

    Temperature scaling minimises the negative log-likelihood over one number, vector scaling over a scale and a bias
    per class (Guo et al. 2017, section 4.2). Where we differ:

    - A temperature lies in [0.05, 20]. When every picture is predicted right, the likelihood has no maximum (the
      temperature would go to 0). Then it is the one that makes the mean confidence ``(n + 1) / (n + 2)``, Laplace's
      rule of succession, and 1 where the model is more confident than that already.
    - Vector scaling takes logits relative to their mean over the classes, which no softmax sees, and is pulled
      towards the identity by ``0.5 (|scale - 1|^2 + |bias|^2)`` beside the sum of the log-likelihoods: with a few
      pictures per class it would overfit.

    Args:
        logits: ``(N, C) float32``.
        targets: ``(N,) int64`` in [0, C).
        method: ``"auto"`` or ``"temperature"``, ``"vector"`` or ``"none"``.
        seed: Of the folds.
        fitted_on: The pictures, in words.

    Returns:
        The calibration, fitted on all pictures, and probabilities ``(N, C) float32``: of each picture by a calibration
        fitted on the other folds. Whether that helped is in ``figures``; nothing is taken back where it did not. Where
        there is nothing to fit on, see `cannot_calibrate`, the method is ``"none"``, with a warning.

    Raises:
        ConfigError: An argument is out of range.
    """
    method = METHODS[1] if method == "auto" else method
    if method not in METHODS:
        raise ConfigError(f"method is {method!r}, expected one of {', '.join(METHODS)}")
    _check_shapes(logits, targets)
    logits, targets = logits.detach().float().cpu(), targets.cpu().long()
    before = logits.softmax(dim=1)
    if method == "none":
        return Calibration(), before
    reason = cannot_calibrate(logits, targets)
    if reason is not None:
        warnings.warn(f"probabilities are not calibrated: {reason}", TransferkitWarning, stacklevel=2)
        return Calibration(), before
    places = stratified_folds(targets, FOLDS, seed=seed)
    after = torch.empty_like(before)
    for fold in np.unique(places):
        held = torch.from_numpy(places == fold)
        after[held] = _fit(logits[~held], targets[~held], method).probs(logits[held])
    figures = {"n": float(len(targets))}
    for name, probs in (("before", before), ("after", after)):
        best, predicted = probs.max(dim=1)
        own = probs.gather(1, targets[:, None]).squeeze(1)
        measured = confidence_metrics(own, best, predicted == targets)
        figures |= {f"ece_{name}": measured["ece"], f"loss_{name}": measured["loss"]}
    fitted = replace(
        _fit(logits, targets, method),
        fitted_on=fitted_on,
        folds=len(np.unique(places)),
        held_out=HeldOut.of(after, targets, seed=seed),
        figures=figures,
    )
    return fitted, after


def cannot_calibrate(logits: Tensor, targets: Tensor) -> str | None:
    """Return why nothing can be fitted on these pictures, for a sentence; ``None`` where it can."""
    if len(targets) < MIN_PICTURES:
        return f"{len(targets)} held-out pictures are too few, expected at least {MIN_PICTURES}"
    if len(set(targets.tolist())) < 2:
        return "the held-out pictures are all of one class, expected at least two"
    if not bool(torch.isfinite(logits).all()):
        return "the model returns NaN or infinity for held-out pictures"
    return None


def _fit(logits: Tensor, targets: Tensor, method: str) -> Calibration:
    if method == "temperature":
        return Calibration(method, temperature=fit_temperature(logits, targets))
    scale, bias = fit_vector(logits, targets)
    return Calibration(method, scale=tuple(scale.tolist()), bias=tuple(bias.tolist()))


def _check_shapes(logits: Tensor, targets: Tensor) -> None:
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ConfigError(
            f"logits have shape {tuple(logits.shape)} and targets {tuple(targets.shape)}, expected (N, C) and (N,)"
        )
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < logits.shape[1]:
        raise ConfigError(
            f"targets lie in [{int(targets.min())}, {int(targets.max())}], expected [0, {logits.shape[1]})"
        )
