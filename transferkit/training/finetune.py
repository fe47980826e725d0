"""The main job as one readable story: a folder of pictures goes in, a run directory with a working model comes out."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback

from transferkit.core.errors import TrainingError
from transferkit.features.store.store import FeatureStore
from transferkit.models.heads import LinearHead
from transferkit.options.training import FinetuneConfig
from transferkit.runs.directory import default_run_dir, is_complete, open_run_dir, prepare_run_dir
from transferkit.show.progress import counting_bar, progress_console
from transferkit.show.words import print_summary, read_metrics
from transferkit.training.batch_size import choose_batch_size, halved
from transferkit.training.checks.checks import check_overfit
from transferkit.training.describe import describe_run, resume_point, write_results
from transferkit.training.head.solve import SolvedProbe, soften_head, solve_probe
from transferkit.training.loop.interruption import SignalFlag
from transferkit.training.loop.recorder import RunRecorder
from transferkit.training.loop.trainer import fit, is_out_of_memory, quiet_lightning
from transferkit.training.lr.result import LRSearch
from transferkit.training.lr.start import find_start
from transferkit.training.lr.verb import save_search
from transferkit.training.plan.options import resolve_options
from transferkit.training.plan.preview import write_plan
from transferkit.training.ranks.parallel import gather, is_writer, on_first, world
from transferkit.training.ranks.processes import in_processes, started_as, warned_once
from transferkit.training.setup import Prepared, make_compute_of, prepare

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


def finetune(*, callbacks: Sequence[Callback] = (), measured: Sequence[str] = ("val", "test"), **options: Any) -> Run:
    """Fine-tune a pretrained backbone on a folder of pictures.

    Args:
        callbacks: Lightning callbacks of your own, besides those of the run.
        measured: Splits to measure at the end; a trial of a search must not look at ``"test"``.
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
    if (config.dry_run or config.overfit_batches is not None) and started_as():
        return Run(Path(), {})  # one process is enough
    if config.dry_run:
        out, plan = write_plan(config, out=f"{config.out}-plan" if config.out else None, quiet=config.quiet)
        return Run(out, plan)
    if config.overfit_batches is not None:
        return Run(Path(), check_overfit(config, prepare(config, quiet=config.quiet)))
    return in_processes(config, lambda config: _run(config, callbacks, measured))


def _run(config: FinetuneConfig, callbacks: Sequence[Callback], measured: Sequence[str]) -> Run:
    """Do it in each of the processes: what is found out, chosen and written is the first one's."""
    run = Path(config.out) if config.out else on_first(default_run_dir, config.data, config.backbone)
    on_first(prepare_run_dir, run, resume=config.resume, overwrite=config.overwrite)
    if config.resume and on_first(is_complete, run):
        if not config.quiet:
            print_summary(run, note="already complete")
        return Run(run, on_first(read_metrics, run))

    ready = prepare(config, quiet=config.quiet, fresh=not config.resume)
    shrinks = config.batch_size == "auto" and world() == 1
    if config.batch_size == "auto":
        ready.data.batch_size = on_first(choose_batch_size, ready, quiet=config.quiet)
    solved = _solve(config, ready) if ready.phases[0].solve and not config.resume else None
    search, ready, lr = _find_start(config, ready, solved) if config.lr == "auto" else (None, ready, config.lr)
    config = dataclasses.replace(
        config, precision=ready.machine.precision, phases=[phase.to_dict() for phase in ready.phases],
        batch_size=ready.data.batch_size, lr=lr,
    )  # fmt: skip

    opened = open_run_dir(run, resume=config.resume, overwrite=config.overwrite) if is_writer() else nullcontext(run)
    with opened:
        checkpoint = on_first(resume_point, run, ready.data) if config.resume else None
        on_first(describe_run, run, config, ready.data, ready.module, ready.phases)
        if search is not None:
            save_search(search, run)
        _soften(ready, solved)
        flag = SignalFlag()
        with flag.installed(), quiet_lightning():
            recorder, config, ready = _fit(run, config, ready, checkpoint, flag, solved, callbacks, shrinks=shrinks)
        metrics = on_first(write_results, run, config, ready.machine, ready.data, ready.module, recorder, measured)
        if not config.quiet:
            print_summary(run)
    return Run(run, metrics)


# ---- parts ------------------------------------------------------------------------------------------------------


def _solve(config: FinetuneConfig, ready: Prepared) -> SolvedProbe:
    """Fit the head on cached features. Nothing is in the run directory yet: when this is stopped, the features stay."""
    console = progress_console(config.quiet)
    with counting_bar(console, "solving the probe") as told:
        solved = solve_probe(
            ready.module, ready.data, FeatureStore(config.store), make_compute_of(ready.machine),
            views=config.probe_views, seed=config.seed, progress=told,
        )  # fmt: skip
    computed = sum(gather(solved.figures["computed"]))  # processes share the extraction, and all solve
    figures, head = on_first(lambda: ({**solved.figures, "computed": computed}, ready.module.head.state_dict()))
    ready.module.head.load_state_dict(head)
    log.info("probe solved in %.1f s: val accuracy %s", figures["time_s"], figures["val_acc"])
    return SolvedProbe(figures, {name: tensor.clone() for name, tensor in head.items()})


def _soften(ready: Prepared, solved: SolvedProbe | None) -> None:
    """Take the confidence off a solved head, so that what is trained with it is not thrown off by large gradients."""
    if solved is not None and any(phase.epochs for phase in ready.phases):
        assert isinstance(ready.module.head, LinearHead)
        soften_head(ready.module.head, solved.figures["logit_std"])


def _find_start(
    config: FinetuneConfig, ready: Prepared, solved: SolvedProbe | None
) -> tuple[LRSearch | None, Prepared, float]:
    """Look for the LR, in steps that the processes take together; the test is returned in the first one only."""
    test, found, lr = find_start(config, ready, solved, quiet=config.quiet)
    phases, lr = on_first(lambda: (found.phases, lr))
    return (test if is_writer() else None), dataclasses.replace(ready, phases=phases), lr


def _fit(
    run: Path,
    config: FinetuneConfig,
    ready: Prepared,
    checkpoint: Path | None,
    flag: SignalFlag,
    solved: SolvedProbe | None,
    callbacks: Sequence[Callback],
    *,
    shrinks: bool,
) -> tuple[RunRecorder, FinetuneConfig, Prepared]:
    """Train; after out-of-memory go on with half the batch and twice the accumulation, where the size was ours."""
    while True:
        try:
            recorder = fit(run, config, ready, checkpoint=checkpoint, flag=flag, solved=solved, callbacks=callbacks)
        except TrainingError as error:
            if not (shrinks and is_out_of_memory(error) and ready.data.batch_size > 1):
                raise
            config = halved(config)
            checkpoint = resume_point(run, ready.data) if (run / "checkpoints" / "last.ckpt").is_file() else None
            ready = prepare(config, quiet=config.quiet, fresh=checkpoint is None)
            if checkpoint is None and solved is not None:
                solved = _solve(config, ready)
                _soften(ready, solved)
            describe_run(run, config, ready.data, ready.module, ready.phases)
        else:
            return recorder, config, ready
