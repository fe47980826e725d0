"""Logistic regressions of many labels, against scikit-learn's."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler

from transferkit.core.errors import ConfigError
from transferkit.features.linear.labels import LabelSolver
from transferkit.features.linear.one_vs_rest import STRENGTHS, choose_strengths, iterative_folds
from transferkit.models.heads.solver import LabelledRows, ProbeOptions


def made(count=160, width=12, labels=4, seed=0):
    """Correlated features, and labels that depend on them; the last label is rare."""
    rng = np.random.default_rng(seed)
    X = (rng.standard_normal((count, width)) @ rng.standard_normal((width, width)) + 3).astype(np.float32)
    z = (X - X.mean(axis=0)) @ rng.standard_normal((width, labels)) / 3 + rng.logistic(size=(count, labels))
    cut = np.quantile(z, [0.6] * (labels - 1) + [0.95], axis=0).diagonal()
    return X, (z > cut).astype(np.float32)


def probs(fitted, X):
    return 1 / (1 + np.exp(-fitted.outputs(X.astype(np.float64)).astype(np.float64)))


def test_every_label_is_one_against_the_rest_of_scikit_learn():
    X, y = made()
    fitted = LabelSolver().fit(LabelledRows(X, y, 4))
    Z = StandardScaler().fit_transform(X.astype(np.float64))
    for label, strength in enumerate(fitted.choice["C"]):
        rest = OneVsRestClassifier(LogisticRegression(C=strength, tol=1e-10, max_iter=10_000)).fit(Z, y[:, [label]])
        assert np.abs(rest.predict_proba(Z)[:, 1] - probs(fitted, X)[:, label]).max() < 1e-4


def test_more_features_than_rows():
    X, y = made(count=30, width=80, labels=2)
    fitted = LabelSolver().fit(LabelledRows(X, y, 2), ProbeOptions(classifier_args={"C": 0.01}))
    Z = StandardScaler().fit_transform(X.astype(np.float64))
    rest = LogisticRegression(C=0.01, tol=1e-10, max_iter=10_000).fit(Z, y[:, 0])
    assert np.abs(rest.predict_proba(Z)[:, 1] - probs(fitted, X)[:, 0]).max() < 1e-4


@pytest.mark.parametrize("weighted", [False, True])
def test_balanced_labels_are_those_of_scikit_learn(weighted):
    X, y = made()
    weight = np.random.default_rng(1).integers(0, 4, len(X)).astype(float) if weighted else None
    options = ProbeOptions(classifier_args={"C": 0.05}, class_weight="balanced")
    fitted = LabelSolver().fit(LabelledRows(X, y, 4, weight=weight), options)
    mine = np.ones(len(X)) if weight is None else weight
    Z = StandardScaler().fit(X.astype(np.float64), sample_weight=mine).transform(X.astype(np.float64))
    for label in range(4):
        positives = mine @ y[:, label]
        shares = np.where(y[:, label] > 0, 1 / positives, 1 / (mine.sum() - positives)) * mine.sum() / 2
        rest = LogisticRegression(C=0.05, tol=1e-10, max_iter=10_000).fit(Z, y[:, label], sample_weight=mine * shares)
        assert np.abs(rest.predict_proba(Z)[:, 1] - probs(fitted, X)[:, label]).max() < 1e-4


def test_the_strength_is_that_of_the_lowest_loss_of_scikit_learn_in_the_same_folds():
    X, y = made(count=200)
    truth, units = y > 0.5, np.arange(len(X))
    held = iterative_folds(truth, units, 4, seed=0)
    chosen, losses = choose_strengths(
        X, truth, np.ones(len(X)), lambda index: np.ones((len(index), 1)), held, lambda done, total: None
    )
    own = np.zeros((len(STRENGTHS), 4))
    for part in held:
        scaler = StandardScaler().fit(X[~part].astype(np.float64))
        train, test = (scaler.transform(X[rows].astype(np.float64)) for rows in (~part, part))
        for at, strength in enumerate(STRENGTHS[:8]):
            for label in range(4):
                one = LogisticRegression(C=strength / len(X), tol=1e-9, max_iter=10_000).fit(train, truth[~part, label])
                logits = one.decision_function(test)
                own[at, label] += np.logaddexp(0, np.where(truth[part, label], -logits, logits)).mean() / len(held)
    known = ~np.isnan(losses[:8])
    assert known.sum() > 20 and np.abs(losses[:8] - own[:8])[known].max() < 2e-3
    for label in range(4):
        place = int(np.argmin(np.abs(np.log(np.array(STRENGTHS) / len(X) / chosen[label]))))
        assert losses[place, label] <= np.nanmin(losses[:, label]) * 1.01


def test_a_label_that_all_have_or_none_gets_the_bias_of_its_rate():
    X, y = made()
    y[:, 0], y[:, 1] = 1, 0
    fitted = LabelSolver().fit(LabelledRows(X, y, 4))
    assert not fitted.weight[:2].any() and fitted.choice["C"][:2] == [None, None]
    assert fitted.bias[:2] == pytest.approx([np.log(160.5 / 0.5), np.log(0.5 / 160.5)])
    assert LabelSolver().problems(np.ones((4, 2))) and not LabelSolver().problems(y)


def test_a_label_of_one_picture_keeps_the_default_strength():
    X, y = made()
    y[:, 3] = 0
    y[7, 3] = 1
    fitted = LabelSolver().fit(LabelledRows(X, y, 4))
    assert fitted.choice["C"][3] > 0 and np.isfinite(fitted.weight).all()


def test_groups_stay_whole_and_rare_labels_are_in_every_fold():
    rng = np.random.default_rng(3)
    truth = rng.random((300, 30)) < 0.5
    truth[:, -1] = False
    truth[:30:3, -1] = True
    units = np.arange(300) // 2
    parts = iterative_folds(truth, units, 5, seed=0)
    assert (np.sum(parts, axis=0) == 1).all()
    assert all(len({number for number, part in enumerate(parts) if part[units == unit].any()}) == 1
               for unit in range(150))  # fmt: skip
    assert min(int(truth[part, -1].sum()) for part in parts) >= 1
    assert max(part.sum() for part in parts) - min(part.sum() for part in parts) <= 30
    assert iterative_folds(truth[:1], np.zeros(1), 5, seed=0) == []


def test_rows_of_weight_nought_count_for_nothing():
    X, y = made()
    weight = np.ones(len(X))
    weight[100:] = 0
    options = ProbeOptions(classifier_args={"C": 0.1})
    first = LabelSolver().fit(LabelledRows(X, y, 4, weight=weight), options)
    second = LabelSolver().fit(LabelledRows(X[:100], y[:100], 4), options)
    assert np.allclose(first.weight, second.weight, atol=1e-6)


def test_what_does_not_fit_labels_is_said_at_once():
    X, y = made()
    rows = LabelledRows(X, y, 4)
    for options, told in (
        (ProbeOptions("knn"), "of labels expected auto or logistic"),
        (ProbeOptions(classifier_args={"k": 3}), "no argument 'k'"),
        (ProbeOptions(classifier_args={"C": [1, 2]}), "expected one number above 0"),
        (ProbeOptions(classifier_args={"C": -1}), "expected one number above 0"),
    ):
        with pytest.raises(ConfigError, match=told):
            LabelSolver().fit(rows, options)


def test_a_thousand_labels_share_their_work(monkeypatch):
    """The features are turned once a fold, however many labels there are."""
    from transferkit.features.linear import one_vs_rest

    times = []
    plain = one_vs_rest.principal_axes
    monkeypatch.setattr(one_vs_rest, "principal_axes", lambda *words: times.append(1) or plain(*words))
    rng = np.random.default_rng(0)
    X = rng.standard_normal((120, 6)).astype(np.float32)
    y = (rng.random((120, 1000)) < 0.1).astype(np.float32)
    fitted = LabelSolver().fit(LabelledRows(X, y, 1000))
    assert len(times) == 6 and fitted.weight.shape == (1000, 6)
