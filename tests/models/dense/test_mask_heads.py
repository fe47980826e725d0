"""Heads of masks on pyramids of many kinds of backbones, beside segmentation_models_pytorch and the paper's tables."""

import pytest
import torch
from torch import nn

from transferkit.core.errors import ConfigError
from transferkit.models.backbones.pyramid import Level
from transferkit.models.backbones.registry import create_backbone
from transferkit.models.dense.decoders import SimplePyramid
from transferkit.models.dense.kinds import MASK_HEADS
from transferkit.models.heads.feed import Feed, feed
from transferkit.models.heads.registry import FLAT, register_head

SIDE = 64
BACKBONES = ("test_resnet", "test_vit", "test_convnext", "transferkit/mini")


def make(name, size=SIDE):
    torch.manual_seed(0)
    return create_backbone(name, weights="random", image_size=size)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("head", ["linear", "unet", "fpn", "deeplabv3plus"])
def test_every_head_goes_on_every_pyramid_and_learns(backbone, head):
    backbone = make(backbone)
    built = MASK_HEADS.build(head, backbone, 3, drop_rate=0.1)
    images = torch.randn(2, 3, SIDE, SIDE)
    logits = built(feed(backbone.train(), MASK_HEADS.feed(head), images))
    assert logits.shape == (2, 3, SIDE, SIDE)
    logits.square().sum().backward()
    silent = [name for name, parameter in built.named_parameters() if parameter.grad is None]
    assert not silent
    assert any(parameter.grad is not None for parameter in backbone.parameters())


def test_a_wide_picture_of_another_size():
    backbone = make("test_resnet").eval()
    for head in ("linear", "unet", "fpn", "deeplabv3plus"):
        built = MASK_HEADS.build(head, backbone, 2).eval()
        with torch.no_grad():
            assert built(feed(backbone, MASK_HEADS.feed(head), torch.randn(1, 3, 64, 96))).shape == (1, 2, 64, 96)


def test_the_linear_head_is_a_matrix_at_every_position():
    backbone = make("test_resnet").eval()
    built = MASK_HEADS.build("linear", backbone, 2).eval()
    images = torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        maps = backbone.forward_maps(images)
        made = built((images, maps))
    rows = maps.flatten(2).transpose(1, 2) @ built.linear.weight.flatten(1).T + built.linear.bias
    expected = nn.functional.interpolate(
        rows.transpose(1, 2).reshape(1, 2, *maps.shape[2:]), (SIDE, SIDE), mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(made, expected)


def test_hypercolumns_are_one_linear_layer_on_all_levels_enlarged_and_joined():
    backbone = make("test_resnet").eval()
    built = MASK_HEADS.build("hypercolumns", backbone, 3).eval()
    nn.init.normal_(built.linear.bias)
    images = torch.randn(2, 3, SIDE, SIDE)
    assert [level.stride for level in built.levels] == [4, 8, 16, 32]
    with torch.no_grad():
        given = feed(backbone, Feed.PYRAMID, images)
        maps = given[-4:]
        joined = torch.cat([nn.functional.interpolate(level, maps[0].shape[2:], mode="bilinear") for level in maps], 1)
        expected = nn.functional.interpolate(built.linear(joined), (SIDE, SIDE), mode="bilinear")
        torch.testing.assert_close(built(given), expected)


def test_a_backbone_of_one_level_has_no_hypercolumns():
    with pytest.raises(ConfigError, match="hypercolumns joins levels, and the pyramid of this backbone has one - use "):
        MASK_HEADS.build("hypercolumns", make("test_vit"), 2)


def test_a_simple_pyramid_has_the_strides_of_the_paper():
    pyramid = SimplePyramid(Level("", 16, 96))
    assert [level.stride for level in pyramid.levels] == [4, 8, 16, 32]
    assert [tuple(made.shape) for made in pyramid(torch.zeros(1, 96, 8, 8))] == [
        (1, 256, side, side) for side in (32, 16, 8, 4)
    ]


def test_a_unet_is_that_of_the_library():
    smp = pytest.importorskip("segmentation_models_pytorch", reason="segmentation_models_pytorch is not installed")
    reference = smp.Unet("resnet18", encoder_weights=None, classes=2).eval()
    backbone = create_backbone("torchvision/resnet18", weights="random", image_size=SIDE).eval()
    backbone.model.load_state_dict(
        {name: value for name, value in reference.encoder.state_dict().items() if name in backbone.model.state_dict()}
    )
    built = MASK_HEADS.build("unet", backbone, 2).eval()
    built.decoder.load_state_dict(reference.decoder.state_dict())
    built.answer[1].load_state_dict(reference.segmentation_head[0].state_dict())
    images = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        torch.testing.assert_close(built(feed(backbone, Feed.PYRAMID, images)), reference(images), rtol=1e-4, atol=1e-5)


def test_what_is_wrong_with_a_head_is_said():
    backbone = make("test_resnet")
    with pytest.raises(ConfigError, match=r"unknown head 'unett'.*Did you mean 'unet'"):
        MASK_HEADS.build("unett", backbone, 2)
    with pytest.raises(ConfigError, match=r"unknown head 'mlp'. It is a head of one answer per picture"):
        MASK_HEADS.build("mlp", backbone, 2)
    with pytest.raises(ConfigError, match=r"unknown head 'unet'. It is a head of masks"):
        FLAT.build("unet", backbone, 2)
    with pytest.raises(ConfigError, match=r"Linear is a head of one answer per picture"):
        MASK_HEADS.build(nn.Linear(3, 2), backbone, 2)
    with pytest.raises(ConfigError, match=r"needs maps of stride"):
        MASK_HEADS.build("fpn", _with_strides(backbone, (2, 4, 16, 32)), 2)


def _with_strides(backbone, strides):
    backbone._levels = tuple(Level(f"layer{at}", stride, 32) for at, stride in enumerate(strides, 1))
    return backbone


def test_without_the_library_the_line_to_type_is_said(monkeypatch):
    monkeypatch.setattr("transferkit.models.dense.kinds.LIBRARY", "no_such_library")
    backbone = make("test_resnet")
    with pytest.raises(ConfigError, match=r"pip install 'transferkit\[dense\]'"):
        MASK_HEADS.build("unet", backbone, 2)
    assert MASK_HEADS.build("linear", backbone, 2) is not None


def test_a_decoder_of_ones_own():
    class Coarse(nn.Module):
        takes_pyramid = True

        def __init__(self, levels, num_classes):
            super().__init__()
            self.answer = nn.Conv2d(levels[0].channels, num_classes, 1)

        def forward(self, given):
            images, finest, *_ = given
            return nn.functional.interpolate(self.answer(finest), images.shape[2:])

    register_head("test-coarse")(Coarse)
    assert "test-coarse" in MASK_HEADS.names()
    assert "test-coarse" not in FLAT.names()
    built = MASK_HEADS.build("test-coarse", make("test_resnet"), 2)
    assert isinstance(built, Coarse)
    with pytest.raises(ConfigError, match="head of masks"):
        FLAT.build("test-coarse", make("test_resnet"), 2)
    with pytest.raises(ConfigError, match=r"takes a pyramid"):
        FLAT.build(built, make("test_resnet"), 2)


def test_a_decoder_that_returns_coarse_logits_is_refused():
    class Coarse(nn.Module):
        takes_pyramid = True

        def forward(self, given):
            return given[-1][:, :2]

    with pytest.raises(ConfigError, match=r"must return float logits \(1, 2, 64, 64\)"):
        MASK_HEADS.build(Coarse(), make("test_resnet"), 2)
