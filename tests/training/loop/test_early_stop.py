"""The choice of the epoch: by one figure, or picture by picture; patience in the last phase; a resume goes on."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from transferkit.training.loop.early_stop import (
    BEFORE_TRAINING,
    ByFigure,
    ByPictures,
    Candidate,
    Selection,
    clearness,
)


def chosen(offers, higher_is_better=True):
    selection = Selection("val_acc", ByFigure(higher_is_better), patience=None)
    for epoch, (value, *loss) in enumerate(offers, BEFORE_TRAINING):
        selection.offer(Candidate(epoch, value, *loss))
    return selection.best_epoch


@pytest.mark.parametrize(
    ("offers", "higher", "expected"),
    [
        ([(0.5, 1.0), (0.75, 0.9), (0.75, 0.7), (0.75, 0.8)], True, 1),  # of equal ones the lowest loss
        ([(0.75, 0.7), (0.75, 0.7), (0.5, 0.1)], True, BEFORE_TRAINING),  # then the first
        ([(0.5,), (0.75,), (0.75,)], True, 0),  # no loss is known
        ([(0.5, 1.0), (0.75, None), (0.75, 0.1)], True, 0),
        ([(0.3, 0.1), (0.2, 0.9), (0.2, 0.8)], False, 1),
        ([(0.5, 1.0), (float("nan"), 0.1)], True, BEFORE_TRAINING),
    ],
)
def test_which_epoch(offers, higher, expected):  # fault 119
    assert chosen(offers, higher) == expected


def candidate(epoch, losses, last=False):
    losses = torch.tensor(losses, dtype=torch.float64)
    return Candidate(epoch, float(losses.mean()), float(losses.mean()), losses, last)


def test_clearness_is_the_statistic_of_the_paired_test():
    draws = np.random.default_rng(0)
    worse, better = draws.exponential(size=(2, 40))
    expected = stats.ttest_rel(worse, better).statistic
    assert clearness(candidate(0, worse), candidate(1, better)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [([1.0, 2.0, 3.0], 0.0), ([0.5, 1.5, 2.5], math.inf), ([1.5, 2.5, 3.5], -math.inf)],
)
def test_differences_that_are_all_alike(losses, expected):
    assert clearness(candidate(0, [1.0, 2.0, 3.0]), candidate(1, losses)) == expected


def test_one_picture_proves_nothing():
    assert clearness(candidate(0, [9.0]), candidate(1, [1.0])) == 0.0


def test_candidates_without_pictures_are_not_compared():
    with pytest.raises(TypeError, match="losses of one are not known"):
        clearness(Candidate(0, 1.0), candidate(1, [1.0]))


@pytest.mark.parametrize(
    ("per_output", "expected"),
    [(1, 2.0), (5, math.log2(14 / 5)), (14, 0.0), (20, math.log2(14 / 20)), (28, -1.0), (300, -1.0)],
)
def test_what_is_demanded_of_fine_tuning_falls_with_the_pictures(per_output, expected):
    assert ByPictures(per_output).demanded == pytest.approx(expected)


def test_the_rule_is_told_in_words():
    assert "unless the last epoch is better than it by more than 1.5 standard errors" in ByPictures(5.0).words
    assert "where it is better than the last epoch by 0.5 standard errors or more" in ByPictures(20.0).words


NOISE = np.random.default_rng(1).normal(size=100)


def by_pictures(*offers, per_output=20.0, solved=True):
    """Offer losses, the solved head's first; return the selection."""
    selection = Selection("val_loss", ByPictures(per_output), patience=None)
    first = BEFORE_TRAINING if solved else 0
    for epoch, losses in enumerate(offers, first):
        selection.offer(candidate(epoch, losses, last=epoch == first + len(offers) - 1))
    return selection


def test_a_lower_loss_by_chance_is_not_taken_for_skill():  # fault 201
    """An epoch that is lower by half a standard error: the later one stays. By two it is kept."""
    error = NOISE.std(ddof=1) / 10
    base = np.full(100, 2.0)
    for gap, expected in ((0.5, 1), (2.0, 0)):
        earlier = base + NOISE - NOISE.mean() - gap * error
        assert by_pictures(earlier, base, solved=False).best_epoch == expected


@pytest.mark.parametrize(("per_output", "expected"), [(5.0, BEFORE_TRAINING), (20.0, 0), (300.0, 0)])
def test_the_fewer_the_pictures_the_clearer_fine_tuning_must_win(per_output, expected):
    error = NOISE.std(ddof=1) / 10
    solved, tuned = np.full(100, 2.0), 2.0 + NOISE - NOISE.mean() - 1.0 * error  # better by one standard error
    assert by_pictures(solved, tuned, per_output=per_output).best_epoch == expected


def test_each_epoch_is_compared_with_the_solved_head_not_with_the_one_before_alone():
    """Epochs that get worse little by little do not creep past the head that they are clearly worse than."""
    error = NOISE.std(ddof=1) / 10
    centred = NOISE - NOISE.mean()
    steps = [2.0 + centred * scale for scale in (0.0, 1.0, -1.0)]
    selection = by_pictures(steps[0], steps[1] - 3 * error, steps[2] + 1.5 * error, per_output=28.0)
    assert selection.best_epoch == 0


@pytest.mark.parametrize(("gain", "last", "expected"), [(1.5, -0.2, BEFORE_TRAINING), (2.5, -2.0, 0), (1.5, 0.5, 1)])
def test_of_many_epochs_one_is_lucky(gain, last, expected):
    """Before the last one, two standard errors are demanded over the solved head."""
    error = NOISE.std(ddof=1) / 10
    centred = NOISE - NOISE.mean()
    other = centred[::-1].copy()
    kept = by_pictures(np.full(100, 2.0), 2.0 + centred - gain * error, 2.0 + other - last * error, per_output=14.0)
    assert kept.best_epoch == expected


def test_patience_counts_from_the_lowest_loss():
    selection = Selection("val_loss", ByPictures(300.0), patience=2)
    for epoch, mean in enumerate((2.0, 1.0, 1.01, 1.02)):
        selection.offer(candidate(epoch, mean + 0.5 * (NOISE - NOISE.mean()) * (1 + epoch)))
        stopped = selection.end_epoch(epoch, 0)
    assert stopped
    assert selection.best_epoch == 3  # none was clearly better than it


def test_how_clear_the_choice_was():
    centred = NOISE - NOISE.mean()
    clarity = by_pictures(np.full(100, 2.0), 1.5 + centred).clarity()
    half = 1.96 * NOISE.std(ddof=1) / 10
    assert (clarity.over, clarity.pictures) == ("the solved probe", 100)
    assert clarity.gain == pytest.approx(0.5)
    assert clarity.gain_ci == pytest.approx((0.5 - half, 0.5 + half))
    assert clarity.sentence == (
        "against the solved probe the loss on 100 pictures changes by \N{MINUS SIGN}0.500, 95 % interval "
        f"\N{MINUS SIGN}{0.5 + half:.3f} to \N{MINUS SIGN}{0.5 - half:.3f}"
    )
    kept = by_pictures(np.full(100, 2.0), 2.5 + centred).clarity()
    assert (kept.over, kept.gain) == ("epoch 1", pytest.approx(0.5))  # the solved head is kept
    assert by_pictures(np.full(100, 2.0)).clarity() is None  # there is nothing to compare it with
    lowest = by_pictures(np.full(100, 2.0), 1.95 + centred, per_output=5.0).clarity()
    assert (lowest.over, lowest.gain) == ("epoch 1", pytest.approx(-0.05))


@pytest.mark.parametrize("rule", [ByFigure(higher_is_better=False), ByPictures(300.0)])
def test_patience_is_not_worn_out_by_a_solved_head(rule):  # fault 202
    """Fine-tuning falls behind it at first: epochs that improve on one another go on."""
    selection = Selection("val_loss", rule, patience=1)
    stops = []
    for epoch, mean in enumerate((1.0, 1.9, 1.7, 1.5, 1.6), BEFORE_TRAINING):
        selection.offer(candidate(epoch, [mean, mean + 0.1]))
        stops.append(epoch >= 0 and selection.end_epoch(epoch, 0))
    assert stops == [False, False, False, False, True]
    assert selection.best_epoch == BEFORE_TRAINING


@pytest.mark.parametrize("rule", [ByFigure(higher_is_better=True), ByPictures(1.0)])
def test_a_resume_goes_on_with_the_choice(rule):
    def offer(selection, epoch, value, loss):
        return selection.offer(Candidate(epoch, value, loss, torch.tensor([loss, loss + 0.1], dtype=torch.float64)))

    before = Selection("val_acc", rule, patience=2)
    offer(before, 0, 0.75, 0.5)
    after = Selection("val_acc", rule, patience=2)
    after.load_state_dict(before.state_dict())
    assert not offer(after, 1, 0.75, 0.6)
    assert not after.end_epoch(1, 0)
    assert offer(after, 2, 0.75, 0.4)
    assert not after.end_epoch(2, 0)
    assert after.end_epoch(4, 0)


def test_a_run_that_an_earlier_release_began_goes_on():
    state = {"best_value": 0.75, "best_epoch": 0, "stopped_early": False}
    by_figure, by_pictures = (Selection("val_acc", rule, patience=2) for rule in (ByFigure(True), ByPictures(1.0)))
    for selection in (by_figure, by_pictures):
        selection.load_state_dict(state)
        assert selection.best_epoch == 0
    assert not by_figure.offer(Candidate(1, 0.75, 0.1))
    assert by_pictures.offer(candidate(1, [0.1, 0.2]))
