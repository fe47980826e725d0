"""Phases: presets, checks, and the plan's learning rates."""

import itertools

import pytest

from transferkit.core.errors import ConfigError
from transferkit.options.fields import make_config
from transferkit.options.training import FinetuneConfig
from transferkit.training.plan.options import resolve_phases
from transferkit.training.plan.phases import Phase, check_phases, make_phases, preset_phases, snapshot_problems
from transferkit.training.plan.plan import Plan
from transferkit.training.schedules.schedules import SGDR, Constant

GROUPS = ("stem", "layer1", "layer2", "head")


def preset(name, *, epochs=4, groups=GROUPS):
    probe = Phase("probe", 2, train="head", lr=1e-3)
    return preset_phases(name, probe, Phase("finetune", epochs, lr=1e-4, layer_decay=0.5), groups)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("probe", [("probe", 2, ("head",))]),
        ("finetune", [("finetune", 4, GROUPS)]),
        ("probe-finetune", [("probe", 2, ("head",)), ("finetune", 4, GROUPS)]),
        (
            "gradual",
            [
                ("probe", 2, ("head",)),
                ("unfreeze-layer2", 2, ("layer2", "head")),
                ("unfreeze-layer1", 1, ("layer1", "layer2", "head")),
                ("unfreeze-stem", 1, GROUPS),
            ],
        ),
    ],
)
def test_presets(name, expected):
    assert [(p.name, p.epochs, p.trained(GROUPS)) for p in preset(name)] == expected


@pytest.mark.parametrize(("more", "epochs"), [({}, 7), ({"probe_epochs": 5}, 5)])
def test_a_probe_that_is_all_is_trained_for_its_own_epochs_or_for_all(more, epochs):
    options = {"data": "d", "phases": "probe", "probe": "sgd", "epochs": 7, **more}
    (phase,) = resolve_phases(make_config(FinetuneConfig, options), GROUPS)
    assert (phase.epochs, phase.schedule.name) == (epochs, "cosine")


def test_gradual_with_fewer_epochs_than_groups_unfreezes_several_at_a_time():
    phases = preset("gradual", epochs=2)
    assert [(p.epochs, p.trained(GROUPS)) for p in phases[1:]] == [(1, ("layer2", "head")), (1, GROUPS)]


def test_unknown_preset():
    with pytest.raises(ConfigError, match="unknown phases 'probe-fine'. Did you mean 'probe-finetune'"):
        preset("probe-fine")


def test_plan_by_hand():
    plan = Plan(
        (
            Phase("probe", epochs=1, train="head", lr=1.0, schedule=Constant()),
            Phase("tune", epochs=2, train=("head", "layer*"), lr=0.1, schedule=Constant(), layer_decay=0.5),
        ),
        GROUPS,
        steps_per_epoch=2,
    )
    assert (plan.epochs, plan.steps) == (3, 6)
    probe = {"stem": 0.0, "layer1": 0.0, "layer2": 0.0, "head": 1.0}
    tune = {"stem": 0.0, "layer1": pytest.approx(0.025), "layer2": pytest.approx(0.05), "head": pytest.approx(0.1)}
    assert [plan.lrs(step) for step in range(6)] == [probe, probe, tune, tune, tune, tune]
    assert [plan.phase_at(epoch) for epoch in range(4)] == [0, 1, 1, 1]


def test_ratios_hold_at_every_step():
    plan = Plan((Phase("a", epochs=6, lr=1e-2, schedule=SGDR(cycle_mult=2), layer_decay=0.7),), GROUPS, 10)
    for step in range(plan.steps):
        lrs = plan.lrs(step)
        for lower, upper in itertools.pairwise(GROUPS):
            assert lrs[lower] == pytest.approx(0.7 * lrs[upper])


def test_schedule_starts_anew_in_each_phase():
    plan = Plan((Phase("a", 2, lr=1.0), Phase("b", 2, lr=1.0)), ("head",), 5)
    assert plan.lr("head", 0) == plan.lr("head", 10) == 1.0
    assert plan.lr("head", 9) == plan.lr("head", 19) < 0.05


def test_phases_from_a_recipe():
    phases = make_phases(
        [
            {"name": "probe", "epochs": 3, "train": "head", "lr": 1e-3},
            {"name": "top", "epochs": 5, "train": ["head", "layer2"], "schedule": {"name": "sgdr", "cycle_epochs": 5}},
        ]
    )
    assert phases[1] == Phase("top", 5, ("head", "layer2"), schedule=SGDR(cycle_epochs=5))
    assert make_phases([phase.to_dict() for phase in phases]) == phases


def test_all_mistakes_of_a_recipe_in_one_error():  # fault 39
    with pytest.raises(ConfigError) as caught:
        make_phases(
            [
                {"name": "a", "epoch": 3},
                {"name": "b", "epochs": 2, "schedule": "sgrd"},
                {"name": "c", "epochs": 2, "lr": "fast"},
                "d",
            ]
        )
    for part in (
        r"phases[0]: unknown key 'epoch'. Did you mean 'epochs'?",
        "phases[0]: 'epochs' is missing",
        "phases[1]: unknown schedule 'sgrd'. Did you mean 'sgdr'?",
        "phases[2]: lr is 'fast', expected a number",
        "phases[3] is 'd', expected a mapping",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        (Phase("a", 0), "epochs is 0"),
        (Phase("a", 2, lr=float("nan")), "lr is nan"),
        (Phase("a", 2, lr=-1.0), "lr is -1.0"),
        (Phase("a", 2, layer_decay=1.5), "layer_decay is 1.5"),
        (Phase("a", 2, train=()), "train is empty"),
        (Phase("a", 2, train="layr1"), "'layr1' matches no layer group, module or parameter. Did you mean 'layer1'"),
        (Phase("a", 2, schedule=SGDR(cycle_epochs=3)), "cycle_epochs is 3, longer than the phase of 2 epochs"),
    ],
)
def test_check_phases(phase, message):
    (problem,) = check_phases([phase], GROUPS)
    assert message in problem


def test_check_phases_names_and_emptiness():
    assert check_phases([], GROUPS) == ["there are no phases, expected at least one"]
    assert check_phases([Phase("a", 1), Phase("a", 1)]) == ["phase name 'a' is used twice"]
    assert check_phases(preset("gradual"), GROUPS) == []


# ---- explicit LRs, plateau, momentum ------------------------------------------------------------------------------


def test_explicit_lrs_hold_at_every_step():
    phase = Phase(
        "all", epochs=3, lr=1e-2, schedule="cosine", layer_decay=0.5, group_lrs={"layer*": 4e-3, "layer1": 1e-3}
    )
    plan = Plan((phase,), GROUPS, 5)
    assert [plan.scale(0, group) for group in GROUPS] == pytest.approx([0.125, 0.1, 0.4, 1.0])
    for step in range(plan.steps - 1):
        lrs = plan.lrs(step)
        assert [lrs[group] / lrs["head"] for group in GROUPS] == pytest.approx([0.125, 0.1, 0.4, 1.0])
    assert plan.lrs(0)["layer1"] == pytest.approx(1e-3)


def test_explicit_lrs_of_frozen_groups_stay_zero():
    plan = Plan((Phase("top", epochs=1, train="head", group_lrs={"layer1": 1e-3}),), GROUPS, 2)
    assert plan.lrs(0)["layer1"] == 0.0


@pytest.mark.parametrize(
    ("lrs", "message"),
    [
        ({"layer9": 1e-3}, "'layer9' matches no layer group, module or parameter. Did you mean 'layer2'"),
        ({"head": 0}, "group_lrs['head'] is 0, expected a finite number above 0"),
        ({"head": float("nan")}, "group_lrs['head'] is nan"),
        ({"head": "fast"}, "group_lrs['head'] is 'fast'"),
    ],
)
def test_bad_explicit_lrs(lrs, message):
    (problem,) = check_phases([Phase("all", epochs=1, group_lrs=lrs)], GROUPS)
    assert message in problem


def test_explicit_lrs_from_a_recipe_round_trip():
    written = {"name": "all", "epochs": 1, "group_lrs": {"head": 1e-3}, "test_view": True}
    (phase,) = make_phases([written])
    assert phase.group_lrs == {"head": 1e-3}
    assert make_phases([phase.to_dict()]) == (phase,)
    with pytest.raises(ConfigError, match="group_lrs is 3, expected LRs by layer group"):
        make_phases([{**written, "group_lrs": 3}])
    with pytest.raises(ConfigError, match="test_view is 'yes', expected true or false"):
        make_phases([{**written, "test_view": "yes"}])


def test_plateau_follows_from_plan_and_values():
    phases = (
        Phase("probe", epochs=2, train="head"),
        Phase("all", epochs=5, lr=1.0, schedule={"name": "plateau", "gamma": 0.1, "patience": 1, "threshold": 0.0}),
    )
    plan = Plan(phases, GROUPS, 2)
    # epoch of the phase   0    1    2    3    4      the third value in a row that is no better divides the LR
    known = plan.with_values({0: [9.0, 9.0], 1: [1.0, 1.0, 1.0, 1.0]})
    course = [known.lrs(step)["head"] for step in range(4, 14, 2)]
    assert course == pytest.approx([1.0, 1.0, 1.0, 0.1, 0.1])
    assert [plan.lrs(step)["head"] for step in range(4, 14, 2)] == pytest.approx([1.0] * 5)


def test_momentum_of_the_phase_that_cycles():
    phases = (
        Phase("probe", epochs=1, train="head"),
        Phase("all", epochs=2, schedule={"name": "one_cycle", "cycle_momentum": True}),
    )
    plan = Plan(phases, GROUPS, 10)
    assert plan.momentum(5) is None
    lowest = min(range(10, 30), key=plan.momentum)
    assert plan.lrs(lowest)["head"] == pytest.approx(phases[1].lr)  # momentum is lowest where the LR is highest
    assert plan.momentum(lowest) == pytest.approx(0.85)


# ---- snapshots --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "epochs", "enough"),
    [
        (SGDR(cycle_epochs=2), 4, True),
        (SGDR(cycle_epochs=2), 3, False),
        (SGDR(cycle_epochs=1, cycle_mult=2), 3, True),
        (SGDR(cycle_epochs=1, cycle_mult=2), 2, False),
        (Constant(), 4, False),
    ],
)
def test_phases_need_two_whole_cycles(schedule, epochs, enough):
    phases = [Phase("probe", epochs=0, train="head", solve=True), Phase("all", epochs=epochs, schedule=schedule)]
    problems = snapshot_problems(phases)
    assert bool(problems) is not enough
    if problems:
        cycles = f"'all' with {schedule.name} and {0 if schedule == Constant() else 1} whole cycle(s)"
        assert "snapshots need a phase of at least two whole sgdr cycles, saw " in problems[0]
        assert cycles in problems[0]


def test_a_whole_cycle_in_each_of_two_phases_is_not_enough():
    assert snapshot_problems([Phase(name, epochs=1, schedule=SGDR(cycle_epochs=1)) for name in "ab"])
