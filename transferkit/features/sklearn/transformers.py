"""The border to scikit-learn: deep features as a transformer, a probe on them as a classifier.

The network lies in the process, not in the estimators: clones share it, and a pickled estimator holds names and numbers
only. Rows come from the feature store, so a grid search or a cross-validation runs the network once per picture.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin

from transferkit.core.errors import BackboneError, ConfigError, TransferkitWarning, did_you_mean
from transferkit.data.batches.dataset import Picture
from transferkit.data.batches.views import Views
from transferkit.data.sample import SAMPLE
from transferkit.features.engine.compute import Compute, FrozenBackbone
from transferkit.features.engine.taps import ALL, Tap, find_taps
from transferkit.features.extract.extract import frozen_backbone, make_views
from transferkit.features.extract.extraction import extract_pictures
from transferkit.features.probe.probe import FittedProbe, fit_probe
from transferkit.features.sklearn.inputs import (
    InputError,
    NotFitted,
    encode_labels,
    list_items,
    name_unreadable,
    read_items,
    weigh_labels,
)
from transferkit.features.store.store import FeatureStore
from transferkit.machine.cores import available_cores
from transferkit.machine.device import choose_accelerator, choose_workers, device_of, keep_memory
from transferkit.options.features import FeaturesConfig
from transferkit.options.fields import make_config

__all__ = ["FeatureExtractor", "ImageProbe"]

Rows = npt.NDArray[np.float32]
Labels = npt.NDArray[Any]

ON_ERROR = ("raise", "nan")
SHARED = ("backbone", "weights", "image_size", "layer", "pool", "cache", "precision", "accelerator")
"""Arguments that the probe hands on to its extractor."""


@dataclass(frozen=True)
class _Setup:
    """What an extractor's arguments come to."""

    frozen: FrozenBackbone
    tap: Tap
    views: Views
    store: FeatureStore
    compute: Compute

    def rows(self, pictures: Sequence[Picture | str]) -> tuple[Rows, dict[int, str]]:
        """Return features ``(N, D)``, NaN where there is no picture, and the reasons by position."""
        failures = {at: picture for at, picture in enumerate(pictures) if isinstance(picture, str)}
        places = [at for at in range(len(pictures)) if at not in failures]
        readable = [picture for picture in pictures if isinstance(picture, Picture)]
        extraction = extract_pictures(readable, self.frozen, (self.tap,), self.views, self.store, self.compute)
        found = extraction.rows[self.tap][0]
        failures |= {places[at]: reason for at, reason in extraction.failures.items()}
        if len(readable) == len(pictures):
            return found, failures
        rows = np.full((len(pictures), found.shape[1]), np.nan, dtype=np.float32)
        rows[places] = found
        return rows, dict(sorted(failures.items()))


class FeatureExtractor(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Pictures to features of a frozen backbone, as a step of a scikit-learn pipeline.

    X is a list, array or Series of paths, Pillow pictures and uint8 arrays ``(H, W, 3)`` or ``(H, W)``, mixed as you
    like, or one uint8 array ``(N, H, W, 3)``. Nothing is learned from X: `transform` works before `fit`, as with
    scikit-learn's ``Normalizer``. After `fit` it insists on the weights that were there then, in other processes too.

    Args:
        backbone: ``transferkit/mini``, a timm name, ``torchvision/NAME`` or a registered name.
        weights: ``"pretrained"``, ``"bundled"``, ``"random"`` (others in every process), ``"hf-hub:ID"`` or a file.
        image_size: Side of the network's input in pixels; default: the backbone's own.
        layer: ``"pooled"``, the penultimate layer; or a stage by number (``"stage3"``) or name (``"layer3"``).
        pool: ``"avg"``, ``"max"``, ``"avgmax"`` or ``"cls"``; default: the backbone's own, the average for stages.
        cache: Directory of the feature store; default: in the user's cache, shared by all runs.
        precision: ``"auto"``, ``"32"`` or ``"bf16"``.
        accelerator: ``"auto"``, ``"cpu"``, ``"gpu"`` or ``"mps"``.
        batch_size: Pictures per forward pass; default: what suits the device.
        on_error: ``"raise"``, or ``"nan"`` for rows of NaN where a picture cannot be read.

    Attributes:
        n_features_out_: D.
        layer_: The layer's own name, such as ``"layer3"``.
        pool_: ``"own"`` or one of the above.
        image_size_: ``(height, width)`` of the network's input in pixels.
        weights_sha256_: Of the network's tensors.
        precision_: What features are computed in, ``"32"`` or ``"bf16"``.
    """

    def __init__(
        self,
        backbone: str = "transferkit/mini",
        *,
        weights: str | os.PathLike[str] = "pretrained",
        image_size: int | None = None,
        layer: str = "pooled",
        pool: str | None = None,
        cache: str | os.PathLike[str] | None = None,
        precision: str = "auto",
        accelerator: str = "auto",
        batch_size: int | None = None,
        on_error: str = "raise",
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.image_size = image_size
        self.layer = layer
        self.pool = pool
        self.cache = cache
        self.precision = precision
        self.accelerator = accelerator
        self.batch_size = batch_size
        self.on_error = on_error

    def fit(self, X: Any, y: Any = None) -> Self:
        """Check the arguments and the kinds of X's items, and find out what the features will be. No file is read.

        Args:
            X: N pictures.
            y: Ignored.

        Raises:
            ConfigError: An argument is wrong.
            InputError: X is not pictures.
            BackboneError: The backbone is unknown, or its weights cannot be had or do not fit.
        """
        setup = self._setup()
        list_items(X)
        self._learn(setup)
        return self

    def transform(self, X: Any) -> Rows:
        """Return features ``(N, D) float32``, rows in the order of X; equal to those of `extract_features`.

        Args:
            X: N pictures.

        Raises:
            ConfigError: An argument is wrong.
            InputError: X is not pictures; or some cannot be read, with ``on_error="raise"``: all of them are named.
            BackboneError: The backbone is unknown, or its weights are not those of `fit`.
            StoreError: Features are not finite.
            StorageError: The disk is full or failing.
        """
        setup = self._setup()
        digest = setup.frozen.digest
        expected = vars(self).get("weights_sha256_", digest)  # not there before `fit`
        if digest != expected:
            raise BackboneError(
                f"{self.backbone} with weights {self.weights!r} is not the network that this extractor was fitted with "
                f"(sha256 {digest[:12]}, expected {expected[:12]}) - give it the same weights, or fit again; random "
                "ones differ from process to process"
            )
        items = list_items(X)
        rows, failures = setup.rows(read_items(items, threads=setup.compute.threads))
        if failures and self.on_error == "raise":
            raise InputError(
                f"{name_unreadable(items, failures)} - replace them, or pass on_error='nan' for rows of NaN"
            )
        if failures:
            warnings.warn(f"{name_unreadable(items, failures)}: their rows are NaN", TransferkitWarning, stacklevel=3)
        return rows

    def __sklearn_tags__(self) -> Any:
        tags = _picture_tags(super().__sklearn_tags__())
        tags.requires_fit = False
        tags.transformer_tags.preserves_dtype = []
        return tags

    @property
    def _n_features_out(self) -> int:
        return self.n_features_out_

    def _setup(self) -> _Setup:
        """Check the arguments and make what they ask for. The network is made once per process."""
        if self.on_error not in ON_ERROR:
            raise ConfigError(
                f"on_error is {self.on_error!r}.{did_you_mean(str(self.on_error), ON_ERROR)} Expected 'raise' or 'nan'"
            )
        given = {name: _plain(getattr(self, name)) for name in (*SHARED, "batch_size")}
        config = make_config(FeaturesConfig, {"data": SAMPLE, "store": given.pop("cache"), **given})
        if config.layer == ALL:
            raise ConfigError("layer is 'all', expected one layer - join several extractors by a FeatureUnion")
        frozen = frozen_backbone(config.backbone, config.weights, config.image_size)
        tap = find_taps(frozen.backbone, config.layer, config.pool)[0]
        views = make_views(frozen.backbone.data_config, 0, "none", 0)
        return _Setup(frozen, tap, views, FeatureStore(config.store), _compute(config))

    def _learn(self, setup: _Setup) -> None:
        self.layer_, self.pool_ = setup.tap.layer, setup.tap.pool
        self.image_size_ = setup.frozen.backbone.data_config.image_size
        self.weights_sha256_ = setup.frozen.digest
        self.precision_ = setup.frozen.choose_precision((setup.tap,), setup.compute).precision
        self.n_features_out_ = int(setup.rows([])[0].shape[1])


class ImageProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # an untyped base
    """A classifier of pictures: a probe on the features of a frozen backbone.

    X is as for `FeatureExtractor`, y any labels of classes. What the probe chooses (C, k) is cross-validated inside the
    rows of `fit`, equal pictures in one fold.

    Args:
        backbone: As for `FeatureExtractor`.
        weights: Likewise.
        image_size: Likewise.
        layer: Likewise.
        pool: Likewise.
        cache: Likewise.
        classifier: ``"logistic"``, ``"knn"`` or the import path of a scikit-learn classifier, which is fitted on
            standardised features.
        classifier_args: ``{"C": number or list}``, ``{"k": number or list, "temperature": number}``, or the
            constructor's arguments for an import path.
        class_weight: ``"balanced"`` gives every class the same total weight, in the fit and in what is chosen by; or
            weight by label, 1 for those not named.
        folds: Folds at most, at least 2.
        seed: Of the folds, and of a classifier that draws at random.
        precision: As for `FeatureExtractor`.
        accelerator: Likewise.

    Attributes:
        classes_: ``(C,)``, the labels, sorted.
        choice_: What was chosen, by which criterion, on what; JSON values.
        probe_: The fitted probe, on raw features and class indices.
        extractor_: The fitted `FeatureExtractor`.
    """

    def __init__(
        self,
        backbone: str = "transferkit/mini",
        *,
        weights: str | os.PathLike[str] = "pretrained",
        image_size: int | None = None,
        layer: str = "pooled",
        pool: str | None = None,
        cache: str | os.PathLike[str] | None = None,
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
        self.layer = layer
        self.pool = pool
        self.cache = cache
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
            y: ``(N,)`` labels: text, numbers or booleans; at least two classes.

        Raises:
            ConfigError: An argument is wrong.
            InputError: X is not pictures, or y not one label for each, or pictures cannot be read: all are named.
            BackboneError: The backbone is unknown, or its weights cannot be had or do not fit.
            StoreError: Features are not finite.
            StorageError: The disk is full or failing.
        """
        extractor = FeatureExtractor(**{name: getattr(self, name) for name in SHARED})
        items = list_items(X)
        classes, targets = encode_labels(y, len(items))
        setup = extractor._setup()
        extractor._learn(setup)
        pictures = read_items(items, threads=setup.compute.threads)
        rows, failures = setup.rows(pictures)
        if failures:
            raise InputError(f"{name_unreadable(items, failures)} - replace them, or leave them out")
        weights = self.class_weight
        self.probe_: FittedProbe = fit_probe(
            rows,
            targets,
            len(classes),
            classifier=self.classifier,
            classifier_args=self.classifier_args,
            class_weight=None if isinstance(weights, Mapping) else weights,
            sample_weight=weigh_labels(weights, classes[targets]) if isinstance(weights, Mapping) else None,
            groups=[picture.sha256 for picture in pictures if isinstance(picture, Picture)],
            folds=self.folds,
            seed=self.seed,
        )
        self.classes_ = classes
        self.choice_ = dict(self.probe_.choice)
        self.extractor_ = extractor
        return self

    def predict(self, X: Any) -> Labels:
        """Return labels ``(N,)``. Raises as `FeatureExtractor.transform`, and `NotFitted`."""
        rows = self._rows(X)  # first, for it says so where nothing is fitted
        return np.asarray(self.classes_[self.probe_.predict(rows)])

    def predict_proba(self, X: Any) -> Rows:
        """Return probabilities ``(N, C)`` float32, columns in the order of `classes_`. Raises as `predict`."""
        rows = self._rows(X)
        return self.probe_.probs(rows)

    def __sklearn_tags__(self) -> Any:
        return _picture_tags(super().__sklearn_tags__())

    def _rows(self, X: Any) -> Rows:
        if "probe_" not in vars(self):
            raise NotFitted(f"this {type(self).__name__} is not fitted yet - call fit(X, y) first")
        return self.extractor_.transform(X)


def _compute(config: FeaturesConfig) -> Compute:
    """What to compute with, in a process that belongs to somebody else: its number of threads is left as it is."""
    chosen = choose_accelerator(config.accelerator)
    keep_memory()
    threads = min(torch.get_num_threads(), available_cores())
    # A worker of joblib's has been given its share of the cores, and that number of threads says how large it is.
    workers = 0 if chosen == "cpu" else min(choose_workers(None, chosen)[0], max(1, threads - 1))
    return Compute(device_of(chosen), config.precision, "auto", workers, threads, config.batch_size)


def _picture_tags(tags: Any) -> Any:
    tags.input_tags.two_d_array = False
    tags.input_tags.string = True
    return tags


def _plain(value: Any) -> Any:
    """A parameter grid may be an array: its numbers are numpy's."""
    return value.item() if isinstance(value, np.generic) else value
