"""Fit a classifier on features: logistic regression, nearest neighbours, or any classifier of scikit-learn.

What a probe has to choose (C, k) it chooses by cross-validation inside the rows it is given, the standardiser fitted
anew on the training part of every fold, so that the score of rows it never saw stays clean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.class_weight import compute_sample_weight
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from transferkit.core.errors import ConfigError, did_you_mean, gather
from transferkit.features.probe.estimators import (
    build_estimator,
    estimator_linear,
    estimator_probs,
    fit_estimator,
    gives_probabilities,
)
from transferkit.features.probe.logistic import LinearModel, Standardiser, fit_path
from transferkit.features.probe.neighbours import TEMPERATURE, Neighbours
from transferkit.features.probe.selection import Folds, choice_record, choose, cross_validation_folds, score

__all__ = ["FittedProbe", "fit_probe"]

Array = NDArray[Any]
Progress = Callable[[int, int], None]

STEP = 10.0 ** (2 / 3)
STRENGTHS = tuple(1e-2 * STEP**number for number in range(10))
"""Values of C times the rows' total weight, as C multiplies a sum over rows: 0.01 to 10,000."""
REACH = (1e-5, 1e7)
"""How far the grid goes on, two steps at a time, where its edge was chosen."""
DEFAULT_STRENGTH = 30.0
"""The same where nothing can be cross-validated."""
NO_FOLDS = "default: too few rows or groups per class to cross-validate"
NEIGHBOURS = (1, 3, 5, 10, 20, 50)
SMALL = 2e8
"""Multiplications of one product up to which more threads of the BLAS only get in each other's way."""


@dataclass(frozen=True, eq=False)
class FittedProbe:
    """A classifier on raw features.

    Attributes:
        name: ``"logistic"``, ``"knn"`` or the import path.
        choice: What was chosen, by which criterion, on what; JSON values.
        num_classes: C.
        linear: The model on raw features where the probe is linear: ``argmax(X @ weight.T + bias)`` is `predict`.
        neighbours: The voting rows, for ``"knn"``.
        estimator: The fitted scikit-learn pipeline, for an import path.
    """

    name: str
    choice: Mapping[str, Any]
    num_classes: int
    linear: LinearModel | None = None
    neighbours: Neighbours | None = None
    estimator: Any = None

    def probs(self, X: Array) -> Array:
        """Return probabilities (N, C) float32 for raw features (N, D); rows sum to 1.

        A class without training rows gets 0 or next to it. Of a scikit-learn classifier that gives decision values
        only they are a softmax of those, and `choice` says that they are not calibrated.
        """
        if self.estimator is not None:
            probs = estimator_probs(self.estimator, X, self.num_classes)
        elif self.neighbours is not None:
            probs = self.neighbours.probs(X)
        else:
            assert self.linear is not None
            probs = self.linear.probs(X)
        return np.asarray(probs, dtype=np.float32)

    def predict(self, X: Array) -> Array:
        """Return class indices (N,) int64 for raw features (N, D).

        The most probable class; for an import path the classifier's own answer, which may differ (``SVC``).
        """
        if self.estimator is not None:
            return np.asarray(self.estimator.predict(X), dtype=np.int64)
        return np.asarray(self.probs(X).argmax(axis=1), dtype=np.int64)


def fit_probe(
    X: Array,
    y: Array,
    num_classes: int,
    *,
    classifier: str = "logistic",
    classifier_args: Mapping[str, Any] | None = None,
    class_weight: str | None = None,
    groups: Sequence[str] | Array | None = None,
    sample_weight: Array | None = None,
    folds: int = 5,
    seed: int = 0,
    progress: Progress | None = None,
) -> FittedProbe:
    """Fit a classifier on features, choosing what it has to choose by cross-validation inside these rows.

    Args:
        X: (N, D) float32 features.
        y: (N,) integers in [0, num_classes); at least two classes, not necessarily all.
        num_classes: C, the columns of what the probe gives.
        classifier: ``"logistic"``; ``"knn"``; or the import path of a scikit-learn classifier, fitted on standardised
            features as it is (no choice is made).
        classifier_args: ``{"C": number or list}`` for logistic, ``{"k": number or list, "temperature": number}`` for
            knn (one number: nothing is chosen), the constructor's arguments for an import path.
        class_weight: ``"balanced"`` gives every class the same total weight, in the fit and in what is chosen by.
        groups: (N,) strings; rows of one group stay in one fold.
        sample_weight: (N,) at least 0, for the fit and for what is chosen by. Rows of weight 0 are left out.
        folds: Folds at most, at least 2; fewer where no class has so many groups.
        seed: Of the folds, and of the classifier where it draws at random.
        progress: Called with the fits done and all fits, after each.

    Raises:
        ConfigError: What is wrong with the arguments, all of it.
    """
    _check(X, y, num_classes, groups, sample_weight, class_weight, folds)
    arguments = dict(classifier_args or {})
    if "." not in classifier and classifier not in ("logistic", "knn"):
        raise ConfigError(
            f"unknown classifier {classifier!r}; expected 'logistic', 'knn' or the import path of a scikit-learn "
            f"classifier, such as 'sklearn.svm.SVC'.{did_you_mean(classifier, ('logistic', 'knn'))}"
        )
    keep = np.arange(len(X)) if sample_weight is None else np.flatnonzero(sample_weight)
    weight = None if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)[keep]
    X, y = (X, y.astype(np.int64)) if len(keep) == len(X) else (X[keep], y[keep].astype(np.int64))
    tell = progress or (lambda done, total: None)
    with _threads(X, num_classes):
        if "." in classifier:
            return _fit_by_path(X, y, num_classes, classifier, arguments, class_weight, weight, seed, tell)
        parts = cross_validation_folds(y, None if groups is None else np.asarray(groups)[keep], folds=folds, seed=seed)
        if classifier == "knn":
            if class_weight is not None or weight is not None:
                raise ConfigError("knn takes no class or sample weights - leave them out, or use 'logistic'")
            return _fit_knn(X, y, num_classes, arguments, parts, tell)
        return _fit_logistic(X, y, num_classes, arguments, class_weight, weight, parts, tell)


def _check(
    X: Array, y: Array, num_classes: int, groups: Any, sample_weight: Any, class_weight: str | None, folds: int
) -> None:
    problems = []
    if X.ndim != 2 or X.dtype.kind != "f" or 0 in X.shape:
        problems.append(f"features are {X.dtype} of shape {X.shape}; expected floats of shape (rows, features)")
    elif not np.isfinite(X).all():
        bad = np.flatnonzero(~np.isfinite(X).all(axis=1))
        problems.append(f"features of {len(bad)} rows are not finite, the first is row {bad[0]}; drop these rows")
    if y.ndim != 1 or y.dtype.kind not in "iu":
        problems.append(f"labels are {y.dtype} of shape {y.shape}; expected integers of shape (rows,)")
    elif len(y) != len(X):
        problems.append(f"there are {len(y)} labels for {len(X)} rows of features; expected one for each")
    elif len(y) and (y.min() < 0 or y.max() >= num_classes):
        problems.append(f"labels run from {y.min()} to {y.max()}; expected 0 to {num_classes - 1}")
    elif sample_weight is None and len(np.unique(y)) < 2:
        problems.append(f"all {len(y)} labels are of one class; expected at least 2 classes")
    if groups is not None and len(groups) != len(X):
        problems.append(f"there are {len(groups)} groups for {len(X)} rows of features; expected one for each")
    if sample_weight is not None:
        weight = np.asarray(sample_weight)
        if weight.shape != (len(X),):
            problems.append(f"sample weights are of shape {weight.shape}; expected one for each of {len(X)} rows")
        elif not (np.isfinite(weight).all() and (weight >= 0).all()):
            problems.append("sample weights are negative or not finite; expected numbers of at least 0")
        elif y.shape == weight.shape and len(np.unique(y[weight > 0])) < 2:
            problems.append("rows of weight above 0 are of fewer than 2 classes; expected at least 2 classes")
    if class_weight not in (None, "balanced"):
        problems.append(f"class_weight is {class_weight!r}; expected None or 'balanced'")
    if folds < 2:
        problems.append(f"folds is {folds}; expected at least 2")
    if problems:
        raise ConfigError(gather(problems))


def _threads(X: Array, num_classes: int) -> AbstractContextManager[Any]:
    return threadpool_limits(1, user_api="blas") if X.size * num_classes < SMALL else nullcontext()


def _weights(y: Array, class_weight: str | None, sample_weight: Array | None) -> Array:
    """Weights (N,) of rows: as in scikit-learn, balanced by the counts of these rows, times `sample_weight`."""
    weight = compute_sample_weight(class_weight, y)
    return np.asarray(weight if sample_weight is None else weight * sample_weight, dtype=np.float64)


def _take(name: str, arguments: dict[str, Any], known: Sequence[str]) -> None:
    for key in arguments:
        if key not in known:
            raise ConfigError(
                f"{name} takes no argument {key!r}; expected one of {', '.join(known)}.{did_you_mean(key, known)}"
            )


def _candidates(name: str, given: Any, kind: type) -> list[Any] | None:
    """The values to try: those given, one or several, or ``None`` where none are."""
    if given is None:
        return None
    values: list[Any] = list(given) if isinstance(given, list | tuple) else [given]
    numbers: list[Any] = [value for value in values if isinstance(value, int | kind) and not isinstance(value, bool)]
    if not values or len(numbers) < len(values) or not all(0 < value < np.inf for value in numbers):
        what = "whole number" if kind is int else "number"
        raise ConfigError(f"{name} is {given!r}; expected a {what} above 0, or a list of such numbers to choose from")
    return [kind(value) for value in sorted(set(values))]


def _fit_logistic(
    X: Array,
    y: Array,
    num_classes: int,
    arguments: dict[str, Any],
    class_weight: str | None,
    sample_weight: Array | None,
    parts: Folds,
    tell: Progress,
) -> FittedProbe:
    _take("logistic", arguments, ("C",))
    weight = _weights(y, class_weight, sample_weight)
    total = float(weight.sum())
    given = _candidates("C", arguments.get("C"), float)
    Cs = given or [strength / total for strength in STRENGTHS]
    scores = np.zeros((len(parts), 0, 2))
    rounds = 0

    def evaluate(values: list[float]) -> Array:
        nonlocal rounds
        rounds += 1
        result = np.zeros((len(parts), len(values), 2))
        for number, (train, validate) in enumerate(parts):
            own = None if sample_weight is None else sample_weight[train]
            own = _weights(y[train], class_weight, own)
            standardiser = Standardiser.fit(X[train], own)
            path = fit_path(standardiser.transform(X[train]), y[train], num_classes, values, sample_weight=own)
            unseen = standardiser.transform(X[validate])
            result[number] = [score(model.probs(unseen), y[validate], weight[validate]) for model in path]
            tell((rounds - 1) * len(parts) + number + 1, rounds * len(parts) + 1)
        return result

    if len(Cs) == 1:
        C, choice = Cs[0], {"C": Cs[0], "criterion": "given"}
    elif not parts:
        C = DEFAULT_STRENGTH / total if given is None else Cs[len(Cs) // 2]
        choice = {"C": C, "criterion": NO_FOLDS}
    else:
        scores = evaluate(Cs)
        while given is None:
            best = choose(scores)
            if best == 0 and Cs[0] * total / STEP**2 > REACH[0]:
                more = [Cs[0] / STEP**2, Cs[0] / STEP]
                Cs, scores = more + Cs, np.concatenate([evaluate(more), scores], axis=1)
            elif best == len(Cs) - 1 and Cs[-1] * total * STEP**2 < REACH[1]:
                more = [Cs[-1] * STEP, Cs[-1] * STEP**2]
                Cs, scores = Cs + more, np.concatenate([scores, evaluate(more)], axis=1)
            else:
                break
        C = Cs[choose(scores)]
        choice = choice_record("C", C, Cs, scores, weighted=class_weight is not None or sample_weight is not None)
    standardiser = Standardiser.fit(X, weight)
    model = fit_path(standardiser.transform(X), y, num_classes, [C], sample_weight=weight)[0]
    tell(rounds * len(parts) + 1, rounds * len(parts) + 1)
    return FittedProbe("logistic", choice, num_classes, linear=standardiser.fold(model))


def _fit_knn(
    X: Array, y: Array, num_classes: int, arguments: dict[str, Any], parts: Folds, tell: Progress
) -> FittedProbe:
    _take("knn", arguments, ("k", "temperature"))
    temperatures = _candidates("temperature", arguments.get("temperature", TEMPERATURE), float) or []
    if len(temperatures) != 1:
        raise ConfigError(f"temperature is {arguments['temperature']!r}; expected one number above 0")
    temperature = temperatures[0]
    given = _candidates("k", arguments.get("k"), int)
    most = len(X) if given is not None and len(given) == 1 else min((len(train) for train, _ in parts), default=len(X))
    ks = [k for k in given or NEIGHBOURS if k <= most]
    if not ks:
        raise ConfigError(f"k is {arguments.get('k')!r}, but there are {most} rows to vote - give a smaller k")
    if len(ks) == 1:
        k, choice = ks[0], {"k": ks[0], "criterion": "given" if given else "the only k with so few rows"}
    elif not parts:
        k, choice = ks[0], {"k": ks[0], "criterion": NO_FOLDS}
    else:
        scores = np.zeros((len(parts), len(ks), 2))
        for number, (train, validate) in enumerate(parts):
            voters = Neighbours.fit(X[train], y[train], num_classes, k=ks[-1], temperature=temperature)
            even = np.ones(len(validate))
            scores[number] = [score(probs, y[validate], even) for probs in voters.votes(X[validate], ks)]
            tell(number + 1, len(parts) + 1)
        k = ks[choose(scores)]
        choice = choice_record("k", k, ks, scores, weighted=False)
    neighbours = Neighbours.fit(X, y, num_classes, k=k, temperature=temperature)
    tell(len(parts) + 1, len(parts) + 1)
    return FittedProbe("knn", {**choice, "temperature": temperature}, num_classes, neighbours=neighbours)


def _fit_by_path(
    X: Array,
    y: Array,
    num_classes: int,
    path: str,
    arguments: dict[str, Any],
    class_weight: str | None,
    sample_weight: Array | None,
    seed: int,
    tell: Progress,
) -> FittedProbe:
    estimator = build_estimator(path, arguments, class_weight=class_weight, seed=seed)
    pipeline = fit_estimator(path, estimator, X, y, sample_weight)
    own = gives_probabilities(pipeline)
    plain = (str, int, float, bool, type(None))
    choice = {
        "classifier": path,
        "classifier_args": {
            key: value if isinstance(value, plain) else repr(value) for key, value in arguments.items()
        },
        "criterion": "none: fitted with the arguments given",
        "probabilities": "the classifier's own" if own else "softmax of its decision values, not calibrated",
    }
    tell(1, 1)
    return FittedProbe(path, choice, num_classes, estimator_linear(pipeline, num_classes), estimator=pipeline)
