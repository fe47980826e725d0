"""Phases: presets, checks, and the plan's learning rates."""

import itertools

import pytest

from transferkit.errors import ConfigError
from transferkit.training.phases import Phase, Plan, check_phases, make_phases, preset_phases
from transferkit.training.schedules import SGDR, Constant, Cosine

GROUPS = ("stem", "layer1", "layer2", "head")


def preset(name, *, epochs=4, groups=GROUPS):
    return preset_phases(
        name, epochs=epochs, probe_epochs=2, lr=1e-4, probe_lr=1e-3, schedule=Cosine(), layer_decay=0.5,
        group_names=groups,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("probe", [("probe", 4, ("head",))]),
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
        (Phase("a", 2, train="layr1"), "'layr1' matches no layer group. Did you mean 'layer1'"),
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
