"""Several labels per picture through the verbs, on pictures with a red, a green and a blue patch, or none."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
import torch
from export_runs import run_example
from PIL import Image
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import StandardScaler
from small_runs import SignalAt

import transferkit as tk
from transferkit.core.csv import read_csv
from transferkit.core.errors import Interrupted, TransferkitWarning
from transferkit.models.backbones.registry import create_backbone
from transferkit.options.fields import make_config
from transferkit.options.results import CalibrateConfig
from transferkit.results.evaluate.calibrate import calibrate

NAMES = ("blue", "green", "red")
COLOURS = {"red": (230, 20, 20), "green": (20, 230, 20), "blue": (20, 20, 230)}
TINY = {"backbone": "test_resnet", "weights": "random", "image_size": 32, "precision": "32", "accelerator": "cpu",
        "workers": 0, "quiet": True, "batch_size": 8}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eighty pictures, a manifest with a column of lists, and one with columns of 0 and 1."""
    root = tmp_path_factory.mktemp("patches")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(80):
        pixels = rng.integers(60, 120, (32, 32, 3), dtype=np.uint8)
        chosen = [name for name in NAMES if rng.random() < 0.45]
        for place, name in zip(rng.permutation(4), chosen, strict=False):
            y, x = 16 * (place // 2), 16 * (place % 2)
            pixels[y : y + 16, x : x + 16] = COLOURS[name]
        Image.fromarray(pixels).save(root / f"{number:02}.png")
        rows.append((f"{number:02}.png", chosen, "train" if number < 50 else "val"))
    with (root / "lists.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(
            [("path", "labels", "split"), *((path, "|".join(own), split) for path, own, split in rows)]
        )
    with (root / "flags.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(
            [("path", *NAMES, "split"), *((path, *(int(n in own) for n in NAMES), split) for path, own, split in rows)]
        )
    return root


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A probe, then two epochs of everything."""
    out = tmp_path_factory.mktemp("runs") / "run"
    return tk.finetune(data=str(data / "lists.csv"), phases="probe-finetune", epochs=2, lr=1e-3, augment="none",
                       out=str(out), **TINY)  # fmt: skip


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """An extractor, and the file of its backbone: random weights are others each time they are drawn."""
    path = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    torch.manual_seed(5)
    save_file(create_backbone("test_resnet", weights="random", image_size=32).model.state_dict(), path)
    return tk.FeatureExtractor("test_resnet", weights=str(path), image_size=32, precision="32")


def truth_of(data):
    return {row["path"]: set(filter(None, row["labels"].split("|"))) for row in read_csv(data / "lists.csv")}


def test_finetune_writes_a_model_of_labels(run, data):
    metrics = run.metrics
    assert metrics["task"] == "multilabel" and metrics["val"]["map"] > 0.6  # the share of positives is 0.45
    figures = [figure["key"] for figure in metrics["val"]["figures"] if figure["of"] is None]
    assert figures == ["map", "f1_macro", "f1_micro", "subset_acc", "hamming", "loss"]
    model = json.loads((run.path / "model.json").read_text(encoding="utf-8"))
    assert model["spec"]["names"] == list(NAMES) and len(model["calibration"]["thresholds"]) == 3
    assert metrics["val"]["per_label"]["red"]["threshold"] == pytest.approx(model["calibration"]["thresholds"][2])
    counted = json.loads((run.path / "data.json").read_text(encoding="utf-8"))
    assert counted["pictures"] == {"train": 50, "val": 30}
    assert {"val_map", "val_f1_macro", "train_loss"} <= set(read_csv(run.path / "history.csv")[0])


def test_columns_of_0_and_1_make_the_same_probe(data, tmp_path):
    runs = [
        tk.finetune(
            data=str(data / name), targets=targets, phases="probe", report="off", out=str(tmp_path / name), **TINY
        )
        for name, targets in (("lists.csv", None), ("flags.csv", "blue,green,red"))
    ]
    assert runs[0].metrics["val"]["map"] == runs[1].metrics["val"]["map"]


def test_the_solved_head_is_scikit_learns(data, own, tmp_path):
    words = {**TINY, "weights": own.weights, "calibrate": "none", "probe_views": 0, "report": "off"}
    run = tk.finetune(data=str(data / "lists.csv"), phases="probe", out=str(tmp_path / "run"), **words)
    truth = truth_of(data)
    split = {row["path"]: row["split"] for row in read_csv(data / "lists.csv")}
    paths = {name: [path for path in truth if split[path] == name] for name in ("train", "val")}
    X = {name: own.fit_transform([str(data / path) for path in mine]) for name, mine in paths.items()}
    y = {name: np.array([[n in truth[path] for n in NAMES] for path in mine]) for name, mine in paths.items()}
    metrics = run.metrics
    scaler = StandardScaler().fit(X["train"].astype(np.float64))
    strengths = metrics["probe"]["C"] if "probe" in metrics else metrics["phases"][0]["C"]
    probs = np.stack([
        LogisticRegression(C=strength, tol=1e-9, max_iter=10_000)
        .fit(scaler.transform(X["train"].astype(np.float64)), y["train"][:, at])
        .predict_proba(scaler.transform(X["val"].astype(np.float64)))[:, 1]
        for at, strength in enumerate(strengths)
    ], axis=1)  # fmt: skip
    answers = np.array([record.probs for record in tk.load(run.path).predict([data / path for path in paths["val"]])])
    np.testing.assert_allclose(answers, probs, atol=1e-4)
    assert metrics["val"]["map"] == pytest.approx(average_precision_score(y["val"], probs), abs=5e-3)


@pytest.mark.slow
def test_resume_is_exact(data, tmp_path):
    words = {"data": str(data / "lists.csv"), "phases": "finetune", "lr": 1e-3, "augment": "light", "mixup": 0.4,
             "loss": "asymmetric", "report": "off", **TINY}  # fmt: skip
    whole = tk.finetune(epochs=3, out=str(tmp_path / "whole"), **words)
    part = tmp_path / "part"
    with pytest.raises(Interrupted):
        tk.finetune(epochs=3, out=str(part), callbacks=[SignalAt(9)], **words)  # in mid-epoch
    assert (part / "checkpoints" / "last.ckpt").exists()
    again = tk.finetune(epochs=3, out=str(part), resume=True, **words)
    first, second = (
        [{key: value for key, value in row.items() if "_s" not in key} for row in read_csv(one.path / "history.csv")]
        for one in (whole, again)
    )
    assert first == second
    assert whole.metrics["val"]["map"] == again.metrics["val"]["map"]


def test_check(data, tmp_path, command):
    status, printed, err = command("check", "--data", data / "lists.csv", "--quiet")
    assert status == 0, err
    assert "no label" in printed and "have no label at all" in printed
    assert next(line for line in printed.splitlines() if " all " in line and "50" in line)
    status, _, err = command("check", "--data", data / "flags.csv", "--targets", "blue,green", "--quiet")
    assert status == 0, err
    rows = read_csv(data / "flags.csv")
    with (tmp_path / "never.csv").open("w", encoding="utf-8", newline="") as stream:
        lines = [(row["path"], row["red"], 0, 1, row["split"]) for row in rows]
        csv.writer(stream).writerows([("path", "red", "never", "always", "split"), *lines])
    words = [
        "--data",
        tmp_path / "never.csv",
        "--targets",
        "red,never,always",
        "--root",
        data,
        "--quick",
        "--out",
        tmp_path,
        "--quiet",
    ]
    status, printed, err = command("check", *words)
    assert status == 3 and "labels that no training picture has, so nothing can be learnt of them: 'never'" in err
    status, printed, err = command("check", *words, "--allow-empty-classes", "--overwrite")
    assert status == 0 and "no training picture has, so nothing can be learnt of them: 'never'" in printed, err
    assert "that all training pictures have, so nothing can be learnt of them: 'always'" in printed
    status, _, err = command("check", "--data", data / "lists.csv", "--task", "segmentation", "--quiet")
    expected = (
        "no column 'mask'; found 'path', 'labels', 'split' - expected a first line like path,mask[,split][,group]"
    )
    assert status == 3 and expected in err, err


def test_predict_to_csv_and_json_lines(run, data, tmp_path, command):
    pictures = [data / "60.png", data / "61.png"]
    assert command("predict", run.path, *pictures, "--out", tmp_path / "p.csv", "--quiet")[0] == 0
    rows = read_csv(tmp_path / "p.csv")
    assert list(rows[0]) == ["path", "labels", "p_blue", "p_green", "p_red", "unlike_training", "error"]
    command("predict", run.path, *pictures, "--out", tmp_path / "p.jsonl", "--quiet")
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()]
    records = tk.load(run.path).predict(pictures)
    for row, line, record in zip(rows, lines, records, strict=True):
        assert row["labels"] == "|".join(record.labels) and line["labels"] == list(record.labels)
        assert [float(row[f"p_{name}"]) for name in NAMES] == pytest.approx(record.probs, abs=1e-5)
    limits = dict(zip(NAMES, json.loads((run.path / "model.json").read_text(encoding="utf-8"))["calibration"]
                      ["thresholds"], strict=True))  # fmt: skip
    assert set(records[0].labels) == {n for n, p in zip(NAMES, records[0].probs, strict=True) if p >= limits[n]}
    status, _, err = command("predict", run.path, pictures[0], "--out", tmp_path / "q.csv", "--abstain", "0.1")
    assert status == 2 and err.count("\n") == 1 and "abstain" in err


def test_predict_with_views(run, data, command, tmp_path):
    words = ["predict", run.path, data / "60.png", "--quiet", "--tta", "flip"]
    assert command(*words, "--out", tmp_path / "p.csv")[0] == 0
    assert read_csv(tmp_path / "p.csv")[0]["error"] == ""


def test_evaluate_against_and_the_page(run, data, tmp_path, command):
    other = tk.finetune(
        data=str(data / "lists.csv"), phases="probe", out=str(tmp_path / "probe"), seed=1, report="off", **TINY
    )
    out = tmp_path / "evaluation"
    words = ["evaluate", run.path, data / "lists.csv", "--split", "val", "--out", out, "--against", other.path]
    status, printed, err = command(*words)
    assert status == 0, err
    assert "Mean average precision (mAP): " in printed and "higher is better" in printed
    table = read_csv(out / "per_label.csv")
    assert [row["label"] for row in table] == list(NAMES)
    truth = truth_of(data)
    rows = read_csv(out / "predictions.csv")
    given = {row["path"].rsplit("/", 1)[1]: set(filter(None, row["predicted"].split("|"))) for row in rows}
    for row in table:
        name = row["label"]
        assert int(row["missed"]) == sum(name in truth[path] and name not in own for path, own in given.items())
        assert int(row["extra"]) == sum(name not in truth[path] and name in own for path, own in given.items())
    assert (out / "average_precision.png").is_file()
    compared = read_csv(out / "against.csv")
    assert [(row["figure"], row["of"]) for row in compared][:1] == [("map", "")] and len(compared) == 6
    page = (out / "report.html").read_text(encoding="utf-8")
    assert all(text in page for text in ("Average precision, lowest first", "threshold", 'id="against"'))


def test_report_of_two_runs(run, data, tmp_path, command):
    shutil.copytree(run.path, tmp_path / "copy")
    assert command("report", run.path, tmp_path / "copy", "--out", tmp_path / "r.html", "--quiet")[0] == 0
    assert "Average precision on validation pictures" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_calibrate_again(run, data, tmp_path, command):
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    status, printed, err = command("calibrate", copy, data / "lists.csv", "--method", "vector")
    assert status == 0, err
    assert "all right" in printed and "limits" in printed
    assert json.loads((copy / "model.json").read_text(encoding="utf-8"))["calibration"]["method"] == "vector"


def test_calibrate_at_a_precision(run, data, tmp_path, command):  # fault 155
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    with pytest.warns(
        TransferkitWarning, match="reach no precision of 0.99 on these pictures, and are never given"
    ) as told:
        options = {"run": str(copy), "data": str(data / "lists.csv"), "label_precision": 0.99, "quiet": True}
        calibrate(make_config(CalibrateConfig, {**options, "accelerator": "cpu"}))
    kept = json.loads((copy / "model.json").read_text(encoding="utf-8"))["calibration"]
    never = [name for name, limit in zip(NAMES, kept["thresholds"], strict=True) if limit > 1]
    assert never and kept["precision"] == 0.99 and all(repr(name) in str(told[0].message) for name in never)
    given = {name for record in tk.load(copy).predict([data / f"{n}.png" for n in range(80)]) for name in record.labels}
    assert not given & set(never)
    status, printed, err = command("calibrate", copy, data / "lists.csv", "--label-precision", "0.5")
    assert status == 0 and "50.0% wanted of each label" in printed, err
    assert command("report", copy, "--quiet")[0] == 0
    assert "the lowest with a precision of" in (copy / "report.html").read_text(encoding="utf-8")
    status, _, err = command("calibrate", copy, data / "lists.csv", "--method", "conformal")
    assert status == 2 and "cannot be 'conformal', expected one of auto, temperature, vector, none" in err


def test_explain_the_label_that_is_named(run, data, tmp_path, command):
    words = ["explain", run.path, data / "60.png", "--neighbours", "0", "--quiet", "--out"]
    status, _, err = command(*words, tmp_path / "why", "--target", "green")
    assert status == 0, err
    assert read_csv(tmp_path / "why" / "explain.csv")[0]["target"] == "green"
    status, _, err = command(*words, tmp_path / "no", "--target", "violet")
    assert status == 2 and "'violet'" in err


@pytest.mark.parametrize(
    ("format", "precision", "preprocessing"),
    [
        ("safetensors", "32", "outside"),
        pytest.param("torch", "32", "outside", marks=pytest.mark.slow),
        pytest.param("onnx", "32", "outside", marks=pytest.mark.slow),
        pytest.param("onnx", "32", "inside", marks=pytest.mark.slow),
        pytest.param("onnx", "fp16", "outside", marks=pytest.mark.slow),
        pytest.param("onnx", "int8", "outside", marks=pytest.mark.slow),
    ],
)
def test_export(run, data, format, precision, preprocessing, tmp_path, command):
    pictures = [data / f"{number}.png" for number in range(50, 80)]
    if format == "onnx":
        pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
    words = ["--precision", precision, "--preprocessing", preprocessing, "--out", tmp_path / "model"]
    status, printed, err = command("export", run.path, "--format", format, *words)
    assert status == 0, err
    assert re.search(r"labels +(9[5-9]|100)\.\d% the same on 30 validation pictures", printed)
    if format != "onnx":
        return
    shown = run_example(tmp_path / "model_example.py", pictures)
    for row, path, record in zip(shown, pictures, tk.load(run.path).predict(pictures), strict=True):
        assert row[0] == str(path)
        if precision == "32" and preprocessing == "outside":
            assert row[1] == "|".join(record.labels)
            assert list(filter(None, row[2].split("|"))) == [
                f"{record.probs[NAMES.index(name)]:.4f}" for name in record.labels
            ]


def test_serve(run, data):
    pytest.importorskip("fastapi", reason="the serve extra is not installed")
    from live_server import ask, serving

    from transferkit.results.serve.answering import Answerer

    predictor = tk.load(run.path)
    with serving(Answerer(predictor, name="run", batch_size=8, wait_s=0.001, threads=1)) as port:
        status, _, answer = ask(port, "/predict", (data / "60.png").read_bytes())
        record = predictor.predict(data / "60.png")[0]
        assert status == 200 and answer["labels"] == list(record.labels)
        assert answer["probabilities"] == pytest.approx(record.probs, abs=1e-4)
        status, _, answer = ask(port, "/predict?coverage=0.9", (data / "60.png").read_bytes())
        assert (status, "this model gives labels" in answer["error"]) == (422, True)


def test_plan_lr_find_and_features(data, tmp_path, command):
    common = ["--data", data / "lists.csv", "--backbone", "test_resnet", "--weights", "random", "--image-size", "32"]
    for words in (["plan", "--epochs", "1"], ["lr-find", "--steps", "30", "--out", tmp_path / "lr"]):
        status, _, err = command(*words, *common, "--workers", "0", "--accelerator", "cpu")
        assert status == 0, err
    status, _, err = command("features", *common, "--out", tmp_path / "f.csv", "--quiet")
    assert status == 0, err
    assert any("|" in str(row) for row in read_csv(tmp_path / "f.csv"))


@pytest.mark.slow
def test_probe_with_depth_and_learning_curve(data, tmp_path, command):
    status, _, err = command(
        "probe", "--data", data / "lists.csv", "--backbone", "test_resnet", "--weights", "random", "--image-size", "32",
        "--depth", "--learning-curve", "--out", tmp_path / "probe", "--quiet", "--accelerator", "cpu",
    )  # fmt: skip
    assert status == 0, err
    metrics = json.loads((tmp_path / "probe" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["val"]["map"] > 0.5 and metrics["depth"]


def test_the_estimator_follows_scikit_learn(data, own):
    truth = truth_of(data)
    paths = sorted(truth)
    X = [str(data / path) for path in paths]
    y = np.array([[int(n in truth[path]) for n in NAMES] for path in paths])
    probe = tk.ImageProbe("test_resnet", weights=own.weights, image_size=32, precision="32", classifier_args={"C": 0.1})
    probe.fit(X[:50], y[:50])
    assert probe.predict(X[50:]).shape == (30, 3) and set(np.unique(probe.predict(X))) <= {0, 1}
    features = own.fit_transform(X)
    Z = StandardScaler().fit(features[:50].astype(float))
    for at in range(3):
        one = LogisticRegression(C=0.1, tol=1e-9, max_iter=10_000).fit(Z.transform(features[:50]), y[:50, at])
        expected = one.predict_proba(Z.transform(features[50:]))[:, 1]
        assert probe.predict_proba(X[50:])[:, at] == pytest.approx(expected, abs=2e-3)
    assert probe.score(X[50:], y[50:]) == pytest.approx((probe.predict(X[50:]) == y[50:]).all(axis=1).mean())
    for wrong, told in (
        (y[:49], "49 rows for 50 pictures"),
        (y[:50] * 2, "expected 0 or 1"),
        (np.ones((50, 3)), "no label that some pictures have"),
    ):
        with pytest.raises(ValueError, match=told):
            probe.fit(X[:50], wrong)
