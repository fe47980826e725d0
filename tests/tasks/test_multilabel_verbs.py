"""Several labels per picture through `finetune` and `ImageProbe`: pictures with red, green and blue patches."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import transferkit as tk
from transferkit.core.csv import read_csv

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


def test_the_estimator_follows_scikit_learn(data):
    truth = truth_of(data)
    paths = sorted(truth)
    X = [str(data / path) for path in paths]
    y = np.array([[int(n in truth[path]) for n in NAMES] for path in paths])
    probe = tk.ImageProbe("test_resnet", weights="random", image_size=32, precision="32", classifier_args={"C": 0.1})
    probe.fit(X[:50], y[:50])
    assert probe.predict(X[50:]).shape == (30, 3) and set(np.unique(probe.predict(X))) <= {0, 1}
    features = tk.FeatureExtractor("test_resnet", weights="random", image_size=32, precision="32").fit_transform(X)
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
