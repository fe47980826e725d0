"""Scores of boxes: those of the tallies, at thresholds that travel with the model."""

import json
from dataclasses import replace

import pytest
from detections import drawn

from transferkit.core.errors import CheckpointError, ConfigError, TransferkitWarning
from transferkit.core.targets import TargetSpec
from transferkit.models.answers import detection
from transferkit.models.answers.detection import BoxCalibration, BoxCalibrator, BoxScores, thresholds_from
from transferkit.models.detections.counts import BoxCounts
from transferkit.models.figures.boxes import Thresholds
from transferkit.models.figures.detection import box_figures, box_metrics

SPEC = TargetSpec(("cell", "nucleus", "dirt"))


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(detection, "box_metrics", lambda *given, **how: box_metrics(*given, resamples=20, **how))


def test_scores_are_those_of_the_tallies():
    tallies = drawn(seed=1)
    values = BoxScores().measure(tallies, None, SPEC, seed=3)
    assert values == box_metrics(tallies, SPEC.names, seed=3, resamples=20)
    figures = BoxScores().figures(values)
    assert figures == box_figures(values)
    assert figures[0].key == "map"


def fitted(tallies, method="auto"):
    return BoxCalibrator(len(SPEC.names)).fit(tallies, None, method=method, seed=0)


def test_thresholds_travel_with_the_model():
    """Chosen on val, as `model.json` keeps them, they are those that test is measured at."""
    val, test = drawn(seed=1, count=20), drawn(seed=2, count=20)
    calibration, _ = fitted(val)
    kept = BoxCalibrator(3).read(json.loads(json.dumps(calibration.to_dict())))
    assert kept == calibration
    spec = SPEC.with_facts(kept.facts)
    here = BoxScores().measure(val, None, SPEC)
    assert thresholds_from(spec) == Thresholds(
        here["threshold"], tuple(here["per_class"][name]["threshold"] for name in SPEC.names)
    )
    values = BoxScores().measure(test, None, spec)
    assert (values["threshold"], values["chosen_here"]) == (here["threshold"], False)
    assert values["f1"] <= BoxScores().measure(test, None, SPEC)["f1"]


def test_held_out_figures_are_at_thresholds_chosen_without_the_picture():
    val = drawn(seed=1, count=20)
    calibration, told = fitted(val)
    assert len({one.thresholds.every for one in told}) > 1
    values = BoxScores().measure(told, None, SPEC.with_facts(calibration.facts))
    assert values["chosen_here"] is False
    # By hand: each picture alone, at its own threshold.
    right = wrong = objects = 0
    for one in told:
        table, _ = BoxCounts([replace(one, thresholds=None)], range(3)).at(one.thresholds)
        right, wrong, objects = right + table[0, 0], wrong + table[0, 1], objects + table[0, 2]
    assert values["f1"] == pytest.approx(2 * right / (right + wrong + objects))
    assert {key: calibration.figures[key] for key in ("f1", "precision", "recall")} == pytest.approx(
        {key: values[key] for key in ("f1", "precision", "recall")}
    )
    assert values["f1"] < BoxScores().measure(val, None, SPEC)["f1"]


def test_what_no_threshold_can_be_chosen_on():
    few = drawn(count=3)
    with pytest.warns(TransferkitWarning, match="3 held-out pictures are too few"):
        calibration, told = fitted(few)
    assert calibration.method == "none" and told == few
    with pytest.warns(TransferkitWarning, match="no object of the held-out pictures is found"):
        calibration, _ = fitted(drawn(count=20, detections=0))
    assert calibration.method == "none"
    assert fitted(few, "none")[0].method == "none"
    with pytest.raises(ConfigError, match="expected one of none, threshold"):
        fitted(few, "temperature")
    with pytest.raises(CheckpointError, match="run `transferkit calibrate` again"):
        BoxCalibrator(3).read({"method": "threshold", "thresholds": {"every": "x"}})


def test_no_thresholds_are_none():
    assert thresholds_from(SPEC) is None
    kept = BoxCalibration(Thresholds(None, (None, None, None)))
    assert thresholds_from(SPEC.with_facts(kept.facts)) == kept.thresholds
