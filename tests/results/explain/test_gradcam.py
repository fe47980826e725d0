"""Grad-CAM: against numbers worked out by hand, captum and plain hooks, for every kind of map."""

import copy

import cv2
import numpy as np
import pytest
import torch
from matplotlib import colormaps
from torch import nn

from transferkit.core.errors import ConfigError
from transferkit.core.records import DataConfig
from transferkit.data.augment.normalise import normalise
from transferkit.models.artifact import ModelInfo
from transferkit.models.backbones.facts import BackboneFacts
from transferkit.models.backbones.groups import child_groups
from transferkit.models.backbones.interface import Backbone
from transferkit.models.backbones.registered import RegisteredBackbone
from transferkit.models.backbones.registry import create_backbone
from transferkit.models.heads.neighbour import NeighbourHead
from transferkit.models.module import TransferModule
from transferkit.results.explain import gradcam
from transferkit.results.explain.gradcam import heatmaps
from transferkit.results.explain.pictures import COLOURS, overlay
from transferkit.results.predict.predictor import Predictor


def predictor_of(backbone, head="linear", classes=3, device="cpu"):
    if isinstance(backbone, tuple):
        name, size, options = backbone
        torch.manual_seed(0)
        backbone = create_backbone(name, weights="random", image_size=size, backbone_args=options)
    module = TransferModule(backbone, classes, head)
    if head == "linear":
        with torch.no_grad():  # as small as at the start of training, all logits would be nearly equal
            module.head.linear.weight.normal_(0, 1, generator=torch.Generator().manual_seed(1))
    info = ModelInfo(backbone.name, "linear", tuple("abc"[:classes]), module.data_config, "random")
    return Predictor(module, info, device)


def own(model, size=16):
    config = DataConfig(image_size=(size, size), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return RegisteredBackbone(model, BackboneFacts("own", config))


def pictures(count, predictor, seed=0):
    height, width = predictor.info.preprocessing.image_size
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def evidence(predictor, images, places):
    return heatmaps(predictor, images, ["abc"[place] for place in places])


def finished(grids, size):
    """Maps (B, rows, columns), negative parts cut off, scaled up by OpenCV, each with maximum 1."""
    height, width = size
    large = [cv2.resize(np.maximum(grid, 0).astype(np.float32), (width, height)) for grid in grids]
    return np.stack([heat / heat.max() if heat.max() > 0 else heat for heat in large])


def by_hooks(predictor, layer, images, targets, grid):
    """The definition, by hooks on a copy and `backward`, picture by picture; tokens (B, N, C) without their prefix."""
    module = copy.deepcopy(predictor.module)
    stages = {}

    def hook(stage, inputs, output):
        output.retain_grad()
        stages["maps"] = output

    module.backbone.get_submodule(f"model.{layer}").register_forward_hook(hook)
    heats = []
    for image, target in zip(images, targets, strict=True):
        module(normalise(torch.from_numpy(image[None]), predictor.info.preprocessing))[0, target].backward()
        maps, gradient = stages["maps"].detach(), stages["maps"].grad
        if maps.ndim == 4:
            heat = (gradient.mean(dim=(2, 3))[:, :, None, None] * maps).sum(dim=1)
        else:
            prefix = module.backbone.prefix_tokens
            heat = (gradient[:, prefix:].mean(dim=1, keepdim=True) * maps[:, prefix:]).sum(dim=2)
        heats.append(heat.reshape(grid).numpy())
    return np.stack(heats)


# ---- the method -------------------------------------------------------------------------------------------------


def test_worked_out_by_hand():
    """Maps are the mean red and green of each quarter, logits 2 red - 3 green and its negative: so is the evidence."""
    pool = nn.Conv2d(3, 2, 8, stride=8, bias=False)
    predictor = predictor_of(own(pool), classes=2)
    with torch.no_grad():
        pool.weight.zero_()
        pool.weight[0, 0] = pool.weight[1, 1] = 1 / 64
        predictor.module.head.linear.weight.copy_(torch.tensor([[2.0, -3.0], [-2.0, 3.0]]))
    image = np.zeros((16, 16, 3), dtype=np.uint8)
    image[:8, :8, 0] = 255  # red: 2
    image[:8, 8:, 0] = 102  # red at 0.4: 0.8
    image[8:, :8, 1] = 255  # green: -3
    quarters = np.array([[2.0, 0.8], [-3.0, 0.0]])
    heat = evidence(predictor, np.stack([image, image]), [0, 1])
    assert heat.dtype == np.float32 and heat.shape == (2, 16, 16)
    np.testing.assert_allclose(heat, finished([quarters, -quarters], (16, 16)), atol=1e-5)
    assert heat[0, 0, 0] == pytest.approx(1.0) and heat[0, 0, 15] == pytest.approx(0.4)
    assert heat[0, 15].max() == 0.0 and heat[1, :4].max() == 0.0


def test_no_evidence_is_no_map_of_noise():
    predictor = predictor_of(own(nn.Conv2d(3, 2, 8, stride=8, bias=False)), classes=2)
    with torch.no_grad():
        predictor.module.backbone.model.weight.fill_(1.0)
        predictor.module.head.linear.weight.copy_(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
    heat = evidence(predictor, pictures(1, predictor).repeat(2, axis=0), [0, 1])
    assert heat[0].max() == 0.0 and heat[1].max() == 1.0


def test_as_captum_has_it():
    captum = pytest.importorskip("captum.attr", reason="captum, the independent reference, is not installed")
    predictor = predictor_of(("test_resnet", 96, {}))
    images = pictures(3, predictor)
    batch = normalise(torch.from_numpy(images), predictor.info.preprocessing)
    reference = captum.LayerGradCam(predictor.module, predictor.module.backbone.model.layer4)
    theirs = reference.attribute(batch, torch.tensor([2, 0, 1]), relu_attributions=True).detach()
    theirs = captum.LayerAttribution.interpolate(theirs, (96, 96), "bilinear")[:, 0].numpy()
    peaks = theirs.max(axis=(1, 2), keepdims=True)
    assert (peaks > 0).any()
    np.testing.assert_allclose(
        evidence(predictor, images, [2, 0, 1]), theirs / np.where(peaks > 0, peaks, 1), atol=1e-4
    )


def test_swin_works_channels_last():
    options = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
    predictor = predictor_of(("swin_tiny_patch4_window7_224", (64, 128), options))
    assert predictor.module.backbone.channels_last
    images, targets = pictures(2, predictor), [1, 2]
    with torch.no_grad():
        maps = predictor.module.backbone.forward_maps(normalise(torch.from_numpy(images), predictor.info.preprocessing))
        # A mean and a linear layer come after the map: the gradient is the layer's weight over the number of places.
        weights = predictor.module.head.linear.weight[targets]
    expected = torch.einsum("bc,bchw->bhw", weights, maps).numpy()
    assert expected.shape == (2, 2, 4)
    np.testing.assert_allclose(evidence(predictor, images, targets), finished(expected, (64, 128)), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "size", "layer", "grid"),
    [
        ("test_vit", (32, 64), "blocks.4", (2, 4)),  # read at its class token: what the last block is given
        ("test_vit3", 64, "norm", (4, 4)),  # read by attention over the last tokens
        ("test_byobnet", (64, 96), "stages.3", (2, 3)),
    ],
)
def test_every_kind_of_map(name, size, layer, grid):
    predictor = predictor_of((name, size, {}))
    images, targets = pictures(3, predictor), [0, 1, 2]
    expected = finished(by_hooks(predictor, layer, images, targets, grid), images.shape[1:3])
    heat = evidence(predictor, images, targets)
    assert expected.max() == 1.0 and (heat.max(axis=(1, 2)) == 1.0).any()
    np.testing.assert_allclose(heat, expected, atol=1e-3)


def test_after_the_last_block_only_the_class_token_is_read():
    """Why the input of the last block has to take the place of its output, which `test_every_kind_of_map` shows."""
    predictor = predictor_of(("test_vit", 32, {}))
    assert by_hooks(predictor, "blocks.5", pictures(1, predictor), [0], (2, 2)).max() == 0.0


def test_a_backbone_without_a_last_map():
    """Its deepest stage that gives one is taken."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 4, stride=4), nn.Conv2d(4, 6, 2, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    predictor = predictor_of(own(net))
    assert predictor.module.backbone.map_channels is None
    images = pictures(2, predictor)
    expected = by_hooks(predictor, "1", images, [1, 2], (2, 2))
    np.testing.assert_allclose(evidence(predictor, images, [1, 2]), finished(expected, (16, 16)), atol=1e-4)


class ChannelsLast(nn.Module):
    """A stage that gives (B, H, W, C)."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 4, stride=4)

    def forward(self, images):
        return self.conv(images).permute(0, 2, 3, 1)


class Mean(nn.Module):
    """Of all places, channels last."""

    def forward(self, maps):
        return maps.mean(dim=(1, 2))


def test_a_stage_that_works_channels_last():
    torch.manual_seed(0)
    stage = ChannelsLast()
    predictor = predictor_of(own(nn.Sequential(stage, Mean())))
    images = pictures(2, predictor)
    with torch.no_grad():
        maps = stage(normalise(torch.from_numpy(images), predictor.info.preprocessing))
        expected = torch.einsum("bc,bhwc->bhw", predictor.module.head.linear.weight[[2, 1]], maps).numpy()
    np.testing.assert_allclose(evidence(predictor, images, [2, 1]), finished(expected, (16, 16)), atol=1e-4)


class OnMaps(nn.Module):
    """A head that takes maps, and sees the upper half of them only."""

    takes_maps = True

    def __init__(self, channels, classes):
        super().__init__()
        self.conv = nn.Conv2d(channels, classes, 1)

    def forward(self, maps):
        return self.conv(maps)[:, :, : maps.shape[2] // 2].mean(dim=(2, 3))


def test_a_head_on_maps():
    torch.manual_seed(0)
    backbone = own(nn.Conv2d(3, 4, 4, stride=4))
    predictor = predictor_of(backbone, OnMaps(4, 3))
    images = pictures(2, predictor)
    with torch.no_grad():
        maps = backbone.forward_maps(normalise(torch.from_numpy(images), predictor.info.preprocessing))
    expected = torch.einsum("bc,bchw->bhw", predictor.module.head.conv.weight[[0, 2], :, 0, 0], maps).detach().numpy()
    np.testing.assert_allclose(evidence(predictor, images, [0, 2]), finished(expected, (16, 16)), atol=1e-4)


def test_nearest_neighbours_agree():
    """The share of a vote that all agree on is constant; the vote itself is not."""
    torch.manual_seed(0)
    backbone = own(nn.Conv2d(3, 4, 4, stride=4))
    head = NeighbourHead(4, 2, rows=6, k=2, temperature=0.07)
    head.rows.copy_(nn.functional.normalize(torch.tensor([[1.0, 0, 0, 0]] * 3 + [[0, -1.0, 0, 0]] * 3), dim=1))
    head.labels.copy_(torch.tensor([0, 0, 0, 1, 1, 1]))
    predictor = predictor_of(backbone, head, classes=2)
    images = pictures(1, predictor)
    maps = backbone.forward_maps(normalise(torch.from_numpy(images), predictor.info.preprocessing)).detach()
    leaf = maps.clone().requires_grad_()
    agreed = int(head(backbone.pool(leaf)).argmax())
    share = torch.autograd.grad(head(backbone.pool(leaf))[0, agreed], leaf)[0]
    assert share.abs().max() == 0.0
    # All rows of a class are equal, so its vote is log 3 + cos / T: the evidence is the gradient of one cosine.
    leaf = maps.double().requires_grad_()
    row = head.rows[3 * agreed].double()
    nn.functional.cosine_similarity(leaf.mean(dim=(2, 3)), row[None]).backward()
    expected = (leaf.grad.mean(dim=(2, 3))[:, :, None, None] * maps).sum(dim=1).numpy()
    heat = evidence(predictor, images, [agreed])
    assert heat.max() == 1.0
    np.testing.assert_allclose(heat, finished(expected, (16, 16)), atol=1e-3)


# ---- manners ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_the_model_is_left_as_it_was(name):
    predictor = predictor_of((name, 32, {}))
    module = predictor.module
    module.head.train()
    frozen = next(module.backbone.parameters()).requires_grad_(False)
    module.head.linear.bias.grad = torch.ones(3)
    modes = [part.training for part in module.modules()]
    state = copy.deepcopy(module.state_dict())
    images = pictures(2, predictor)
    with torch.inference_mode():
        inside = evidence(predictor, images, [0, 1])
        module(normalise(torch.from_numpy(images), predictor.info.preprocessing))
    np.testing.assert_array_equal(inside, evidence(predictor, images, [0, 1]))
    assert [part.training for part in module.modules()] == modes
    assert {name: value for name, value in module.named_parameters() if value.grad is not None}.keys() == {
        "head.linear.bias"
    }
    assert module.head.linear.bias.grad.tolist() == [1.0, 1.0, 1.0]
    assert [value.requires_grad for value in module.parameters() if value is not frozen] == [True] * (
        len(list(module.parameters())) - 1
    )
    assert not any(part._forward_hooks for part in module.modules())
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


def test_batches(monkeypatch):
    predictor = predictor_of(("test_vit", 32, {}))
    monkeypatch.setattr(gradcam, "BATCH", 2)
    images, targets = pictures(3, predictor), [2, 0, 1]
    one_by_one = [evidence(predictor, images[at : at + 1], targets[at : at + 1])[0] for at in range(3)]
    np.testing.assert_allclose(evidence(predictor, images, targets), np.stack(one_by_one), atol=1e-3)
    assert evidence(predictor, images[:0], []).shape == (0, 32, 32)


class ClassToken(Backbone):
    """Tokens of which only the first is read, and nothing before them that knows of places."""

    def __init__(self):
        config = DataConfig(image_size=(16, 16))
        super().__init__(
            nn.Sequential(nn.Flatten(), nn.Linear(768, 20)), BackboneFacts("token", config), prefix_tokens=1
        )
        self.measure()

    def forward_maps(self, images):
        return self.model(images).reshape(-1, 5, 4)

    def pool(self, maps):
        return maps[:, 0]

    def forward(self, images):
        return self.pool(self.forward_maps(images))

    def layer_groups(self):
        return child_groups(self.model, prefix="model.")


@pytest.mark.parametrize(
    "backbone", [lambda: own(nn.Sequential(nn.Flatten(), nn.Linear(768, 5))), ClassToken], ids=["vectors", "token"]
)
def test_where_there_is_no_map_it_says_so(backbone):
    predictor = predictor_of(backbone())
    with pytest.raises(ConfigError, match=r"no heat map: no stage of (own|token) gives a map .* nearest training"):
        evidence(predictor, pictures(1, predictor), [0])


class Votes(nn.Module):
    """A head without a gradient."""

    def forward(self, features):
        return (features[:, :3] > 0).float()


def test_a_head_without_a_gradient():
    predictor = predictor_of(own(nn.Conv2d(3, 4, 4, stride=4)), Votes())
    with pytest.raises(ConfigError, match="no heat map: the head Votes has no gradient"):
        evidence(predictor, pictures(1, predictor), [0])


@pytest.mark.parametrize(
    ("shape", "dtype", "targets", "message"),
    [
        ((1, 15, 16, 3), np.uint8, "a", r"images are \(1, 15, 16, 3\) uint8, expected \(B, 16, 16, 3\) uint8"),
        ((1, 16, 16, 3), np.float32, "a", "float32, expected"),
        ((16, 16, 3), np.uint8, "a", r"images are \(16, 16, 3\)"),
        ((1, 16, 16, 3), np.uint8, "d", "one of the model's names for each"),
        ((2, 16, 16, 3), np.uint8, "a", "for 2 pictures"),
    ],
)
def test_refusals(shape, dtype, targets, message):
    predictor = predictor_of(own(nn.Conv2d(3, 4, 4, stride=4)))
    with pytest.raises(ConfigError, match=message):
        heatmaps(predictor, np.zeros(shape, dtype), targets)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_on_a_gpu(name):
    predictor = predictor_of((name, 64, {}))
    images = pictures(3, predictor)
    here = evidence(predictor, images, [0, 1, 2])
    there = evidence(predictor_of((name, 64, {}), device="cuda"), images, [0, 1, 2])
    np.testing.assert_allclose(there, here, atol=2e-2)  # TF32


# ---- the overlay ------------------------------------------------------------------------------------------------


def test_overlay():
    image = np.full((2, 2, 3), (200, 100, 50), dtype=np.uint8)
    laid = overlay(image, np.array([[0.0, 1.0], [0.5, 1.5]], dtype=np.float32))
    assert laid.dtype == np.uint8 and laid.shape == (2, 2, 3)
    grey = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    assert laid[0, 0].tolist() == [round(grey)] * 3  # no evidence, no colour
    most = np.array(colormaps[COLOURS](1.0)[:3]) * 255
    np.testing.assert_allclose(laid[0, 1], 0.4 * grey + 0.6 * most, atol=0.51)
    half = np.array(colormaps[COLOURS](0.5)[:3]) * 255
    np.testing.assert_allclose(laid[1, 0], 0.7 * grey + 0.3 * half, atol=0.51)
    assert laid[1, 1].tolist() == laid[0, 1].tolist()
    large = overlay(image.repeat(3, axis=0), np.array([[0.0, 1.0]]))  # scaled to the picture
    assert large.shape == (6, 2, 3) and large[:, 0].tolist() == [laid[0, 0].tolist()] * 6


def test_colours_differ_in_brightness_alone():
    """Whoever cannot tell their hues can still read them."""
    brightness = colormaps[COLOURS](np.linspace(0, 1, 64))[:, :3] @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(brightness) > 0).all()
