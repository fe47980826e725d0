"""A prediction of a class: the record of one picture, and how it comes from a model's outputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from transferkit.core.targets import TargetSpec
from transferkit.models.figures.compared import Compared
from transferkit.models.parts import UNKNOWN, Request
from transferkit.models.record_files import ObjectResults, Page, RecordFiles

__all__ = ["ClassOutput", "Prediction", "of_one_class"]


Array = npt.NDArray[np.float32]

USUAL_TOP = 3
"""Most probable classes that a record names, unless told otherwise."""

_TIE = 1e-6
"""Probabilities nearer than this are equal."""

COMPARED = Compared()


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
        unlike_training: Share of held-out pictures that are nearer to the training pictures, in [0, 1]; ``None`` where
            the model does not know.
    """

    path: str
    label: str | None = None
    probability: float | None = None
    top: tuple[tuple[str, float], ...] = ()
    probs: tuple[float, ...] = ()
    error: str | None = None
    abstained: bool = False
    classes: tuple[str, ...] = ()
    unlike_training: float | None = None


@dataclass(frozen=True)
class ClassOutput:
    """The part of classification that makes predictions of logits: a class for each picture, with its probability."""

    columns: tuple[str, ...] = ("label", "predicted", "probability", "label_probability")
    objects: ObjectResults | None = None
    files: RecordFiles | None = None
    page: Page | None = Page("serve.html.j2")
    names_one: bool = True
    labels: bool = True
    compared: Compared = COMPARED

    def activate(self, outputs: Tensor) -> Tensor:
        """Return the softmax of logits ``(..., C)``."""
        return outputs.softmax(dim=-1)

    def rows(self, predictions: Tensor, targets: Tensor, spec: TargetSpec) -> list[tuple[str, ...]]:
        """Return class, predicted class, its probability and the class's own, for probabilities ``(N, C)``."""
        best, guess = predictions.max(dim=1)
        own = predictions.gather(1, targets[:, None]).squeeze(1)
        columns = (targets.tolist(), guess.tolist(), best.tolist(), own.tolist())
        return [
            (spec.names[label], spec.names[index], f"{top:.6f}", f"{mine:.6f}")
            for label, index, top, mine in zip(*columns, strict=True)
        ]

    def merge(self, predictions: Array) -> Array:
        """Return the probabilities ``(C,)`` of a picture: the mean over those of its views, ``(V, C)``."""
        merged: Array = predictions[0] if len(predictions) == 1 else predictions.mean(axis=0)
        return merged

    def problem(self, spec: TargetSpec, request: Request) -> str | None:
        """Return that classes have no intervals."""
        return (
            None
            if request.coverage is None
            else ("--coverage is of the intervals of numbers, and this model gives classes - for sets pass --abstain")
        )

    def record(self, name: str, prediction: Array, spec: TargetSpec, request: Request) -> Prediction:
        """Return the prediction of a picture, of its probabilities ``(C,)``."""
        order = np.argsort(-prediction, kind="stable")
        top = tuple((spec.names[index], float(prediction[index])) for index in order[: request.top_k or USUAL_TOP])
        sure, classes = (True, ()) if request.abstention is None else request.abstention(prediction, order)
        label, probability = top[0]
        return Prediction(
            name, label if sure else None, probability, top, tuple(prediction.tolist()) if request.whole else (),
            abstained=not sure, classes=classes,
        )  # fmt: skip

    def unreadable(self, name: str, error: str) -> Prediction:
        """Return the record of a picture without a prediction."""
        return Prediction(name, error=error)

    def unknown(self, record: Prediction) -> Prediction:
        """Return a record with the label `UNKNOWN`; what else it says stays."""
        return replace(record, label=UNKNOWN)

    def header(self, spec: TargetSpec, request: Request) -> list[str]:
        """Return ``label,probability[,label_2,probability_2,...][,set]``."""
        places = range(2, min(request.top_k or USUAL_TOP, len(spec.names)) + 1)
        more = [name for rank in places for name in (f"label_{rank}", f"probability_{rank}")]
        return ["label", "probability", *more, *(["set"] if request.sets else [])]

    def cells(self, record: Prediction, spec: TargetSpec, request: Request) -> list[list[object]]:
        """Return the one row under `header`.

        Where the model abstains, ``label`` is empty and ``probability`` that of the most probable class; the classes of
        a set are joined by ``|``.
        """
        cells: list[object] = [record.label]
        cells.append(None if record.probability is None else f"{record.probability:.6f}")
        for place in range(1, min(request.top_k or USUAL_TOP, len(spec.names))):
            name, share = record.top[place] if place < len(record.top) else (None, None)
            cells += [name, None if share is None else f"{share:.6f}"]
        return [[*cells, *(["|".join(record.classes)] if request.sets else [])]]

    def values(self, record: Prediction) -> dict[str, Any]:
        """Return label, probability, top, abstained and set, for JSON."""
        return {
            "label": record.label,
            "probability": None if record.probability is None else round(record.probability, 6),
            "top": [[name, round(share, 6)] for name, share in record.top],
            "abstained": record.abstained,
            "set": list(record.classes),
        }

    def answer(self, record: Prediction, spec: TargetSpec) -> str:
        """Return the most probable class."""
        return record.top[0][0]

    def shares(self, record: Prediction, spec: TargetSpec) -> dict[str, float]:
        """Return the probability of every class, the most probable ones first."""
        return {**dict(record.top), **dict(zip(spec.names, record.probs, strict=True))}

    def explained(self, outputs: Tensor, places: Tensor) -> Tensor:
        """Return the logit of each picture's class."""
        return outputs.gather(1, places[:, None])[:, 0]

    def agree(self, predictions: Array, expected: Array, near: float) -> npt.NDArray[np.bool_]:
        """Return which pictures get the same class; of equally probable ones either is the right one."""
        chosen: Array = expected[np.arange(len(expected)), predictions.argmax(axis=1)]
        agrees: npt.NDArray[np.bool_] = chosen >= expected.max(axis=1) - _TIE
        return agrees


def of_one_class(request: Request, answers: str) -> str | None:
    """Return which wishes make sense of one class per picture, or of numbers, alone; ``None`` where there are none.

    Args:
        request: What is wanted.
        answers: What the model gives instead, such as ``"masks"``.
    """
    wishes = (("--top-k", request.top_k), ("--abstain", request.abstention))
    problems = [
        f"{name} is of one class per picture, and this model gives {answers} - leave it out"
        for name, value in wishes if value is not None
    ]  # fmt: skip
    if request.coverage is not None:
        problems.append(f"--coverage is of the intervals of numbers, and this model gives {answers} - leave it out")
    return "; ".join(problems) or None
