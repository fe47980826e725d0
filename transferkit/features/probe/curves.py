"""Accuracy against the number of training rows, and against the depth of the layer the features come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from transferkit.core.errors import ConfigError, gather
from transferkit.features.probe.probe import fit_probe
from transferkit.models.figures.bootstrap import bootstrap_intervals

__all__ = ["Classifier", "Fit", "depth_curve", "learning_curve", "nested_subsets"]

Array = NDArray[Any]


class Classifier(Protocol):
    """What a curve needs of a fitted probe."""

    @property
    def choice(self) -> Mapping[str, Any]:
        """What was chosen, as JSON values."""

    def predict(self, X: Array) -> Array:
        """Return class indices (N,) for features (N, D)."""


Fit = Callable[..., Classifier]
"""Called as ``fit(X, y, num_classes, groups=..., seed=...)``: `fit_probe`, or a partial of it."""


def learning_curve(
    X: Array,
    y: Array,
    X_eval: Array,
    y_eval: Array,
    num_classes: int,
    *,
    shares: Sequence[float] = (0.1, 0.2, 0.4, 0.8, 1.0),
    repeats: int = 3,
    groups: Sequence[str] | Array | None = None,
    seed: int = 0,
    fit: Fit = fit_probe,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Measure how accuracy grows with the training rows.

    Each repeat draws its own nested subsets, stratified by class: a smaller share lies within every larger one. All
    rows are the same in every repeat and are fitted once.

    Args:
        X: (N, D) features to train on.
        y: (N,) labels in [0, num_classes).
        X_eval: (M, D) features to evaluate on; nothing is chosen on them.
        y_eval: (M,) labels.
        num_classes: C.
        shares: Of the rows (of the groups, where there are any), in (0, 1].
        repeats: Draws per share, at least 1.
        groups: (N,) strings; a group is drawn whole.
        seed: Of the draws and the fits.
        fit: Fits a probe.
        progress: Called with the fits done and all fits, after each.

    Returns:
        Per share, ascending, as JSON values: ``share``, ``rows`` (mean over the repeats), ``acc`` (mean), ``acc_min``,
        ``acc_max``, and ``repeats``, a list of ``{"rows": ..., "acc": ..., "choice": ...}``. A share that holds fewer
        than two classes or evaluates nothing is an error of `fit`'s.

    Raises:
        ConfigError: A share or the number of repeats is out of range, or arrays do not fit each other.
    """
    problems = []
    if not shares or not all(0 < share <= 1 for share in shares):
        problems.append(f"shares are {list(shares)}; expected numbers above 0 and at most 1")
    if repeats < 1:
        problems.append(f"repeats is {repeats}; expected at least 1")
    if len(X) != len(y) or (groups is not None and len(groups) != len(y)):
        problems.append(
            f"there are {len(X)} rows of features and {len(y)} labels; expected as many, and as many groups"
        )
    problems += _evaluation_problems("evaluation features", X, X_eval, y_eval)
    if problems:
        raise ConfigError(gather(problems))
    shares = sorted(set(shares))
    names = None if groups is None else np.asarray(groups)
    total = sum(1 if share == 1 else repeats for share in shares)
    runs: dict[float, list[dict[str, Any]]] = {share: [] for share in shares}
    done = 0
    for repeat in range(repeats):
        for share, rows in zip(shares, nested_subsets(y, names, shares, seed=seed + repeat), strict=True):
            if share == 1 and repeat:
                continue
            probe = fit(X[rows], y[rows], num_classes, groups=None if names is None else names[rows], seed=seed)
            accuracy = float(np.mean(probe.predict(X_eval) == y_eval))
            runs[share].append({"rows": len(rows), "acc": accuracy, "choice": dict(probe.choice)})
            done += 1
            if progress is not None:
                progress(done, total)
    return [
        {
            "share": share,
            "rows": float(np.mean([run["rows"] for run in found])),
            "acc": float(np.mean([run["acc"] for run in found])),
            "acc_min": min(run["acc"] for run in found),
            "acc_max": max(run["acc"] for run in found),
            "repeats": found,
        }
        for share, found in runs.items()
    ]


def nested_subsets(y: Array, groups: Array | None, shares: Sequence[float], *, seed: int) -> list[Array]:
    """Draw one stratified subset per share, each within every larger one.

    A group counts for the class most of its rows have. Of every class's groups the rounded share is taken, at least
    one.

    Args:
        y: (N,) labels.
        groups: (N,) strings, or ``None`` where every row stands for itself.
        shares: In (0, 1].
        seed: Another seed, another draw.

    Returns:
        Per share the rows, ascending.
    """
    units = np.arange(len(y)) if groups is None else np.unique(groups, return_inverse=True)[1]
    votes = np.zeros((units.max() + 1, int(y.max()) + 1), dtype=np.int64)
    np.add.at(votes, (units, y), 1)
    label = votes.argmax(axis=1)
    order = np.random.default_rng(seed).permutation(len(label))
    place, size = np.zeros(len(label), dtype=np.int64), np.bincount(label)
    for number in np.unique(label):
        own = order[label[order] == number]
        place[own] = np.arange(len(own))
    # half a unit rounds up, so that a larger share never gets fewer
    return [np.flatnonzero((place < np.maximum(1, np.floor(share * size + 0.5))[label])[units]) for share in shares]


def depth_curve(
    features: Mapping[str, Array],
    y: Array,
    eval_features: Mapping[str, Array],
    y_eval: Array,
    num_classes: int,
    *,
    groups: Sequence[str] | Array | None = None,
    eval_groups: Sequence[str] | Array | None = None,
    draws: int = 2000,
    seed: int = 0,
    fit: Fit = fit_probe,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Fit a probe on every layer's features.

    The intervals are percentile bootstraps over the evaluation rows (over their groups, where there are any), with the
    same draws for every layer: they say how far the accuracy would move with other pictures, not with other training
    rows. Without a single error they have no width, which is no certainty.

    Args:
        features: Per layer (N, D of the layer), in the order of depth.
        y: (N,) labels in [0, num_classes).
        eval_features: The same layers, (M, D of the layer).
        y_eval: (M,) labels.
        num_classes: C.
        groups: (N,) strings for cross-validation.
        eval_groups: (M,) strings; a group is drawn whole.
        draws: Of the bootstrap, at least 100.
        seed: Of the draws and the fits.
        fit: Fits a probe.
        progress: Called with the layers done and all layers, after each.

    Returns:
        Per layer, in order, as JSON values: ``layer``, ``width``, ``acc``, ``acc_low`` and ``acc_high`` (95 %), and
        ``choice``, what the probe chose.

    Raises:
        ConfigError: The layers or arrays do not fit each other.
    """
    problems = []
    if not features or set(features) != set(eval_features):
        problems.append(
            f"training features have the layers {sorted(features)}, evaluation features {sorted(eval_features)}; "
            "expected the same, and at least one"
        )
    else:
        for layer, X in features.items():
            if len(X) != len(y):
                problems.append(f"layer {layer!r} has {len(X)} rows for {len(y)} labels; expected one for each")
            problems += _evaluation_problems(f"evaluation features of layer {layer!r}", X, eval_features[layer], y_eval)
    if eval_groups is not None and len(eval_groups) != len(y_eval):
        problems.append(
            f"there are {len(eval_groups)} evaluation groups for {len(y_eval)} labels; expected one for each"
        )
    if draws < 100:
        problems.append(f"draws is {draws}; expected at least 100")
    if problems:
        raise ConfigError(gather(problems))
    hits = np.empty((len(features), len(y_eval)), dtype=np.float64)
    choices = []
    for number, (layer, X) in enumerate(features.items()):
        probe = fit(X, y, num_classes, groups=groups, seed=seed)
        hits[number] = probe.predict(eval_features[layer]) == y_eval
        choices.append(dict(probe.choice))
        if progress is not None:
            progress(number + 1, len(features))
    units = np.arange(len(y_eval)) if eval_groups is None else np.unique(eval_groups, return_inverse=True)[1]
    size = np.bincount(units)
    right = np.stack([np.bincount(units, weights=row) for row in hits])
    intervals = bootstrap_intervals(lambda drawn: right @ drawn / (size @ drawn), len(size), resamples=draws, seed=seed)
    return [
        {
            "layer": layer,
            "width": int(X.shape[1]),
            "acc": float(hits[number].mean()),
            "acc_low": intervals[number][0],
            "acc_high": intervals[number][1],
            "choice": choices[number],
        }
        for number, (layer, X) in enumerate(features.items())
    ]


def _evaluation_problems(what: str, X: Array, X_eval: Array, y_eval: Array) -> list[str]:
    if len(X_eval) == 0 or len(X_eval) != len(y_eval):
        return [f"{what} have {len(X_eval)} rows for {len(y_eval)} labels; expected one for each, and at least one"]
    if X_eval.shape[1:] != X.shape[1:]:
        return [f"{what} have the shape {X_eval.shape}; expected {X.shape[1:]} after the rows, as for training"]
    return []
