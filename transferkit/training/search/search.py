"""The search as one story: option sets are drawn, tried and compared on val, and the best one becomes a recipe."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import shlex
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from transferkit.core.errors import BackboneError, ConfigError, DataError, Interrupted, TrainingError
from transferkit.core.files import storage_errors
from transferkit.core.text import one_line
from transferkit.features.engine.taps import POOLED
from transferkit.features.extract.table import FeatureTable
from transferkit.features.store.store import FeatureStore
from transferkit.machine.lightning_import import Callback, L
from transferkit.models.heads.registry import build_head
from transferkit.options.fields import make_config
from transferkit.options.loggers import logger_names
from transferkit.options.training import AUTO, FinetuneConfig, SearchConfig
from transferkit.runs.directory import run_stem
from transferkit.show.progress import counting_bar, output_console, progress_console
from transferkit.show.words import duration
from transferkit.training.finetune import finetune
from transferkit.training.head.features import SplitFeatures, training_rows
from transferkit.training.head.train import train_head
from transferkit.training.loggers.run_loggers import RunLoggers
from transferkit.training.loop.recorder import RunRecorder
from transferkit.training.loop.trainer import is_out_of_memory
from transferkit.training.plan.options import resolve_phases
from transferkit.training.search.backbones import OF_A_NETWORK, flat
from transferkit.training.search.plots import ENDED, SearchBar, short_text
from transferkit.training.search.space import SearchPlan, plan_search
from transferkit.training.search.study import SearchResult, Study
from transferkit.training.setup import Training, loss_options, prepare

if TYPE_CHECKING:
    import optuna

__all__ = ["SearchResult", "TrialReport", "print_search", "search"]

TrialRun = Callable[["optuna.Trial", Mapping[str, Any], SearchBar], float]
"""Runs a trial with the options that were drawn for it; returns its value."""

NO_RUNS = (
    "--logger follows runs, and these trials are none: each trains a head on cached features in moments - leave it "
    "out, and log `finetune` with the recipe"
)

NO_VAL = "a search compares trials on the validation split, and there is none - pass a --val-split above 0"


def search(config: SearchConfig, options: Mapping[str, Any]) -> SearchResult:
    """Search for options of `finetune`, at random or by TPE (Bergstra et al. 2011); go on where a study stands.

    A trial is a run in `trials/<number>`, and for loggers one of a group. Trials are compared by the figure `monitor`
    of their weights on val: the best value is optimistic, as it was chosen. Test is never measured; `finetune` with the
    recipe does it.

    Backbones may be searched, too: names, or mappings with weights and size. One whose weights cannot be had fails the
    trials that have it, and not the search.

    Where only a head is trained, each backbone runs once, and a trial trains its head on cached features, which takes
    moments and leaves no run. `finetune` with the recipe then has the same options and slightly other figures: it draws
    a new augmented view of each picture in every epoch, where a trial draws among the plain view and ``probe_views``
    cached ones; it clips gradients; and it takes the best epoch, not the last one.

    Args:
        config: The verb's options, checked.
        options: Those that the user set; they are the same in all trials, and not searched by default.

    Raises:
        ConfigError: An option or the space is wrong, or Optuna is missing.
        CheckpointError: The directory holds something else, or a study of other options.
        TrainingError: Every trial failed.
        Interrupted: SIGINT or SIGTERM; the trial that was running is done again by the next call.
        TransferkitError: What else `finetune` raises, apart from a TrainingError, which is the trial's own.
    """
    shared = {item.name for item in dataclasses.fields(FinetuneConfig)} - {"out", "quiet"}
    plan = plan_search({key: value for key, value in options.items() if key in shared}, config.space)
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError("a search needs Optuna, which is not installed - pip install 'transferkit[search]'")
    if plan.head_only and logger_names(plan.config.logger):
        raise ConfigError(NO_RUNS)
    usual = Path("runs") / f"{run_stem(plan.config.data, plan.config.backbone)}-search"
    root = usual if config.out is None else Path(config.out)
    console, started, trials = progress_console(config.quiet), time.monotonic(), config.trials
    with _quiet_optuna():
        study = Study(root, plan, sampler=config.search_sampler, prune=config.prune)
        run = _HeadTrials(plan, console).run if plan.head_only else _FinetuneTrials(plan, root).run
        try:
            with SearchBar(console, trials, plan.monitor) as bar:
                bar.show(study.publish().trials)
                while config.search_timeout is None or time.monotonic() - started < config.search_timeout:
                    with study.claimed(trials) as claim:
                        if claim is None:
                            break
                        trial, params = claim
                        study.tell(trial, **_outcome(run, trial, params, bar))
                    bar.show(study.publish().trials, trial.number)
        except BaseException as error:
            interrupted = _stopped(error, study, trials)
            if interrupted is None:
                raise
            raise interrupted from error
        result = study.publish(plot=True)
    if result.number is None and result.trials and all(row.state != "running" for row in result.trials):
        raise TrainingError(f"{root}: no trial finished; the last one: {result.trials[-1].note} - try another space")
    if not config.quiet:
        print_search(result, plan)
    return result


def _outcome(run: TrialRun, trial: optuna.Trial, params: Mapping[str, Any], bar: SearchBar) -> dict[str, Any]:
    """Run a trial and return its result, for `Study.tell`. Errors that are not this trial's own go through."""
    from optuna import TrialPruned

    try:
        return {"value": run(trial, params, bar)}
    except TrialPruned:
        return {"pruned": True}
    except BackboneError as error:
        if OF_A_NETWORK.isdisjoint(params):  # no other trial would have another network
            raise
        return {"note": one_line(error)}
    except (TrainingError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        return {"note": one_line(error)}


def _stopped(error: BaseException, study: Study, trials: int) -> Interrupted | None:
    """Write the files of the study; for a signal, return the error that says how to go on."""
    states: list[str] = []
    with contextlib.suppress(Exception):  # the error that stopped the search comes first
        states = [row.state for row in study.publish(plot=True).trials]
    if not isinstance(error, Interrupted | KeyboardInterrupt | SystemExit):
        return None
    number = signal.SIGTERM if isinstance(error, SystemExit) else signal.SIGINT
    signum = error.signum if isinstance(error, Interrupted) else number
    done = sum(state in ENDED for state in states)
    place = f"stopped by {signal.Signals(signum).name} after {done} of {trials} trials"
    return Interrupted(f"{place} - run the same command, with --out {study.root}, to go on", signum)


# ---- trials -----------------------------------------------------------------------------------------------------


class TrialReport(Callback):
    """Reports the monitored value to Optuna after every epoch, and ends a trial that is hopeless.

    A solved probe before the first epoch is reported as epoch 0. The trial ends at the beginning of the next epoch,
    when everything about the last one is written.

    Args:
        trial: Optuna's trial.
        monitor: Such as ``"val_acc"``.
        bar: Shows the value.

    Raises:
        DataError: At the start of training, when there is no validation split.
        TrialPruned: The trial does worse than others did.
    """

    def __init__(self, trial: optuna.Trial, monitor: str, bar: SearchBar | None = None) -> None:
        self.trial = trial
        self.monitor = monitor
        self.bar = bar
        self.hopeless = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report the value of a solved probe."""
        if not trainer.limit_val_batches:
            raise DataError(NO_VAL)
        solved = next((item.history.solved for item in trainer.callbacks if isinstance(item, RunRecorder)), None)  # type: ignore[attr-defined]
        if solved is not None and self.monitor in solved:
            self._report(float(solved[self.monitor]), 0)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End a hopeless trial."""
        if self.hopeless:
            from optuna import TrialPruned

            raise TrialPruned(f"{self.monitor} is worse than the median of the trials before")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report the epoch's value."""
        self._report(float(trainer.callback_metrics[self.monitor]), trainer.current_epoch + 1)

    def _report(self, value: float, epoch: int) -> None:
        if not math.isfinite(value):
            return  # the run itself ends with an error that says where
        with storage_errors("write", "study.log"):
            self.trial.report(value, epoch)
            self.hopeless = self.trial.should_prune()
        if self.bar is not None:
            self.bar.epoch(self.trial.number, epoch, value)


class _FinetuneTrials:
    """Trials that are runs of `finetune`."""

    def __init__(self, plan: SearchPlan, root: Path) -> None:
        self.plan, self.root = plan, root

    def run(self, trial: optuna.Trial, params: Mapping[str, Any], bar: SearchBar) -> float:
        """Train, and return the value of the weights that the run chose."""
        monitor, out = self.plan.monitor, self.root / "trials" / str(trial.number)
        options = {**self.plan.options, **flat(params), "out": str(out), "quiet": True}
        watch = TrialReport(trial, monitor.name, bar)
        with RunLoggers(label=f"{self.root.name}-trial-{trial.number}", group=self.root.name) as loggers:
            # The test split is not measured: it is used once, for the options that the search chose.
            metrics = finetune(callbacks=[watch], measured=("val",), loggers=loggers, **options).metrics
            loggers.log_files()
        if "val" not in metrics:
            raise DataError(NO_VAL)
        values = metrics["val"]
        if not monitor.calibrated:
            values = {**values, **values.get("uncalibrated", {})}  # as the epochs report it
        if values.get(monitor.key) is None:
            raise DataError(f"{monitor.name} has no value for these pictures - pass another --monitor")
        return float(values[monitor.key])


class _HeadTrials:
    """Trials that train a head on features that were computed once for each network."""

    def __init__(self, plan: SearchPlan, console: Console | None) -> None:
        self.plan, self.console = plan, console
        self._ready: dict[tuple[Any, ...], tuple[Training[FinetuneConfig], FeatureTable, FeatureTable]] = {}

    def run(self, trial: optuna.Trial, params: Mapping[str, Any], bar: SearchBar) -> float:
        """Train a head, and return its value."""
        config = make_config(FinetuneConfig, {**self.plan.options, **flat(params)})
        network = (config.backbone, config.weights, str(config.image_size))
        if network not in self._ready:
            of_network = {name: getattr(config, name) for name in OF_A_NETWORK}
            self._ready[network] = self._extract(dataclasses.replace(self.plan.config, **of_network))
        training, train, val = self._ready[network]
        task = training.module.task
        config = dataclasses.replace(config, clip=None)
        (phase,) = resolve_phases(config, None)
        rows = training_rows(train, POOLED, "sample")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            name = task.head_kinds.usual if config.head == AUTO else config.head
            head = build_head(name, rows.X.shape[1], rows.width, drop_rate=config.drop_rate)
            loss = task.head_kinds.loss(head, task.objective.loss(loss_options(config, task), rows.width))
            labelled = torch.from_numpy(rows.X), torch.from_numpy(rows.y)
            size = config.batch_size or training.data.batch_size
            train_head(head, loss, labelled, config, phase, int(size), len(train))
        with torch.inference_mode():
            outputs, targets = head.eval()(torch.from_numpy(val.X)), torch.from_numpy(val.y)
        values = task.plain_figures(("loss", self.plan.monitor.key), outputs, targets)
        if not math.isfinite(values["loss"]):
            raise TrainingError(f"val_loss is {values['loss']} at LR {phase.lr:.2g} - search smaller ones")
        if self.plan.monitor.calibrated:
            return float(task.picture_losses(outputs, targets).mean())
        return values[self.plan.monitor.key]

    def _extract(self, config: FinetuneConfig) -> tuple[Training[FinetuneConfig], FeatureTable, FeatureTable]:
        ready = prepare(config, quiet=config.quiet)
        if not ready.data.index.split("val"):
            raise DataError(NO_VAL)
        features = SplitFeatures(ready.module, ready.data, FeatureStore(config.store), ready.compute, seed=config.seed)
        views = config.probe_views if config.augment != "none" else 0
        with counting_bar(self.console, "extracting features") as progress:
            train, val = (
                features.table("train", views=views, progress=progress),
                features.table("val", progress=progress),
            )
        return ready, train, val


# ---- small parts ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Keep Optuna's own log, a line for every trial, out of the output."""
    from optuna import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(level)


def print_search(result: SearchResult, plan: SearchPlan) -> None:
    """Print the options of the best trial with their importance on standard output, and what to do with them."""
    console, recipe, importance = output_console(), result.path / "best.yaml", result.importance
    title = f"{result.path}: trial {result.number}, {plan.monitor.name} {plan.monitor.text(result.value)}"
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in ("option", "best", "importance"):
        table.add_column(column, justify="left" if column == "option" else "right")
    for name in sorted(result.params, key=lambda name: -importance.get(name, 0.0)):
        table.add_row(name, short_text(result.params[name]), f"{importance[name]:.0%}" if name in importance else "n/a")
    console.print(table)
    counts = Counter(row.state for row in result.trials)
    states = ", ".join(f"{counts[state]} {state}" for state in (*ENDED, "running") if counts[state])
    work = duration(sum(row.seconds or 0.0 for row in result.trials))
    for line in (
        f"trials   {states}; {work} of work",
        *(["features computed once; each trial trained a head on them"] if plan.head_only else []),
        "chosen   on val, so its figure is optimistic; test was not looked at",
        f"plot     {result.path / 'importance.png'}",
        f"recipe   {recipe}",
        f"next     transferkit finetune --config {shlex.quote(str(recipe))}",
    ):
        console.print(line, soft_wrap=True)
