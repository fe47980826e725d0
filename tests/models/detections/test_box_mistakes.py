"""Mistakes of detectors one by one: each kind made by hand, and that all boxes and objects are accounted for."""

import numpy as np
import pytest
from detections import drawn

from transferkit.models.detections.counts import BoxCounts
from transferkit.models.detections.matching import NOTHING, RIGHT, WRONG, matched
from transferkit.models.detections.mistakes import (
    KINDS,
    Missed,
    confident_mistakes,
    missed_objects,
    mistake_counts,
)
from transferkit.models.figures.boxes import BoxTally

CELL, NUCLEUS = 0, 1


def tally(found, true, crowd=None):
    """Detections as (box, score, class), objects as (box, class)."""
    return BoxTally(
        boxes=np.array([box for box, _, _ in found], dtype=np.float32).reshape(-1, 4),
        scores=np.array([score for _, score, _ in found], dtype=np.float32),
        classes=np.array([label for *_, label in found], dtype=np.int64),
        true_boxes=np.array([box for box, _ in true], dtype=np.float32).reshape(-1, 4),
        true_classes=np.array([label for _, label in true], dtype=np.int64),
        crowd=np.zeros(len(true), dtype=bool) if crowd is None else np.array(crowd),
    )


def lists(tallies, **how):
    labels = [CELL, NUCLEUS]
    sides = (tallies, matched(tallies, labels), labels)
    return confident_mistakes(*sides, **how), missed_objects(*sides, **how)


OBJECT = ([0, 0, 100, 100], CELL)
ELSEWHERE = ([200, 0, 260, 60], NUCLEUS)


@pytest.mark.parametrize(
    ("found", "kind", "thing", "overlap"),
    [
        ([([0, 0, 100, 90], 0.9, CELL), ([0, 0, 100, 80], 0.5, CELL)], "double", 0, 0.8),
        ([([0, 0, 100, 80], 0.5, NUCLEUS)], "wrong class", 0, 0.8),
        ([([0, 0, 100, 40], 0.5, CELL)], "badly placed", 0, 0.4),
        ([([0, 0, 100, 9], 0.5, CELL)], "background", None, 0.09),
        ([([300, 300, 310, 310], 0.5, CELL)], "background", None, 0.0),
        ([([0, 0, 100, 40], 0.5, NUCLEUS)], "background", None, 0.4),  # of another class and not half on it
        # On an object of its class a little, on one of another by more than half: it is about the other one.
        ([([190, 0, 260, 60], 0.5, CELL)], "wrong class", 1, 6 / 7),
    ],
)
def test_each_kind(found, kind, thing, overlap):
    one = tally(found, [OBJECT, ELSEWHERE])
    mistakes, _ = lists([tally([], []), one])
    [mistake] = mistakes
    assert (mistake.picture, mistake.place, mistake.kind, mistake.object) == (1, len(found) - 1, kind, thing)
    assert (mistake.score, mistake.label) == (0.5, found[-1][2])
    assert mistake.overlap == pytest.approx(overlap)


def test_what_is_right_or_of_a_crowd_is_no_mistake():
    found = [([0, 0, 100, 90], 0.9, CELL), ([210, 10, 220, 20], 0.8, NUCLEUS)]
    mistakes, missed = lists([tally(found, [OBJECT, ELSEWHERE], crowd=[False, True])])
    assert mistakes == []
    assert missed == []


def test_a_crowd_of_another_class_is_background():
    mistakes, _ = lists([tally([([200, 0, 260, 60], 0.8, CELL)], [ELSEWHERE], crowd=[True])])
    assert [(each.kind, each.object, each.overlap) for each in mistakes] == [("background", None, 0.0)]


def test_the_most_confident_come_first():
    tallies = drawn(count=15, classes=2, seed=3)
    mistakes, _ = lists(tallies, most=None)
    assert [each.score for each in mistakes] == sorted((each.score for each in mistakes), reverse=True)
    assert len({(each.picture, each.place) for each in mistakes}) == len(mistakes)
    first, _ = lists(tallies, most=5)
    assert first == mistakes[:5]
    confident, _ = lists(tallies, most=None, threshold=0.4)
    assert confident == [each for each in mistakes if each.score >= 0.4]
    assert 0 < len(confident) < len(mistakes)


def test_every_box_and_object_is_accounted_for():
    tallies = drawn(count=15, classes=2, seed=4)
    counts = BoxCounts(tallies, [CELL, NUCLEUS])
    states = np.concatenate([one.states[0, 0] for one in counts.matched])
    mistakes = confident_mistakes(tallies, counts.matched, counts.labels, most=None)
    missed = missed_objects(tallies, counts.matched, counts.labels, most=None)
    assert len(mistakes) == (states == WRONG).sum()
    assert len(missed) == sum(int((~one.crowd).sum()) for one in tallies) - (states == RIGHT).sum()
    assert (states == NOTHING).any()
    made = mistake_counts(mistakes)
    assert tuple(made) == KINDS
    assert sum(made.values()) == len(mistakes)
    assert min(made.values()) > 0
    for each in missed:
        assert not tallies[each.picture].crowd[each.object]
        assert tallies[each.picture].true_classes[each.object] == each.label


def test_missed_objects_are_ordered():
    """Those that nothing finds first, the large ones of them first; then those that are found without confidence."""
    true = [([0, 0, 10, 10], CELL), ([20, 0, 60, 40], CELL), ([100, 0, 150, 50], NUCLEUS), ([200, 0, 300, 100], CELL)]
    found = [(true[3][0], 0.9, CELL), (true[2][0], 0.3, NUCLEUS), ([18, 0, 60, 40], 0.2, NUCLEUS)]
    one = tally(found, true)
    _, missed = lists([tally([], []), one], threshold=0.5)
    assert [(each.picture, each.object, each.label) for each in missed] == [(1, 1, CELL), (1, 0, CELL), (1, 2, NUCLEUS)]
    assert [each.area for each in missed] == [1600, 100, 2500]
    assert [each.score for each in missed] == pytest.approx([0, 0, 0.3])
    _, all_missed = lists([one])
    assert all_missed == [Missed(0, 1, CELL, 0.0, 1600.0), Missed(0, 0, CELL, 0.0, 100.0)]
    assert lists([one], most=1)[1] == all_missed[:1]


def test_no_class_and_no_picture():
    assert confident_mistakes([], [], []) == []
    assert missed_objects([], [], []) == []
