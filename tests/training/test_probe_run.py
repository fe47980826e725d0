"""The probe verb: a run directory with clean numbers, plots, and a product that predict takes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from transferkit.cli.main import main
from transferkit.core.errors import CheckpointError, ConfigError
from transferkit.features.extract.extract import extract_features
from transferkit.features.probe.classifier_file import read_classifier
from transferkit.features.probe.neighbours import Neighbours
from transferkit.features.probe.probe import fit_probe
from transferkit.models import task
from transferkit.models.heads.neighbour import NeighbourHead
from transferkit.models.heads.solver import LabelledRows, ProbeOptions
from transferkit.options.features import ProbeConfig
from transferkit.options.fields import make_config
from transferkit.results.predict.predictor import load
from transferkit.training.probe_run import run_probe


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store that the first probe fills and the others read."""
    return tmp_path_factory.mktemp("probes") / "store"


@pytest.fixture
def options(folder, store, tmp_path):
    """Options of a probe that takes a second."""
    return {
        "data": str(folder), "image_size": 32, "store": str(store), "out": str(tmp_path / "run"),
        "quiet": True, "precision": "32", "accelerator": "cpu",
    }  # fmt: skip


def probe(options, **more):
    return run_probe(make_config(ProbeConfig, {**options, **more}))


def read(run):
    return json.loads((Path(run) / "metrics.json").read_text(encoding="utf-8"))


def features(options, split, **more):
    table = extract_features(options["data"], image_size=32, store=options["store"], precision="32", **more)
    return table.split(split)


@pytest.mark.parametrize(
    "choice",
    [
        {"classifier": "logistic"},
        {"classifier": "knn", "classifier_args": {"k": [1, 3, 5]}},
        {"classifier": "sklearn.svm.LinearSVC", "classifier_args": {"C": 0.01}},
    ],
)
def test_predict_takes_the_probe_and_agrees_with_it(options, choice):  # fault 84
    run = probe(options, **choice)
    metrics = read(run)
    val = features(options, "val")
    predicted = load(run).predict(val.paths)
    right = [item.label == record.label for item, record in zip(predicted, val.records, strict=True)]
    assert metrics["val"]["acc"] == pytest.approx(np.mean(right))
    train = features(options, "train")
    rows = LabelledRows(train.X, train.y, 3, [record.sha256 for record in train.records])
    fitted = fit_probe(rows, ProbeOptions(**choice))
    assert [val.class_names[label] for label in fitted.predict(val.X)] == [item.label for item in predicted]
    assert metrics["probe"]["exported"] == "yes"
    if choice["classifier"] != "sklearn.svm.LinearSVC":
        ours = np.array([item.probs for item in predicted])
        np.testing.assert_allclose(ours, fitted.probs(val.X), atol=1e-4)


def test_a_classifier_that_is_no_head_is_measured_only(options):
    run = probe(options, classifier="sklearn.svm.SVC", classifier_args={"C": 10.0})
    metrics = read(run)
    assert 0 < metrics["val"]["acc"] <= 1
    assert metrics["probe"]["exported"].startswith("no: sklearn.svm.SVC is not linear - use it in a pipeline behind")
    assert metrics["probe"]["kept"] == "yes"
    classifier, facts = read_classifier(run / "classifier.skops")  # without trusting it
    assert json.loads(facts["classes"]) == json.loads((run / "data.json").read_text(encoding="utf-8"))["classes"]
    assert len(classifier.predict(np.zeros((2, classifier.n_features_in_)))) == 2
    assert not (run / "model.safetensors").exists()


def test_the_run_directory_and_its_recipe_which_repeats_it_from_the_store(options, tmp_path, real_figures):
    run = probe(options, store=str(tmp_path / "store"))
    assert {path.name for path in run.iterdir()} == {
        "config.yaml", "data.json", "metrics.json", "model.json", "model.safetensors", "path.png", "pictures.csv",
            "predictions.csv",
    }  # fmt: skip
    metrics = read(run)
    assert metrics["features"]["computed"] == 45
    assert {"acc", "acc_ci", "balanced_acc", "f1_macro", "loss", "ece", "n", "per_class"} <= set(metrics["val"])
    assert (metrics["val"]["n"], metrics["test"]["n"]) == (12, 9)
    assert metrics["selection"]["monitor"] is None
    assert "5 folds of the training rows" in metrics["probe"]["criterion"]
    with Image.open(run / "path.png") as image:
        assert image.width > 400
    assert yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["classifier"] == "auto"
    words = ["--config", run / "config.yaml", "--out", tmp_path / "again", "--store", tmp_path / "store", "--quiet"]
    assert main(["probe", *map(str, words)]) == 0
    again = read(tmp_path / "again")
    assert (again["features"]["computed"], again["val"]) == (0, metrics["val"])


def test_depth_and_labels(options, capsys, real_figures):
    run = probe(options, depth=True, learning_curve=True, quiet=False)
    metrics = read(run)
    assert [row["layer"] for row in metrics["depth"]] == ["layer1", "layer2", "layer3", "layer4", "pooled"]
    assert all(row["acc_low"] <= row["acc"] <= row["acc_high"] for row in metrics["depth"])
    assert metrics["depth"][-1]["acc"] == pytest.approx(metrics["val"]["acc"])
    assert [row["share"] for row in metrics["learning_curve"]] == [0.1, 0.2, 0.4, 0.8, 1.0]
    assert metrics["learning_curve"][-1]["acc"] == pytest.approx(metrics["val"]["acc"])
    for name in ("depth.png", "learning_curve.png"):
        with Image.open(run / name) as image:
            assert image.width > 400
    out = capsys.readouterr().out
    assert out.count("\ndepth") == 5
    assert "next     transferkit predict" in out


def test_features_of_a_stage_are_no_product(options):
    metrics = read(probe(options, layer="stage3", pool="avgmax"))
    assert (metrics["probe"]["layer"], metrics["probe"]["pool"]) == ("layer3", "avgmax")
    assert metrics["probe"]["exported"] == "no: a head stands on the penultimate features, not on layer3 (avgmax)"


@pytest.mark.parametrize("use_views", ["sample", "average"])
def test_augmented_views(options, use_views):
    metrics = read(probe(options, views=2, augment="standard", use_views=use_views))
    assert metrics["probe"]["views"] == use_views
    assert metrics["features"]["views"] == 2
    assert metrics["val"]["n"] == 12  # measured on the evaluation view alone


def test_class_weights_change_the_probe(options, tmp_path):
    """Weights reach the classifier: the same data with balanced weights and a class made rare give another model."""
    data = tmp_path / "rare"
    for label, count in (("circle", 8), ("square", 8), ("stripes", 3)):
        for split, most in (("train", count), ("val", 4)):
            target = data / split / label
            target.mkdir(parents=True)
            for path in sorted((Path(options["data"]) / split / label).iterdir())[:most]:
                (target / path.name).write_bytes(path.read_bytes())
    args = {"data": str(data), "classifier_args": {"C": 1e-4}}
    plain = probe(options, **args)
    balanced = probe(options, **args, class_weight="balanced", out=f"{options['out']}-balanced")
    assert (
        read(balanced)["val"]["per_class"]["stripes"]["recall"] > read(plain)["val"]["per_class"]["stripes"]["recall"]
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--classifier", "logistics"], "unknown classifier 'logistics'"),
        (["--classifier", "sklearn.svm.SVX"], "SVX"),
        (["--layer", "all"], "--layer all gives several sets of features"),
        (["--folds", "1"], "--folds is 1, expected a whole number of at least 2"),
        (["--views", "1", "--augment", "none"], "--views without augmentation are all the same"),
        (["--pool", "cls"], "pool 'cls' needs a class token, which transferkit/mini has not"),
        (["--layer", "stage9"], "transferkit/mini has no layer 'stage9'"),
        (["--val-split", "0", "--test-split", "0", "--depth"], "need pictures to measure on"),
    ],
)
def test_mistakes(options, words, message, capsys, tmp_path):
    data = options["data"] if "--depth" not in words else str(Path(options["data"]) / "train")
    base = ["--data", data, "--image-size", "32", "--store", options["store"], "--out", options["out"], "--quiet"]
    assert main(["probe", *base, *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not Path(options["out"]).exists()


def test_a_directory_that_is_taken(options):  # fault 40
    run = probe(options)
    before = (run / "metrics.json").read_bytes()
    with pytest.raises(CheckpointError, match="is not empty"):
        probe(options)
    assert (run / "metrics.json").read_bytes() == before
    assert read(probe(options, overwrite=True))["features"]["computed"] == 0


def test_one_class_is_refused(options, tmp_path, capsys, monkeypatch):  # fault 4
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "one" / "circle"
    target.mkdir(parents=True)
    for path in (Path(options["data"]) / "train" / "circle").iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    assert main(["probe", "--data", str(tmp_path / "one"), "--store", options["store"], "--quiet"]) == 3
    assert "need at least 2 classes" in capsys.readouterr().err


def test_the_neighbour_head_votes_like_the_neighbours():
    generator = np.random.default_rng(0)
    X, y = generator.normal(size=(40, 6)).astype(np.float32), generator.integers(0, 3, 40)
    votes = Neighbours.fit(X, y, 3, k=7)
    head = NeighbourHead(6, 3, rows=40, k=7, temperature=votes.temperature)
    for name, values in (("mean", votes.standardiser.mean), ("scale", votes.standardiser.scale),
                         ("rows", votes.rows), ("labels", votes.labels)):  # fmt: skip
        head.get_buffer(name).copy_(torch.from_numpy(np.asarray(values)))
    queries = generator.normal(size=(20, 6)).astype(np.float32)
    ours = head(torch.from_numpy(queries)).softmax(dim=1).numpy()
    np.testing.assert_allclose(ours, votes.probs(queries), atol=1e-5)
    assert not list(head.parameters())


def test_a_task_without_a_solver_is_refused(options, monkeypatch):
    monkeypatch.setitem(
        task._REGISTERED, "drawn", replace(task.task_named("classification"), name="drawn", solver=None)
    )
    with pytest.raises(
        ConfigError, match="^probe has no solver for drawn - train the head by steps: finetune --probe sgd$"
    ):
        probe(options, task="drawn")
    assert not Path(options["out"]).exists()
