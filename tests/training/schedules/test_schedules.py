"""Schedules that go one way, and how all are made: against curves written out by hand and torch's own schedulers."""

import dataclasses
import math
import random

import pytest
import torch
from torch.optim import lr_scheduler

from transferkit.core.errors import ConfigError
from transferkit.training.schedules.schedules import (
    SCHEDULES,
    SGDR,
    Constant,
    Cosine,
    Exponential,
    ExpRange,
    InverseSqrt,
    OneCycle,
    Plateau,
    Polynomial,
    Step,
    Triangular,
    make_schedule,
    simulate,
)


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
    reference = torch_curve(steps, lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=steps, eta_min=0.01))
    assert simulate(Cosine(lr_min_ratio=0.01), steps) == pytest.approx(reference, abs=1e-9)


def test_step_by_hand():
    # epoch     |---- 0 ----|---- 1 ----|---- 2 ----|
    # drops     0           1           2
    # warmup    1/3   2/3   1
    expected = [1 / 3, 2 / 3, 0.5, 0.5, 0.25, 0.25]
    assert simulate(Step(step_epochs=1, gamma=0.5, warmup_epochs=1.5), 6, steps_per_epoch=2) == pytest.approx(expected)


def test_step_at_half_and_three_quarters():
    # 100 epochs: 50 at 1, 25 at 0.1, 25 at 0.01; 5 steps: half is 2.5, three quarters 3.75
    curve = simulate(Step(), 200, steps_per_epoch=2)
    assert curve == pytest.approx([1.0] * 100 + [0.1] * 50 + [0.01] * 50)
    assert simulate(Step(), 5) == pytest.approx([1, 1, 1, 0.1, 0.01])


@pytest.mark.parametrize(("epochs", "gamma"), [(1, 0.999), (7, 0.5), (3000, 0.1)])
def test_step_equals_torch(epochs, gamma):
    reference = torch_curve(10_000, lambda o: lr_scheduler.StepLR(o, step_size=epochs * 3, gamma=gamma))
    assert simulate(Step(epochs, gamma), 10_000, steps_per_epoch=3) == pytest.approx(reference, rel=1e-9, abs=0)


def test_exponential_by_hand():
    # step      0 (warmup)  1 (warmup)  2    3          4    5          6
    # epochs                            0    1/2        1    3/2        2
    expected = [0.5, 1.0, 1.0, 1 / math.sqrt(2), 0.5, 0.5 / math.sqrt(2), 0.25]
    assert simulate(Exponential(gamma=0.5, warmup_epochs=1), 7, steps_per_epoch=2) == pytest.approx(expected)


@pytest.mark.parametrize(("gamma", "steps_per_epoch"), [(0.9, 100), (0.9995, 1), (1.0, 7)])
def test_exponential_equals_torch(gamma, steps_per_epoch):
    reference = torch_curve(10_000, lambda o: lr_scheduler.ExponentialLR(o, gamma=gamma ** (1 / steps_per_epoch)))
    curve = simulate(Exponential(gamma=gamma), 10_000, steps_per_epoch=steps_per_epoch)
    assert curve == pytest.approx(reference, rel=1e-9, abs=0)


def test_polynomial_by_hand():
    # step      0 (warmup)  1 (warmup)  2  3     4    5
    # left                              1  3/4   1/2  1/4
    # squared                           1  9/16  1/4  1/16
    line = [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    square = [0.5, 1.0, 1.0, 0.2 + 0.8 * 9 / 16, 0.4, 0.25]
    assert simulate(Polynomial(warmup_epochs=1), 6, steps_per_epoch=2) == pytest.approx(line)
    schedule = Polynomial(power=2, lr_min_ratio=0.2, warmup_epochs=1)
    assert simulate(schedule, 6, steps_per_epoch=2) == pytest.approx(square)


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 9, 10_000])
def test_polynomial_equals_torch(steps, power):
    reference = torch_curve(steps, lambda o: lr_scheduler.PolynomialLR(o, total_iters=steps, power=power))
    assert simulate(Polynomial(power=power), steps) == pytest.approx(reference, abs=1e-9)


def test_inverse_sqrt_by_hand():
    # warmup of 4 steps: n/4, then sqrt(4/n) at the n-th step, n from 1; a fourth of the LR step 64 has
    curve = simulate(InverseSqrt(warmup_epochs=2), 64, steps_per_epoch=2)
    assert curve[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, math.sqrt(4 / 5)])
    assert curve[15] == pytest.approx(0.5)
    assert curve[63] == pytest.approx(0.25)


def test_inverse_sqrt_timescale():
    # no warmup: sqrt(T / (T + step)), T one epoch of 3 steps unless told otherwise
    assert simulate(InverseSqrt(), 10, steps_per_epoch=3)[::9] == pytest.approx([1.0, 0.5])
    assert simulate(InverseSqrt(timescale_epochs=2), 19, steps_per_epoch=3)[::18] == pytest.approx([1.0, 0.5])
    both = simulate(InverseSqrt(warmup_epochs=1, timescale_epochs=2), 21, steps_per_epoch=3)
    assert [both[2], both[8], both[20]] == pytest.approx([1.0, math.sqrt(0.5), 0.5])


@pytest.mark.parametrize("warmup", [1, 4000])
def test_inverse_sqrt_equals_the_papers_equation(warmup):
    width, numbers = 512, range(1, 10_001)
    paper = [width**-0.5 * min(number**-0.5, number * warmup**-1.5) for number in numbers]
    reference = [rate / (width**-0.5 * warmup**-0.5) for rate in paper]
    curve = simulate(InverseSqrt(warmup_epochs=warmup / 1000), 10_000, steps_per_epoch=1000)
    assert curve == pytest.approx(reference, rel=1e-9, abs=0)


def test_plateau_by_hand():
    # epoch       0    1    2     3     4     5     6     7     8
    # loss        1.0  0.8  0.9   0.85  0.79  0.7   0.71  0.72
    # best        1.0  0.8  0.8   0.8   0.8   0.7   0.7   0.7       0.79 is not below 0.8 * 0.95
    # bad         0    0    1     2     1     0     1     2         the LR drops after more than one
    # LR          1    1    1     1     0.5   0.5   0.5   0.5   0.25
    losses = [1.0, 0.8, 0.9, 0.85, 0.79, 0.7, 0.71, 0.72]
    schedule = Plateau(gamma=0.5, patience=1, threshold=0.05)
    levels = [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25]
    assert simulate(schedule.with_values(losses), 18, steps_per_epoch=2) == [
        level for level in levels for _ in range(2)
    ]


def test_plateau_cooldown_minimum_and_warmup_by_hand():
    # epoch       0    1    2    3    4    5     6     7
    # loss        1    1    1    1    1    1     1
    # bad         0    1    c    c    1    c     c           c: cooldown of two epochs after each drop
    # LR          1    1    .5   .5   .5   .3    .3    .3    .25 would be below the minimum
    schedule = Plateau(gamma=0.5, patience=0, cooldown=2, lr_min_ratio=0.3, warmup_epochs=2).with_values([1.0] * 7)
    assert simulate(schedule, 8) == [0.5, 1.0, 0.5, 0.5, 0.5, 0.3, 0.3, 0.3]


def random_losses(rng, count):
    """Losses that fall, stall, tie and are sometimes no number at all."""
    level, losses = 2.0, []
    for _ in range(count):
        level *= rng.choice([1.0, 1.0, 0.95, 0.999, 1.02])
        losses.append(rng.choice([level, level, level, round(level, 1), math.nan, math.inf]))
    return losses


@pytest.mark.parametrize("seed", range(60))
def test_plateau_equals_torch(seed):
    rng = random.Random(seed)
    options = {
        "patience": rng.randrange(4),
        "threshold": rng.choice([0.0, 1e-4, 0.05]),
        "cooldown": rng.randrange(4),
    }
    gamma, low = rng.choice([0.1, 0.5, 0.9]), rng.choice([0.0, 0.01, 0.3])
    epochs = 10_000 if seed == 0 else 80
    losses = random_losses(rng, epochs)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, factor=gamma, min_lr=low, eps=0.0, **options)
    reference = [1.0]
    for loss in losses:
        scheduler.step(loss)
        reference.append(optimizer.param_groups[0]["lr"])
    schedule = Plateau(gamma=gamma, lr_min_ratio=low, **options).with_values(losses)
    curve = simulate(schedule, epochs + 1)
    assert curve == reference
    assert len(set(curve)) > 1


def test_plateau_looks_at_finished_epochs_only():
    losses = random_losses(random.Random(7), 40)
    schedule = Plateau(patience=1, gamma=0.9)
    whole = simulate(schedule.with_values(losses), 3 * 41, steps_per_epoch=3)
    for epoch in range(40):
        known = schedule.with_values(losses[:epoch])
        assert simulate(known, 3 * (epoch + 1), steps_per_epoch=3) == whole[: 3 * (epoch + 1)]
        assert known.with_values(losses) == schedule.with_values(
            losses
        )  # no state: the losses replace those known before
        assert known.factor(3 * 40, 3 * 41, 3) == known.factor(3 * epoch, 3 * 41, 3)
    assert set(simulate(schedule, 40)) == {1.0}


def test_losses_are_no_option():
    known = Plateau(patience=1).with_values([1.0, 2.0, 3.0])
    assert known.to_dict() == Plateau(patience=1).to_dict()
    assert known != Plateau(patience=1)
    assert make_schedule(known.to_dict()) == Plateau(patience=1)
    for key in ("levels", "values"):
        with pytest.raises(ConfigError, match=f"has no option {key!r}"):
            make_schedule({"name": "plateau", key: [1.0]})


def test_only_plateau_looks_at_losses():
    for kind in SCHEDULES.values():
        schedule = kind()
        assert (schedule.with_values([1.0] * 9) is schedule) == (kind is not Plateau)


def test_registry_by_name():
    assert list(SCHEDULES) == [
        "constant", "step", "exponential", "cosine", "one_cycle", "triangular", "triangular2", "exp_range", "sgdr",
        "polynomial", "inverse_sqrt", "plateau",
    ]  # fmt: skip
    assert [kind.name for kind in SCHEDULES.values()] == list(SCHEDULES)


@pytest.mark.parametrize("kind", SCHEDULES.values())
@pytest.mark.parametrize("steps", [1, 2, 3, 50])
def test_factor_stays_in_range(kind, steps):
    assert all(0.0 <= factor <= 1.0 for factor in simulate(kind(), steps))


WARM = [kind for kind in SCHEDULES.values() if "warmup_epochs" in {field.name for field in dataclasses.fields(kind)}]


@pytest.mark.parametrize("kind", WARM)
def test_warmup_of_every_schedule_that_has_one(kind):
    curve = simulate(kind(warmup_epochs=0.3), 100, steps_per_epoch=10)
    cold = simulate(kind(), 100, steps_per_epoch=10)
    assert curve[:2] == pytest.approx([1 / 3 * cold[0], 2 / 3 * (cold[1] if kind is SGDR else 1)])
    assert curve[1] < curve[2]
    assert all(0.0 < factor <= 1.0 for factor in curve)


def test_schedules_without_a_warmup_are_those_that_start_low():
    assert [kind.name for kind in SCHEDULES.values() if kind not in WARM] == [
        "one_cycle", "triangular", "triangular2", "exp_range",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", SCHEDULES.values())
def test_momentum_is_left_alone_unless_asked(kind):
    assert [kind().momentum(step, 4, 1) for step in range(4)] == [None] * 4


def test_make_schedule():
    assert make_schedule("cosine") == Cosine()
    assert make_schedule({"name": "sgdr", "cycle_epochs": 2}) == SGDR(cycle_epochs=2)
    assert make_schedule(SGDR(cycle_mult=2).to_dict()) == SGDR(cycle_mult=2)
    assert make_schedule({"name": "polynomial", "power": 2}) == Polynomial(power=2)
    assert make_schedule({"name": "one_cycle", "cycle_momentum": True}) == OneCycle(cycle_momentum=True)


@pytest.mark.parametrize("kind", SCHEDULES.values())
def test_every_schedule_goes_through_a_recipe(kind):
    assert make_schedule(kind().to_dict()) == make_schedule(kind.name) == kind()


def test_options_are_written_with_a_schedules_own_first():
    assert list(SGDR().to_dict()) == [
        "name", "cycle_epochs", "cycle_mult", "cycle_decay", "lr_min_ratio", "warmup_epochs",
        "cycle_momentum", "momentum_min", "momentum_max",
    ]  # fmt: skip


def test_unknown_schedule_names_the_closest():
    with pytest.raises(ConfigError, match=r"unknown schedule 'sgrd'. Did you mean 'sgdr'\? Known: constant, cosine"):
        make_schedule("sgrd")


@pytest.mark.parametrize("value", [{}, {"name": None}, {"name": ["cosine"]}, {"cycle_epochs": 2}])
def test_missing_name(value):
    with pytest.raises(ConfigError, match="unknown schedule .* Known: constant, cosine"):
        make_schedule(value)


@pytest.mark.parametrize("value", [None, 3, ["cosine"]])
def test_neither_a_name_nor_a_mapping(value):
    with pytest.raises(ConfigError, match="expected a name or a mapping with name and options"):
        make_schedule(value)


def test_all_bad_options_in_one_error():
    with pytest.raises(ConfigError, match=r"\(1\).*no option 'cycle_epoch'. Did you mean.*\(2\).*'x', expected a w"):
        make_schedule({"name": "sgdr", "cycle_epoch": 2, "cycle_mult": "x"})


@pytest.mark.parametrize(
    ("name", "key", "value", "expected"),
    [
        ("sgdr", "cycle_epochs", 1.5, "is 1.5, expected a whole number"),
        ("sgdr", "cycle_mult", True, "is True, expected a whole number"),
        ("sgdr", "cycle_decay", True, "is True, expected a number"),
        ("sgdr", "cycle_momentum", 1, "is 1, expected true or false"),
        ("one_cycle", "cycle_momentum", "yes", "is 'yes', expected true or false"),
        ("exp_range", "gamma", None, "is None, expected a number"),
        ("plateau", "threshold", "1e-4", "is '1e-4', expected a number (YAML reads 1e-3 as text: write 1.0e-3)"),
        ("plateau", "threshold", "small", "is 'small', expected a number"),
    ],
)
def test_options_are_checked_by_their_own_types(name, key, value, expected):
    with pytest.raises(ConfigError) as caught:
        make_schedule({"name": name, key: value})
    assert str(caught.value) == f"option {key!r} of schedule {name!r} {expected}"


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (SGDR(cycle_epochs=4), "cycle_epochs is 4, longer than the phase of 3 epochs"),
        (Step(step_epochs=4), "step_epochs is 4, longer than the phase of 3 epochs"),
        (
            Triangular(step_size_epochs=2),
            "step_size_epochs is 2, half a cycle of 4 epochs, longer than the phase of 3 epochs",
        ),
        (SGDR(cycle_epochs=2, warmup_epochs=2.5), "warmup_epochs is 2.5, longer than the first cycle of 2 epochs"),
        (Plateau(patience=3), "patience is 3, expected less than the phase of 3 epochs, or the LR cannot drop"),
    ],
)
def test_longer_than_the_phase(schedule, message):  # fault 39
    assert schedule.problems(3) == [message]


@pytest.mark.parametrize("kind", [kind for kind in WARM if kind is not SGDR])
def test_warmup_longer_than_the_phase(kind):  # fault 39
    assert kind(warmup_epochs=3.5).problems(3) == ["warmup_epochs is 3.5, longer than the phase of 3 epochs"]
    assert kind(warmup_epochs=3).problems(3) == []


@pytest.mark.parametrize("kind", [Cosine, Polynomial, Plateau, SGDR, Triangular, ExpRange])
def test_base_lr_above_the_maximum(kind):  # fault 39
    assert kind(lr_min_ratio=2.0).problems(3) == [
        "lr_min_ratio is 2.0, expected a ratio in [0, 1) of the peak LR, which is 1.0 times `lr`"
    ]


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (Cosine(warmup_epochs=math.nan), "warmup_epochs is nan, expected a number of at least 0"),
        (Cosine(lr_min_ratio=1.0), "lr_min_ratio is 1.0, expected a ratio in [0, 1)"),
        (Cosine(lr_min_ratio=-0.5), "lr_min_ratio is -0.5, expected a ratio in [0, 1)"),
        (Cosine(lr_min_ratio=math.nan), "lr_min_ratio is nan"),
        (Constant(warmup_epochs=-1), "warmup_epochs is -1"),
        (Constant(warmup_epochs=math.inf), "warmup_epochs is inf, expected a number of at least 0"),
        (Constant(warmup_epochs="1"), "warmup_epochs is '1'"),
        (Step(step_epochs=-1), "step_epochs is -1, expected a whole number of at least 0"),
        (Step(step_epochs=1.5), "step_epochs is 1.5"),
        (Step(gamma=0.0), "gamma is 0.0, expected a ratio in (0, 1]"),
        (Exponential(gamma=1.1), "gamma is 1.1, expected a ratio in (0, 1]"),
        (Polynomial(power=0), "power is 0, expected a finite number above 0"),
        (Polynomial(power=math.inf), "power is inf"),
        (InverseSqrt(timescale_epochs=-1), "timescale_epochs is -1, expected a finite number of at least 0"),
        (Plateau(gamma=math.nan), "gamma is nan"),
        (Plateau(patience=-1), "patience is -1, expected a whole number of at least 0"),
        (Plateau(cooldown=0.5), "cooldown is 0.5, expected a whole number of at least 0"),
        (Plateau(threshold=1.0), "threshold is 1.0, expected a ratio in [0, 1)"),
    ],
)
def test_problems(schedule, message):
    (problem,) = schedule.problems(3)
    assert message in problem


def test_all_problems_at_once():
    assert (
        len(Plateau(gamma=2, patience=-1, cooldown=-1, threshold=2, lr_min_ratio=2, warmup_epochs=9).problems(3)) == 6
    )
    assert len(SGDR(cycle_epochs=0, cycle_mult=0, cycle_decay=0, lr_min_ratio=2, momentum_min=2).problems(3)) == 5


def test_defaults_have_no_problems():
    assert [problem for kind in SCHEDULES.values() for problem in kind().problems(1)] == []
