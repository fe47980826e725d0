"""`plan` and `finetune --dry-run`: everything that will happen, said before any of it does."""

import json

import pytest
import torch

from transferkit.cli.main import main
from transferkit.options.fields import make_config
from transferkit.options.training import FinetuneConfig, PlanConfig
from transferkit.training.finetune import finetune
from transferkit.training.plan.forecast import forecast
from transferkit.training.plan.plan import Plan
from transferkit.training.plan.preview import norm_layers, write_preview
from transferkit.training.setup import prepare


@pytest.fixture(scope="module")
def written(folder, tmp_path_factory):
    """A plan of three phases, and what was printed."""
    out = tmp_path_factory.mktemp("plan") / "plan"
    config = make_config(FinetuneConfig, {
        "data": str(folder), "backbone": "test_resnet", "weights": "random", "image_size": 32, "batch_size": 4,
        "epochs": 2, "phases": "gradual", "probe_epochs": 1, "precision": "32", "accelerator": "cpu", "workers": 0,
        "quiet": True, "accumulate": 2,
    })  # fmt: skip
    return config, *write_preview(config, out=str(out), quiet=True)


def test_the_files(written):
    _, directory, values = written
    assert json.loads((directory / "plan.json").read_text(encoding="utf-8")) == values
    assert (directory / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in directory.iterdir()) == ["plan.json", "plan.png"]


def test_figures_against_the_model(written):
    config, _, values = written
    ready = prepare(config, quiet=True)
    sizes = {name: sum(p.numel() for _, p in members) for name, members in ready.module.groups()}
    assert {group["name"]: group["parameters"] for group in values["groups"]} == sizes
    assert values["steps_per_epoch"] == 3  # 24 pictures, 4 a batch, 2 batches a step
    plan = Plan(ready.phases, ready.module.group_names(), 3)
    norms = sum(isinstance(layer, torch.nn.BatchNorm2d) for layer in ready.module.modules())
    assert values["norms"] == norms == len(norm_layers(ready.module))
    step = 0
    for number, phase in enumerate(values["phases"]):
        assert phase["steps"] == phase["epochs"] * 3
        assert phase["trainable_parameters"] == sum(sizes[name] for name in phase["groups"])
        ready.module.train_groups(phase["groups"])
        frozen = [layer for layer in norm_layers(ready.module) if not layer.weight.requires_grad]
        assert phase["frozen_norms"] == len(frozen)
        for name in phase["groups"]:
            course = [plan.lr(name, at) for at in range(step, step + phase["steps"])]
            assert phase["lr_course"][name] == [course[0], max(course), course[-1]]
        assert plan.phase_at(step // 3) == number
        step += phase["steps"]
        assert phase["step_s"] > 0
        assert phase["memory"] > 10e6
    assert values["time_s"] >= sum(phase["time_s"] for phase in values["phases"])


def test_all_norms_are_frozen_in_a_probe_and_none_at_the_end(written):
    _, _, values = written
    assert values["phases"][0]["frozen_norms"] == values["norms"]
    assert values["phases"][-1]["frozen_norms"] == 0


def test_forecast_counts_what_a_phase_does(quick, monkeypatch):
    """The steps that are timed train what the phase trains, and change no weight."""
    ready = prepare(make_config(FinetuneConfig, {**quick, "phases": "probe-finetune"}), quiet=True)
    trains = []
    step = type(ready.module).training_step

    def watched(self, batch, batch_idx):
        trains.append(self.backbone.training and any(p.requires_grad for p in self.backbone.parameters()))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(type(ready.module), "training_step", watched)
    before = {name: tensor.clone() for name, tensor in ready.module.named_parameters()}
    measured = forecast(ready)
    assert len(measured.step_s) == 2
    assert trains[: len(trains) // 2] == [False] * (len(trains) // 2)
    assert trains[len(trains) // 2 :] == [True] * (len(trains) // 2)
    assert all(tensor.equal(before[name]) for name, tensor in ready.module.named_parameters())


def test_dry_run_is_plan(quick, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = finetune(**{**quick, "dry_run": True, "out": str(tmp_path / "run"), "quiet": False})
    said = capsys.readouterr().out
    assert not (tmp_path / "run").exists()  # so that the run itself can have the name
    assert run.path == tmp_path / "run-plan"
    words = ["--data", quick["data"], "--backbone", "test_resnet", "--weights", "random", "--image-size", "32"]
    words += ["--batch-size", "4", "--epochs", "2", "--probe-epochs", "1", "--precision", "32", "--workers", "0"]
    assert main(["plan", *words, "--accelerator", "cpu", "--augment", "standard"]) == 0
    again = json.loads((tmp_path / "runs" / "shapes-test_resnet-plan" / "plan.json").read_text(encoding="utf-8"))
    timed = ("time_s", "step_s", "memory")
    for values in (run.metrics, again):
        for part in (values, *values["phases"]):
            for key in timed:
                part.pop(key, None)
    assert again == run.metrics
    for word in (
        "phases",
        "probe",
        "finetune",
        "15/15",
        "learning rates",
        "head",
        "steps per epoch",
        "plan.png",
    ):
        assert word in said


def test_lr_auto_is_announced(quick, tmp_path, capsys):
    finetune(**{**quick, "dry_run": True, "lr": "auto", "out": str(tmp_path / "run"), "quiet": False})
    assert "looked for at the start of the run, by a range test" in capsys.readouterr().out


def test_rgn_proposes_groups(quick, tmp_path):
    config = make_config(FinetuneConfig, quick)
    _, values = write_preview(config, out=str(tmp_path / "plan"), rgn=True, quiet=True)
    names = [group["name"] for group in values["groups"]]
    assert list(values["rgn"]["norms"]) == names
    assert set(values["rgn"]["proposed"]) <= set(names)
    assert "head" in values["rgn"]["proposed"]


def test_a_solved_probe_alone_has_no_curve(quick, tmp_path, capsys):
    options = {**quick, "probe_epochs": None, "phases": "probe"}
    config = make_config(FinetuneConfig, options)
    directory, values = write_preview(config, out=str(tmp_path / "plan"))
    assert values["phases"][0]["lr_course"] == {}
    assert not (directory / "plan.png").exists()
    assert "solved" in capsys.readouterr().out


def test_sizes_and_how_steps_run_are_in_the_plan(tmp_path, folder, capsys):
    options = {
        "data": str(folder), "backbone": "test_resnet", "weights": "random", "image_size": 32, "batch_size": 8,
        "epochs": 3, "precision": "32", "accelerator": "cpu", "workers": 0, "train_size": "16,24,32",
        "out": str(tmp_path / "plan"), "store": str(tmp_path / "store"),
    }  # fmt: skip
    _, values = write_preview(make_config(PlanConfig, options), out=options["out"])
    assert values["train_sizes"] == [16, 24, 32]
    assert values["steps"] == {
        "precision": "32", "memory_format": "channels_last", "reason": "as asked", "compile": "off",
        "compile_reason": "the run is too short to pay for it",
    }  # fmt: skip
    text = capsys.readouterr().out
    assert "sizes    16 px for 1 epoch, 24 px for 1, 32 px for 1" in text
    assert "compile  off: the run is too short to pay for it" in text
