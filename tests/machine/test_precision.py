"""One policy for the precision: what the machine has, what is measured once, and what is remembered of it."""

import pytest
import torch

from transferkit.machine import precision as policy
from transferkit.machine import timings
from transferkit.machine.precision import COSINE, GAIN, choose_precision, memory_of
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
