"""Which size in which epoch: a pure function of phases and sizes."""

import pytest

from transferkit.training.plan.phases import Phase
from transferkit.training.plan.sizes import epoch_sizes, size_words

GROUPS = ("stem", "body", "head")


def probe(epochs):
    return Phase("probe", epochs, train="head")


def tune(epochs, name="finetune"):
    return Phase(name, epochs)


def fixres(epochs):
    return Phase("fixres", epochs, train="head", test_view=True)


SOLVED = Phase("solved", 0, train="head", solve=True)


@pytest.mark.parametrize(
    ("phases", "sizes", "expected"),
    [
        ([tune(3)], None, [None] * 3),
        ([tune(3)], 96, [96] * 3),
        ([tune(3)], "64,80,96", [64, 80, 96]),
        ([tune(10)], "1,2,3", [1] * 4 + [2] * 3 + [3] * 3),
        ([tune(4)], "96,64,96", [96, 96, 64, 96]),
        ([SOLVED, tune(2)], "64,96", [64, 96]),
        ([probe(2), tune(2)], "64,96", [64, 64, 64, 96]),
        ([tune(2), probe(2)], "64,96", [64, 96, 96, 96]),
        ([probe(4)], "64,96", [64, 64, 96, 96]),
        ([tune(2), tune(2, "more")], "64,96", [64, 64, 96, 96]),
        ([tune(2), fixres(1)], "64,96", [64, 96, None]),
        ([tune(2), fixres(1)], 64, [64, 64, None]),
        ([SOLVED], "64", []),
    ],
)
def test_equal_parts_of_the_epochs_of_fine_tuning(phases, sizes, expected):
    assert epoch_sizes(phases, sizes, GROUPS) == expected


def test_the_last_size_stands_at_the_end():
    for epochs in range(1, 40):
        for count in range(1, min(epochs, 6) + 1):
            sides = list(range(100, 100 + count))
            sizes = epoch_sizes([tune(epochs)], sides, GROUPS)
            assert sizes == sorted(sizes)
            assert set(sizes) == set(sides)
            lengths = [sizes.count(side) for side in sides]
            assert max(lengths) - min(lengths) <= 1


def test_in_words():
    assert size_words([64, 64, 80, None], 96) == "64 px for 2 epochs, 80 px for 1, 96 px for 1"
    assert size_words([64], 96) == "64 px for 1 epoch"
