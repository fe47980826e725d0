"""Numbers per picture from table to answer, through every verb, on pictures whose brightness and stripes are known."""

import csv
import json
import re
import shutil
import warnings

import numpy as np
import pytest
import torch
from export_runs import run_example
from matplotlib.axes import Axes
from PIL import Image
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from small_runs import SignalAt

import transferkit as tk
from transferkit.core.csv import read_csv
from transferkit.core.errors import ConfigError, Interrupted, TransferkitWarning
from transferkit.data.augment.normalise import normalise
from transferkit.data.augment.transform import eval_transform
from transferkit.data.images.decode import decode_image
from transferkit.models.figures.numbers import number_figures, number_metrics
from transferkit.results.export.check import Limits, compare
from transferkit.results.report.facts import baseline
from transferkit.runs.files import RunFiles
from transferkit.runs.summary import headline_text, print_summary
from transferkit.training.search.space import plan_search

OPTIONS = {
    "backbone": "transferkit/mini", "image_size": 64, "batch_size": 8, "precision": "32",
    "accelerator": "cpu", "workers": 0, "quiet": True, "augment": "none", "probe_views": 0, "seed": 1,
}  # fmt: skip
FLAGS = ["--backbone", "transferkit/mini", "--image-size", "64", "--accelerator", "cpu"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Ninety striped pictures: how bright each is, in 0 to 1,000, and what share of it is dark, in 0 to 1."""
    root = tmp_path_factory.mktemp("numbers")
    generator = np.random.default_rng(0)
    with (root / "list.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "split", "bright", "dark"])
        for at in range(90):
            level, share = generator.uniform(0.2, 0.9), generator.uniform(0, 0.8)
            picture = generator.normal(255 * level, 6, (32, 32, 3))
            picture[: round(32 * share)] *= 0.2
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(root / f"{at}.png")
            split = "train" if at < 54 else "val" if at < 74 else "test"
            writer.writerow([f"{at}.png", split, f"{1000 * level:.2f}", f"{share:.4f}"])
    return root


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A solved probe, fine-tuned."""
    out = tmp_path_factory.mktemp("runs") / "run"
    return tk.finetune(data=str(data / "list.csv"), targets="bright,dark", epochs=3, lr=1e-3, out=str(out), **OPTIONS)


@pytest.fixture(scope="module")
def probed(data, tmp_path_factory):
    """A solved probe alone."""
    out = tmp_path_factory.mktemp("runs") / "probe"
    tk.finetune(data=str(data / "list.csv"), targets="bright,dark", phases="probe", out=str(out), **OPTIONS)
    return out


@pytest.fixture(scope="module")
def truth(data):
    return {row["path"]: (float(row["bright"]), float(row["dark"])) for row in read_csv(data / "list.csv")}


def test_finetune_learns_both_in_their_own_units(run):
    for split in ("val", "test"):
        for name in ("bright", "dark"):
            row = run.metrics[split]["per_target"][name]
            assert row["rmse"] < row["always_mean"]["rmse"], (split, name)
    assert run.metrics["val"]["per_target"]["bright"]["always_mean"]["rmse"] > 100
    assert run.metrics["val"]["per_target"]["dark"]["always_mean"]["rmse"] < 1
    history = read_csv(run.path / "history.csv")
    assert float(history[0]["train_loss"]) < 5  # a solved head of large weights was thrown off: 117
    assert {"train_loss", "val_loss", "val_rmse", "val_r2"} <= set(history[0])


def test_the_probe_equals_ridge_by_scikit_learn(probed, data, truth):
    """On the same features: the figure of the run, to the third digit."""
    predictor = tk.load(probed)
    backbone = predictor.module.backbone
    transform, config = eval_transform(predictor.info.preprocessing), predictor.info.preprocessing
    rows = read_csv(data / "list.csv")
    pixels = np.stack([transform(decode_image(str(data / row["path"])), 0) for row in rows])
    with torch.no_grad():
        X = backbone.eval()(normalise(torch.from_numpy(pixels), config)).numpy().astype(float)
    y = np.array([truth[row["path"]] for row in rows])
    train, val = (np.array([row["split"] == split for row in rows]) for split in ("train", "val"))
    metrics = json.loads((probed / "metrics.json").read_text(encoding="utf-8"))
    scaler = StandardScaler().fit(X[train])
    mean, scale = y[train].mean(axis=0), y[train].std(axis=0)
    for at, name in enumerate(("bright", "dark")):
        alpha = metrics["phases"][0]["alpha"][at]
        model = Ridge(alpha=alpha).fit(scaler.transform(X[train]), (y[train, at] - mean[at]) / scale[at])
        guess = model.predict(scaler.transform(X[val])) * scale[at] + mean[at]
        rmse = np.sqrt(np.square(guess - y[val, at]).mean())
        assert metrics["val"]["per_target"][name]["rmse"] == pytest.approx(rmse, rel=1e-3)


def test_phases_are_printed_without_gaps(run, capsys):
    print_summary(run.path)
    out = capsys.readouterr().out
    assert "train loss" in out
    assert "val rmse" in out
    assert "n/a" not in out


def test_a_single_picture_has_no_interval():  # fault 162
    """The bootstrap of one picture draws that picture always: its interval would have no width."""
    values = number_metrics(np.array([[2.0]]), np.array([[3.5]]), ["age"])
    assert values["per_target"]["age"]["rmse"] == 1.5
    assert headline_text(number_figures(values), 1) == "1.500 root mean square error (RMSE) (1 picture)"


def test_predict_tells_values_with_intervals(run, data, truth, tmp_path, command):
    words = ["predict", run.path, data, "--quiet"]
    assert command(*words, "--out", tmp_path / "p.csv")[0] == 0
    rows = read_csv(tmp_path / "p.csv")
    assert list(rows[0]) == [
        "path",
        "bright",
        "bright_low",
        "bright_high",
        "dark",
        "dark_low",
        "dark_high",
        "unlike_training",
        "error",
    ]
    own = {row["path"].rsplit("/", 1)[1]: row for row in rows}
    assert np.corrcoef([float(own[name]["bright"]) for name in truth], [pair[0] for pair in truth.values()])[0, 1] > 0.7
    assert command(*words, "--out", tmp_path / "p.jsonl", "--coverage", "0.5")[0] == 0
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines:
        name = line["path"].rsplit("/", 1)[1]
        for target in ("bright", "dark"):
            value = line["values"][target]
            assert value["value"] == pytest.approx(float(own[name][target]), rel=1e-4)
            assert float(own[name][f"{target}_low"]) < value["low"] < value["value"] < value["high"]


def test_intervals_hold_the_truth_of_val(run, data, truth):
    """What the model was calibrated on is held at that rate, counted."""
    paths = [data / f"{at}.png" for at in range(54, 74)]
    for coverage in (0.5, 0.9):
        for at in range(2):
            answers = list(tk.load(run.path).stream(paths, coverage=coverage))
            held = [one.low[at] <= truth[f"{54 + place}.png"][at] <= one.high[at] for place, one in enumerate(answers)]
            # of 20 errors the ceil(21 c)-th smallest; it lies on the border of its own interval
            assert np.ceil(21 * coverage) - 1 <= sum(held) <= np.ceil(21 * coverage)


def test_a_coverage_that_cannot_be_had_is_refused(run, data, command):  # fault 134
    status, _, err = command("predict", run.path, data / "0.png", "--coverage", "0.99")
    assert status == 2
    assert "needs the errors of 99 held-out pictures, and this model was calibrated on 20" in err
    status, _, err = command("predict", run.path, data / "0.png", "--abstain", "0.9")
    assert status == 2


def test_python_answers(run, data):
    (one,) = tk.load(run.path).predict(data / "0.png")
    assert one.names == ("bright", "dark")
    assert one.low[0] < one.numbers[0] < one.high[0]
    (turned,) = tk.load(run.path).predict(data / "0.png", tta="flip")
    assert turned.numbers[0] == pytest.approx(one.numbers[0], rel=0.5)
    with pytest.raises(ConfigError, match="coverage is 1.5"):
        tk.load(run.path).predict(data / "0.png", coverage=1.5)


def test_evaluate(run, data, tmp_path, command):
    out = tmp_path / "evaluation"
    status, printed, err = command("evaluate", run.path, data / "list.csv", "--out", out, "--split", "test")
    assert status == 0, err
    assert re.search(r"target +bright: RMSE \d+.*always the mean", printed)
    assert "the largest error" in printed
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["test"]["per_target"]["bright"]["rmse"] == pytest.approx(
        run.metrics["test"]["per_target"]["bright"]["rmse"], rel=1e-4
    )
    rows = read_csv(out / "per_target.csv")
    assert [row["target"] for row in rows] == ["bright", "dark"]
    assert float(rows[0]["mean_rmse"]) > 100
    page = (out / "report.html").read_text(encoding="utf-8")
    for words in ("predicted over true", "errors over predicted", "always the mean", "Largest errors"):
        assert words in page, words
    assert (out / "target_1.png").is_file()


def test_evaluate_against_another_run(run, probed, data, tmp_path, command):
    """The difference of the headline is that of both runs' own figures."""
    out = tmp_path / "against"
    words = ["evaluate", run.path, data / "list.csv", "--split", "test", "--against", probed, "--out", out]
    status, printed, err = command(*words, "--report", "off")
    assert status == 0, err
    assert re.search(r"against +.*deviations", printed)
    values = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["against"]["test"]
    other = json.loads((probed / "metrics.json").read_text(encoding="utf-8"))["test"]
    assert values["figures"][0]["key"] == "rmse"
    assert values["figures"][0]["difference"] == pytest.approx(run.metrics["test"]["rmse"] - other["rmse"], abs=1e-4)
    assert [row["of"] for row in values["figures"]][:6] == [None] * 5 + ["bright"]
    assert (out / "against.csv").is_file()


def test_the_page_of_the_run(run):
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "dark: predicted over true" in page
    assert "is off by" in page


def test_explain_a_target(run, data, tmp_path, command, monkeypatch):
    written, write, entitle = [], Axes.text, Axes.set_title
    monkeypatch.setattr(
        Axes, "text", lambda self, x, y, text, **k: (written.append(text), write(self, x, y, text, **k))[1]
    )
    monkeypatch.setattr(Axes, "set_title", lambda self, text, **k: (written.append(text), entitle(self, text, **k))[1])
    words = ["explain", run.path, data / "0.png", "--neighbours", "0", "--quiet"]
    assert command(*words, "--out", tmp_path / "why", "--target", "dark")[0] == 0
    (row,) = read_csv(tmp_path / "why" / "explain.csv")
    assert row["target"] == "dark"
    assert f"bright: {row['bright']}" in written  # the page tells the numbers that the table has
    for name in ("bright", "bright_low", "bright_high", "dark", "dark_low", "dark_high"):
        assert written[written.index(name) + 1] == row[name]
    status, _, err = command(*words, "--out", tmp_path / "not", "--target", "drak")
    assert status == 2
    assert "Did you mean 'dark'?" in err


def test_probe_with_depth_and_learning_curve(data, tmp_path, command):
    words = ["probe", "--data", data / "list.csv", "--targets", "bright,dark", *FLAGS, "--depth", "--learning-curve"]
    status, printed, err = command(*words, "--out", tmp_path / "probe")
    assert status == 0, err
    assert "ridge on transferkit/mini" in printed
    assert re.search(r"depth +\S+ +\d\.\d{3} \(", printed)
    metrics = json.loads((tmp_path / "probe" / "metrics.json").read_text(encoding="utf-8"))
    losses = [row["loss"] for row in metrics["learning_curve"]]
    assert losses[-1] < losses[0]
    assert (tmp_path / "probe" / "path.png").is_file()
    assert "Cross-validated squared deviation" in (tmp_path / "probe" / "report.html").read_text(encoding="utf-8")


def test_calibrate_again(probed, data, tmp_path, command):
    shutil.copytree(probed, tmp_path / "run")
    words = ["calibrate", tmp_path / "run", data / "list.csv", "--split", "test"]
    status, printed, err = command(*words)
    assert status == 0, err
    assert "90%" in printed
    assert command(*words, "--method", "none")[0] == 0
    assert (
        command("predict", tmp_path / "run", data / "0.png")[1].splitlines()[0]
        == "path,bright,dark,unlike_training,error"
    )
    status, _, err = command(*words, "--method", "temperature")
    assert status == 2
    assert "expected one of auto, conformal, none" in err


def test_an_exact_resume(data, run, tmp_path):
    """Stopped in the second epoch: the same numbers in the end."""
    options = {**OPTIONS, "data": str(data / "list.csv"), "targets": "bright,dark", "epochs": 3, "lr": 1e-3}
    out = str(tmp_path / "stopped")
    with pytest.raises(Interrupted):
        tk.finetune(callbacks=[SignalAt(10)], out=out, report="off", **options)
    resumed = tk.finetune(resume=True, out=out)
    assert resumed.metrics["val"]["per_target"] == run.metrics["val"]["per_target"]


def test_a_run_goes_on_from_one_of_other_targets(data, run, truth, tmp_path):  # fault 98
    """A row of the same name says the same in the units of other training pictures; a new one is solved."""
    with (tmp_path / "more.csv").open("w", encoding="utf-8", newline="") as stream:
        lines = [(path, "train" if at % 3 else "val", 5 - 9 * dark, bright)
                 for at, (path, (bright, dark)) in enumerate(sorted(truth.items()))]  # fmt: skip
        csv.writer(stream).writerows([("path", "split", "light", "bright"), *lines])
    words = "names that start fresh: 'light'; names of it that are not here: 'dark'"
    asked = {"data": str(tmp_path / "more.csv"), "root": str(data), "targets": "light,bright", "phases": "probe"}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", TransferkitWarning)
        more = tk.finetune(init_from=str(run.path), out=str(tmp_path / "more"), report="off", **{**OPTIONS, **asked})
    assert any(words in str(one.message) for one in told)
    facts = [tk.load(one.path).info.target_spec.facts for one in (run, more)]
    assert facts[0]["mean"][0] != pytest.approx(facts[1]["mean"][1], abs=1)
    pictures = [data / f"{at}.png" for at in range(60, 70)]
    before, after = (tk.load(one.path).predict(pictures) for one in (run, more))
    for old, new in zip(before, after, strict=True):
        assert new.numbers[1] == pytest.approx(old.numbers[0], rel=1e-4)
    row = more.metrics["val"]["per_target"]["light"]
    assert row["rmse"] < row["always_mean"]["rmse"]


def test_a_single_target_is_held_against_its_probe_in_one_unit(data, tmp_path):  # fault 162
    options = {"data": str(data / "list.csv"), "targets": "bright", "epochs": 1, "lr": 1e-4, **OPTIONS}
    single = tk.finetune(out=str(tmp_path / "one"), report="off", **options)
    probe, final = (row["value"] for row in baseline(RunFiles(single.path))["rows"])
    (scale,) = tk.load(single.path).info.target_spec.facts["scale"]
    assert probe == single.metrics["phases"][0]["val_rmse"]  # in deviations
    assert final == pytest.approx(single.metrics["val"]["per_target"]["bright"]["rmse"] / scale, rel=1e-6)


def test_many_targets_are_told_by_the_first(tmp_path, command):  # fault 162
    """Thirty targets, one far off for every picture: tables of a terminal's width, the worst on the page."""
    generator = np.random.default_rng(0)
    names = [f"t{at:02}" for at in range(30)]
    with (tmp_path / "many.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "split", *names])
        for at in range(40):
            level = generator.uniform(30, 220)
            pixels = generator.normal(level, 6, (32, 32, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{at}.png")
            values = [level * (number + 1) for number in range(30)]
            values[17] = generator.choice([-1e4, 1e4])  # nothing of the picture
            writer.writerow([f"{at}.png", "train" if at < 25 else "val", *(f"{value:.3f}" for value in values)])
    words = ["--data", tmp_path / "many.csv", "--targets", ",".join(names), *FLAGS, "--out", tmp_path / "run"]
    status, _, err = command("probe", *words, "--quiet")
    assert status == 0, err
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "27 more stand in the table of targets." in page
    captions = [one for one in re.findall(r"<figcaption>(.*?)</figcaption>", page, re.DOTALL) if "for " in one]
    assert len(captions) == 12
    assert all("t17: " in caption and ", 24 more<br>" in caption for caption in captions)
    status, printed, err = command("calibrate", tmp_path / "run", tmp_path / "many.csv")
    assert status == 0, err
    assert "the first 20 of 30; all are in model.json" in printed
    row = next(line for line in printed.splitlines() if "t19" in line)
    assert len(re.findall(r"n/a|\d+\.?\d*", row.replace("t19", ""))) == 3  # of each coverage
    words = ["evaluate", tmp_path / "run", tmp_path / "many.csv", "--out", tmp_path / "e", "--report", "off"]
    status, printed, err = command(*words)
    assert status == 0, err
    assert "target   25 more, in metrics.json" in printed
    assert re.search(r"the largest error: \S+\|\.\.\. \(30 numbers\) for ", printed)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cutmix": 1.0}, "--cutmix pastes parts of pictures"),
        ({"class_weights": "balanced"}, "these are numbers"),
        ({"label_smoothing": 0.1}, "but regression has none"),
        ({"loss": "focal"}, "Expected one of mse, huber, l1"),
        ({"monitor": "val_acc"}, "--monitor is 'val_acc'"),
        ({"targets": "bright,drak"}, "no column 'drak'"),
    ],
)
def test_what_numbers_cannot_have(data, tmp_path, options, words):
    with pytest.raises(tk.TransferkitError, match=re.escape(words)):
        tk.finetune(**{"data": str(data / "list.csv"), "targets": "bright,dark", "task": "regression", "epochs": 1,
                       "out": str(tmp_path / "run"), **OPTIONS, **options})  # fmt: skip
    assert not (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize("loss", ["huber", "l1"])
def test_other_losses_and_mixup(data, tmp_path, loss):
    run = tk.finetune(data=str(data / "list.csv"), targets="bright,dark", epochs=1, loss=loss, mixup=0.2,
                      report="off", out=str(tmp_path / "run"), **OPTIONS)  # fmt: skip
    assert run.metrics["val"]["per_target"]["bright"]["rmse"] < 400


def test_a_search_leaves_out_what_numbers_have_not(data):
    options = {"data": str(data / "list.csv"), "targets": "bright,dark", "phases": "probe", "probe": "sgd"}
    assert "label_smoothing" not in plan_search(options).space.axes
    assert plan_search(options).monitor.name == "val_loss"
    with pytest.raises(ConfigError, match="val_acc"):
        plan_search({**options, "monitor": "val_acc"})


@pytest.mark.parametrize("format", ["safetensors", pytest.param("onnx", marks=pytest.mark.slow)])
def test_export_in_own_units(probed, data, format, tmp_path, command):
    if format == "safetensors":  # which is for timm
        small = {**OPTIONS, "backbone": "test_resnet", "weights": "random", "image_size": 32, "phases": "probe",
                 "report": "off"}  # fmt: skip
        probed = tk.finetune(data=str(data / "list.csv"), targets="bright,dark", out=str(tmp_path / "r"), **small).path
    if format == "onnx":
        pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
    pictures = [data / "0.png", data / "1.png"]
    status, printed, err = command("export", probed, "--format", format, "--out", tmp_path / "model", "--pictures", "5")
    assert (status, err) == (0, "")
    assert "100.0% the same on 5 validation pictures" in printed
    if format == "onnx":
        shown = [list(map(float, row[1:])) for row in run_example(tmp_path / "model_example.py", pictures)]
        records = tk.load(probed).predict(pictures)
        width = len(records[0].numbers)
        np.testing.assert_allclose([row[:width] for row in shown], [one.numbers for one in records], rtol=1e-3)
        if records[0].unlike_training is not None:  # a column after the numbers
            shares = [row[width] for row in shown]
            np.testing.assert_allclose(shares, [one.unlike_training for one in records], atol=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_export_in_less_precision_is_held_to_deviations(probed, data, truth, precision, tmp_path, command):
    pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
    words = ["--format", "onnx", "--precision", precision, "--out", tmp_path / "model"]
    status, printed, err = command("export", probed, *words)
    assert (status, err) == (0, "")
    assert re.search(r"numbers +(9[5-9]|100)\.\d% the same on 20 validation pictures", printed)
    assert "numbers, in deviations of the training pictures, differ by at most" in printed
    pictures = [data / f"{number}.png" for number in range(54, 74)]
    shown = [list(map(float, row[1:3])) for row in run_example(tmp_path / "model_example.py", pictures)]
    expected = [one.numbers for one in tk.load(probed).predict(pictures)]
    scale = np.std(list(truth.values())[:54], axis=0)  # of train
    apart = np.abs(np.subtract(shown, expected)) / scale
    assert (apart.max(axis=1) <= {"fp16": 0.02, "int8": 0.1}[precision]).sum() >= 19
    assert apart.max() > 0  # it is another precision


def test_exported_numbers_are_compared_in_deviations_of_their_own(probed, data):
    predictor = tk.load(probed)
    module, info = predictor.module, predictor.info
    scale = np.array(info.target_spec.facts["scale"])
    assert scale[0] > 100 * scale[1]
    paths = [str(data / f"{number}.png") for number in range(54, 66)]

    def off(by):
        def model(images):
            with torch.inference_mode():
                logits = module(torch.from_numpy(images))
            return module.task.predictions(logits, info.calibration).numpy() + np.float32(by * scale), logits.numpy()

        return model

    for by, near, same in ((0.0, 1e-3, 12), (0.01, 1e-3, 0), (0.01, 0.02, 12), (np.array([0.0, 0.03]), 0.02, 0)):
        result = compare(off(by), predictor, paths, timed=False, near=near)
        assert (result.same, result.pictures) == (same, 12)
        assert result.probability == pytest.approx(np.max(by), abs=2e-4)
    problem = result.problem(Limits(agreement=0.99, probability=0.02, near=0.02))
    assert "12 of 12 pictures get other numbers (at most 1 may)" in problem
    assert "numbers, in deviations of the training pictures, differ by 0.03 (at most 0.02 may)" in problem


def test_serve(probed, data):
    pytest.importorskip("fastapi", reason="the serve extra is not installed")
    from live_server import ask, serving

    from transferkit.results.serve.answering import Answerer

    predictor = tk.load(probed)
    (expected,) = predictor.predict(data / "0.png", coverage=0.5)
    with serving(Answerer(predictor, name="run", batch_size=8, wait_s=0.001, threads=1)) as port:
        picture = (data / "0.png").read_bytes()
        status, _, answer = ask(port, "/predict?coverage=0.5", picture)
        assert status == 200
        assert list(answer["values"]) == ["bright", "dark"]
        assert answer["values"]["bright"]["low"] == pytest.approx(expected.low[0], rel=1e-4)
        status, _, answer = ask(port, "/predict?coverage=0.999", picture)
        assert (status, answer["error"].split(" - ")[0]) == (
            422, "coverage 0.999 needs the errors of 999 held-out pictures, and this model was calibrated on 20"
        )  # fmt: skip
        status, _, answer = ask(port, "/predict?unknown=0.9", picture)
        assert (status, "regression gives none" in answer["error"]) == (422, True)
