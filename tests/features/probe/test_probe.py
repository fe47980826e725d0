"""Probes against scikit-learn, their choices recomputed on the same folds, and every guard."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from threadpoolctl import threadpool_limits

from transferkit.core.errors import ConfigError, TransferkitWarning
from transferkit.features.probe import probe as fitting
from transferkit.features.probe.selection import choose, cross_validation_folds, some_rows
from transferkit.models.heads.solver import LabelledRows, ProbeOptions


@pytest.fixture(autouse=True)
def one_thread():
    """The references are small, and threads that wait for each other on busy cores make them many times slower."""
    with threadpool_limits(1):
        yield


NOT_A_CLASS = 3


def fit_probe(X, y, num_classes, *, groups=None, weight=None, seed=0, progress=None, **options):
    rows = LabelledRows(X, y, num_classes, groups, weight)
    return fitting.fit_probe(rows, ProbeOptions(**options), seed=seed, progress=progress)


def folds_of(y, groups=None, **options):
    return cross_validation_folds(LabelledRows(np.zeros((len(y), 1)), y, 3, groups), **options)


def rows(count, width=12, classes=3, seed=0, distance=0.5, noise=0.0):
    generator = np.random.default_rng(seed)
    centre = np.random.default_rng(99).standard_normal((classes, width)) * distance
    y = np.arange(count) % classes
    X = (5 + 3 * (centre[y] + generator.standard_normal((count, width)))).astype(np.float32)
    wrong = generator.uniform(size=count) < noise
    return X, np.where(wrong, generator.integers(0, classes, count), y)


def accuracy(probe, X, y):
    return float(np.mean(probe.predict(X) == y))


# ---------------------------------------------------------------------------------------------------------- logistic


@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize("classes", [2, 3])
def test_logistic_equals_the_pipeline(classes, class_weight):
    X, y = rows(150, classes=classes)
    X, y = X[(y > 0) | (np.arange(150) % 4 == 0)], y[(y > 0) | (np.arange(150) % 4 == 0)]
    X = X.astype(np.float64)
    probe = fit_probe(X, y, classes, classifier_args={"C": 0.05}, class_weight=class_weight)
    if class_weight is None:
        scaler = StandardScaler().fit(X)
    else:
        scaler = StandardScaler().fit(X, sample_weight=(len(y) / (classes * np.bincount(y)))[y])
    expected = LogisticRegression(C=0.05, class_weight=class_weight, tol=1e-10, max_iter=100_000)
    expected.fit(scaler.transform(X), y)
    np.testing.assert_allclose(probe.probs(X), expected.predict_proba(scaler.transform(X)), atol=5e-5)
    assert probe.choice == {"C": 0.05, "criterion": "given"}
    assert probe.probs(X).dtype == np.float32 and probe.predict(X).dtype == np.int64
    np.testing.assert_allclose(probe.probs(X).sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal((X @ probe.linear.weight.T + probe.linear.bias).argmax(axis=1), probe.predict(X))


@pytest.mark.parametrize("grouped", [False, True])
def test_the_curve_is_scikit_learns_on_the_same_folds(grouped):
    X, y = rows(120, noise=0.2)
    X = X.astype(np.float64)
    groups = np.array([f"g{number // 2}" for number in np.random.default_rng(0).permutation(120)]) if grouped else None
    probe = fit_probe(X, y, 3, groups=groups, seed=4)
    splitter = (StratifiedGroupKFold if grouped else StratifiedKFold)(5, shuffle=True, random_state=4)
    folds = list(splitter.split(X, y, groups))
    scores = []
    for entry in probe.choice["curve"]:
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=entry["C"], tol=1e-9, max_iter=100_000))
        hits = cross_val_score(pipeline, X, y, cv=folds)
        nll = -cross_val_score(pipeline, X, y, cv=folds, scoring="neg_log_loss")
        # one row of 24 may sit on the border of two classes
        assert entry["acc"] == pytest.approx(hits.mean(), abs=0.01)
        assert entry["nll"] == pytest.approx(nll.mean(), abs=2e-3)
        assert entry["acc_std"] == pytest.approx(hits.std(ddof=1), abs=0.02)
        scores.append(np.stack([hits, nll], axis=1))
    chosen = choose(np.stack(scores, axis=1))
    assert probe.choice["C"] == probe.choice["curve"][chosen]["C"]
    assert "accuracy, 5 folds of the training rows" in probe.choice["criterion"]
    json.dumps(probe.choice, allow_nan=False)


def test_weights_count_in_the_choice():
    X, y = rows(120, noise=0.2)
    weight = np.where(np.arange(120) % 2, 1.0, 0.0)
    probe = fit_probe(X, y, 3, weight=weight)
    alone = fit_probe(X[1::2], y[1::2], 3)
    assert [entry["acc"] for entry in probe.choice["curve"]] == [entry["acc"] for entry in alone.choice["curve"]]
    assert probe.choice["criterion"].startswith("cross-validated weighted accuracy")
    doubled = fit_probe(X, y, 3, weight=np.full(120, 2.0), classifier_args={"C": 0.05})
    np.testing.assert_allclose(
        doubled.probs(X), fit_probe(X, y, 3, classifier_args={"C": 0.1}).probs(X), atol=1e-4
    )  # C times twice the weight


def test_the_choice_by_hand():
    """Means 0.80, 0.82, 0.82, 0.70; the first lacks 0.02 with errors that are large, the last 0.12."""
    acc = np.array([[0.9, 0.85, 0.82, 0.7], [0.7, 0.79, 0.82, 0.7]])
    nll = np.array([[0.5, 0.6, 0.7, 0.1]] * 2)
    # paired differences to the best (the second: lower nll): 0.05, -0.09 -> half a standard error is 0.035
    assert choose(np.stack([acc, nll], axis=-1)) == 0
    acc[:, 0] = [0.83, 0.77]  # the same -0.02 in both folds: half a standard error is 0
    assert choose(np.stack([acc, nll], axis=-1)) == 1
    nll[:, 2] = 0.5995  # lower, but not by 0.001: the stronger regularisation stays
    assert choose(np.stack([acc, nll], axis=-1)) == 1
    nll[:, 2] = 0.598
    assert choose(np.stack([acc, nll], axis=-1)) == 2


def test_what_classes_that_part_cleanly_leave_to_the_nll_is_no_reason_for_a_weaker_strength():
    scores = np.ones((5, 5, 2))
    scores[..., 1] = [0.05, 0.0109, 0.008, 0.005, 0.001]
    assert choose(scores) == 1
    for last in (0.001, 0.004, 0.009):  # as far as the solver of some release goes
        scores[..., 4, 1] = last
        assert choose(scores) == 1
    scores[..., 1] += 0.01  # 0.015 is the lowest: above 0.01 every 0.001 counts
    assert choose(scores) == 3


def test_the_head_that_is_kept_is_exact():
    X, y = rows(90, width=12, classes=3, distance=1.0)
    X = X.astype(np.float32)
    probe = fit_probe(X, y, 3, classifier_args={"C": 40.0})
    scaler = StandardScaler().fit(X.astype(np.float64))
    exact = LogisticRegression(C=40.0, tol=1e-9, max_iter=10_000).fit(scaler.transform(X.astype(np.float64)), y)
    assert np.abs(probe.probs(X) - exact.predict_proba(scaler.transform(X.astype(np.float64)))).max() < 1e-4


def test_the_grid_goes_on_at_its_edge():
    X, y = rows(60, width=2, classes=2, distance=0.0)
    X[:, 1] = X[:, 0] + np.where(y == 1, 0.02, -0.02)  # all that tells the classes apart is a small difference
    calls = []
    probe = fit_probe(X, y, 2, progress=lambda done, total: calls.append((done, total)))
    strengths = [entry["C"] * 60 for entry in probe.choice["curve"]]
    assert len(strengths) > 10 and strengths == sorted(strengths) and max(strengths) < 1e7
    assert strengths[:10] == pytest.approx(10 ** (np.arange(10) * 2 / 3 - 2))
    assert probe.choice["C"] * 60 > 1e4
    done = [call[0] for call in calls]
    assert done == list(range(1, len(done) + 1)) and calls[-1][0] == calls[-1][1]


def test_label_noise_asks_for_strong_regularisation():
    clean, noisy = rows(150, width=60, distance=1.0), rows(150, width=60, noise=0.4, distance=1.0)
    X, y = rows(2000, width=60, seed=5, distance=1.0)
    probe = fit_probe(*noisy, 3)
    weak = fit_probe(*noisy, 3, classifier_args={"C": 100.0})
    assert accuracy(probe, X, y) > accuracy(weak, X, y) + 0.05
    assert accuracy(fit_probe(*clean, 3), X, y) > 0.95


def test_same_seed_same_probe():
    X, y = rows(90, noise=0.2)
    first, again, other = fit_probe(X, y, 3), fit_probe(X, y, 3), fit_probe(X, y, 3, seed=1)
    assert first.choice == again.choice and first.choice["curve"] != other.choice["curve"]
    np.testing.assert_array_equal(first.linear.weight, again.linear.weight)


# ------------------------------------------------------------------------------------------------------------- folds


def test_groups_that_leak_score_lower_when_kept_together():  # rows of a group are alike, their labels are chance
    generator = np.random.default_rng(0)
    X = np.repeat(generator.standard_normal((40, 30)), 5, axis=0) + 0.05 * generator.standard_normal((200, 30))
    y = np.repeat(np.arange(40) % 2, 5)
    groups = np.repeat([f"g{number}" for number in range(40)], 5)
    for classifier in ("logistic", "knn"):
        loose = fit_probe(X.astype(np.float32), y, 2, classifier=classifier)
        together = fit_probe(X.astype(np.float32), y, 2, classifier=classifier, groups=groups)
        best = [max(entry["acc"] for entry in probe.choice["curve"]) for probe in (loose, together)]
        assert best[0] > 0.95 and best[1] < 0.75


def test_the_standardiser_does_not_see_the_validation_rows(monkeypatch):
    parts = []
    fit = fitting.Standardiser.fit.__func__
    spy = classmethod(lambda cls, X, weight=None: parts.append(X.copy()) or fit(cls, X, weight))
    monkeypatch.setattr(fitting.Standardiser, "fit", spy)
    X, y = rows(60)
    fit_probe(X, y, 3, seed=2)
    folds = folds_of(y, folds=5, seed=2)
    assert len(parts) == 6
    for part, (train, _) in zip(parts, folds, strict=False):
        np.testing.assert_array_equal(part, X[train])
    np.testing.assert_array_equal(parts[-1], X)


def test_folds_keep_groups_and_cover_every_row_once():
    y = np.arange(60) % 3
    groups = np.array([f"g{number // 4}" for number in range(60)])  # every group holds all classes
    folds = folds_of(y, groups, folds=5, seed=0)
    assert sorted(np.concatenate([validate for _, validate in folds])) == list(range(60))
    for train, validate in folds:
        assert not set(groups[train]) & set(groups[validate]) and len(train) + len(validate) == 60


def test_folds_are_as_many_as_the_classes_allow():
    assert len(folds_of(np.repeat([0, 1], 3), folds=5, seed=0)) == 3
    assert len(folds_of(np.repeat([0, 1], [20, 2]), folds=5, seed=0)) == 5
    groups = np.repeat([f"g{number}" for number in range(4)], 5)
    assert len(folds_of(np.repeat([0, 1], 10), groups, folds=5, seed=0)) == 2
    assert folds_of(np.repeat([0, 1], 10), groups[5:15].repeat(2), folds=5, seed=0) == []


@pytest.mark.parametrize(("most", "expected"), [(60, 2), (120, 3), (180, 4), (240, 5), (10_000, 5)])
def test_many_rows_are_cut_into_fewer_folds(monkeypatch, most, expected):
    """As many as train on `most` rows together: one less times the rows."""
    monkeypatch.setattr(fitting, "FOLDED", most)
    X, y = rows(60)
    assert f", {expected} folds of the training rows" in fit_probe(X, y, 3).choice["criterion"]


def test_fits_that_only_choose_may_be_rough(monkeypatch):
    """Of many rows; what is kept is fitted as closely as ever."""
    asked = []
    fit = fitting.fit_path
    monkeypatch.setattr(fitting, "fit_path", lambda *a, tol=None, **k: (asked.append(tol), fit(*a, tol=tol, **k))[1])
    X, y = rows(600, noise=0.1)
    precise = fit_probe(X, y, 3)
    assert asked == [1e-5] * 5 + [1e-6]
    asked.clear()
    monkeypatch.setattr(fitting, "FEW", 599)
    fit_probe(X, y, 3, groups=np.arange(600) // 6)  # of few pictures one can decide, however many views they have
    assert asked == [1e-5] * 5 + [1e-6]
    asked.clear()
    rough = fit_probe(X, y, 3)
    assert asked == [1e-4] * 5 + [1e-6]
    assert rough.choice["C"] == precise.choice["C"]
    for one, other in zip(rough.choice["curve"], precise.choice["curve"], strict=True):
        assert one["nll"] == pytest.approx(other["nll"], abs=1e-3)
    np.testing.assert_allclose(rough.probs(X), precise.probs(X), atol=1e-6)


@pytest.mark.parametrize("classifier", ["logistic", "knn", "ridge"])
def test_of_very_many_rows_some_choose_and_all_are_fitted(monkeypatch, classifier):
    X, y = rows(600)
    some = some_rows(LabelledRows(X, y, 3), 150, seed=0)
    monkeypatch.setattr(fitting, "FOLDED", 150)
    probe = fit_probe(X, y, 3, classifier=classifier)
    name = {"logistic": "C", "knn": "k", "ridge": "strength"}[classifier]
    assert f", 2 folds of {len(some)} of the 600 training rows;" in probe.choice["criterion"]
    monkeypatch.setattr(fitting, "FOLDED", 10_000)
    values = [row[name] for row in probe.choice["curve"]]
    alone = fit_probe(X[some], y[some], 3, classifier=classifier, classifier_args={name: values}, folds=2)
    assert [row["acc"] for row in alone.choice["curve"]] == pytest.approx([row["acc"] for row in probe.choice["curve"]])
    assert alone.choice[name] == probe.choice[name]
    everything = fit_probe(X, y, 3, classifier=classifier, classifier_args={name: probe.choice[name]})
    np.testing.assert_allclose(probe.probs(X), everything.probs(X), atol=1e-6)


def test_some_rows_keep_groups_and_rare_classes():
    y = np.repeat([0, 1, 2], [2000, 40, 3])
    groups = np.array([f"g{number // 2}" for number in range(len(y))])
    some = some_rows(LabelledRows(np.zeros((len(y), 1)), y, 3, groups), 200, seed=0)
    assert len(some) == len(np.unique(some)) and 150 < len(some) < 260
    assert np.count_nonzero(np.isin(groups, groups[some])) == len(some)
    assert np.bincount(y[some])[1] >= 10 and np.bincount(y[some])[2] == 3
    others = some_rows(LabelledRows(np.zeros((len(y), 1)), y, 3, groups), 200, seed=1)
    assert not np.array_equal(some, others)
    assert len(some_rows(LabelledRows(np.zeros((len(y), 1)), y, 3), len(y), seed=0)) == len(y)


def test_a_class_of_one_group_is_trained_on_and_never_scored():
    y = np.repeat([0, 1, 2], [10, 10, 1])
    for train, validate in folds_of(y, folds=5, seed=0):
        assert 20 in train and 20 not in validate


@pytest.mark.parametrize("classifier", ["logistic", "knn"])
def test_without_folds_a_default_that_says_so(classifier):
    X, y = rows(3)
    probe = fit_probe(X, y, 3, classifier=classifier)
    assert probe.choice["criterion"] in (
        "default: too few rows or groups per class to cross-validate",
        "the only k with so few rows",
    )
    np.testing.assert_array_equal(probe.predict(X), y)


# --------------------------------------------------------------------------------------------------------------- knn


def test_knn_equals_scikit_learns():
    X, y = rows(150)
    new, _ = rows(80, seed=1)
    for k in (1, 7):
        probe = fit_probe(X, y, 3, classifier="knn", classifier_args={"k": k, "temperature": 0.1})
        voters = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp(-distance / 0.1))
        expected = make_pipeline(StandardScaler(), voters).fit(X, y)
        np.testing.assert_allclose(probe.probs(new), expected.predict_proba(new), atol=1e-4)
        assert probe.choice == {"k": k, "criterion": "given", "temperature": 0.1}


def test_k_is_chosen_on_the_same_folds():
    X, y = rows(60, noise=0.1)
    probe = fit_probe(X, y, 3, classifier="knn", seed=3)
    assert [entry["k"] for entry in probe.choice["curve"]] == [1, 3, 5, 10, 20]  # 48 rows to vote in a fold
    folds = list(StratifiedKFold(5, shuffle=True, random_state=3).split(X, y))
    for entry in probe.choice["curve"]:
        voters = KNeighborsClassifier(entry["k"], weights=lambda distance: np.exp(-(distance**2) / 2 / 0.07))
        hits = cross_val_score(make_pipeline(StandardScaler(), Normalizer(), voters), X, y, cv=folds)
        assert entry["acc"] == pytest.approx(hits.mean(), abs=1e-6)
    json.dumps(probe.choice, allow_nan=False)


def test_neighbours_hold_all_that_a_head_needs():
    X, y = rows(60)
    probe = fit_probe(X, 2 * y, 6, classifier="knn", classifier_args={"k": 5})
    voters = probe.neighbours
    query = (X - voters.standardiser.mean) / voters.standardiser.scale
    cosine = (query / np.linalg.norm(query, axis=1, keepdims=True)) @ voters.rows.T
    expected = np.zeros((60, 6))
    for number, row in enumerate(cosine):
        for nearest in np.argsort(-row)[: voters.k]:
            expected[number, voters.labels[nearest]] += np.exp(row[nearest] / voters.temperature)
    np.testing.assert_allclose(probe.probs(X), expected / expected.sum(axis=1, keepdims=True), atol=1e-4)
    assert probe.linear is None and not probe.probs(X)[:, [1, 3, 5]].any()


# ---------------------------------------------------------------------------------------------------- by import path


@pytest.mark.parametrize(
    ("path", "arguments"),
    [
        ("sklearn.linear_model.LogisticRegression", {}),
        ("sklearn.linear_model.RidgeClassifier", {}),
        ("sklearn.linear_model.SGDClassifier", {}),
        ("sklearn.linear_model.Perceptron", {}),
        ("sklearn.svm.LinearSVC", {}),
        ("sklearn.discriminant_analysis.LinearDiscriminantAnalysis", {}),
        ("sklearn.svm.SVC", {"C": 2.0}),
        ("sklearn.ensemble.RandomForestClassifier", {"n_estimators": 10}),
        ("sklearn.naive_bayes.GaussianNB", {}),
    ],
)
@pytest.mark.parametrize("present", [[0, 1], [1, 3, 4]])
def test_any_classifier_with_classes_missing(path, arguments, present):
    X, y = rows(120, classes=len(present), distance=1.0)
    y = np.array(present)[y]
    probe = fit_probe(X, y, 5, classifier=path, classifier_args=arguments)
    probs = probe.probs(X)
    assert probs.shape == (120, 5) and probs.dtype == np.float32 and accuracy(probe, X, y) > 0.8
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-6)
    assert not probs[:, [number for number in range(5) if number not in present]].any()
    np.testing.assert_array_equal(probe.predict(X), probe.estimator.predict(X))
    linear = path.split(".")[1] in ("linear_model", "discriminant_analysis") or path.endswith("LinearSVC")
    assert (probe.linear is not None) == linear
    if probe.linear is not None:
        far = np.concatenate([X, 100 * X, -100 * X])
        np.testing.assert_array_equal(
            (far @ probe.linear.weight.T + probe.linear.bias).argmax(axis=1), probe.predict(far)
        )
    if path.endswith(("SVC", "RidgeClassifier", "Perceptron", "SGDClassifier")):
        assert probe.choice["probabilities"] == "softmax of its decision values, not calibrated"
        assert probs.max() > 0.5 and np.unique(probs.max(axis=1)).size > 1  # neither flat nor one-hot
    json.dumps(probe.choice, allow_nan=False)


def test_the_softmax_of_two_decision_values():
    X, y = rows(60, classes=2)
    probe = fit_probe(X, y, 2, classifier="sklearn.svm.LinearSVC")
    expected = 1 / (1 + np.exp(-probe.estimator.decision_function(X)))
    np.testing.assert_allclose(probe.probs(X)[:, 1], expected, atol=1e-6)


def test_seed_weights_and_arguments_reach_the_classifier():
    X, y = rows(60)
    forest = "sklearn.ensemble.RandomForestClassifier"
    fitted = fit_probe(X, y, 3, classifier=forest, classifier_args={"n_estimators": 3}, class_weight="balanced", seed=7)
    got = fitted.estimator[-1].get_params()
    assert (got["random_state"], got["class_weight"], got["n_estimators"]) == (7, "balanced", 3)
    own = fit_probe(X, y, 3, classifier=forest, classifier_args={"n_estimators": 3, "random_state": 1})
    assert own.estimator[-1].random_state == 1
    weight = np.where(y == 0, 0.0, 1.0)
    assert 0 not in fit_probe(X, y, 3, classifier=forest, weight=weight).predict(X)


def test_no_convergence_of_a_classifier_is_a_warning():
    X, y = rows(60)
    with pytest.warns(TransferkitWarning, match="LogisticRegression did not converge: lbfgs failed"):
        fit_probe(
            X, y, 3, classifier="sklearn.linear_model.LogisticRegression", classifier_args={"max_iter": 1, "C": 10.0}
        )


# ------------------------------------------------------------------------------------------------------------ guards


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classifier": "logstic"}, "unknown classifier 'logstic'.* Did you mean 'logistic'"),
        ({"classifier": "kn"}, "Did you mean 'knn'"),
        (
            {"classifier": "sklearn.svn.SVC"},
            "'sklearn.svn.SVC' cannot be imported .ModuleNotFoundError: No module named 'sklearn.svn'",
        ),
        ({"classifier": ".SVC"}, "'.SVC' cannot be imported .ValueError"),
        ({"classifier": "sklearn.svm.SVCC"}, "sklearn.svm has no 'SVCC'.*Did you mean 'SVC'"),
        ({"classifier": "sklearn.svm.SVR"}, "'sklearn.svm.SVR' is no classifier but another estimator; expected"),
        ({"classifier": f"{__name__}.NOT_A_CLASS"}, "is a int; expected a classifier class that subclasses"),
        ({"classifier": "collections.OrderedDict"}, "is the class OrderedDict; expected a classifier class"),
        ({"classifier": "sklearn.svm.SVC", "classifier_args": {"kernl": 1}}, "takes no argument 'kernl'.* 'kernel'"),
        ({"classifier": "sklearn.svm.SVC", "classifier_args": {"C": -1}}, "sklearn.svm.SVC cannot be fitted: The 'C'"),
        ({"classifier": "sklearn.ensemble.VotingClassifier"}, "cannot be constructed: .*missing 1 required"),
        (
            {"classifier": "sklearn.svm.SVC", "classifier_args": {"decision_function_shape": "ovo"}, "classes": 4},
            "gives 6 decision values for 4 classes; expected one per class",
        ),
        (
            {"classifier": "sklearn.svm.SVC", "classifier_args": {"class_weight": {}}, "class_weight": "balanced"},
            "class_weight is given twice",
        ),
        (
            {"classifier": "sklearn.naive_bayes.GaussianNB", "class_weight": "balanced"},
            "GaussianNB takes no class weights, but class_weight is 'balanced'",
        ),
        (
            {"classifier": "sklearn.discriminant_analysis.LinearDiscriminantAnalysis", "weight": np.ones(40)},
            "takes no sample weights",
        ),
        ({"classifier": "knn", "class_weight": "balanced"}, "knn takes no class or sample weights"),
        ({"classifier": "knn", "weight": np.ones(40)}, "knn takes no class or sample weights"),
        ({"classifier": "knn", "classifier_args": {"neighbours": 3}}, "knn takes no argument 'neighbours'"),
        ({"classifier": "knn", "classifier_args": {"k": 41}}, "k is 41, but there are 40 rows to vote"),
        ({"classifier": "knn", "classifier_args": {"k": [33, 40]}}, "there are 32 rows to vote"),
        ({"classifier": "knn", "classifier_args": {"k": 2.5}}, "k is 2.5; expected a whole number above 0"),
        ({"classifier": "knn", "classifier_args": {"temperature": [1, 2]}}, "expected one number above 0"),
        ({"classifier_args": {"c": 1}}, "logistic takes no argument 'c'; expected one of C"),
        ({"classifier_args": {"C": 0}}, "C is 0; expected a number above 0, or a list"),
        ({"classifier_args": {"C": []}}, r"C is \[\]; expected a number above 0, or a list"),
        ({"classifier_args": {"C": "1"}}, "C is '1'; expected a number above 0"),
        ({"class_weight": "even"}, "class_weight is 'even'; expected None or 'balanced'"),
        ({"folds": 1}, "folds is 1; expected at least 2"),
        ({"weight": -np.ones(40)}, "sample weights are negative or not finite"),
        ({"weight": np.zeros(40)}, "rows of weight above 0 are of fewer than 2 classes"),
    ],
)
def test_wrong_options(options, message):
    options = dict(options)
    X, y = rows(40, classes=options.pop("classes", 2))
    with pytest.raises(ConfigError, match=message):
        fit_probe(X, y, 4, **options)


def test_a_module_of_the_users_own_that_fails(tmp_path, monkeypatch):  # fault 138
    """Importing runs code that is not ours, which may raise anything."""
    (tmp_path / "a_module_that_fails.py").write_text("1 / 0", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    X, y = rows(40)
    with pytest.raises(ConfigError, match=r"'a_module_that_fails.Own' cannot be imported \(ZeroDivisionError: "):
        fit_probe(X, y, 2, classifier="a_module_that_fails.Own")


def test_all_that_is_wrong_comes_in_one_error():
    with pytest.raises(ConfigError, match=r"\(1\) all 4 labels .*; \(2\) class_weight .*; \(3\) folds"):
        fit_probe(np.zeros((4, 1)), np.zeros(4, np.int64), 4, class_weight="x", folds=0)
