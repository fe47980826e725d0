"""The distance from training pictures, its figures and the test of two samples, against references by hand."""

import json

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import ledoit_wolf
from sklearn.metrics import roc_auc_score, roc_curve

from transferkit.core.errors import CheckpointError
from transferkit.models.unlike.distance import SAMPLED, TrainingDistance, sample_places
from transferkit.models.unlike.figures import separation
from transferkit.models.unlike.statistics import choose_pictures, fit_distance, groups_of
from transferkit.models.unlike.two_sample import compare_samples


def features(count, width, seed, groups=3):
    """Features of a network, about: positive, of different length, a dead one among them."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, groups, count)
    centres = np.random.default_rng(99).normal(size=(groups, width))
    rows = np.maximum(centres[labels] + generator.normal(size=(count, width)) * np.linspace(0.1, 2, width), 0)
    rows[:, 0] = 0.0
    return (rows * generator.uniform(1, 50, (count, 1))).astype(np.float32), labels


def unit(rows):
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize(("count", "width"), [(400, 24), (40, 200)])
def test_distances_are_those_by_hand(count, width):
    rows, labels = features(count, width, 0)
    means = np.stack([unit(rows)[labels == group].mean(axis=0) for group in range(3)])
    centred = unit(rows) - means[labels]
    covariance = ledoit_wolf(centred, assume_centered=True)[0] * count / (count - 3)
    inverse = np.linalg.inv(covariance)
    asked, _ = features(20, width, 1)
    expected = [min(mahalanobis(row, mean, inverse) ** 2 for mean in means) for row in unit(asked)]
    module = fit_distance(rows, labels)
    found = module(torch.from_numpy(asked))
    assert found.shape == (20, 1) and found.dtype == torch.float32
    np.testing.assert_allclose(found[:, 0].numpy(), expected, rtol=2e-4)
    # the length of a feature vector does not count
    torch.testing.assert_close(module(7 * torch.from_numpy(asked)), found, rtol=1e-4, atol=0)


def test_answers_that_are_no_classes_have_one_mean():
    rows, _ = features(300, 16, 0)
    groups = groups_of(np.zeros((300, 2), dtype=np.float32), classes=False)
    module = fit_distance(rows, groups)
    mean = unit(rows).mean(axis=0)
    inverse = np.linalg.inv(ledoit_wolf(unit(rows) - mean, assume_centered=True)[0] * 300 / 299)
    expected = [mahalanobis(row, mean, inverse) ** 2 for row in unit(rows[:10])]
    np.testing.assert_allclose(module(torch.from_numpy(rows[:10]))[:, 0].numpy(), expected, rtol=2e-4)


def test_classes_without_pictures_are_left_out():
    rows, labels = features(300, 16, 0)
    module = fit_distance(rows, np.where(labels == 2, 7, labels))
    assert module.to_dict()["groups"] == 3
    torch.testing.assert_close(module.means, fit_distance(rows, labels).means)


def test_a_vector_of_zeros_has_a_distance():
    rows, labels = features(300, 16, 0)
    assert torch.isfinite(fit_distance(rows, labels)(torch.zeros(1, 16))).all()


@pytest.mark.parametrize("case", ["one picture each", "equal pictures", "two pictures"])
def test_without_a_covariance_there_is_no_distance(case):
    rows, _ = features(6, 16, 0)
    if case == "equal pictures":
        rows = np.repeat(rows[:2], 3, axis=0)
    groups = {"one picture each": np.arange(6), "equal pictures": np.repeat([0, 1], 3), "two pictures": np.arange(6)}
    count = 2 if case == "two pictures" else 6
    assert fit_distance(rows[:count], groups[case][:count]) is None


def test_shares_of_held_out_pictures():
    module = TrainingDistance(1, 4)
    module.hold_out(torch.tensor([[4.0], [1.0], [2.0], [3.0]]), torch.eye(4))
    asked = [0.5, 1.0, 1.5, 4.0, 4.5, float("inf"), float("nan")]
    expected = [0.0, 0.0, 0.25, 0.75, 1.0, 1.0, 1.0]
    assert [module.nearer(distance) for distance in asked] == expected
    assert module.share(torch.tensor(asked)[:, None]).tolist() == expected


def test_of_many_held_out_pictures_quantiles_are_kept():
    distances = torch.from_numpy(np.random.default_rng(0).gamma(5, size=20_000))
    module = TrainingDistance(1, 4).hold_out(distances, torch.eye(4))
    assert len(module.held_out) == 1000 and module.facts["held_out"] == 20_000
    for rate in (0.05, 0.5, 0.95):
        assert module.nearer(float(distances.quantile(rate))) == pytest.approx(rate, abs=0.002)
    assert module.nearer(19 / 20) <= 19 / 20


def test_it_comes_back_from_model_json():
    rows, labels = features(200, 16, 0)
    module = fit_distance(rows, labels)
    held, _ = features(40, 16, 1)
    module.hold_out(module(torch.from_numpy(held)), torch.from_numpy(held))
    back = TrainingDistance.from_dict(json.loads(json.dumps(module.to_dict())))
    back.load_state_dict(module.state_dict())
    assert back.to_dict() == module.to_dict()
    asked = torch.from_numpy(features(30, 16, 2)[0])
    assert torch.equal(back.share(back(asked)), module.share(module(asked)))
    assert back.sample.dtype == torch.float16 and back.sample.shape == (40, 16)


@pytest.mark.parametrize(
    "change",
    [{"method": "x"}, {"groups": "a"}, {"quantiles": ""}, {"quantiles": "3 2"}, {"quantiles": "1 nan"},
     {"features": -1}, {"quantiles": None}, {"groups": float("inf")}],
)  # fmt: skip
def test_other_facts_are_refused(change):
    good = TrainingDistance(2, 4).hold_out(torch.arange(12.0), torch.eye(4)).to_dict()
    TrainingDistance.from_dict(good)
    with pytest.raises(CheckpointError, match="unlike_training cannot be read"):
        TrainingDistance.from_dict({**good, **change})


def test_rare_classes_keep_their_pictures():
    groups = np.repeat([0, 1, 2], [1000, 30, 5])
    chosen = choose_pictures(groups, most=100, seed=3)
    assert np.bincount(groups[chosen]).tolist() == [65, 30, 5]
    assert (np.diff(chosen) > 0).all()
    assert choose_pictures(groups, most=2000).tolist() == list(range(1035))
    assert chosen.tolist() != choose_pictures(groups, most=100, seed=4).tolist()


def test_places_of_a_sample():
    assert sample_places(20).tolist() == list(range(20))
    places = sample_places(10_000)
    assert len(set(places.tolist())) == SAMPLED and places.mean() == pytest.approx(5000, rel=0.1)


def test_separation_is_scikit_learns():
    generator = np.random.default_rng(0)
    known, other = generator.normal(size=400), generator.normal(1.5, 1, 300).round(1)
    figures = separation(known, other)
    truth, scores = np.repeat([0, 1], [400, 300]), np.concatenate((known, other))
    assert figures["auroc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    # known pictures are the positives that shall pass: 95 % of them, and the share of the others that passes with them
    rates, passing, _ = roc_curve(1 - truth, -scores, drop_intermediate=False)
    assert figures["fpr95"] == pytest.approx(rates[np.flatnonzero(passing >= 0.95)[0]], abs=0.01)
    assert separation(known, known + 100) == {"auroc": 1.0, "fpr95": 0.0}
    assert separation(known, known - 100) == {"auroc": 0.0, "fpr95": 1.0}
    assert separation(np.ones(5), np.ones(7)) == {"auroc": 0.5, "fpr95": 1.0}


def test_two_samples_by_hand():
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(12, 3)), generator.normal(0.5, 1, (9, 3))
    rows = np.concatenate((first, second))
    squares = np.square(rows[:, None] - rows[None]).sum(axis=2)
    kernel = np.exp(-squares / np.median(squares[np.triu_indices(21, 1)]))
    inside = sum(kernel[i, j] for i in range(12) for j in range(12) if i != j) / (12 * 11)
    outside = sum(kernel[i, j] for i in range(12, 21) for j in range(12, 21) if i != j) / (9 * 8)
    result = compare_samples(first, second)
    assert result.mmd2 == pytest.approx(inside + outside - 2 * kernel[:12, 12:].mean(), abs=1e-12)
    assert (result.n, result.m) == (12, 9) and 0 < result.p <= 1


def test_two_samples_of_one_source_are_rarely_told_apart_and_of_two_sources_always():
    generator = np.random.default_rng(0)
    same = [
        compare_samples(generator.normal(size=(30, 5)), generator.normal(size=(40, 5)), seed=seed).p
        for seed in range(60)
    ]
    assert 0 <= np.mean(np.array(same) <= 0.1) <= 0.2  # 10 % are expected, with a deviation of 4 %
    assert np.mean(same) == pytest.approx(0.5, abs=0.12)
    moved = compare_samples(generator.normal(size=(60, 5)), generator.normal(0.8, 1, (60, 5)))
    assert moved.p == 0.001 and moved.mmd2 > 0.05
    assert compare_samples(np.ones((10, 4)), np.ones((10, 4))).p == 1.0
