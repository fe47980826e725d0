"""A probe on held-out pictures: intervals that hold what they promise, and figures of every task that has a solver."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

from transferkit.core.errors import DataError
from transferkit.core.targets import TargetSpec
from transferkit.models.details import Answered
from transferkit.models.task import task_named
from transferkit.results.advise.scoring import Scored, behind, make_folds, score_features, widening

CLASSES = TargetSpec(("a", "b", "c"))


def features(rows, noise, seed=0, width=6):
    """Three classes around three points; the noise says how well they can be told."""
    generator = np.random.default_rng(seed)
    y = np.arange(rows) % 3
    centres = np.random.default_rng(99).normal(0, 1, (3, width))
    return (centres[y] + generator.normal(0, noise, (rows, width))).astype(np.float32), y


def scored(X, y, *, units=None, seed=0, name="classification", spec=CLASSES, strata=None):
    units = np.arange(len(y)) if units is None else units
    folds = make_folds(y if strata is None else strata, units, folds=5, seed=seed)
    return score_features(X, y, units, folds, task_named(name).of(spec), spec, seed=seed)


def answered(right):
    """What a classifier says that is right on some pictures, as `Scored`."""
    targets = torch.zeros(len(right), dtype=torch.int64)
    probs = torch.full((len(right), 3), 0.1)
    probs[torch.arange(len(right)), torch.where(torch.as_tensor(right), 0, 1)] = 0.8
    task = task_named("classification")
    figures = tuple(task.scores.figures(task.scores.measure(probs, targets, CLASSES)))
    return Scored(Answered(probs, targets, CLASSES), figures, 0.0, 1.0)


def test_accuracy_is_about_scikit_learns():
    X, y = features(300, 1.0)
    expected = cross_val_score(LogisticRegression(max_iter=1000), X, y, cv=5).mean()
    assert scored(X, y).figure.key == "acc"
    assert scored(X, y).figure.value == pytest.approx(expected, abs=0.03)


def test_better_features_rank_before_worse_ones():
    ranks = [scored(*features(150, noise)).rank for noise in (0.5, 1.5, 5.0)]
    assert ranks[0] > ranks[1] > ranks[2]


def test_no_picture_has_a_say_in_what_is_said_of_it():
    """Features that give away the row and nothing else: a model that has seen a picture would know it."""
    y = np.random.default_rng(0).integers(0, 3, 90)
    assert scored(np.eye(90, dtype=np.float32), y).figure.value < 0.55


def test_groups_stay_whole():
    """Ten copies of each picture with labels by chance: torn apart they would be known by heart."""
    generator = np.random.default_rng(0)
    y = np.repeat(np.arange(60) % 3, 10)
    X = np.repeat(generator.normal(size=(60, 40)), 10, axis=0).astype(np.float32)
    units = np.repeat(np.arange(60), 10)
    assert scored(X, y, units=units).figure.value < 0.6
    assert scored(X, y).figure.value > 0.9  # what it would be without groups


def test_groups_widen_intervals():
    assert widening(np.arange(7)) == 1.0
    assert widening(np.repeat(np.arange(5), 4)) == pytest.approx(2.0)
    X, y = features(120, 2.0)
    X, y, units = np.repeat(X, 3, axis=0), np.repeat(y, 3), np.repeat(np.arange(120), 3)
    (low, high), (once_low, once_high) = scored(X, y, units=units).figure.ci, scored(X[::3], y[::3]).figure.ci
    assert high - low == pytest.approx(once_high - once_low, rel=0.35)


@pytest.mark.slow
def test_nine_intervals_of_ten_hold_the_accuracy_on_new_pictures():
    """The true accuracy of a probe of so many pictures, from many new ones."""
    held, total = 0, 40
    for seed in range(total):
        X, y = features(150, 1.5, seed=seed)
        new, truth = features(3000, 1.5, seed=10_000 + seed)
        own = LogisticRegression(C=0.2, max_iter=500).fit(X, y).score(new, truth)
        low, high = scored(X, y, seed=seed).figure.ci
        held += low <= own <= high
    assert held >= 0.85 * total


def test_how_far_behind_is_by_the_same_pictures():
    """Two that agree on all but a few pictures have a narrow interval between them, whatever their own ones are."""
    right = np.random.default_rng(0).random(400) < 0.6
    other = right.copy()
    other[np.flatnonzero(right)[:20]] = False
    gap = behind(answered(right), answered(other), task_named("classification"))
    assert gap.lead == pytest.approx(0.05)
    assert gap.low > 0.02
    assert gap.high - gap.low < 0.05
    own = answered(right).figure.ci
    assert own[1] - own[0] > 0.09


def test_the_interval_of_a_gap_holds_it():
    held, total = 0, 100
    for seed in range(total):
        draw = np.random.default_rng(seed).random((3, 300))
        hard = draw[0]
        first = np.where(draw[1] < 0.7, hard, draw[2]) < 0.75
        second = hard < 0.70
        gap = behind(answered(first), answered(second), task_named("classification"), seed=seed)
        held += gap.low <= 0.05 <= gap.high
    assert held >= 0.88 * total


def test_labels_are_ranked_by_their_mean_average_precision():
    generator = np.random.default_rng(0)
    y = (generator.random((120, 3)) < 0.4).astype(np.float32)
    X = (y @ generator.normal(size=(3, 8)) + generator.normal(0, 0.4, (120, 8))).astype(np.float32)
    strata = y.argmax(axis=1)
    good, bad = (scored(rows, y, name="multilabel", spec=TargetSpec(("a", "b", "c")), strata=strata)
                 for rows in (X, generator.normal(size=X.shape).astype(np.float32)))  # fmt: skip
    assert good.figure.key == "map"
    assert good.rank > bad.rank
    gap = behind(good, bad, task_named("multilabel"))
    assert gap.low > 0
    assert gap.lead == pytest.approx(good.figure.value - bad.figure.value, abs=1e-6)


@pytest.mark.parametrize("count", [1, 2])
def test_numbers_are_ranked_by_their_error(count):
    generator = np.random.default_rng(0)
    X = generator.normal(size=(120, 6)).astype(np.float32)
    y = (X @ generator.normal(size=(6, count)) * 10 + 50).astype(np.float32)
    facts = {"mean": y.mean(axis=0).tolist(), "scale": y.std(axis=0).tolist()}
    spec = TargetSpec(tuple("ab"[:count]), facts)
    strata = np.zeros(120, dtype=np.int64)
    good = scored(X, y, name="regression", spec=spec, strata=strata)
    bad = scored(X[:, :1], y, name="regression", spec=spec, strata=strata)
    assert good.figure.key == "rmse"
    assert not good.figure.higher_is_better
    assert good.rank > bad.rank
    gap = behind(good, bad, task_named("regression").of(spec))
    assert 0 < gap.low <= gap.lead <= gap.high
    assert gap.lead == pytest.approx(bad.figure.value - good.figure.value, rel=0.01)


def test_too_few_pictures_are_told():
    for strata in (np.array([0, 1]), np.array([0])):
        with pytest.raises(DataError, match="too few to hold any out"):
            make_folds(strata, np.arange(len(strata)), folds=5, seed=0)


def test_the_only_picture_of_a_class_is_not_measured():
    X, y = features(60, 1.0)
    y = np.append(y[:59] % 2, 2)
    result = scored(X, y)
    assert len(result.answered.targets) == 59


def test_folds_are_the_same_again_and_others_by_seed():
    y, units = np.arange(60) % 3, np.arange(60)
    one, same, other = (make_folds(y, units, folds=5, seed=seed) for seed in (0, 0, 1))
    assert all((a[1] == b[1]).all() for a, b in zip(one, same, strict=True))
    assert any(len(a[1]) != len(b[1]) or (a[1] != b[1]).any() for a, b in zip(one, other, strict=True))
