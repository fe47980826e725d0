"""Schedules that come back, and their momentum: against curves written out by hand and torch's own schedulers."""

import math

import pytest
import torch
from torch.optim import lr_scheduler

from transferkit.training.schedules.schedules import (
    SGDR,
    ExpRange,
    OneCycle,
    Triangular,
    Triangular2,
    simulate,
)

STEPS = 11_000
MODES = [("triangular", Triangular), ("triangular2", Triangular2), ("exp_range", ExpRange)]


def simulate_momentum(schedule, steps, steps_per_epoch=1):
    return [schedule.momentum(step, steps, steps_per_epoch) for step in range(steps)]


def torch_traces(steps, make):
    """The LR and the momentum that a torch scheduler sets at each of `steps` steps."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    scheduler = make(optimizer)
    lrs, momenta = [], []
    for step in range(steps):
        lrs.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        if step < steps - 1:  # OneCycleLR refuses to go past its end
            scheduler.step()
    return lrs, momenta


@pytest.mark.parametrize(("steps", "pct"), [(4, 0.5), (10, 0.3), (100, 0.25), (10_000, 0.3), (10_007, 0.45)])
def test_one_cycle_equals_torch(steps, pct):
    lrs, momenta = torch_traces(
        steps,
        lambda o: lr_scheduler.OneCycleLR(
            o, max_lr=1.0, total_steps=steps, pct_start=pct, div_factor=10, final_div_factor=100,
            cycle_momentum=True, base_momentum=0.8, max_momentum=0.97,
        ),
    )  # fmt: skip
    schedule = OneCycle(pct, 10, 100, cycle_momentum=True, momentum_min=0.8, momentum_max=0.97)
    assert simulate(schedule, steps) == pytest.approx(lrs, abs=1e-9)
    assert simulate_momentum(schedule, steps) == pytest.approx(momenta, abs=1e-9)


def test_one_cycle_by_hand():
    # step      0     1    2    3     4     5        rising to the peak at 0.5 * 6 - 1 = 2, falling to the end at 5
    # position  0     1/2  1    1/3   2/3   1
    # height    0     1/2  1    3/4   1/4   0
    # from      0.5, at the end 0.25
    schedule = OneCycle(0.5, 2, 2, cycle_momentum=True, momentum_min=0.5, momentum_max=0.9)
    assert simulate(schedule, 6) == pytest.approx([0.5, 0.75, 1.0, 0.8125, 0.4375, 0.25])
    assert simulate_momentum(schedule, 6) == pytest.approx([0.9, 0.7, 0.5, 0.6, 0.8, 0.9])


def test_triangular_by_hand():
    # half a cycle of 1.5 epochs: 3 steps
    # step      0     1     2     3  4     5     6     7
    # height    0     1/3   2/3   1  2/3   1/3   0     1/3
    schedule = Triangular(1.5, 0.25, cycle_momentum=True, momentum_min=0.6, momentum_max=0.9)
    assert simulate(schedule, 8, steps_per_epoch=2) == pytest.approx([0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25, 0.5])
    momenta = [0.9, 0.8, 0.7, 0.6, 0.7, 0.8, 0.9, 0.8]
    assert simulate_momentum(schedule, 8, steps_per_epoch=2) == pytest.approx(momenta)


def test_triangular2_by_hand():
    # cycle     |------ 0 ------|------ 1 ------|------ 2 ------|
    # peak      1               1/2             1/4
    schedule = Triangular2(step_size_epochs=1, lr_min_ratio=0.2)
    above = [0, 0.5, 1, 0.5, 0, 0.25, 0.5, 0.25, 0, 0.125, 0.25, 0.125]
    expected = [0.2 + 0.8 * height for height in above]
    assert simulate(schedule, 12, steps_per_epoch=2) == pytest.approx(expected)


def test_exp_range_by_hand():
    # triangle  0   1/2  1     1/2   0   1/2
    # decay     1   1/2  1/4   1/8       1/32
    schedule = ExpRange(step_size_epochs=1, lr_min_ratio=0.2, gamma=0.5)
    expected = [0.2, 0.4, 0.4, 0.25, 0.2, 0.2125]
    assert simulate(schedule, 6, steps_per_epoch=2) == pytest.approx(expected)


@pytest.mark.parametrize(("mode", "kind"), MODES)
@pytest.mark.parametrize("half", [7, 1000])
def test_triangles_equal_torch(mode, kind, half):
    options = {"gamma": 0.9995} if kind is ExpRange else {}
    lrs, momenta = torch_traces(
        STEPS,
        lambda o: lr_scheduler.CyclicLR(
            o, base_lr=0.1, max_lr=1.0, step_size_up=half, step_size_down=half, mode=mode, **options,
            cycle_momentum=True, base_momentum=0.85, max_momentum=0.95,
        ),
    )  # fmt: skip
    schedule = kind(half / 10, 0.1, **options, cycle_momentum=True)
    assert simulate(schedule, STEPS, steps_per_epoch=10) == pytest.approx(lrs, abs=1e-9)
    assert simulate_momentum(schedule, STEPS, steps_per_epoch=10) == pytest.approx(momenta, abs=1e-9)


@pytest.mark.parametrize(
    ("epochs", "steps_per_epoch", "half"), [(0.5, 1, 1), (0.01, 10, 1), (0.26, 10, 3), (2.5, 4, 10), (1, 7, 7)]
)
def test_half_a_cycle_is_whole_steps(epochs, steps_per_epoch, half):
    curve = simulate(Triangular(epochs, 0.0), 4 * half + 1, steps_per_epoch=steps_per_epoch)
    assert [step for step, factor in enumerate(curve) if factor == 1.0] == [half, 3 * half]
    assert [step for step, factor in enumerate(curve) if factor == 0.0] == [0, 2 * half, 4 * half]


@pytest.mark.parametrize("mult", [1, 2, 3])
def test_sgdr_equals_torch(mult):
    lrs, _ = torch_traces(
        STEPS, lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=10, T_mult=mult, eta_min=0.05)
    )
    schedule = SGDR(cycle_mult=mult, lr_min_ratio=0.05)
    assert simulate(schedule, STEPS, steps_per_epoch=10) == pytest.approx(lrs, abs=1e-9)


def test_sgdr_restart_that_a_float_logarithm_misses():
    # Cycles of 10, 30, 90, 270, 810 steps: the sixth starts at 1210.
    assert SGDR(cycle_mult=3).factor(1210, 10_000, 10) == 1.0
    assert SGDR(cycle_mult=3).factor(1209, 10_000, 10) < 1e-5


@pytest.mark.parametrize("mult", [2, 3, 5, 7, 10])
def test_sgdr_restarts_at_every_power(mult):
    for cycle in range(1, 15):
        restart = 10 * (mult**cycle - 1) // (mult - 1)
        assert SGDR(cycle_mult=mult).factor(restart, 0, 10) == 1.0
        assert SGDR(cycle_mult=mult).factor(restart - 1, 0, 10) < 0.03


def test_far_steps_are_neither_slow_nor_off():
    far = 10**15  # whole cycles of 10 and of 20 steps; a loop over cycles would not come back
    assert SGDR().factor(far, 0, 10) == 1.0
    assert SGDR(cycle_decay=0.5, lr_min_ratio=0.1).factor(far, 0, 10) == pytest.approx(0.1)
    assert Triangular(1).factor(far, 0, 10) == 0.25
    assert Triangular(1).factor(far + 10, 0, 10) == 1.0
    assert Triangular2(1).factor(far + 10, 0, 10) == 0.25
    assert ExpRange(1).factor(far + 10, 0, 10) == 0.25


def test_sgdr_by_hand_with_decay():
    # cycles:    |---- 2 ----|-------- 4 --------|
    # peak       1           0.5
    root = math.sqrt(0.5)
    expected = [1, 0.5, 0.5, 0.25 * (1 + root), 0.25, 0.25 * (1 - root)]
    assert simulate(SGDR(cycle_mult=2, cycle_decay=0.5), 6, steps_per_epoch=2) == pytest.approx(expected)


def test_sgdr_warmup_moves_no_restart():
    # cycles:    |---------- 4 ----------|---------- 4 ----------|
    # warmup     1/3   2/3   1
    rise, fall = 0.5 * (1 + math.sqrt(0.5)), 0.5 * (1 - math.sqrt(0.5))
    expected = [1 / 3, 2 / 3 * rise, 0.5, fall, 1, rise, 0.5, fall]
    assert simulate(SGDR(warmup_epochs=0.75), 8, steps_per_epoch=4) == pytest.approx(expected)


def test_sgdr_momentum_by_hand():
    # cycles:    |---- 2 ----|-------- 4 --------|
    # LR         1     0.6   0.6                           minimum 0.2, second peak 0.6
    # height     1     1/2   1/2   ...
    # step 4 is the middle of the second cycle: LR 0.4, height 1/4
    schedule = SGDR(cycle_mult=2, cycle_decay=0.6, lr_min_ratio=0.2, cycle_momentum=True)
    momenta = simulate_momentum(schedule, 5, steps_per_epoch=2)
    assert [momenta[step] for step in (0, 1, 2, 4)] == pytest.approx([0.85, 0.9, 0.9, 0.925])
    warm = SGDR(cycle_epochs=5, lr_min_ratio=0.5, warmup_epochs=4, cycle_momentum=True)
    assert simulate_momentum(warm, 1) == [0.95]  # a warmup starts below the minimum: momentum stays in its range


def test_sgdr_momentum_mirrors_the_lr_of_torch():
    lrs, _ = torch_traces(STEPS, lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=10, T_mult=2, eta_min=0.2))
    momenta = [0.95 - 0.1 * (lr - 0.2) / 0.8 for lr in lrs]
    schedule = SGDR(cycle_mult=2, lr_min_ratio=0.2, cycle_momentum=True)
    assert simulate_momentum(schedule, STEPS, steps_per_epoch=10) == pytest.approx(momenta, abs=1e-9)


@pytest.mark.parametrize(
    ("cycle", "mult", "epochs", "ends"),
    [
        (1, 1, 4, (0, 1, 2, 3)),
        (2, 1, 7, (1, 3, 5)),  # 2 | 2 | 2 | 1 left over
        (1, 2, 7, (0, 2, 6)),  # 1 | 2 | 4
        (2, 2, 13, (1, 5)),  # 2 | 4 | 7 of 8
        (2, 2, 14, (1, 5, 13)),
        (1, 3, 40, (0, 3, 12, 39)),  # 1 | 3 | 9 | 27
        (10, 3, 1210, (9, 39, 129, 399, 1209)),  # 10 | 30 | 90 | 270 | 810
        (3, 1, 2, ()),
    ],
)
def test_cycle_ends_by_hand(cycle, mult, epochs, ends):
    schedule = SGDR(cycle_epochs=cycle, cycle_mult=mult)
    assert schedule.cycle_ends(epochs) == ends
    curve = simulate(schedule, epochs + 1)
    assert [epoch for epoch in range(epochs) if curve[epoch + 1] == 1.0] == list(ends)


def test_lr_and_momentum_are_plain_floats():
    for schedule in (OneCycle(cycle_momentum=True), Triangular2(cycle_momentum=True), SGDR(cycle_momentum=True)):
        assert {type(value) for value in simulate(schedule, 9) + simulate_momentum(schedule, 9)} == {float}


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (SGDR(cycle_mult=0), "cycle_mult is 0, expected a whole number of at least 1"),
        (SGDR(cycle_mult=1.5), "cycle_mult is 1.5, expected a whole number of at least 1"),
        (SGDR(cycle_decay=0.0), "cycle_decay is 0.0, expected a ratio in (0, 1]"),
        (SGDR(warmup_epochs=-1), "warmup_epochs is -1, expected a number of at least 0"),
        (OneCycle(pct_start=0.0), "pct_start is 0.0, expected a share in (0, 1)"),
        (OneCycle(pct_start=1.0), "pct_start is 1.0, expected a share in (0, 1)"),
        (OneCycle(div_factor=0.5), "div_factor is 0.5, expected a finite number of at least 1"),
        (OneCycle(final_div_factor=math.inf), "final_div_factor is inf, expected a finite number of at least 1"),
        (Triangular(step_size_epochs=0), "step_size_epochs is 0, expected a finite number above 0"),
        (Triangular(step_size_epochs=math.nan), "step_size_epochs is nan, expected a finite number above 0"),
        (Triangular2(step_size_epochs=True), "step_size_epochs is True, expected a finite number above 0"),
        (ExpRange(gamma=0), "gamma is 0, expected a ratio in (0, 1]"),
        (ExpRange(gamma=1.01), "gamma is 1.01, expected a ratio in (0, 1]"),
        (SGDR(cycle_momentum="yes"), "cycle_momentum is 'yes', expected true or false"),
        (OneCycle(cycle_momentum=1), "cycle_momentum is 1, expected true or false"),
        (Triangular(momentum_max=1.0), "momentum_max is 1.0, expected a number in [0, 1)"),
        (ExpRange(momentum_min=-0.1), "momentum_min is -0.1, expected a number in [0, 1)"),
    ],
)
def test_problems(schedule, message):
    assert schedule.problems(3) == [message]


@pytest.mark.parametrize("kind", [OneCycle, Triangular, Triangular2, ExpRange, SGDR])
def test_momentum_bounds_the_wrong_way_round(kind):  # fault 39
    assert kind(momentum_min=0.95, momentum_max=0.85).problems(3) == [
        "momentum_min is 0.95, above momentum_max, which is 0.85"
    ]
    assert kind(momentum_min=0.9, momentum_max=0.9).problems(3) == []


@pytest.mark.parametrize("value", [0, -1, 1.0, 1.5, True, "2"])
def test_first_cycle_below_one_epoch(value):  # fault 39
    assert SGDR(cycle_epochs=value).problems(3) == [f"cycle_epochs is {value!r}, expected a whole number of at least 1"]


@pytest.mark.parametrize("kind", [Triangular, Triangular2, ExpRange])
def test_cycle_longer_than_the_phase(kind):  # fault 39
    assert kind(step_size_epochs=1.5).problems(3) == []
    assert kind(step_size_epochs=1.6).problems(3) == [
        "step_size_epochs is 1.6, half a cycle of 3.2 epochs, longer than the phase of 3 epochs"
    ]
