"""The space of a search: what may be searched, what is drawn, and every mistake told before anything runs."""

import math

import pytest
import yaml
from optuna.trial import FixedTrial

from transferkit.core.errors import ConfigError
from transferkit.training.search.space import MOST_CORNERS, PROBE_SPACE, Choices, Range, plan_search
from transferkit.training.search.study import differences, facts_of

BASE = {"data": "sample"}


class Recorder:
    """A trial that takes down what it is asked for, and answers with the lowest or the last value."""

    def __init__(self):
        self.calls = {}

    def suggest_float(self, name, low, high, *, step, log):
        self.calls[name] = (low, high, step, log)
        return low

    def suggest_int(self, name, low, high, *, step, log):
        self.calls[name] = (low, high, step, log)
        return low

    def suggest_categorical(self, name, choices):
        self.calls[name] = tuple(choices)
        return choices[-1]


def refusal(space, **options):
    with pytest.raises(ConfigError) as caught:
        plan_search({**BASE, **options}, space)
    return str(caught.value)


# ---- what is drawn ----------------------------------------------------------------------------------------------


def test_the_default_space_is_what_was_promised():
    plan = plan_search(BASE)
    assert plan.space.axes == {
        "lr": Range(1e-5, 1e-2, log=True),
        "weight_decay": Range(1e-4, 0.3, log=True),
        "layer_decay": Range(0.5, 1.0),
        "augment": Choices(("none", "light", "standard", "heavy")),
        "phases": Choices(("finetune", "probe-finetune", "gradual")),
    }
    assert not plan.head_only


def test_what_is_given_is_not_searched():
    plan = plan_search({**BASE, "lr": 1e-3, "phases": "finetune"})
    assert list(plan.space.axes) == ["weight_decay", "layer_decay", "augment"]
    assert plan.options == {"data": "sample", "lr": 1e-3, "phases": "finetune"}


def test_a_head_alone_has_a_space_of_its_own():
    plan = plan_search({**BASE, "phases": "probe"})
    assert set(plan.space.axes) == set(PROBE_SPACE) and "lr" not in plan.space.axes
    assert plan.head_only
    assert plan.options["probe"] == "sgd"  # `auto` would solve the head, and the LR would say nothing


def test_ranges_and_choices_reach_the_trial_as_they_were_written():
    space = yaml.safe_load(
        "lr: {low: 1.0e-5, high: 1.0e-2, log: true}\n"
        "augment: [none, light]\n"
        "batch_size: {low: 16, high: 64, step: 16}\n"
        "layer_decay: {low: 0.5, high: 1, step: 0.25}\n"
        "clip: [null, 1.0]\n"
        "nesterov: [true, false]\n"
    )
    trial = Recorder()
    drawn = plan_search({**BASE, "optimizer": "sgd"}, space).space.sample(trial)
    assert trial.calls == {
        "lr": (1e-5, 1e-2, None, True),
        "augment": ("none", "light"),
        "batch_size": (16, 64, 16, False),
        "layer_decay": (0.5, 1.0, 0.25, False),
        "clip": (None, 1.0),
        "nesterov": (True, False),
    }
    assert drawn == {
        "lr": 1e-5, "augment": "light", "batch_size": 16, "layer_decay": 0.5, "clip": 1.0, "nesterov": False,
    }  # fmt: skip
    assert isinstance(drawn["batch_size"], int)


def test_schedules_and_phases_can_be_choices():
    sgdr = {"name": "sgdr", "cycle_epochs": 2}
    phases = [{"name": "all", "epochs": 2, "lr": 0.1}]
    plan = plan_search(BASE, {"schedule": ["cosine", sgdr], "phases": ["finetune", phases]})
    trial = Recorder()
    assert plan.space.sample(trial) == {"schedule": sgdr, "phases": phases}
    assert all(isinstance(label, str) for labels in trial.calls.values() for label in labels)  # what Optuna can keep
    labels_of = {name: labels[-1] for name, labels in trial.calls.items()}
    assert plan.space.values_of(labels_of) == {"schedule": sgdr, "phases": phases}


def test_optuna_accepts_what_is_suggested():
    plan = plan_search(BASE)
    fixed = {"lr": 1e-3, "weight_decay": 0.01, "layer_decay": 0.75, "augment": "none", "phases": "gradual"}
    assert plan.space.sample(FixedTrial(fixed)) == fixed


# ---- mistakes ---------------------------------------------------------------------------------------------------


def test_every_mistake_is_in_one_error():
    message = refusal(
        {
            "layer_decai": [0.5, 1.0],
            "lr": {"low": 1e-2, "high": 1e-5},
            "weight_decay": {"low": 0.0, "high": 0.1, "log": True},
            "batch_size": {"low": 16, "high": 60, "step": 16},
            "epochs": {"low": 1.5, "hihg": 3},
            "momentum": [0.9],
            "head": ["linear", "liner"],
            "augment": {"low": 1, "high": 2},
            "label_smoothing": 0.1,
            "seed": [0, 1],
            "out": ["a", "b"],
        }
    )
    for part in (
        "unknown option 'layer_decai'. Did you mean 'layer_decay'",
        "lr goes from 0.01 to 1e-05, expected low below high",
        "log of weight_decay needs low above 0",
        "batch_size goes from 16 to 60 by 16, expected a whole number of steps",
        "low of epochs is 1.5, expected a whole number",
        "epochs has no 'hihg'. Did you mean 'high'?",
        "high of epochs is None",
        "momentum is [0.9], expected at least two choices",
        "unknown head 'liner'. Did you mean 'linear'?",
        "augment is {'low': 1, 'high': 2}, expected a list of choices",
        "label_smoothing is 0.1, expected {low: ..., high: ...} or a list of choices",
        "seed decides what is measured",
        "out says where or how to run",
    ):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"layer_decay": {"low": 0.5, "high": 1.5}}, "space: layer_decay: --layer-decay is 1.5, expected a ratio"),
        ({"lr": {"low": 0.0, "high": 1.0}}, "space: lr: --lr is 0.0, expected a finite number above 0"),
        ({"batch_size": {"low": 0, "high": 8}}, "--batch-size is 0"),
        ({"augment": ["none", "lite"]}, "augment is 'lite'. Did you mean 'light'?"),
        ({"phases": ["finetune", "finetun"]}, "unknown phases 'finetun'. Did you mean 'finetune'"),
        ({"schedule": ["cosine", "sgrd"]}, "unknown schedule 'sgrd'. Did you mean 'sgdr'?"),
        ({"epochs": [1, "two"]}, "epochs is 'two'"),
        ({"lr": {"low": "1e-5", "high": 1e-2}}, "low of lr is '1e-5', expected a number; YAML reads 1e-5 as text"),
        ({"lr": {"low": math.nan, "high": 1e-2}}, "low of lr is nan, expected a number"),
        ({"lr": {"low": 1e-5, "high": 1e-2, "log": "yes"}}, "log of lr is 'yes', expected true or false"),
        ({"lr": {"low": 1e-5, "high": 1e-2, "log": True, "step": 1e-3}}, "needs low above 0 and no step"),
        ({}, "there is nothing to search"),
    ],
)
def test_values_out_of_range_are_refused(space, message):
    assert message in refusal(space)


def test_each_value_is_fine_and_two_together_are_not():
    fine = {"warmup_epochs": {"low": 0.0, "high": 3.0}}
    plan_search({**BASE, "epochs": 4}, fine)
    plan_search({**BASE, "warmup_epochs": 0.5}, {"epochs": {"low": 2, "high": 10}})
    message = refusal({**fine, "epochs": {"low": 2, "high": 10}})
    assert "'warmup_epochs': 3.0, 'epochs': 2" in message
    assert "longer than the phase of 2 epochs" in message


def test_very_many_corners_are_drawn_not_listed():
    space = {
        name: {"low": 0.0, "high": 0.5} for name in ("momentum", "drop_rate", "label_smoothing", "mixup", "cutmix")
    }
    space |= {"weight_decay": [0.0, 0.1, 0.2, 0.3], "augment": ["none", "light", "standard", "heavy"]}
    plan = plan_search({**BASE, "optimizer": "sgd"}, {**space, "epochs": [2, 4, 6]})
    corners = plan.space.corners()
    assert len(corners) == MOST_CORNERS < 2**5 * 4 * 4 * 3
    assert corners == plan.space.corners()
    assert len({tuple(corner.values()) for corner in corners}) > MOST_CORNERS / 2


def test_a_mistake_in_the_other_options_is_named_once():
    message = refusal(None, schedule="sgrd")
    assert message.count("unknown schedule 'sgrd'") == 1
    assert "space" not in message


def test_what_the_options_lack_may_be_in_the_space():
    sgdr = [{"name": "sgdr", "cycle_epochs": 2}, {"name": "sgdr", "cycle_epochs": 5}]
    plan_search({**BASE, "snapshots": True}, {"schedule": sgdr})
    assert "space: {'schedule': 'cosine'}: snapshots need" in refusal({"schedule": ["cosine", sgdr[0]]}, snapshots=True)


def test_an_option_is_given_or_searched():
    space = {"lr": {"low": 1e-4, "high": 1e-2}}
    assert "lr is searched and also given as 0.02, expected one of the two" in refusal(space, lr=0.02)
    plan = plan_search({**BASE, "lr": None}, space)  # the default, which a verb may pass on
    assert "lr" in plan.space.axes and "lr" not in plan.options


@pytest.mark.parametrize("options", [{"overwrite": True}, {"dry_run": True}, {"overfit_batches": 2}])
def test_what_is_no_search_is_refused(options):
    assert "does not go with a search" in refusal(None, **options)


def test_several_devices_are_several_commands():
    assert "start the same command once for each" in refusal(None, devices=2)


# ---- the head alone ---------------------------------------------------------------------------------------------


def test_lr_of_a_head_alone_is_the_lr_it_is_trained_at():
    plan = plan_search({**BASE, "phases": "probe"}, {"lr": {"low": 1e-4, "high": 1e-1, "log": True}})
    assert list(plan.space.axes) == ["probe_lr"]
    assert plan.head_only


@pytest.mark.parametrize(
    ("options", "space", "cached"),
    [
        ({}, {"weight_decay": [0.0, 0.1], "head": ["linear", "mlp", "cosine"]}, True),
        ({"optimizer": "sgd", "momentum": 0.5}, {"epochs": {"low": 5, "high": 20}, "batch_size": [16, 32]}, True),
        ({}, {"probe_lr": [0.1, 0.2], "augment": ["none", "light"]}, False),  # other features
        ({"mixup": 0.2}, {"probe_lr": [0.1, 0.2]}, False),  # mixed pictures
        ({"loss": "focal"}, {"probe_lr": [0.1, 0.2]}, False),
        ({"clip": 0.5}, {"probe_lr": [0.1, 0.2]}, False),
        ({"schedule": "plateau"}, {"probe_lr": [0.1, 0.2]}, False),  # looks at val after every epoch
        ({}, {"probe_lr": [0.1, 0.2], "schedule": ["cosine", "plateau"]}, False),
        ({}, {"probe_views": [0, 2]}, False),  # a solved probe: finetune keeps the features
    ],
)
def test_cached_features_answer_what_they_can(options, space, cached):
    assert plan_search({**BASE, "phases": "probe", **options}, space).head_only is cached


def test_more_than_a_head_is_never_answered_from_cached_features():
    space = {"lr": [0.1, 0.2]}
    assert not plan_search({**BASE, "phases": "finetune"}, space).head_only
    assert not plan_search(BASE, {**space, "phases": ["probe", "finetune"]}).head_only


def test_a_solved_probe_has_no_lr():
    solved = {"phases": "probe", "probe": "solve"}
    assert "a solved probe has no weight_decay to search" in refusal({"weight_decay": [0.0, 0.1]}, **solved)
    assert "give a space, or pass --probe sgd" in refusal(None, **solved)
    assert "probe" not in plan_search({**BASE, "phases": "probe"}, {"probe_views": [0, 2]}).options


# ---- what a study remembers -------------------------------------------------------------------------------------


def test_the_recipe_repeats_a_trial_anywhere(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    options = {"data": "photos", "epochs": 3, "store": "kept", "out": "run", "quiet": True}
    recipe = plan_search(options).recipe({"lr": 0.01, "augment": "none"})
    assert recipe == {"data": str(tmp_path / "photos"), "epochs": 3, "lr": 0.01, "augment": "none"}


def test_differences_are_named():
    options = {**BASE, "optimizer": "sgd"}
    before = facts_of(plan_search({**options, "epochs": 3}))
    space = {"lr": {"low": 1e-4, "high": 1e-2}, "momentum": [0, 0.5]}
    changes = differences(before, facts_of(plan_search({**options, "epochs": 4, "val_split": 0.2}, space)))
    assert "epochs was 3, is now 4" in changes
    assert "val_split was 0.15, is now 0.2" in changes
    assert "space of lr was {'low': 1e-05, 'high': 0.01, 'log': True}, is now {'low': 0.0001, 'high': 0.01}" in changes
    assert "space of momentum was 'not searched', is now [0, 0.5]" in changes
    assert not any(text.startswith(("lr ", "momentum ", "augment ")) for text in changes)


def test_where_it_runs_and_what_is_default_anyway_makes_no_difference(tmp_path):
    before = facts_of(plan_search(BASE))
    places = {"workers": 0, "accelerator": "cpu", "store": str(tmp_path), "out": "x"}
    assert differences(before, facts_of(plan_search({**BASE, "epochs": 10, **places}))) == []
    older = {"options": {**before["options"]}, "space": before["space"]}
    del older["options"]["mixup"]  # a study of a release that did not have it
    assert differences(older, before) == []


# ---- backbones --------------------------------------------------------------------------------------------------


def test_backbones_may_have_weights_and_sizes_of_their_own():
    mini = {"backbone": "transferkit/mini", "weights": "bundled", "image_size": 64}
    plan = plan_search({**BASE, "weights": "random"}, {"backbone": [mini, "test_resnet", "test_vit@32"]})
    assert plan.space.axes["backbone"] == Choices((mini, "test_resnet", "test_vit@32"))
    assert plan.recipe({"backbone": mini}) == {"data": "sample", **mini}
    assert plan.recipe({"backbone": "test_resnet"})["weights"] == "random"
    assert plan.recipe({"backbone": "test_vit@32"})["image_size"] == 32


def test_features_of_several_backbones_answer_a_search_over_heads():
    space = {"backbone": ["transferkit/mini@32", "transferkit/mini@64"], "probe_lr": {"low": 1e-3, "high": 1e-1}}
    assert plan_search({**BASE, "phases": "probe"}, space).head_only
    assert not plan_search(BASE, {"backbone": ["transferkit/mini@32", "transferkit/mini@64"]}).head_only


@pytest.mark.parametrize(
    ("choices", "more", "words"),
    [
        (["resnet18", "resnt18"], {}, "unknown backbone 'resnt18'. Did you mean 'resnet18'"),
        (["resnet18", {"backbone": "resnet34", "wieght": "x"}], {}, "unknown key 'wieght'"),
        (["resnet18", {"weights": "x"}], {}, "a candidate is a name, or"),
        (["resnet18@64", "resnet18"], {"image_size": [32, 64]}, "image_size is searched, and a backbone of the space"),
        (["resnet18", "resnet18"], {}, "at least two choices, each of them once"),
    ],
)
def test_mistakes_in_backbones(choices, more, words):
    assert words in refusal({"backbone": choices, **more})
