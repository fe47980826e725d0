"""Boxes that are told and objects, judged one by one: as the figures count them, and the same after a file."""

import numpy as np
import pytest
from detections import drawn

from transferkit.core.targets import TargetSpec
from transferkit.models.answers.detection import BoxCalibrator, BoxScores
from transferkit.results.boxes.judged import COLUMNS, Judged, judged, told_from
from transferkit.results.details.boxes import BoxDetails
from transferkit.results.predict.boxes import BoxOutput

NAMES = ("cat", "dog", '=<b>"x"</b>')


@pytest.fixture(scope="module")
def tallies():
    return drawn(count=14, crowd=0.2)


@pytest.fixture(scope="module")
def spec(tallies):
    calibration, _ = BoxCalibrator(len(NAMES)).fit(tallies, None, method="auto", seed=0)
    return TargetSpec(NAMES).with_facts(calibration.facts)


def test_their_counts_are_those_of_the_figures(tallies, spec):
    values = BoxScores().measure(tallies, None, spec)
    pictures = judged(tallies, spec)
    kinds = [one.kind for each in pictures for one in each.wrong]
    assert {kind: kinds.count(kind) for kind in values["mistakes"] if kind != "missed"} | {
        "missed": sum(len(each.missed) for each in pictures)
    } == values["mistakes"]
    assert min(len(set(kinds)), values["mistakes"]["missed"]) > 1
    right, told = (sum(each.right for each in pictures), sum(len(each.boxes) for each in pictures))
    wrong = sum(len(each.wrong) for each in pictures)
    assert values["precision"] == pytest.approx(right / (right + wrong))
    objects = sum(one.kind != "crowd" for each in pictures for one in each.objects)
    assert values["recall"] == pytest.approx(right / objects) and values["objects"] == objects
    assert told > right + wrong  # some lie on crowds
    scores = np.concatenate([one.scores for one in tallies])
    assert told == (scores >= values["threshold"]).sum()


def test_a_row_of_the_file_says_the_same(tallies, spec):
    for one, row in zip(judged(tallies, spec), BoxOutput().rows(tallies, None, spec), strict=True):
        read = Judged.read(dict(zip(COLUMNS, row, strict=True)))
        assert len(read.boxes) == int(row[2]) and read.right == int(row[3])
        assert len(read.wrong) == int(row[4]) and len(read.missed) == int(row[5])
        assert [each.kind for each in read.objects] == [each.kind for each in one.objects]
        for mine, other in zip((*read.boxes, *read.objects), (*one.boxes, *one.objects), strict=True):
            assert mine.label == other.label and mine.box == pytest.approx(other.box, abs=0.006)
            assert mine.score == pytest.approx(other.score, abs=6e-5)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, 0.5),
        ({"every": 0.25, "of_class": [None, None, None]}, 0.25),
        ({"every": None, "of_class": [None, None, None]}, np.inf),
    ],
)
def test_where_boxes_are_told_from(facts, expected):
    assert told_from(TargetSpec(NAMES, {"thresholds": facts} if facts else {})) == expected


def test_nothing_is_told_where_no_threshold_was_any_good(tallies):  # fault 186
    none = TargetSpec(NAMES, {"thresholds": {"every": None, "of_class": [None, None, None]}})
    assert not any(one.boxes for one in judged(tallies, none))
    assert sum(len(one.missed) for one in judged(tallies, none)) == sum((~one.crowd).sum() for one in tallies)


def test_tables_lines_and_advice(tallies, spec):
    values, rows = BoxScores().measure(tallies, None, spec), BoxOutput().rows(tallies, None, spec)
    paths = [f"{number}.png" for number in range(len(rows))]
    whole = [(path, *row) for path, row in zip(paths, rows, strict=True)]
    tables = BoxDetails().tables({"val": values}, {"val": whole})
    assert list(tables) == ["per_class.csv", "pr_curves.csv", "mistakes.csv"]
    heads, *classes = tables["per_class.csv"]
    assert heads == ("split", "class", "map", "map50", "map75", "precision", "recall", "f1", "threshold", "objects",
                     "predicted", "n")  # fmt: skip
    assert [row[1] for row in classes] == list(NAMES)
    _, *curve = tables["pr_curves.csv"]
    assert len(curve) == 3 * 101 and curve[100][:3] == ("val", "cat", "1.00")
    _, *mistakes = tables["mistakes.csv"]
    assert len(mistakes) == sum(values["mistakes"].values())
    wrong = [row for row in mistakes if row[2] != "missed"]
    assert [float(row[4]) for row in wrong] == sorted((float(row[4]) for row in wrong), reverse=True)
    missed = [(row[7] - row[5]) * (row[8] - row[6]) for row in mistakes[len(wrong) :]]
    assert missed == sorted(missed, reverse=True) and {row[1] for row in mistakes} <= set(paths)
    told = dict(BoxDetails().lines(values))
    assert f"from a score of {values['threshold']:.2f} on: precision" in told["told"] and "missed" in told["mistakes"]
    table = [dict(zip(("path", *COLUMNS), row, strict=True)) for row in whole]
    path, why = BoxDetails().advice(table)
    assert why.startswith("the most mistakes") and int(table[paths.index(path)]["missed"]) >= 0
    most = max(int(row["wrong"]) + int(row["missed"]) for row in table)
    assert int(table[paths.index(path)]["wrong"]) + int(table[paths.index(path)]["missed"]) == most
    assert BoxDetails().advice([]) is None
