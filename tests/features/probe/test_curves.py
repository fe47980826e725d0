"""Learning and depth curves: nested subsets, accuracies recomputed, intervals against the binomial."""

from __future__ import annotations

import functools
import itertools
import json

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from transferkit.core.errors import ConfigError
from transferkit.features.probe.curves import depth_curve, learning_curve, nested_subsets
from transferkit.features.probe.probe import fit_probe


@pytest.fixture(autouse=True)
def one_thread():
    """The references are small, and threads that wait for each other on busy cores make them many times slower."""
    with threadpool_limits(1):
        yield


def rows(count, width=8, classes=3, seed=0, distance=0.7):
    generator = np.random.default_rng(seed)
    centre = np.random.default_rng(99).standard_normal((classes, width)) * distance
    y = np.arange(count) % classes
    return (centre[y] + generator.standard_normal((count, width))).astype(np.float32), y


SIMPLE = functools.partial(fit_probe, classifier_args={"C": 0.1})
SHARES = (0.1, 0.2, 0.4, 0.8, 1.0)


def test_subsets_are_nested_and_stratified():
    y = np.repeat([0, 1, 2], [100, 50, 3])
    subsets = nested_subsets(y, None, SHARES, seed=0)
    for small, large in itertools.pairwise(subsets):
        assert set(small) < set(large)
    counts = [np.bincount(y[subset]).tolist() for subset in subsets]
    assert counts == [[10, 5, 1], [20, 10, 1], [40, 20, 1], [80, 40, 2], [100, 50, 3]]
    assert not np.array_equal(subsets[0], nested_subsets(y, None, SHARES, seed=1)[0])


def test_groups_are_drawn_whole():
    y = np.arange(120) % 3
    y[::30] = 0  # a few groups hold two classes
    groups = np.array([f"g{number // 12}{number % 3}" for number in range(120)])
    subsets = nested_subsets(y, groups, (0.3, 0.6), seed=0)
    for subset in subsets:
        assert not set(groups[subset]) & set(np.delete(groups, subset))
        assert set(y[subset]) == {0, 1, 2}
    assert set(subsets[0]) < set(subsets[1])


def test_learning_curve_recomputed():
    X, y = rows(200)
    X_eval, y_eval = rows(150, seed=1)
    calls = []
    curve = learning_curve(
        X, y, X_eval, y_eval, 3, shares=(1.0, 0.1, 0.4), repeats=2, seed=5, fit=SIMPLE,
        progress=lambda done, total: calls.append((done, total)),
    )  # fmt: skip
    assert [entry["share"] for entry in curve] == [0.1, 0.4, 1.0] and calls == [(n, 5) for n in range(1, 6)]
    for number, entry in enumerate(curve):
        expected = []
        for repeat in range(1 if entry["share"] == 1 else 2):
            subset = nested_subsets(y, None, (0.1, 0.4, 1.0), seed=5 + repeat)[number]
            probe = fit_probe(X[subset], y[subset], 3, classifier_args={"C": 0.1})
            expected.append(float(np.mean(probe.predict(X_eval) == y_eval)))
        assert [run["acc"] for run in entry["repeats"]] == expected
        assert (entry["acc_min"], entry["acc_max"]) == (min(expected), max(expected))
        assert entry["acc"] == pytest.approx(np.mean(expected))
        assert entry["rows"] == [21, 80, 200][number]  # 6.7 of each class rounds to 7
    json.dumps(curve, allow_nan=False)


def test_more_rows_help():
    X, y = rows(600, width=40, distance=0.3)
    X_eval, y_eval = rows(1000, width=40, distance=0.3, seed=1)
    curve = learning_curve(X, y, X_eval, y_eval, 3, shares=(0.05, 1.0), repeats=2)
    assert curve[1]["acc"] > curve[0]["acc"] + 0.1
    assert "cross-validated" in curve[1]["repeats"][0]["choice"]["criterion"]


def test_learning_curve_passes_groups_on():
    X, y = rows(60)
    groups = [f"g{number // 3}" for number in range(60)]
    seen = []

    def fit(X, y, num_classes, *, groups, seed):
        seen.append((len(X), len(groups), len(set(groups))))
        return SIMPLE(X, y, num_classes, groups=groups, seed=seed)

    learning_curve(X, y, X, y, 3, shares=(0.5, 1.0), repeats=1, groups=groups, fit=fit)
    assert seen == [(30, 30, 10), (60, 60, 20)]


def test_depth_curve_recomputed():
    X, y = rows(150)
    X_eval, y_eval = rows(400, seed=1)
    train = {"early": X[:, :2], "late": X}
    curve = depth_curve(train, y, {"late": X_eval, "early": X_eval[:, :2]}, y_eval, 3, seed=2)
    assert [(entry["layer"], entry["width"]) for entry in curve] == [("early", 2), ("late", 8)]
    for entry, width in zip(curve, (2, 8), strict=True):
        probe = fit_probe(X[:, :width], y, 3, seed=2)
        acc = float(np.mean(probe.predict(X_eval[:, :width]) == y_eval))
        assert entry["acc"] == acc and entry["choice"] == probe.choice
        half = 1.96 * np.sqrt(acc * (1 - acc) / 400)
        assert entry["acc_low"] == pytest.approx(acc - half, abs=0.01)
        assert entry["acc_high"] == pytest.approx(acc + half, abs=0.01)
    assert curve[1]["acc"] > curve[0]["acc"]
    json.dumps(curve, allow_nan=False)


def test_interval_by_groups_is_that_of_the_groups():
    """Five equal rows per group are no more evidence than one: the interval is sqrt(5) times as wide."""
    X, y = rows(150)
    X_eval, y_eval = rows(100, seed=1)
    X_eval, y_eval = np.repeat(X_eval, 5, axis=0), np.repeat(y_eval, 5)
    groups = np.repeat([f"g{number}" for number in range(100)], 5)
    width = []
    for eval_groups in (None, groups):
        entry = depth_curve({"a": X}, y, {"a": X_eval}, y_eval, 3, eval_groups=eval_groups, fit=SIMPLE)[0]
        width.append(entry["acc_high"] - entry["acc_low"])
    assert width[1] / width[0] == pytest.approx(5**0.5, rel=0.15)


def test_guards():
    X, y = rows(30)
    with pytest.raises(ConfigError, match=r"\(1\) shares are \[0, 0.5\]; .*; \(2\) repeats is 0"):
        learning_curve(X, y, X, y, 3, shares=(0, 0.5), repeats=0)
    with pytest.raises(ConfigError, match="30 rows of features and 29 labels"):
        learning_curve(X, y[1:], X, y, 3)
    with pytest.raises(ConfigError, match="evaluation features have 0 rows for 0 labels"):
        learning_curve(X, y, X[:0], y[:0], 3)
    with pytest.raises(ConfigError, match=r"evaluation features have the shape \(30, 7\); expected \(8,\)"):
        learning_curve(X, y, X[:, 1:], y, 3)
    with pytest.raises(ConfigError, match=r"layers \['a'\], evaluation features \['b'\]; expected the same"):
        depth_curve({"a": X}, y, {"b": X}, y, 3)
    with pytest.raises(ConfigError, match="layer 'a' has 30 rows for 29 labels"):
        depth_curve({"a": X}, y[1:], {"a": X}, y, 3)
    with pytest.raises(ConfigError, match=r"\(1\) there are 3 evaluation groups for 30 labels.*; \(2\) draws is 9"):
        depth_curve({"a": X}, y, {"a": X}, y, 3, eval_groups=["a", "b", "c"], draws=9)
