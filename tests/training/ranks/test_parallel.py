"""Several processes: equal weights in every phase, the figures of one process, one run directory, one end for all."""

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import parallel_worker as worker
import pytest
import torch
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from PIL import Image
from scipy.stats import spearmanr
from shapes import draw_folder
from sklearn.metrics import average_precision_score, f1_score, mean_absolute_error, r2_score, root_mean_squared_error
from timm.layers import BatchNormAct2d
from torch import nn

from transferkit.core.errors import ConfigError
from transferkit.data.augment.normalise import normalise
from transferkit.data.batches.datamodule import ImageData
from transferkit.data.batches.samplers import EvaluationSampler, even_batch_size
from transferkit.models.artifact import load_model
from transferkit.options.training import FinetuneConfig
from transferkit.training.ranks.parallel import agree, average, gather, is_writer, on_first, rank, require_equal, world
from transferkit.training.ranks.processes import in_processes
from transferkit.training.ranks.strategies import PhasedDDP, SyncNorms, make_environment, make_strategy


@pytest.fixture(scope="session")
def odd(tmp_path_factory):
    """Pictures that two do not divide: 3 classes x (8 train, 3 val, 3 test)."""
    root = tmp_path_factory.mktemp("pictures") / "odd"
    for seed, (split, count) in enumerate((("train", 8), ("val", 3), ("test", 3))):
        draw_folder(root / split, per_class=count, seed=seed)
    return root


@pytest.fixture(scope="session")
def tables(odd, tmp_path_factory):
    """A manifest of those pictures and one more, with labels, a column of 0 and 1, and a number."""
    root = tmp_path_factory.mktemp("tables")
    paths = sorted(odd.rglob("*.png"))
    Image.fromarray(np.full((40, 40, 3), (200, 40, 40), dtype=np.uint8)).save(root / "more.png")
    rows = [(Path(os.path.relpath(path, root)), path.parent.parent.name) for path in paths]
    pictures = tmp_path_factory.mktemp("listed")
    with (pictures / "list.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("path", "split", "labels", "red", "bright"))
        for number, (path, split) in enumerate([*rows, (Path("more.png"), "train")]):
            picture = Image.open(root / path).convert("RGB")
            picture.save(pictures / f"{number:02}.png")
            levels = np.asarray(picture, dtype=float).mean(axis=(0, 1))
            labels = [path.parent.name] if number % 5 else []
            labels += ["dark"] if number % 3 == 0 else []
            writer.writerow((f"{number:02}.png", split, "|".join(labels), f"{levels[0]:.3f}", f"{levels.mean():.3f}"))
    return pictures / "list.csv"


def small(odd, root):
    """A run without batch norm, whose head is trained by SGD; two ranks of batch 4 are one of batch 8."""
    return {
        "data": str(odd), "backbone": "test_vit", "weights": "random", "image_size": 32, "batch_size": 4, "epochs": 2,
        "probe_epochs": 1, "probe": "sgd", "precision": "32", "accelerator": "cpu", "workers": 0, "quiet": True,
        "augment": "standard", "out": str(root / "run"), "store": str(root / "store"),
        "calibrate": "none",  # nine pictures are too few
    }  # fmt: skip


NORMED = {"backbone": "test_resnet", "ema": 0.9, "drop_rate": 0.3, "phases": "finetune", "epochs": 3}
"""With batch norm and everything that a process has of its own: statistics, their average, dropout."""


@pytest.fixture
def options(odd, tmp_path):
    return small(odd, tmp_path)


@pytest.fixture
def normed(options):
    return {**options, **NORMED}


@pytest.fixture(scope="module")
def whole(odd, tmp_path_factory):
    """The results of two ranks in a run of `NORMED` that nothing disturbed."""
    root = tmp_path_factory.mktemp("whole")
    return worker.run_ranks(2, root, worker.finetune_watched, {**small(odd, root), **NORMED})


# ---- weights and metrics ----------------------------------------------------------------------------------------


def test_every_phase_gives_equal_weights_and_those_of_one_process(options, tmp_path):  # fault 77, fault 78, fault 80
    options["phases"] = "gradual"
    two = worker.run_ranks(2, tmp_path, worker.finetune_watched, options, (), 0.1, True)
    alone = {**options, "batch_size": 8, "out": str(tmp_path / "one")}
    one = worker.run_ranks(1, tmp_path, worker.finetune_watched, alone)[0]
    assert two[0]["path"] == two[1]["path"] == options["out"]  # the first writes, and the others wait for it
    assert two[0]["metrics"] == two[1]["metrics"]
    assert two[0]["ends"] == two[1]["ends"]
    assert len(set(two[0]["ends"])) == 3
    # What the reducer knows is what learns, phase by phase: the head alone, some groups, more of them.
    assert all(reduced == learning for reduced, learning in two[0]["reduced"])
    assert len({learning for _, learning in two[0]["reduced"]}) == 3
    for name, expected in one["weights"].items():
        np.testing.assert_allclose(two[0]["weights"][name], expected, rtol=0, atol=1e-5, err_msg=name)
    ours, theirs = (_history(Path(path)) for path in (two[0]["path"], one["path"]))
    for row, expected in zip(ours, theirs, strict=True):
        assert row.keys() == expected.keys()
        for key in set(row) - {"images_per_s", "phase"}:
            assert float(row[key]) == pytest.approx(float(expected[key]), abs=1e-6), key
    for split in ("val", "test"):
        assert two[1]["metrics"][split]["loss"] == pytest.approx(one["metrics"][split]["loss"], abs=1e-6)
        assert two[1]["metrics"][split]["n"] == 9
    plan = json.loads((Path(two[0]["path"]) / "plan.json").read_text(encoding="utf-8"))
    assert plan["steps_per_epoch"] == 3


def test_batch_norm_statistics_are_one_at_the_end_of_every_epoch(whole):  # fault 78
    assert whole[0]["ends"] == whole[1]["ends"]
    assert whole[0]["pictures"] != whole[1]["pictures"]
    for name, value in whole[0]["weights"].items():  # those of the EMA
        np.testing.assert_array_equal(whole[1]["weights"][name], value, err_msg=name)


def test_recalibrated_statistics_are_those_of_all_pictures(normed, tmp_path):
    """The first process sees the pictures of both: the mean over six batches of four, as torch's own average has it."""
    options = {**normed, "epochs": 1, "recalibrate_bn": True, "ema": None}
    two = worker.run_ranks(2, tmp_path, worker.finetune_watched, options)
    module, _ = load_model(options["out"])
    layers = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert [values["metrics"]["recalibrated_bn"] for values in two] == [len(layers)] * 2
    saved = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in layers]
    trained = [value for name, value in sorted(two[0]["weights"].items()) if name.endswith("running_mean")]
    assert not any(
        np.allclose(mean.numpy(), value) for value in trained for mean, _ in saved if mean.shape == value.shape
    )
    data = ImageData(options["data"], 32, batch_size=4, data_config=module.data_config)
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    with torch.no_grad():
        for images, _ in data.evaluation_loader("train"):
            module(normalise(images, module.data_config))
    for layer, (mean, var) in zip(layers, saved, strict=True):
        assert layer.num_batches_tracked == 6
        torch.testing.assert_close(mean, layer.running_mean, rtol=0, atol=1e-5)
        torch.testing.assert_close(var, layer.running_var, rtol=1e-5, atol=1e-5)


def test_ranks_average_what_differs_and_leave_what_does_not(tmp_path):
    results = worker.run_ranks(3, tmp_path, worker.connect_and, worker.averaged)
    assert results == [(True, [1.0, 10.0], 7)] * 3


def test_ranks_tell_each_other(tmp_path):
    cores = sorted(os.sched_getaffinity(0))
    results = worker.run_ranks(2, tmp_path, worker.connect_and, worker.exchange)
    assert [item[:6] for item in results] == [
        (True, [0, 1], (1, 0), True, 2, 2), (False, [0, 1], (1, 0), False, 2, 2)
    ]  # fmt: skip
    if len(cores) > 1:
        assert not set(results[0][6]) & set(results[1][6])


def test_alone_nothing_is_asked_of_others():
    tensor = torch.tensor([0.5])
    average([tensor])
    require_equal(nn.Linear(1, 1), "now")
    assert (rank(), world(), is_writer(), gather("a"), agree(3, 4)) == (0, 1, True, ["a"], (3, 4))
    assert on_first(lambda *, value: value, value=5) == 5
    assert tensor.item() == 0.5


def test_a_rank_with_other_weights_stops_the_run_before_they_are_saved(options, tmp_path):  # fault 78
    ranks = worker.Ranks(2, tmp_path, worker.finetune_watched, {**options, "phases": "finetune"}, [(1, 1, 1, 0.5)])
    results = ranks.results()
    assert [code for code, _ in results] == [5, 5]
    kinds = sorted(value[0] for _, value in results)
    assert kinds == ["PeerError", "TrainingError"]  # said once
    message = next(value[1] for _, value in results if value[0] == "TrainingError")
    assert "after epoch 1 the weights of rank 1 are not those of rank 0" in message
    saved = torch.load(Path(options["out"]) / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["epoch"] == 0


@pytest.mark.parametrize("unused", [False, True])
def test_phases_under_a_plain_trainer(odd, tmp_path, unused):  # fault 78
    results = worker.run_ranks(2, tmp_path, worker.phases_in_a_plain_trainer, str(odd), unused)
    assert results[0]["ends"] == results[1]["ends"]
    assert results[0]["alive"] == [0, 0, 1]  # gone with its phase; the second phase has two epochs
    assert results[0]["unused"] == (["head.spare.weight", "head.spare.bias"] if unused else [])
    assert results[0]["looks"] == [unused] * 3


# ---- evaluation -------------------------------------------------------------------------------------------------


def test_evaluation_deals_every_picture_once_in_equally_many_batches():  # fault 77, fault 80
    dealt = 0
    for size in range(1, 40):
        for ranks in range(1, 6):
            for most in range(1, 9):
                batch = even_batch_size(size, most, ranks)
                samplers = [EvaluationSampler(size, rank=number, world_size=ranks) for number in range(ranks)]
                assert sorted(at for sampler in samplers for at in sampler) == list(range(size))
                counts = [len(sampler) for sampler in samplers]
                batches = {-(-count // (batch or 1)) for count in counts}
                if batch is None:  # then no size would do
                    assert all(len({-(-count // b) for count in counts} - {0}) > 1 or 0 in counts
                               for b in range(1, most + 1))  # fmt: skip
                else:
                    dealt += 1
                    assert 1 <= batch <= most
                    assert len(batches) == 1
                    assert 0 not in batches
    assert dealt > 1000


def test_validation_is_exact_for_any_number_of_pictures(tmp_path):  # fault 77, fault 80
    folders = []
    for number, counts in enumerate(((1, 0, 0), (1, 1, 0), (3, 2, 0), (3, 3, 3))):  # of 2 ranks: fewer, equal, odd
        root = draw_folder(tmp_path / str(number) / "train", per_class=2, seed=number).parent
        for label, count in zip(("circle", "square", "stripes"), counts, strict=True):
            (root / "val" / label).mkdir(parents=True)
            drawn = draw_folder(tmp_path / f"{number}{label}", per_class=4, seed=9 + number) / label
            for at, picture in enumerate(sorted(drawn.iterdir())[:count]):
                picture.rename(root / "val" / label / f"{at}.png")
            if not count:
                (root / "val" / label).rmdir()
        folders.append(str(root))
    one = worker.run_ranks(1, tmp_path, worker.validate, folders, 2)[0]
    for values in worker.run_ranks(2, tmp_path, worker.validate, folders, 2):
        for ours, expected in zip(values, one, strict=True):
            assert ours == pytest.approx(expected, abs=1e-6)


def test_figures_of_labels_and_numbers_are_of_all_pictures(tmp_path):  # fault 77, fault 80, fault 159
    """Also where a rank has more batches than another, or no picture at all."""
    generator = np.random.default_rng(0)
    truth = (generator.random((7, 3)) < 0.5).astype(np.float32)
    truth[0] = 1  # of each label one at least
    said = generator.random((7, 3)).astype(np.float32)
    given = said >= 0.5
    expected = [
        average_precision_score(truth, said, average="macro"),
        f1_score(truth, given, average="macro", zero_division=0),
        f1_score(truth, given, average="micro"),
        (truth == given).all(axis=1).mean(),
        (truth != given).mean(),
        *(np.mean([figure(truth[:, at], said[:, at]) / unit for at, unit in enumerate(units)])
          for figure, units in ((root_mean_squared_error, truth.std(axis=0)), (mean_absolute_error, truth.std(axis=0)),
                                (r2_score, [1, 1, 1]), (lambda *both: spearmanr(*both).statistic, [1, 1, 1]))),
    ]  # fmt: skip
    cuts = ([[(0, 4)], [(4, 7)]], [[(0, 2), (2, 4)], [(4, 7)]], [[(0, 7)], []], [[], [(0, 3), (3, 7)]])
    deals = [[[(said[a:b].tolist(), truth[a:b].tolist()) for a, b in own] for own in ranks] for ranks in cuts]
    for values in worker.run_ranks(2, tmp_path, worker.connect_and, worker.figures_of_tables, deals):
        for each in values:
            assert each == pytest.approx(expected, abs=1e-6)


# ---- one run ----------------------------------------------------------------------------------------------------


def test_the_probe_is_solved_once_for_all(options, tmp_path):  # fault 81
    del options["probe"], options["probe_epochs"]
    two = worker.run_ranks(2, tmp_path, worker.finetune_watched, options)
    alone = {**options, "batch_size": 8, "out": str(tmp_path / "one"), "store": str(tmp_path / "other")}
    one = worker.run_ranks(1, tmp_path, worker.finetune_watched, alone)[0]
    assert two[0]["ends"] == two[1]["ends"]
    probe, expected = two[1]["metrics"]["phases"][0], one["metrics"]["phases"][0]
    assert probe["computed"] == expected["computed"] == 24 + 9  # each picture in one of the processes
    assert probe["val_loss"] == pytest.approx(expected["val_loss"], abs=1e-6)
    for name, value in one["weights"].items():
        np.testing.assert_allclose(two[0]["weights"][name], value, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("asked", [
    pytest.param({"task": "multilabel"}, id="labels", marks=pytest.mark.slow),
    pytest.param({"targets": "red,bright"}, id="numbers"),
])  # fmt: skip
def test_labels_and_numbers_in_two_processes(tables, options, tmp_path, asked):  # fault 77, fault 159
    """25 pictures to train on, 9 to validate: the head is solved, everything is trained, figures are those of one."""
    del options["probe"], options["probe_epochs"]
    monitor = "val_map" if "task" in asked else "val_rmse"
    # At the usual LR so few steps diverge, and what differs by rounding with them.
    options |= {"data": str(tables), "augment": "light", "monitor": monitor, "lr": 1e-4, **asked}
    two = worker.run_ranks(2, tmp_path, worker.finetune_watched, options)
    alone = {**options, "batch_size": 8, "out": str(tmp_path / "one"), "store": str(tmp_path / "other")}
    one = worker.run_ranks(1, tmp_path, worker.finetune_watched, alone)[0]
    assert two[0]["ends"] == two[1]["ends"]
    assert two[0]["metrics"] == two[1]["metrics"]
    for name, value in one["weights"].items():
        np.testing.assert_allclose(two[0]["weights"][name], value, rtol=0, atol=1e-5, err_msg=name)
    ours, theirs = (_history(Path(path)) for path in (two[0]["path"], one["path"]))
    for row, expected in zip(ours, theirs, strict=True):
        assert {monitor, "val_loss"} <= row.keys()
        for key in set(row) - {"images_per_s", "phase"}:
            assert float(row[key]) == pytest.approx(float(expected[key]), abs=1e-5), key
    mine, other = (values["metrics"] for values in (two[1], one))
    assert mine["phases"][0][monitor] == pytest.approx(other["phases"][0][monitor], abs=1e-5)
    assert mine["val"]["n"] == mine["test"]["n"] == 9
    for split in ("val", "test"):
        for ours, expected in zip(mine[split]["figures"], other[split]["figures"], strict=True):
            assert ours["value"] == pytest.approx(expected["value"], abs=1e-4), ours["key"]


@pytest.mark.slow  # a hundred steps for the LR
def test_what_is_measured_is_measured_by_the_first_rank(options, tmp_path):  # fault 76
    options |= {"lr": "auto", "batch_size": "auto", "phases": "finetune", "epochs": 1}
    results = worker.run_ranks(2, tmp_path, worker.finetune_watched, options)
    assert results[0]["ends"] == results[1]["ends"]
    assert (Path(options["out"]) / "lr.csv").exists()


def test_a_run_directory_that_is_taken_ends_all_with_one_message(options, tmp_path):  # fault 59
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine", encoding="utf-8")
    results = worker.run_ranks(2, tmp_path, worker.command, ["finetune", *_flags(options)])
    assert [status for status, _, _ in results] == [6, 6]
    assert results[0][2].startswith("transferkit: error[checkpoint]: ")
    assert results[1][1:] == ("", "")


# ---- the end ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_to_one_rank_stops_all_and_a_resume_is_exact(normed, whole, tmp_path, number):  # fault 47
    stopped = worker.Ranks(2, tmp_path, worker.finetune_watched, normed, [(1, 1, 0, int(number))]).results()
    assert [code for code, _ in stopped] == [128 + number] * 2
    assert sorted(value[0] for _, value in stopped) == ["Interrupted", "PeerError"]
    resumed = worker.run_ranks(2, tmp_path, worker.finetune_watched, {"out": normed["out"], "resume": True})
    for ours, expected in zip(resumed, whole, strict=True):
        assert 4 < len(ours["pictures"]) < len(expected["pictures"])  # in the middle of the second epoch
        assert ours["pictures"] == expected["pictures"][-len(ours["pictures"]) :]
        assert ours["ends"] == expected["ends"][-len(ours["ends"]) :]
        for name, value in expected["weights"].items():
            np.testing.assert_array_equal(ours["weights"][name], value, err_msg=name)
    ours, expected = (_history(Path(run)) for run in (normed["out"], whole[0]["path"]))
    for row, other in zip(ours, expected, strict=True):
        assert {**row, "images_per_s": ""} == {**other, "images_per_s": ""}


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_in_one(normed, tmp_path):
    worker.Ranks(2, tmp_path, worker.finetune_watched, normed, [(0, 1, 0, int(signal.SIGTERM))]).results()
    again = {"out": normed["out"], "resume": True, "devices": 1}
    result = worker.run_ranks(1, tmp_path, worker.finetune_watched, again)[0]
    assert sum(phase["epochs"] for phase in result["metrics"]["phases"]) == 3
    assert all(0.0 <= float(row["train_acc"]) <= 1.0 for row in _history(Path(normed["out"])))


@pytest.mark.parametrize(("job", "statuses", "said"), [
    (worker.fails_first, [3, 3], [("DataError", "no pictures"), ("PeerError", "rank 0: no pictures")]),
    (worker.fails_second, [4, 4], [("PeerError", "rank 1: no weights"), ("BackboneError", "no weights")]),
])  # fmt: skip
def test_a_rank_that_fails_before_training_ends_all_with_its_status(tmp_path, job, statuses, said):  # fault 79
    results = worker.Ranks(2, tmp_path, worker.connect_and, job).results(60)
    assert [code for code, _ in results] == statuses
    assert [value for _, value in results] == said


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_all(tmp_path):  # fault 79
    results = worker.Ranks(2, tmp_path, worker.connect_and, worker.is_killed).results(60)
    assert [code for code, _ in results] == [5, -signal.SIGKILL]
    assert results[0][1][0] == "TrainingError"
    assert "rank 0 lost another process of the run" in results[0][1][1]


@pytest.mark.parametrize("failing", [pytest.param(0, marks=pytest.mark.slow), 1])
@pytest.mark.parametrize("action", ["a bug in a callback", pytest.param(int(signal.SIGKILL), marks=pytest.mark.slow)])
def test_a_rank_that_fails_in_training_ends_all(options, tmp_path, failing, action):  # fault 79
    options |= {"phases": "finetune"}
    results = worker.Ranks(2, tmp_path, worker.finetune_watched, options, [(failing, 1, 1, action)]).results(60)
    code, value = results[failing]
    other, said = results[1 - failing]
    if isinstance(action, str):
        assert code == other == 1
        assert "a bug in a callback" in value[1]
        assert said == ("PeerError", f"rank {failing}: a bug in a callback")
    else:
        assert (code, other, said[0]) == (-signal.SIGKILL, 5, "TrainingError")
    assert (Path(options["out"]) / "checkpoints" / "last.ckpt").exists()
    assert not (Path(options["out"]) / "metrics.json").exists()


# ---- features and predict ---------------------------------------------------------------------------------------


def test_features_are_extracted_once_and_exported_by_the_first(odd, tmp_path):  # fault 81
    words = ["features", "--data", str(odd), "--backbone", "test_resnet", "--weights", "random", "--image-size", "32",
             "--store", str(tmp_path / "store"), "--accelerator", "cpu"]  # fmt: skip
    results = worker.run_ranks(2, tmp_path, worker.command, [*words, "--out", str(tmp_path / "two.csv")])
    assert [status for status, _, _ in results] == [0, 0]
    assert "computed  42, the others were in the store" in results[0][1]
    assert results[1][1:] == ("", "")
    again = worker.run_ranks(1, tmp_path, worker.command, [*words, "--out", str(tmp_path / "one.csv")])[0]
    assert "computed  0, the others were in the store" in again[1]
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()


def test_predict_covers_every_input_once_in_order(finished_run, folder, tmp_path):  # fault 81
    words = ["predict", str(finished_run), str(folder / "test"), "--accelerator", "cpu", "--batch-size", "2"]
    one = worker.run_ranks(1, tmp_path, worker.command, words)[0]
    results = worker.run_ranks(2, tmp_path, worker.command, words)  # nine pictures
    assert results[0][0] == one[0] == 0
    assert results[1] == (0, "", "")
    alone, shared = (list(csv.DictReader(out.splitlines())) for out in (one[1], results[0][1]))
    assert [row["path"] for row in alone] == sorted(map(str, (folder / "test").rglob("*.png")))
    for there, here in zip(shared, alone, strict=True):  # other batches, so another rounding of the last digit
        numbers = [name for name in here if name.startswith("probability")]
        assert len(numbers) == 3
        for name in numbers:
            assert float(there.pop(name)) == pytest.approx(float(here.pop(name)), abs=1.01e-6)
        assert there == here


def test_predict_ends_with_one_status_where_a_picture_is_unreadable(finished_run, tmp_path):  # fault 81
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    pictures = [str(tmp_path / name) for name in ("good.png", "bad.png")]
    words = ["predict", str(finished_run), *pictures, "--accelerator", "cpu", "--out", str(tmp_path / "rows.csv")]
    results = worker.run_ranks(2, tmp_path, worker.command, words)
    assert [status for status, _, _ in results] == [8, 8]
    assert sorted(err.count("error[export]") for _, _, err in results) == [0, 1]
    rows = list(csv.DictReader((tmp_path / "rows.csv").read_text(encoding="utf-8").splitlines()))
    assert [bool(row["error"]) for row in rows] == [False, True]


# ---- who starts them --------------------------------------------------------------------------------------------


def test_a_batch_system_in_the_environment_does_not_disturb_one_process(options, tmp_path):  # fault 63
    """Nor are its checkpoints places to go on from: in an earlier run of this name, beside it, in the run itself."""
    slurm = {"SLURM_JOB_ID": "1234", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_PROCID": "0",
             "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "LOCAL_RANK": "1"}  # fmt: skip
    for place in (tmp_path, Path(options["out"])):
        place.mkdir(exist_ok=True)
        (place / "hpc_ckpt_7.ckpt").write_bytes(b"of another job")
    (Path(options["out"]) / "config.yaml").write_text("data: other\n", encoding="utf-8")
    options |= {"phases": "finetune", "epochs": 1, "overwrite": True}
    result = worker.run_ranks(1, tmp_path, worker.finetune_beside_hpc_checkpoint, options, env=slurm)[0]
    assert result["metrics"]["phases"][0]["epochs"] == 1


def test_environments(monkeypatch):  # fault 63
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_")):
            monkeypatch.delenv(name)
    assert isinstance(make_environment(2), LightningEnvironment)
    for name, value in {"SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert isinstance(make_environment(1), LightningEnvironment)
    assert isinstance(make_environment(4), LightningEnvironment)  # not the processes that srun started
    slurm = make_environment(2)
    assert isinstance(slurm, SLURMEnvironment)
    assert not slurm.auto_requeue
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert isinstance(make_environment(2), TorchElasticEnvironment)


def test_strategies():
    assert make_strategy("auto", 1) == "auto"
    assert isinstance(make_strategy("auto", 2), PhasedDDP)
    assert not make_strategy("ddp", 2).unused
    assert make_strategy("ddp_find_unused_parameters_true", 2).unused
    assert make_strategy("fsdp", 2) == "fsdp"
    with pytest.raises(ConfigError, match="--strategy ddp_spawn copies a running process"):
        make_strategy("ddp_spawn", 2)


@pytest.mark.parametrize(("fields", "message"), [
    ({"strategy": "fsdp"}, "--strategy fsdp .* is not possible here: .*requires a GPU"),
    ({"strategy": "warp"}, "--strategy warp .* invalid strategy name"),
])  # fmt: skip
def test_a_strategy_that_cannot_be_had_is_said_before_anything_starts(fields, message):
    config = FinetuneConfig(data="sample", accelerator="cpu", devices=2, **fields)
    with pytest.raises(ConfigError, match=message):
        in_processes(config, lambda config: pytest.fail("ran"))


def test_flags_that_contradict_torchrun(monkeypatch):
    for name, value in worker.torchrun_environment(0, 2, 1).items():
        monkeypatch.setenv(name, value)
    config = FinetuneConfig(data="sample", accelerator="cpu", devices=3)
    with pytest.raises(ConfigError, match="--devices 3 --num-nodes 1, but torchrun started 2 process"):
        in_processes(config, lambda config: pytest.fail("ran"))


def test_norms_of_all_gpus_keep_their_activation_and_come_back():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4), nn.Sequential(nn.BatchNorm2d(4)))
    model(torch.randn(8, 3, 8, 8))
    own, keys = [model[1], model[2][0]], list(model.state_dict())
    images = torch.randn(2, 3, 8, 8)
    expected = model.eval()(images)
    norms = SyncNorms()
    converted = norms.apply(model)
    assert isinstance(converted[1], nn.SyncBatchNorm)
    assert isinstance(converted[2][0], nn.SyncBatchNorm)
    assert list(converted.state_dict()) == keys
    torch.testing.assert_close(converted(images), expected, rtol=0, atol=0)
    assert (converted[:2](images) >= 0).all()  # torch's own conversion drops the ReLU
    converted[1].running_mean = converted[1].running_mean + 1.0  # as a move to another device replaces it
    back = norms.revert(converted)
    assert [back[1], back[2][0]] == own
    assert list(back.state_dict()) == keys
    assert not torch.equal(back(images), expected)
    back[1].running_mean -= 1.0
    torch.testing.assert_close(back(images), expected)


# ---- the real command -------------------------------------------------------------------------------------------


@pytest.fixture
def command():
    """Start commands, and leave none of them behind."""
    started = []

    def start(*args):
        started.append(Command(*args))
        return started[-1]

    yield start
    for one in started:
        if one.process.returncode is None:
            one.kill()


class Command:
    """The command line with two processes: started by Lightning's launcher (``launcher``) or by torchrun."""

    def __init__(self, how, options, errors):
        begin = [sys.executable, "-m", "transferkit"]
        options = dict(options)
        if how == "launcher":
            options["devices"] = 2
        elif how == "torchrun":
            begin = [*TORCHRUN, "-m", "transferkit"]
        elif how == "console script":
            begin = [str(Path(sys.executable).with_name("transferkit"))]
            options["devices"] = 2
        elif how == "torchrun of the console script":
            begin = [*TORCHRUN, "--no-python", str(Path(sys.executable).with_name("transferkit"))]
        self.errors, self.mark = errors, str(errors)
        environment = {name: value for name, value in os.environ.items() if name not in STRANGERS}
        with errors.open("w", encoding="utf-8") as stream:
            self.process = subprocess.Popen(
                [*begin, "finetune", *_flags(options)],
                env={**environment, "OMP_NUM_THREADS": "1", "TRANSFERKIT_TEST": self.mark},
                stdout=subprocess.PIPE, stderr=stream, encoding="utf-8", start_new_session=True,
            )  # fmt: skip

    def end(self, timeout=150):
        """Return status, output and errors; fails when a process of its is left over."""
        try:
            out, _ = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {timeout} s: {self.errors.read_text(encoding='utf-8')}")
        until = time.monotonic() + 20
        while self.ranks() and time.monotonic() < until:
            time.sleep(0.2)
        assert self.ranks() == {}
        return self.process.returncode, out, self.errors.read_text(encoding="utf-8")

    def ranks(self):
        """Return the process of each rank, by its environment in /proc: torchrun's are no longer in our session."""
        processes = {}
        for place in Path("/proc").iterdir():
            try:
                words = (place / "cmdline").read_bytes().split(b"\0")
                lines = (place / "environ").read_bytes().split(b"\0")
            except OSError:
                continue  # not a process, or gone
            if f"TRANSFERKIT_TEST={self.mark}".encode() in lines and b"torch.distributed.run" not in words != [b""]:
                ranks = [int(line[11:]) for line in lines if line.startswith(b"LOCAL_RANK=")]
                processes[ranks[0] if ranks else 0] = int(place.name)
        return processes

    def kill(self):
        """Leave nothing behind."""
        for number in (self.process.pid, *self.ranks().values()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        self.process.communicate()

    def wait_for_epochs(self, run, count):
        """Wait until so many epochs are written."""
        until = time.monotonic() + 150
        while time.monotonic() < until:
            if (run / "history.csv").exists() and len(_history(run)) >= count:
                return
            assert self.process.poll() is None, self.errors.read_text(encoding="utf-8")
            time.sleep(0.05)
        pytest.fail(f"no epoch {count}: {self.errors.read_text(encoding='utf-8')}")


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
STRANGERS = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "NODE_RANK")
EXIT_OF_TORCHRUN = 1
"""Whatever its processes ended with."""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["launcher", "torchrun", "console script", "torchrun of the console script"])
def test_the_command_in_two_processes(command, options, tmp_path, how):  # fault 78, fault 80
    options |= {"phases": "finetune", "epochs": 1, "quiet": False}
    status, out, errors = command(how, options, tmp_path / "errors").end()
    assert (status, errors.replace("\n", "")) == (0, "")
    assert out.count("accuracy (95 % interval") == 2  # val and test, said once
    reference = worker.run_ranks(
        2, tmp_path, worker.finetune_watched, {**options, "out": str(tmp_path / "two"), "quiet": True}
    )
    assert (Path(options["out"]) / "model.safetensors").read_bytes() == (
        tmp_path / "two" / "model.safetensors"
    ).read_bytes()
    assert reference[0]["ends"] == reference[1]["ends"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["launcher", "torchrun"])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_command(command, options, tmp_path, how, victim):  # fault 79
    running = command(how, {**options, "phases": "finetune", "epochs": 500}, tmp_path / "errors")
    running.wait_for_epochs(Path(options["out"]), 2)
    ranks = running.ranks()
    assert sorted(ranks) == [0, 1]
    os.kill(ranks[victim], signal.SIGKILL)
    began = time.monotonic()
    status, _, errors = running.end(60)
    assert time.monotonic() - began < 60
    if how == "torchrun":
        assert status == EXIT_OF_TORCHRUN
        assert "Signal 9 (SIGKILL)" in errors
    elif victim == 0:
        assert status == -signal.SIGKILL
    else:
        assert status == 5
        assert errors.startswith("transferkit: error[training]: rank 0 lost another process of the run (")
        assert errors.count("\n") == 1
    for name in ("last.ckpt", "best.ckpt"):
        torch.load(Path(options["out"]) / "checkpoints" / name, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["launcher", "torchrun"])
def test_an_error_of_one_process_is_the_error_of_the_command(command, options, tmp_path, how):  # fault 79
    running = command(how, {**options, "phases": "finetune", "epochs": 500}, tmp_path / "errors")
    running.wait_for_epochs(Path(options["out"]), 2)
    Path(options["out"]).rename(tmp_path / "elsewhere")  # which only the first one looks for
    status, _, errors = running.end(60)
    assert status == (EXIT_OF_TORCHRUN if how == "torchrun" else 74)
    assert errors.count("transferkit: error[") == 1
    assert "transferkit: error[io]: " in errors


@pytest.mark.slow
@pytest.mark.parametrize(("how", "to", "number"), [
    ("launcher", "first", signal.SIGTERM), ("launcher", "second", signal.SIGTERM), ("launcher", "group", signal.SIGINT),
    ("torchrun", "first", signal.SIGTERM),
])  # fmt: skip
def test_a_signal_saves_and_ends_the_command(command, options, tmp_path, how, to, number):  # fault 47
    run = Path(options["out"])
    running = command(how, {**options, "phases": "finetune", "epochs": 500}, tmp_path / "errors")
    running.wait_for_epochs(run, 2)
    ranks = running.ranks()
    if to == "group":
        os.killpg(running.process.pid, number)
    else:
        os.kill(ranks[0 if to == "first" else 1], number)
    status, _, errors = running.end()
    assert status == (EXIT_OF_TORCHRUN if how == "torchrun" else 128 + number)
    assert errors.count("transferkit: error[interrupted]: stopped by") == 1
    assert f"exitcode  : {128 + number}" in errors or how == "launcher"
    epochs = len(_history(run))
    again = command(how, {"out": options["out"], "resume": True, "data": options["data"]}, tmp_path / "more")
    again.wait_for_epochs(run, epochs + 1)
    os.killpg(again.process.pid, signal.SIGTERM)
    again.end()


@pytest.mark.slow
def test_a_signal_before_training_ends_the_command(command, options, tmp_path):  # fault 79
    del options["probe"], options["probe_epochs"]
    running = command(
        "launcher", {**options, "backbone": "resnet18", "image_size": 224, "probe_views": 50}, tmp_path / "errors"
    )
    until = time.monotonic() + 120
    while not list((tmp_path / "store").rglob("*")) and time.monotonic() < until:
        time.sleep(0.05)
    running.process.send_signal(signal.SIGTERM)
    status, _, errors = running.end(60)
    assert status == 143
    assert not Path(options["out"]).exists()
    assert errors == ""


def _flags(options):
    flags = []
    for key, value in options.items():
        name = key.replace("_", "-")
        flags += [f"--{name}"] if value is True else [] if value is False else [f"--{name}={value}"]
    return flags


def _history(run):
    return list(csv.DictReader((run / "history.csv").read_text(encoding="utf-8").splitlines()))
