"""Held-out predictions: each row by the model of the fold that did not see it."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from transferkit.features.probe import out_of_fold
from transferkit.features.probe.out_of_fold import STRENGTHS, fit_folded
from transferkit.models.heads.solver import LabelledRows


def rows(count=120, classes=3, width=8, seed=0, groups=None):
    rng = np.random.default_rng(seed)
    y = np.arange(count) % classes
    X = rng.normal(size=(count, width)) + 1.5 * np.eye(classes, width)[y]
    return LabelledRows(X.astype(np.float64), y, classes, groups)


def test_each_row_is_predicted_by_a_model_that_did_not_see_it():
    data = rows()
    probe = fit_folded(data, seed=1)
    assert sorted(np.concatenate([held for _, held in probe.folds])) == list(range(len(data)))
    probs = probe.probs(data.X)
    for train, held in probe.folds:
        assert not set(train) & set(held)
        scaler = StandardScaler().fit(data.X[train])
        C = probe.choice["C"] * len(data) / len(train)
        own = LogisticRegression(C=C, max_iter=1000, tol=1e-8).fit(scaler.transform(data.X[train]), data.y[train])
        np.testing.assert_allclose(probs[held], own.predict_proba(scaler.transform(data.X[held])), atol=5e-3)


def test_other_views_are_predicted_by_the_same_models():
    data = rows()
    probe = fit_folded(data)
    moved = data.X.copy()
    moved[7] += 1.0
    probs, others = probe.probs(data.X), probe.probs(moved)
    assert (np.flatnonzero((probs != others).any(axis=1)) == [7]).all()


def test_wrong_labels_make_the_regularisation_stronger():
    data = rows(600)
    noisy = data.y.copy()
    noisy[::4] = (noisy[::4] + 1) % 3
    strength = {
        name: fit_folded(LabelledRows(data.X, y, 3)).choice["C"] for name, y in (("clean", data.y), ("noisy", noisy))
    }
    assert strength["noisy"] < strength["clean"]
    assert all(np.isclose(C * 600, STRENGTHS).any() for C in strength.values())


def test_groups_stay_together_and_a_class_of_one_group_is_not_judged():
    groups = [f"g{number // 4}" for number in range(120)]
    y = np.array([number // 4 % 3 for number in range(120)])
    X = np.random.default_rng(0).normal(size=(120, 5))
    y[:4] = 3
    probe = fit_folded(LabelledRows(X, y, 4, groups))
    for train, held in probe.folds:
        assert not {groups[at] for at in train} & {groups[at] for at in held}
    probs = probe.probs(X)
    assert np.isnan(probs[:4]).all() and not np.isnan(probs[4:]).any()


def test_too_few_rows_are_not_held_out():
    assert fit_folded(LabelledRows(np.eye(2), np.array([0, 1]), 2)) is None


def test_of_many_rows_some_are_fitted_on(monkeypatch):
    monkeypatch.setattr(out_of_fold, "MOST_ROWS", 30)
    seen = []
    fit = out_of_fold.fit_path
    monkeypatch.setattr(
        out_of_fold, "fit_path", lambda X, *rest, **more: (seen.append(len(X)), fit(X, *rest, **more))[1]
    )
    counted = []
    probe = fit_folded(rows(200), progress=lambda done, total: counted.append((done, total)))
    assert seen == [30] * 5 and counted == [(number, 5) for number in range(1, 6)]
    assert np.allclose(probe.probs(rows(200).X).sum(axis=1), 1)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_seed_gives_the_same(seed):
    data = rows()
    assert (fit_folded(data, seed=seed).probs(data.X) == fit_folded(data, seed=seed).probs(data.X)).all()
