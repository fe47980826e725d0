"""Backbones for other channels than three: of equal channels they say what the network of RGB says."""

import numpy as np
import pytest
import torch
from torch import nn

import transferkit as tk
from transferkit.core.errors import BackboneError
from transferkit.core.records import DataConfig
from transferkit.models.backbones.registered import REGISTRATIONS
from transferkit.models.backbones.registry import create_backbone
from transferkit.models.weights.channels import adapted_weight

NAMES = ["transferkit/mini", "test_vit", "test_convnext", "test_efficientnet", "torchvision/squeezenet1_1"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 2, 4, 6, 13])
def test_equal_channels_are_a_grey_picture(name, channels):
    weights = "bundled" if name.startswith("transferkit") else "random"
    torch.manual_seed(3)
    rgb = create_backbone(name, weights=weights, image_size=64).eval()
    torch.manual_seed(3)
    ours = create_backbone(name, weights=weights, image_size=64, channels=channels).eval()
    assert ours.data_config.channels == channels and ours.adapted
    grey = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = rgb(grey.expand(-1, 3, -1, -1))
        features = ours(grey.expand(-1, channels, -1, -1))
    assert torch.allclose(features, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_weights_by_hand():
    weight = torch.arange(6.0).view(1, 3, 1, 2)
    assert adapted_weight(weight, 1).flatten().tolist() == [6.0, 9.0]
    assert adapted_weight(weight, 2).flatten().tolist() == [3.0, 4.5, 3.0, 4.5]
    assert adapted_weight(weight, 4).flatten().tolist() == [0.0, 0.5, 2.0, 3.0, 4.0, 5.0, 0.0, 0.5]
    with pytest.raises(AssertionError):  # timm's keeps the sum for multiples of three alone
        from timm.models import adapt_input_conv

        assert torch.allclose(adapt_input_conv(4, weight).sum(1), weight.sum(1))


def test_grey_pictures_are_nearly_what_they_were_as_rgb():
    """ImageNet's means differ between channels, grey has one: what is left of that is small."""
    rgb, ours = (create_backbone("transferkit/mini", channels=channels).eval() for channels in (3, 1))
    pixels = torch.rand(4, 1, 96, 96, generator=torch.Generator().manual_seed(1))

    def normal(config):
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (config.mean, config.std))
        return (pixels.expand(-1, config.channels, -1, -1) - mean) / std

    with torch.no_grad():
        cosine = torch.cosine_similarity(rgb(normal(rgb.data_config)), ours(normal(ours.data_config)))
    assert cosine.min() > 0.97


def test_own_channels_are_left_alone():
    backbone = create_backbone("test_resnet", weights="random", channels=3)
    assert not backbone.adapted and not backbone.measures
    assert create_backbone("test_resnet", weights="random", channels=6).measures
    assert not create_backbone("test_resnet", weights="random", channels=1).measures


@pytest.fixture
def own():
    names = []

    def register(builder, **facts):
        name = f"own-{len(REGISTRATIONS)}"
        tk.register_backbone(name, **facts)(builder)
        names.append(name)
        return name

    yield register
    for name in names:
        del REGISTRATIONS[name]


def test_a_backbone_of_bands_takes_them(own):
    config = DataConfig(image_size=(16, 16), mean=(0.5,) * 5, std=(0.25,) * 5)
    name = own(lambda: nn.Conv2d(5, 4, 3), data_config=config)
    backbone = create_backbone(name, weights="random")
    assert backbone.data_config.decoding.channels == 5 and not backbone.adapted
    assert create_backbone(name, weights="random", channels=10).data_config.channels == 10


class Patches(nn.Module):
    """A network that sees its pictures by a linear layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, images):
        return self.layer(images.mean(dim=(2, 3)))


class Norms(nn.Module):
    """A network that does more with its channels than a convolution does."""

    def __init__(self):
        super().__init__()
        self.norm, self.layer = nn.InstanceNorm2d(3, affine=True), nn.Conv2d(3, 4, 3)

    def forward(self, images):
        return self.layer(self.norm(images[:, :3])).mean(dim=(2, 3)) + images.shape[1]


@pytest.mark.parametrize("builder", [Patches, Norms])
def test_what_cannot_be_adapted_is_refused(own, builder):  # fault 237
    name = own(builder, data_config=DataConfig(image_size=(16, 16)))
    assert create_backbone(name, weights="random").num_features == 4
    with pytest.raises(BackboneError, match="cannot be adapted to 5 channels"):
        create_backbone(name, weights="random", channels=5)


def test_a_module_is_rebuilt_with_its_channels():
    module = tk.TransferModule("test_resnet", 2, weights="random", image_size="32x64", channels=5)
    assert module.data_config.input_shape == (5, 32, 64)
    again = tk.TransferModule(**dict(module.hparams))
    again.load_state_dict(module.state_dict())
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 5, 32, 64)).astype(np.float32))
    assert torch.equal(again.eval()(images), module.eval()(images))
