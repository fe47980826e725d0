"""Metrics against scikit-learn and figures worked out by hand."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from torchmetrics.functional.classification import multiclass_calibration_error

from transferkit.core.errors import ConfigError
from transferkit.models.figures.classification import (
    classification_metrics,
    confidence_metrics,
    confusion_matrix,
    reliability_bins,
)
from transferkit.models.figures.figure import classification_figures


@pytest.fixture(scope="module")
def sample():
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(0, 7, (400,), generator=generator)
    logits = torch.randn(400, 7, generator=generator) + 1.5 * torch.nn.functional.one_hot(targets, 7)
    return logits.softmax(dim=1), targets, tuple("abcdefg")


def test_equals_scikit_learn(sample):
    probs, targets, names = sample
    ours = classification_metrics(probs, targets, names, resamples=10)
    true, guess = targets.numpy(), probs.argmax(dim=1).numpy()
    assert ours["acc"] == pytest.approx(reference.accuracy_score(true, guess), abs=1e-6)
    assert ours["acc_top5"] == pytest.approx(reference.top_k_accuracy_score(true, probs.numpy(), k=5), abs=1e-6)
    assert ours["balanced_acc"] == pytest.approx(reference.balanced_accuracy_score(true, guess))
    assert ours["f1_macro"] == pytest.approx(reference.f1_score(true, guess, average="macro"))
    assert ours["loss"] == pytest.approx(
        reference.log_loss(true, probs.double().numpy() / probs.double().sum(dim=1, keepdim=True).numpy()), abs=1e-6
    )
    assert ours["n"] == 400
    ece = multiclass_calibration_error(probs, targets, 7, n_bins=15, norm="l1")
    assert ours["ece"] == pytest.approx(float(ece), abs=1e-6)
    precision, recall, f1, support = reference.precision_recall_fscore_support(true, guess)
    for index, name in enumerate(names):
        expected = {"recall": recall[index], "precision": precision[index], "f1": f1[index], "n": support[index]}
        assert ours["per_class"][name] == pytest.approx(expected)
    assert confusion_matrix(probs, targets) == reference.confusion_matrix(true, guess).tolist()


def test_classes_that_are_grades_have_the_weighted_kappa(sample):
    probs, targets, _ = sample
    names = ("2", "3", "4", "5", "6", "7", "8")
    ours = classification_metrics(probs, targets, names, resamples=100)
    expected = reference.cohen_kappa_score(targets.numpy(), probs.argmax(dim=1).numpy(), weights="quadratic")
    assert ours["kappa"] == pytest.approx(expected)
    assert ours["kappa_ci"][0] < expected < ours["kappa_ci"][1]
    assert ("kappa", ours["kappa"]) in [(figure.key, figure.value) for figure in classification_figures(ours)]
    # Numbers in the order of their texts: the distance of two grades is not that of their places.
    mixed = ("10", "11", "12", "6", "7", "8", "9")
    grades = np.array([10, 11, 12, 6, 7, 8, 9])
    expected = reference.cohen_kappa_score(
        grades[targets.numpy()], grades[probs.argmax(dim=1).numpy()], weights="quadratic"
    )
    assert classification_metrics(probs, targets, mixed, resamples=10)["kappa"] == pytest.approx(expected)


@pytest.mark.parametrize(
    "names", [tuple("abcdefg"), ("1", "2", "3", "4", "5", "6", "8"), ("1", "2", "3", "4", "5", "6", "x")]
)
def test_other_classes_have_no_kappa(sample, names):
    assert "kappa" not in classification_metrics(*sample[:2], names, resamples=10)


def test_kappa_of_one_grade_is_unknown():
    result = classification_metrics(torch.eye(3)[[1, 1, 1]], torch.tensor([1, 1, 1]), ("0", "1", "2"), resamples=10)
    assert result["kappa"] is None
    assert result["kappa_ci"] is None


def test_figures_are_in_double_precision():
    """52 of 56 is that number, not its nearest in single precision, 0.92857140..."""
    probs = torch.eye(6)[torch.arange(56) % 6]
    targets = probs.argmax(dim=1)
    targets[:4] = (targets[:4] + 1) % 6
    result = classification_metrics(probs, targets, "abcdef", resamples=10)
    assert (result["acc"], result["acc_top5"]) == (52 / 56, 54 / 56)
    assert result["ece"] == pytest.approx(4 / 56, rel=1e-15)


def test_ece_by_hand():
    # Two bins: 0.9 confident and right half the time (gap 0.4), 0.6 confident and always right (gap 0.4).
    probs = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    result = classification_metrics(probs, torch.tensor([0, 1, 0, 0]), ("a", "b"), resamples=10)
    assert result["ece"] == pytest.approx(0.4, abs=1e-6)


def test_reliability_bins_by_hand():
    # Bins are 1/15 wide: 0.9 lies in the 14th, 0.61 in the 10th, 0.8 is the lower edge of the 13th, 1 is in the last.
    probs = torch.tensor([[0.9, 0.1], [0.88, 0.12], [0.61, 0.39], [0.2, 0.8], [1.0, 0.0]])
    bins = reliability_bins(probs, torch.tensor([0, 1, 0, 1, 0]))
    assert len(bins) == 15
    filled = {number: row for number, row in enumerate(bins) if row["n"]}
    assert filled == {
        9: {"low": 9 / 15, "high": 10 / 15, "n": 1, "confidence": pytest.approx(0.61), "accuracy": 1.0},
        12: {"low": 12 / 15, "high": 13 / 15, "n": 1, "confidence": pytest.approx(0.8), "accuracy": 1.0},
        13: {"low": 13 / 15, "high": 14 / 15, "n": 2, "confidence": pytest.approx(0.89), "accuracy": 0.5},
        14: {"low": 14 / 15, "high": 1.0, "n": 1, "confidence": 1.0, "accuracy": 1.0},
    }
    assert bins[0] == {"low": 0.0, "high": 1 / 15, "n": 0, "confidence": None, "accuracy": None}


def test_the_bins_give_the_calibration_error(sample):
    probs, targets, names = sample
    metrics = classification_metrics(probs, targets, names, resamples=10)
    bins = [row for row in reliability_bins(probs, targets) if row["n"]]
    assert sum(row["n"] for row in bins) == 400
    gaps = sum(row["n"] * abs(row["confidence"] - row["accuracy"]) for row in bins)
    assert metrics["ece"] == pytest.approx(gaps / 400, abs=1e-6)
    assert sum(row["n"] * row["accuracy"] for row in bins) / 400 == pytest.approx(metrics["acc"], abs=1e-6)


def test_three_numbers_a_picture_are_enough_for_loss_and_calibration_error(sample):
    probs, targets, names = sample
    metrics = classification_metrics(probs, targets, names, resamples=10)
    confidence, predicted = probs.max(dim=1)
    figures = confidence_metrics(probs.gather(1, targets[:, None]).squeeze(1), confidence, predicted == targets)
    assert figures == {"loss": pytest.approx(metrics["loss"]), "ece": pytest.approx(metrics["ece"])}


def test_a_long_tail_does_not_hide_in_the_accuracy():  # fault 26
    # 999 pictures of a class that is always right, one of a class that never is.
    probs = torch.tensor([[0.9, 0.1]]).repeat(1000, 1)
    targets = torch.zeros(1000, dtype=torch.int64)
    targets[0] = 1
    result = classification_metrics(probs, targets, ("common", "rare"), resamples=200)
    assert result["acc"] == pytest.approx(0.999)
    assert result["balanced_acc"] == pytest.approx(0.5)
    assert [row["n"] for row in result["per_class"].values()] == [999, 1]
    assert result["balanced_acc_ci"] == [0.5, 1.0]  # a resample may lack the rare picture


def test_intervals_equal_the_binomial_ones(sample):
    probs, targets, names = sample
    ours = classification_metrics(probs, targets, names, resamples=4000)
    half = 1.96 * math.sqrt(ours["acc"] * (1 - ours["acc"]) / 400)
    assert ours["acc_ci"] == pytest.approx([ours["acc"] - half, ours["acc"] + half], abs=0.008)
    for name in ("acc", "acc_top5", "balanced_acc", "f1_macro", "loss"):
        low, high = ours[f"{name}_ci"]
        assert low <= ours[name] <= high


def test_the_same_seed_gives_the_same_intervals(sample):
    probs, targets, names = sample
    first, second = (classification_metrics(probs, targets, names, seed=3, resamples=50) for _ in range(2))
    assert first == second
    assert classification_metrics(probs, targets, names, seed=4, resamples=50)["acc_ci"] != first["acc_ci"]


def test_a_class_without_pictures_is_not_zero():  # fault 6
    probs = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.8, 0.1, 0.1]])
    result = classification_metrics(probs, torch.tensor([0, 1, 1]), ("a", "b", "c"), resamples=20)
    assert result["per_class"]["c"] == {"recall": None, "precision": None, "f1": None, "n": 0}
    assert result["balanced_acc"] == pytest.approx(0.75)
    assert result["acc_top5"] is None
    assert np.isfinite(result["balanced_acc_ci"]).all()


def test_many_classes_have_no_matrix():  # fault 25
    assert confusion_matrix(torch.eye(1001), torch.arange(1001)) is None
    assert confusion_matrix(torch.eye(3), torch.arange(3)) == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ("probs", "targets", "message"),
    [
        (torch.tensor([[2.0, 1.0]]), [0], r"do not sum to 1 - pass probabilities, logits.softmax\(dim=1\)"),
        (torch.tensor([[0.5, 0.5]]), [0, 1], r"shape \(1, 2\), expected \(N, C\) with N = 2 targets"),
        (torch.zeros(0, 2), [], "there are no predictions"),
    ],
)
def test_logits_are_not_taken_for_probabilities(probs, targets, message):
    with pytest.raises(ConfigError, match=message):
        classification_metrics(probs, torch.tensor(targets, dtype=torch.int64), ("a", "b"))
