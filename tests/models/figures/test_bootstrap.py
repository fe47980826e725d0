"""The bootstrap against a reference of another library, and drawing whole groups."""

import numpy as np
import pytest
from scipy.stats import bootstrap

from transferkit.models.figures.bootstrap import bootstrap_intervals


def test_equals_scipys_percentile_intervals():
    values = np.random.default_rng(0).exponential(1.0, 300)
    ours = bootstrap_intervals(lambda drawn: [drawn @ values / 300, drawn @ values**2 / 300], 300, resamples=4000)
    for (low, high), sample in zip(ours, (values, values**2), strict=True):
        theirs = bootstrap((sample,), np.mean, n_resamples=4000, method="percentile", random_state=1)
        width = theirs.confidence_interval.high - theirs.confidence_interval.low
        assert low == pytest.approx(theirs.confidence_interval.low, abs=0.05 * width)
        assert high == pytest.approx(theirs.confidence_interval.high, abs=0.05 * width)


def test_every_draw_has_as_many_units_and_the_seed_decides():
    totals = []

    def statistics(drawn):
        totals.append(int(drawn.sum()))
        return [float(drawn @ np.arange(9))]

    first, same, other = (bootstrap_intervals(statistics, 9, resamples=40, seed=seed) for seed in (1, 1, 2))
    assert totals == [9] * 120
    assert first == same != other
