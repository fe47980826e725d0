"""One policy for the precision: what the machine has, what is measured once, and what is remembered of it."""

import copy

import pytest
import torch
from torch import nn

from transferkit.machine import precision as policy
from transferkit.machine import timings
from transferkit.machine.precision import COSINE, GAIN, choose_precision, choose_training_precision, memory_of
from transferkit.models.backbones.registry import create_backbone

pytestmark = pytest.mark.precision

SIZE = (32, 32)


class Work:
    """Work that says how it fares in bf16, and counts how often it is asked."""

    work = "the work"

    def __init__(self, cosine=None, network="a"):
        self.memory = timings.Memory({"network": network})
        self.result = cosine
        self.tries = 0

    def ways(self):
        self.tries += 1
        return (lambda: None), (lambda: None)

    def cosine(self):
        return self.result


@pytest.fixture
def has_bf16(monkeypatch):
    monkeypatch.setattr(policy, "cpu_has_bf16", lambda: True)


@pytest.fixture
def speed(monkeypatch, has_bf16):
    """A processor with bf16, and a function that says how fast."""
    return lambda gain: monkeypatch.setattr(policy, "compare", lambda full, half: gain)


@pytest.fixture
def backbone():
    return create_backbone("test_resnet", weights="random", image_size=32)


@pytest.mark.parametrize(
    ("flag", "device", "cpu", "gpu", "expected", "reason"),
    [
        ("32", "cpu", True, True, "32", "as asked"),
        ("bf16", "cpu", False, False, "bf16", "as asked"),
        ("bf16", "mps", False, False, "bf16", "as asked"),
        ("auto", "cpu", False, True, "32", "the processor has no bf16 arithmetic"),
        ("auto", "cuda", True, False, "32", "the GPU has no bf16 arithmetic"),
        ("auto", "cuda", False, True, "bf16", "the GPU has bf16"),
        ("auto", "mps", True, True, "32", "bf16 autocast is not complete on MPS"),
    ],
)
def test_what_needs_no_stopwatch(monkeypatch, flag, device, cpu, gpu, expected, reason):
    monkeypatch.setattr(policy, "cpu_has_bf16", lambda: cpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: gpu or including_emulation)
    work = Work()
    choice = choose_precision(flag, device, work)
    assert (choice.precision, choice.reason, choice.cosine) == (expected, reason, None)
    assert work.tries == 0


@pytest.mark.parametrize(
    ("gain", "cosine", "expected"),
    [
        (1.01 * GAIN, None, "bf16"),
        (0.99 * GAIN, None, "32"),
        (4.0, COSINE, "bf16"),
        (4.0, COSINE - 1e-4, "32"),
        (0.5, 1.0, "32"),
        (None, 1.0, "32"),
    ],
)
def test_bf16_only_where_it_is_faster_and_exact_enough(speed, gain, cosine, expected):
    speed(gain)
    choice = choose_precision("auto", "cpu", Work(cosine))
    assert choice.precision == expected
    if gain is None:
        assert "too busy" in choice.reason
    else:
        assert f"the work in bf16 is {gain:.2f} times as fast" in choice.reason
    assert choice.cosine == (cosine if gain is not None and gain >= GAIN else None)


def test_the_choice_is_made_once(speed, monkeypatch):
    speed(4.0)
    choice = choose_precision("auto", "cpu", Work())
    monkeypatch.setattr(timings, "_SESSION", {})  # as in the next process
    speed(0.5)
    work = Work()
    assert choose_precision("auto", "cpu", work) == choice
    assert work.tries == 0
    assert choose_precision("auto", "cpu", Work(network="b")).precision == "32"


def test_a_busy_machine_computes_in_fp32_and_tries_again_another_time(speed, monkeypatch):
    speed(None)
    assert choose_precision("auto", "cpu", Work()).precision == "32"
    speed(4.0)
    assert choose_precision("auto", "cpu", Work()).precision == "32"  # this process goes on as it began
    monkeypatch.setattr(timings, "_SESSION", {})
    assert choose_precision("auto", "cpu", Work()).precision == "bf16"


def test_it_is_remembered_by_structure_size_device_and_release_of_torch(backbone, monkeypatch):
    path = memory_of(backbone, SIZE, "cpu").path
    assert memory_of(create_backbone("test_resnet", weights="random", image_size=32), SIZE, "cpu").path == path
    others = [
        memory_of(create_backbone("test_vit", weights="random"), SIZE, "cpu"),
        memory_of(backbone, (32, 64), "cpu"),
    ]
    monkeypatch.setattr(torch, "__version__", "2.11.0")
    others.append(memory_of(backbone, SIZE, "cpu"))
    monkeypatch.undo()
    monkeypatch.setattr(policy, "describe_device", lambda device: "another processor")
    others.append(memory_of(backbone, SIZE, "cpu"))
    assert len({path, *(memory.path for memory in others)}) == 5


# --- training steps


def test_a_training_step_is_timed_in_both(has_bf16, monkeypatch):
    """The steps run here, emulated where the processor has no bf16; they train a copy and draw no random numbers.

    Dropout draws in a training step, and the run that measures must be the run that remembers.
    """
    steps = []

    class Network(nn.Sequential):
        def forward(self, images):
            features = super().forward(images)
            steps.append((len(images), features.dtype, self.training, features.requires_grad))
            return features

    monkeypatch.setattr(policy, "compare", lambda full, half: (full(), half(), 2.0)[-1])
    network = Network(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.5), nn.LazyLinear(2))
    network(torch.zeros(2, 3, *SIZE))
    network.requires_grad_(False).eval()
    steps.clear()
    before, random_state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    choice = choose_training_precision("auto", "cpu", network, SIZE, 4)
    assert choice.precision == "bf16"
    assert choice.reason == "a training step of 4 in bf16 is 2.00 times as fast as in fp32 here"
    assert steps == [(4, torch.float32, True, True), (4, torch.bfloat16, True, True)]
    assert all(before[name].equal(tensor) for name, tensor in network.state_dict().items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize(("batch", "pictures"), [(1, 2), (16, 16), (512, 32)])
def test_the_timed_batch(backbone, batch, pictures):
    """As large as the run's, within reason; batch norm of one picture has nothing to norm."""
    assert policy.TrainingTrial(backbone, SIZE, batch, "cpu").shape == (pictures, 3, 32, 32)


def test_what_this_machine_chooses_is_the_same_twice(backbone):
    """With the processor, the stopwatch and the load that there are."""
    first = choose_training_precision("auto", "cpu", backbone, SIZE, 4)
    assert choose_training_precision("auto", "cpu", backbone, SIZE, 4) == first
