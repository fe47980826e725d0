"""LogME against the evidence as it stands in the paper: a normal distribution over all pictures at once."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from transferkit.features.probe.logme import logme


def slow(features, target):
    """The log evidence of one target at the best alpha and beta, by a general optimiser over the dense covariance."""
    # what a bias leaves: everything at right angles to a vector of ones
    basis = np.linalg.svd(np.ones((1, len(target))))[2][1:]
    X, y = basis @ features, basis @ target

    def cost(logs):
        alpha, beta = np.exp(np.clip(logs, -25, 25))
        covariance = np.eye(len(X)) / beta + X @ X.T / alpha
        return -multivariate_normal.logpdf(y, np.zeros(len(y)), covariance, allow_singular=True)

    starts = [(a, b) for a in (-4.0, 0.0, 4.0) for b in (-2.0, 2.0)]
    best = min(minimize(cost, start, method="Nelder-Mead", options={"maxiter": 4000}).fun for start in starts)
    return -best / len(target)


def drawn(rows, width, classes=3, noise=1.0, seed=0):
    generator = np.random.default_rng(seed)
    y = generator.integers(0, classes, rows)
    y[:classes] = np.arange(classes)
    return generator.normal(0, noise, (rows, width)) + generator.normal(0, 1, (classes, width))[y], y


@pytest.mark.parametrize(("rows", "width"), [(40, 5), (30, 60)])
def test_classes_are_as_by_the_slow_way(rows, width):
    X, y = drawn(rows, width, noise=2.0)
    expected = np.mean([slow(X, (y == name).astype(float)) for name in range(3)])
    assert logme(X.astype(np.float32), y) == pytest.approx(expected, abs=2e-4)


def test_numbers_are_as_by_the_slow_way():
    generator = np.random.default_rng(1)
    X = generator.normal(size=(35, 8))
    y = np.stack([X @ generator.normal(size=8) + generator.normal(0, 0.5, 35), generator.normal(size=35)], axis=1)
    assert logme(X, y) == pytest.approx(np.mean([slow(X, column) for column in y.T]), abs=2e-4)


def test_features_that_explain_more_have_more():
    values = [logme(*drawn(200, 16, noise=noise)) for noise in (0.5, 2.0, 8.0)]
    assert values[0] > values[1] > values[2]


def test_the_scale_of_features_and_their_mean_say_nothing():
    X, y = drawn(60, 10)
    assert logme(1000 * X + 5, y) == pytest.approx(logme(X, y), abs=1e-3)


@pytest.mark.parametrize("features", [np.zeros((20, 4)), np.ones((20, 4)), np.eye(20)])
def test_features_of_no_or_all_use_have_a_value(features):
    """Where everything is explained the evidence has no bound; where nothing is, no axis is left."""
    y = np.arange(20) % 2
    assert np.isfinite(logme(features, y))


def test_copies_of_columns_change_nothing():
    """Rank-deficient features, which a fixed-point iteration over all of D stumbles on."""
    X, y = drawn(60, 10)
    assert logme(np.hstack([X, X]) / np.sqrt(2), y) == pytest.approx(logme(X, y), abs=1e-3)


def test_one_class_says_nothing():
    assert np.isnan(logme(np.eye(4), np.zeros(4, dtype=int)))
    assert np.isnan(logme(np.eye(4), np.ones((4, 2))))
