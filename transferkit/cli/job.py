"""The whole main job: train, then write the page about it. What `tk.finetune` and the verbs call."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transferkit.core.files import user_path
from transferkit.options.distill import data_of_run
from transferkit.options.features import ProbeConfig
from transferkit.options.loggers import logger_names
from transferkit.results.report.report import report_on
from transferkit.runs.files import RunFiles
from transferkit.training.finetune import Run
from transferkit.training.finetune import finetune as train
from transferkit.training.loggers.run_loggers import RunLoggers
from transferkit.training.ranks.processes import started_as

if TYPE_CHECKING:
    from transferkit.machine.lightning_import import Callback, Logger

__all__ = ["distill", "finetune", "probe"]


def finetune(
    *,
    callbacks: Sequence[Callback] = (),
    logger: Logger | str | Sequence[Logger | str] | None = None,
    **options: Any,
) -> Run:
    """Fine-tune a pretrained backbone on a folder of pictures.

    Args:
        callbacks: Lightning callbacks of your own, besides those of the run.
        logger: Loggers of Lightning's, their names or import paths. What is given as an object is left open at the end,
            as a Trainer leaves it.
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
    names, made = _named_and_made(logger)
    if names is not None:
        options["logger"] = names
    with RunLoggers(made) as loggers:
        run = train(callbacks=callbacks, loggers=loggers, **options)
        trained = not (options.get("dry_run") or options.get("overfit_batches"))
        if trained and options.get("report", "on") == "on" and not started_as():
            report_on(run.path, quiet=options.get("quiet", False))
        loggers.log_files()
    return run


def distill(teacher: str | os.PathLike[str], **options: Any) -> Run:
    """Fine-tune a backbone on what a finished run says of its pictures: `finetune` with a ``teacher``.

    Args:
        teacher: The run directory of the teacher.
        options: As for `finetune`; ``data`` and the options of splits are those of the teacher where no ``data`` are
            named.

    Returns:
        The run of the student.

    Raises:
        TransferkitError: As `finetune` says.
        CheckpointError: The teacher's directory holds no finished run.
    """
    run = user_path(os.fspath(teacher))
    if options.get("resume"):  # all is in the directory
        return finetune(**options)
    stated = {} if options.get("data") else data_of_run(options, RunFiles(Path(run)).config)
    return finetune(**{**stated, **options, "teacher": run})


def _named_and_made(logger: object) -> tuple[list[str] | None, list[Any]]:
    """Return the names among loggers, ``None`` for none, and the objects."""
    if logger is None or logger is False:
        return None, []
    items = list(logger) if isinstance(logger, list | tuple) else [logger]
    names = [name for item in items if isinstance(item, str) for name in logger_names(item)]
    return names or None, [item for item in items if not isinstance(item, str)]


def probe(config: ProbeConfig) -> Path:
    """Fit a classifier on cached features and write the page about it; see `run_probe`.

    It is logged when all is written: there is no training to follow, and nothing that a logger could cost.
    """
    from transferkit.training.probe_run import run_probe  # with scikit-learn, which fine-tuning does without

    with RunLoggers() as loggers:
        loggers.prepare(config.logger, config.logger_args, quiet=config.quiet)
        run = run_probe(config)
        if config.report == "on":
            report_on(run, quiet=config.quiet)
        loggers.open(run)
        loggers.conclude()
        loggers.log_files()
    return run
