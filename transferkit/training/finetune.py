"""The main job as one readable story: a folder of pictures goes in, a run directory with a working model comes out."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.callbacks import Callback

from transferkit.config import FinetuneConfig
from transferkit.data.datamodule import ImageData
from transferkit.data.host import available_cores
from transferkit.data.sample import SAMPLE
from transferkit.errors import DataError, TrainingError
from transferkit.features.compute import Compute
from transferkit.features.machine import choose_accelerator, choose_workers, device_of, tune_process
from transferkit.features.store import FeatureStore
from transferkit.models.artifact import load_weights_from
from transferkit.models.backbones import create_backbone
from transferkit.models.module import TransferModule
from transferkit.training.callbacks import PhaseSchedule
from transferkit.training.checkpoint import AtomicCheckpointIO
from transferkit.training.describe import describe_run, resume_point, write_results
from transferkit.training.keeper import RunKeeper, SignalFlag
from transferkit.training.kept_activations import KeptActivations
from transferkit.training.lpft import SolvedProbe, solve_probe
from transferkit.training.machine import Machine, choose_precision
from transferkit.training.options import resolve_options, resolve_phases
from transferkit.training.phases import Phase
from transferkit.training.progress import PhaseProgress, counting_bar, progress_console, waiting
from transferkit.training.rundir import default_run_dir, is_complete, open_run_dir, prepare_run_dir
from transferkit.training.summary import print_summary, read_metrics

__all__ = ["Run", "finetune"]

log = logging.getLogger("transferkit")


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        path: The run directory.
        metrics: The content of its `metrics.json`.
    """

    path: Path
    metrics: Mapping[str, Any]


def finetune(**options: Any) -> Run:
    """Fine-tune a pretrained backbone on a folder of pictures.

    Args:
        options: The fields of `FinetuneConfig`; ``data`` is required.

    Returns:
        The run: its directory and metrics.

    Raises:
        ConfigError: An option is unknown or out of range.
        DataError: Pictures are missing, unreadable or contradictory.
        BackboneError: The backbone is unknown, or its weights cannot be had or do not fit.
        TrainingError: The loss is no longer finite, or memory ran out.
        CheckpointError: The run directory is taken, locked, or does not match.
        StorageError: The disk is full or read-only.
        Interrupted: SIGINT or SIGTERM; the state is saved.
    """
    config = resolve_options(options)
    run = Path(config.out) if config.out else default_run_dir(config.data, config.backbone)
    prepare_run_dir(run, resume=config.resume, overwrite=config.overwrite)
    if config.resume and is_complete(run):
        if not config.quiet:
            print_summary(run, note="already complete")
        return Run(run, read_metrics(run))

    accelerator = choose_accelerator(config.accelerator, config.devices)
    workers, threads = choose_workers(config.workers, accelerator)
    tune_process(threads)
    data, module = _build(config, workers)
    phases = resolve_phases(config, module.group_names())
    if config.init_from is not None and not config.resume:
        load_weights_from(Path(config.init_from), module)
    with waiting(progress_console(config.quiet), "measuring bf16 against fp32"):
        precision, reason = choose_precision(config.precision, accelerator, module, config.batch_size)
    log.info("precision %s: %s", precision, reason)
    config = dataclasses.replace(config, precision=precision, phases=[phase.to_dict() for phase in phases])
    machine = Machine(accelerator, precision, workers, threads, reason)
    solved = _solve(config, machine, data, module) if phases[0].solve and not config.resume else None

    with open_run_dir(run, resume=config.resume, overwrite=config.overwrite):
        checkpoint = resume_point(run, data) if config.resume else None
        describe_run(run, config, data, module, phases)
        flag = SignalFlag()
        with flag.installed(), _quiet_lightning():
            keeper = _fit(run, config, machine, data, module, phases, checkpoint, flag, solved)
        metrics = write_results(run, config, machine, data, module, keeper)
        if not config.quiet:
            print_summary(run)
    return Run(run, metrics)


# ---- building ---------------------------------------------------------------------------------------------------


def _build(config: FinetuneConfig, workers: int) -> tuple[ImageData, TransferModule]:
    """Return the data, read and checked, and the model, with weights."""
    if config.data != SAMPLE and not Path(config.data).exists():
        raise DataError(f"--data {config.data} does not exist - give a folder of pictures, a manifest or 'sample'")
    L.seed_everything(config.seed, workers=True, verbose=False)
    backbone = create_backbone(config.backbone, weights=config.weights, image_size=config.image_size)
    console = progress_console(config.quiet)
    with counting_bar(console, "reading pictures") as told:
        data = ImageData(
            config.data,
            batch_size=config.batch_size,
            augment=config.augment,
            data_config=backbone.data_config,
            val_split=config.val_split,
            test_split=config.test_split,
            seed=config.seed,
            workers=workers,
            skip_bad=config.skip_bad,
            allow_empty_classes=config.allow_empty_classes,
            allow_leaks=config.allow_leaks,
            progress=told,
        )
        pictures = len(data.index.split("train"))
    if pictures < 2:
        raise DataError(f"{config.data}: {pictures} training picture(s), expected at least 2 - lower --val-split")
    L.seed_everything(config.seed, workers=True, verbose=False)  # a fetched backbone must not change the head's start
    module = TransferModule(
        backbone,
        data.num_classes,
        config.head,
        class_names=data.class_names,
        drop_rate=config.drop_rate,
        label_smoothing=config.label_smoothing,
        optimizer=config.optimizer,
        lr=config.lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        nesterov=config.nesterov,
    )
    return data, module


# ---- training and results ---------------------------------------------------------------------------------------


def _solve(config: FinetuneConfig, machine: Machine, data: ImageData, module: TransferModule) -> SolvedProbe:
    """Fit the head on cached features. Nothing is in the run directory yet: when this is stopped, the features stay."""
    device = device_of(machine.accelerator)
    # bf16 in training says nothing of features, where every row counts: it is tried, and used if it is exact enough.
    precision = "32" if machine.precision == "32" else "auto"
    compute = Compute(device, precision, workers=machine.workers, threads=available_cores())
    console = progress_console(config.quiet)
    with counting_bar(console, "solving the probe") as told:
        solved = solve_probe(
            module, data, FeatureStore(config.store), compute, views=config.probe_views, seed=config.seed,
            extracting=told,
        )  # fmt: skip
    log.info("probe solved in %.1f s: val accuracy %s", solved.seconds, solved.figures["val_acc"])
    return solved


def _fit(
    run: Path,
    config: FinetuneConfig,
    machine: Machine,
    data: ImageData,
    module: TransferModule,
    phases: tuple[Phase, ...],
    checkpoint: Path | None,
    flag: SignalFlag,
    solved: SolvedProbe | None,
) -> RunKeeper:
    schedule = PhaseSchedule(phases, solved=True)
    monitor = config.monitor if data.index.split("val") else "train_loss"
    keeper = RunKeeper(run, schedule, monitor=monitor, patience=config.patience, flag=flag)
    if solved is not None:
        keeper.begin_with(phases[0].name, solved.figures)
    if not sum(phase.epochs for phase in phases):
        return keeper  # the solved probe is all there is
    callbacks: list[Callback] = [schedule, keeper]
    console = progress_console(config.quiet)
    if config.keep_activations == "auto":
        callbacks.append(KeptActivations(schedule, data, console))
    if console is not None:
        callbacks.append(PhaseProgress(schedule, console))
    module.to(memory_format=torch.channels_last)
    trainer = L.Trainer(
        accelerator=machine.accelerator,
        devices=config.devices,
        precision="bf16-mixed" if machine.precision == "bf16" else "32-true",
        max_epochs=sum(phase.epochs for phase in phases),
        gradient_clip_val=config.clip,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        default_root_dir=run,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=1.0 if data.index.split("val") else 0,
    )
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"out of memory at batch size {config.batch_size} - try --batch-size {max(1, config.batch_size // 2)}, or "
            "a smaller --image-size"
        ) from error
    return keeper


# ---- small parts ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning's own remarks, which speak of its options and not of ours, out of the output."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PossibleUserWarning)
            warnings.filterwarnings("ignore", "`isinstance\\(treespec, LeafSpec\\)` is deprecated", FutureWarning)
            yield
    finally:
        logger.setLevel(level)
