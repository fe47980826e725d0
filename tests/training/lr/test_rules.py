"""The rules of the LR range test, on curves whose answer is known."""

import itertools
import math

import numpy as np
import pytest

from transferkit.training.lr.rules import (
    ENOUGH,
    RULES,
    VALLEY_PLACE,
    Smoother,
    _longest_fall,
    judge,
    minimum,
    slide,
    steep,
    valley,
)

LRS = [10 ** (-7 + step / 10) for step in range(71)]


def bent(lr, begin=-5.0, turn=-2.0, fall=0.5, rise=2.0):
    """Flat at 2 up to `begin`, then down by `fall` per decade to `turn`, then up by `rise` per decade."""
    log = round(math.log10(lr), 9)
    if log <= begin:
        return 2.0
    return 2.0 - fall * (log - begin) if log <= turn else 2.0 - fall * (turn - begin) + rise * (log - turn)


def smooth_step(lr, middle=-3.0, height=1.0):
    """A fall whose steepest place, over log LR, is `middle`."""
    return 2.0 - height / (1.0 + math.exp(-4.0 * (math.log10(lr) - middle)))


CURVE = [bent(lr) for lr in LRS]


# ---- each rule --------------------------------------------------------------------------------------------------


def test_steep_is_where_the_slope_over_log_lr_is_largest():
    assert steep(LRS, [smooth_step(lr) for lr in LRS]) == pytest.approx(1e-3)


def test_steep_measures_over_log_lr_also_where_lrs_rise_linearly():  # trap 24
    lrs = [0.001 + 0.999 * step / 199 for step in range(200)]
    losses = [smooth_step(lr, middle=-1.0) for lr in lrs]
    over_lr = lrs[int(np.argmin(np.gradient(losses, lrs)))]
    answer = steep(lrs, losses)
    assert answer == pytest.approx(0.1, rel=0.15)
    assert over_lr < 0.75 * answer  # against the LR itself the answer is another one


def test_steep_looks_before_the_minimum_only():
    # Falls by 0.5 per decade, jumps up, and comes down again faster than ever.
    losses = [bent(lr) if lr < 1e-2 * 1.01 else 4.0 - 3.0 * (math.log10(lr) + 2.0) / 2.5 for lr in LRS]
    assert min(losses) == losses[50]
    assert 1e-5 < steep(LRS, losses) < 1e-2


def test_steep_of_a_loss_that_never_falls_is_none():
    assert steep(LRS, [1.0] * 71) is None
    assert steep(LRS, [1.0 + 0.1 * step for step in range(71)]) is None


def test_minimum_is_a_tenth_of_the_lr_of_the_smallest_loss():
    assert minimum(LRS, CURVE) == pytest.approx(1e-3)


def test_valley_is_two_thirds_down_the_longest_fall():
    assert VALLEY_PLACE == 2 / 3
    assert valley(LRS, CURVE) == pytest.approx(1e-3)  # from 1e-5 to 1e-2: two of three decades


def test_valley_is_the_longest_not_the_deepest():
    # Down by 1 in a decade from 1e-6, up to 3, and from 1e-4 slowly down by 0.2 in three decades.
    logs = [round(math.log10(lr), 9) for lr in LRS]
    losses = [2.0 if log <= -6 else 2.0 - (log + 6) if log <= -5 else 3.0 - 0.07 * max(0.0, log + 4) for log in logs]
    losses = [4.0 if log > -1 else loss for log, loss in zip(logs, losses, strict=True)]
    assert valley(LRS, losses) == pytest.approx(1e-2)  # two of three decades from 1e-4


def test_valley_of_a_loss_that_never_falls_is_none():
    assert valley(LRS, [1.0 + 0.1 * step for step in range(71)]) is None


@pytest.mark.parametrize("seed", range(20))
def test_the_longest_fall_is_the_longest(seed):
    losses = np.random.default_rng(seed).integers(0, 12, 12).tolist()
    run = _longest_fall(losses)
    assert all(earlier < later for earlier, later in itertools.pairwise(run))
    assert all(losses[earlier] > losses[later] for earlier, later in itertools.pairwise(run))
    longest = max(
        len(chosen)
        for size in range(1, 13)
        for chosen in itertools.combinations(losses, size)
        if all(a > b for a, b in itertools.pairwise(chosen))
    )
    assert len(run) == longest


def test_slide_is_a_decade_below_where_the_fall_is_steady():
    # A slope is taken over a quarter of a decade to both sides, so the turn at 1e-2 is out of sight at 10**-2.2.
    assert slide(LRS, CURVE) == pytest.approx(10**-3.2)


def test_slide_does_not_stop_on_a_steady_rise():
    losses = [bent(lr, turn=-3.0, rise=0.5) for lr in LRS]  # the last three decades rise evenly
    assert slide(LRS, losses) == pytest.approx(10**-4.2)


def test_slide_of_a_curve_shorter_than_its_interval_is_none():
    lrs = [10 ** (-3 + step / 50) for step in range(40)]
    assert slide(lrs, [2.0 - 0.01 * step for step in range(40)]) is None


# ---- all of them ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_units_do_not_matter(rule):
    curve = [smooth_step(lr) if lr < 2e-2 else 4.0 for lr in LRS]
    answer = RULES[rule](LRS, curve)
    assert RULES[rule](LRS, [3.0 * loss + 5.0 for loss in curve]) == pytest.approx(answer)
    assert RULES[rule]([lr * 20.0 for lr in LRS], curve) == pytest.approx(20.0 * answer)


def test_the_mean_is_corrected_for_its_start():
    values = [3.0, 1.0, 4.0, 1.0, 5.0]
    smoother = Smoother()
    means = [smoother.add(value) for value in values]
    weights = [[0.9 ** (last - at) for at in range(last + 1)] for last in range(5)]
    assert means == pytest.approx([np.average(values[: len(row)], weights=row) for row in weights])
    level = Smoother()
    assert [level.add(2.5) for _ in range(4)] == pytest.approx([2.5] * 4)


def noisy(curve, scale, seed):
    return (np.asarray(curve) + np.random.default_rng(seed).normal(0.0, scale, len(curve))).tolist()


def test_a_verdict_on_a_noisy_curve():
    verdict = judge(LRS, noisy(CURVE, 0.05, 0))
    assert set(verdict.suggestions) == {"steep", "minimum", "valley", "slide"}
    assert verdict.reason is None
    for lr in verdict.suggestions.values():
        assert 1e-5 < lr < 1e-2


def test_rules_that_agree_within_ten_times_do_not_warn():
    verdict = judge(LRS, CURVE)
    assert max(verdict.suggestions.values()) / min(verdict.suggestions.values()) < 10
    assert verdict.warning is None


def test_rules_that_disagree_warn_with_numbers():
    # A cliff at 1e-6, and then a slow fall to 1e-1: steepest there, smallest here.
    losses = [3.0 - smooth_step(1 / lr, middle=6.0, height=1.5) for lr in LRS]
    losses = [loss - 0.02 * step if step <= 60 else loss + step for step, loss in enumerate(losses)]
    verdict = judge(LRS, losses)
    assert verdict.suggestions["minimum"] / verdict.suggestions["steep"] > 10
    assert "disagree by" in verdict.warning
    for rule, lr in verdict.suggestions.items():
        if lr is not None:
            assert f"{rule} {lr:.2g}" in verdict.warning


def test_a_loss_that_still_falls_at_the_end_warns():
    verdict = judge(LRS[:48], CURVE[:48])
    assert verdict.suggestions["minimum"] is None
    assert verdict.suggestions["valley"] is not None
    assert "still falls at the largest LR, 0.005 - raise lr_max" in verdict.warning
    ended = judge(LRS[:48], CURVE[:48], ended="the loss diverges at LR 0.0063")
    assert ended.suggestions["minimum"] == pytest.approx(0.0005, rel=0.01)
    assert "still falls" not in (ended.warning or "")


# ---- nothing to suggest -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "losses",
    [
        pytest.param([1.0] * 71, id="constant"),
        pytest.param([1.0 + 0.01 * step for step in range(71)], id="rising"),
        pytest.param([1.0 - 1e-5 * step for step in range(71)], id="next to nothing"),
        pytest.param([0.0] * 71, id="zero"),
    ],
)
def test_a_flat_loss_suggests_nothing(losses):  # fault 74
    verdict = judge(LRS, losses)
    assert verdict.suggestions == dict.fromkeys(RULES)
    assert verdict.warning is None
    assert f"the loss begins at {np.mean(losses[:10]):.4g}" in verdict.reason
    assert "expected a fall" in verdict.reason


def test_noise_is_not_a_fall():  # fault 74
    falls = [judge(LRS, noisy([1.0] * 71, 0.1, seed)).reason is None for seed in range(200)]
    assert sum(falls) <= 6


def test_a_fall_of_twice_the_noise_is_one():
    curve = [bent(lr, fall=0.2) for lr in LRS]  # by 0.6 in all
    falls = [judge(LRS, noisy(curve, 0.3, seed)).reason is None for seed in range(200)]
    assert sum(falls) >= 120


@pytest.mark.parametrize("points", [2, 5, ENOUGH - 1])
def test_too_few_points_suggest_nothing(points):  # fault 74
    verdict = judge(LRS[:points], CURVE[:points], ended="the loss is not finite any more at LR 0.5")
    assert verdict.suggestions == dict.fromkeys(RULES)
    assert verdict.reason.startswith(
        f"after {points} steps the loss is not finite any more at LR 0.5, expected at least"
    )


def test_no_point_suggests_nothing():  # fault 74
    verdict = judge([], [], ended="the loss is not finite from the first step on, at LR 1e-07")
    assert verdict.losses == ()
    assert verdict.suggestions == dict.fromkeys(RULES)
    assert verdict.reason.startswith("the loss is not finite from the first step on, at LR 1e-07, expected")
