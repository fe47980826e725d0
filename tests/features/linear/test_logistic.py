"""Logistic regression against scikit-learn's own, and its parts against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from transferkit.core.errors import TransferkitWarning
from transferkit.features.linear.logistic import MISSING_LOGIT, LinearModel, Standardiser, _Problem, fit_path, softmax


@pytest.fixture(autouse=True)
def one_thread():
    """The references are small, and threads that wait for each other on busy cores make them many times slower."""
    with threadpool_limits(1):
        yield


def rows(count, width, classes, seed=0, dtype=np.float64):
    """Correlated features whose classes overlap."""
    generator = np.random.default_rng(seed)
    mix = generator.standard_normal((width, width)) * (np.arange(1, width + 1) ** -0.6)[:, None]
    y = np.arange(count) % classes
    X = (0.4 * generator.standard_normal((classes, width))[y] + generator.standard_normal((count, width))) @ mix
    return StandardScaler().fit_transform(X).astype(dtype), y


def reference(X, y, C, **fit):
    return LogisticRegression(C=C, tol=1e-10, max_iter=100_000).fit(X, y, **fit)


SHAPES = [(300, 20, 4), (60, 100, 4), (200, 20, 2), (50, 90, 2)]  # more and fewer rows than features; both forms


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_scikit_learn(shape, weighted):
    X, y = rows(*shape)
    weight = np.random.default_rng(1).uniform(0, 3, len(X)) if weighted else None
    Cs = (1e-3, 0.1, 10.0)
    for C, model in zip(Cs, fit_path(X, y, shape[2], Cs, sample_weight=weight, tol=1e-9), strict=True):
        expected = reference(X, y, C, sample_weight=weight)
        np.testing.assert_allclose(model.probs(X), expected.predict_proba(X), atol=1e-5)
        if shape[2] == 2:  # a softmax sees the difference of two rows only
            np.testing.assert_allclose(model.weight[1] - model.weight[0], expected.coef_[0], rtol=1e-5, atol=2e-5)
            np.testing.assert_allclose(model.bias[1] - model.bias[0], expected.intercept_[0], atol=1e-5)
        else:
            np.testing.assert_allclose(model.weight, expected.coef_, rtol=1e-5, atol=2e-5)
            np.testing.assert_allclose(model.bias, expected.intercept_ - expected.intercept_.mean(), atol=1e-5)


def test_the_comparison_can_fail():
    """The halved penalty of a two-row softmax would be seen."""
    X, y = rows(200, 20, 2)
    wrong = fit_path(X, y, 2, [0.2], tol=1e-9)[0]
    assert np.abs(wrong.probs(X) - reference(X, y, 0.1).predict_proba(X)).max() > 1e-3


def test_balanced_weights_equal_scikit_learns():
    X, y = rows(300, 20, 3)
    X, y = X[(y > 0) | (np.arange(300) % 4 == 0)], y[(y > 0) | (np.arange(300) % 4 == 0)]
    weight = (len(y) / (3 * np.bincount(y)))[y]
    expected = LogisticRegression(C=0.1, class_weight="balanced", tol=1e-10, max_iter=100_000).fit(X, y)
    np.testing.assert_allclose(
        fit_path(X, y, 3, [0.1], sample_weight=weight, tol=1e-9)[0].probs(X), expected.predict_proba(X), atol=1e-6
    )


def mean_objective(X, y, weight, bias, C):
    own = -np.log(softmax(X @ weight.T + bias)[np.arange(len(y)), y])
    return own.mean() + 0.5 / (C * len(y)) * np.square(weight).sum()


def test_float32_comes_within_1e_7_of_the_minimum():
    """At the default tolerance, closer than scikit-learn's own default."""
    X, y = rows(300, 60, 5)
    for C in (1e-3, 1e-2, 1e-1):
        best = reference(X, y, C)
        least = mean_objective(X, y, best.coef_, best.intercept_, C)
        model = fit_path(X.astype(np.float32), y, 5, [C])[0]
        assert 0 <= mean_objective(X, y, model.weight, model.bias, C) - least + 1e-12 < 1e-7


@pytest.mark.parametrize("classes", [2, 4])
def test_gradient_by_finite_differences(classes):
    X, y = rows(40, 6, classes)
    problem = _Problem(X, y, np.random.default_rng(2).uniform(0.5, 2, 40))
    generator = np.random.default_rng(3)
    state = problem.state + generator.standard_normal(problem.state.shape)
    _, gradient = problem.loss(state, 0.3)
    for index in np.ndindex(state.shape):
        step = np.zeros_like(state)
        step[index] = 1e-6
        slope = (problem.loss(state + step, 0.3)[0] - problem.loss(state - step, 0.3)[0]) / 2e-6
        assert gradient[index] == pytest.approx(slope, abs=1e-7)


def test_the_order_of_the_path_is_the_callers_and_starts_do_not_matter():
    X, y = rows(200, 20, 3)
    models = fit_path(X, y, 3, [1.0, 0.01, 1.0], tol=1e-9)
    np.testing.assert_array_equal(models[0].weight, models[2].weight)
    assert np.square(models[1].weight).sum() < np.square(models[0].weight).sum()
    np.testing.assert_allclose(models[0].weight, fit_path(X, y, 3, [1.0], tol=1e-9)[0].weight, atol=1e-6)


def test_missing_classes_keep_their_index():
    X, y = rows(200, 20, 3)
    spread = np.array([1, 3, 4])[y]
    alone, model = fit_path(X, y, 3, [0.1])[0], fit_path(X, spread, 6, [0.1])[0]
    probs = model.probs(X)
    np.testing.assert_allclose(probs[:, [1, 3, 4]], alone.probs(X), atol=1e-12)
    assert probs[:, [0, 2, 5]].max() < 1e-13 and not model.weight[[0, 2, 5]].any()
    assert (model.bias[[0, 2, 5]] == MISSING_LOGIT).all()
    # far away too: the mean of the other logits is 0 everywhere, so the largest is at least 0
    far = 1000 * X
    np.testing.assert_allclose(model.logits(far)[:, [1, 3, 4]].mean(axis=1), 0, atol=1e-8)
    assert np.isin(model.logits(far).argmax(axis=1), [1, 3, 4]).all()


def test_two_classes_of_three_are_fitted_as_two():
    X, y = rows(200, 20, 2)
    model = fit_path(X, 2 * y, 3, [0.1], tol=1e-9)[0]
    np.testing.assert_allclose(model.probs(X)[:, [0, 2]], reference(X, y, 0.1).predict_proba(X), atol=1e-6)


def test_rows_of_weight_zero_do_not_count():
    X, y = rows(200, 20, 3)
    weight = np.where((y == 2) | (np.arange(200) < 20), 0.0, 1.0)
    model = fit_path(X, y, 3, [0.1], sample_weight=weight)[0]
    expected = fit_path(X[weight > 0], y[weight > 0], 3, [0.1])[0]
    np.testing.assert_array_equal(model.weight, expected.weight)
    assert model.bias[2] == MISSING_LOGIT


def test_folded_standardiser_equals_the_pipeline():
    generator = np.random.default_rng(0)
    X, y = rows(300, 20, 4)
    X = X * generator.uniform(0.01, 100, 20) + generator.uniform(-50, 50, 20)
    X[:, 3] = 7.25  # constant
    standardiser = Standardiser.fit(X)
    model = standardiser.fold(fit_path(standardiser.transform(X), y, 4, [0.1], tol=1e-9)[0])
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-10, max_iter=100_000)).fit(X, y)
    np.testing.assert_allclose(model.probs(X), pipeline.predict_proba(X), atol=1e-6)
    assert standardiser.scale[3] == 1 and standardiser.transform(X)[:, 3].any() == 0


def test_weighted_standardiser_equals_repeated_rows():
    X, _ = rows(50, 5, 2)
    counts = np.random.default_rng(0).integers(0, 4, 50)
    repeated = np.repeat(X, counts, axis=0)
    standardiser = Standardiser.fit(X, counts.astype(float))
    np.testing.assert_allclose(standardiser.mean, repeated.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(standardiser.scale, repeated.std(axis=0), atol=1e-12)


def test_dtypes_stay():
    X, y = rows(60, 5, 3, dtype=np.float32)
    standardiser = Standardiser.fit(X)
    assert standardiser.transform(X).dtype == np.float32
    model = fit_path(X, y, 3, [0.1])[0]
    assert model.logits(X).dtype == np.float32 and model.probs(X.astype(np.float64)).dtype == np.float64


def test_a_single_row_becomes_two():
    model = LinearModel.from_rows(np.array([[2.0, 4.0]]), np.array([1.0]), np.array([0, 1]), 2)
    np.testing.assert_array_equal(model.weight, [[-1, -2], [1, 2]])
    np.testing.assert_array_equal(model.bias, [-0.5, 0.5])


def test_no_convergence_is_a_warning():
    X, y = rows(200, 20, 3)
    with pytest.warns(TransferkitWarning, match=r"logistic regression at C = 10 stopped after 2 iterations"):
        fit_path(X, y, 3, [10.0], max_iter=2)
