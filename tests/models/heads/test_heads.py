"""Heads: what they compute, and that a head which does not fit is refused before training."""

from __future__ import annotations

import math

import pytest
import torch
from contracts import MapHead
from torch import nn

from transferkit.core.errors import ConfigError
from transferkit.models.heads import registry
from transferkit.models.heads.flat import CosineHead, LinearHead, MLPHead
from transferkit.models.heads.metric import ArcFaceHead, MarginLoss
from transferkit.models.heads.registry import build_head, check_head, list_heads, register_head, takes_maps
from transferkit.models.module import TransferModule
from transferkit.models.task import task_named


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", {})


def features(count=5, width=8):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(0))


# --- what they compute -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["linear", "mlp", "cosine"])
def test_built_in_heads_give_logits_with_gradients(name):
    head = build_head(name, 8, 3, drop_rate=0.1)
    logits = head(features())
    assert logits.shape == (5, 3)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


def test_linear_is_an_affine_map_that_starts_near_zero():
    head = build_head("linear", 512, 10)
    assert isinstance(head, LinearHead)
    assert not head.linear.bias.any()
    assert head.linear.weight.std().item() == pytest.approx(0.01, rel=0.1)
    x = features(width=512)
    expected = (x.double() @ head.linear.weight.double().T).float()
    torch.testing.assert_close(head(x), expected)


def test_mlp_by_hand():
    assert build_head("mlp", 8, 3).hidden.out_features == 8  # as many as there are features
    head = build_head("mlp", 2, 1).eval()
    assert isinstance(head, MLPHead)
    with torch.no_grad():
        head.hidden.weight.copy_(torch.eye(2))
        head.hidden.bias.zero_()
        head.linear.weight.copy_(torch.tensor([[1.0, 2.0]]))
        head.linear.bias.fill_(0.5)
        got = head(torch.tensor([[1.0, -1.0]])).item()
    gelu = [x * 0.5 * (1 + math.erf(x / math.sqrt(2))) for x in (1.0, -1.0)]
    assert got == pytest.approx(gelu[0] + 2 * gelu[1] + 0.5, abs=1e-6)


def test_cosine_by_hand():
    head = CosineHead(2, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[3.0, 0.0], [1.0, 1.0]]))
        got = head(torch.tensor([[0.0, 5.0], [2.0, 0.0]]))
    half = math.sqrt(0.5)
    torch.testing.assert_close(got, 10 * torch.tensor([[0.0, half], [1.0, half]]))


def test_cosine_ignores_the_length_of_the_features():
    head = build_head("cosine", 8, 3)
    torch.testing.assert_close(head(features() * 100), head(features()))


def test_a_fixed_scale_cannot_be_set_free():
    assert "scale" in dict(CosineHead(2, 2).named_parameters())
    head = CosineHead(2, 2, scale=30, learn_scale=False)
    assert [name for name, _ in head.named_parameters()] == ["weight"]
    assert head.state_dict()["scale"] == 30


def test_dropout_is_where_it_is_asked_for():
    for name in ("linear", "mlp", "cosine"):
        head = build_head(name, 64, 3, drop_rate=0.9)
        x = features(width=64)
        assert not torch.equal(head.train()(x), head.train()(x))
        assert torch.equal(head.eval()(x), head.eval()(x))
        assert torch.equal(*(build.train()(x) for build in [build_head(name, 64, 3)] * 2))


# --- registered heads, and the user's own ------------------------------------------------------------------------


def test_a_registered_head_is_built_and_listed():
    @register_head("bias-free")
    def build(in_features, num_classes):
        return nn.Linear(in_features, num_classes, bias=False)

    built_in = ["arcface", "attention-pool", "avgmax", "cosine", "linear", "mlp", "prototype"]
    assert list_heads() == sorted(["bias-free", *built_in])
    head = build_head("bias-free", 8, 3)
    assert head.weight.shape == (3, 8)
    assert build(8, 3) is not None  # the decorator gives the builder back


@pytest.mark.parametrize("name", ["linear", "mine"])
def test_a_second_head_of_one_name_is_refused(name):
    register_head("mine")(nn.Linear)
    with pytest.raises(ConfigError, match=f"a head named '{name}' exists already"):
        register_head(name)


def test_a_module_is_taken_as_it_is():
    head = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 3))
    state = {key: value.clone() for key, value in head.state_dict().items()}
    head[0].eval()
    assert build_head(head, 8, 3) is head
    assert head.training and head[1].training and not head[0].training, "the dry forward must restore the modes"
    assert all(torch.equal(value, state[key]) for key, value in head.state_dict().items())


def test_heads_that_take_maps_say_so():
    register_head("maps")(MapHead)
    assert takes_maps("maps") and takes_maps(MapHead(4, 2))
    assert not takes_maps("linear") and not takes_maps(nn.Flatten())
    instance = nn.Flatten()
    instance.takes_maps = True
    assert takes_maps(instance)
    head = build_head("maps", 4, 2)
    check_head(head, torch.zeros(2, 4, 5, 5), (2, 2))
    with pytest.raises(ConfigError, match=r"MapHead fails on feature maps of shape \(2, 7, 5, 5\)"):
        check_head(head, torch.zeros(2, 7, 5, 5), (2, 2))


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes must be at least 1, not 0"),
        ({"in_features": 0}, "in_features must be at least 1, not 0"),
        ({"drop_rate": 1.0}, r"drop_rate must be in \[0, 1\), not 1.0"),
        ({"drop_rate": -0.1}, r"drop_rate must be in \[0, 1\), not -0.1"),
        ({"drop_rate": float("nan")}, r"drop_rate must be in \[0, 1\), not nan"),
        ({"head": nn.Linear(8, 3), "drop_rate": 0.1}, "drop_rate=0.1 has no effect on a head of your own"),
        ({"drop_rate": 2, "num_classes": 0}, r"\(1\) num_classes must .*; \(2\) drop_rate must"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        build_head(**{"head": "linear", "in_features": 8, "num_classes": 3} | options)


class Classes(nn.Module):
    def forward(self, x):
        return x[:, :3].long()


class Pair(nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (Classes(), r"Classes returns \(2, 3\) of torch.int64"),
        (Pair(), "Pair returns tuple for"),
        ("nothing", r"head 'nothing' built a NoneType - it must return an nn\.Module"),
        (
            "liner",
            r"unknown head 'liner'\. Did you mean 'linear'\? Known: arcface, attention-pool, avgmax, cosine",
        ),
        (nn.Linear(9, 3), r"head Linear fails on features of shape \(2, 8\): RuntimeError: .* - a head must accept"),
        (nn.Linear(8, 4), r"head Linear returns \(2, 4\) of torch.float32 for features .* float logits \(2, 3\)"),
        (nn.Unflatten(1, (8, 1)), r"head Unflatten returns \(2, 8, 1\)"),
        (nn.Conv2d(8, 3, 1), r"head Conv2d fails on features"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(head, message):
    register_head("nothing")(lambda in_features, num_classes: None)
    with pytest.raises(ConfigError, match=message):
        build_head(head, 8, 3)


def test_a_builder_function_of_a_map_head_must_say_so():
    def build(in_features, num_classes):
        return MapHead(in_features, num_classes)

    register_head("maps")(build)
    with pytest.raises(ConfigError, match="head 'maps' takes feature maps, but what was registered does not say so"):
        build_head("maps", 8, 3)
    build.takes_maps = True
    assert isinstance(build_head("maps", 8, 3), MapHead)


# --- attention pool, avgmax, prototypes, ArcFace -----------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 8, 3, 4), (5, 12, 8)])
@pytest.mark.parametrize("name", ["attention-pool", "avgmax"])
def test_heads_of_maps_pool_every_place_of_any_size(name, shape):
    head = build_head(name, 8, 3).eval()
    assert takes_maps(head)
    assert takes_maps(name)
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    logits = head(maps)
    assert logits.shape == (5, 3)
    logits.square().sum().backward()
    silent = [key for key, p in head.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    # a query of 0 looks at all places alike, whatever their keys say
    assert silent == (["key.weight", "key.bias"] if name == "attention-pool" else [])
    flat = maps.flatten(2).transpose(1, 2) if maps.ndim == 4 else maps
    order = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(head(flat[:, order]), logits)


def test_avgmax_by_hand():
    head = build_head("avgmax", 2, 1)
    with torch.no_grad():
        head.linear.weight.copy_(torch.tensor([[1.0, 10.0, 100.0, 1000.0]]))
    maps = torch.tensor([[[[1.0, 3.0]], [[-2.0, 4.0]]]])  # means 2 and 1, maxima 3 and 4
    assert head(maps).item() == pytest.approx(2 + 10 + 300 + 4000)


def test_attention_pool_is_torchs_attention():
    head = build_head("attention-pool", 128, 3).eval()
    torch.nn.init.normal_(head.query)
    reference = nn.MultiheadAttention(128, head.heads, batch_first=True)
    assert head.heads == 2
    with torch.no_grad():
        eye = torch.eye(128)
        reference.in_proj_weight.copy_(torch.cat([eye, head.key.weight, head.value.weight]))
        reference.in_proj_bias.copy_(torch.cat([torch.zeros(128), head.key.bias, head.value.bias]))
        reference.out_proj.weight.copy_(eye)
        places = head.norm_in(torch.randn(4, 9, 128, generator=torch.Generator().manual_seed(0)))
        gathered, _ = reference(head.query.expand(4, 1, 128), places, places)
        expected = head.linear(head.norm_out(gathered[:, 0]))
        torch.testing.assert_close(head(places), expected, rtol=1e-4, atol=1e-5)


def test_prototypes_are_squared_distances():
    head, x = build_head("prototype", 8, 3), features()
    expected = -torch.cdist(x.double(), head.weight.double()).square() / 8
    torch.testing.assert_close(head(x), expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("margin", [0.0, 0.3, 0.5])
def test_arcface_by_angles(margin):
    head, targets = ArcFaceHead(8, 3, scale=10.0, margin=margin), torch.tensor([0, 1, 2, 0, 1])
    logits = head(features())
    angles = (logits.double() / 10).acos()
    wider = torch.where(angles < math.pi - margin, (angles + margin).cos(), angles.cos() - margin * math.sin(margin))
    expected = torch.where(nn.functional.one_hot(targets, 3).bool(), 10 * wider, logits.double())
    loss = MarginLoss(nn.CrossEntropyLoss(), 10.0, margin)
    torch.testing.assert_close(loss(logits, targets), nn.functional.cross_entropy(expected, targets).float())
    shares = nn.functional.one_hot(targets, 3).float()
    torch.testing.assert_close(loss(logits, shares), loss(logits, targets))


def test_the_margin_gives_numbers_at_every_angle():  # the root's slope at an angle of 0, in many an ArcFace
    logits = torch.tensor([[16.0, -16.0], [-16.0, 16.0], [0.0, 0.0]], requires_grad=True)
    MarginLoss(nn.CrossEntropyLoss(), 16.0, 0.5)(logits, torch.tensor([0, 0, 1])).backward()
    assert logits.grad.isfinite().all()


def test_a_model_learns_with_the_margin_and_answers_without():
    module = TransferModule("test_resnet", 3, "arcface", weights="random", image_size=32, label_smoothing=0.1)
    images, targets = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    assert isinstance(module.loss, MarginLoss)
    assert not [name for name in module.state_dict() if name.startswith("loss")]
    outputs = module(images)
    assert module.learn(images).equal(outputs)
    assert module.loss(outputs, targets) > nn.functional.cross_entropy(outputs, targets, label_smoothing=0.1)


@pytest.mark.parametrize("task", ["multilabel", "regression"])
@pytest.mark.parametrize("head", ["prototype", "arcface"])
def test_heads_of_classes_are_for_one_class_a_picture(task, head):
    facts = {"mean": [0.0] * 2, "std": [1.0] * 2} if task == "regression" else None
    message = f"head '{head}' tells classes apart.*pass one of attention-pool, avgmax, cosine, linear, mlp"
    with pytest.raises(ConfigError, match=message):
        TransferModule("test_resnet", 2, head, weights="random", image_size=32, task=task, target_facts=facts)
    assert head not in task_named(task).head_kinds.names()
