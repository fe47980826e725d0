"""The race: who is measured on what, who is dropped, and that the best one never is."""

import math
from itertools import pairwise

import numpy as np
import pytest

from transferkit.core.errors import StoreError, TrainingError
from transferkit.results.advise.halving import Gap, race, rungs


class Drawn:
    """Candidates that are right on each picture by a chance of their own; pictures are equally hard for all."""

    def __init__(self, chances, sizes, seed=0, *, early=None):
        generator = np.random.default_rng(seed)
        hardness = generator.random(sizes[-1])
        own = generator.random((len(chances), sizes[-1]))
        # half of what makes a picture right is the picture's own, so that candidates agree as networks do
        self.right = np.where(generator.random(sizes[-1]) < 0.5, hardness, own) < np.array(chances)[:, None]
        self.sizes, self.early, self.calls = sizes, early or {}, []

    def measure(self, number, rung):
        self.calls.append((number, rung))
        right = self.right[number, : self.sizes[rung]]
        return right & ~(np.arange(len(right)) % 2 == 0) if (number, rung) in self.early else right

    @staticmethod
    def compare(leader, other):
        difference = leader.astype(float) - other
        error = 1.96 * difference.std() / np.sqrt(len(difference))
        return Gap(difference.mean(), difference.mean() - error, difference.mean() + error)

    def run(self):
        return race(len(self.right), self.sizes, self.measure, self.compare, lambda right: right.mean())


def test_rungs_double_and_the_last_one_is_all():
    """A ladder from the bottom (scikit-learn's `exhaust`) can end before all pictures are used."""
    assert rungs(3068, 10) == [383, 767, 1534, 3068]
    assert rungs(1050, 2) == [262, 525, 1050]
    for total in range(1, 5000, 137):
        sizes = rungs(total, 3)
        assert sizes[-1] == total
        assert all(size == after // 2 for size, after in pairwise(sizes))


def test_few_pictures_have_one_rung():
    assert rungs(249, 6) == [249]
    assert rungs(5000, 200) == [2500, 5000]  # ten of a class at least
    assert rungs(5000, 10, halving=False) == [5000]


def test_who_is_clearly_behind_is_dropped_and_not_measured_again():
    drawn = Drawn([0.9, 0.88, 0.5, 0.3], [256, 512, 1024])
    places = drawn.run()
    assert [place.dropped for place in places] == [None, None, 0, 0]
    assert (2, 1) not in drawn.calls
    assert (1, 2) in drawn.calls
    assert [len(place.laps) for place in places] == [3, 3, 1, 1]
    assert places[0].laps[-1].behind is None
    assert places[1].laps[-1].behind is not None


def test_close_ones_are_kept_however_many():
    drawn = Drawn([0.80, 0.80, 0.80, 0.80, 0.80, 0.80], [256, 512], seed=3)
    assert all(place.dropped is None for place in drawn.run())


def test_the_better_half_is_kept_even_where_it_is_clearly_behind():
    """Curves cross: what is second on few pictures may be first on all of them."""
    drawn = Drawn([0.95, 0.6, 0.3, 0.2], [256, 512])
    assert [place.dropped for place in drawn.run()] == [None, None, 0, 0]


def test_the_best_is_never_dropped_on_drawn_sets():
    chances = [0.62, 0.70, 0.66, 0.58, 0.64, 0.50]
    lost = sum(Drawn(chances, [256, 512, 1024], seed=seed).run()[1].dropped is not None for seed in range(200))
    assert lost == 0


def test_the_limit_is_for_all_comparisons_together():
    """Of equal candidates one is called clearly behind in at most a twentieth of the races."""
    lost = sum(
        any(place.dropped is not None for place in Drawn([0.7] * 6, [256, 512], seed=seed).run()) for seed in range(300)
    )
    assert lost <= 0.05 * 300 + 2 * np.sqrt(300 * 0.05 * 0.95)


def test_a_late_starter_is_not_lost():
    """The best of all looks like the second best on the first rung, and is measured again."""
    drawn = Drawn([0.75, 0.9, 0.4, 0.4], [256, 512, 1024], early={(1, 0)})
    places = drawn.run()
    assert places[1].dropped is None
    assert places[1].laps[-1].result.mean() > places[0].laps[-1].result.mean()


@pytest.mark.parametrize("kind", [StoreError, TrainingError])
def test_one_that_cannot_be_measured_is_out_with_its_reason(kind):
    drawn = Drawn([0.9, 0.9, 0.7], [256, 512])

    def measure(number, rung):
        if number == 2:
            raise kind("features are not finite")
        return drawn.measure(number, rung)

    places = race(3, drawn.sizes, measure, drawn.compare, lambda right: right.mean())
    assert places[2].failed == "features are not finite"
    assert places[2].laps == []
    assert [len(place.laps) for place in places] == [2, 2, 0]


def test_where_none_can_be_measured_the_reason_is_raised():
    def measure(number, rung):
        raise StoreError(f"candidate {number}")

    with pytest.raises(StoreError, match="candidate 1"):
        race(2, [100], measure, Drawn.compare, float)


def test_other_errors_are_not_a_candidates_own():
    def measure(number, rung):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        race(2, [100], measure, Drawn.compare, float)


def test_equal_results_are_ordered_as_they_were_named():
    places = race(2, [10], lambda number, rung: 1.0, lambda one, other: Gap(0.0, 0.0, 0.0), float)
    assert places[0].laps[0].behind is None


def test_deviations():
    assert Gap(1.96, 0.0, 3.92).deviations == pytest.approx(1.96, rel=1e-3)
    assert Gap(0.5, 0.5, 0.5).deviations == math.inf
    assert Gap(0.0, 0.0, 0.0).deviations == 0
    assert Gap(0.0, -math.inf, math.inf).deviations == 0  # not defined: never clearly behind
    assert Gap(0.0, -math.inf, math.inf).to_dict() == {"lead": 0.0, "low": None, "high": None}
