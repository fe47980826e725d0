"""Any classifier of scikit-learn, or in its manner, by import path."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model._base import LinearClassifierMixin
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import has_fit_parameter

from transferkit.core.errors import ConfigError, TransferkitWarning, did_you_mean, object_at
from transferkit.core.text import one_line
from transferkit.features.linear.logistic import LinearModel, Standardiser, softmax
from transferkit.models.heads.solver import Array, LabelledRows

__all__ = ["build_estimator", "estimator_linear", "estimator_probs", "fit_estimator", "gives_probabilities"]

EXPECTED = "expected a classifier class that subclasses sklearn.base.BaseEstimator, such as 'sklearn.svm.SVC'"


def build_estimator(path: str, arguments: Mapping[str, Any], *, class_weight: str | None, seed: int) -> Any:
    """Construct the classifier at an import path such as ``sklearn.svm.SVC``.

    Args:
        path: Module and class. Importing runs the module, so it must be one the user trusts.
        arguments: For the constructor.
        class_weight: Passed on where given.
        seed: ``random_state``, where the class has one and `arguments` does not set it.

    Raises:
        ConfigError: Nothing to import there, not a classifier, or arguments it does not take.
    """
    kind = object_at(path, f"classifier {path!r}", example="sklearn.svm.SVC")
    if not (inspect.isclass(kind) and issubclass(kind, BaseEstimator)):
        raise ConfigError(f"classifier {path!r} is {_what(kind)}; {EXPECTED}")
    known = sorted(set(inspect.signature(kind).parameters) - {"args", "kwargs"})
    for key in arguments:
        if key not in known:
            raise ConfigError(
                f"{path} takes no argument {key!r}; expected one of {', '.join(known) or 'none'}."
                f"{did_you_mean(key, known)}"
            )
    chosen = dict(arguments)
    if class_weight is not None:
        if "class_weight" not in known:
            raise ConfigError(
                f"{path} takes no class weights, but class_weight is {class_weight!r} - leave it out, "
                "or use a classifier that has `class_weight`"
            )
        if "class_weight" in chosen:
            raise ConfigError(
                "class_weight is given twice: as an option and in the classifier's arguments - leave one out"
            )
        chosen["class_weight"] = class_weight
    if "random_state" in known:
        chosen.setdefault("random_state", seed)
    try:
        estimator = kind(**chosen)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path} cannot be constructed: {error} - give what it needs as its arguments") from error
    if not is_classifier(estimator):
        raise ConfigError(f"classifier {path!r} is no classifier but another estimator; {EXPECTED}")
    return estimator


def fit_estimator(path: str, estimator: Any, rows: LabelledRows) -> Pipeline:
    """Fit a standardiser and the classifier on labelled features.

    Raises:
        ConfigError: It takes no sample weights, but the rows have some, it refused an argument, or what it gives can be
            made into neither probabilities nor decision values per class.

    Warns:
        TransferkitWarning: It did not converge.
    """
    pipeline = make_pipeline(StandardScaler(), estimator)
    weights = {}
    if rows.weight is not None:
        if not has_fit_parameter(estimator, "sample_weight"):
            raise ConfigError(f"{path} takes no sample weights - leave them out, or use a classifier that does")
        weights = {f"{name}__sample_weight": rows.weight for name, _ in pipeline.steps}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            pipeline.fit(rows.X, rows.y, **weights)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{path} cannot be fitted: {error} - change its arguments") from error
    for warning in caught:
        if issubclass(warning.category, ConvergenceWarning):
            warnings.warn(f"{path} did not converge: {one_line(warning.message)}", TransferkitWarning, stacklevel=3)
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if not gives_probabilities(pipeline):
        decide = getattr(pipeline, "decision_function", None)
        if decide is None:
            raise ConfigError(f"{path} gives neither probabilities nor decision values - use another classifier")
        columns, classes = np.ndim(decide(rows.X[:1])) > 1 and decide(rows.X[:1]).shape[1], len(pipeline.classes_)
        if columns and columns != classes:
            raise ConfigError(
                f"{path} gives {columns} decision values for {classes} classes; expected one per class - "
                "set decision_function_shape to 'ovr'"
            )
    return pipeline


def gives_probabilities(pipeline: Pipeline) -> bool:
    """Whether a fitted classifier has ``predict_proba``, which may depend on its arguments and on nothing else."""
    return getattr(pipeline, "predict_proba", None) is not None


def estimator_probs(pipeline: Pipeline, X: Array, num_classes: int) -> Array:
    """Return probabilities (N, C), 0 for classes it never saw: its own, or else a softmax of its decision values."""
    if gives_probabilities(pipeline):
        own = pipeline.predict_proba(X)
    else:
        decision = pipeline.decision_function(X)
        own = softmax(decision if decision.ndim == 2 else np.stack([np.zeros_like(decision), decision], axis=1))
    probs = np.zeros((len(X), num_classes))
    probs[:, pipeline.classes_] = own
    return np.asarray(probs / probs.sum(axis=1, keepdims=True))


def estimator_linear(pipeline: Pipeline, num_classes: int) -> LinearModel | None:
    """Return the linear model on raw features, for scikit-learn's linear classifiers; ``None`` for others."""
    scaler, estimator = pipeline[0], pipeline[-1]
    if not isinstance(estimator, LinearClassifierMixin):
        return None
    coef = estimator.coef_.toarray() if issparse(estimator.coef_) else estimator.coef_
    weight = np.atleast_2d(np.asarray(coef, dtype=np.float64))  # RidgeClassifier gives (D,) for two classes
    bias = np.broadcast_to(np.asarray(estimator.intercept_, dtype=np.float64), len(weight))
    model = LinearModel.from_rows(weight, bias, estimator.classes_, num_classes)
    return Standardiser(np.asarray(scaler.mean_), np.asarray(scaler.scale_)).fold(model)


def _what(value: Any) -> str:
    return f"the class {value.__name__}" if inspect.isclass(value) else f"a {type(value).__name__}"
