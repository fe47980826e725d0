"""The loggers of a run without the run: names, import paths, what is remembered, what fails, and what goes on."""

import csv
import json
import os
import shutil
import sys
import threading

import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from transferkit.core.errors import CheckpointError, ConfigError, TransferkitWarning
from transferkit.options.fields import make_config
from transferkit.options.loggers import logger_names
from transferkit.options.training import FinetuneConfig
from transferkit.training.loggers import build, kinds
from transferkit.training.loggers.guarded import TRIES, GuardedLogger
from transferkit.training.loggers.run_loggers import RunLoggers

POINTS = [(4, {"epoch": 0, "val_acc": 0.5}), (8, {"epoch": 1, "val_acc": 0.75}), (12, {"epoch": 2, "val_acc": 0.625})]


class Noted(Logger):
    """Notes what it is given; fails while it is told to."""

    def __init__(self, name="noted", broken=False):
        self.label, self.broken, self.noted = name, broken, []

    @property
    def name(self):
        return self.label

    @property
    def version(self):
        return None

    def log_hyperparams(self, params, *args, **options):
        self.noted.append(("params", dict(params)))

    def log_metrics(self, metrics, step=None):
        if self.broken:
            raise RuntimeError("first line\nsecond line") from ConnectionError("no route to host")
        self.noted.append((step, dict(metrics)))

    def finalize(self, status):
        self.noted.append(("end", status))


@pytest.fixture
def run(tmp_path):
    """A run directory as far as loggers look at it."""
    root = tmp_path / "cats-1"
    root.mkdir()
    (root / "config.yaml").write_text("backbone: resnet18\nepochs: 3\n", encoding="utf-8")
    return root


def opened(run, names=None, arguments=None, *, made=(), resumed=False):
    loggers = RunLoggers(made)
    loggers.prepare(names, arguments, quiet=True, resumed=run if resumed else None)
    loggers.open(run)
    return loggers


def log(run, points, *names, **options):
    """Log in a process of its own, so to speak."""
    loggers = opened(run, ",".join(names) or None, **options)
    loggers.write(points)
    loggers.close(success=True)
    return loggers


def memory(run):
    return json.loads((run / "loggers.json").read_text(encoding="utf-8"))["loggers"]


def rows(path):
    with path.open(encoding="utf-8") as stream:
        return [(int(row["step"]), float(row["val_acc"])) for row in csv.DictReader(stream) if row["val_acc"]]


def scalars(folder, key="val_acc"):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(key)]


# ---- names and classes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (None, []),
        ("csv", ["csv"]),
        ("csv, tensorboard", ["csv", "tensorboard"]),
        (["csv", "tensorboard,mlflow"], ["csv", "tensorboard", "mlflow"]),
    ],
)
def test_names(value, names):
    assert logger_names(value) == names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logger": "tensorbord"}, "unknown logger 'tensorbord'. Did you mean 'tensorboard'.*or the import path"),
        ({"logger": "csv,csv"}, "expected each logger once"),
        ({"logger": "none,csv"}, "expected 'none' alone"),
        ({"logger": ["csv", ""]}, "unknown logger ''"),
        ({"logger": 3}, "logger is 3, expected a text or a list"),
        (
            {"logger": "csv", "logger_args": {"wandb": {}}},
            "--logger-args are for 'wandb', which --logger does",
        ),
        ({"logger": "csv", "logger_args": {"csv": "logs"}}, "--logger-args of csv are 'logs', expected a mapping"),
    ],
)
def test_wrong_options(options, message):  # fault 138
    with pytest.raises(ConfigError, match=message):
        make_config(FinetuneConfig, {"data": "sample", **options})


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("no.such.place", {}, "cannot be imported .ModuleNotFoundError"),
        ("lightning.pytorch.loggers.CSVLoger", {}, "has no 'CSVLoger'.*Did you mean 'CSVLogger'"),
        ("json.JSONDecoder", {}, "is no subclass of lightning.pytorch.loggers.Logger - give one"),
        ("pytorch_lightning.loggers.CSVLogger", {}, "but of pytorch_lightning, whose parts do not mix"),
        ("lightning.fabric.loggers.CSVLogger", {}, "but of lightning.fabric, whose parts do not mix"),
        ("csv", {"savedir": "x"}, "takes no argument 'savedir', expected one of .*Did you mean 'save_dir'"),
        ("csv", {"save_dir": {1}}, "hold a value that is not plain"),
    ],
)
def test_loggers_that_cannot_be_had(name, arguments, message):  # fault 138
    with pytest.raises(ConfigError, match=message):
        RunLoggers().prepare(name, {name: arguments}, quiet=True)


@pytest.mark.parametrize(("made", "message"), [(True, "logger is bool"), (CSVLogger, "CSVLogger, expected")])
def test_objects_that_are_no_loggers(made, message):
    with pytest.raises(ConfigError, match=message):
        RunLoggers([made])


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_package_that_is_missing_is_named_by_its_extra(command, tmp_path, monkeypatch, name):  # fault 139
    monkeypatch.setattr(build, "_is_installed", lambda package: False)
    status, _, err = command("finetune", "--data", tmp_path / "nothing", "--logger", name)
    assert status == 2
    assert err.endswith(f"is not installed - pip install 'transferkit[{name}]'\n") and len(err.splitlines()) == 1


def test_a_folder_is_no_package(tmp_path, monkeypatch):  # W&B's own folder is called wandb
    (tmp_path / "a_folder_of_results").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not build._is_installed("a_folder_of_results")
    assert not build._is_installed("no_such_package")
    assert build._is_installed("json")


def test_any_class_by_its_import_path(run, tmp_path, monkeypatch):
    (tmp_path / "own_loggers.py").write_text(
        "from lightning.pytorch.loggers import CSVLogger\nclass Own(CSVLogger): pass\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    log(run, POINTS, "own_loggers.Own", arguments={"own_loggers.Own": {"save_dir": str(tmp_path / "logs")}})
    assert rows(tmp_path / "logs" / "cats-1" / "version_0" / "metrics.csv") == [(4, 0.5), (8, 0.75), (12, 0.625)]


def test_flags_and_recipes(command, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("transferkit.cli.job.finetune", lambda **options: seen.append(options))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: sample\nlogger: [wandb]\nlogger_args: {wandb: {offline: true}}\n", encoding="utf-8")
    assert command("finetune", "--config", recipe)[0] == 0
    assert command("finetune", "--config", recipe, "--logger", "wandb,csv")[0] == 0
    assert command("finetune", "--config", recipe, "--logger", "wandb", "--logger=csv,mlflow")[0] == 0
    assert [logger_names(options["logger"]) for options in seen] == [
        ["wandb"], ["wandb", "csv"], ["wandb", "csv", "mlflow"],
    ]  # fmt: skip
    assert seen[0]["logger_args"] == {"wandb": {"offline": True}}


# ---- going on ---------------------------------------------------------------------------------------------------


def test_a_second_process_goes_on_and_repeats_nothing(run):  # fault 136
    log(run, POINTS[:1], "csv", "tensorboard")
    assert [(entry["logger"], entry["points"]) for entry in memory(run)] == [("csv", 1), ("tensorboard", 1)]
    log(run, POINTS[:2], resumed=True)
    log(run, POINTS, "tensorboard", "csv", resumed=True)
    assert rows(run / "csv" / "metrics.csv") == [(4, 0.5), (8, 0.75), (12, 0.625)]
    assert scalars(run / "tensorboard") == [(4, 0.5), (8, 0.75), (12, 0.625)]
    assert len(list((run / "tensorboard").glob("events.*"))) == 3


def test_a_run_that_was_moved_goes_on_where_it_is(run):
    log(run, POINTS[:1], "csv")
    moved = run.rename(run.with_name("moved"))
    log(moved, POINTS, resumed=True)
    assert rows(moved / "csv" / "metrics.csv") == [(4, 0.5), (8, 0.75), (12, 0.625)]
    assert not run.exists()


def test_loggers_that_the_user_made_go_on_too(run, tmp_path):
    for points, resumed in ((POINTS[:2], False), (POINTS, True)):
        made = [CSVLogger(tmp_path / "table"), TensorBoardLogger(tmp_path / "events")]
        log(run, points, made=made, resumed=resumed)
    assert [path.name for path in (tmp_path / "table" / "lightning_logs").iterdir()] == ["version_0"]
    assert rows(tmp_path / "table" / "lightning_logs" / "version_0" / "metrics.csv")[-1] == (12, 0.625)
    assert scalars(tmp_path / "events" / "lightning_logs" / "version_0") == [(4, 0.5), (8, 0.75), (12, 0.625)]


def test_a_logger_with_a_run_of_its_own_is_left_there(run, tmp_path):
    log(run, POINTS[:2], made=[CSVLogger(tmp_path / "table", version=3)])
    log(run, POINTS, made=[CSVLogger(tmp_path / "table", version=5)], resumed=True)
    assert len(rows(tmp_path / "table" / "lightning_logs" / "version_3" / "metrics.csv")) == 2
    assert len(rows(tmp_path / "table" / "lightning_logs" / "version_5" / "metrics.csv")) == 3


def test_rows_of_callbacks_are_kept_in_a_table_that_goes_on(run):
    loggers = opened(run, "csv")
    (logger,) = loggers.for_trainer()
    logger.log_metrics({"own": 1.5}, 2)
    loggers.write(POINTS[:1])
    loggers.close(success=False)
    log(run, POINTS, resumed=True)
    with (run / "csv" / "metrics.csv").open(encoding="utf-8") as stream:
        table = list(csv.DictReader(stream))
    assert [(row["step"], row["own"]) for row in table] == [("2", "1.5"), ("4", ""), ("8", ""), ("12", "")]


def test_a_resume_can_leave_its_loggers(run):
    log(run, POINTS[:1], "csv")
    loggers = opened(run, "none", resumed=True)
    assert loggers.for_trainer() == []
    assert len(rows(run / "csv" / "metrics.csv")) == 1


def test_a_run_directory_makes_no_class_be_imported(run, tmp_path, monkeypatch):  # fault 140
    (tmp_path / "trap_of_a_run.py").write_text("raise SystemExit('imported')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    entry = {"logger": "trap_of_a_run.Logger", "args": {}, "run": "1", "points": 1}
    (run / "loggers.json").write_text(json.dumps({"loggers": [entry]}), encoding="utf-8")
    with pytest.warns(TransferkitWarning, match="nothing more is logged by trap_of_a_run.Logger .1. - name the logger"):
        assert opened(run, resumed=True).for_trainer() == []
    assert "trap_of_a_run" not in sys.modules


@pytest.mark.parametrize("content", ["{", "[]", '{"loggers": [{"logger": "csv"}]}', '{"loggers": 3}'])
def test_a_memory_that_was_edited(run, content):
    (run / "loggers.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match="loggers.json: cannot be read .* Delete it"):
        opened(run, resumed=True)


def test_places_are_expanded_and_absolute(run, tmp_path, monkeypatch):  # fault 101
    monkeypatch.setenv("LOGS", str(tmp_path / "logs"))
    log(run, POINTS, "csv", arguments={"csv": {"save_dir": "$LOGS/tables"}})
    assert len(rows(tmp_path / "logs" / "tables" / "cats-1" / "version_0" / "metrics.csv")) == 3
    assert memory(run)[0]["args"]["save_dir"] == str(tmp_path / "logs" / "tables")


# ---- failures ---------------------------------------------------------------------------------------------------


def test_what_could_not_be_logged_is_logged_with_the_next_row(run):  # fault 137
    noted = Noted()
    loggers = opened(run, made=[noted])
    noted.broken = True
    with pytest.warns(TransferkitWarning, match="failed to log .ConnectionError: no route to host.: the run does not"):
        loggers.write(POINTS[:1])
    noted.broken = False
    loggers.write(POINTS)
    loggers.close(success=True)
    assert noted.noted == [("params", {"backbone": "resnet18", "epochs": 3}), *POINTS, ("end", "success")]


def test_a_logger_that_fails_again_and_again_is_left_alone(run):
    noted, calls = Noted(), []
    loggers = opened(run, made=[noted])
    noted.broken = True
    with pytest.warns(TransferkitWarning) as caught:
        for count in (1, 2, 3, 3, 3):
            loggers.write(POINTS[:count])
    assert len(caught) == TRIES
    assert [("left alone" in str(warning.message)) for warning in caught] == [False, False, True]
    noted.broken, calls = False, list(noted.noted)
    loggers.write(POINTS)
    assert noted.noted == calls
    loggers.close(success=False)
    assert noted.noted[-1] == ("end", "failed")


def test_one_that_fails_costs_the_others_nothing(run):
    bad, good = Noted("bad", broken=True), Noted("good")
    loggers = opened(run, made=[bad, good])
    with pytest.warns(TransferkitWarning, match="failed to log"):
        loggers.write(POINTS)
    assert good.noted[1:] == POINTS


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
# Its thread may meet the missing folder before the flush does, and ends there with what both would say.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_tensorboard_goes_on_after_its_disk_was_gone(run):
    before = set(threading.enumerate())
    loggers = opened(run, "tensorboard")
    loggers.write(POINTS[:1])
    folder = run / "tensorboard"
    shutil.move(folder, run / "aside")
    folder.write_text("in the way", encoding="utf-8")
    with pytest.warns(TransferkitWarning, match="logger tensorboard failed"):
        loggers.write(POINTS[:2])
    folder.unlink()
    shutil.move(run / "aside", folder)
    loggers.write(POINTS)
    loggers.close(success=True)
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=10)
    assert scalars(folder) == [(4, 0.5), (8, 0.75), (12, 0.625)]


def test_mlflow_without_a_server_ends_before_anything_is_read(command, tmp_path, monkeypatch):  # fault 139
    mlflow = pytest.importorskip("mlflow", reason="the mlflow extra is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "http://127.0.0.1:9")  # it remembers an earlier run's
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    status, _, err = command(
        "finetune", "--data", tmp_path / "nothing", "--task", "classification", "--logger", "mlflow"
    )
    assert status == 2
    assert err.startswith(
        "transferkit: error[config]: logger mlflow cannot be used (MlflowException: API request to http"
    )
    assert len(err.splitlines()) == 1


def test_what_mlflow_is_given(run, monkeypatch):
    for name in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    where = kinds.Where(run, "cats-1", group="search")
    arguments = kinds._mlflow_arguments(where, {"tracking_uri": "https://server"})
    assert arguments == {
        "experiment_name": "transferkit", "run_name": "cats-1", "tracking_uri": "https://server",
        "tags": {"group": "search"},
    }  # fmt: skip
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    assert kinds._mlflow_arguments(where, {"tracking_uri": "x"})["experiment_name"] == "mine"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "false"  # the user's own word


def test_what_wandb_is_given(run, monkeypatch):
    for name in ("WANDB_PROJECT", "WANDB_NAME", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    where = kinds.Where(run, "cats-1", group="search", quiet=True)
    arguments = kinds._wandb_arguments(where, {"settings": {"console": "off"}, "tags": ["a"]})
    assert arguments == {
        "project": "transferkit", "name": "cats-1", "save_dir": str(run), "group": "search", "tags": ["a"],
        "settings": {"silent": True, "finish_timeout": kinds.FINISH_S, "console": "off"},
    }  # fmt: skip
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    assert kinds._wandb_arguments(where, {})["project"] == "mine"


@pytest.mark.parametrize("arguments", [{"offline": True}, {"mode": "disabled"}, {"settings": {"mode": "offline"}}])
def test_wandb_asks_nobody_where_nothing_is_sent(monkeypatch, arguments):
    monkeypatch.setattr("wandb.login", lambda *_, **__: pytest.fail("it asked"))
    kinds._check_wandb({"settings": {}, **arguments})


def test_wandb_without_a_key_ends_before_anything_is_read(command, tmp_path, monkeypatch):  # fault 139
    from wandb.errors import UsageError

    def login():
        raise UsageError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr("wandb.login", login)
    status, _, err = command(
        "finetune", "--data", tmp_path / "nothing", "--logger", "wandb", "--logger-args", "{wandb: {mode: online}}"
    )
    assert status == 2
    assert "logger wandb cannot be used (UsageError: No API key configured" in err and len(err.splitlines()) == 1


# ---- what stands for a logger -----------------------------------------------------------------------------------


def test_it_passes_for_the_logger(tmp_path):
    own = CSVLogger(tmp_path, name="own", version=2)
    logger = GuardedLogger(own, "csv", {})
    assert isinstance(logger, CSVLogger) and isinstance(logger, Logger) and type(logger) is GuardedLogger
    assert logger.experiment is own.experiment
    assert (logger.name, logger.version, logger.save_dir) == ("own", 2, str(tmp_path))
    assert (logger.log_dir, logger.root_dir) == (own.log_dir, own.root_dir)
    assert logger.LOGGER_JOIN_CHAR == "-"
    with pytest.raises(AttributeError):
        _ = logger.nothing_of_the_kind
