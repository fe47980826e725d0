"""Recalibrated batch-norm statistics against ones computed by hand from what the layers were given."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import update_bn

from transferkit.core.errors import ConfigError, DataError, TrainingError
from transferkit.models.backbones.registry import create_backbone
from transferkit.models.module import TransferModule
from transferkit.options.fields import make_config
from transferkit.options.training import FinetuneConfig
from transferkit.training.craft.batchnorm import learning_bn_layers, recalibrate_bn
from transferkit.training.finetune import finetune
from transferkit.training.setup import prepare


def pictures(*sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [2 + 3 * torch.randn(size, 3, 32, 32, generator=generator) for size in sizes]


def make_module(*trained, drop_path=0.0):
    torch.manual_seed(0)
    arguments = {"drop_path_rate": drop_path} if drop_path else {}
    backbone = create_backbone("test_resnet", weights="random", image_size=32, backbone_args=arguments)
    module = TransferModule(backbone, 3, drop_rate=0.5)
    module.train_groups(trained or module.group_names())
    return module


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def by_hand(module, batches, layers):
    """Mean over pictures of each batch's mean and unbiased variance, from the layers' inputs, one pass of its own."""
    module = copy.deepcopy(module).eval()
    caught = {name: [] for name in layers}
    for name, layer in module.named_modules():
        if name in layers:
            layer.train()
            layer.register_forward_pre_hook(lambda _, inputs, rows=caught[name]: rows.append(inputs[0].detach()))
    with torch.no_grad():
        for images in batches:
            module(images)
    expected = {}
    for name, inputs in caught.items():
        total = sum(len(x) for x in inputs)
        flat = [x.double().transpose(0, 1).flatten(1) for x in inputs]
        expected[name] = (
            sum(len(x) * values.mean(dim=1) for x, values in zip(inputs, flat, strict=True)) / total,
            sum(len(x) * values.var(dim=1, unbiased=True) for x, values in zip(inputs, flat, strict=True)) / total,
        )
    return expected


@pytest.mark.parametrize("trained", [(), ("head", "layer4"), ("layer3", "layer4")])
def test_statistics_are_those_computed_by_hand_and_nothing_else_moves(trained):
    module = make_module(*trained)
    before = state(module)
    batches = pictures(6, 6, 3)  # a last batch of half the size counts by half
    layers = learning_bn_layers(module)
    expected = by_hand(module, batches, layers)
    assert recalibrate_bn(module, batches, device="cpu") == len(layers) > 0
    after = state(module)
    moved = {name for name in after if not after[name].equal(before[name])}
    assert moved == {f"{layer}.{kind}" for layer in layers
                     for kind in ("running_mean", "running_var", "num_batches_tracked")}  # fmt: skip
    for layer, (mean, variance) in expected.items():
        torch.testing.assert_close(after[f"{layer}.running_mean"].double(), mean, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(after[f"{layer}.running_var"].double(), variance, atol=1e-5, rtol=1e-5)
        assert after[f"{layer}.num_batches_tracked"] == 3


def test_the_layers_are_those_of_the_parts_that_learn():
    every = learning_bn_layers(make_module())
    assert {name.split(".")[2] for name in every} == {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}
    assert {name.split(".")[2] for name in learning_bn_layers(make_module("head", "layer4"))} == {"layer4"}
    probe = make_module("head")
    assert not learning_bn_layers(probe)
    assert recalibrate_bn(probe, iter(()), device="cpu") == 0  # no batch is looked at


def test_it_agrees_with_torchs_update_bn_for_equal_batches():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    theirs, batches = copy.deepcopy(module), pictures(5, 5, 5)
    update_bn(batches, theirs)
    assert recalibrate_bn(module, batches, device="cpu") == 2
    for ours, other in zip(module.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(ours, other)


def test_the_second_pass_gives_the_same_and_draws_nothing():
    module = make_module(drop_path=0.5)
    batches = pictures(4, 4)
    generator = torch.get_rng_state()
    recalibrate_bn(module, batches, device="cpu")
    first = state(module)
    recalibrate_bn(module, iter(batches), device="cpu")
    assert all(value.equal(first[name]) for name, value in state(module).items())
    assert torch.get_rng_state().equal(generator)


@pytest.mark.parametrize("mode", [True, False])
def test_modes_momenta_and_hooks_are_put_back(mode):
    module = make_module("head", "layer4").train(mode)
    layers = dict(module.named_modules())
    first, second = list(learning_bn_layers(module))[:2]
    layers[first].momentum, layers[second].momentum = None, 0.03
    before = [part.training for part in module.modules()]
    grads = [p.requires_grad for p in module.parameters()]
    recalibrate_bn(module, pictures(4), device="cpu")
    assert [part.training for part in module.modules()] == before
    assert [p.requires_grad for p in module.parameters()] == grads
    assert (layers[first].momentum, layers[second].momentum) == (None, 0.03)
    assert not any(part._forward_pre_hooks for part in module.modules())


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm1d(4), (6, 4)),
        (nn.BatchNorm1d(4), (6, 4, 5)),
        (nn.BatchNorm2d(4, affine=False), (6, 4, 5, 5)),
        (nn.BatchNorm3d(4), (6, 4, 2, 2, 2)),
        (nn.SyncBatchNorm(4), (6, 4, 5)),
    ],
)
def test_every_kind_of_batch_norm(layer, shape):
    x = 1 + torch.randn(shape, generator=torch.Generator().manual_seed(0))
    flat = x.transpose(0, 1).flatten(1)
    # Old statistics are of no account, not even where they are not numbers.
    layer.running_mean.fill_(float("nan"))
    module = nn.Sequential(nn.Conv1d(4, 4, 1) if shape == (6, 4, 5) else nn.Identity(), layer)
    if shape == (6, 4, 5):
        flat = module[0](x).detach().transpose(0, 1).flatten(1)
    assert recalibrate_bn(module, [x], device="cpu") == 1
    torch.testing.assert_close(layer.running_mean, flat.mean(dim=1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer.running_var, flat.var(dim=1), atol=1e-5, rtol=1e-5)


def test_layers_without_running_statistics_do_not_count():
    module = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.InstanceNorm2d(3), nn.GroupNorm(1, 3))
    assert not learning_bn_layers(module)


class Odd(nn.Module):
    """One layer serves twice, another not at all."""

    def __init__(self):
        super().__init__()
        self.twice = nn.BatchNorm1d(2)
        self.never = nn.BatchNorm1d(2)

    def forward(self, x):
        self.twice(x)
        return self.twice(x + 10)


def test_a_layer_that_serves_twice_and_one_that_never_does():
    module = Odd()
    module.never.running_mean.fill_(7.0)
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    assert recalibrate_bn(module, [x, x], device="cpu") == 1
    torch.testing.assert_close(module.twice.running_mean, x.mean(dim=0) + 5)
    torch.testing.assert_close(module.twice.running_var, x.var(dim=0))
    assert module.never.running_mean.tolist() == [7.0, 7.0]


def test_a_batch_of_one_is_left_out_and_only_such_are_an_error():  # fault 27
    module, other = make_module(), make_module()
    recalibrate_bn(module, pictures(4, 1), device="cpu")
    recalibrate_bn(other, pictures(4), device="cpu")
    assert all(value.equal(state(other)[name]) for name, value in state(module).items())
    before = state(module)
    for batches in ([], pictures(1, 1)):
        with pytest.raises(DataError, match="no batch of at least two pictures"):
            recalibrate_bn(module, batches, device="cpu")
    assert all(value.equal(before[name]) for name, value in state(module).items())


def broken_off():
    yield pictures(4)[0]
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("batches", "error"),
    [(broken_off, KeyboardInterrupt), (lambda: [torch.full((4, 3, 32, 32), float("inf"))], TrainingError)],
)
def test_after_an_exception_all_is_as_before(batches, error):
    module = make_module()
    before, modes = state(module), [part.training for part in module.modules()]
    with pytest.raises(error):
        recalibrate_bn(module, batches(), device="cpu")
    assert all(value.equal(before[name]) for name, value in state(module).items())
    assert [part.training for part in module.modules()] == modes
    assert {layer.momentum for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)} == {0.1}


def test_the_message_names_the_layer_with_broken_statistics():
    with pytest.raises(TrainingError, match="statistics of backbone.model.conv1.1 are not finite"):
        recalibrate_bn(make_module(), [torch.full((4, 3, 32, 32), float("nan"))], device="cpu")


# ---- statistics that are kept ------------------------------------------------------------------------------------


def test_kept_statistics_make_training_the_function_of_evaluation():
    torch.manual_seed(0)
    backbone = create_backbone("test_resnet", weights="random", image_size=32)
    module = TransferModule(backbone, 3)
    module.keeps_statistics = True
    module.train_groups(module.group_names())
    reference = copy.deepcopy(module).eval()
    (images,), targets = pictures(6), torch.tensor([0, 1, 2, 0, 1, 2])
    module.train()
    before = state(module)
    steps = [torch.optim.SGD(one.parameters(), lr=0.1) for one in (module, reference)]
    for _ in range(3):
        for one, optimizer in zip((module, reference), steps, strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(one(images), targets).backward()
            optimizer.step()
    after, expected = state(module), state(reference)
    assert all(after[name].equal(expected[name]) for name in expected)
    norms = [name for name, layer in module.named_modules() if isinstance(layer, nn.BatchNorm2d)]
    assert norms
    assert all(after[f"{name}.running_mean"].equal(before[f"{name}.running_mean"]) for name in norms)
    assert not all(after[f"{name}.weight"].equal(before[f"{name}.weight"]) for name in norms)


@pytest.mark.parametrize("batch_norm", ["keep", "batch"])
def test_a_run_keeps_them_where_that_is_said(quick, tmp_path, batch_norm):
    options = {**quick, "phases": "finetune", "report": "off", "batch_norm": batch_norm}
    before = prepare(make_config(FinetuneConfig, options), quiet=True).module.state_dict()
    run = finetune(**options, out=tmp_path / "run").path
    after = load_file(run / "model.safetensors")
    kept = {after[name].equal(before[name]) for name in before if name.endswith(("running_mean", "running_var"))}
    assert kept == {batch_norm == "keep"}
    assert not any(after[name].equal(before[name]) for name in before if name.endswith("conv1.weight"))


def test_statistics_are_not_both_kept_and_replaced(quick):
    with pytest.raises(ConfigError, match="--batch-norm keep trains on the statistics that --recalibrate-bn"):
        make_config(FinetuneConfig, {**quick, "batch_norm": "keep", "recalibrate_bn": True})
