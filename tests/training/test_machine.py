"""What the machine does best: threads that fit the cores, precision that is measured, accelerators that exist."""

import pytest
import torch

from transferkit.errors import ConfigError, TransferkitWarning
from transferkit.models.backbones import create_backbone
from transferkit.models.module import TransferModule
from transferkit.training import machine


@pytest.mark.parametrize("cores", [1, 2, 8, 64])
@pytest.mark.parametrize("wanted", [None, 0, 1])
def test_threads_and_workers_never_outnumber_the_cores(monkeypatch, cores, wanted):
    monkeypatch.setattr(machine, "available_cores", lambda: cores)
    if wanted == 1 and cores == 1:
        with pytest.warns(TransferkitWarning, match=r"--workers 1 .* would outnumber the 1 core\(s\); using 0"):
            workers, threads = machine.choose_workers(wanted, "cpu")
    else:
        workers, threads = machine.choose_workers(wanted, "cpu")
    assert workers + threads <= cores
    assert threads >= 1


def test_a_gpu_leaves_the_cores_to_the_decoders(monkeypatch):
    monkeypatch.setattr(machine, "available_cores", lambda: 8)
    assert machine.choose_workers(None, "gpu") == (7, 1)
    assert machine.choose_workers(3, "gpu") == (3, 5)


def test_accelerators(monkeypatch):  # fault 43
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert machine.choose_accelerator("auto") == "cpu"
    with pytest.raises(ConfigError, match="--accelerator gpu is not on this machine, which has: cpu"):
        machine.choose_accelerator("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert machine.choose_accelerator("auto") == "gpu"
    with pytest.raises(ConfigError, match=r"--devices 2, but this machine has 1 GPU\(s\)"):
        machine.choose_accelerator("gpu", 2)


@pytest.fixture
def module():
    return TransferModule(create_backbone("test_resnet", weights="random", image_size=32), 3)


@pytest.mark.parametrize(("half", "expected"), [(0.5, "bf16"), (0.9, "32"), (1.5, "32")])
def test_precision_follows_the_measurement(monkeypatch, module, half, expected):
    monkeypatch.setattr(machine, "_cpu_has_bf16", lambda: True)
    monkeypatch.setattr(machine, "_time_steps", lambda trial, size: (1.0, half))
    precision, reason = machine.choose_precision("auto", "cpu", module, 8)
    assert precision == expected
    assert f"{1 / half:.2f} times as fast" in reason


def test_precision_without_bf16(monkeypatch, module):
    monkeypatch.setattr(machine, "_cpu_has_bf16", lambda: False)
    assert machine.choose_precision("auto", "cpu", module, 8) == ("32", "the processor has no bf16 arithmetic")
    assert machine.choose_precision("bf16", "cpu", module, 8) == ("bf16", "as asked")


def test_timing_leaves_the_model_alone(monkeypatch, module):
    monkeypatch.setattr(machine, "_cpu_has_bf16", lambda: True)
    module.train_groups(["head"])
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    precision, _ = machine.choose_precision("auto", "cpu", module, 4)
    assert precision in ("32", "bf16")
    assert all(before[name].equal(tensor) for name, tensor in module.state_dict().items())
    assert not any(p.requires_grad for p in module.backbone.parameters())
