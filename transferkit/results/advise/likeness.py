"""How like the pictures of the source a data set is, as far as weights and features can tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from transferkit.core.errors import DataError
from transferkit.core.records import DataConfig
from transferkit.data.augment.normalise import normalise
from transferkit.data.augment.transform import eval_transform
from transferkit.data.augment.views import Views
from transferkit.data.batches.dataset import ImageDataset, Picture
from transferkit.data.images.known_files import hash_files
from transferkit.data.scan.named import find_pictures
from transferkit.features.engine.compute import Compute
from transferkit.features.engine.taps import find_taps
from transferkit.models.backbones.interface import Backbone
from transferkit.models.freezing import evaluation_mode
from transferkit.models.heads.solver import Array
from transferkit.models.unlike.distance import SAMPLED
from transferkit.models.unlike.two_sample import LEAST_OF_TEST, TwoSamples, compare_samples
from transferkit.results.advise.candidates import Contender
from transferkit.results.advise.pictures import TrainingPictures

__all__ = ["NEAR", "SHIFTED", "norm_shift", "source_test"]

Progress = Callable[[int, int], None]

NEAR: Final = 0.45
"""Shift below which pictures count as like the source. Measured with two networks trained on Tiny-ImageNet at 64 and 96
px: photos of clothes 0.24 to 0.31, drawn surfaces 0.31 to 0.40, fluorescent nuclei 0.49 to 0.67, blood cells 0.63 to
0.73, digits 0.74 to 0.95 (`tests/bench/RESULTS.md`)."""

SHIFTED: Final = 256
"""Pictures that the shift is measured on, at most."""

BATCH: Final = 32


def norm_shift(backbone: Backbone, pictures: Sequence[Picture], prepared: DataConfig) -> float | None:
    """Return how far the channels of a network are from where they were on the pictures that it was trained on.

    Weights alone say nothing of the source, but batch norm does: its running mean and variance are those of every
    channel on the source, as far as they were measured there. Per channel this is the 2-Wasserstein distance of two
    normal distributions, that of these pictures and that of the source, in deviations of the source; then the mean over
    the channels of a layer, and over the layers. Schneider et al. 2020 (*Improving robustness against common
    corruptions by covariate shift adaptation*) foretell the errors of a network by the same distance.

    Args:
        backbone: Frozen; left as it is.
        pictures: At least two; the first `SHIFTED` count.
        prepared: How they are shown.

    Returns:
        0 for pictures like the source's; ``None`` where no layer holds statistics, as in networks with layer norm.
    """
    norms = [module for module in backbone.modules() if isinstance(module, _BatchNorm) and _measured(module)]
    if not norms:
        return None
    sums = {id(norm): _Sums() for norm in norms}
    handles = [norm.register_forward_pre_hook(_adder(sums[id(norm)])) for norm in norms]
    dataset = ImageDataset(list(pictures[:SHIFTED]), Views(eval_transform(prepared)))
    try:
        with evaluation_mode(backbone), torch.inference_mode():
            for start in range(0, len(dataset), BATCH):
                batch = dataset.batch(list(range(start, min(start + BATCH, len(dataset)))))
                backbone(normalise(torch.as_tensor(batch.images), prepared))
    finally:
        for handle in handles:
            handle.remove()
    return float(np.mean([_distance(norm, sums[id(norm)]) for norm in norms if sums[id(norm)].count]))


def _measured(norm: _BatchNorm) -> bool:
    """Whether a norm holds statistics of pictures: those of a new network are 0 and 1, exactly."""
    if norm.running_mean is None or norm.running_var is None:
        return False
    return bool((norm.running_mean != 0).any() or (norm.running_var != 1).any())


@dataclass
class _Sums:
    """Sums over all places of all pictures, of each channel."""

    count: int = 0
    first: Any = 0.0
    second: Any = 0.0

    def add(self, inputs: Tensor) -> None:
        rows = inputs.detach().double().transpose(0, 1).flatten(1)
        self.count += rows.shape[1]
        self.first = self.first + rows.sum(dim=1)
        self.second = self.second + rows.square().sum(dim=1)


def _adder(sums: _Sums) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sums.add(inputs[0])

    return hook


def _distance(norm: _BatchNorm, sums: _Sums) -> float:
    if norm.running_mean is None or norm.running_var is None:
        raise TypeError("a batch norm without statistics has no distance")
    mean, source = sums.first / sums.count, norm.running_mean.double()
    spread = (sums.second / sums.count - mean.square()).clamp_min(0).sqrt()
    variance = norm.running_var.double()
    squares = ((mean - source).square() + (spread - variance.sqrt()).square()) / (variance + norm.eps)
    return float(squares.sqrt().mean())


def source_test(
    pictures: TrainingPictures,
    contender: Contender,
    features: Array,
    compute: Compute,
    progress: Progress | None = None,
) -> TwoSamples | None:
    """Return the test of some training pictures against those of ``--source``, on features of length 1.

    Args:
        pictures: Of the data set; its options name the folder.
        contender: The network.
        features: ``(n, D)``, of training pictures; `SAMPLED` of them count.
        compute: What it runs on.
        progress: Called with pictures computed and pictures to compute.

    Returns:
        ``None`` where no folder is named.

    Raises:
        DataError: Too few of its pictures can be read.
    """
    config = pictures.config
    if config.source is None:
        return None
    paths = list(find_pictures([config.source]))
    chosen = [paths[at] for at in _sample(len(paths), config.seed)]
    files = [Picture(read.path, read.sha256) for read in hash_files(chosen, rescan=config.rescan) if read.sha256]
    rows = pictures.features_of(contender, files, find_taps(contender.frozen.backbone), compute, progress)[0]
    rows = rows[np.isfinite(rows).all(axis=1)]  # those that cannot be decoded have none
    mine = features[_sample(len(features), config.seed)]
    if min(len(rows), len(mine)) < LEAST_OF_TEST:
        raise DataError(
            f"--source {config.source}: {len(rows)} pictures that can be read, beside {len(mine)} of the data; "
            f"expected at least {LEAST_OF_TEST} of each - name a larger folder, or leave it out"
        )
    return compare_samples(_normalised(mine), _normalised(rows), seed=config.seed)


def _sample(count: int, seed: int) -> Array:
    return np.sort(np.random.default_rng(seed).permutation(count)[:SAMPLED])


def _normalised(rows: Array) -> Array:
    wide = rows.astype(np.float64)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12))
