"""The main job end to end: the run directory's contract, the product, signals, what a user meets."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import parallel_worker as worker
import pytest
import torch

import transferkit as tk
from transferkit.cli.main import main
from transferkit.core.errors import BackboneError, CheckpointError, DataError, TransferkitWarning
from transferkit.data.batches.datamodule import ImageData
from transferkit.models.artifact import load_model
from transferkit.options.fields import make_config
from transferkit.options.training import FinetuneConfig
from transferkit.runs.measure import predictions_of
from transferkit.training.finetune import finetune
from transferkit.training.setup import prepare


def test_the_run_directory_is_the_contract(finished_run):
    names = {str(path.relative_to(finished_run)) for path in finished_run.rglob("*") if path.is_file()}
    assert names == {
        "config.yaml", "plan.json", "data.json", "history.csv", "metrics.json", "curves.png", "model.safetensors",
        "model.json", "checkpoints/last.ckpt", "checkpoints/best.ckpt", "pictures.csv", "predictions.csv",
        "report.html",
    }  # fmt: skip
    assert (finished_run / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_history_has_a_row_per_epoch(finished_run):
    with (finished_run / "history.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["phase"] for row in rows] == ["probe", "finetune", "finetune"]
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert [row["step"] for row in rows] == ["6", "12", "18"]
    columns = list(rows[0])
    assert columns[:3] == ["phase", "epoch", "step"]
    assert [name for name in columns if name.startswith("lr_")] == [
        "lr_stem", "lr_layer1", "lr_layer2", "lr_layer3", "lr_layer4", "lr_head",
    ]  # fmt: skip
    assert columns[-1] == "images_per_s"
    assert {"train_loss", "val_loss", "val_acc"} < set(columns)
    assert rows[0]["lr_layer4"] == "0.0"


def test_metrics(finished_run):
    metrics = json.loads((finished_run / "metrics.json").read_text(encoding="utf-8"))
    assert {"val", "test", "phases", "time_s", "environment"} <= set(metrics)
    for split, count in (("val", 12), ("test", 9)):
        values = metrics[split]
        assert {"acc", "acc_top5", "balanced_acc", "f1_macro", "loss", "ece", "n", "acc_ci"} <= set(values)
        assert values["n"] == count
        assert values["acc_ci"][0] <= values["acc"] <= values["acc_ci"][1]
    assert [phase["epochs"] for phase in metrics["phases"]] == [1, 2]
    assert metrics["environment"]["torch"] == torch.__version__


def test_plan_and_data(finished_run):
    plan = json.loads((finished_run / "plan.json").read_text(encoding="utf-8"))
    total = sum(group["parameters"] for group in plan["groups"])
    assert [phase["trainable_parameters"] for phase in plan["phases"]] == [plan["groups"][-1]["parameters"], total]
    assert len(plan["lr"]["step"]) == len(plan["lr"]["head"]) == 18
    data = json.loads((finished_run / "data.json").read_text(encoding="utf-8"))
    assert data["classes"] == ["circle", "square", "stripes"]
    assert data["counts"]["train"] == {"circle": 8, "square": 8, "stripes": 8}


def test_checkpoints_hold_no_code(finished_run):
    for path in (finished_run / "checkpoints").iterdir():
        assert "state_dict" in torch.load(path, weights_only=True)


def test_the_config_repeats_the_run(finished_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["finetune", "--config", str(finished_run / "config.yaml"), "--quiet"]) == 0
    (again,) = (tmp_path / "runs").iterdir()
    assert again.name == "shapes-test_resnet-1"
    assert (again / "model.safetensors").read_bytes() == (finished_run / "model.safetensors").read_bytes()
    ours, theirs = (json.loads((path / "metrics.json").read_text(encoding="utf-8")) for path in (again, finished_run))
    assert (ours["val"], ours["test"]) == (theirs["val"], theirs["test"])  # fault 51


def test_the_product_gives_the_runs_own_accuracy(finished_run, folder):  # fault 84
    module, info = load_model(finished_run)
    data = ImageData(folder, data_config=info.preprocessing)
    probs, targets = predictions_of(module, data.val_dataloader())
    accuracy = (probs.argmax(dim=1) == targets).double().mean().item()
    metrics = json.loads((finished_run / "metrics.json").read_text(encoding="utf-8"))
    assert accuracy == pytest.approx(metrics["val"]["acc"], abs=1e-7)
    records = data.index.split("val")
    predictions = tk.load(finished_run).predict([record.path for record in records])
    right = [item.label == record.label for item, record in zip(predictions, records, strict=True)]
    assert sum(right) / len(right) == pytest.approx(metrics["val"]["acc"], abs=1e-7)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "model.json").unlink(), "model.json: missing"),
        (lambda run: (run / "model.json").write_text("{", encoding="utf-8"), "model.json: not JSON"),
        (lambda run: (run / "model.safetensors").unlink(), "model.safetensors: missing"),
        (lambda run: (run / "model.safetensors").write_bytes(b"x"), "does not match the sha256 in model.json"),
        (
            lambda run: (run / "model.json").write_text(
                (run / "model.json").read_text(encoding="utf-8").replace('"format": 1', '"format": 99'),
                encoding="utf-8",
            ),
            "newer than this one",
        ),
    ],
)
def test_a_damaged_product_is_an_error(finished_run, tmp_path, damage, message):  # fault 87
    run = shutil.copytree(finished_run, tmp_path / "run")
    damage(run)
    with pytest.raises(CheckpointError, match=message):
        load_model(run)


def test_a_taken_directory_is_refused(finished_run, capsys):  # fault 40
    status = main(["finetune", "--data", "sample", "--out", str(finished_run)])
    assert status == 6
    assert "go on with it by --resume, replace it by --overwrite" in capsys.readouterr().err


def test_overwrite_replaces_a_run_and_quiet_says_nothing(finished_run, quick, tmp_path, capfd):  # fault 40
    run = shutil.copytree(finished_run, tmp_path / "run")
    before = (run / "model.safetensors").read_bytes()
    finetune(**{**quick, "seed": 5}, out=run, overwrite=True)
    assert (run / "model.safetensors").read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert capfd.readouterr() == ("", "")


def test_missing_data_creates_nothing(quick, tmp_path):  # fault 1
    with pytest.raises(DataError, match="none does not exist"):
        finetune(**{**quick, "data": str(tmp_path / "none")}, out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_bad_pictures_stop_or_are_dropped(quick, folder, tmp_path):  # fault 11
    data = shutil.copytree(folder, tmp_path / "data")
    victim = data / "train" / "circle" / "000.png"
    victim.write_bytes(victim.read_bytes()[:200])
    with pytest.raises(DataError, match=r"1 unreadable pictures: .*000\.png.* or pass --skip-bad"):
        finetune(**{**quick, "data": data}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    finetune(**{**quick, "data": data}, skip_bad=True, out=tmp_path / "run")
    (row,) = csv.DictReader((tmp_path / "run" / "bad_files.csv").read_text(encoding="utf-8").splitlines())
    assert row["path"] == str(victim)
    described = json.loads((tmp_path / "run" / "data.json").read_text(encoding="utf-8"))
    assert [item["path"] for item in described["skipped"]] == [str(victim)]
    assert described["counts"]["train"]["circle"] == 7


def test_weights_that_cannot_be_had_stop_before_anything_is_written(quick, tmp_path, monkeypatch):  # fault 31
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    with pytest.raises(BackboneError, match="--weights FILE"):
        finetune(**{**quick, "backbone": "resnet18", "weights": "pretrained"}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_init_from_starts_where_a_run_ended(finished_run, quick):  # fault 61
    expected = load_model(finished_run)[0].state_dict()
    for start in (finished_run, finished_run / "model.safetensors", finished_run / "checkpoints" / "best.ckpt"):
        module = prepare(make_config(FinetuneConfig, {**quick, "init_from": str(start)}), quiet=True).module
        state = module.state_dict()
        own = [name for name in expected if not name.startswith("unlike.")]  # that is measured when a run ends
    assert [name for name in own if not state[name].equal(expected[name])] == []


def test_init_from_another_model_is_refused(finished_run, quick, tmp_path):  # fault 34
    with pytest.raises(BackboneError, match="tensors matched"):
        finetune(**{**quick, "backbone": "test_vit", "image_size": 160}, init_from=finished_run, out=tmp_path / "run")


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("marker",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (  # fault 61
            lambda saved: {"state_dict": saved["state_dict"]},
            "holds weights only, a resume needs the optimizer too - pass it to --init",
        ),
        (  # fault 60
            lambda saved: {**saved, "transferkit": {"version": "9.0.0", "format": 99}},
            r"written by transferkit 9\.0\.0, newer than this one",
        ),
        (  # fault 88
            lambda saved: {"state_dict": {}, "x": Malicious()},
            "holds objects other than tensors and plain data, refused",
        ),
    ],
)
def test_a_checkpoint_that_is_not_resumed(finished_run, tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(finished_run, tmp_path / "run")
    (run / "metrics.json").unlink()
    for path in (run / "checkpoints").iterdir():
        torch.save(change(torch.load(path, weights_only=True)), path)
    with pytest.raises(CheckpointError, match=message):
        finetune(out=run, resume=True, quiet=True)
    assert not (tmp_path / "marker").exists()


def test_a_set_without_validation_runs_on_training_loss(folder, quick, tmp_path):
    data = shutil.copytree(folder / "train", tmp_path / "flat")
    run = finetune(**{**quick, "data": data}, val_split=0.0, test_split=0.0, out=tmp_path / "run")
    assert "val" not in run.metrics
    assert run.metrics["selection"]["monitor"] == "train_loss"
    assert run.metrics["selection"]["note"] == "the epoch was chosen by the training loss"  # no test split either


def test_empty_classes_keep_their_place(folder, quick, tmp_path):  # fault 3
    data = shutil.copytree(folder, tmp_path / "data")
    (data / "train" / "moon").mkdir()
    with pytest.raises(DataError, match="classes without pictures: 'moon'"):
        finetune(**{**quick, "data": data}, out=tmp_path / "run")
    run = finetune(**{**quick, "data": data}, allow_empty_classes=True, out=tmp_path / "run")
    assert run.metrics["val"]["per_class"]["moon"]["recall"] is None


def test_leaks_stop_or_warn(folder, quick, tmp_path):  # fault 24
    data = shutil.copytree(folder, tmp_path / "data")
    shutil.copy(data / "train" / "circle" / "000.png", data / "val" / "circle" / "copy.png")
    with pytest.raises(DataError, match="1 pictures in more than one split"):
        finetune(**{**quick, "data": data}, out=tmp_path / "run")
    with pytest.warns(TransferkitWarning, match="1 pictures in more than one split"):
        prepare(make_config(FinetuneConfig, {**quick, "data": str(data), "allow_leaks": True}), quiet=True)


def flags(options, out):
    """Options of a run that lasts, as words."""
    options = {"epochs": 200, **{key: value for key, value in options.items() if key not in ("quiet", "epochs")}}
    return [f"--{key.replace('_', '-')}={value}" for key, value in {**options, "out": out}.items()]


class Started:
    """The command in a process that has everything loaded."""

    def __init__(self, words, directory):
        self.ranks = worker.Ranks(1, directory, worker.command, ["finetune", *words])

    @property
    def pid(self):
        return self.ranks.processes[0].pid

    def is_alive(self):
        return self.ranks.processes[0].is_alive()

    def end(self):
        """Return the exit status and what was said on standard error."""
        ((code, value),) = self.ranks.results(60)
        return (value[0], value[2]) if code == 0 else (code, "")


class StartedAnew:
    """The command as a shell starts it."""

    def __init__(self, words, directory):
        command = [sys.executable, "-m", "transferkit", "finetune", *words]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
        self.pid = self.process.pid

    def is_alive(self):
        return self.process.poll() is None

    def end(self):
        """Return the exit status and what was said on standard error."""
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err


def start(quick, out, kind=Started):
    """Start the command and wait until it trains."""
    started = kind(flags(quick, out), out.parent)
    deadline = time.monotonic() + 120
    while not (out / "history.csv").exists():
        assert started.is_alive(), started.end()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return started


@pytest.mark.parametrize("kind", [Started, pytest.param(StartedAnew, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_and_stop(quick, tmp_path, kind, number, status):  # fault 47
    started = start(quick, tmp_path / "run", kind)
    os.kill(started.pid, number)
    code, err = started.end()
    assert code == status
    message = [line for line in err.splitlines() if line.startswith("transferkit:")]
    assert len(message) == 1
    assert "go on with --resume --out" in message[0]
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"]


def test_sigkill_leaves_a_run_to_resume(quick, tmp_path):  # fault 47
    phases = "[{name: top, train: head, epochs: 1}, {name: all, epochs: 12}]"
    started = start({**quick, "phases": phases, "probe_epochs": "null"}, tmp_path / "run")
    os.kill(started.pid, signal.SIGKILL)
    assert started.end()[0] == -signal.SIGKILL
    before = (tmp_path / "run" / "history.csv").read_text(encoding="utf-8").splitlines()
    assert len(before) < 14
    finetune(out=tmp_path / "run", resume=True, quiet=True)
    after = (tmp_path / "run" / "history.csv").read_text(encoding="utf-8").splitlines()
    assert after[: len(before)] == before
    assert [int(row["epoch"]) for row in csv.DictReader(after)] == list(range(13))


def test_the_run_directory_vanishes(quick, tmp_path):  # fault 58
    started = start(quick, tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    code, err = started.end()
    assert code == 74, err


def test_the_summary_names_the_next_command(finished_run, tmp_path, capsys):  # fault 57
    run = shutil.copytree(finished_run, tmp_path / "my run")
    finetune(out=run, resume=True)
    out = capsys.readouterr().out
    assert "already complete" in out
    assert "95 % interval" in out
    assert f"transferkit predict '{run}' PICTURE..." in out
