"""The pyramid of a backbone beside timm's own feature extractor, and beside tables of strides and widths."""

import pytest
import timm
import torch
from contracts import build
from torch import nn

from transferkit.core.errors import BackboneError
from transferkit.models.backbones.pyramid import LAST, as_map, choose_levels
from transferkit.models.backbones.registry import create_backbone

# Strides and channels, from the papers' tables; of timm's own small test networks, from their configuration.
LEVELS = {
    "test_resnet": [(2, 32), (4, 32), (8, 48), (16, 192), (32, 96)],
    "test_vit": [(16, 64)],  # tokens of one size
    "resnet18": [(2, 64), (4, 64), (8, 128), (16, 256), (32, 512)],
    "mobilenetv3_small_050": [(2, 16), (4, 8), (8, 16), (16, 24), (32, 288)],
    "regnetx_002": [(2, 32), (4, 24), (8, 56), (16, 152), (32, 368)],
    "convnext_atto": [(4, 40), (8, 80), (16, 160), (32, 320)],
    "pvt_v2_b0": [(4, 32), (8, 64), (16, 160), (32, 256)],  # stages that hand on (B, H, W, C)
    "poolformer_s12": [(4, 64), (8, 128), (16, 320), (32, 512)],  # whose stages are one layer group
    "transferkit/mini": [(2, 64), (4, 32), (8, 64), (16, 128), (32, 256)],
    "torchvision/mobilenet_v3_small": [(2, 16), (4, 16), (8, 24), (16, 48), (32, 576)],
}
SIDE = 96


def make(name, size=SIDE):
    torch.manual_seed(0)
    return create_backbone(name, weights="random", image_size=size).eval()


@pytest.mark.parametrize("name", LEVELS)
def test_maps_are_as_promised_and_gradients_flow_into_all(name):
    backbone = make(name)
    levels = backbone.pyramid()
    assert [(level.stride, level.channels) for level in levels] == LEVELS[name]
    images = torch.randn(2, 3, SIDE, SIDE, requires_grad=True)
    maps = backbone.forward_pyramid(images)
    assert [tuple(made.shape) for made in maps] == [
        (2, level.channels, SIDE // level.stride, SIDE // level.stride) for level in levels
    ]
    for made in maps:
        images.grad = None
        made.square().sum().backward(retain_graph=True)
        assert images.grad.abs().sum() > 0
    assert not any(module._forward_hooks for module in backbone.modules())


def test_a_swin_is_turned():
    backbone = make("swin_tiny_patch4_window7_224", 224)
    assert [(level.stride, level.channels) for level in backbone.pyramid()] == [(4, 96), (8, 192), (16, 384), (32, 768)]
    with torch.no_grad():
        images = torch.randn(1, 3, 224, 224)
        maps = backbone.forward_pyramid(images)
        assert torch.equal(maps[-1], backbone.forward_maps(images))  # its norm is the end of it
    assert [tuple(made.shape[1:]) for made in maps] == [(96, 56, 56), (192, 28, 28), (384, 14, 14), (768, 7, 7)]


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "regnetx_002"])
def test_maps_are_those_of_timms_extractor(name):
    backbone = make(name)
    reference = timm.create_model(name, pretrained=False, features_only=True).eval()
    # The extractor has the same network, opened: its names begin with those of the children, joined by `_`.
    own, state = backbone.model.state_dict(), reference.state_dict()
    names = {key.replace(".", "_"): key for key in own}
    reference.load_state_dict({key: own[names[key.replace(".", "_")]] for key in state})
    images = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        maps, expected = backbone.forward_pyramid(images), reference(images)
    by_stride = dict(zip(reference.feature_info.reduction(), expected, strict=True))
    for level, made in zip(backbone.pyramid(), maps, strict=True):
        torch.testing.assert_close(made, by_stride[level.stride], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet18", "torchvision/mobilenet_v3_small", "poolformer_s12"])
def test_pictures_of_other_sizes_and_shapes(name):
    backbone = make(name)
    with torch.no_grad():
        maps = backbone.forward_pyramid(torch.randn(1, 3, 64, 160))
    assert [tuple(made.shape[2:]) for made in maps] == [
        (64 // level.stride, 160 // level.stride) for level in backbone.pyramid()
    ]


def test_tokens_of_a_wide_picture_are_laid_out_by_rows():
    made = as_map(torch.arange(1 + 18.0).reshape(1, -1, 1), (48, 96), channels_last=False, prefix_tokens=1)
    assert torch.equal(made[0, 0], torch.arange(1.0, 19.0).reshape(3, 6))
    assert as_map(torch.zeros(1, 18, 1), (48, 96), channels_last=False, prefix_tokens=1) is None  # one patch too few
    assert as_map(torch.zeros(1, 1, 8), (48, 96), channels_last=False, prefix_tokens=1) is None  # the class token alone
    assert as_map((torch.zeros(1, 18, 1),), (48, 96), channels_last=False, prefix_tokens=0) is None


def test_a_trunk_only_gets_coarser():
    table = (("a", 4, 1), ("b", 4, 2), ("c", 16, 3), ("back", 4, 4), (LAST, 16, 5))
    maps = {name: torch.zeros(1, width, 64 // stride, 64 // stride) for name, stride, width in table}
    levels = choose_levels(maps, (64, 64))
    assert [(level.name, level.stride, level.channels) for level in levels] == [("b", 4, 2), (LAST, 16, 5)]
    assert choose_levels({}, (64, 64)) == ()


@pytest.mark.parametrize(("name", "words"), [("pit_ti_224", "has no pyramid"), ("torchvision/vit_b_16", "no feature")])
def test_a_network_without_a_map_at_its_end_is_refused(name, words):
    backbone = make(name, 224)
    for ask in (backbone.pyramid, lambda: backbone.forward_pyramid(torch.zeros(1, 3, 224, 224))):
        with pytest.raises(BackboneError, match=words):
            ask()
    assert not any(module._forward_hooks for module in backbone.modules())


def test_tokens_that_do_not_fit_the_picture_are_refused():
    backbone = build("test_vit")
    backbone.forward_maps = lambda images: nn.functional.pad(torch.zeros(1, 17, 64), (0, 0, 0, 3))
    with pytest.raises(BackboneError, match=r"has no pyramid: its end is no feature map"):
        backbone.pyramid()
