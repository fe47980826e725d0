"""`ImageProbe`: a classifier of pictures for scikit-learn, a probe on the features of a frozen backbone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin

from transferkit.core.errors import ConfigError
from transferkit.data.batches.dataset import Picture
from transferkit.features.linear.labels import FittedLabels, LabelSolver
from transferkit.features.probe.probe import FittedProbe, fit_probe
from transferkit.features.sklearn.extractor import HOME, SHARED, FeatureExtractor, make_setup, picture_tags
from transferkit.features.sklearn.inputs import (
    InputError,
    NotFitted,
    encode_indicators,
    encode_labels,
    list_items,
    name_unreadable,
    weigh_labels,
)
from transferkit.models.heads.solver import LabelledRows, ProbeOptions
from transferkit.options.sizes import ImageSize

__all__ = ["ImageProbe"]

Rows = npt.NDArray[np.float32]
Labels = npt.NDArray[Any]


class ImageProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # an untyped base
    """A classifier of pictures: a probe on the features of a frozen backbone.

    X is as for `FeatureExtractor`, y any labels of classes, or ``(N, C)`` of 0 and 1 for several labels per picture:
    one logistic regression each then, as scikit-learn's ``OneVsRestClassifier``. What the probe chooses (C, k) is
    cross-validated inside the rows of `fit`, equal pictures in one fold.

    Args:
        backbone: As for `FeatureExtractor`.
        weights: Likewise.
        image_size: Likewise.
        framing: Likewise.
        layer: Likewise.
        pool: Likewise.
        cache: Likewise.
        max_pixels: Likewise.
        ground: Likewise.
        grey_bits: Likewise.
        classifier: ``"logistic"``, ``"knn"`` or the import path of a scikit-learn classifier, which is fitted on
            standardised features.
        classifier_args: ``{"C": number or list}``, ``{"k": number or list, "temperature": number}``, or the
            constructor's arguments for an import path.
        class_weight: ``"balanced"`` gives every class the same total weight, in the fit and in what is chosen by; or
            weight by label, 1 for those not named.
        folds: Folds at most, at least 2; of more than 20,000 rows fewer.
        seed: Of the folds, and of a classifier that draws at random.
        precision: As for `FeatureExtractor`.
        accelerator: Likewise.

    Attributes:
        classes_: ``(C,)``, the labels, sorted; of several labels per picture their numbers.
        choice_: What was chosen, by which criterion, on what; JSON values.
        probe_: The fitted probe, on raw features and class indices (or ones and zeros).
        extractor_: The fitted `FeatureExtractor`.
    """

    __module__ = HOME

    def __init__(
        self,
        backbone: str = "transferkit/mini",
        *,
        weights: str | os.PathLike[str] = "pretrained",
        image_size: ImageSize = None,
        framing: str | None = None,
        layer: str = "pooled",
        pool: str | None = None,
        cache: str | os.PathLike[str] | None = None,
        max_pixels: int | None = None,
        ground: str | None = None,
        grey_bits: int | None = None,
        classifier: str = "logistic",
        classifier_args: Mapping[str, Any] | None = None,
        class_weight: str | Mapping[Any, float] | None = None,
        folds: int = 5,
        seed: int = 0,
        precision: str = "auto",
        accelerator: str = "auto",
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.image_size = image_size
        self.framing = framing
        self.layer = layer
        self.pool = pool
        self.cache = cache
        self.max_pixels = max_pixels
        self.ground = ground
        self.grey_bits = grey_bits
        self.classifier = classifier
        self.classifier_args = classifier_args
        self.class_weight = class_weight
        self.folds = folds
        self.seed = seed
        self.precision = precision
        self.accelerator = accelerator

    def fit(self, X: Any, y: Any) -> Self:
        """Extract the features of X and fit the probe.

        Args:
            X: N pictures.
            y: ``(N,)`` labels: text, numbers or booleans; at least two classes. Or ``(N, C)`` of 0 and 1, C at least 2.

        Raises:
            ConfigError: An argument is wrong.
            InputError: X is not pictures, or y not one label for each, or pictures cannot be read: all are named.
            BackboneError: The backbone is unknown, or its weights cannot be had or do not fit.
            StoreError: Features are not finite.
            StorageError: The disk is full or failing.
        """
        extractor = FeatureExtractor(**{name: getattr(self, name) for name in SHARED})
        items = list_items(X)
        weights, flags = self.class_weight, encode_indicators(y, len(items))
        if flags is not None and isinstance(weights, Mapping):
            raise ConfigError("class_weight by label is for one class per picture, expected None or 'balanced'")
        classes, targets = encode_labels(y, len(items)) if flags is None else (np.arange(flags.shape[1]), flags)
        setup = make_setup(extractor.fit(items))
        pictures = setup.read(items)
        rows, failures = setup.rows(pictures)
        if failures:
            raise InputError(f"{name_unreadable(items, failures)} - replace them, or leave them out")
        labelled = LabelledRows(
            rows,
            targets,
            len(classes),
            groups=[picture.sha256 for picture in pictures if isinstance(picture, Picture)],
            weight=weigh_labels(weights, classes[targets]) if isinstance(weights, Mapping) else None,
        )
        options = ProbeOptions(
            self.classifier,
            self.classifier_args or {},
            None if isinstance(weights, Mapping) else weights,
            self.folds,
        )
        fit = fit_probe if flags is None else LabelSolver().fit
        self.probe_: FittedProbe | FittedLabels = fit(labelled, options, seed=self.seed)
        self.classes_ = classes
        self.choice_ = dict(self.probe_.choice)
        self.extractor_ = extractor
        return self

    def predict(self, X: Any) -> Labels:
        """Return labels ``(N,)``, or 0 and 1 ``(N, C)``. Raises as `FeatureExtractor.transform`, and `NotFitted`."""
        rows = self._rows(X)  # first, for it says so where nothing is fitted
        if isinstance(self.probe_, FittedLabels):
            return np.asarray(self.probe_.outputs(rows) >= 0, dtype=np.int64)
        return np.asarray(self.classes_[self.probe_.predict(rows)])

    def predict_proba(self, X: Any) -> Rows:
        """Return probabilities ``(N, C)`` float32, columns in the order of `classes_`. Raises as `predict`.

        Rows sum to 1; of several labels per picture each column is a probability of its own.
        """
        rows = self._rows(X)
        return self.probe_.probs(rows)

    def __sklearn_tags__(self) -> Any:
        tags = picture_tags(super().__sklearn_tags__())
        tags.classifier_tags.multi_label = True
        return tags

    def _rows(self, X: Any) -> Rows:
        if "probe_" not in vars(self):
            raise NotFitted(f"this {type(self).__name__} is not fitted yet - call fit(X, y) first")
        return self.extractor_.transform(X)
