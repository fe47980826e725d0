"""Intervals of numbers: the coverage that was promised, on data made for it."""

import numpy as np
import pytest
import torch

from transferkit.core.errors import CheckpointError, ConfigError, TransferkitWarning
from transferkit.models.calibration.intervals import MOST, NumberCalibration, fit_intervals, half_width


def test_the_width_is_an_order_statistic():
    """The ceil((n + 1) c)-th smallest of n errors: of 9 errors the 9th for 0.9, none for 0.95."""
    errors = [float(number) for number in range(1, 10)]
    assert half_width(errors, 0.9) == 9.0
    assert half_width(errors, 0.5) == 5.0
    assert half_width(errors, 0.95) is None
    assert half_width([], 0.5) is None


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_intervals_hold_the_truth_as_often_as_they_say(coverage):
    """On average over calibrations; skewed errors, in whatever unit."""
    generator = np.random.default_rng(0)
    shares = []
    for _ in range(200):
        errors = generator.exponential(40.0, 350)
        width = half_width(np.sort(errors[:50]).tolist(), coverage)
        shares.append((errors[50:] <= width).mean())
    low = np.mean(shares) + 3 * np.std(shares) / np.sqrt(200)
    assert low >= coverage
    assert np.mean(shares) <= coverage + 1 / 51 + 0.02


def test_of_many_errors_some_are_kept_on_the_safe_side():
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(5000, 1, generator=generator)
    fitted = fit_intervals(torch.zeros(5000, 1), targets)
    assert len(fitted.errors[0]) == MOST
    full = sorted(targets.abs().double().flatten().tolist())
    for coverage in (0.5, 0.9, 0.99):
        kept, exact = half_width(fitted.errors[0], coverage), half_width(full, coverage)
        assert kept >= exact - 1e-12 or kept == pytest.approx(exact, rel=0.01)


def test_reading_and_what_is_refused():
    fitted = fit_intervals(torch.zeros(20, 2), torch.arange(40.0).reshape(20, 2))
    assert NumberCalibration.from_dict(fitted.to_dict()) == fitted
    assert fitted.covers
    with pytest.raises(ConfigError, match="expected conformal, auto or none for numbers"):
        fit_intervals(torch.zeros(20, 1), torch.zeros(20, 1), method="temperature")
    with pytest.warns(TransferkitWarning, match="no intervals: 9 held-out pictures are too few"):
        assert fit_intervals(torch.zeros(9, 1), torch.zeros(9, 1)) is None
    with pytest.warns(TransferkitWarning, match="NaN or infinity"):
        assert fit_intervals(torch.full((20, 1), float("nan")), torch.zeros(20, 1)) is None
    for broken in ({}, {**fitted.to_dict(), "errors": [[-1.0]]}, {**fitted.to_dict(), "method": "vector"}):
        with pytest.raises(CheckpointError, match="run `transferkit calibrate` again"):
            NumberCalibration.from_dict(broken)
