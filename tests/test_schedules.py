"""Schedules against curves written out by hand and torch's own schedulers."""

import math

import pytest
import torch

from transferkit.errors import ConfigError
from transferkit.training.schedules import SCHEDULES, SGDR, Constant, Cosine, OneCycle, make_schedule, simulate


def torch_curve(steps, make):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = make(optimizer)
    curve = []
    for _ in range(steps):
        curve.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return curve


def test_constant_by_hand():
    assert simulate(Constant(), 3) == [1, 1, 1]
    assert simulate(Constant(warmup_epochs=2), 4, steps_per_epoch=2) == [0.25, 0.5, 0.75, 1.0]


def test_cosine_by_hand():
    # step      0 (warmup)  1 (warmup)  2     3      4    5
    # position                          0     1/4    1/2  3/4
    expected = [0.5, 1.0, 1.0, 0.5 * (1 + math.sqrt(0.5)), 0.5, 0.5 * (1 - math.sqrt(0.5))]
    assert simulate(Cosine(warmup_epochs=1), 6, steps_per_epoch=2) == pytest.approx(expected)


def test_cosine_minimum():
    assert simulate(Cosine(lr_min_ratio=0.2), 2) == pytest.approx([1.0, 0.6])


@pytest.mark.parametrize("steps", [7, 100, 10_007])
def test_cosine_equals_torch(steps):
    reference = torch_curve(steps, lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=steps, eta_min=0.01))
    assert simulate(Cosine(lr_min_ratio=0.01), steps) == pytest.approx(reference, abs=1e-9)


@pytest.mark.parametrize(("steps", "pct"), [(10, 0.3), (100, 0.25), (10_000, 0.3)])
def test_one_cycle_equals_torch(steps, pct):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=steps, pct_start=pct, div_factor=10, final_div_factor=100,
        cycle_momentum=False,
    )  # fmt: skip
    reference = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps - 1):
        optimizer.step()
        scheduler.step()
        reference.append(optimizer.param_groups[0]["lr"])
    curve = simulate(OneCycle(pct_start=pct, div_factor=10, final_div_factor=100), steps)
    assert curve == pytest.approx(reference, abs=1e-9)


@pytest.mark.parametrize("mult", [1, 2, 3])
def test_sgdr_equals_torch(mult):
    reference = torch_curve(
        11_000, lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=10, T_mult=mult, eta_min=0.0)
    )
    assert simulate(SGDR(cycle_mult=mult), 11_000, steps_per_epoch=10) == pytest.approx(reference, abs=1e-9)


def test_sgdr_restart_that_a_float_logarithm_misses():
    # Cycles of 10, 30, 90, 270, 810 steps: the sixth starts at 1210.
    assert SGDR(cycle_mult=3).factor(1210, 10_000, 10) == 1.0
    assert SGDR(cycle_mult=3).factor(1209, 10_000, 10) < 1e-5


def test_sgdr_by_hand_with_decay():
    # cycles:    |---- 2 ----|-------- 4 --------|
    # peak       1           0.5
    root = math.sqrt(0.5)
    expected = [1, 0.5, 0.5, 0.25 * (1 + root), 0.25, 0.25 * (1 - root)]
    assert simulate(SGDR(cycle_mult=2, cycle_decay=0.5), 6, steps_per_epoch=2) == pytest.approx(expected)


@pytest.mark.parametrize("kind", SCHEDULES.values())
@pytest.mark.parametrize("steps", [1, 2, 3, 50])
def test_factor_stays_in_range(kind, steps):
    assert all(0.0 <= factor <= 1.0 for factor in simulate(kind(), steps))


def test_make_schedule():
    assert make_schedule("cosine") == Cosine()
    assert make_schedule({"name": "sgdr", "cycle_epochs": 2}) == SGDR(cycle_epochs=2)
    assert make_schedule(SGDR(cycle_mult=2).to_dict()) == SGDR(cycle_mult=2)


def test_unknown_schedule_names_the_closest():
    with pytest.raises(ConfigError, match=r"unknown schedule 'sgrd'. Did you mean 'sgdr'\? Known: constant, cosine"):
        make_schedule("sgrd")


def test_all_bad_options_in_one_error():
    with pytest.raises(ConfigError, match=r"\(1\).*no option 'cycle_epoch'. Did you mean.*\(2\).*'x', expected a num"):
        make_schedule({"name": "sgdr", "cycle_epoch": 2, "cycle_mult": "x"})


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (Cosine(warmup_epochs=5), "warmup_epochs is 5, longer than the phase of 3 epochs"),
        (Cosine(warmup_epochs=math.nan), "expected a number of at least 0"),
        (Cosine(lr_min_ratio=1.0), "lr_min_ratio is 1.0"),
        (SGDR(cycle_epochs=4), "cycle_epochs is 4, longer than the phase of 3 epochs"),  # fault 39
        (SGDR(cycle_epochs=0), "cycle_epochs is 0, expected a whole number of at least 1"),  # fault 39
        (SGDR(cycle_decay=0.0), "cycle_decay is 0.0"),
        (OneCycle(pct_start=1.0), "pct_start is 1.0"),
        (OneCycle(div_factor=0.5), "div_factor is 0.5"),
        (Constant(warmup_epochs=-1), "warmup_epochs is -1"),
    ],
)
def test_problems(schedule, message):
    assert any(message in problem for problem in schedule.problems(3))


def test_defaults_have_no_problems():
    assert [problem for kind in SCHEDULES.values() for problem in kind().problems(1)] == []
