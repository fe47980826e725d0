"""The paired comparison against figures worked out by hand."""

from math import comb

import numpy as np
import pytest

from transferkit.core.errors import ConfigError
from transferkit.models.figures.paired import Outcomes, compare, mcnemar

NAMES = ("a", "b", "c")


def scores(right, nll=None):
    right = np.asarray(right, dtype=bool)
    return Outcomes(right, np.asarray(nll, dtype=float) if nll is not None else np.where(right, 0.1, 2.0))


@pytest.mark.parametrize(("first", "second"), [(0, 1), (5, 1), (1, 5), (10, 3), (7, 7), (40, 21)])
def test_mcnemar_is_the_binomial_tail_doubled(first, second):
    count, least = first + second, min(first, second)
    tail = sum(comb(count, k) for k in range(least + 1)) / 2**count
    assert mcnemar(first, second) == pytest.approx(min(1.0, 2 * tail))


def test_mcnemar_of_no_disagreement_is_one():
    assert mcnemar(0, 0) == 1.0


def test_every_figure_by_hand():
    #           a  a  a  b  b  c
    targets = np.array([0, 0, 0, 1, 1, 2])
    first = scores([1, 1, 0, 1, 0, 0], [0.1, 0.2, 1.0, 0.3, 0.9, 1.1])
    second = scores([1, 0, 0, 0, 1, 0], [0.2, 0.8, 1.5, 0.7, 0.2, 1.0])
    result = compare(first, second, targets, (*NAMES, "absent"))
    assert result["table"] == {"both_right": 1, "only_first": 2, "only_second": 1, "both_wrong": 2}
    assert result["n"] == 6
    assert result["acc"]["first"] == pytest.approx(3 / 6)
    assert result["acc"]["second"] == pytest.approx(2 / 6)
    assert result["acc"]["difference"] == pytest.approx(1 / 6)
    assert result["loss"]["difference"] == pytest.approx((3.6 - 4.4) / 6)
    assert result["mcnemar_p"] == 1.0  # 2 to 1
    assert result["per_class"] == {
        "a": {
            "n": 3,
            "first": pytest.approx(2 / 3),
            "second": pytest.approx(1 / 3),
            "difference": pytest.approx(1 / 3),
        },
        "b": {"n": 2, "first": 0.5, "second": 0.5, "difference": 0.0},
        "c": {"n": 1, "first": 0.0, "second": 0.0, "difference": 0.0},
    }


@pytest.fixture(scope="module")
def many():
    """900 pictures: both are right on 700, the first alone on 90, the second alone on 45."""
    first = np.r_[np.ones(700), np.ones(90), np.zeros(45), np.zeros(65)]
    second = np.r_[np.ones(700), np.zeros(90), np.ones(45), np.zeros(65)]
    generator = np.random.default_rng(0)
    nll = generator.exponential(1.0, 900)
    return scores(first, nll), scores(second, nll + generator.normal(0.2, 1.0, 900))


def test_intervals_are_those_of_paired_differences(many):
    result = compare(*many, np.zeros(900, dtype=np.int64), NAMES, resamples=4000)
    differences = many[0].right.astype(float) - many[1].right
    half = 1.96 * differences.std() / 30
    assert result["acc"]["difference"] == pytest.approx(0.05)
    assert result["acc"]["ci"] == pytest.approx([0.05 - half, 0.05 + half], abs=0.002)
    losses = many[0].nll - many[1].nll
    half = 1.96 * losses.std() / 30
    assert result["loss"]["ci"] == pytest.approx([losses.mean() - half, losses.mean() + half], abs=0.01)
    # Unpaired, the interval would be wider: pictures that both have right say nothing of the difference.
    unpaired = 1.96 * np.sqrt(many[0].right.var() / 900 + many[1].right.var() / 900)
    assert result["acc"]["ci"][1] - result["acc"]["ci"][0] < 0.8 * 2 * unpaired


def test_swapping_the_models_turns_every_sign(many):
    targets = np.zeros(900, dtype=np.int64)
    ahead, behind = compare(*many, targets, NAMES, resamples=200), compare(*many[::-1], targets, NAMES, resamples=200)
    assert behind["mcnemar_p"] == ahead["mcnemar_p"] == pytest.approx(mcnemar(90, 45))
    for key in ("acc", "loss"):
        assert behind[key]["difference"] == pytest.approx(-ahead[key]["difference"])
        assert behind[key]["ci"] == pytest.approx([-bound for bound in ahead[key]["ci"][::-1]])
    assert behind["table"]["only_first"] == ahead["table"]["only_second"] == 45


def test_the_same_seed_gives_the_same_interval(many):
    targets = np.zeros(900, dtype=np.int64)
    one, same, other = (compare(*many, targets, NAMES, seed=seed, resamples=50) for seed in (1, 1, 2))
    assert one == same
    assert one["acc"]["ci"] != other["acc"]["ci"]


def test_verdicts_are_sentences(many):
    targets = np.zeros(900, dtype=np.int64)
    sentence = compare(*many, targets, NAMES, names=("new", "old"))["verdict"]
    assert sentence.startswith("new is right on 45 more of 900 pictures than old: +5.0 points (95 % interval +2.")
    assert sentence.endswith("p < 0.001")
    assert compare(*many[::-1], targets, NAMES, names=("old", "new"))["verdict"].startswith(
        "new is right on 45 more of"
    )
    few = compare(scores([1, 1, 1, 0]), scores([1, 1, 0, 0]), np.zeros(4, dtype=np.int64), NAMES, names=("new", "old"))
    assert few["verdict"].startswith(
        "new is right on 1 more of 4 pictures than old: +25.0 points (95 % interval +0.0 to"
    )
    assert few["verdict"].endswith("p = 1; that may be chance")
    equal = compare(scores([1, 0]), scores([0, 1]), np.zeros(2, dtype=np.int64), NAMES, names=("new", "old"))
    assert equal["verdict"].startswith("new and old are right on equally many of 2 pictures: +0.0 points")


@pytest.mark.parametrize(("first", "count"), [([], 0), ([1, 0], 3)])
def test_other_pictures_are_refused(first, count):
    with pytest.raises(ConfigError, match="expected scores of both models for the same pictures"):
        compare(scores(first), scores(first), np.zeros(count, dtype=np.int64), NAMES)
