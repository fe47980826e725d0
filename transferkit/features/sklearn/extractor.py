"""`FeatureExtractor`: pictures to features of a frozen backbone, as a step of a scikit-learn pipeline."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin

from transferkit.core.errors import BackboneError, ConfigError, TransferkitWarning, did_you_mean
from transferkit.data.augment.views import Views
from transferkit.data.batches.dataset import Picture
from transferkit.data.sample import SAMPLE
from transferkit.features.engine.compute import Compute, FrozenBackbone
from transferkit.features.engine.taps import ALL, Tap, find_taps
from transferkit.features.extract.extract import frozen_backbone, make_views
from transferkit.features.extract.extraction import extract_pictures
from transferkit.features.sklearn.inputs import InputError, Item, list_items, name_unreadable, read_items
from transferkit.features.store.store import FeatureStore
from transferkit.machine.cores import available_cores
from transferkit.machine.device import choose_accelerator, choose_workers, device_of, keep_memory
from transferkit.options.features import FeaturesConfig
from transferkit.options.fields import make_config
from transferkit.options.sizes import ImageSize

__all__ = ["HOME", "SHARED", "FeatureExtractor", "Setup", "make_setup", "picture_tags"]

Rows = npt.NDArray[np.float32]

HOME = "transferkit.features.sklearn"
"""The module that estimators say they are of: saved ones name it, and it stays where its parts may move."""

ON_ERROR = ("raise", "nan")
SHARED = (
    "backbone", "weights", "image_size", "framing", "layer", "pool", "cache", "max_pixels", "ground", "grey_bits",
    "precision", "accelerator",
)  # fmt: skip
"""Arguments that the probe hands on to its extractor."""


@dataclass(frozen=True)
class Setup:
    """What an extractor's arguments come to."""

    frozen: FrozenBackbone
    tap: Tap
    views: Views
    store: FeatureStore
    compute: Compute

    def read(self, items: Sequence[Item]) -> list[Picture | str]:
        """Return each item as a picture known by its content, or why it cannot be read."""
        return read_items(items, self.views.evaluation.config.decoding, threads=self.compute.threads)

    def rows(self, pictures: Sequence[Picture | str]) -> tuple[Rows, dict[int, str]]:
        """Return features ``(N, D)``, NaN where there is no picture, and the reasons by position."""
        failures = {at: picture for at, picture in enumerate(pictures) if isinstance(picture, str)}
        places = [at for at in range(len(pictures)) if at not in failures]
        readable = [picture for picture in pictures if isinstance(picture, Picture)]
        extraction = extract_pictures(readable, self.frozen, (self.tap,), self.views, self.store, self.compute)
        features = extraction.rows[self.tap][0]
        failures |= {places[at]: reason for at, reason in extraction.failures.items()}
        if len(readable) == len(pictures):
            return features, failures
        rows = np.full((len(pictures), features.shape[1]), np.nan, dtype=np.float32)
        rows[places] = features
        return rows, dict(sorted(failures.items()))


class FeatureExtractor(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Pictures to features of a frozen backbone, as a step of a scikit-learn pipeline.

    X is a list, array or Series of paths, Pillow pictures and uint8 arrays ``(H, W, 3)`` or ``(H, W)``, mixed as you
    like, or one uint8 array ``(N, H, W, 3)``. Nothing is learned from X: `transform` works before `fit`, as with
    scikit-learn's ``Normalizer``. After `fit` it insists on the weights that were there then, in other processes too.
    Pictures of other than three channels are for `extract_features`, which learns their statistics from training.

    Args:
        backbone: ``transferkit/mini``, a timm name, ``torchvision/NAME`` or a registered name.
        weights: ``"pretrained"``, ``"bundled"``, ``"random"`` (others in every process), ``"hf-hub:ID"`` or a file.
        image_size: Network's input in pixels: a side, ``(224, 320)`` or ``"224x320"``; default: the backbone's own.
        framing: How a picture fills it: ``"crop"``, ``"squash"`` or ``"pad"``, as ``fit`` elsewhere; default: likewise.
        layer: ``"pooled"``, the penultimate layer; or a stage by number (``"stage3"``) or name (``"layer3"``).
        pool: ``"avg"``, ``"max"``, ``"avgmax"`` or ``"cls"``; default: the backbone's own, the average for stages.
        cache: Directory of the feature store; default: in the user's cache, shared by all runs.
        max_pixels: The largest picture that is decoded, in pixels; default: 100 million.
        ground: The colour that shows through transparent pixels: ``"white"``, ``"black"`` or ``"#rrggbb"``.
        grey_bits: Bits that the values of 16-bit grey pictures use, 8 to 16.
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
        precision: str = "auto",
        accelerator: str = "auto",
        batch_size: int | None = None,
        on_error: str = "raise",
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
        setup = make_setup(self)
        list_items(X)
        self.layer_, self.pool_ = setup.tap.layer, setup.tap.pool
        self.image_size_ = setup.frozen.backbone.data_config.image_size
        self.weights_sha256_ = setup.frozen.digest
        self.precision_ = setup.frozen.choose_precision((setup.tap,), setup.compute).precision
        self.n_features_out_ = int(setup.rows([])[0].shape[1])
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
        setup = make_setup(self)
        digest = setup.frozen.digest
        expected = vars(self).get("weights_sha256_", digest)  # not there before `fit`
        if digest != expected:
            raise BackboneError(
                f"{self.backbone} with weights {self.weights!r} is not the network that this extractor was fitted with "
                f"(sha256 {digest[:12]}, expected {expected[:12]}) - give it the same weights, or fit again; random "
                "ones differ from process to process"
            )
        items = list_items(X)
        rows, failures = setup.rows(setup.read(items))
        if failures and self.on_error == "raise":
            raise InputError(
                f"{name_unreadable(items, failures)} - replace them, or pass on_error='nan' for rows of NaN"
            )
        if failures:
            warnings.warn(f"{name_unreadable(items, failures)}: their rows are NaN", TransferkitWarning, stacklevel=3)
        return rows

    def __sklearn_tags__(self) -> Any:
        tags = picture_tags(super().__sklearn_tags__())
        tags.requires_fit = False
        tags.transformer_tags.preserves_dtype = []
        return tags

    @property
    def _n_features_out(self) -> int:
        return self.n_features_out_


def make_setup(extractor: FeatureExtractor) -> Setup:
    """Check the arguments of an extractor and return what they come to; the network is made once per process.

    Raises:
        ConfigError: An argument is wrong.
        BackboneError: The backbone is unknown, or its weights cannot be had or do not fit.
    """
    if extractor.on_error not in ON_ERROR:
        hint = did_you_mean(str(extractor.on_error), ON_ERROR)
        raise ConfigError(f"on_error is {extractor.on_error!r}.{hint} Expected 'raise' or 'nan'")
    options = {name: _plain(getattr(extractor, name)) for name in (*SHARED, "batch_size")}
    renamed = {"store": options.pop("cache"), "fit": options.pop("framing")}
    config = make_config(FeaturesConfig, {"data": SAMPLE, **renamed, **options})
    if config.layer == ALL:
        raise ConfigError("layer is 'all', expected one layer - join several extractors by a FeatureUnion")
    frozen = frozen_backbone(config.backbone, config.weights, config.size)
    tap = find_taps(frozen.backbone, config.layer, config.pool)[0]
    usual = frozen.backbone.data_config
    views = make_views(config.prepared(usual), 0, "none", 0)
    return Setup(frozen, tap, views, FeatureStore(config.store), _compute(config))


def _compute(config: FeaturesConfig) -> Compute:
    """Return what to compute with in somebody else's process, whose number of threads is left as it is."""
    chosen = choose_accelerator(config.accelerator)
    keep_memory()
    threads = min(torch.get_num_threads(), available_cores())
    # A worker of joblib's has been given its share of the cores, and that number of threads says how large it is.
    workers = 0 if chosen == "cpu" else min(choose_workers(None, chosen)[0], max(1, threads - 1))
    return Compute(device_of(chosen), config.precision, "auto", workers, threads, config.batch_size)


def picture_tags(tags: Any) -> Any:
    """Change scikit-learn's tags of an estimator of numbers to those of one of pictures."""
    tags.input_tags.two_d_array = False
    tags.input_tags.string = True
    return tags


def _plain(value: Any) -> Any:
    """Return a number of numpy's, as those of a parameter grid are, as one of Python's."""
    return value.item() if isinstance(value, np.generic) else value
