"""The verbs: a record each, and what stands around all of them while they run."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NoReturn

from transferkit.core.errors import Interrupted
from transferkit.options.advise import AdviseConfig
from transferkit.options.distill import DistillConfig
from transferkit.options.features import BackbonesConfig, CheckConfig, FeaturesConfig, ProbeConfig, StoreConfig
from transferkit.options.fields import make_config
from transferkit.options.results import (
    CalibrateConfig,
    EvaluateConfig,
    ExplainConfig,
    ExportConfig,
    PredictConfig,
    ReportConfig,
    ServeConfig,
    SimilarConfig,
)
from transferkit.options.training import FinetuneConfig, LRFindConfig, PlanConfig, SearchConfig, SelftestConfig

__all__ = ["VERBS", "Verb"]


@dataclass(frozen=True)
class Verb:
    """A verb of the command line.

    Attributes:
        name: As it is typed.
        options: The dataclass of its flags, recipe keys and keyword arguments.
        work: What it does, with the record of options: a function, or where it lies, ``"module.function"``, so that
            heavy modules are loaded when the verb runs.
        help: A line for `--help`.
        places: Options that are words instead of flags, in order.
        keeps_features: Whether what it has computed when it is stopped is in the feature store.
        by_name: Whether the work takes the options of the command line by name, not the record of all: a resume has the
            others from the run directory, and `search` does not search what the user has set.
    """

    name: str
    options: type[Any]
    work: str | Callable[[Any], object]
    help: str
    places: tuple[str, ...] = ()
    keeps_features: bool = False
    by_name: bool = False

    def run(self, options: Mapping[str, Any]) -> None:
        """Do the work.

        Args:
            options: Those of the command line, by field name.

        Raises:
            TransferkitError: As the work says.
            SystemExit: On SIGTERM.
        """
        # A resume has its options from the run directory.
        config = None if self.by_name and options.get("resume") else make_config(self.options, options)
        if config is not None and not self.by_name:  # of a training phases and loggers are looked at first
            config.require_places()  # before libraries are loaded, which takes seconds
        work = _find(self.work) if isinstance(self.work, str) else self.work
        with _stopped_by_sigterm(), _features_are_kept() if self.keeps_features else nullcontext():
            work(options if self.by_name else config)


def _find(home: str) -> Callable[[Any], object]:
    module, _, name = home.rpartition(".")
    work: Callable[[Any], object] = getattr(import_module(module), name)
    return work


# ---- verbs whose work is called otherwise ------------------------------------------------------------------------


def _finetune(options: Mapping[str, Any]) -> None:
    from transferkit.cli.job import finetune

    finetune(**options)


def _distill(options: Mapping[str, Any]) -> None:
    from transferkit.cli.job import distill

    distill(**options)


def _search(options: Mapping[str, Any]) -> None:
    from transferkit.training.search.search import search

    search(make_config(SearchConfig, options), options)


def _plan(config: PlanConfig) -> None:
    from transferkit.training.plan.preview import write_preview

    write_preview(config, out=config.out, rgn=config.rgn, quiet=config.quiet)


VERBS = {
    verb.name: verb
    for verb in (
        Verb(
            "advise", AdviseConfig, "transferkit.results.advise.advise.run_advise",
            "which backbone suits the pictures, and how to tune it; a recipe that runs", keeps_features=True,
        ),
        Verb(
            "finetune", FinetuneConfig, _finetune,
            "fine-tune a pretrained backbone on a folder of pictures", by_name=True,
        ),
        Verb(
            "distill", DistillConfig, _distill,
            "fine-tune a backbone on what a finished run says of its pictures", ("teacher",), by_name=True,
        ),
        Verb("plan", PlanConfig, _plan, "what finetune would do: phases, learning rates, predicted time and memory"),
        Verb(
            "lr-find", LRFindConfig, "transferkit.training.lr.verb.run_lr_find",
            "LR range test: suggestions, and the curve as CSV and PNG",
        ),
        Verb(
            "search", SearchConfig, _search,
            "search for options with Optuna; the best ones become a recipe", by_name=True,
        ),
        Verb(
            "features", FeaturesConfig, "transferkit.cli.features.extract_features",
            "extract features of a folder, once; kept in the store, exported on request", keeps_features=True,
        ),
        Verb(
            "probe", ProbeConfig, "transferkit.cli.job.probe",
            "fit a classifier on cached features, in seconds", keeps_features=True,
        ),
        Verb(
            "evaluate", EvaluateConfig, "transferkit.results.evaluate.evaluate.evaluate",
            "measure a run on labelled pictures; --against another run, picture by picture", ("run", "data"),
        ),
        Verb(
            "predict", PredictConfig, "transferkit.results.predict.predict.predict_files",
            "what a finished run says of pictures: classes, masks, boxes ...; CSV, JSON lines, COCO", ("run", "paths"),
        ),
        Verb(
            "calibrate", CalibrateConfig, "transferkit.results.evaluate.calibrate.calibrate",
            "fit a run's confidence on labelled pictures it has not seen", ("run", "data"),
        ),
        Verb(
            "explain", ExplainConfig, "transferkit.results.explain.explain.explain",
            "heat maps of pictures, and the training pictures nearest to them", ("run", "paths"), keeps_features=True,
        ),
        Verb(
            "similar", SimilarConfig, "transferkit.results.similar.similar.find_similar",
            "the pictures of a run's data that its model finds most like others", ("run", "paths"), keeps_features=True,
        ),
        Verb(
            "report", ReportConfig, "transferkit.results.report.report.report",
            "one page about a run, or one that compares several", ("runs",),
        ),
        Verb(
            "export", ExportConfig, "transferkit.results.export.export.export",
            "ONNX, torch.export, safetensors or skops; verified before the file appears", ("run",),
        ),
        Verb(
            "serve", ServeConfig, "transferkit.results.serve.serve.serve",
            "a small HTTP server with a page to drop pictures on", ("run",),
        ),
        Verb(
            "check", CheckConfig, "transferkit.results.audit.audit.check",
            "audit a data folder before training on it; --fix writes a cleaned manifest", keeps_features=True,
        ),
        Verb(
            "backbones", BackbonesConfig, "transferkit.cli.listing.print_backbones",
            "list, search and describe backbones", ("pattern",),
        ),
        Verb(
            "store", StoreConfig, "transferkit.cli.store_report.print_store",
            "list, verify or clean the feature store", ("action",),
        ),
        Verb(
            "selftest", SelftestConfig, "transferkit.training.checks.selftest.check_resume",
            "prove on this machine that a killed run resumes exactly",
        ),
    )
}  # fmt: skip


# ---- signals ----------------------------------------------------------------------------------------------------


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block like an exception, with what has been done so far in order.

    Training and the server have handlers of their own meanwhile.
    """
    ours = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminated) if ours else None
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, before)


def _terminated(signum: int, frame: Any) -> NoReturn:
    raise SystemExit(128 + signum)


@contextmanager
def _features_are_kept() -> Iterator[None]:
    """Say on Ctrl-C or SIGTERM that the features computed so far are not lost."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        signum = signal.SIGINT if isinstance(stop, KeyboardInterrupt) else signal.SIGTERM
        raise Interrupted(
            f"stopped by {signum.name}; the features computed so far are in the store - run again to go on", signum
        ) from stop
