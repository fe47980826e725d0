"""What each verb does, between its options and its exit status; heavy modules are loaded when a verb runs."""

from __future__ import annotations

import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from transferkit.core.errors import Interrupted
from transferkit.options.features import (
    BackbonesConfig,
    CalibrateConfig,
    CheckConfig,
    EvaluateConfig,
    ExplainConfig,
    ExportConfig,
    FeaturesConfig,
    LRFindConfig,
    PlanConfig,
    PredictConfig,
    ProbeConfig,
    ReportConfig,
    SearchConfig,
    SelftestConfig,
    ServeConfig,
    StoreConfig,
    make_config,
)

__all__ = ["RUNNERS"]


def run_finetune(options: dict[str, Any]) -> int:
    from transferkit.cli.job import finetune

    # Before and after training; in between, RunKeeper's own handlers save first.
    with _said_once(), _stopped_by_sigterm():
        finetune(**options)
    return 0


def run_plan(options: dict[str, Any]) -> int:
    from transferkit.training.plan.preview import write_plan

    config = make_config(PlanConfig, options)
    with _stopped_by_sigterm():
        write_plan(config, out=config.out, rgn=config.rgn, quiet=config.quiet)
    return 0


def run_lr_find(options: dict[str, Any]) -> int:
    from transferkit.training.lr.verb import run_lr_find as find

    config = make_config(LRFindConfig, options)
    with _stopped_by_sigterm():
        find(config)
    return 0


def run_search(options: dict[str, Any]) -> int:
    from transferkit.training.search.search import search

    config = make_config(SearchConfig, options)
    with _stopped_by_sigterm():
        search(config, options)
    return 0


def run_selftest(options: dict[str, Any]) -> int:
    from transferkit.training.checks.selftest import check_resume

    config = make_config(SelftestConfig, options)
    with _stopped_by_sigterm():
        check_resume(config)
    return 0


def run_features(options: dict[str, Any]) -> int:
    from transferkit.cli.features_summary import print_features
    from transferkit.features.extract.extract import extract_table
    from transferkit.features.extract.table import check_export
    from transferkit.show.progress import counting_bar, progress_console
    from transferkit.training.ranks.connecting import connected, place_of_torchrun
    from transferkit.training.ranks.parallel import gather, is_writer, on_first

    config = make_config(FeaturesConfig, options)
    if config.out is not None:
        check_export(Path(config.out))
    with (
        _said_once(),
        _stopped_by_sigterm(),
        _told_what_is_kept(),
        connected(place_of_torchrun()),  # each of them extracts what no other has claimed
        counting_bar(progress_console(config.quiet or not is_writer()), "extracting features") as told,
    ):
        started = time.perf_counter()
        table = extract_table(config, indexing=told, extracting=told)
        computed = sum(gather(table.facts["computed"]))
        table = dataclasses.replace(table, facts={**table.facts, "computed": computed})
        if config.out is not None:
            on_first(table.save, config.out)
        writes = is_writer()
    if not config.quiet and writes:
        print_features(table, out=config.out, seconds=time.perf_counter() - started)
    return 0


def run_probe(options: dict[str, Any]) -> int:
    from transferkit.cli.job import probe

    config = make_config(ProbeConfig, options)
    with _stopped_by_sigterm(), _told_what_is_kept():
        probe(config)
    return 0


def run_store(options: dict[str, Any]) -> int:
    from transferkit.cli.store_report import print_store
    from transferkit.features.store.store import FeatureStore
    from transferkit.show.progress import counting_bar, progress_console

    config = make_config(StoreConfig, options)
    with counting_bar(progress_console(config.quiet), "reading shards") as told:
        print_store(
            FeatureStore(config.store),
            config.action,
            unused_days=config.unused_days,
            dry_run=config.dry_run,
            progress=told,
        )
    return 0


def run_predict(options: dict[str, Any]) -> int:
    from transferkit.results.predict.predictions import predict_files

    with _said_once(), _stopped_by_sigterm():
        predict_files(make_config(PredictConfig, options))
    return 0


def run_evaluate(options: dict[str, Any]) -> int:
    from transferkit.results.evaluate.evaluate import evaluate

    with _stopped_by_sigterm():
        evaluate(make_config(EvaluateConfig, options))
    return 0


def run_calibrate(options: dict[str, Any]) -> int:
    from transferkit.results.evaluate.calibrate import calibrate

    with _stopped_by_sigterm():
        calibrate(make_config(CalibrateConfig, options))
    return 0


def run_explain(options: dict[str, Any]) -> int:
    from transferkit.results.explain.explain import explain

    with _stopped_by_sigterm(), _told_what_is_kept():
        explain(make_config(ExplainConfig, options))
    return 0


def run_report(options: dict[str, Any]) -> int:
    from transferkit.results.report.report import report

    with _stopped_by_sigterm():
        report(make_config(ReportConfig, options))
    return 0


def run_export(options: dict[str, Any]) -> int:
    from transferkit.results.export.export import export

    with _stopped_by_sigterm():
        export(make_config(ExportConfig, options))
    return 0


def run_serve(options: dict[str, Any]) -> int:
    from transferkit.results.serve.serve import serve

    serve(make_config(ServeConfig, options))
    return 0


def run_check(options: dict[str, Any]) -> int:
    from transferkit.data.index.audit import print_audit
    from transferkit.show.progress import counting_bar, progress_console

    config = make_config(CheckConfig, options)
    lenient = {"bad": config.skip_bad, "empty": config.allow_empty_classes, "leaks": config.allow_leaks}
    with counting_bar(progress_console(config.quiet), "reading pictures") as told:
        print_audit(
            config.data,
            val_split=config.val_split,
            test_split=config.test_split,
            seed=config.seed,
            strict=tuple(kind for kind, allowed in lenient.items() if not allowed),
            progress=told,
        )
    return 0


def run_backbones(options: dict[str, Any]) -> int:
    from transferkit.cli.listing import print_backbones

    config = make_config(BackbonesConfig, options)
    print_backbones(config.pattern, pretrained_only=config.pretrained, describe=config.describe)
    return 0


RUNNERS: dict[str, Callable[[dict[str, Any]], int]] = {
    "finetune": run_finetune,
    "plan": run_plan,
    "lr-find": run_lr_find,
    "search": run_search,
    "selftest": run_selftest,
    "features": run_features,
    "probe": run_probe,
    "evaluate": run_evaluate,
    "predict": run_predict,
    "calibrate": run_calibrate,
    "explain": run_explain,
    "report": run_report,
    "export": run_export,
    "serve": run_serve,
    "check": run_check,
    "backbones": run_backbones,
    "store": run_store,
}


# ---- several processes ------------------------------------------------------------------------------------------


@contextmanager
def _said_once() -> Iterator[None]:
    """End quietly a process that fails because another one of the run did, with the status of that one."""
    from transferkit.training.ranks.parallel import PeerError

    try:
        yield
    except PeerError as error:
        raise SystemExit(error.exit_status) from error


# ---- signals ----------------------------------------------------------------------------------------------------


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block like an exception, with what has been done so far in order."""
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
def _told_what_is_kept() -> Iterator[None]:
    """Say on Ctrl-C or SIGTERM that the features computed so far are not lost."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        signum = signal.SIGINT if isinstance(stop, KeyboardInterrupt) else signal.SIGTERM
        raise Interrupted(
            f"stopped by {signum.name}; the features computed so far are in the store - run again to go on", signum
        ) from stop
