"""The main job as one story: a folder of pictures goes in, a run directory with a working model comes out.

`_fine_tune` tells it: claim the directory, prepare, ask a teacher, choose, solve, tune, settle how steps run, describe,
soften, train. Then, in the first of several processes, `conclude`. Each step takes a `Training` and does one thing.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transferkit.core.errors import TrainingError
from transferkit.core.text import listing
from transferkit.features.store.store import FeatureStore
from transferkit.machine.lightning_import import Callback
from transferkit.options.training import AUTO, FinetuneConfig
from transferkit.runs.directory import default_run_dir, is_complete, named_run_dir, open_run_dir, prepare_run_dir
from transferkit.runs.files import RunFiles
from transferkit.runs.summary import print_lines, print_summary
from transferkit.runs.write import write_config, write_data, write_plan
from transferkit.show.progress import counting_bar, output_console, waiting
from transferkit.training.batch_size import halved, with_batch_size
from transferkit.training.checks.overfit import check_overfit
from transferkit.training.compiling import choose_compile
from transferkit.training.conclusion import conclude
from transferkit.training.head.solve import SolvedProbe, soften_head, solve_probe
from transferkit.training.loggers.run_loggers import RunLoggers
from transferkit.training.loop.checkpoints import resume_point
from transferkit.training.loop.interruption import SignalFlag
from transferkit.training.loop.recorder import RunRecorder
from transferkit.training.loop.trainer import fit, is_out_of_memory
from transferkit.training.lr.result import LRSearch
from transferkit.training.lr.start import find_start
from transferkit.training.lr.verb import save_search
from transferkit.training.plan.amount import phases_after
from transferkit.training.plan.options import resolve_options, usual_lr
from transferkit.training.plan.preview import plan_directory, write_preview
from transferkit.training.ranks.parallel import by_first, gather, is_writer, of_first, world
from transferkit.training.ranks.processes import in_processes, started_as, warned_once
from transferkit.training.ranks.strategies import quiet_lightning
from transferkit.training.rehearsal import rehearse_saving
from transferkit.training.setup import Training, prepare
from transferkit.training.steps import CompileChoice, step_lines
from transferkit.training.teaching import check_teacher, teach

__all__ = ["Run", "finetune"]

log = logging.getLogger("transferkit")


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        path: The run directory. Of ``dry_run`` that of the plan; of ``overfit_batches``, which writes none, the
            directory that a run would have.
        metrics: The content of its `metrics.json`; of ``dry_run`` the plan; of ``overfit_batches`` what was reached.
    """

    path: Path
    metrics: Mapping[str, Any]


def finetune(
    *,
    callbacks: Sequence[Callback] = (),
    measured: Sequence[str] = ("val", "test"),
    loggers: RunLoggers | None = None,
    **options: Any,
) -> Run:
    """Fine-tune a pretrained backbone on a folder of pictures.

    Args:
        callbacks: Lightning callbacks of your own, besides those of the run.
        measured: Splits to measure at the end; a trial of a search must not look at ``"test"``.
        loggers: Log the run, with those that the options name; whoever gives them ends them.
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
    with warned_once(started_as()):
        config = resolve_options(options)
    if config.dry_run:
        return _preview(config)
    if config.overfit_batches is not None:
        return _overfit(config)
    with RunLoggers() if loggers is None else nullcontext(loggers) as chosen:
        resumed = Path(config.out) if config.resume and config.out else None
        chosen.prepare(config.logger, config.logger_args, quiet=config.quiet, resumed=resumed)
        return in_processes(config, lambda config: _fine_tune(config, callbacks, measured, chosen))


def _preview(config: FinetuneConfig) -> Run:
    """Say what would happen; of several processes the first one does."""
    out = f"{config.out}-plan" if config.out else None
    if started_as():
        return Run(plan_directory(config, out), {})
    return Run(*write_preview(config, out=out, quiet=config.quiet))


def _overfit(config: FinetuneConfig) -> Run:
    """Learn a few batches by heart; of several processes the first one does."""
    result = {} if started_as() else check_overfit(prepare(config, quiet=config.quiet))
    return Run(_directory(config), result)


def _fine_tune(
    config: FinetuneConfig, callbacks: Sequence[Callback], measured: Sequence[str], loggers: RunLoggers
) -> Run:
    """Claim the directory in the first of the processes for as long as the story takes."""
    writes = is_writer() and not config.resume
    own = named_run_dir(config.out, config.data, config.backbone) if writes else nullcontext(Path(config.out or ""))
    with own as place:
        run = of_first(place)
        _check_run(config, run)
        return _tell(config, run, callbacks, measured, loggers)


def _tell(
    config: FinetuneConfig, run: Path, callbacks: Sequence[Callback], measured: Sequence[str], loggers: RunLoggers
) -> Run:
    """Tell the story in each of the processes: what is measured, chosen and written is the first one's."""
    metrics = _metrics_of_complete(run) if config.resume else None
    if metrics is not None:
        if not config.quiet:
            print_summary(run, note="already complete")
        return Run(run, metrics)
    check_teacher(config)
    training = teach(prepare(config, quiet=config.quiet, fresh=not config.resume), quiet=config.quiet)
    training = with_batch_size(training)
    solved = _solve(training)
    training = _settle_phases(training, solved)
    search, training = _tune(training, solved)
    training = _settle_steps(training)
    directory = open_run_dir(run, resume=config.resume, overwrite=config.overwrite) if is_writer() else nullcontext(run)
    with directory:
        checkpoint = by_first(resume_point)(run, training.data.index) if config.resume else None
        _describe(run, training, search)
        by_first(rehearse_saving)(run, training.module)
        loggers.open(run)
        _soften(training, solved)
        halve = config.batch_size == AUTO
        training, recorder = _train(run, training, solved, checkpoint, callbacks, loggers, halve=halve)
        metrics = conclude(run, training, recorder, measured)
        loggers.write(recorder.history.points())
        loggers.conclude()
        if not config.quiet:
            print_summary(run)
    return Run(run, metrics)


# ---- before training --------------------------------------------------------------------------------------------


def _directory(config: FinetuneConfig) -> Path:
    return Path(config.out) if config.out else default_run_dir(config.data, config.backbone)


@by_first
def _check_run(config: FinetuneConfig, run: Path) -> None:
    """Refuse a directory that is taken."""
    prepare_run_dir(run, resume=config.resume, overwrite=config.overwrite)


@by_first
def _metrics_of_complete(run: Path) -> dict[str, Any] | None:
    return RunFiles(run).metrics if is_complete(run) else None


def _solve(training: Training[FinetuneConfig]) -> SolvedProbe | None:
    """Fit the head on cached features. Nothing is in the run directory yet: when this is stopped, the features stay."""
    config, module = training.config, training.module
    if config.resume or not training.phases[0].solve:
        return None
    with counting_bar(training.console, "solving the probe") as progress:
        solved = solve_probe(
            module, training.data, FeatureStore(config.store), training.compute,
            views=config.probe_views, seed=config.seed, taken=_taken(training), progress=progress,
        )  # fmt: skip
    computed = sum(gather(solved.figures["computed"]))  # processes share the extraction, and all solve
    solved = of_first(dataclasses.replace(solved, figures={**solved.figures, "computed": computed}))
    module.head.load_state_dict(solved.head)
    log.info("probe solved in %.1f s: val loss %s", solved.figures["time_s"], solved.figures["val_loss"])
    return solved


def _settle_phases(training: Training[FinetuneConfig], solved: SolvedProbe | None) -> Training[FinetuneConfig]:
    """Decide what ``--phases auto`` is, where a head was solved."""
    config = training.config
    if config.phases != AUTO or solved is None:
        return training
    rows = training.data.rows("train")
    phases, choice = phases_after(
        config, training.phases, solved.figures.get("cv_acc"), rows,
        outputs=training.module.num_classes, validated=bool(training.data.index.split("val")),
    )  # fmt: skip
    if not config.quiet and is_writer():
        print_lines(output_console(), [(choice.title, choice.sentence)])
    return training.with_phases(phases, choice)


def _taken(training: Training[FinetuneConfig]) -> tuple[str, ...]:
    """Return the classes whose rows of the head stay those of the run to start from, and say which are solved."""
    names = training.module.class_names
    if training.config.probe == "solve" or not training.taken:
        return ()
    fresh = [name for name in names if name not in training.taken]
    text = f"{listing(training.taken)} as in {training.config.init_from}"
    text += f"; solved on these pictures: {listing(fresh)}" if fresh else "; --probe solve would fit it anew"
    log.info("head: %s", text)
    if not training.config.quiet and is_writer():
        print_lines(output_console(), [("head", text)])
    return training.taken


def _tune(
    training: Training[FinetuneConfig], solved: SolvedProbe | None
) -> tuple[LRSearch | None, Training[FinetuneConfig]]:
    """Look for the LR, where it is ours to choose, in steps that the processes take together."""
    if training.config.lr != AUTO:
        return None, training
    search, training = find_start(training, solved)
    return search, training.at_lr(*of_first((usual_lr(training.config, training.module.task), training.phases)))


def _settle_steps(training: Training[FinetuneConfig]) -> Training[FinetuneConfig]:
    """Decide whether steps are compiled, and say how they run; a resume goes on as the run began."""
    config = training.config
    if config.resume and config.compile == AUTO:
        choice = CompileChoice(False, "the run began without")
    else:
        with waiting(training.console, "compiling a few steps"):
            choice = by_first(choose_compile)(training)
    training = training.compiled(choice)
    log.info("compile %s: %s", training.config.compile, choice.reason)
    if not config.quiet and is_writer() and training.plan.epochs:
        print_lines(output_console(), step_lines(training.machine, choice))
    return training


@by_first
def _describe(run: Path, training: Training[FinetuneConfig], search: LRSearch | None = None) -> None:
    """Write what is about to happen."""
    write_config(run, training.settled_config.to_dict())
    write_data(run, training.data.index, skip_bad=training.config.skip_bad)
    values, before = training.plan_values, RunFiles(run).plan if training.config.resume else {}
    write_plan(run, {**values, "choices": values["choices"] or before.get("choices", [])})
    if search is not None:
        save_search(search, run)


def _soften(training: Training[FinetuneConfig], solved: SolvedProbe | None) -> None:
    """Take the confidence off a solved head, so that what is trained with it is not thrown off by large gradients."""
    if solved is not None and training.plan.epochs:
        soften_head(training.module.head, solved)


# ---- training ---------------------------------------------------------------------------------------------------


def _train(
    run: Path,
    training: Training[FinetuneConfig],
    solved: SolvedProbe | None,
    checkpoint: Path | None,
    callbacks: Sequence[Callback],
    loggers: RunLoggers,
    *,
    halve: bool,
) -> tuple[Training[FinetuneConfig], RunRecorder]:
    """Train; after out-of-memory go on with half the batch and twice the accumulation, where the size was ours."""
    flag = SignalFlag()
    with flag.installed(), quiet_lightning():
        while True:
            try:
                return training, fit(
                    run, training, solved=solved, checkpoint=checkpoint, flag=flag, callbacks=callbacks,
                    loggers=loggers,
                )  # fmt: skip
            except TrainingError as error:
                if not (halve and world() == 1 and is_out_of_memory(error) and training.data.batch_size > 1):
                    raise
            last = run / "checkpoints" / "last.ckpt"
            checkpoint = resume_point(run, training.data.index) if last.is_file() else None
            smaller = halved(training.settled_config, training.data.batch_size)
            training = teach(prepare(smaller, quiet=smaller.quiet, fresh=checkpoint is None), quiet=smaller.quiet)
            if checkpoint is None:
                solved = _solve(training)
                _soften(training, solved)
            _describe(run, training)
