"""The training precision is measured, and asked for where it can be had."""

import pytest

from transferkit.machine import precision as machine
from transferkit.models.backbones.registry import create_backbone
from transferkit.models.module import TransferModule


@pytest.fixture
def module():
    return TransferModule(create_backbone("test_resnet", weights="random", image_size=32), 3)


@pytest.mark.parametrize(("half", "expected"), [(0.5, "bf16"), (0.9, "32"), (1.5, "32")])
def test_precision_follows_the_measurement(monkeypatch, module, half, expected):
    monkeypatch.setattr(machine, "cpu_has_bf16", lambda: True)
    monkeypatch.setattr(machine, "_time_steps", lambda trial, size: (1.0, half))
    precision, reason = machine.choose_precision("auto", "cpu", module, module.data_config.image_size, 8)
    assert precision == expected
    assert f"{1 / half:.2f} times as fast" in reason


def test_precision_without_bf16(monkeypatch, module):
    monkeypatch.setattr(machine, "cpu_has_bf16", lambda: False)
    assert machine.choose_precision("auto", "cpu", module, module.data_config.image_size, 8) == (
        "32",
        "the processor has no bf16 arithmetic",
    )
    assert machine.choose_precision("bf16", "cpu", module, (32, 32), 8) == ("bf16", "as asked")


def test_timing_leaves_the_model_alone(monkeypatch, module):
    monkeypatch.setattr(machine, "cpu_has_bf16", lambda: True)
    module.train_groups(["head"])
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    precision, _ = machine.choose_precision("auto", "cpu", module, module.data_config.image_size, 4)
    assert precision in ("32", "bf16")
    assert all(before[name].equal(tensor) for name, tensor in module.state_dict().items())
    assert not any(p.requires_grad for p in module.backbone.parameters())
