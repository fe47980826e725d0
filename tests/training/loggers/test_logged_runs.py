"""Runs in the real loggers, offline: stopped in mid-run, gone on with, and read back from what they wrote."""

import csv
import json
import math
import signal
from types import SimpleNamespace

import numpy as np
import parallel_worker as worker
import pytest
import wandb_file
import yaml
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, Logger
from PIL import Image
from small_runs import SignalAt, make_data, make_module, make_trainer

import transferkit as tk
from transferkit.cli.main import main
from transferkit.core.errors import ConfigError, Interrupted, TransferkitWarning

pytestmark = [
    # MLflow 3.17 with SQLAlchemy 2.1
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
]

ALL = "csv,tensorboard,mlflow,wandb"


@pytest.fixture(scope="module")
def logged(folder, tmp_path_factory):
    """A run with all loggers, stopped in its second epoch and gone on with; and what it had logged when it stopped."""
    import wandb

    root = tmp_path_factory.mktemp("logged")
    wandb.teardown()  # what it knows of an earlier test in this process
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        patch.setenv("WANDB_MODE", "offline")
        for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
            patch.setenv(name, str(root / "wandb"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
        options = {
            "data": str(folder), "backbone": "test_resnet", "weights": "random", "image_size": 32, "batch_size": 4,
            "epochs": 2, "phases": "finetune", "precision": "32", "accelerator": "cpu", "workers": 0, "quiet": True,
        }  # fmt: skip
        run = root / "cats"
        with pytest.raises(Interrupted):
            tk.finetune(**options, out=str(run), logger=ALL.split(","), callbacks=[SignalAt(9, signal.SIGTERM)])
        stopped = SimpleNamespace(
            memory=memory_of(run),
            table=(run / "csv" / "metrics.csv").read_text(encoding="utf-8"),
            mlflow=mlflow_run(root).info.status,
        )
        assert main(["finetune", "--resume", "--out", "cats", "--quiet"]) == 0
    yield SimpleNamespace(root=root, run=run, stopped=stopped)
    wandb.teardown()


def memory_of(run):
    return json.loads((run / "loggers.json").read_text(encoding="utf-8"))["loggers"]


def mlflow_client(root):
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{root}/mlflow.db")


def mlflow_run(root):
    """Return the one run that MLflow has."""
    client = mlflow_client(root)
    (run,) = client.search_runs([client.get_experiment_by_name("transferkit").experiment_id])
    return run


def wandb_records(run):
    """Return the records of each part of a W&B run, in order."""
    return [wandb_file.records(path) for path in sorted((run / "wandb").glob("offline-run-*/*.wandb"))]


def events(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(run / "tensorboard"))
    accumulator.Reload()
    return accumulator


def history(run):
    """Return the rows of `history.csv` as loggers take them: steps, and numbers by name."""
    with (run / "history.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return [(int(row["step"]), {key: float(row[key]) for key in row if key not in ("phase", "step")}) for row in rows]


def final(run):
    """Return the figures of `metrics.json` as loggers take them."""
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    values = {}
    for split in ("val", "test"):
        for figure in metrics[split]["figures"]:
            if figure["of"] is None and figure["value"] is not None:
                values[f"final/{split}_{figure['key']}"] = figure["value"]
                for name, bound in zip(("low", "high"), figure["ci"] or (), strict=False):
                    values[f"final/{split}_{figure['key']}_{name}"] = bound
    return values | {"final/epoch": metrics["selection"]["epoch"], "final/time_s": metrics["time_s"]}


# ---- rows, figures, parameters, files ---------------------------------------------------------------------------


def test_the_table_of_csv(logged):
    with (logged.run / "csv" / "metrics.csv").open(encoding="utf-8") as stream:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(stream)]
    steps = [int(row.pop("step")) for row in rows]
    expected = [*history(logged.run), (12, final(logged.run))]
    assert list(zip(steps, rows, strict=True)) == expected
    assert {"final/test_acc", "final/test_acc_low", "final/test_acc_high"} < set(rows[-1])
    hparams = yaml.safe_load((logged.run / "csv" / "hparams.yaml").read_text(encoding="utf-8"))
    assert (hparams["backbone"], hparams["batch_size"], hparams["phases"][0]["name"]) == ("test_resnet", 4, "finetune")
    assert not {"logger", "logger_args", "out", "quiet"} & set(hparams)


def test_the_events_of_tensorboard(logged):
    accumulator = events(logged.run)
    rows = history(logged.run)
    for key in rows[0][1]:
        points = [(event.step, event.value) for event in accumulator.Scalars(key)]
        assert points == [(step, pytest.approx(values[key], rel=1e-6)) for step, values in rows], key
    for key, value in final(logged.run).items():
        assert [event.value for event in accumulator.Scalars(key)] == [pytest.approx(value, rel=1e-6)], key
    assert "hp_metric" not in accumulator.Tags()["scalars"]
    (image,) = accumulator.Images("curves")
    with Image.open(logged.run / "curves.png") as curves:
        assert (image.width, image.height) == curves.size
    (text,) = accumulator.Tensors("figures/text_summary")
    table = text.tensor_proto.string_val[0].decode()
    assert "| split | figure | value | 95 % interval |" in table and "| test | Accuracy |" in table


def test_tensorboard_has_the_options_beside_the_figures(logged):
    from tensorboard.plugins.hparams import plugin_data_pb2

    data = events(logged.run).SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(data).session_start_info.hparams
    assert start["backbone"].string_value == "test_resnet" and start["epochs"].number_value == 2


def test_the_run_of_mlflow(logged):
    client, run = mlflow_client(logged.root), mlflow_run(logged.root)
    rows = history(logged.run)
    for key in rows[0][1]:
        points = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key)]
        assert points == [(step, values[key]) for step, values in rows], key
    assert {key: run.data.metrics[key] for key in final(logged.run)} == final(logged.run)
    assert (run.info.run_name, run.info.status) == ("cats", "FINISHED")
    assert (run.data.params["backbone"], run.data.params["phases/0/name"]) == ("test_resnet", "finetune")
    names = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert names == {"report.html", "curves.png", "metrics.json", "history.csv", "config.yaml"}
    report = logged.root / "mlruns" / run.info.experiment_id / run.info.run_id / "artifacts" / "report.html"
    assert report.read_bytes() == (logged.run / "report.html").read_bytes()


def test_the_run_of_wandb(logged):
    parts = wandb_records(logged.run)
    logs = [wandb_file.values(record.item) for part in parts for kind, record in part if kind == "history"]
    own = {"trainer/global_step", "_step", "_runtime", "_timestamp"}
    points = [(log["trainer/global_step"], {key: log[key] for key in log if key not in own}) for log in logs]
    assert points[:3] == [*history(logged.run), (12, final(logged.run))]
    media = {key for log in logs[3:] for key in log}
    assert {"curves/_type", "report/_type"} <= media
    (config,) = [record for part in parts for kind, record in part if kind == "config" and len(record.update) > 5]
    assert wandb_file.values(config.update)["backbone"] == "test_resnet"
    (artifact,) = [record for kind, record in parts[-1] if kind == "artifact"]
    names = {content.path for content in artifact.manifest.contents}
    assert names == {"report.html", "curves.png", "metrics.json", "history.csv", "config.yaml"}


# ---- going on ---------------------------------------------------------------------------------------------------


def test_a_resumed_run_goes_on_in_the_same_logger_runs(logged):  # fault 136
    before, after = logged.stopped.memory, memory_of(logged.run)
    assert [entry["logger"] for entry in after] == ALL.split(",")
    assert [(entry["logger"], entry["run"]) for entry in before] == [(entry["logger"], entry["run"]) for entry in after]
    assert ({entry["points"] for entry in before}, {entry["points"] for entry in after}) == ({1}, {2})
    assert logged.stopped.mlflow == "FAILED"  # and is FINISHED now
    assert len(logged.stopped.table.splitlines()) == 2
    parts = wandb_records(logged.run)
    ids = [record.run_id for part in parts for kind, record in part if kind == "run"]
    assert len(parts) == 2 and set(ids) == {after[-1]["run"]}
    ends = [record.exit_code for part in parts for kind, record in part if kind == "exit"]
    assert ends == [1, 0]


def test_the_recipe_of_a_run_names_no_logger(logged):
    config = yaml.safe_load((logged.run / "config.yaml").read_text(encoding="utf-8"))
    assert "logger" not in config and "logger_args" not in config


# ---- other runs -------------------------------------------------------------------------------------------------


class Table(Logger):
    """Keeps what it is given, and fails when it is told to."""

    def __init__(self, fails=()):
        self.fails, self.calls, self.params, self.rows, self.ends = set(fails), 0, [], [], []

    @property
    def name(self):
        return "table"

    @property
    def version(self):
        return "1"

    @property
    def experiment(self):
        return self.rows

    def log_hyperparams(self, params, *args, **options):
        self.params.append(params)

    def log_metrics(self, metrics, step=None):
        self.calls += 1
        if self.calls in self.fails:
            raise ConnectionError("the server is gone")
        self.rows.append((step, dict(metrics)))

    def finalize(self, status):
        self.ends.append(status)


def test_a_logger_that_fails_costs_a_warning_and_gets_the_row_later(quick, tmp_path):  # fault 137
    table = Table(fails={1})
    with pytest.warns(TransferkitWarning, match="logger .*Table failed to log .*the server is gone"):
        run = tk.finetune(**quick, phases="finetune", out=str(tmp_path / "run"), logger=table, report="off")
    assert table.rows == [*history(run.path), (12, pytest.approx(final(run.path)))]
    assert table.ends == ["success"] and len(table.params) == 1


def test_callbacks_find_the_logger_and_nothing_is_logged_twice(quick, tmp_path):
    class Look(LearningRateMonitor):
        def on_train_start(self, trainer, *args, **options):
            super().on_train_start(trainer, *args, **options)
            seen.append((isinstance(trainer.logger, CSVLogger), trainer.logger.experiment is own.experiment))

    seen, own = [], CSVLogger(tmp_path / "logs", name="own")
    run = tk.finetune(
        **quick, phases="finetune", out=str(tmp_path / "run"), logger=[own, "csv"], report="off",
        callbacks=[Look("epoch")],
    )  # fmt: skip
    assert seen == [(True, True)]
    with (tmp_path / "logs" / "own" / "version_0" / "metrics.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    losses = [(int(row["step"]), float(row["train_loss"])) for row in rows if row["train_loss"]]
    assert losses == [(step, values["train_loss"]) for step, values in history(run.path)]
    own_keys = [key for key in rows[0] if key.startswith("lr-AdamW/")]
    assert own_keys and sum(bool(row[own_keys[0]]) for row in rows) == 2  # the callback's own
    memory = memory_of(run.path)
    assert [(entry["logger"].rpartition(".")[2], entry["args"] is None) for entry in memory] == [
        ("CSVLogger", True), ("csv", False),
    ]  # fmt: skip


def test_a_plain_trainer_logs_as_ever(folder, tmp_path):
    trainer = make_trainer(tmp_path, logger=CSVLogger(tmp_path / "logs"), max_epochs=1, log_every_n_steps=1)
    trainer.fit(make_module(), make_data(folder))
    table = (tmp_path / "logs" / "lightning_logs" / "version_0" / "metrics.csv").read_text(encoding="utf-8")
    assert {"train_loss", "val_loss", "val_acc"} < set(table.splitlines()[0].split(","))


def test_one_of_several_processes_logs(quick, tmp_path):
    options = {**quick, "phases": "finetune", "out": str(tmp_path / "run"), "logger": "csv,tensorboard"}
    worker.run_ranks(2, tmp_path, worker.finetune_watched, options)
    run = tmp_path / "run"
    assert len(list((run / "tensorboard").glob("events.*"))) == 1
    with (run / "csv" / "metrics.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["step"]) for row in rows] == [*(step for step, _ in history(run)), history(run)[-1][0]]


def test_nothing_is_loaded_or_remembered_unless_asked_for(quick, tmp_path):
    options = {**quick, "phases": "finetune", "epochs": 1, "out": str(tmp_path / "run")}
    (found,) = worker.run_ranks(1, tmp_path, worker.loaded_by_finetune, options, ("tensorboard", "mlflow", "wandb"))
    assert found == []
    assert not (tmp_path / "run" / "loggers.json").exists()


def test_a_logger_that_cannot_begin_ends_the_run_before_its_first_step(quick, tmp_path):
    class Refuses(Table):
        def log_hyperparams(self, params, *args, **options):
            raise PermissionError("nobody is logged in")

    with pytest.raises(ConfigError, match="logger .*Refuses cannot be used .PermissionError: nobody is logged in"):
        tk.finetune(**quick, out=str(tmp_path / "run"), logger=Refuses())
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_a_probe_is_logged(folder, tmp_path, command):
    out = tmp_path / "probe"
    words = ("--data", folder, "--backbone", "test_resnet", "--weights", "random", "--image-size", "32")
    status, _, err = command("probe", *words, "--store", tmp_path / "store", "--out", out, "--logger", "csv", "--quiet")
    assert (status, err) == (0, "")
    with (out / "csv" / "metrics.csv").open(encoding="utf-8") as stream:
        (row,) = csv.DictReader(stream)
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert float(row["final/test_acc"]) == metrics["test"]["acc"]
    assert math.isclose(float(row["final/test_acc_low"]), metrics["test"]["acc_ci"][0])
    assert np.isfinite(float(row["final/time_s"]))
