"""A prediction of several labels: the record of one picture, its row in CSV and JSON lines."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from transferkit.core.targets import TargetSpec
from transferkit.models.figures.compared import Compared
from transferkit.models.figures.labels import THRESHOLD
from transferkit.models.parts import UNKNOWN, Request
from transferkit.models.record_files import ObjectResults, Page, RecordFiles

__all__ = ["LabelOutput", "LabelPrediction"]

Array = npt.NDArray[np.float32]

NEAR = 1e-4
"""Probabilities of two models that differ by less are the same."""

COMPARED = Compared(another="other labels")


@dataclass(frozen=True)
class LabelPrediction:
    """What the model says about one picture.

    Attributes:
        path: The file, or the place among the pictures, as ``"images[3]"``.
        labels: Those whose probability reaches their threshold, most probable first; it may be none of them.
        probs: Of every label, in index order.
        error: Why there is no prediction; ``None`` where there is one.
        abstained: Always ``False``: a label that is not sure enough is not given.
        unlike_training: Share of held-out pictures that are nearer to the training pictures, in [0, 1]; ``None`` where
            the model does not know.
    """

    path: str
    labels: tuple[str, ...] = ()
    probs: tuple[float, ...] = ()
    error: str | None = None
    abstained: bool = False
    unlike_training: float | None = None


@dataclass(frozen=True)
class LabelOutput:
    """The part that makes predictions of logits: the labels of each picture, with their probabilities.

    Attributes:
        thresholds: Probability from which on each label is given; ``None``: 0.5 for all.
    """

    thresholds: tuple[float, ...] | None = None
    columns: tuple[str, ...] = ("labels", "predicted", "wrong", "loss")
    objects: ObjectResults | None = None
    files: RecordFiles | None = None
    names_one: bool = False
    labels: bool = True
    compared: Compared = COMPARED

    def activate(self, outputs: Tensor) -> Tensor:
        """Return the sigmoid of logits ``(..., C)``."""
        return outputs.sigmoid()

    def _limits(self, spec: TargetSpec) -> npt.NDArray[np.float64]:
        chosen = spec.facts.get("thresholds", self.thresholds)
        return np.full(len(spec.names), THRESHOLD) if chosen is None else np.asarray(chosen, dtype=np.float64)

    def rows(self, predictions: Tensor, targets: Tensor, spec: TargetSpec) -> list[tuple[str, ...]]:
        """Return labels, labels given, how many are wrong, and the log loss, for probabilities ``(N, C)``."""
        limits, probs = self._limits(spec), predictions.double()
        answers, truth = probs.numpy() >= limits, targets.numpy() > 0.5
        losses = torch.nn.functional.binary_cross_entropy(
            probs.clamp(1e-7, 1 - 1e-7), targets.double(), reduction="none"
        ).mean(dim=1)
        wrong = (answers != truth).sum(axis=1)
        return [
            (_joined(spec, own), _joined(spec, guess), str(count), f"{loss:.6f}")
            for own, guess, count, loss in zip(truth, answers, wrong.tolist(), losses.tolist(), strict=True)
        ]

    def merge(self, predictions: Array) -> Array:
        """Return the probabilities ``(C,)`` of a picture: the mean over those of its views, ``(V, C)``."""
        merged: Array = predictions[0] if len(predictions) == 1 else predictions.mean(axis=0)
        return merged

    def problem(self, spec: TargetSpec, request: Request) -> str | None:
        """Return that labels have no intervals or ranks, and that a model does not abstain from them."""
        if request.top_k is not None:
            return "--top-k is for one class per picture, and of labels every probability is told - leave it out"
        if request.coverage is not None:
            return "--coverage is of the intervals of numbers, and this model gives labels - leave it out"
        if request.abstention is not None:
            return "--abstain is for one class per picture; a label that is not sure enough is not given"
        return None

    def record(self, name: str, prediction: Array, spec: TargetSpec, request: Request) -> LabelPrediction:
        """Return the prediction of a picture, of its probabilities ``(C,)``."""
        limits = self._limits(spec)
        order = [int(at) for at in np.argsort(-prediction, kind="stable") if prediction[at] >= limits[at]]
        return LabelPrediction(name, tuple(spec.names[at] for at in order), tuple(map(float, prediction)))

    def unreadable(self, name: str, error: str) -> LabelPrediction:
        """Return the record of a picture without a prediction."""
        return LabelPrediction(name, error=error)

    def unknown(self, record: LabelPrediction) -> LabelPrediction:
        """Return a record with the one label `UNKNOWN`; what else it says stays."""
        return replace(record, labels=(UNKNOWN,))

    def header(self, spec: TargetSpec, request: Request) -> list[str]:
        """Return ``labels``, and a column of the probability of every label."""
        return ["labels", *(f"p_{name}" for name in spec.names)]

    def cells(self, record: LabelPrediction, spec: TargetSpec, request: Request) -> list[list[object]]:
        """Return the one row under `header`; labels are joined by ``|``."""
        if record.error is not None:
            return [[None] * (1 + len(spec.names))]
        return [["|".join(record.labels), *(f"{share:.6f}" for share in record.probs)]]

    def values(self, record: LabelPrediction) -> dict[str, Any]:
        """Return labels and the probability of every label in index order, for JSON."""
        return {"labels": list(record.labels), "probabilities": [round(share, 6) for share in record.probs]}

    def answer(self, record: LabelPrediction, spec: TargetSpec) -> str:
        """Return the most probable label."""
        return spec.names[int(np.argmax(record.probs))]

    def shares(self, record: LabelPrediction, spec: TargetSpec) -> dict[str, float]:
        """Return the probability of every label, the most probable ones first."""
        pairs = zip(spec.names, record.probs, strict=True)
        return dict(sorted(pairs, key=lambda pair: -pair[1]))

    def explained(self, outputs: Tensor, places: Tensor) -> Tensor:
        """Return the logit of each picture's label."""
        return outputs.gather(1, places[:, None])[:, 0]

    @property
    def page(self) -> Page:
        """Of labels, with `facts_on_page`."""
        return Page("serve_labels.html.j2", self.facts_on_page)

    def facts_on_page(self, spec: TargetSpec) -> dict[str, Any]:
        """Return ``labels``, each with its threshold, and ``explained``, what a heat map may be about."""
        names = spec.names if len(spec.names) > 1 else ()
        return {
            "labels": [[name, limit] for name, limit in zip(spec.names, self._limits(spec).tolist(), strict=True)],
            "explained": [("", "most probable label"), *((name, name) for name in names)] if names else [],
        }

    def agree(self, predictions: Array, expected: Array, near: float) -> npt.NDArray[np.bool_]:
        """Return for which pictures all labels are on the same side of their threshold, or next to it on both."""
        limits = np.full(predictions.shape[1], THRESHOLD) if self.thresholds is None else np.asarray(self.thresholds)
        same = (predictions >= limits) == (expected >= limits)
        agrees: npt.NDArray[np.bool_] = (same | (np.abs(predictions - expected) < NEAR)).all(axis=1)
        return agrees


def _joined(spec: TargetSpec, chosen: npt.NDArray[np.bool_]) -> str:
    return "|".join(name for name, one in zip(spec.names, chosen.tolist(), strict=True) if one)
