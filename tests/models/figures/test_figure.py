"""Figures: what a split's metrics become, and the way through JSON."""

import json

import pytest
import torch

from transferkit.models.figures.classification import classification_metrics
from transferkit.models.figures.figure import Figure, classification_figures


@pytest.fixture(scope="module")
def values():
    probs = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.8, 0.1, 0.1]])
    return classification_metrics(probs, torch.tensor([0, 1, 1]), ("a", "b", "c"), resamples=20)


def test_every_number_of_a_split_has_its_figure(values):
    figures = {(one.key, one.of): one for one in classification_figures(values)}
    whole = ["acc", "balanced_acc", "f1_macro", "acc_top5", "loss", "ece"]
    assert list(figures) == [(key, None) for key in whole] + [
        (key, name) for name in "abc" for key in ("recall", "precision", "f1")
    ]
    for key in whole:
        figure = figures[key, None]
        assert figure.value == values[key]
        assert figure.ci == (tuple(values[f"{key}_ci"]) if f"{key}_ci" in values else None)
        assert figure.higher_is_better == (key not in ("loss", "ece"))
        assert figure.label and figure.meaning
    assert (figures["acc", None].unit, figures["loss", None].unit, figures["ece", None].unit) == ("share", "nats", "")
    assert (figures["recall", "b"].value, figures["recall", "c"].value) == (0.5, None)


def test_what_is_not_there_has_no_figure(values):
    assert [one.key for one in classification_figures({"acc": 0.5, "acc_ci": [0.4, 0.6], "n": 3})] == ["acc"]
    assert classification_figures({}) == []


def test_the_way_through_json(values):
    for figure in classification_figures(values):
        assert Figure.from_dict(json.loads(json.dumps(figure.to_dict(), allow_nan=False))) == figure
