"""Likely wrong labels, compared with cleanlab, and classes that a mirror image turns into each other."""

import warnings

import numpy as np
import pytest

from transferkit.results.audit.labels import DOUBT, confident_labels, mirror_pairs, wrong_labels


def predictions(count=400, classes=4, seed=0, noise=0.1):
    """Held-out probabilities that know the true classes more or less, and labels of which some are exchanged."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, classes, count)
    y = np.where(rng.random(count) < noise, (true + rng.integers(1, classes, count)) % classes, true)
    logits = rng.normal(size=(count, classes)) + 2.5 * np.eye(classes)[true] + rng.normal(size=classes)
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probs, y, true


@pytest.mark.parametrize("classes", [2, 4, 11])
@pytest.mark.parametrize("seed", range(3))
def test_confident_learning_is_cleanlabs(classes, seed):
    filters = pytest.importorskip("cleanlab.filter", reason="cleanlab is not installed")
    probs, y, _ = predictions(classes=classes, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mask = filters.find_label_issues(y, probs, filter_by="confident_learning", n_jobs=1)
    confident = confident_labels(probs, y)
    # cleanlab leaves out those that the probe itself gives their label: here they are no off-diagonal either.
    ours = (confident >= 0) & (confident != y) & (probs.argmax(axis=1) != y)
    assert (ours == mask).all() and mask.any()


def test_the_confident_joint_by_hand():
    """Thresholds are 0.7 for class 0 and 0.6 for class 1: means over those who carry the label."""
    probs = np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8], [0.6, 0.4], [0.65, 0.35]])
    y = np.array([0, 0, 1, 1, 1])
    assert confident_labels(probs, y).tolist() == [0, -1, 1, -1, -1]  # 0.51666... for class 1
    probs[4] = [0.75, 0.25]
    assert confident_labels(probs, y).tolist() == [0, 1, 1, -1, 0]


def test_equal_probabilities_reach_their_threshold():
    probs = np.full((6, 3), 1 / 3)
    assert (confident_labels(probs, np.array([0, 0, 1, 1, 2, 2])) == 0).all()


def test_a_class_without_labels_is_nobodys():
    probs, y, _ = predictions()
    wide = np.concatenate([0.9 * probs, np.full((len(y), 1), 0.1)], axis=1)
    assert 4 not in confident_labels(wide, y)


def test_doubts_are_sure_and_mostly_right():
    probs, y, true = predictions(2000, noise=0.05)
    suggested = wrong_labels(probs, y)
    doubted = suggested >= 0
    assert (probs[doubted, y[doubted]] < DOUBT / 4).all()
    assert (suggested[doubted] != y[doubted]).all()
    wrong = y != true
    assert wrong[doubted].mean() > 0.6 and doubted[wrong].mean() > 0.4
    assert (suggested[doubted & wrong] == true[doubted & wrong]).mean() > 0.9


def test_rows_without_prediction_are_not_judged():
    probs, y, _ = predictions()
    part = probs.copy()
    part[::2] = np.nan
    assert (wrong_labels(part, y)[::2] == -1).all()
    assert (wrong_labels(part, y)[1::2] == wrong_labels(probs[1::2], y[1::2])).all()
    assert (wrong_labels(np.full((3, 2), np.nan), np.array([0, 1, 1])) == -1).all()


def sure(classes, width=3):
    return np.eye(width)[classes] * 0.9 + 0.1 / width


def test_mirror_images_of_another_class():
    y = np.array([0] * 20 + [1] * 20 + [2] * 20)
    turned = np.array([1] * 20 + [0] * 8 + [1] * 12 + [2] * 20)
    pairs = mirror_pairs(sure(y), sure(turned), y)
    assert [(pair.label, pair.other, pair.recognised, pair.turned) for pair in pairs] == [(0, 1, 20, 20), (1, 0, 20, 8)]


def test_a_few_turned_pictures_are_chance():
    y = np.array([0] * 100 + [1] * 4 + [2] * 20)
    turned = y.copy()
    turned[:20], turned[100:104] = 1, 0  # 20 of 100; all of 4
    assert mirror_pairs(sure(y), sure(turned), y) == []
    turned[:25] = 1
    assert [pair.turned for pair in mirror_pairs(sure(y), sure(turned), y)] == [25]


def test_pictures_that_are_not_recognised_say_nothing_of_mirrors():
    y = np.array([0] * 20 + [1] * 20)
    assert mirror_pairs(sure(1 - y, 2), sure(y, 2), y) == []
    hidden = sure(y, 2)
    hidden[:] = np.nan
    assert mirror_pairs(hidden, hidden, y) == []
