"""`--lr auto` and `--batch-size auto`: chosen before training, and lived with after out-of-memory."""

import csv
import dataclasses
import itertools
import json
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file

from transferkit.core.errors import ConfigError, TrainingError, TransferkitWarning
from transferkit.models.module import TransferModule
from transferkit.options.fields import make_config
from transferkit.options.training import FinetuneConfig
from transferkit.training import batch_size
from transferkit.training.batch_size import choose_batch_size
from transferkit.training.finetune import finetune
from transferkit.training.loop.trainer import is_out_of_memory
from transferkit.training.lr.find import find_lr
from transferkit.training.lr.range_test import RangeTest
from transferkit.training.lr.start import find_start, peak_lr, search_phase
from transferkit.training.plan.phases import Phase
from transferkit.training.setup import prepare


def rows(run):
    with (run / "history.csv").open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


# ---- the LR -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:--lr auto:transferkit.core.errors.TransferkitWarning")
def test_lr_auto_sets_the_phases_that_fine_tune(quick, tmp_path):
    run = finetune(**{**quick, "lr": "auto", "out": tmp_path / "run"}).path
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    probe, full = config["phases"]
    assert isinstance(config["lr"], float)
    assert full["lr"] == config["lr"]
    assert probe["lr"] == 1e-2  # the probe keeps its own
    assert (run / "lr.csv").is_file()
    assert (run / "lr.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((run / "plan.json").read_text(encoding="utf-8"))["phases"][1]["peak_lr"]["head"] == config["lr"]
    again = finetune(**{**quick, "lr": config["lr"], "out": tmp_path / "again"}).path  # the number repeats the run
    ours, theirs = load_file(run / "model.safetensors"), load_file(again / "model.safetensors")
    assert all(ours[name].equal(theirs[name]) for name in theirs)


@pytest.mark.filterwarnings("ignore:--lr auto:transferkit.core.errors.TransferkitWarning")
def test_lr_auto_starts_from_the_head_that_will_be_there(quick, monkeypatch):
    ready = prepare(make_config(FinetuneConfig, {**quick, "lr": "auto"}), quiet=True)
    before = {name: tensor.clone() for name, tensor in ready.module.state_dict().items()}
    heads = {}

    learn = TransferModule.learn

    def watch(module, images):
        heads.setdefault("head", {name: tensor.clone() for name, tensor in module.head.state_dict().items()})
        return learn(module, images)

    monkeypatch.setattr(TransferModule, "learn", watch)
    find_start(ready, None)
    assert all(tensor.equal(before[name]) for name, tensor in ready.module.state_dict().items())
    assert not heads["head"]["linear.weight"].equal(before["head.linear.weight"])  # a trained head, not the first one


@pytest.mark.filterwarnings("ignore:--lr auto:transferkit.core.errors.TransferkitWarning")
def test_lr_auto_of_a_probe_runs_on_cached_features(quick):
    config = make_config(FinetuneConfig, {**quick, "phases": "probe", "probe": "sgd", "lr": "auto"})
    ready = prepare(config, quiet=True)
    forwards = []
    handle = ready.module.backbone.register_forward_hook(lambda *_: forwards.append(1))
    search, tuned = find_start(ready, None)
    handle.remove()
    assert len(search.lrs) > len(forwards)
    assert tuned.phases[0].lr == pytest.approx(tuned.config.lr)


@pytest.mark.parametrize("phases", ["finetune", "probe"])
def test_the_range_test_clips_and_accumulates_as_the_run_will(quick, phases):
    options = {**quick, "phases": phases, "probe": "sgd", "optimizer": "sgd", "augment": "none"}
    ready = prepare(make_config(FinetuneConfig, options), quiet=True)
    lrs, curves = {"steps": 30, "lr_min": 1e-3, "lr_max": 0.1}, {}
    for clip, accumulate in itertools.product((None, 1e-3), (1, 3)):
        config = make_config(FinetuneConfig, {**options, "clip": clip, "accumulate": accumulate})
        search = search_phase(dataclasses.replace(ready, config=config), ready.phases[0], None, RangeTest(**lrs))
        curves[clip, accumulate] = search.raw_losses
    assert len(set(curves.values())) == 4
    assert curves[1e-3, 1][0] == curves[None, 1][0]  # the same pictures and weights: only the step is another
    if phases == "finetune":
        expected = find_lr(ready.module, ready.data, phase=ready.phases[0], clip=1e-3, accumulate=3, **lrs)
        assert curves[1e-3, 3] == expected.raw_losses


def test_lr_auto_keeps_the_usual_lr_and_says_so(quick, tmp_path, monkeypatch):  # fault 74
    # A loss that does not depend on the LR: nothing can be suggested.
    step = TransferModule.training_step

    def flat(self, batch, batch_idx):
        return step(self, batch, batch_idx) * 0.0 + 1.0

    monkeypatch.setattr(TransferModule, "training_step", flat)
    with pytest.warns(TransferkitWarning, match=r"--lr auto: .*; going on with 0.001"):
        run = finetune(**{**quick, "lr": "auto", "out": tmp_path / "run"}).path
    assert yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["lr"] == 1e-3


def test_lr_auto_needs_ready_made_phases(quick):
    phases = [{"name": "all", "epochs": 1, "lr": 1e-3}]
    with pytest.raises(ConfigError, match="--lr auto looks for the LR of ready-made phases"):
        finetune(**{**quick, "lr": "auto", "phases": phases, "out": "never"})
    with pytest.raises(ConfigError, match="--lr auto needs a phase that is trained"):
        finetune(**{**quick, "lr": "auto", "phases": "probe", "probe_epochs": None, "out": "never"})


# ---- the batch size -----------------------------------------------------------------------------------------------


def test_batch_auto_leaves_enough_steps(quick):
    ready = prepare(make_config(FinetuneConfig, {**quick, "batch_size": "auto"}), quiet=True)
    assert choose_batch_size(ready) == 8  # 24 pictures: more would be fewer than 16 steps


def test_batch_auto_follows_the_memory(quick, monkeypatch):
    ready = prepare(make_config(FinetuneConfig, {**quick, "batch_size": "auto"}), quiet=True)
    monkeypatch.setattr(batch_size, "STEPS_PER_EPOCH", 0)
    trial = batch_size._Trial(ready.module, ready.data.targets("train"), "cpu", half=False)
    needs = [trial.needs(size) for size in batch_size.SIZES]
    assert needs == sorted(needs)
    for index in range(1, len(needs)):
        free = (needs[index - 1] + needs[index]) / 2 / batch_size.SHARE
        monkeypatch.setattr(batch_size, "free_memory", lambda free=free: free)
        assert choose_batch_size(ready) == batch_size.SIZES[index - 1]
    monkeypatch.setattr(batch_size, "free_memory", lambda: 1000)
    with pytest.raises(TrainingError, match="not even a batch of 8 pictures fits into memory"):
        choose_batch_size(ready)


def fail_above(monkeypatch, limit, *, after=0):
    """Let training steps run out of memory at more than `limit` pictures, once `after` of them have passed."""
    step, passed = TransferModule.training_step, []

    def failing(self, batch, batch_idx):
        passed.append(len(batch[1]))
        if len(batch[1]) > limit and len(passed) > after:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(TransferModule, "training_step", failing)
    return passed


@pytest.mark.parametrize("after", [0, 8])
def test_batch_auto_survives_out_of_memory(quick, tmp_path, monkeypatch, after):  # fault 46
    passed = fail_above(monkeypatch, 4, after=after)
    with pytest.warns(TransferkitWarning, match="out of memory at batch size 8: going on with 4, 2 batches per step"):
        run = finetune(**{**quick, "batch_size": "auto", "out": tmp_path / "run"}).path
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert (config["batch_size"], config["accumulate"]) == (4, 2)
    assert [int(row["step"]) for row in rows(run)] == [3, 6, 9]  # 24 pictures, 8 per step, before and after
    assert set(passed[after + 1 :]) == {4}


def test_a_batch_size_of_ones_own_is_not_changed(quick, tmp_path, monkeypatch):  # fault 46
    fail_above(monkeypatch, 2)
    with pytest.raises(TrainingError, match=r"out of memory at batch size 4 - try --batch-size 2, .*--batch-size auto"):
        finetune(**{**quick, "out": tmp_path / "run"})


def test_out_of_memory_is_told_from_other_errors():
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    error = TrainingError("no room")
    error.__cause__ = torch.OutOfMemoryError("x")
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(None)


# ---- accumulation -------------------------------------------------------------------------------------------------


def test_accumulation_equals_the_large_batch(folder, tmp_path):
    """Without batch norm, two batches of 4 and one of 8 are the same step."""
    options = {
        "data": str(folder), "backbone": "test_vit", "weights": "random", "image_size": 32, "epochs": 2,
        "phases": "finetune", "precision": "32", "accelerator": "cpu", "workers": 0, "quiet": True, "augment": "none",
        "optimizer": "sgd", "lr": 0.01,
    }  # fmt: skip
    large = finetune(**options, batch_size=8, out=tmp_path / "large").path
    small = finetune(**options, batch_size=4, accumulate=2, out=tmp_path / "small").path
    ours, theirs = load_file(small / "model.safetensors"), load_file(large / "model.safetensors")
    network = {name: tensor for name, tensor in theirs.items() if not name.startswith("unlike.")}
    for name, tensor in network.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
    other = finetune(**options, batch_size=4, out=tmp_path / "other").path
    theirs = load_file(other / "model.safetensors")
    assert not all(torch.allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-6) for name in network)


# ---- the peak of a schedule -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "lowest", "expected"),
    [
        ("constant", 1.0, 1e-3),  # always at the peak
        ("cosine", 1.0, 2e-3),  # half a cosine has the mean 1/2
        ({"name": "cosine", "lr_min_ratio": 0.5}, 1.0, 1e-3 / 0.75),
        ("cosine", 1.5e-3, 1.5e-3),  # never beyond the smallest loss
        ("cosine", 5e-4, 1e-3),  # nor below what was suggested
    ],
)
def test_the_mean_of_a_schedule_is_what_was_suggested(schedule, lowest, expected):
    search = SimpleNamespace(suggestion=1e-3, lrs=(1e-5, lowest, 10.0), losses=(2.0, 1.0, 3.0))
    assert peak_lr(search, Phase("all", epochs=2, schedule=schedule)) == pytest.approx(expected, rel=0.01)
