"""LoRA and DoRA: what they compute, against formulas; what cannot be adapted rightly stays; merging is verified."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from transferkit.core.errors import BackboneError, ConfigError, TrainingError
from transferkit.models.artifact import save_model
from transferkit.models.backbones import registered, registry
from transferkit.models.heads.feed import Feed
from transferkit.models.initial import load_weights_from
from transferkit.models.module import TransferModule
from transferkit.models.tuning import adapters
from transferkit.models.tuning.adapters import Adapter, merge_adapter, rehearse_merging, without_adapter
from transferkit.models.tuning.layout import layout_of
from transferkit.models.tuning.selectors import parse_selector


def small(name="test_resnet", **options):
    return TransferModule(name, 3, weights="random", image_size=32, **options)


def images(count=4):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def shaken(module):
    """With an adapter as if it had been trained."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in module.backbone.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
            elif "magnitude" in name:
                parameter.mul_(1 + 0.1 * torch.rand(parameter.shape, generator=generator))
    return module


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
def test_an_adapter_begins_with_nothing_learns_alone_and_is_merged(name, kind):
    module = small(name).eval()
    groups, before = module.group_names(), module(images())
    plain = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    words = module.adapt(Adapter(kind, 4, 8.0))
    assert words.startswith("rank 4 on ")
    assert module.group_names() == groups
    torch.testing.assert_close(module(images()), before, rtol=0, atol=1e-6)
    module.train()
    optimizer = module.configure_optimizers()
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
        assert not any("magnitude" in name for name in group["param_names"]) or group["weight_decay"] == 0.0
    for _ in range(3):
        module.loss(module.learn(images()), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
    state = {name.replace(".base_layer.", "."): tensor for name, tensor in module.state_dict().items()}
    moved = {name for name, tensor in plain.items() if not state[name].equal(tensor)}
    assert moved <= {name for name in plain if name.startswith("head.")}  # weights, biases and statistics of the base
    assert all(parameter.grad is not None for parameter in module.parameters() if parameter.requires_grad)
    after = module.eval()(images())
    assert module.merge_adapter(images()) < 1e-5
    assert module.state_dict().keys() == plain.keys()
    torch.testing.assert_close(module(images()), after, rtol=1e-4, atol=1e-5)
    assert module.adapter is None


def test_lora_by_its_formula():
    module = small("test_vit").eval()
    layer = module.backbone.model.blocks[0].attn.qkv
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    module.adapt(Adapter("lora", 2, 6.0, "*.attn.qkv"))
    shaken(module)
    adapted = module.backbone.model.blocks[0].attn.qkv
    down, up = adapted.lora_A["default"].weight, adapted.lora_B["default"].weight
    x = torch.randn(5, weight.shape[1], generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(adapted(x), functional.linear(x, weight + 6.0 / 2 * up @ down, bias))
    module.merge_adapter(images())
    torch.testing.assert_close(module.backbone.model.blocks[0].attn.qkv.weight, weight + 3.0 * up @ down)


def test_dora_by_its_formula():
    module = small().eval()
    layer = module.backbone.model.layer2[0].conv1
    weight = layer.weight.detach().clone()
    module.adapt(Adapter("dora", 2, 2.0, "layer2.0.conv1"))
    shaken(module)
    adapted = module.backbone.model.layer2[0].conv1
    down, up = adapted.lora_A["default"].weight, adapted.lora_B["default"].weight
    direction = weight + torch.einsum("or,rikl->oikl", up[:, :, 0, 0], down)
    lengths = direction.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    magnitude = adapted.lora_magnitude_vector["default"].weight.detach().reshape(-1, 1, 1, 1)
    module.merge_adapter(images())
    torch.testing.assert_close(module.backbone.model.layer2[0].conv1.weight, magnitude * direction / lengths)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_adapters_learn_in_any_memory_format(kind):  # trap 30
    """The same as contiguous, before and after a step, in a copy, and merged."""
    plain = small().eval()
    plain.adapt(Adapter(kind, 4, 8.0))
    other = copy.deepcopy(shaken(plain)).to(memory_format=torch.channels_last)
    assert not other.backbone.model.layer2[0].conv1.lora_A["default"].weight.is_contiguous()
    for module in (plain, other):
        optimizer = module.configure_optimizers()
        module.loss(module.learn(images()), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
    torch.testing.assert_close(other(images()), plain(images()), rtol=0, atol=1e-4)
    assert copy.deepcopy(other).merge_adapter(images().to(memory_format=torch.channels_last)) < 1e-4


def test_targets_are_whole_names():
    """Of a list, peft takes every layer whose name ends with one of them: conv1 of the stem would be all conv1."""
    module = small("resnet18")
    module.adapt(Adapter(targets="conv1"))
    assert {leaf.name.split(".lora")[0] for leaf in parse_selector("adapter").select(layout_of(module))} == {
        "backbone.model.conv1"
    }


class Odd(nn.Module):
    """Layers that cannot be adapted, beside one that can."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.dilated = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.mirrored = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.own = type("Own", (nn.Conv2d,), {"forward": lambda self, x: nn.Conv2d.forward(self, x) * 2})(8, 8, 1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.used = nn.Linear(8, 8)
        self.tied = nn.Linear(8, 8)
        self.again = nn.Linear(8, 8)
        self.again.weight = self.tied.weight

    def forward(self, x):
        x = self.own(self.mirrored(self.dilated(self.grouped(self.plain(x)))))
        x = x.flatten(2).transpose(1, 2)
        x = self.attention(x, x, x, need_weights=False)[0]
        x = functional.linear(x, self.used.weight)
        return self.again(self.tied(x)).mean(1)


def test_layers_that_cannot_be_adapted_rightly_stay_as_they_are(own_backbone):  # fault 222, trap 30
    module = own_backbone(Odd)
    words = module.adapt(Adapter())
    assert words.startswith("rank 8 on 1 layers; as they are: ")
    for part in (
        "1 grouped convolutions", "1 dilated convolutions", "1 convolutions that pad with something else than zeros",
        "1 that compute their weights anew", "2 whose weight is used without calling them", "1 that share their weight",
    ):  # fmt: skip
        assert part in words
    assert {leaf.name.split(".lora")[0] for leaf in parse_selector("adapter").select(layout_of(module))} == {
        "backbone.model.plain"
    }
    with pytest.raises(ConfigError, match="finds no layer to adapt under 'grouped'; as they are: 1 grouped"):
        own_backbone(Odd).adapt(Adapter(targets="grouped"))


@pytest.fixture
def own_backbone(monkeypatch):
    monkeypatch.setattr(registered, "REGISTRATIONS", {})

    def build(kind):
        name = f"own-{len(registered.REGISTRATIONS)}"
        registry.register_backbone(name)(kind)
        return TransferModule(name, 2, weights="random", image_size=16)

    return build


def test_a_merge_that_computes_something_else_is_refused_and_undone(monkeypatch):  # fault 223, trap 30
    from peft.tuners.lora import Conv2d

    module = small().eval()
    module.adapt(Adapter())
    shaken(module)
    before, outputs = copy.deepcopy(module.state_dict()), module(images())
    right = Conv2d.get_delta_weight
    monkeypatch.setattr(Conv2d, "get_delta_weight", lambda self, name: 2 * right(self, name))  # as peft#3774 has it
    with pytest.raises(TrainingError, match="the adapter cannot be merged into test_resnet: features differ by"):
        module.merge_adapter(images())
    assert all(tensor.equal(before[name]) for name, tensor in module.state_dict().items())
    assert module(images()).equal(outputs)
    assert module.adapter is not None
    with pytest.raises(TrainingError, match="cannot be merged"):  # and before the first step of a training
        rehearse_merging(module.backbone, module.feed)


def test_weights_that_are_no_numbers_are_not_merged():
    module = small().eval()
    module.adapt(Adapter())
    with torch.no_grad():
        next(p for n, p in module.named_parameters() if "lora_B" in n).fill_(float("nan"))
    with pytest.raises(TrainingError, match="cannot be merged"):
        merge_adapter(module.backbone, Feed.FEATURES, images())


def test_checkpoints_hold_the_adapter_and_rebuild_it(tmp_path):
    module = shaken(small(adapter={"kind": "dora", "rank": 2, "alpha": 4.0, "targets": "layer4"}))
    checkpoint = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams),
                  "pytorch-lightning_version": "2.6.6"}  # fmt: skip
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "last.ckpt")
    again = TransferModule.load_from_checkpoint(tmp_path / "last.ckpt")
    assert again.adapter == module.adapter
    assert again.eval()(images()).equal(module.eval()(images()))
    with pytest.raises(BackboneError, match="a checkpoint of a run with an adapter"):
        load_weights_from(tmp_path / "last.ckpt", small())
    with pytest.raises(ConfigError, match="a product is a plain model"):
        save_model(tmp_path, module)


def test_the_plain_backbone_below_an_untrained_adapter():
    module = small()
    assert without_adapter(module.backbone) is module.backbone
    before = {name: tensor.clone() for name, tensor in module.backbone.state_dict().items()}
    module.adapt(Adapter("dora"))
    below = without_adapter(module.backbone).state_dict()
    assert below.keys() == before.keys()
    assert all(tensor.equal(before[name]) for name, tensor in below.items())


def test_what_is_wrong_with_an_adapter_is_said(monkeypatch):
    with pytest.raises(ConfigError, match="unknown adapter 'lore'. Did you mean 'lora'.*rank is 0.*alpha is -1"):
        Adapter("lore", 0, -1.0)
    with pytest.raises(ConfigError, match="adapter targets: 'layr1' matches no layer group"):
        small().adapt(Adapter(targets="layr1"))
    with pytest.raises(ConfigError, match="finds no layer to adapt under 'bias'"):
        small().adapt(Adapter(targets="bias"))
    monkeypatch.setattr(adapters.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs peft, which is not installed - pip install 'transferkit\[peft\]'"):
        small().adapt(Adapter())
