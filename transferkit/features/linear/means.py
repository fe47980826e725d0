"""Heads of one point or direction per class, fitted at once: class means, and the scale of what is said by them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from transferkit.features.linear.softening import START_STD
from transferkit.models.heads.flat import CosineHead
from transferkit.models.heads.metric import ArcFaceHead, PrototypeHead
from transferkit.models.heads.solver import Array, LabelledRows

__all__ = ["MEANS", "ClassMeans", "fit_means", "softened", "with_rows"]

MEANS = (ArcFaceHead, CosineHead, PrototypeHead)
"""The heads that can be fitted so."""


@dataclass(frozen=True, eq=False)
class ClassMeans:
    """What was fitted.

    Attributes:
        tensors: State of the head.
        choice: The scale, and accuracy and mean loss of each picture under the means of all others.
    """

    tensors: Mapping[str, Tensor]
    choice: Mapping[str, Any]


def fit_means(head: nn.Module, rows: LabelledRows) -> ClassMeans:
    """Return the state of a head whose points are the class means.

    Of `PrototypeHead` they are means of features (Snell et al. 2017, eq. 1); of heads of cosines, of features of length
    1 (weight imprinting: Qi et al. 2018, *Low-Shot Learning with Imprinted Weights*, section 3.2, and Gidaris and
    Komodakis 2018, section 3.2, before its attention). A learned scale is the one under which each picture is most
    likely by the means of all others, which costs nothing: its own share is taken out of its class's mean. What is of
    one group goes out together. A class without pictures keeps the point that it has.

    Args:
        head: One of `MEANS`; not changed.
        rows: To fit on, of classes.
    """
    features = np.asarray(rows.X, dtype=np.float64)
    euclidean = isinstance(head, PrototypeHead)
    if not euclidean:
        features = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    state = {name: tensor.detach().clone() for name, tensor in head.state_dict().items()}
    weight = np.ones(len(features)) if rows.weight is None else np.asarray(rows.weight, dtype=np.float64)
    sums, totals = _sums(features, weight, rows.y, rows.width)
    seen = totals > 0
    points = state["weight"].double().cpu().numpy().copy()
    points[seen] = sums[seen] / totals[seen, None]
    state["weight"] = torch.from_numpy(points).to(state["weight"])
    similar, judged = _held_out(features, weight, rows, points, sums, totals, euclidean=euclidean)
    right = (similar.argmax(axis=1) == rows.y[judged]).astype(np.float64)
    choice: dict[str, Any] = {"criterion": "leave-one-out"}
    if judged.any():
        choice["cv_acc"] = float(np.average(right, weights=weight[judged]))
    if "log_scale" in state or (isinstance(head, CosineHead) and "scale" in dict(head.named_parameters())):
        scale = _best_scale(similar, rows.y[judged], weight[judged]) if judged.any() else 1.0
        name = "log_scale" if euclidean else "scale"
        state[name] = torch.full_like(state[name], math.log(scale) if euclidean else scale)
        choice["scale"] = scale
    return ClassMeans(state, choice)


def softened(solution: ClassMeans, outputs: Array) -> Mapping[str, Tensor]:
    """Return the state that fine-tuning starts from: with less confidence, where its scale is learned, see `START_STD`.

    Args:
        solution: From `fit_means`.
        outputs: ``(N, C)``, its logits of the training pictures.
    """
    spread = float((outputs - outputs.mean(axis=1, keepdims=True)).std())
    factor = min(1.0, START_STD / max(spread, START_STD))
    state = dict(solution.tensors)
    if "log_scale" in state:
        state["log_scale"] = state["log_scale"] + math.log(factor)
    elif "scale" in solution.choice:
        state["scale"] = state["scale"] * factor
    return state


def _sums(X: Array, weight: Array, y: Array, width: int) -> tuple[Array, Array]:
    """Return by class the weighted sum of rows ``(C, D)`` and of weights ``(C,)``."""
    sums, totals = np.zeros((width, X.shape[1])), np.zeros(width)
    np.add.at(sums, y, X * weight[:, None])
    np.add.at(totals, y, weight)
    return sums, totals


def _held_out(
    X: Array, weight: Array, rows: LabelledRows, points: Array, sums: Array, totals: Array, *, euclidean: bool
) -> tuple[Array, Array]:
    """Return for the rows whose class has others ``(N, C)`` similarities, and which rows those are."""
    pairs, own = np.unique(np.stack([rows.units(), rows.y]), axis=1, return_inverse=True)
    mine, count = _sums(X, weight, own.reshape(-1), pairs.shape[1])
    left = totals[rows.y] - count[own.reshape(-1)]
    judged = left > 1e-9 * totals[rows.y]
    at = own.reshape(-1)[judged]
    without = (sums[rows.y[judged]] - mine[at]) / left[judged, None]
    similar = _similar(X[judged], points, euclidean=euclidean)
    if not euclidean:
        without = without / np.linalg.norm(without, axis=1, keepdims=True).clip(1e-12)
        similar[np.arange(len(similar)), rows.y[judged]] = (X[judged] * without).sum(axis=1)
    else:
        similar[np.arange(len(similar)), rows.y[judged]] = -np.square(X[judged] - without).sum(axis=1)
    return similar, judged


def _similar(X: Array, points: Array, *, euclidean: bool) -> Array:
    if euclidean:
        lengths = np.square(X).sum(axis=1, keepdims=True) + np.square(points).sum(axis=1)
        return np.asarray(2 * X @ points.T - lengths)
    return np.asarray(X @ (points / np.linalg.norm(points, axis=1, keepdims=True).clip(1e-12)).T)


def _best_scale(similar: Array, y: Array, weight: Array) -> float:
    """Return the scale of similarities ``(N, C)`` under which the classes are most likely."""
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    similar = similar - similar.max(axis=1, keepdims=True)
    spread = max(float(-similar.mean()), 1e-12)

    def loss(log_scale: float) -> float:
        logits = math.exp(log_scale) * similar
        each = logsumexp(logits, axis=1) - logits[np.arange(len(y)), y]
        return float(np.average(each, weights=weight))

    middle = -math.log(spread)
    return math.exp(float(minimize_scalar(loss, bounds=(middle - 7, middle + 7), method="bounded").x))


def with_rows(solution: ClassMeans, head: nn.Module, places: list[int]) -> ClassMeans:
    """Return a solution in which the points of some classes are those that the head has."""
    weight = solution.tensors["weight"].clone()
    weight[places] = head.state_dict()["weight"][places].to(weight)
    return replace(solution, tensors={**solution.tensors, "weight": weight})
