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
import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from transferkit.core.errors import ConfigError, did_you_mean, gather
from transferkit.features.linear.logistic import TOLERANCE, LinearModel, Standardiser, fit_path
from transferkit.features.linear.statistics import RowStatistics
from transferkit.features.probe.estimators import (
    build_estimator,
    estimator_linear,
    estimator_probs,
    fit_estimator,
    gives_probabilities,
)
from transferkit.features.probe.neighbours import TEMPERATURE, Neighbours
from transferkit.features.probe.selection import (
    Folds,
    choice_record,
    choose,
    cross_validation_folds,
    score,
    some_rows,
)
from transferkit.models.heads.solver import Array, HeadState, LabelledRows, ProbeOptions, Progress

__all__ = ["FittedProbe", "add_rows", "blas_threads", "fit_probe"]

STEP = 10.0 ** (2 / 3)
STRENGTHS = tuple(1e-2 * STEP**number for number in range(10))
"""Values of C times the rows' total weight, as C multiplies a sum over rows: 0.01 to 10,000."""
REACH = (1e-5, 1e7)
"""How far the grid goes on, two steps at a time, where its edge was chosen."""
DEFAULT_STRENGTH = 30.0
"""The same where nothing can be cross-validated."""
NO_FOLDS = "default: too few rows or groups per class to cross-validate"
NEIGHBOURS = (1, 3, 5, 10, 20, 50)
TINY = 1e-12
"""Least probability, so that its logarithm is finite."""
EXACT = 2**26
"""Features up to which the head that is kept is fitted in float64, so that it is the same to the fourth digit on any
machine; float32 stops a fit of separable classes where its sums are noise."""
ROUGH = 1e-4
"""Tolerance of the fits that only choose C, of more than `FEW` groups: their mean objective is within 1e-4 of the least
(of photos of clothes 7e-5 at the weakest strength, 2e-6 at the one that is chosen), a tenth of what the rule counts as
equal, in half the steps."""
FEW = 2_000
"""Groups of rows, such as views of a picture, up to which one that is right more or less can decide."""
FOLDED = 80_000
"""Rows that the folds train on together at most: of more than 20,000 rows fewer than 5 folds choose, and of more than
these rows, as many of them. C multiplies a sum over rows, so that the same is right for all; each fold has more rows
than a choice needs, and 5 folds of 50,000 took longer than an epoch of fine-tuning."""
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
        statistics: Of the rows, for ``"ridge"``: what adding classes or rows needs.
    """

    name: str
    choice: Mapping[str, Any]
    num_classes: int
    linear: LinearModel | None = None
    neighbours: Neighbours | None = None
    estimator: Any = None
    statistics: RowStatistics | None = None

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

    def outputs(self, X: Array) -> Array:
        """Return logits (N, C) float32 for raw features (N, D); of probabilities alone, their logarithms."""
        if self.linear is not None:
            return np.asarray(self.linear.logits(X), dtype=np.float32)
        return np.asarray(torch.from_numpy(self.probs(X)).clamp_min(TINY).log())

    def scores(self, X: Array, y: Array) -> Array:
        """Return 1.0 for each row (N,) that is classified correctly, 0.0 for the others."""
        return np.asarray(self.predict(X) == y, dtype=np.float64)

    def head(self) -> HeadState | None:
        """Return the head of a model that computes these outputs; ``None`` for a classifier that is not linear."""
        if self.linear is not None:
            return HeadState("linear", {}, _tensors({"linear.weight": self.linear.weight,
                                                     "linear.bias": self.linear.bias}))  # fmt: skip
        if self.neighbours is None:
            return None
        votes = self.neighbours
        arguments = {"rows": len(votes.rows), "k": votes.k, "temperature": votes.temperature}
        state = {"mean": votes.standardiser.mean, "scale": votes.standardiser.scale, "rows": votes.rows,
                 "labels": votes.labels}  # fmt: skip
        return HeadState("knn", arguments, _tensors(state))


def _tensors(arrays: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.asarray(values)) for name, values in arrays.items()}


def fit_probe(
    rows: LabelledRows,
    options: ProbeOptions | None = None,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    rule: Callable[[Array], int] = choose,
) -> FittedProbe:
    """Fit a classifier on features, choosing what it has to choose by cross-validation inside these rows.

    Args:
        rows: Of at least two classes. Those of weight 0 are left out.
        options: Which classifier, and how; logistic regression by default.
        seed: Of the folds, and of the classifier where it draws at random.
        progress: Called with the fits done and all fits, after each.
        rule: Which candidate to take, by scores (folds, candidates, 2) of accuracy and nll.

    Raises:
        ConfigError: What is wrong with the arguments, all of it.
    """
    options = options or ProbeOptions()
    problems = rows.problems() + _class_problems(rows) + options.problems()
    if problems:
        raise ConfigError(gather(problems))
    name = "logistic" if options.classifier == "auto" else options.classifier
    fits = {"logistic": _fit_logistic, "knn": _fit_knn, "ridge": _fit_ridge}
    if "." not in name and name not in fits:
        raise ConfigError(
            f"unknown classifier {name!r}; expected 'logistic', 'knn', 'ridge' or the import path of a scikit-learn "
            f"classifier, such as 'sklearn.svm.SVC'.{did_you_mean(name, fits)}"
        )
    if rows.weight is not None:
        rows = rows.take(np.flatnonzero(rows.weight))
    report = progress or (lambda done, total: None)
    with blas_threads(rows.X, rows.width):
        if "." in name:
            return _fit_by_path(rows, options, seed, report)
        most = max(2, min(options.folds, 1 + FOLDED // len(rows)))
        some = some_rows(rows, FOLDED, seed=seed)
        parts = cross_validation_folds(rows.take(some), folds=most, seed=seed)
        folds = [(some[train], some[validate]) for train, validate in parts]
        return fits[name](rows, options, folds, report, rule)


def _class_problems(rows: LabelledRows) -> list[str]:
    """Return whether there are fewer than two classes in the rows that count."""
    y = rows.y if rows.weight is None else rows.y[np.asarray(rows.weight) > 0]
    if len(np.unique(y)) > 1:
        return []
    if rows.weight is None:
        return [f"all {len(y)} labels are of one class; expected at least 2 classes"]
    return ["rows of weight above 0 are of fewer than 2 classes; expected at least 2 classes"]


def blas_threads(X: Array, num_classes: int) -> AbstractContextManager[Any]:
    """Return what keeps the BLAS to one thread for features (N, D) where more are in each other's way."""
    return threadpool_limits(1, user_api="blas") if X.size * num_classes < SMALL else nullcontext()


def _part(folds: Folds, rows: LabelledRows) -> str:
    """Return what the folds are cut from."""
    count = sum(map(len, folds[0]))
    return "the training rows" if count == len(rows) else f"{count:,} of the {len(rows):,} training rows"


def _weights(rows: LabelledRows, class_weight: str | None) -> Array:
    """Return the weights (N,) of rows: as in scikit-learn, balanced by the counts of these rows, times their own."""
    from sklearn.utils.class_weight import compute_sample_weight

    weight = compute_sample_weight(class_weight, rows.y)
    return np.asarray(weight if rows.weight is None else weight * rows.weight, dtype=np.float64)


def _check_arguments(name: str, arguments: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in arguments:
        if key not in known:
            raise ConfigError(
                f"{name} takes no argument {key!r}; expected one of {', '.join(known)}.{did_you_mean(key, known)}"
            )


def _candidates(name: str, value: Any, kind: type) -> list[Any] | None:
    """Return the values to try, ascending, from one or a list; ``None`` where there is none."""
    if value is None:
        return None
    values: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
    numbers: list[Any] = [one for one in values if isinstance(one, int | kind) and not isinstance(one, bool)]
    if not values or len(numbers) < len(values) or not all(0 < one < np.inf for one in numbers):
        what = "whole number" if kind is int else "number"
        raise ConfigError(f"{name} is {value!r}; expected a {what} above 0, or a list of such numbers to choose from")
    return [kind(one) for one in sorted(set(values))]


def _fit_logistic(
    rows: LabelledRows, options: ProbeOptions, folds: Folds, progress: Progress, rule: Callable[[Array], int]
) -> FittedProbe:
    _check_arguments("logistic", options.classifier_args, ("C",))
    weight = _weights(rows, options.class_weight)
    total = float(weight.sum())
    own = _candidates("C", options.classifier_args.get("C"), float)
    Cs = own or [strength / total for strength in STRENGTHS]
    rounds, tol = 0, ROUGH if len(np.unique(rows.units())) > FEW else TOLERANCE

    def evaluate(values: list[float]) -> Array:
        nonlocal rounds
        rounds += 1
        scores = np.zeros((len(folds), len(values), 2))
        for number, (train, validate) in enumerate(folds):
            part, held = rows.take(train), rows.take(validate)
            part_weight = _weights(part, options.class_weight)
            standardiser = Standardiser.fit(part.X, part_weight)
            X = standardiser.transform(part.X)
            path = fit_path(X, part.y, rows.width, values, sample_weight=part_weight, tol=tol)
            X = standardiser.transform(held.X)
            scores[number] = [score(model.probs(X), held.y, weight[validate]) for model in path]
            progress((rounds - 1) * len(folds) + number + 1, rounds * len(folds) + 1)
        return scores

    if len(Cs) == 1:
        C, choice = Cs[0], {"C": Cs[0], "criterion": "given"}
    elif not folds:
        C = DEFAULT_STRENGTH / total if own is None else Cs[len(Cs) // 2]
        choice = {"C": C, "criterion": NO_FOLDS}
    else:
        scores = evaluate(Cs)
        while own is None:
            best = rule(scores)
            if best == 0 and Cs[0] * total / STEP**2 > REACH[0]:
                more = [Cs[0] / STEP**2, Cs[0] / STEP]
                Cs, scores = more + Cs, np.concatenate([evaluate(more), scores], axis=1)
            elif best == len(Cs) - 1 and Cs[-1] * total * STEP**2 < REACH[1]:
                more = [Cs[-1] * STEP, Cs[-1] * STEP**2]
                Cs, scores = Cs + more, np.concatenate([scores, evaluate(more)], axis=1)
            else:
                break
        C = Cs[rule(scores)]
        weighted = options.class_weight is not None or rows.weight is not None
        choice = choice_record("C", C, Cs, scores, weighted=weighted, rows=_part(folds, rows))
    standardiser = Standardiser.fit(rows.X, weight)
    X = standardiser.transform(rows.X if rows.X.size > EXACT else rows.X.astype(np.float64))
    model = fit_path(X, rows.y, rows.width, [C], sample_weight=weight, tol=1e-6)[0]
    progress(rounds * len(folds) + 1, rounds * len(folds) + 1)
    return FittedProbe("logistic", choice, rows.width, linear=standardiser.fold(model))


def _fit_knn(
    rows: LabelledRows, options: ProbeOptions, folds: Folds, progress: Progress, rule: Callable[[Array], int]
) -> FittedProbe:
    if options.class_weight is not None or rows.weight is not None:
        raise ConfigError("knn takes no class or sample weights - leave them out, or use 'logistic'")
    arguments = options.classifier_args
    _check_arguments("knn", arguments, ("k", "temperature"))
    temperatures = _candidates("temperature", arguments.get("temperature", TEMPERATURE), float) or []
    if len(temperatures) != 1:
        raise ConfigError(f"temperature is {arguments['temperature']!r}; expected one number above 0")
    temperature = temperatures[0]
    own = _candidates("k", arguments.get("k"), int)
    most = min((len(train) for train, _ in folds), default=len(rows)) if own is None or len(own) > 1 else len(rows)
    ks = [k for k in own or NEIGHBOURS if k <= most]
    if not ks:
        raise ConfigError(f"k is {arguments.get('k')!r}, but there are {most} rows to vote - give a smaller k")
    if len(ks) == 1:
        k, choice = ks[0], {"k": ks[0], "criterion": "given" if own else "the only k with so few rows"}
    elif not folds:
        k, choice = ks[0], {"k": ks[0], "criterion": NO_FOLDS}
    else:
        scores = np.zeros((len(folds), len(ks), 2))
        for number, (train, validate) in enumerate(folds):
            part, held = rows.take(train), rows.take(validate)
            voters = Neighbours.fit(part.X, part.y, rows.width, k=ks[-1], temperature=temperature)
            scores[number] = [score(probs, held.y, np.ones(len(held))) for probs in voters.votes(held.X, ks)]
            progress(number + 1, len(folds) + 1)
        k = ks[rule(scores)]
        choice = choice_record("k", k, ks, scores, weighted=False, rows=_part(folds, rows))
    neighbours = Neighbours.fit(rows.X, rows.y, rows.width, k=k, temperature=temperature)
    progress(len(folds) + 1, len(folds) + 1)
    return FittedProbe("knn", {**choice, "temperature": temperature}, rows.width, neighbours=neighbours)


RIDGES = tuple(10.0 ** (power / 2) for power in range(4, -9, -1))
"""Strengths of ridge over the rows' total weight, strong ones first."""


def _fit_ridge(
    rows: LabelledRows, options: ProbeOptions, folds: Folds, progress: Progress, rule: Callable[[Array], int]
) -> FittedProbe:
    _check_arguments("ridge", options.classifier_args, ("strength",))
    weight = _weights(rows, options.class_weight)
    own = _candidates("strength", options.classifier_args.get("strength"), float)
    strengths = list(RIDGES) if own is None else own[::-1]
    names = tuple(map(str, range(rows.width)))
    everything = RowStatistics.of(rows.X, rows.y, names, weight)
    if len(strengths) == 1:
        strength, choice = strengths[0], {"strength": strengths[0], "criterion": "given"}
    elif not folds:
        strength = 1.0 if own is None else strengths[len(strengths) // 2]
        choice = {"strength": strength, "criterion": NO_FOLDS}
    else:
        scores = np.zeros((len(folds), len(strengths), 2))
        for number, (train, validate) in enumerate(folds):
            out, held = np.setdiff1d(np.arange(len(rows)), train), rows.take(validate)
            path = (everything - RowStatistics.of(rows.X[out], rows.y[out], names, weight[out])).solve(strengths)
            scores[number] = [score(model.probs(held.X), held.y, weight[validate]) for model in path]
            progress(number + 1, len(folds) + 1)
        strength = strengths[rule(scores)]
        weighted = options.class_weight is not None or rows.weight is not None
        choice = choice_record("strength", strength, strengths, scores, weighted=weighted, rows=_part(folds, rows))
    progress(len(folds) + 1, len(folds) + 1)
    return _ridge_of(everything, strength, choice)


def add_rows(before: RowStatistics, rows: LabelledRows, names: Sequence[str], strength: float) -> FittedProbe:
    """Return the ridge classifier of earlier rows and more, exactly as if all were fitted at once.

    Args:
        before: Of the earlier rows.
        rows: More of them, whose classes are `names`.
        names: All classes, those of `before` among them.
        strength: Of the earlier fit.
    """
    weight = _weights(rows, None)
    everything = (before + RowStatistics.of(rows.X, rows.y, names, weight)).over(names)
    total = float(before.weight.sum())
    choice = {"strength": strength, "criterion": f"that of the fit before, on rows of weight {total:g}"}
    return _ridge_of(everything, strength, choice)


def _ridge_of(statistics: RowStatistics, strength: float, choice: Mapping[str, Any]) -> FittedProbe:
    (model,) = statistics.solve([strength])
    return FittedProbe("ridge", choice, len(statistics.names), linear=model, statistics=statistics)


def _fit_by_path(rows: LabelledRows, options: ProbeOptions, seed: int, progress: Progress) -> FittedProbe:
    path = options.classifier
    estimator = build_estimator(path, options.classifier_args, class_weight=options.class_weight, seed=seed)
    pipeline = fit_estimator(path, estimator, rows)
    plain = (str, int, float, bool, type(None))
    choice = {
        "classifier": path,
        "classifier_args": {
            key: value if isinstance(value, plain) else repr(value) for key, value in options.classifier_args.items()
        },
        "criterion": "none: fitted with the arguments given",
        "probabilities": "the classifier's own" if gives_probabilities(pipeline)
        else "softmax of its decision values, not calibrated",
    }  # fmt: skip
    progress(1, 1)
    linear = estimator_linear(pipeline, rows.width)
    return FittedProbe(path, choice, rows.width, linear, estimator=pipeline)
