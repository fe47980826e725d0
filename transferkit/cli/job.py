"""The whole main job: train, then write the page about it. What `tk.finetune` and the verbs call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transferkit.options.features import ProbeConfig
from transferkit.results.report.report import report_on
from transferkit.training.finetune import Run
from transferkit.training.finetune import finetune as train
from transferkit.training.probe_run import run_probe
from transferkit.training.ranks.processes import started_as

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback

__all__ = ["finetune", "probe"]


def finetune(*, callbacks: Sequence[Callback] = (), **options: Any) -> Run:
    """Fine-tune a pretrained backbone on a folder of pictures.

    Args:
        callbacks: Lightning callbacks of your own, besides those of the run.
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
    run = train(callbacks=callbacks, **options)
    trained = not (options.get("dry_run") or options.get("overfit_batches"))
    if trained and options.get("report", "on") == "on" and not started_as():
        report_on(run.path, quiet=options.get("quiet", False))
    return run


def probe(config: ProbeConfig) -> Path:
    """Fit a classifier on cached features and write the page about it; see `run_probe`."""
    run = run_probe(config)
    if config.report == "on":
        report_on(run, quiet=config.quiet)
    return run
