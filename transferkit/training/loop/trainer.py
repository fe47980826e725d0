"""One call of Lightning's Trainer: which callbacks a run has, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from transferkit.core.errors import ConfigError, TrainingError, TransferkitError
from transferkit.data.batches.workers import worker_errors
from transferkit.machine.lightning_import import Callback, Checkpoint, L
from transferkit.options.training import AUTO, FinetuneConfig
from transferkit.training.craft.activations import CachedActivations
from transferkit.training.craft.ema import EMA
from transferkit.training.craft.interpolation import KeepStart
from transferkit.training.craft.l2sp import L2SP
from transferkit.training.craft.snapshots import Snapshots
from transferkit.training.head.solve import SolvedProbe
from transferkit.training.loggers.run_loggers import RunLoggers
from transferkit.training.loop.checkpoints import AtomicCheckpointIO, foreign_checkpoint
from transferkit.training.loop.compiling import CompiledSteps
from transferkit.training.loop.early_stop import ByFigure, ByPictures, Rule, Selection
from transferkit.training.loop.finite import FiniteLoss
from transferkit.training.loop.interruption import SignalFlag
from transferkit.training.loop.phase_schedule import PhaseSchedule
from transferkit.training.loop.progress import PhaseProgress
from transferkit.training.loop.recorder import RunRecorder
from transferkit.training.plan.options import monitor_of
from transferkit.training.ranks.parallel import statistics, world
from transferkit.training.ranks.strategies import SyncNorms, make_environment, make_strategy
from transferkit.training.setup import Training

__all__ = ["fit", "in_order", "is_out_of_memory"]


def fit(
    run: Path,
    training: Training[FinetuneConfig],
    *,
    checkpoint: Path | None = None,
    flag: SignalFlag,
    solved: SolvedProbe | None = None,
    callbacks: Sequence[Callback] = (),
    loggers: RunLoggers | None = None,
) -> RunRecorder:
    """Train through all phases; return what was recorded.

    Args:
        run: The run directory.
        training: With numbers for everything that could be ``"auto"``.
        checkpoint: Where to go on.
        flag: Set by signals.
        solved: What came of a first phase that was solved.
        callbacks: More of the caller's.
        loggers: Of the run. They get its rows of history; callbacks find them in the Trainer.

    Raises:
        ConfigError: It is to be trained in other processes than are connected.
        TrainingError: The loss is no longer finite, or memory ran out.
        StorageError: The disk is full or read-only, or a decoding process was lost.
        Interrupted: SIGINT or SIGTERM; the state is saved.
    """
    config, data, module, machine = training.config, training.data, training.module, training.machine
    schedule = PhaseSchedule(training.phases, solved=True)
    monitor = monitor_of(config) if data.index.split("val") else "train_loss"
    figure = monitor.partition("_")[2]
    if monitor.startswith("val_") and figure not in ("loss", *module.task.objective.watched):
        module.watch(figure)
    selection = Selection(monitor, _rule(training, monitor), patience=config.patience)
    ema = None if config.ema is None else EMA(config.ema)
    own = (statistics,) if ema is None else (statistics, ema.statistics)
    loggers = loggers or RunLoggers()
    recorder = RunRecorder(run, module, schedule, selection, flag, own, loggers)
    if solved is not None:
        recorder.begin_with(training.phases[0].name, solved.figures, solved.head, solved.val_losses)
    if not training.plan.epochs:
        return recorder  # the solved probe is all there is
    module.to(memory_format=machine.layout)
    module.passage.memory_format = machine.layout
    module.to_loggers = False
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
        max_epochs=training.plan.epochs,
        gradient_clip_val=config.clip,
        accumulate_grad_batches=config.accumulate,
        callbacks=in_order(schedule, _craft(run, training, schedule, ema), callbacks, recorder),
        plugins=plugins,
        default_root_dir=run / "lightning",  # never made: nothing in it (hpc_ckpt_*) can be taken for a checkpoint
        use_distributed_sampler=False,  # ours know the ranks
        logger=loggers.for_trainer(),
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
    except (TransferkitError, OSError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise TrainingError(
                f"out of memory at batch size {data.batch_size} - try --batch-size {max(1, data.batch_size // 2)}, or "
                "a smaller --image-size; --batch-size auto finds one that fits"
            ) from error
        if checkpoint is not None and not recorder.training_began:  # while the state of before was put back
            raise foreign_checkpoint(checkpoint, error) from error
        raise
    finally:
        module.passage.memory_format = None  # whoever uses it now lays it out as they like
    return recorder


def _rule(training: Training[FinetuneConfig], monitor: str) -> Rule:
    """Return how epochs are compared: picture by picture where nobody named a figure and the task's own is the loss."""
    objective, data = training.module.task.objective, training.data
    if training.config.monitor == AUTO and monitor == "val_loss":
        return ByPictures(data.rows("train") / training.module.num_classes)
    return ByFigure(objective.monitors[monitor.partition("_")[2]])


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


def _craft(run: Path, training: Training[FinetuneConfig], schedule: PhaseSchedule, ema: EMA | None) -> list[Callback]:
    """Return the callbacks that the options ask for."""
    config, callbacks = training.config, list[Callback]()
    if config.l2_sp is not None:
        callbacks.append(L2SP(config.l2_sp))
    if ema is not None:
        callbacks.append(ema)
    if config.snapshots:
        callbacks.append(Snapshots(run, schedule))
    if config.interpolate:
        callbacks.append(KeepStart(run, schedule))
    mixed = config.mixup or config.cutmix  # mixed activations are not the activations of mixed pictures
    if config.keep_activations == "auto" and not mixed:
        callbacks.append(CachedActivations(schedule, training.module, training.data, training.console))
    if config.compile == "on":
        callbacks.append(CompiledSteps(training.console))  # at last: what a step is made of is settled by then
    if training.console is not None:
        callbacks.append(PhaseProgress(schedule, training.module, training.console))
    return callbacks


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, says that memory ran out: on a GPU or, as torch words it, on the CPU."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error):
            return True
        error = error.__cause__
    return False
