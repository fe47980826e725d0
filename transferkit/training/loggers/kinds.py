"""What Lightning's loggers differ in: their packages, where a run logs by default, how they go on, and take files."""

from __future__ import annotations

import csv
import io
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from transferkit.machine.lightning_import import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

__all__ = ["CLASSES", "Kind", "Results", "Where", "kind_of"]

HOME = "transferkit"
"""Project of W&B and experiment of MLflow of runs that name none."""

FINISH_S = 300.0
"""How long W&B may take to send what it has at the end; what is left can be sent by `wandb sync`."""


RETRIES = 4
"""Of a request to an MLflow server: half a minute in all, not four. What is not logged is logged with the next row."""


@dataclass(frozen=True)
class Where:
    """What the default arguments of a logger follow from.

    Attributes:
        run: The run directory.
        label: What the run is called.
        group: What runs that belong together are called, such as the trials of a search; ``None`` for a single run.
        quiet: Whether the terminal stays empty.
    """

    run: Path
    label: str
    group: str | None = None
    quiet: bool = False


@dataclass(frozen=True)
class Results:
    """What comes of a run.

    Attributes:
        params: The options, as `config.yaml` has them.
        figures: Numbers by name.
        table: The figures with their intervals, in Markdown.
        step: The last step of the training.
    """

    params: Mapping[str, Any]
    figures: Mapping[str, float]
    table: str
    step: int


def _as_given(where: Where, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return dict(arguments)


def _stays(logger: Any, run: Any) -> bool:
    return False


def _leave(success: bool) -> None:
    """End nothing."""


def _no_check(arguments: Mapping[str, Any]) -> None:
    """Look at nothing."""


def _begin(logger: Any, goes_on: bool) -> Callable[[bool], None]:
    return _leave


def _as_it_is(logger: Any) -> None:
    """Change nothing."""


def _log_params(logger: Any, params: Mapping[str, Any]) -> None:
    logger.log_hyperparams(dict(params))


def _log_results(logger: Any, results: Results) -> None:
    logger.log_metrics(dict(results.figures), results.step)


def _log_files(logger: Any, files: Sequence[Path]) -> None:
    """Leave the files where they are."""


@dataclass(frozen=True)
class Kind:
    """How a class of loggers is set up and used. By default, as one that nothing is known of.

    Attributes:
        packages: One of them has to be installed; empty for none.
        extra: Installs it.
        arguments: Completes the arguments of the constructor that the user gave.
        go_on: Points a logger that has not begun, and has no run of its own, at the run of an earlier process; returns
            whether it logs there.
        check: Told the arguments, fails where nobody is logged in, or there is no server.
        places: Arguments that follow from the run directory; they are not remembered, as it may be moved.
        begin: Opens what the logger writes to, so that it fails now and not later; also told whether it goes on.
            Returns what ends the run there, told whether it succeeded.
        renew: Makes one that has failed fit to be tried again.
        forgets: Whether what it could not save is gone then.
        log_params: Takes the options.
        log_results: Takes the results.
        log_files: Takes files.
    """

    packages: tuple[str, ...] = ()
    extra: str = ""
    arguments: Callable[[Where, Mapping[str, Any]], dict[str, Any]] = _as_given
    check: Callable[[Mapping[str, Any]], None] = _no_check
    places: tuple[str, ...] = ()
    go_on: Callable[[Any, Any], bool] = _stays
    begin: Callable[[Any, bool], Callable[[bool], None]] = _begin
    renew: Callable[[Any], None] = _as_it_is
    forgets: bool = False
    log_params: Callable[[Any, Mapping[str, Any]], None] = _log_params
    log_results: Callable[[Any, Results], None] = _log_results
    log_files: Callable[[Any, Sequence[Path]], None] = _log_files


# ---- folders: TensorBoard and CSV -------------------------------------------------------------------------------


def _in_folder(name: str) -> Callable[[Where, Mapping[str, Any]], dict[str, Any]]:
    """Return the arguments of a logger that writes to a folder: one in the run directory, unless one is given."""

    def arguments(where: Where, own: Mapping[str, Any]) -> dict[str, Any]:
        if "save_dir" in own:
            return {"name": where.label, **own}
        return {"save_dir": str(where.run), "name": "", "version": name, **own}

    return arguments


def _go_on_in_folder(logger: Any, run: Any) -> bool:
    if logger._version is None:
        logger._version = run
    return bool(logger._version == run)


def _begin_tensorboard(logger: TensorBoardLogger, goes_on: bool) -> Callable[[bool], None]:
    _ = logger.experiment
    return _leave


def _renew_tensorboard(logger: Any) -> None:
    logger._experiment = None  # the thread that wrote is gone, and the next writer begins another file


def _tensorboard_params(logger: TensorBoardLogger, params: Mapping[str, Any]) -> None:
    logger.log_hyperparams(dict(params), {})  # without figures it would make one up: hp_metric -1


def _tensorboard_results(logger: TensorBoardLogger, results: Results) -> None:
    logger.log_hyperparams(dict(results.params), dict(results.figures), results.step)
    logger.experiment.add_text("figures", results.table, results.step)


def _tensorboard_files(logger: TensorBoardLogger, files: Sequence[Path]) -> None:
    for file in files:
        if file.suffix == ".png":
            with Image.open(file) as picture:
                logger.experiment.add_image(file.stem, np.asarray(picture.convert("RGB")), dataformats="HWC")


def _begin_csv(logger: CSVLogger, goes_on: bool) -> Callable[[bool], None]:
    """Open the table. Lightning deletes one that is there already; the rows of this run are put back."""
    if not goes_on:
        _ = logger.experiment
        return _leave
    path = Path(logger.log_dir) / "metrics.csv"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Experiment logs directory .* exists and is not empty")
        writer: Any = logger.experiment
    rows = csv.DictReader(io.StringIO(text))
    writer.metrics_keys = list(rows.fieldnames or ())
    writer.metrics = list(rows)
    writer.save()
    return _leave


# ---- MLflow -----------------------------------------------------------------------------------------------------


def _mlflow_arguments(where: Where, own: Mapping[str, Any]) -> dict[str, Any]:
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", HOME)
    arguments = {"experiment_name": experiment, "run_name": where.label, **own}
    if where.group is not None:
        arguments["tags"] = {"group": where.group, **(own.get("tags") or {})}
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nobody asked to tell MLflow's makers
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", str(RETRIES))
    if "tracking_uri" not in own and "save_dir" not in own:
        import mlflow

        arguments["tracking_uri"] = mlflow.get_tracking_uri()  # Lightning's default is a store that MLflow 3 refuses
    return arguments


def _check_mlflow(arguments: Mapping[str, Any]) -> None:
    MLFlowLogger(**arguments)._mlflow_client.search_experiments(max_results=1)


def _go_on_in_mlflow(logger: Any, run: Any) -> bool:
    if logger._run_id is None:
        logger._run_id = run
    return bool(logger._run_id == run)


def _begin_mlflow(logger: MLFlowLogger, goes_on: bool) -> Callable[[bool], None]:
    client = logger.experiment
    if goes_on:
        client.update_run(logger.run_id, "RUNNING")
    return _leave


def _mlflow_files(logger: MLFlowLogger, files: Sequence[Path]) -> None:
    for file in files:
        logger.experiment.log_artifact(logger.run_id, str(file))


# ---- W&B --------------------------------------------------------------------------------------------------------


def _wandb_arguments(where: Where, own: Mapping[str, Any]) -> dict[str, Any]:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # nobody asked to tell W&B's makers
    import wandb

    usual = {"silent": where.quiet, "finish_timeout": FINISH_S}
    settings = {name: value for name, value in usual.items() if name in wandb.Settings.model_fields}
    arguments = {
        "project": os.environ.get("WANDB_PROJECT", HOME),
        "name": os.environ.get("WANDB_NAME", where.label),
        "save_dir": os.environ.get("WANDB_DIR", str(where.run)),
        **own,
        "settings": {**settings, **(own.get("settings") or {})},
    }
    return arguments if where.group is None else {"group": where.group, **arguments}


def _check_wandb(arguments: Mapping[str, Any]) -> None:
    import wandb

    mode = arguments.get("mode") or arguments["settings"].get("mode") or wandb.setup().settings.mode
    if not arguments.get("offline") and mode in ("online", "shared") and wandb.run is None:
        wandb.login()  # on a terminal it asks for a key, elsewhere it fails without one


def _go_on_in_wandb(logger: Any, run: Any) -> bool:
    if logger._id is None and logger._experiment is None:
        logger._id = logger._wandb_init["id"] = run
    return bool(logger.version == run)


def _begin_wandb(logger: WandbLogger, goes_on: bool) -> Callable[[bool], None]:
    import wandb

    others = wandb.run  # which is logged to then, and not ours to end
    init: dict[str, Any] = logger._wandb_init
    if init.get("anonymous") is None:
        init.pop("anonymous", None)  # W&B warns of it, given or not
    experiment = logger.experiment

    def end(success: bool) -> None:
        if others is None:
            experiment.finish(exit_code=0 if success else 1)

    return end


def _wandb_files(logger: WandbLogger, files: Sequence[Path]) -> None:
    import wandb

    results = wandb.Artifact(f"results-{logger.version}", type="results")
    for file in files:
        results.add_file(str(file))
        if file.suffix == ".png":
            logger.log_image(file.stem, [str(file)])
        elif file.suffix == ".html":
            logger.experiment.log({file.stem: wandb.Html(str(file), inject=False)})
    logger.experiment.log_artifact(results)


# ---- which ------------------------------------------------------------------------------------------------------

CLASSES: Mapping[str, type[Logger]] = {
    "tensorboard": TensorBoardLogger, "wandb": WandbLogger, "mlflow": MLFlowLogger, "csv": CSVLogger,
}  # fmt: skip
"""Those that are known by name."""

KINDS: Mapping[type[Logger], Kind] = {
    TensorBoardLogger: Kind(
        packages=("tensorboard", "tensorboardX"),
        extra="tensorboard",
        arguments=_in_folder("tensorboard"),
        places=("save_dir", "name", "version"),
        go_on=_go_on_in_folder,
        begin=_begin_tensorboard,
        renew=_renew_tensorboard,
        forgets=True,
        log_params=_tensorboard_params,
        log_results=_tensorboard_results,
        log_files=_tensorboard_files,
    ),
    CSVLogger: Kind(
        arguments=_in_folder("csv"),
        places=("save_dir", "name", "version"),
        go_on=_go_on_in_folder,
        begin=_begin_csv,
    ),
    MLFlowLogger: Kind(
        packages=("mlflow",),
        extra="mlflow",
        arguments=_mlflow_arguments,
        check=_check_mlflow,
        go_on=_go_on_in_mlflow,
        begin=_begin_mlflow,
        log_files=_mlflow_files,
    ),
    WandbLogger: Kind(
        packages=("wandb",),
        extra="wandb",
        arguments=_wandb_arguments,
        check=_check_wandb,
        places=("save_dir", "settings"),
        go_on=_go_on_in_wandb,
        begin=_begin_wandb,
        log_files=_wandb_files,
    ),
}


def kind_of(logger: type[Logger]) -> Kind:
    """Return how a class of loggers is used: as the class that it comes from, else as one that nothing is known of."""
    return next((kind for known, kind in KINDS.items() if issubclass(logger, known)), Kind())
