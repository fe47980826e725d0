"""Freezing is exact: same function, same weights, same buffers."""

from __future__ import annotations

import pytest
import torch
from contracts import Model, build, check_frozen_prefix, freeze_first, images, train_a_little
from torch import nn

from transferkit.core.errors import ConfigError
from transferkit.models.freezing import (
    evaluation_mode,
    frozen_modules,
    frozen_state_digest,
    keep_frozen_eval,
    set_trainable,
)

# Batch norm, dropout and drop path all at work.
NOISY = {
    "test_resnet": {"drop_rate": 0.5, "drop_path_rate": 0.5},
    "test_efficientnet": {"drop_rate": 0.5, "drop_path_rate": 0.5},
    "test_vit": {
        "drop_rate": 0.5,
        "proj_drop_rate": 0.3,
        "attn_drop_rate": 0.3,
        "pos_drop_rate": 0.5,
        "drop_path_rate": 0.5,
    },
    "test_convnext": {"drop_rate": 0.5, "drop_path_rate": 0.5},
}


class Forgetful(Model):
    """A model without `keep_frozen_eval`: what most toolkits call frozen."""

    keeps_eval = False


def names_of(module):
    """The frozen parts by their paths."""
    paths = {id(part): path for path, part in module.named_modules()}
    return [paths[id(part)] for part in frozen_modules(module)]


def freeze(module, *frozen):
    """Freeze the parameters under these prefixes, let all others learn."""
    set_trainable(module, [p for name, p in module.named_parameters() if not name.startswith(frozen or ("-",))])


# --- set_trainable -----------------------------------------------------------------------------------------------


def test_exactly_the_chosen_parameters_learn():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net(torch.ones(1, 2)).sum().backward()
    set_trainable(net, [net[1].bias])
    assert [name for name, p in net.named_parameters() if p.requires_grad] == ["1.bias"]
    assert [name for name, p in net.named_parameters() if p.grad is not None] == ["1.bias"]
    set_trainable(net, iter(net.parameters()))
    assert all(p.requires_grad for p in net.parameters())


def test_parameters_are_told_apart_by_identity():
    net = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))  # all four tensors have an equal twin
    set_trainable(net, [net[1].weight])
    assert [name for name, p in net.named_parameters() if p.requires_grad] == ["1.weight"]


def test_a_stranger_is_refused_and_nothing_changes():
    net = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match=r"1 of 2 parameters to train do not belong to Linear - take them from"):
        set_trainable(net, [net.weight, nn.Parameter(torch.ones(1))])
    assert all(p.requires_grad for p in net.parameters())


# --- frozen_modules ----------------------------------------------------------------------------------------------


def test_only_parameters_can_be_frozen_and_a_wholly_frozen_module_is_one_part():
    assert frozen_modules(nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2, affine=False))) == []
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    assert frozen_modules(net) == []  # while all learn
    freeze(net, "0")
    assert frozen_modules(net) == [net]


@pytest.mark.parametrize(
    ("frozen", "expected"),
    [
        (("1",), ["0", "1", "2"]),  # the first dropout has nothing before it, the second follows the frozen layer
        (("4",), ["4", "5"]),  # batch norm without affine follows the layer before it
        (("1", "4"), None),
        (("4.weight",), []),  # a layer frozen in part runs, and trains, as a whole
    ],
)
def test_layers_without_parameters_follow_their_neighbours(frozen, expected):
    net = nn.Sequential(
        nn.Dropout(), nn.Linear(2, 2), nn.Dropout(), nn.ReLU(), nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False)
    )
    freeze(net, *frozen)
    if expected is None:
        assert frozen_modules(net) == [net]
    else:
        assert [name for name in names_of(net) if name != "3"] == expected


def test_a_sibling_frozen_in_part_counts_by_the_end_that_touches():
    block = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net = nn.Sequential(nn.Dropout(), block, nn.Dropout())
    freeze(net, "1.0")
    assert names_of(net) == ["0", "1.0"]
    freeze(net, "1.1")
    assert names_of(net) == ["1.1", "2"]


def test_a_frozen_class_token_does_not_stop_the_root():
    backbone = build("test_vit", backbone_args=NOISY["test_vit"])
    model = Model(backbone)
    freeze_first(model, 1)
    names = names_of(model)
    assert "backbone.model.patch_embed" in names and "backbone.model.pos_drop" in names
    assert not backbone.model.pos_drop.training
    assert model.training and backbone.model.training and backbone.model.blocks[0].training
    freeze_first(model, 0)
    assert all(part.training for part in model.modules())


def test_the_head_keeps_its_dropout():
    model = Model(build("test_resnet"))
    freeze_first(model, len(model.backbone.layer_groups()))
    assert names_of(model) == ["backbone"]
    assert model.head[0].training


def test_eval_still_reaches_everything():
    model = Model(build("test_resnet"))
    freeze_first(model, 2)
    model.eval()
    assert not any(part.training for part in model.modules())
    keep_frozen_eval(model)
    assert not any(part.training for part in model.modules())


def test_thawed_layers_train_again():
    model = Model(build("test_efficientnet"))
    freeze_first(model, 3)
    assert not model.backbone.model.bn1.training
    freeze_first(model, 0)
    assert model.backbone.model.bn1.training


# --- exactness, and that the checks can fail ---------------------------------------------------------------------


@pytest.mark.parametrize("name", NOISY)
def test_noise_does_not_reach_a_frozen_backbone(name):  # fault 49
    model = Model(build(name, backbone_args=NOISY[name]))
    freeze_first(model, len(model.backbone.layer_groups()))
    with torch.no_grad():
        expected = model.eval().backbone(images())
        assert torch.equal(model.train().backbone(images()), expected)
    digest = frozen_state_digest(model)
    train_a_little(model)
    assert frozen_state_digest(model) == digest
    with torch.no_grad():
        assert torch.equal(model.train().backbone(images()), expected)


@pytest.mark.parametrize("name", NOISY)
def test_noise_does_not_reach_a_frozen_prefix(name):  # fault 49
    model = Model(build(name, backbone_args=NOISY[name]))
    check_frozen_prefix(model, len(model.backbone.layer_groups()) - 1)


@pytest.mark.parametrize(("name", "count"), [("test_resnet", 3), ("test_vit", 4), ("test_convnext", 3)])
def test_the_activations_behind_a_frozen_prefix_are_those_of_eval_mode(name, count):
    """Where the frozen part ends, train mode and eval mode give bit-equal activations."""
    model = Model(build(name, backbone_args=NOISY[name]))
    freeze_first(model, count)
    net = model.backbone.model
    last = {"test_resnet": "layer2", "test_vit": "blocks.2", "test_convnext": "stages.1"}[name]
    outputs = []
    net.get_submodule(last).register_forward_hook(lambda module, args, output: outputs.append(output.detach()))
    with torch.no_grad():
        model.eval()(images())
        model.train()(images())
        model.train()(images())
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


def test_the_output_check_fails_without_keep_frozen_eval():
    for name in NOISY:
        model = Forgetful(build(name, backbone_args=NOISY[name]))
        freeze_first(model, len(model.backbone.layer_groups()))
        with torch.no_grad():
            expected = model.eval().backbone(images())
            assert not torch.equal(model.train().backbone(images()), expected)


def test_the_prefix_check_fails_without_keep_frozen_eval():
    with pytest.raises(AssertionError, match="a frozen tensor moved"):
        check_frozen_prefix(Forgetful(build("test_resnet")), 3)


def test_the_gradient_check_fails_on_leftover_gradients(monkeypatch):
    def keep_gradients(module, parameters):
        chosen = {id(p) for p in parameters}
        for parameter in module.parameters():
            parameter.requires_grad_(id(parameter) in chosen)

    monkeypatch.setattr("contracts.set_trainable", keep_gradients)
    with pytest.raises(AssertionError, match="a frozen parameter has a gradient"):
        check_frozen_prefix(Model(build("test_vit")), 3)


def test_leftover_zero_gradients_would_be_decayed():
    """Why frozen gradients are None: AdamW decays a weight whose gradient is zero."""
    weight = nn.Parameter(torch.ones(1))
    weight.grad = torch.zeros(1)
    torch.optim.AdamW([weight], lr=0.1, weight_decay=0.1).step()
    assert weight.item() < 1


# --- modes -------------------------------------------------------------------------------------------------------


def test_every_part_gets_its_mode_back():
    net = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
    net[1].eval()
    before = [part.training for part in net.modules()]
    assert len(set(before)) == 2
    with pytest.raises(ZeroDivisionError), evaluation_mode(net):
        assert not any(part.training for part in net.modules())
        1 / 0  # noqa: B018
    assert [part.training for part in net.modules()] == before


# --- frozen_state_digest -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("move", ["weight", "running_mean", "num_batches_tracked"])
def test_the_digest_sees_every_frozen_tensor(move):
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    freeze(net, "0")
    before = frozen_state_digest(net)
    with torch.no_grad():
        net.get_submodule("0").get_buffer(move).add_(1) if move != "weight" else net[0].weight.add_(1e-7)
    assert frozen_state_digest(net) != before


def test_the_digest_ignores_what_learns():
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2), nn.BatchNorm1d(2))
    freeze(net, "0")
    before = frozen_state_digest(net)
    with torch.no_grad():
        net[1].weight.add_(1)
        net[2].running_mean.add_(1)
    assert frozen_state_digest(net) == before


def test_the_digest_takes_any_dtype():
    net = nn.Linear(2, 2).to(torch.bfloat16)
    freeze(net, "weight", "bias")
    before = frozen_state_digest(net)
    assert len(before) == 64
    with torch.no_grad():
        net.bias[0] = 7
    assert frozen_state_digest(net) != before
