"""Learning and depth curves: nested subsets, accuracies recomputed, intervals against the binomial."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from transferkit.features.probe.curves import depth_curve, learning_curve, nested_subsets
from transferkit.features.probe.probe import fit_probe
from transferkit.features.probe.solver import ClassSolver
from transferkit.models.heads.solver import LabelledRows, ProbeOptions


@pytest.fixture(autouse=True)
def one_thread():
    """The references are small, and threads that wait for each other on busy cores make them many times slower."""
    with threadpool_limits(1):
        yield


def drawn(count, width=8, classes=3, seed=0, distance=0.7):
    generator = np.random.default_rng(seed)
    centre = np.random.default_rng(99).standard_normal((classes, width)) * distance
    y = np.arange(count) % classes
    return LabelledRows((centre[y] + generator.standard_normal((count, width))).astype(np.float32), y, classes)


def first(rows, width):
    return replace(rows, X=rows.X[:, :width])


SOLVER = ClassSolver()
SIMPLE = ProbeOptions(classifier_args={"C": 0.1})
SHARES = (0.1, 0.2, 0.4, 0.8, 1.0)


def test_subsets_are_nested_and_stratified():
    y = np.repeat([0, 1, 2], [100, 50, 3])
    rows = LabelledRows(np.zeros((153, 1)), y, 3)
    subsets = nested_subsets(rows, SHARES, seed=0)
    for small, large in itertools.pairwise(subsets):
        assert set(small) < set(large)
    counts = [np.bincount(y[subset]).tolist() for subset in subsets]
    assert counts == [[10, 5, 1], [20, 10, 1], [40, 20, 1], [80, 40, 2], [100, 50, 3]]
    assert not np.array_equal(subsets[0], nested_subsets(rows, SHARES, seed=1)[0])


def test_groups_are_drawn_whole():
    y = np.arange(120) % 3
    y[::30] = 0  # a few groups hold two classes
    groups = np.array([f"g{number // 12}{number % 3}" for number in range(120)])
    subsets = nested_subsets(LabelledRows(np.zeros((120, 1)), y, 3, groups), (0.3, 0.6), seed=0)
    for subset in subsets:
        assert not set(groups[subset]) & set(np.delete(groups, subset))
        assert set(y[subset]) == {0, 1, 2}
    assert set(subsets[0]) < set(subsets[1])


def test_learning_curve_recomputed():
    train, held = drawn(200), drawn(150, seed=1)
    calls = []
    curve = learning_curve(
        train, held, SOLVER, SIMPLE, shares=(1.0, 0.1, 0.4), repeats=2, seed=5,
        progress=lambda done, total: calls.append((done, total)),
    )  # fmt: skip
    assert [entry["share"] for entry in curve] == [0.1, 0.4, 1.0] and calls == [(n, 5) for n in range(1, 6)]
    for number, entry in enumerate(curve):
        expected = []
        for repeat in range(1 if entry["share"] == 1 else 2):
            subset = nested_subsets(train, (0.1, 0.4, 1.0), seed=5 + repeat)[number]
            probe = fit_probe(train.take(subset), SIMPLE)
            expected.append(float(np.mean(probe.predict(held.X) == held.y)))
        assert [run["acc"] for run in entry["repeats"]] == expected
        assert (entry["acc_min"], entry["acc_max"]) == (min(expected), max(expected))
        assert entry["acc"] == pytest.approx(np.mean(expected))
        assert entry["rows"] == [21, 80, 200][number]  # 6.7 of each class rounds to 7
    json.dumps(curve, allow_nan=False)


def test_more_rows_help():
    train, held = drawn(600, width=40, distance=0.3), drawn(1000, width=40, distance=0.3, seed=1)
    curve = learning_curve(train, held, SOLVER, shares=(0.05, 1.0), repeats=2)
    assert curve[1]["acc"] > curve[0]["acc"] + 0.1
    assert "cross-validated" in curve[1]["repeats"][0]["choice"]["criterion"]


def test_learning_curve_passes_groups_on():
    rows = replace(drawn(60), groups=[f"g{number // 3}" for number in range(60)])
    fitted = []

    class Spy(ClassSolver):
        def fit(self, rows, options, *, seed):
            fitted.append((len(rows), len(rows.groups), len(set(rows.groups))))
            return super().fit(rows, options, seed=seed)

    learning_curve(rows, rows, Spy(), SIMPLE, shares=(0.5, 1.0), repeats=1)
    assert fitted == [(30, 30, 10), (60, 60, 20)]


def test_depth_curve_recomputed():
    train, held = drawn(150), drawn(400, seed=1)
    curve = depth_curve(
        {"early": first(train, 2), "late": train}, {"late": held, "early": first(held, 2)}, SOLVER, seed=2
    )
    assert [(entry["layer"], entry["width"]) for entry in curve] == [("early", 2), ("late", 8)]
    for entry, width in zip(curve, (2, 8), strict=True):
        probe = fit_probe(first(train, width), seed=2)
        acc = float(np.mean(probe.predict(held.X[:, :width]) == held.y))
        assert entry["acc"] == acc and entry["choice"] == probe.choice
        half = 1.96 * np.sqrt(acc * (1 - acc) / 400)
        assert entry["acc_low"] == pytest.approx(acc - half, abs=0.01)
        assert entry["acc_high"] == pytest.approx(acc + half, abs=0.01)
    assert curve[1]["acc"] > curve[0]["acc"]
    json.dumps(curve, allow_nan=False)


def test_interval_by_groups_is_that_of_the_groups():
    """Five equal rows per group are no more evidence than one: the interval is sqrt(5) times as wide."""
    train, held = drawn(150), drawn(100, seed=1).take(np.repeat(np.arange(100), 5))
    width = []
    for groups in (None, np.repeat([f"g{number}" for number in range(100)], 5)):
        entry = depth_curve({"a": train}, {"a": replace(held, groups=groups)}, SOLVER, SIMPLE)[0]
        width.append(entry["acc_high"] - entry["acc_low"])
    assert width[1] / width[0] == pytest.approx(5**0.5, rel=0.15)
