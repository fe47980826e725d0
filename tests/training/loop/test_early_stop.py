"""The choice of the epoch: by one figure in its direction, ties by the loss, patience in the last phase."""

import pytest

from transferkit.training.loop.early_stop import BEFORE_TRAINING, Selection


def chosen(offers, higher_is_better=True):
    selection = Selection("val_acc", higher_is_better=higher_is_better, patience=None)
    for epoch, (value, *loss) in enumerate(offers, BEFORE_TRAINING):
        selection.offer(value, epoch, *loss)
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


def test_a_resume_goes_on_with_the_choice():
    before = Selection("val_acc", higher_is_better=True, patience=2)
    before.offer(0.75, 0, 0.5)
    after = Selection("val_acc", higher_is_better=True, patience=2)
    after.load_state_dict(before.state_dict())
    assert not after.offer(0.75, 1, 0.6)
    assert not after.end_epoch(1, 0)
    assert after.offer(0.75, 2, 0.4)
    assert not after.end_epoch(2, 0)
    assert after.end_epoch(4, 0)
    old = {key: value for key, value in before.state_dict().items() if key != "best_loss"}
    after.load_state_dict(old)  # of an earlier release
    assert not after.offer(0.75, 1, 0.1)
