"""From options to what is trained: the data, read and checked, the model with its weights, its phases, the machine."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning as L

from transferkit.core.errors import ConfigError, DataError
from transferkit.core.errors import gather as gather_problems
from transferkit.data.batches.datamodule import ImageData
from transferkit.data.sample import SAMPLE
from transferkit.features.engine.compute import Compute
from transferkit.machine.cores import available_cores, free_memory
from transferkit.machine.device import choose_accelerator, choose_workers, device_of, tune_process
from transferkit.machine.precision import Machine, choose_training_precision
from transferkit.models.artifact import load_weights_from
from transferkit.models.backbones.registry import Backbone, create_backbone
from transferkit.models.losses import balanced_class_weights
from transferkit.models.module import TransferModule
from transferkit.options.training import TrainingOptions
from transferkit.show.progress import counting_bar, progress_console, waiting
from transferkit.training.plan.options import resolve_phases
from transferkit.training.plan.phases import Phase
from transferkit.training.ranks.parallel import gather, local_world, on_first

__all__ = ["Prepared", "build", "make_compute_of", "prepare"]

log = logging.getLogger("transferkit")

USUAL_BATCH = 32
"""Of a loader that is built before the batch size has been measured."""


@dataclass(frozen=True)
class Prepared:
    """What a training consists of, before its first step.

    Attributes:
        data: Read and checked.
        module: With weights.
        phases: Resolved against the module's groups.
        machine: What it is computed with.
    """

    data: ImageData
    module: TransferModule
    phases: tuple[Phase, ...]
    machine: Machine


def prepare(config: TrainingOptions, *, quiet: bool = False, fresh: bool = True) -> Prepared:
    """Build everything that a training needs, and choose what it is computed with.

    Args:
        config: The options.
        quiet: No progress bars.
        fresh: Whether weights named by ``init_from`` are loaded; a resume has them in its checkpoint.

    Raises:
        ConfigError: The phases or the accelerator do not fit, or an option needs a validation split that is not there.
        DataError: Pictures are missing, unreadable or contradictory.
        BackboneError: The backbone is unknown, or its weights cannot be had or do not fit.
    """
    accelerator = choose_accelerator(config.accelerator, config.devices)
    workers, threads = choose_workers(config.workers, accelerator)
    tune_process(threads)
    data, module = build(config, workers, quiet=quiet)
    phases = resolve_phases(config, module.group_names())
    _require_val(config, data, phases)
    if config.init_from is not None and fresh:
        load_weights_from(Path(config.init_from), module)
    with waiting(progress_console(quiet), "measuring bf16 against fp32"):
        choice = on_first(
            choose_training_precision, config.precision, accelerator, module.backbone, module.data_config.image_size,
            data.batch_size,
        )  # fmt: skip
    log.info("precision %s: %s", choice.precision, choice.reason)
    if len(set(gather(data.index.digest()))) > 1:
        raise DataError(f"{config.data}: other pictures on another machine, expected the same - copy the folder anew")
    return Prepared(data, module, phases, Machine(accelerator, choice.precision, workers, threads, choice.reason))


def _require_val(config: TrainingOptions, data: ImageData, phases: Sequence[Phase]) -> None:
    """Refuse what cannot be had without a validation split, before anything is computed."""
    if data.index.split("val"):
        return
    found = ["--interpolate chooses its share on val"] if config.interpolate else []
    found += [f"schedule {phase.curve.name} of phase {phase.name!r} goes by the loss on val"
              for phase in phases if phase.curve.needs_values]  # fmt: skip
    if found:
        raise ConfigError(
            f"the data have no val pictures: {gather_problems(found)} - add a val folder, or a --val-split above 0"
        )


def build(config: TrainingOptions, workers: int, *, quiet: bool = False) -> tuple[ImageData, TransferModule]:
    """Return the data, read and checked, and the model, with weights.

    Args:
        config: The options.
        workers: Decoding processes.
        quiet: No progress bars.
    """
    if config.data != SAMPLE and not Path(config.data).exists():
        raise DataError(f"--data {config.data} does not exist - give a folder of pictures, a manifest or 'sample'")
    L.seed_everything(config.seed, workers=True, verbose=False)
    backbone = create_backbone(config.backbone, weights=config.weights, image_size=config.image_size)
    console = progress_console(quiet)
    with counting_bar(console, "reading pictures") as told:
        data = ImageData(
            config.data,
            batch_size=USUAL_BATCH if isinstance(config.batch_size, str) else config.batch_size,
            train_size=config.train_size,
            augment=config.augment,
            sampler=config.sampler,
            mixup=config.mixup,
            cutmix=config.cutmix,
            data_config=backbone.data_config,
            val_split=config.val_split,
            test_split=config.test_split,
            seed=config.seed,
            workers=workers,
            keep_bytes=free_memory() // (4 * local_world()),
            skip_bad=config.skip_bad,
            allow_empty_classes=config.allow_empty_classes,
            allow_leaks=config.allow_leaks,
            progress=told,
        )
        pictures = len(data.index.split("train"))
    if pictures < 2:
        raise DataError(f"{config.data}: {pictures} training picture(s), expected at least 2 - lower --val-split")
    return data, _module(config, backbone, data)


def _module(config: TrainingOptions, backbone: Backbone, data: ImageData) -> TransferModule:
    weights = None
    if config.class_weights == "balanced":
        counts = data.index.counts()["train"]
        weights = balanced_class_weights([counts.get(name, 0) for name in data.class_names]).tolist()
    L.seed_everything(config.seed, workers=True, verbose=False)  # a fetched backbone must not change the head's start
    return TransferModule(
        backbone,
        data.num_classes,
        config.head,
        class_names=data.class_names,
        drop_rate=config.drop_rate,
        label_smoothing=config.label_smoothing,
        loss=config.loss,
        focal_gamma=config.focal_gamma,
        class_weights=weights,
        optimizer=config.optimizer,
        lr=1e-3 if isinstance(config.lr, str) else config.lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        nesterov=config.nesterov,
    )


def make_compute_of(machine: Machine) -> Compute:
    """Return what features are computed with while a model is trained on `machine`."""
    # bf16 in training says nothing of features, where every row counts: it is tried, and used if it is exact enough.
    precision = "32" if machine.precision == "32" else "auto"
    return Compute(device_of(machine.accelerator), precision, workers=machine.workers, threads=available_cores())
