"""The LR range test: what it suggests, and that it leaves no trace."""

import math
import random

import numpy as np
import pytest
import torch

from transferkit.data.datamodule import ImageData
from transferkit.errors import ConfigError
from transferkit.models.backbones import create_backbone
from transferkit.models.module import TransferModule
from transferkit.training.lr_finder import find_lr, suggest


@pytest.fixture
def pair(folder):
    torch.manual_seed(0)
    data = ImageData(folder, image_size=32, batch_size=8)
    backbone = create_backbone("test_resnet", weights="random", image_size=32)
    return TransferModule(backbone, 3, drop_rate=0.1), data


def trace(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_it_sweeps_and_leaves_no_trace(pair, tmp_path, monkeypatch):  # fault 72
    module, data = pair
    monkeypatch.chdir(tmp_path)
    module.train_groups(["head"])
    module.eval()
    weights, numbers = trace(module), (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    result = find_lr(module, data, steps=40, lr_max=10.0)
    assert all(weights[name].equal(tensor) for name, tensor in module.state_dict().items())
    assert torch.get_rng_state().equal(numbers[0])
    assert np.array_equal(np.random.get_state()[1], numbers[1])
    assert random.getstate() == numbers[2]
    assert not module.training
    assert all(parameter.grad is None for parameter in module.parameters())
    assert list(tmp_path.iterdir()) == []
    assert len(result.lrs) == len(result.losses) > 10  # more steps than the loader has batches (fault 74)
    ratios = [math.log(b / a) for a, b in zip(result.lrs, result.lrs[1:], strict=False)]
    assert ratios == pytest.approx([math.log(1e7) / 39] * len(ratios))


def test_no_trace_after_an_exception(pair, monkeypatch):  # fault 72
    module, data = pair
    weights, state = trace(module), torch.get_rng_state()
    calls = []

    def failing(self, batch, batch_idx):
        calls.append(torch.rand(1))
        raise KeyboardInterrupt

    monkeypatch.setattr(TransferModule, "training_step", failing)
    with pytest.raises(KeyboardInterrupt):
        find_lr(module, data)
    assert calls
    assert torch.get_rng_state().equal(state)
    assert all(weights[name].equal(tensor) for name, tensor in module.state_dict().items())


def test_the_curve_is_drawn(pair, tmp_path):
    module, data = pair
    find_lr(module, data, steps=30).plot(tmp_path / "lr.png")
    assert (tmp_path / "lr.png").read_bytes().startswith(b"\x89PNG")


def test_suggestions_on_a_curve_by_hand():
    # Loss flat at 2, falling steadily over log LR from 1e-4 to 1e-2, rising after 1e-1.
    lrs = [10 ** (-6 + step / 10) for step in range(61)]
    losses = [
        2.0 if lr < 1e-4 else 2.0 - 0.5 * (math.log10(lr) + 4) if lr < 1e-2 else 1.0 - 0.01 * (math.log10(lr) + 2)
        if lr < 1e-1 else 5.0 for lr in lrs
    ]  # fmt: skip
    steepest, tenth = suggest(lrs, losses)
    assert 1e-4 <= steepest <= 1e-2
    assert tenth == pytest.approx(max(lr for lr in lrs if lr < 1e-1) / 10)


@pytest.mark.parametrize("losses", [[1.0] * 50, [1.0 + 0.1 * step for step in range(50)], [1.0, 0.5]])
def test_nothing_to_suggest_is_none(losses):  # fault 74
    lrs = [10 ** (-6 + step / 10) for step in range(len(losses))]
    assert suggest(lrs, losses) == (None, None)


def test_bad_arguments_come_together(pair):
    module, data = pair
    module.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"\(1\) steps is 10.*\(2\) lr_min is 1.0 and lr_max 0.1.*\(3\) nothing in"):
        find_lr(module, data, steps=10, lr_min=1.0, lr_max=0.1)
