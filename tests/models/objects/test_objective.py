"""What is watched of objects is what is measured of them in the end; the loss of overlaps by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from detections import drawn

from transferkit.core.errors import ConfigError
from transferkit.data.batches.boxes import Boxes, BoxTarget
from transferkit.models.figures.detection import box_metrics
from transferkit.models.objects.extent import BoxExtent
from transferkit.models.objects.objective import BoxFigure, BoxObjective, overlap_losses
from transferkit.models.parts import LossOptions


def target(boxes, classes, crowd=None):
    marks = torch.zeros(len(classes), dtype=torch.bool) if crowd is None else torch.tensor(crowd)
    return BoxTarget(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.tensor(classes, dtype=torch.int64), marks
    )


def detections(*rows, of=5):
    table = torch.zeros(of, 6)
    for at, row in enumerate(rows):
        table[at] = torch.tensor(row)
    return table


@pytest.mark.parametrize(
    ("rows", "objects", "expected"),
    [
        ([(0, 0, 10, 10, 1.0, 0)], target([[0, 0, 10, 10]], [0]), 0.0),
        ([(0, 0, 10, 10, 0.5, 0)], target([[0, 0, 10, 10]], [0]), 1 - 2 * 0.5 / 1.5),
        ([(0, 0, 10, 10, 0.5, 1)], target([[0, 0, 10, 10]], [0]), 1.0),
        ([(0, 0, 10, 4, 0.5, 0)], target([[0, 0, 10, 10]], [0]), 1.0),
        # Of two that find the same object the less confident one is wrong.
        ([(0, 0, 10, 10, 0.8, 0), (0, 0, 10, 9, 0.4, 0)], target([[0, 0, 10, 10]], [0]), 1 - 1.6 / 2.2),
        # What finds a crowd counts neither way.
        ([(0, 0, 10, 10, 0.8, 0)], target([[0, 0, 10, 10], [20, 0, 30, 10]], [0, 0], [True, False]), 1.0),
        ([(0, 0, 10, 10, 0.8, 0)], target([[0, 0, 10, 10]], [0], [True]), 0.0),
        ([], target([], []), 0.0),
        ([(0, 0, 10, 10, 0.1, 0)], target([], []), 1.0),
        ([], target([[0, 0, 10, 10]], [0]), 1.0),
    ],
)
def test_the_loss_of_overlaps_by_hand(rows, objects, expected):
    losses = overlap_losses(detections(*rows)[None], Boxes([objects]))
    assert losses.tolist() == pytest.approx([expected], abs=1e-6)


def batch_of(tally, most=100):
    """Return the detections of a tally as a network returns them, and its objects as a batch has them."""
    rows = np.column_stack([tally.boxes, tally.scores, tally.classes]).astype(np.float32)
    rows = np.concatenate([rows, np.zeros((most - len(rows), 6), dtype=np.float32)])
    own = BoxTarget(
        torch.from_numpy(tally.true_boxes), torch.from_numpy(tally.true_classes), torch.from_numpy(tally.crowd)
    )
    return torch.from_numpy(rows), own


def test_figures_of_an_epoch_are_those_of_the_tallies():
    tallies = [replace(one, boxes=one.boxes.clip(0)) for one in drawn(seed=4, ties=False)]
    values = box_metrics(tallies, ("a", "b", "c"), resamples=10)
    for name in ("map", "map50", "map75"):
        metric = BoxFigure(name, 3)
        for at in range(0, len(tallies), 4):
            rows, objects = zip(*map(batch_of, tallies[at : at + 4]), strict=True)
            metric.update(torch.stack(rows), Boxes(objects))
        assert float(metric.compute()) == pytest.approx(values[name], abs=1e-9)
        metric.reset()
        rows, own = batch_of(tallies[0])
        metric.update(rows[None], Boxes([own]))
        alone = box_metrics(tallies[:1], ("a", "b", "c"), resamples=10)[name]
        assert float(metric.compute()) == pytest.approx(alone, abs=1e-9)


def test_nothing_found_is_nothing():
    metric = BoxFigure("map", 2)
    metric.update(torch.zeros(1, 100, 6), Boxes([target([[0, 0, 10, 10]], [0])]))
    assert float(metric.compute()) == 0.0
    metric.reset()
    metric.update(torch.zeros(1, 100, 6), Boxes([target([], [])]))
    assert float(metric.compute()) == 0.0


def test_views_are_turned_back():
    rows = np.zeros((2, 3, 6 + 784), dtype=np.float32)
    rows[:, 0, :6] = (10, 20, 30, 60, 0.9, 1)
    rows[:, 0, 6:] = np.arange(784)
    before = rows.copy()
    turned = BoxExtent().upright(rows, (1,), (100, 200))
    assert np.array_equal(rows, before)
    assert np.array_equal(turned[0], rows[0])
    assert turned[1, 0, :6].tolist() == pytest.approx([170, 20, 190, 60, 0.9, 1])
    assert np.array_equal(turned[1, 0, 6:].reshape(28, 28), np.arange(784).reshape(28, 28)[:, ::-1])
    assert not turned[1, 1:].any()
    assert np.array_equal(BoxExtent().upright(turned, (1,), (100, 200)), rows)


def test_what_cannot_be_weighed_is_said():
    objective = BoxObjective()
    with pytest.raises(ConfigError, match="detectors weigh objects by themselves"):
        objective.balanced(None, 2)
    with pytest.raises(ConfigError, match="detectors weigh objects by themselves"):
        objective.loss(LossOptions(class_weights=[1.0, 2.0]), 2)
    with pytest.raises(ConfigError, match="no figure 'mape'"):
        objective.metrics(["mape"], 2)
