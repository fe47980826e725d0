"""The solver of numbers against scikit-learn's `Ridge` behind a `StandardScaler`, and what fine-tuning starts from."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from transferkit.core.errors import ConfigError
from transferkit.features.linear.ridge import STRENGTHS, RidgeSolver, _folds
from transferkit.features.linear.softening import evened_out
from transferkit.models.answers.regression import Units
from transferkit.models.heads.solver import HeadState, LabelledRows, ProbeOptions


def rows_of(count=80, width=12, targets=2, *, seed=0, **more):
    generator = np.random.default_rng(seed)
    X = (generator.normal(size=(count, width)) * generator.uniform(0.01, 5, width) + 3).astype(np.float32)
    y = X @ generator.normal(size=(width, targets)) / width + generator.normal(size=(count, targets))
    return LabelledRows(X, y.astype(np.float32), targets, **more)


def reference(rows, alphas, units):
    """Weights and intercepts by scikit-learn, on raw features."""
    weight = np.ones(len(rows)) if rows.weight is None else rows.weight
    X, y = rows.X.astype(float), (rows.y.astype(float) - np.array(units.mean)) / np.array(units.scale)
    scaler = StandardScaler().fit(X, sample_weight=weight)
    fits = [Ridge(alpha=a, tol=1e-12).fit(scaler.transform(X), y[:, t], sample_weight=weight)
            for t, a in enumerate(alphas)]  # fmt: skip
    W = np.stack([fit.coef_ / scaler.scale_ for fit in fits])
    return W, np.array([fit.intercept_ for fit in fits]) - W @ scaler.mean_


@pytest.mark.parametrize(("count", "width"), [(80, 12), (30, 60)])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_scikit_learn(count, width, weighted):
    weight = np.random.default_rng(1).uniform(0.2, 3, count) if weighted else None
    rows = rows_of(count, width, weight=weight)
    units = Units((1.0, -2.0), (3.0, 0.5))
    fitted = RidgeSolver(units=units).fit(rows)
    W, b = reference(rows, fitted.choice["alpha"], units)
    np.testing.assert_allclose(fitted.weight, W, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(fitted.bias, b, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(fitted.outputs(rows.X), rows.X @ W.T + b, rtol=1e-3, atol=1e-4)
    head = fitted.head()
    linear = torch.nn.Linear(width, 2)
    linear.load_state_dict({name.removeprefix("linear."): tensor for name, tensor in head.tensors.items()})
    np.testing.assert_allclose(linear(torch.from_numpy(rows.X)).detach(), fitted.outputs(rows.X), rtol=1e-3, atol=1e-4)


def test_the_strength_is_that_of_the_lowest_cross_validated_error():
    """Worked out again with scikit-learn, fold by fold."""
    rows = rows_of(60, 40)
    fitted = RidgeSolver().fit(rows, seed=3)
    X, y = rows.X.astype(float), rows.y.astype(float)
    errors = np.zeros((len(STRENGTHS), 2))
    for held in _folds(rows.units(), 5, 3):
        scaler = StandardScaler().fit(X[~held])
        for at, strength in enumerate(STRENGTHS):
            model = Ridge(alpha=strength * (~held).sum()).fit(scaler.transform(X[~held]), y[~held])
            errors[at] += np.square(y[held] - model.predict(scaler.transform(X[held]))).sum(axis=0)
    expected = np.array(STRENGTHS)[errors.argmin(axis=0)] * 60
    np.testing.assert_allclose(fitted.choice["alpha"], expected)
    np.testing.assert_allclose([row["loss"] for row in fitted.choice["curve"]], errors.mean(axis=1) / 60, rtol=1e-6)


def test_groups_are_never_torn():
    groups = np.repeat([f"patient {number}" for number in range(9)], 4)
    for held in _folds(LabelledRows(np.zeros((36, 1)), np.zeros((36, 1)), 1, groups).units(), 5, 0):
        assert len(set(groups[held]) & set(groups[~held])) == 0
    twice = rows_of(40)
    double = LabelledRows(np.repeat(twice.X, 2, 0), np.repeat(twice.y, 2, 0), 2, np.repeat(np.arange(40), 2))
    once, both = RidgeSolver().fit(twice, seed=0), RidgeSolver().fit(double, seed=0)
    np.testing.assert_allclose(np.array(both.choice["alpha"]), 2 * np.array(once.choice["alpha"]))
    np.testing.assert_allclose(both.weight, once.weight, rtol=1e-6)


def test_a_hundred_targets_and_a_feature_that_never_varies():
    rows = rows_of(200, 64, 100)
    rows.X[:, 5] = 7.0
    fitted = RidgeSolver().fit(rows)
    assert fitted.weight.shape == (100, 64)
    assert np.isfinite(fitted.weight).all()
    assert np.abs(fitted.weight[:, 5]).max() < 1e-9


def test_what_it_refuses():
    options = ProbeOptions("knn", {"C": 1}, "balanced")
    with pytest.raises(ConfigError, match="classifier is 'knn'.*class_weight.*no argument 'C'"):
        RidgeSolver().fit(rows_of(), options)
    with pytest.raises(ConfigError, match="alpha is -1"):
        RidgeSolver().fit(rows_of(), ProbeOptions(classifier_args={"alpha": -1}))
    assert RidgeSolver().fit(rows_of(), ProbeOptions(classifier_args={"alpha": 2.0})).choice["alpha"] == [2.0, 2.0]


def test_fine_tuning_starts_without_large_weights_on_nearly_dead_features():
    generator = np.random.default_rng(0)
    X = (generator.normal(size=(100, 3)) * [1.0, 2.0, 1e-3] + 5).astype(np.float32)
    head = HeadState("linear", {}, {"linear.weight": torch.tensor([[1.0, 1.0, 700.0]]),
                                    "linear.bias": torch.tensor([0.5])})  # fmt: skip
    even = evened_out(head, X).tensors
    spread = X.std(axis=0)
    expected = torch.tensor([[1.0, 1.0, 700.0 * float(spread[2] / spread[0])]])
    torch.testing.assert_close(even["linear.weight"], expected, rtol=1e-4, atol=0)
    before, after = (torch.from_numpy(X) @ one["linear.weight"].T + one["linear.bias"] for one in (head.tensors, even))
    assert float(after.mean()) == pytest.approx(float(before.mean()), abs=2e-3)
    assert float((after - before).std()) < 0.8  # 700 thousandths
