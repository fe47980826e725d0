"""One call of Lightning's Trainer: which callbacks a run has, and in which order."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.callbacks import Callback, Checkpoint

from transferkit.core.errors import ConfigError, TrainingError
from transferkit.data.batches.workers import worker_errors
from transferkit.options.training import FinetuneConfig
from transferkit.show.progress import progress_console
from transferkit.training.craft.activations import KeptActivations
from transferkit.training.craft.ema import EMA
from transferkit.training.craft.interpolation import KeepStart
from transferkit.training.craft.l2sp import L2SP
from transferkit.training.craft.snapshots import Snapshots
from transferkit.training.head.solve import SolvedProbe
from transferkit.training.loop.checkpoints import AtomicCheckpointIO
from transferkit.training.loop.early_stop import Selection
from transferkit.training.loop.finite import FiniteLoss
from transferkit.training.loop.interruption import SignalFlag
from transferkit.training.loop.phase_schedule import PhaseSchedule
from transferkit.training.loop.progress import PhaseProgress
from transferkit.training.loop.recorder import RunRecorder
from transferkit.training.ranks.parallel import statistics, world
from transferkit.training.ranks.strategies import SyncNorms, make_environment, make_strategy
from transferkit.training.setup import Prepared

__all__ = ["fit", "is_out_of_memory", "quiet_lightning"]


def fit(
    run: Path,
    config: FinetuneConfig,
    ready: Prepared,
    *,
    checkpoint: Path | None = None,
    flag: SignalFlag,
    solved: SolvedProbe | None = None,
    callbacks: Sequence[Callback] = (),
) -> RunRecorder:
    """Train through all phases; return what was recorded.

    Args:
        run: The run directory.
        config: With numbers for everything that could be ``"auto"``.
        ready: Data, model, phases and machine.
        checkpoint: Where to go on.
        flag: Set by signals.
        solved: What came of a first phase that was solved.
        callbacks: More of the caller's.

    Raises:
        ConfigError: It is to be trained in other processes than are connected.
        TrainingError: The loss is no longer finite, or memory ran out.
        StorageError: The disk is full or read-only, or a decoding process was lost.
        Interrupted: SIGINT or SIGTERM; the state is saved.
    """
    data, module, phases, machine = ready.data, ready.module, ready.phases, ready.machine
    schedule = PhaseSchedule(phases, solved=True)
    monitor = config.monitor if data.index.split("val") else "train_loss"
    figure = monitor.partition("_")[2]
    if monitor.startswith("val_") and figure not in ("loss", *module.task.objective.watched):
        module.watch(figure)
    higher_is_better = module.task.objective.monitors[figure]
    selection = Selection(monitor, higher_is_better=higher_is_better, patience=config.patience)
    ema = None if config.ema is None else EMA(config.ema)
    own = (statistics,) if ema is None else (statistics, ema.statistics)
    recorder = RunRecorder(run, module, schedule, selection, flag, own)
    if solved is not None:
        recorder.begin_with(phases[0].name, solved.figures, solved.head)
    epochs = sum(phase.epochs for phase in phases)
    if not epochs:
        return recorder  # the solved probe is all there is
    module.to(memory_format=torch.channels_last)
    processes = config.devices * config.num_nodes
    if processes != world():
        raise ConfigError(f"--devices {config.devices} --num-nodes {config.num_nodes} are for `finetune`, not for this")
    plugins: list[Any] = [AtomicCheckpointIO(), make_environment(processes)]
    if processes > 1 and machine.accelerator == "gpu":
        plugins.append(SyncNorms())
    trainer = L.Trainer(
        accelerator=machine.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=make_strategy(config.strategy, processes),
        precision="bf16-mixed" if machine.precision == "bf16" else "32-true",
        max_epochs=epochs,
        gradient_clip_val=config.clip,
        accumulate_grad_batches=config.accumulate,
        callbacks=in_order(schedule, _craft(run, config, schedule, ready, ema), callbacks, recorder),
        plugins=plugins,
        default_root_dir=run / "lightning",  # never made: nothing in it (hpc_ckpt_*) can be taken for a checkpoint
        use_distributed_sampler=False,  # ours know the ranks
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=1.0 if data.index.split("val") else 0,
    )
    if (
        processes > 1
    ):  # every step would ask rank 0 for SIGTERM, and wait for the device: RunRecorder does it more seldom
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    try:
        with worker_errors():
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"out of memory at batch size {data.batch_size} - try --batch-size {max(1, data.batch_size // 2)}, or "
            "a smaller --image-size; --batch-size auto finds one that fits"
        ) from error
    return recorder


def in_order(
    schedule: PhaseSchedule, craft: Sequence[Callback], callbacks: Sequence[Callback], recorder: RunRecorder
) -> list[Callback]:
    """Return the callbacks of a run in the order in which they run. Lightning's own rules leave it as it is.

    The phase first, which the others look up; a loss that is not finite before anything is made of the step; what the
    options add, each of which may change weights; the caller's; then the recorder, which saves what came of all of
    them. Callbacks of the caller's that are Lightning's `Checkpoint` come last, where Lightning has them.

    Args:
        schedule: Enters phases.
        craft: What the options ask for.
        callbacks: The caller's.
        recorder: Saves.
    """
    own = [callback for callback in callbacks if not isinstance(callback, Checkpoint)]
    checkpoints = [callback for callback in callbacks if isinstance(callback, Checkpoint)]
    return [schedule, FiniteLoss(recorder.checkpoints.last), *craft, *own, recorder, *checkpoints]


def _craft(
    run: Path, config: FinetuneConfig, schedule: PhaseSchedule, ready: Prepared, ema: EMA | None
) -> list[Callback]:
    """Return the callbacks that the options ask for."""
    found: list[Callback] = []
    if config.l2_sp is not None:
        found.append(L2SP(config.l2_sp))
    if ema is not None:
        found.append(ema)
    if config.snapshots:
        found.append(Snapshots(run, schedule))
    if config.interpolate:
        found.append(KeepStart(run, schedule))
    console = progress_console(config.quiet)
    mixed = config.mixup or config.cutmix  # mixed activations are not the activations of mixed pictures
    if config.keep_activations == "auto" and not mixed:
        found.append(KeptActivations(schedule, ready.data, console))
    if console is not None:
        found.append(PhaseProgress(schedule, console))
    return found


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, says that memory ran out: on a GPU or, as torch words it, on the CPU."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error):
            return True
        error = error.__cause__
    return False


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
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
