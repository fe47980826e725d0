"""Sizes that a model does not take are refused before anything is computed; the model is as before."""

import pytest
import torch
from torch import nn

from transferkit.core.errors import ConfigError
from transferkit.models.backbones import registry
from transferkit.models.module import TransferModule
from transferkit.options.fields import make_config
from transferkit.options.training import FinetuneConfig
from transferkit.training.rehearsal import rehearse, rehearse_saving


class NormHead(nn.Module):
    """Batch norm of features."""

    def __init__(self, width):
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(width), nn.Linear(width, 3)

    def forward(self, features):
        return self.out(self.norm(features))


def config(**options):
    return make_config(FinetuneConfig, {"data": "d", **options})


def model(backbone="test_resnet", head="linear", size=32):
    module = TransferModule(backbone, 3, "linear", weights="random", image_size=size)
    if head == "norm":
        module.head = NormHead(module.backbone.num_features)
    return module


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (("test_vit3", "linear", 160), {"train_size": 96}, "--train-size 96: .* set up for 160 x 160 .* take 96 x 96"),
        (("test_resnet", "norm"), {"batch_size": 1}, "--batch-size 1: .* - pass --batch-size 2 or more"),
    ],
)
def test_what_would_fail_later_is_refused(module, options, message):  # fault 94
    with pytest.raises(ConfigError, match=message):
        rehearse(config(**options), model(*module))


def test_sizes_beyond_the_memory(command, folder, tmp_path, monkeypatch):  # fault 152
    """They are refused before anything of the size is made: a system may kill who asks for it."""
    monkeypatch.setattr(registry, "free_memory", lambda: 10**9)
    monkeypatch.setattr(torch, "zeros", lambda *shape, **_: pytest.fail(f"zeros of {shape}"))
    monkeypatch.chdir(tmp_path)
    words = ("--data", folder, "--backbone", "test_resnet", "--weights", "random", "--quiet", "--accelerator", "cpu")
    for verb in ("finetune", "features", "probe", "plan", "lr-find"):
        status, _, err = command(verb, *words, "--image-size", 16_000)
        assert status == 2
        assert "(--image-size) is 16000 x 16000 pixels: a network needs about 51.2 GB of memory for 1" in err
        assert "and 1.0 GB are free - pass a smaller size" in err
    with pytest.raises(ConfigError, match="image_size .* 2236 x 2237 pixels"):
        registry.create_backbone("test_resnet", weights="random", image_size=(2236, 2237))
    assert [path for path in tmp_path.rglob("*") if path.name != "runs"] == []


def test_training_sizes_beyond_the_memory(monkeypatch):  # fault 152
    module = model()
    monkeypatch.setattr(registry, "free_memory", lambda: 10**9)
    with pytest.raises(ConfigError, match="--train-size is 1600 x 1600 pixels: .* 1.0 GB of memory for 2 of them"):
        rehearse(config(train_size=1600), module)
    rehearse(config(train_size=64), module)
    monkeypatch.setattr(registry, "free_memory", lambda: 0)  # unknown
    rehearse(config(train_size=64), module)


@pytest.mark.parametrize("options", [{}, {"train_size": 48}, {"batch_size": 1}])
def test_what_works_leaves_no_trace(options):
    module = model(size=64)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = torch.get_rng_state()
    rehearse(config(**options), module)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert module.training


def forget(module, keys):
    module.out.weight.data.zero_()


class Forgetful(nn.Module):
    """A head whose state is not what it computes with."""

    def __init__(self, width):
        super().__init__()
        self.out = nn.Linear(width, 3)
        self.register_load_state_dict_post_hook(forget)

    def forward(self, features):
        return self.out(features)


def test_a_model_that_could_not_be_loaded_again_is_refused(tmp_path):  # fault 126
    module = model()
    rehearse_saving(tmp_path, module)
    module = TransferModule("test_resnet", 3, Forgetful(module.backbone.num_features), weights="random", image_size=32)
    with pytest.raises(ConfigError, match=r"would not be loaded as it was saved: 'head.out.weight'"):
        rehearse_saving(tmp_path, module)
    assert list(tmp_path.iterdir()) == []
