"""A prediction: the record of one picture, how it comes from probabilities, and its row in CSV and JSON lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.core.csv import csv_text
from transferkit.core.text import valid_text
from transferkit.results.predict.abstention import Abstention

__all__ = ["Prediction", "csv_header", "csv_row", "json_row", "merge_views", "predict_record"]


@dataclass(frozen=True)
class Prediction:
    """What the model says about one picture.

    Attributes:
        path: The file, or the place among the pictures, as ``"images[3]"``.
        label: Most probable class; ``None`` when the picture is unreadable, or the model abstains.
        probability: Of the most probable class, calibrated, also where the model abstains.
        top: The most probable classes with their probabilities, in descending order.
        probs: Of every class, in index order.
        error: Why there is no prediction; ``None`` where there is one.
        abstained: Whether there is no label because the model is not sure enough.
        classes: The conformal prediction set, most probable first; empty unless `abstain_by` is ``"sets"``.
    """

    path: str
    label: str | None = None
    probability: float | None = None
    top: tuple[tuple[str, float], ...] = ()
    probs: tuple[float, ...] = ()
    error: str | None = None
    abstained: bool = False
    classes: tuple[str, ...] = ()


def merge_views(probs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the probabilities ``(C,)`` of a picture: the mean over those of its views, ``(V, C)``."""
    merged: npt.NDArray[np.float32] = probs[0] if len(probs) == 1 else probs.mean(axis=0)
    return merged


def predict_record(
    name: str,
    probs: npt.NDArray[np.float32],
    class_names: Sequence[str],
    *,
    top_k: int,
    abstention: Abstention | None = None,
) -> Prediction:
    """Return what is said of a picture.

    Args:
        name: The file, or the place among the pictures.
        probs: ``(C,)``, calibrated.
        class_names: In index order.
        top_k: Most probable classes in `top`, at least 1.
        abstention: Decides whether there is a label; ``None``: always.
    """
    order = np.argsort(-probs, kind="stable")
    top = tuple((class_names[index], float(probs[index])) for index in order[:top_k])
    sure, classes = (True, ()) if abstention is None else abstention(probs, order)
    label, probability = top[0]
    return Prediction(
        name, label if sure else None, probability, top, tuple(probs.tolist()), abstained=not sure, classes=classes
    )


# ---- rows -------------------------------------------------------------------------------------------------------


def csv_header(top_k: int, *, sets: bool = False) -> str:
    """Return the first line of the CSV: ``path,label,probability[,label_2,probability_2,...][,set],error``.

    Args:
        top_k: Most probable classes in a row, at least 1.
        sets: Whether there is a column for prediction sets.
    """
    more = [name for rank in range(2, top_k + 1) for name in (f"label_{rank}", f"probability_{rank}")]
    return csv_text([["path", "label", "probability", *more, *(["set"] if sets else []), "error"]])


def csv_row(prediction: Prediction, top_k: int, *, sets: bool = False) -> str:
    """Return a prediction as a line of CSV that no spreadsheet takes for a formula.

    Args:
        prediction: Where the model abstains, ``label`` is empty and ``probability`` that of the most probable class.
        top_k: As for `csv_header`.
        sets: Likewise; classes are joined by ``|``.
    """
    cells: list[object] = [prediction.path, prediction.label]
    cells.append(None if prediction.probability is None else f"{prediction.probability:.6f}")
    for place in range(1, top_k):
        name, share = prediction.top[place] if place < len(prediction.top) else (None, None)
        cells += [name, None if share is None else f"{share:.6f}"]
    cells += ["|".join(prediction.classes)] if sets else []
    return csv_text([[*cells, prediction.error]])


def json_row(prediction: Prediction) -> str:
    """Return a prediction as a line of JSON: path, label, probability, top, abstained, set, error."""
    values: dict[str, Any] = {
        "path": valid_text(prediction.path),
        "label": prediction.label,
        "probability": None if prediction.probability is None else round(prediction.probability, 6),
        "top": [[name, round(share, 6)] for name, share in prediction.top],
        "abstained": prediction.abstained,
        "set": list(prediction.classes),
        "error": None if prediction.error is None else valid_text(prediction.error),
    }
    return json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n"
