"""Figures of numbers against scikit-learn and SciPy, and by hand."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn import metrics as reference
from torch.nn import functional

from transferkit.models.answers.epoch import LabelFigure, NumberFigure
from transferkit.models.answers.regression import NumberObjective, Units
from transferkit.models.figures.numbers import KEYS, Pairs, number_figures, number_metrics, weighted_kappa
from transferkit.models.parts import LossOptions


@pytest.fixture(scope="module")
def pairs():
    generator = np.random.default_rng(0)
    true = generator.normal(size=(150, 2)) * [3.0, 40.0] + [10.0, -5.0]
    return true + generator.normal(size=(150, 2)) * [1.0, 60.0], true


def measured(predicted, true):
    return {
        "rmse": reference.root_mean_squared_error(true, predicted),
        "mae": reference.mean_absolute_error(true, predicted),
        "median_ae": reference.median_absolute_error(true, predicted),
        "r2": reference.r2_score(true, predicted),
        "spearman": spearmanr(true, predicted).statistic,
    }


def test_equal_scikit_learn_and_scipy(pairs):
    predicted, true = pairs
    facts = {"mean": [9.0, 0.0], "scale": [2.0, 50.0]}
    values = number_metrics(predicted, true, ["red", "platelets"], facts)
    for at, name in enumerate(("red", "platelets")):
        row = values["per_target"][name]
        for key, value in measured(predicted[:, at], true[:, at]).items():
            assert row[key] == pytest.approx(value), key
            low, high = row[f"{key}_ci"]
            assert low < row[key] < high
        baseline = np.full(150, facts["mean"][at])
        assert row["always_mean"]["rmse"] == pytest.approx(reference.root_mean_squared_error(true[:, at], baseline))
        assert row["always_mean"]["mae"] == pytest.approx(reference.mean_absolute_error(true[:, at], baseline))
        assert "kappa" not in row
    for key in KEYS:
        each = [values["per_target"][name][key] for name in ("red", "platelets")]
        scale = facts["scale"] if key in ("rmse", "mae", "median_ae") else [1, 1]
        assert values[key] == pytest.approx(np.mean(np.array(each) / scale))


def test_weights_count_like_copies(pairs):
    """What the bootstrap does, against the figures of rows that are really there several times."""
    predicted, true = pairs
    weights = np.random.default_rng(1).integers(0, 4, len(true))
    rows = np.repeat(np.arange(len(true)), weights)
    values = Pairs(predicted, true).figures(weights.astype(float))
    expected = Pairs(predicted[rows], true[rows]).figures(np.ones(len(rows)))
    np.testing.assert_allclose(values[:4], expected[:4])
    np.testing.assert_allclose(values[4], expected[4], atol=0.01)  # the bootstrap keeps the ranks of all pictures


def test_one_target_leads_with_its_own_unit(pairs):
    predicted, true = pairs
    values = number_metrics(predicted[:, :1], true[:, :1], ["red"])
    figures = number_figures(values)
    assert (figures[0].key, figures[0].of, figures[0].unit) == ("rmse", "red", "")
    both = number_figures(number_metrics(predicted, true, ["red", "platelets"]))
    assert (both[0].key, both[0].of, both[0].unit) == ("rmse", None, "deviations")
    assert [figure.higher_is_better for figure in both[:5]] == [False, False, False, True, True]


def test_what_is_undefined_is_none():
    values = number_metrics(np.array([[1.0], [2.0]]), np.array([[3.0], [3.0]]), ["red"])
    assert values["per_target"]["red"]["r2"] is None
    assert values["per_target"]["red"]["spearman"] is None
    assert values["per_target"]["red"]["rmse"] == pytest.approx(np.sqrt(2.5))


def test_kappa_equals_scikit_learn():
    generator = np.random.default_rng(0)
    true = generator.integers(0, 5, 300)
    predicted = np.clip(true + generator.integers(-1, 2, 300), 0, 4)
    expected = reference.cohen_kappa_score(true, predicted, weights="quadratic", labels=range(5))
    assert weighted_kappa(predicted, true, np.ones(300)) == pytest.approx(expected)
    counts = generator.integers(0, 3, 300)
    weighed = reference.cohen_kappa_score(true, predicted, weights="quadratic", sample_weight=counts)
    assert weighted_kappa(predicted, true, counts) == pytest.approx(weighed)
    assert np.isnan(weighted_kappa(np.ones(3), np.ones(3), np.ones(3)))


def test_kappa_of_numbers_is_that_of_the_nearest_grade():
    generator = np.random.default_rng(0)
    true = generator.integers(0, 5, 300)
    predicted = np.clip(true + generator.integers(-1, 2, 300), 0, 4)
    guesses = predicted + generator.uniform(-0.4, 0.4, 300)  # rounded, they are those
    guesses[predicted == 4] += 3.0  # beyond the last grade
    facts = {"grades": [True, False], "range": [[0.0, 4.0], [0.0, 4.0]]}
    values = number_metrics(np.stack([guesses] * 2, 1), np.stack([true] * 2, 1).astype(float), ["grade", "b"], facts)
    row = values["per_target"]["grade"]
    expected = reference.cohen_kappa_score(true, predicted, weights="quadratic", labels=range(5))
    assert row["kappa"] == pytest.approx(expected)
    low, high = row["kappa_ci"]
    assert low < expected < high < low + 0.2
    assert "kappa" not in values["per_target"]["b"]
    assert [(figure.of, figure.ci) for figure in number_figures(values) if figure.key == "kappa"] == [
        ("grade", [low, high])
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("mse", functional.mse_loss), ("huber", functional.huber_loss), ("l1", functional.l1_loss),
     ("auto", functional.mse_loss)],
)  # fmt: skip
def test_losses_are_those_of_torch_in_deviations(name, expected):
    """And the plain loss of each picture is the squared deviation, whatever is trained on."""
    units = Units((10.0, -3.0), (4.0, 0.5))
    generator = torch.Generator().manual_seed(0)
    outputs, targets = torch.randn(6, 2, generator=generator), torch.randn(6, 2, generator=generator) * 5 + 8
    scaled = (targets - torch.tensor([10.0, -3.0])) / torch.tensor([4.0, 0.5])
    objective = NumberObjective(units=units)
    loss = objective.loss(LossOptions(name), 2)
    torch.testing.assert_close(loss(outputs, targets), expected(outputs, scaled))
    torch.testing.assert_close(objective.item_losses(outputs, targets), (outputs - scaled).square().mean(dim=1))
    torch.testing.assert_close(units.in_own_units(units.standardised(targets)), targets)
    metric = objective.metrics(["rmse"], 2)["rmse"]
    metric.update(units.in_own_units(outputs), targets)
    torch.testing.assert_close(
        metric.compute().float(), (outputs - scaled).square().mean(dim=0).sqrt().mean(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("lost", [np.nan, np.inf])
def test_predictions_that_are_no_numbers_are_never_the_best(lost):  # fault 163
    """An error of 0, which an undefined figure is told as, would choose the epoch in which training diverged."""
    predicted, true = torch.ones(6, 2), torch.arange(12.0).reshape(6, 2)
    for spoilt in (False, True):
        if spoilt:
            predicted[4, 1] = lost
        for name in KEYS:
            metric = NumberFigure(name, 2)
            metric.update(predicted, true)
            assert bool(metric.compute().isnan()) is spoilt, name


def test_probabilities_that_are_no_numbers_are_never_the_best():  # fault 163
    probs = torch.full((6, 2), 0.7)
    for spoilt in (False, True):
        if spoilt:
            probs[4, 1] = torch.nan
        for name in ("map", "f1_macro", "f1_micro", "subset_acc", "hamming"):
            metric = LabelFigure(name, 2)
            metric.update(probs, torch.eye(2).repeat(3, 1))
            assert bool(metric.compute().isnan()) is spoilt, name
