"""How steps run: one choice of precision and memory format, timed on the real model and remembered."""

import copy

import pytest
import torch
from torch import nn

from transferkit.machine import precision as policy
from transferkit.machine import timings
from transferkit.models.module import TransferModule
from transferkit.training import steps
from transferkit.training.steps import LEAST_PIXELS, CompileChoice, StepTrial, Way, choose_steps, fastest, step_lines

SIZE = 32
CHANNELS_LAST, CONTIGUOUS = Way("32", "channels_last"), Way("32", "contiguous")
HALF, HALF_CONTIGUOUS = Way("bf16", "channels_last"), Way("bf16", "contiguous")


@pytest.fixture
def module():
    """With dropout, which draws, and batch norm, which moves."""
    return TransferModule("test_resnet", 3, weights="random", image_size=SIZE, drop_rate=0.5)


@pytest.fixture
def clock(monkeypatch):
    """A machine with bf16 on which steps take what they are said to take; returns the ways of the last comparison."""
    monkeypatch.setattr(policy, "cpu_has_bf16", lambda: True)
    asked = []

    def says(*seconds, alone=1e-3):
        def time_ways(ways, *, limit_s):
            asked.append([way.args for way in ways])
            for way in ways:
                way()
            times = list(seconds) if len(ways) > 1 else [alone]
            return None if None in times else [time * len(way.args[-1]) for time, way in zip(times, ways, strict=True)]

        monkeypatch.setattr(steps, "time_ways", time_ways)
        return asked

    return says


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({CHANNELS_LAST: 1.0, CONTIGUOUS: 0.9}, CONTIGUOUS),
        ({CHANNELS_LAST: 1.0, CONTIGUOUS: 0.97}, CHANNELS_LAST),
        ({CHANNELS_LAST: 1.0, CONTIGUOUS: 1.3}, CHANNELS_LAST),
        ({CHANNELS_LAST: 1.0, CONTIGUOUS: 1.0, HALF: 0.5, HALF_CONTIGUOUS: 0.5}, HALF),
        ({CHANNELS_LAST: 1.0, CONTIGUOUS: 1.0, HALF: 0.5, HALF_CONTIGUOUS: 0.4}, HALF_CONTIGUOUS),
        ({CHANNELS_LAST: 1.0, CONTIGUOUS: 0.8, HALF: 0.75, HALF_CONTIGUOUS: 0.9}, CONTIGUOUS),
        ({HALF: 1.0, HALF_CONTIGUOUS: 0.5}, HALF_CONTIGUOUS),
    ],
)
def test_the_fastest_way_and_in_a_tie_the_usual_one(seconds, expected):
    assert fastest(seconds) == expected


@pytest.mark.parametrize(
    ("precision", "layout", "accelerator", "expected"),
    [
        ("32", "channels_last", "cpu", CHANNELS_LAST),
        ("bf16", "contiguous", "cpu", HALF_CONTIGUOUS),
        ("auto", "auto", "mps", CHANNELS_LAST),
        ("auto", "auto", "gpu", HALF),
        ("auto", "contiguous", "gpu", HALF_CONTIGUOUS),
        ("32", "auto", "gpu", CHANNELS_LAST),
    ],
)
def test_what_needs_no_stopwatch(module, monkeypatch, precision, layout, accelerator, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(steps, "time_ways", None)
    assert choose_steps(precision, layout, accelerator, module, 8).way == expected


def test_four_ways_are_timed_on_a_copy_and_leave_no_trace(module, clock):
    asked = clock(4.0, 2.0, 1.0, 1.5)
    module.train_groups(["head"])
    before, random_state = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    choice = choose_steps("auto", "auto", "cpu", module, 4)
    assert choice.way == HALF
    assert "a training step of 4 takes 1e+03 ms a picture here, 32 channels_last 4e+03" in choice.reason
    copies, ways, images = zip(*asked[-1], strict=True)
    assert ways == (CHANNELS_LAST, CONTIGUOUS, HALF, HALF_CONTIGUOUS)
    assert module not in copies
    assert all(parameter.requires_grad for twin in copies for parameter in twin.parameters())
    assert [one.is_contiguous() for one in images] == [False, True, False, True]
    assert [len(one) for one in images] == [4] * 4
    assert all(before[name].equal(tensor) for name, tensor in module.state_dict().items())
    assert not any(parameter.requires_grad for parameter in module.backbone.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize(
    ("batch", "alone", "pictures"),
    [(1, 1e-3, 2), (16, 1e-3, 16), (512, 1e-4, 32), (32, 0.05, 4), (32, 0.008, 16), (32, 1.0, 2)],
)
def test_as_many_pictures_as_two_seconds_allow(module, clock, batch, alone, pictures):
    asked = clock(1.0, 1.0, alone=alone)
    choose_steps("32", "auto", "cpu", module, batch)
    assert {len(images) for _, _, images in asked[-1]} == {pictures}


def test_the_choice_is_made_once_by_network_size_batch_and_head(module, clock, monkeypatch):
    asked = clock(1.0, 0.5)
    assert choose_steps("32", "auto", "cpu", module, 4).way == CONTIGUOUS
    monkeypatch.setattr(timings, "_SESSION", {})  # as in the next process
    clock(0.5, 1.0)
    count = len(asked)
    other = TransferModule("test_resnet", 7, weights="random", image_size=SIZE)  # of another data set
    assert choose_steps("32", "auto", "cpu", other, 4).way == CONTIGUOUS
    assert len(asked) == count
    assert choose_steps("32", "auto", "cpu", module, 8).way == CHANNELS_LAST
    larger = TransferModule("test_resnet", 3, weights="random", image_size=2 * SIZE)
    assert choose_steps("32", "auto", "cpu", larger, 4).way == CHANNELS_LAST


def test_a_busy_machine_takes_the_usual_way_and_tries_again_another_time(module, clock, monkeypatch):
    clock(1.0, None)
    choice = choose_steps("32", "auto", "cpu", module, 4)
    assert choice.way == CHANNELS_LAST
    assert "too busy" in choice.reason
    clock(1.0, 0.5)
    assert choose_steps("32", "auto", "cpu", module, 4).way == CHANNELS_LAST  # this process goes on as it began
    monkeypatch.setattr(timings, "_SESSION", {})
    assert choose_steps("32", "auto", "cpu", module, 4).way == CONTIGUOUS


def test_of_a_short_run_only_the_precision_is_timed(module, clock):
    asked = clock(2.0, 1.0)
    assert choose_steps("auto", "auto", "cpu", module, 4, pixels=LEAST_PIXELS - 1).way == HALF
    assert [way for _, way, _ in asked[-1]] == [CHANNELS_LAST, HALF]
    count = len(asked)
    assert choose_steps("32", "auto", "cpu", module, 4, pixels=LEAST_PIXELS - 1).way == CHANNELS_LAST
    assert len(asked) == count


def test_steps_of_all_kinds_of_heads_can_be_timed():
    """Detectors learn only with answers; dense heads take the picture and its maps."""
    for options in (
        {"task": "detection", "head": "fcos", "class_names": ["a"], "target_facts": {}},
        {"task": "segmentation", "head": "linear", "class_names": ["a", "b"], "target_facts": {}},
    ):
        width = len(options["class_names"])
        module = TransferModule("test_resnet", width, weights="random", image_size=64, **options)
        trial = StepTrial(module, 2, "cpu")
        trial.step(trial.copy("contiguous"), CONTIGUOUS, trial.images(CONTIGUOUS, 2))


def test_what_this_machine_chooses_is_the_same_twice(module):
    """With the processor, the stopwatch and the load that there are."""
    first = choose_steps("auto", "auto", "cpu", module, 4)
    assert choose_steps("auto", "auto", "cpu", module, 4) == first


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_pictures_enter_in_the_layout_of_the_module(module, layout):
    seen = []
    convolution = next(part for part in module.backbone.modules() if isinstance(part, nn.Conv2d))
    convolution.register_forward_pre_hook(lambda part, inputs: seen.append(inputs[0].is_contiguous()))
    module.passage.memory_format = policy.layout_of(layout)
    for images in (torch.rand(2, 3, SIZE, SIZE), torch.rand(2, SIZE, SIZE, 3).permute(0, 3, 1, 2)):
        module(images)
    assert seen == [layout == "contiguous"] * 2


def test_the_lines_say_how_and_why():
    machine = policy.Machine("cpu", "bf16", 0, 2, "it is faster", "contiguous")
    assert step_lines(machine, CompileChoice(False, "too short")) == [
        ("steps", "bf16, contiguous: it is faster"), ("compile", "off: too short")
    ]  # fmt: skip
