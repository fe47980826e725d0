"""From the best epoch's weights to the product: what the options do with them after the last step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from transferkit.data.batches.datamodule import ImageData, normalise
from transferkit.models.figures.classification import classification_metrics
from transferkit.models.module import TransferModule
from transferkit.options.training import FinetuneConfig
from transferkit.training.craft.batchnorm import recalibrate_bn
from transferkit.training.craft.interpolation import choose_alpha, load_start
from transferkit.training.craft.snapshots import ensemble_probs, weights_of
from transferkit.training.plan.phases import Phase

__all__ = ["finish_weights", "measure_snapshots"]

ROWS = ("acc", "acc_ci", "loss", "ece", "n")
"""What is told of an ensemble; the product has all figures."""


def finish_weights(
    run: Path, config: FinetuneConfig, data: ImageData, module: TransferModule, phases: tuple[Phase, ...], device: str
) -> dict[str, Any]:
    """Do to the best epoch's weights what was asked for; return what came of it, for `metrics.json`.

    Interpolation comes first, then batch-norm statistics, of the weights that were chosen.

    Args:
        run: The run directory.
        config: The options.
        data: The pictures.
        module: With the best epoch's weights; has the product's afterwards.
        phases: Those that were trained.
        device: Where to compute.
    """
    told: dict[str, Any] = {}
    if config.interpolate:
        found = choose_alpha(module, load_start(run), weights_of(module), data.evaluation_loader("val"), device=device)
        found.save(run)
        told["interpolation"] = {"alpha": found.alpha, "alphas": list(found.alphas), "val_acc": list(found.val_acc),
                                 "val_loss": list(found.val_loss)}  # fmt: skip
    if config.recalibrate_bn:
        trained = {name for phase in phases if phase.epochs for name in phase.trained(module.group_names())}
        module.train_groups(tuple(trained))
        told["recalibrated_bn"] = recalibrate_bn(module.to(device), _batches(data), device=device)
    return told


def measure_snapshots(
    run: Path,
    config: FinetuneConfig,
    data: ImageData,
    module: TransferModule,
    device: str,
    *,
    splits: Sequence[str] = ("val", "test"),
) -> dict[str, Any]:
    """Return the figures of the snapshots on each split: of the mean of their probabilities, and each one's accuracy.

    Args:
        run: The run directory, which holds them.
        config: The options.
        data: The pictures.
        module: Like that which was trained.
        device: Where to compute.
        splits: To measure on, where the data have them.
    """
    told: dict[str, Any] = {}
    for split in splits:
        if not data.index.split(split):
            continue
        probs, targets, each = ensemble_probs(module, run, data.evaluation_loader(split), device=device)
        values = classification_metrics(probs, targets, data.class_names, seed=config.seed)
        told[split] = {key: values[key] for key in ROWS}
        told[split]["each_acc"] = [float((one.argmax(dim=1) == targets).double().mean()) for one in each]
    return told


def _batches(data: ImageData) -> Iterator[Tensor]:
    """The training pictures as they are evaluated."""
    for images, _ in data.evaluation_loader("train"):
        yield normalise(images, data.data_config)
