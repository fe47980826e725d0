"""Options by the number of training pictures, each with its reason; what is named stays."""

import math

import pytest
from torch import nn

from transferkit.models.task import task_named
from transferkit.options.fields import make_config
from transferkit.options.training import FinetuneConfig
from transferkit.training.plan.amount import by_amount, phases_after, usual_batch
from transferkit.training.plan.options import resolve_phases

CLASSES = "classification"
NORM, PLAIN = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), nn.Conv2d(3, 4, 1)


def config_of(**options):
    return make_config(FinetuneConfig, {"data": "-", **options})


def chosen(rows, backbone=NORM, **options):
    """Return what was chosen, by name."""
    config, choices = by_amount(config_of(**options), rows, task_named(options.get("task", CLASSES)), backbone)
    values = {choice.name: choice.value for choice in choices}
    assert all(getattr(config, name) == value for name, value in values.items())
    assert all(choice.reason for choice in choices)
    return values


@pytest.mark.parametrize(
    ("rows", "expected"), [(1, 8), (10, 8), (127, 8), (128, 16), (255, 16), (256, 32), (1_000_000, 32)]
)
def test_batches_leave_eight_steps_an_epoch_where_they_can(rows, expected):
    assert usual_batch(rows) == expected
    assert chosen(rows)["batch_size"] == expected


@pytest.mark.parametrize(("rows", "expected"), [(50, "keep"), (511, "keep"), (512, "batch")])
def test_batch_norm_keeps_its_statistics_where_pictures_are_few(rows, expected):
    assert chosen(rows)["batch_norm"] == expected


def test_nothing_is_said_of_batch_norm_where_there_is_none():
    assert "batch_norm" not in chosen(50, PLAIN)


def test_statistics_that_are_measured_anew_are_not_kept():
    assert chosen(50, recalibrate_bn=True)["batch_norm"] == "batch"


@pytest.mark.parametrize(
    ("rows", "options", "expected"),
    [
        (10, {}, 1e-3 * math.sqrt(20 / 100)),  # ten epochs of two steps
        (50, {}, 1e-3 * math.sqrt(70 / 100)),
        (50, {"epochs": 5}, 1e-3 * math.sqrt(35 / 100)),
        (50, {"accumulate": 7}, 1e-3 * math.sqrt(10 / 100)),
        (50, {"batch_size": 50}, 1e-3 * math.sqrt(10 / 100)),
        (80, {}, None),
        (10, {"phases": "finetune"}, None),  # a new head needs the LR it has
        (10, {"probe": "sgd"}, None),
        (10, {"head": "mlp"}, None),
        (10, {"task": "detection"}, None),
        (10, {"lr": 1e-3}, None),
        (10, {"lr": "auto"}, None),
    ],
)
def test_few_steps_after_a_solved_head_get_a_lower_lr(rows, options, expected):
    lr = chosen(rows, **options).get("lr")
    assert lr == (None if expected is None else pytest.approx(expected, rel=0.03))


def test_what_is_named_stays():
    assert chosen(10, batch_size=4, batch_norm="batch", lr=2e-3) == {}
    assert "batch_size" not in chosen(10, batch_size="auto")  # which is measured


def test_several_processes_share_the_pictures():
    assert chosen(300, devices=2)["batch_size"] == 16


# ---- phases -----------------------------------------------------------------------------------------------------


def settled(held_out, rows, validated=True, **options):
    config = config_of(**options)
    phases, choice = phases_after(config, resolve_phases(config, None), held_out, rows, outputs=10, validated=validated)
    assert (choice.name, choice.value) == ("phases", "probe" if len(phases) == 1 else "probe-finetune")
    return [phase.name for phase in phases], choice.reason


BOTH = ["probe", "finetune"]


@pytest.mark.parametrize(
    ("held_out", "rows", "expected"),
    [
        (1.0, 197, BOTH),  # 1 / 199: by the rule of succession not yet proven
        (1.0, 198, ["probe"]),
        (0.998, 1000, ["probe"]),
        (0.995, 1000, BOTH),
        (1.0, 10, BOTH),
        (0.5, 1000, BOTH),
        (None, 1000, BOTH),
    ],
)
def test_fine_tuning_is_left_out_where_nothing_is_left_to_win(held_out, rows, expected):
    assert settled(held_out, rows)[0] == expected


def test_the_reason_names_the_figure():
    assert settled(1.0, 500)[1] == (
        "the solved head is right on 100.0% of held-out training pictures: nothing is left to win"
    )
    assert settled(0.75, 500)[1] == "the solved head is right on 75.0% of held-out training pictures"


@pytest.mark.parametrize(("rows", "expected"), [(139, ["probe"]), (140, BOTH)])
def test_with_few_pictures_and_none_to_validate_on_nobody_could_tell(rows, expected):
    assert settled(0.5, rows, validated=False)[0] == expected
    assert settled(0.5, rows)[0] == BOTH
    assert settled(0.5, 30, validated=False)[1] == ("30 training pictures, 3 for each of 10, and none to validate on")


@pytest.mark.parametrize(
    "options", [{"interpolate": True}, {"ema": 0.9}, {"l2_sp": 0.1}, {"fixres_epochs": 1}, {"lr": "auto"}]
)
def test_options_of_a_trained_phase_keep_it(options):
    assert settled(1.0, 500, **options)[0][:2] == BOTH
    assert settled(0.5, 20, validated=False, **options)[0][:2] == BOTH
