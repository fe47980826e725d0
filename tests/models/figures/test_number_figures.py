"""Figures of numbers against scikit-learn and SciPy, and by hand."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn import metrics as reference

from transferkit.models.figures.numbers import KEYS, Pairs, number_figures, number_metrics, weighted_kappa


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
    assert weighted_kappa(predicted.astype(float), true.astype(float)) == pytest.approx(expected)
    assert weighted_kappa(np.ones(3), np.ones(3)) is None
    guesses = predicted + generator.uniform(-0.4, 0.4, 300)  # rounded, they are those
    values = number_metrics(guesses[:, None], true[:, None].astype(float), ["grade"], {"grades": [True]})
    assert values["per_target"]["grade"]["kappa"] == pytest.approx(expected)
    assert "kappa" in [figure.key for figure in number_figures(values)]
