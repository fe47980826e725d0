"""Schedules and lists of phases of any content: refused, or learning rates that are finite and never negative."""

import dataclasses
import json
import math
import random

import pytest
from fuzzing import Outcomes, counts, refused, searching
from hypothesis import example, given
from hypothesis import strategies as st

from transferkit.training.plan.options import resolve_options, resolve_phases
from transferkit.training.plan.phases import Phase, check_phases, make_phases
from transferkit.training.plan.plan import Plan
from transferkit.training.schedules.base import option_types
from transferkit.training.schedules.schedules import SCHEDULES, make_schedule, simulate

GROUPS = ("stem", "layer1", "layer2", "head")

EDGES = (0.0, 1.0, 0.5, 1e-300, 5e-324, 1 - 2**-53, 1e300, 1e308, 1.7976931348623157e308, 2.0, 12.0)

sound_numbers = st.one_of(st.floats(0, 1), st.floats(0, 12), st.floats(1, 1e308), st.sampled_from(EDGES))


def option_values(kind):
    if kind is bool:
        return st.booleans()
    return st.one_of(st.integers(0, 12), st.integers(0, 2**62)) if kind is int else sound_numbers


sound_schedules = st.sampled_from(list(SCHEDULES)).flatmap(
    lambda name: st.fixed_dictionaries(
        {"name": st.just(name)},
        optional={key: option_values(kind) for key, kind in option_types(SCHEDULES[name]).items()},
    )
)
lengths = st.tuples(st.integers(1, 12), st.integers(1, 40))  # epochs, steps of an epoch


def ends(schedule, epochs, steps_per_epoch):
    """The first and the last factor by the formula, written down anew; ``None`` for what is not told here."""
    steps = epochs * steps_per_epoch
    warmup = round(getattr(schedule, "warmup_epochs", 0.0) * steps_per_epoch)
    first = 1 / warmup if warmup else 1.0
    warm = min(1.0, steps / warmup) if warmup else 1.0
    match schedule.name:
        case "constant":
            return first, warm
        case "cosine":
            low, share = schedule.lr_min_ratio, (steps - 1 - warmup) / max(1, steps - warmup)
            last = warm if warmup >= steps else low + (1 - low) * (1 + math.cos(math.pi * share)) / 2
            return first, last
        case "polynomial":
            low = schedule.lr_min_ratio
            return first, warm if warmup >= steps else low + (1 - low) * (1 / max(1, steps - warmup)) ** schedule.power
        case "exponential":
            return first, warm * schedule.gamma ** (max(0, steps - 1 - warmup) / steps_per_epoch)
        case "step" if schedule.step_epochs:
            return first, warm * schedule.gamma ** ((steps - 1) // (schedule.step_epochs * steps_per_epoch))
        case "plateau":
            return first * schedule.levels[0], None
        case "triangular" | "triangular2" | "exp_range":
            return schedule.lr_min_ratio, None
        case "one_cycle" if schedule.pct_start * steps > 1:
            return 1 / schedule.div_factor, 1 / (schedule.div_factor * schedule.final_div_factor)
        case "sgdr":
            return first, None
    return None, None


@pytest.mark.parametrize("count", counts(300, 60_000))
def test_factors_are_shares_of_the_peak(count):
    outcomes = Outcomes()

    @searching(count)
    @given(sound_schedules, lengths, st.lists(st.floats(), max_size=15))
    def check(options, length, losses):
        schedule, (epochs, steps_per_epoch) = make_schedule(options), length
        if schedule.problems(epochs):
            outcomes["refused"] += 1
            return
        schedule = schedule.with_values(losses)
        steps = epochs * steps_per_epoch
        factors = simulate(schedule, steps, steps_per_epoch=steps_per_epoch)
        assert len(factors) == steps
        assert all(math.isfinite(factor) and 0 <= factor <= 1 + 1e-12 for factor in factors)
        for factor, expected in zip((factors[0], factors[-1]), ends(schedule, epochs, steps_per_epoch), strict=True):
            assert expected is None or math.isclose(factor, expected, rel_tol=1e-9, abs_tol=1e-12)
        at = random.Random(steps).randrange(steps)
        assert schedule.factor(at, steps, steps_per_epoch) == factors[at], "not a pure function of the step"
        momenta = [schedule.momentum(step, steps, steps_per_epoch) for step in range(steps)]
        assert all(momentum is None or 0 <= momentum < 1 for momentum in momenta)
        assert make_schedule(json.loads(json.dumps(schedule.to_dict()))).to_dict() == schedule.to_dict()
        outcomes[schedule.name] += 1

    for name in SCHEDULES:  # what is drawn besides depends on the modules that are loaded
        check = example({"name": name}, (12, 5), [0.5])(check)
    check()
    outcomes.shown()
    assert all(outcomes[name] > count / 1000 for name in SCHEDULES)


ODD = (
    None, True, 0, -1, 2**63, 10**400, math.nan, math.inf, -0.0, "", "x", "head", "[", "[!", "\0", "\ud800",
    [], {}, [[]], ["head", 1], {"": 1.0}, {1: 1.0}, {"x": None}, b"", 1j,
)  # fmt: skip

odd = st.sampled_from(ODD)
names = st.sampled_from(["a", "b", "probe", "é"])
phases = st.fixed_dictionaries(
    {"name": names | odd, "epochs": st.integers(0, 5) | odd},
    optional={
        "train": st.sampled_from(["head", "all", "layer2", "*", ("head", "layer[12]"), ["head", "all"], []]) | odd,
        "lr": sound_numbers | odd,
        "schedule": st.sampled_from(list(SCHEDULES)) | sound_schedules | odd,
        "layer_decay": sound_numbers | odd,
        "group_lrs": st.dictionaries(st.sampled_from(["head", "layer*", "x"]), sound_numbers | odd, max_size=2) | odd,
        "test_view": st.booleans() | odd,
        "solve": st.booleans() | odd,
        "no_such": odd,
    },
)
sound_phases = st.fixed_dictionaries(
    {"epochs": st.integers(1, 5), "lr": st.floats(1e-6, 1)},
    optional={
        "train": st.sampled_from(["head", "all", "layer2", ["head", "layer[12]"]]),
        "schedule": st.sampled_from(list(SCHEDULES)) | sound_schedules,
        "layer_decay": st.floats(1e-3, 1),
        "group_lrs": st.dictionaries(st.sampled_from(["head", "layer*"]), st.floats(1e-6, 1), max_size=2),
    },
)
sound_lists = st.lists(sound_phases, min_size=1, max_size=3).map(
    lambda values: [{"name": f"phase {number}", **value} for number, value in enumerate(values)]
)


@pytest.mark.parametrize("count", counts(200, 40_000))
def test_lists_of_phases(count):  # fault 38, fault 39
    outcomes = Outcomes()

    @searching(count)
    @given(st.lists(phases | odd, max_size=3) | sound_lists | odd, st.integers(1, 9))
    def check(values, steps_per_epoch):
        options = {"data": "x", "phases": values}
        ending = refused(lambda: resolve_phases(resolve_options(options), GROUPS), allowed=(2,))
        outcomes[ending] += 1
        if isinstance(values, list | tuple):
            assert ending != "accepted" or refused(lambda: make_phases(values), allowed=(2,)) == "accepted"
        if ending != "accepted":
            return
        plan = Plan(resolve_phases(resolve_options(options), GROUPS), GROUPS, steps_per_epoch)
        document = json.loads(json.dumps(plan.to_dict(), allow_nan=False))
        lrs = [lr for group in GROUPS for lr in document["lr"][group]]
        assert all(math.isfinite(lr) and lr >= 0 for lr in lrs)
        steps = sum(phase.epochs for phase in plan.phases) * steps_per_epoch
        assert plan.steps == steps
        assert document["lr"]["step"][-1:] == ([steps - 1] if steps else [])

    check()
    outcomes.shown()
    assert min(outcomes["accepted"], outcomes["ConfigError"]) > count / 10


@pytest.mark.parametrize("count", counts(150, 20_000))
def test_phases_from_python(count):
    """`Phase(...)` takes anything, and `check_phases` says what is wrong with it."""

    @searching(count)
    @given(phases)
    def check(values):
        fields = {field.name for field in dataclasses.fields(Phase)}
        options = {name: value for name, value in values.items() if name in fields}

        def build():
            problems = check_phases([Phase(**options)], GROUPS)
            assert all(isinstance(problem, str) and problem for problem in problems)

        refused(build, allowed=(2,))

    check()
