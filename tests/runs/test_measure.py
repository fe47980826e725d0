"""Held-out pictures measured: calibrated without looking at what is reported, told picture by picture."""

import numpy as np
import pytest
import torch

from transferkit.core.csv import read_csv
from transferkit.core.targets import TargetSpec
from transferkit.models.calibration.calibration import fit_calibration
from transferkit.models.figures.classification import classification_metrics
from transferkit.models.task import task_named
from transferkit.runs.measure import Outputs, measure_splits, write_predictions

NAMES = ("a", "=b", "c")
TASK, SPEC = task_named("classification"), TargetSpec(NAMES)


def overconfident(count, seed):
    """Logits three times as large as they should be: labels are drawn from a third of them."""
    generator = np.random.default_rng(seed)
    honest = torch.from_numpy(generator.normal(0, 1.5, (count, 3))).float()
    targets = torch.tensor([generator.choice(3, p=row) for row in honest.double().softmax(dim=1).numpy()])
    return Outputs(tuple(f"/{seed}/{number}.jpg" for number in range(count)), honest * 3, targets)


@pytest.fixture(scope="module")
def outputs():
    return {"val": overconfident(400, 1), "test": overconfident(300, 2)}


def test_both_splits_get_better_and_labels_stay(outputs):
    metrics, calibration, _ = measure_splits(outputs, TASK, SPEC, method="temperature", seed=0)
    assert 2.3 < calibration.temperature < 4.0
    for split, found in outputs.items():
        plain = classification_metrics(found.outputs.softmax(dim=1), found.targets, NAMES, resamples=2)
        assert metrics[split]["uncalibrated"] == {"loss": plain["loss"], "ece": plain["ece"]}
        assert metrics[split]["ece"] < plain["ece"] / 2
        assert metrics[split]["loss"] < plain["loss"]
        assert metrics[split]["acc"] == plain["acc"]
    assert metrics["calibration"]["ece_before"] == pytest.approx(metrics["val"]["uncalibrated"]["ece"])
    assert metrics["calibration"]["ece_after"] == pytest.approx(metrics["val"]["ece"])


def test_val_is_cross_fitted_and_test_is_what_the_model_gives(outputs):
    metrics, calibration, _ = measure_splits(outputs, TASK, SPEC, method="temperature", seed=0)
    _, fitted = fit_calibration(outputs["val"].outputs, outputs["val"].targets, method="temperature", seed=0)
    test = calibration.probs(outputs["test"].outputs)
    assert metrics["val"]["loss"] == classification_metrics(fitted, outputs["val"].targets, NAMES, resamples=2)["loss"]
    assert metrics["test"]["loss"] == classification_metrics(test, outputs["test"].targets, NAMES, resamples=2)["loss"]
    own = classification_metrics(calibration.probs(outputs["val"].outputs), outputs["val"].targets, NAMES, resamples=2)
    assert metrics["val"]["loss"] > own["loss"]  # fitted on itself it would look better than it is


@pytest.mark.parametrize(("method", "splits"), [("none", ("val", "test")), ("temperature", ("test",))])
def test_nothing_is_calibrated_unasked_or_without_val(outputs, method, splits):
    metrics, calibration, _ = measure_splits({s: outputs[s] for s in splits}, TASK, SPEC, method=method, seed=0)
    assert calibration.method == "none"
    assert "calibration" not in metrics
    assert all("uncalibrated" not in metrics[split] for split in splits)


def test_a_row_per_picture(outputs, tmp_path):  # fault 92
    metrics, calibration, rows = measure_splits(outputs, TASK, SPEC, method="temperature", seed=0)
    write_predictions(tmp_path / "predictions.csv", TASK, rows)
    read = read_csv(tmp_path / "predictions.csv")
    assert len(read) == 700
    test = [row for row in read if row["split"] == "test"]
    probs = calibration.probs(outputs["test"].outputs)
    for row, path, own, label in zip(test, outputs["test"].paths, probs, outputs["test"].targets.tolist(), strict=True):
        assert row["path"] == path
        assert row["label"] == NAMES[label]
        assert row["predicted"] == NAMES[int(own.argmax())]
        assert float(row["probability"]) == pytest.approx(float(own.max()), abs=1e-6)
        assert float(row["label_probability"]) == pytest.approx(float(own[label]), abs=1e-6)
    right = sum(row["label"] == row["predicted"] for row in test) / len(test)
    assert right == pytest.approx(metrics["test"]["acc"])


def test_reliability_bins_give_the_calibration_error(outputs):
    metrics, _, _ = measure_splits(outputs, TASK, SPEC, method="none", seed=0)
    for values in (metrics["val"], metrics["test"]):
        bins = [each for each in values["reliability"] if each["n"]]
        error = sum(each["n"] * abs(each["confidence"] - each["accuracy"]) for each in bins) / values["n"]
        assert error == pytest.approx(values["ece"], abs=1e-6)
