"""What a model is worth on held-out pictures: calibrated on `val`, measured on every split, told picture by picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from transferkit.core.csv import csv_text
from transferkit.core.files import atomic_write
from transferkit.models.calibration.calibration import Calibration, fit_calibration
from transferkit.models.figures.classification import classification_metrics, confusion_matrix, reliability_bins

__all__ = ["Outputs", "Row", "measure", "measure_splits", "prediction_rows", "write_predictions"]

HEADER = ("split", "path", "label", "predicted", "probability", "label_probability")

Row = tuple[str, str, str, str, str, str]


@dataclass(frozen=True)
class Outputs:
    """What a model says of the pictures of one split.

    Attributes:
        paths: N files.
        logits: ``(N, C) float32``.
        targets: ``(N,) int64`` in [0, C).
    """

    paths: tuple[str, ...]
    logits: Tensor
    targets: Tensor


def measure_splits(
    outputs: dict[str, Outputs], class_names: Sequence[str], *, method: str, seed: int
) -> tuple[dict[str, Any], Calibration, list[Row]]:
    """Calibrate on the validation pictures, and measure every split with the probabilities that users will see.

    Those of `val` are cross-fitted: each come from a calibration that has not seen the picture. Those of `test` are
    what the saved model gives.

    Args:
        outputs: By split; without ``"val"`` nothing is calibrated.
        class_names: C names, in index order.
        method: ``"temperature"``, ``"vector"`` or ``"none"``.
        seed: Of the folds and the bootstrap.

    Returns:
        Metrics by split, with ``"calibration"`` beside them where there is one; the calibration; a row per picture for
        `write_predictions`.
    """
    calibration = Calibration()
    fitted: Tensor | None = None
    if method != "none" and "val" in outputs:
        val = outputs["val"]
        calibration, fitted = fit_calibration(val.logits, val.targets, method=method, seed=seed)
    metrics: dict[str, Any] = {}
    rows: list[Row] = []
    for split, found in outputs.items():
        ours = fitted if split == "val" and fitted is not None else calibration.probs(found.logits)
        plain = None if calibration.method == "none" else found.logits.softmax(dim=1)
        metrics[split] = measure(ours, found.targets, class_names, plain=plain, seed=seed)
        rows += prediction_rows(split, found.paths, ours, found.targets, class_names)
    if calibration.method != "none":
        metrics["calibration"] = {
            "method": calibration.method,
            "temperature": calibration.temperature,
            "fitted_on": calibration.fitted_on,
            "folds": calibration.folds,
            **calibration.figures,
        }
    return metrics, calibration, rows


def measure(
    probs: Tensor, targets: Tensor, class_names: Sequence[str], *, plain: Tensor | None = None, seed: int = 0
) -> dict[str, Any]:
    """Return everything that `metrics.json` holds of one split.

    Args:
        probs: ``(N, C) float32``, calibrated.
        targets: ``(N,) int64`` in [0, C).
        class_names: C names, in index order.
        plain: Probabilities before calibration; ``None`` where there is no calibration.
        seed: Of the bootstrap.
    """
    values = classification_metrics(probs, targets, class_names, seed=seed)
    values["confusion"] = confusion_matrix(probs, targets)
    values["reliability"] = reliability_bins(probs, targets)
    if plain is not None:
        before = classification_metrics(plain, targets, class_names, resamples=1)
        values["uncalibrated"] = {"loss": before["loss"], "ece": before["ece"]}
    return values


def prediction_rows(
    split: str, paths: Sequence[str], probs: Tensor, targets: Tensor, class_names: Sequence[str]
) -> list[Row]:
    """Return a row per picture: split, path, class, predicted class, its probability, the class's own."""
    best, index = probs.max(dim=1)
    own = probs.gather(1, targets[:, None]).squeeze(1)
    return [
        (split, path, class_names[label], class_names[guess], f"{top:.6f}", f"{mine:.6f}")
        for path, label, guess, top, mine in zip(
            paths, targets.tolist(), index.tolist(), best.tolist(), own.tolist(), strict=True
        )
    ]


def write_predictions(path: Path, rows: Sequence[Row]) -> None:
    """Write `predictions.csv`. Raises `StorageError`."""
    atomic_write(path, csv_text([HEADER, *rows]))
