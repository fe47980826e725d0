"""Scores of boxes: those of the tallies, at thresholds that travel with the model."""

import json

import pytest
from detections import drawn

from transferkit.core.targets import TargetSpec
from transferkit.models.answers import detection
from transferkit.models.answers.detection import BoxScores, thresholds_from, thresholds_to
from transferkit.models.detections.counts import Thresholds
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


def test_thresholds_travel_with_the_model():
    """Chosen on val, as `model.json` keeps them, they are those that test is measured at."""
    val, test = drawn(seed=1, count=20), drawn(seed=2, count=20)
    chosen = BoxScores().measure(val, None, SPEC)
    facts = json.loads(json.dumps(SPEC.with_facts(thresholds_to(chosen, SPEC)).to_dict()))
    kept = TargetSpec.from_dict(facts)
    assert thresholds_from(kept) == Thresholds(
        chosen["threshold"], tuple(chosen["per_class"][name]["threshold"] for name in SPEC.names)
    )
    values = BoxScores().measure(test, None, kept)
    assert (values["threshold"], values["chosen_here"]) == (chosen["threshold"], False)
    assert values["f1"] <= BoxScores().measure(test, None, SPEC)["f1"]
    again = BoxScores().measure(val, None, kept)
    assert {key: again[key] for key in chosen if key != "chosen_here"} == {
        key: value for key, value in chosen.items() if key != "chosen_here"
    }


def test_no_thresholds_are_none():
    assert thresholds_from(SPEC) is None
    values = BoxScores().measure(drawn(count=1, detections=0), None, SPEC)
    kept = SPEC.with_facts(thresholds_to(values, SPEC))
    assert thresholds_from(kept) == Thresholds(None, (None, None, None))
