"""How like the source pictures are: by what batch norms have kept of it, and by other pictures of the source."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from transferkit.core.records import DataConfig
from transferkit.data.batches.dataset import Picture
from transferkit.models.backbones.registry import create_backbone
from transferkit.results.advise.likeness import NEAR, norm_shift

CONFIG = DataConfig(image_size=(32, 32), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), crop_pct=1.0)


class Net(nn.Module):
    """A norm right on the pixels, so that what it should keep can be written down by hand."""

    def __init__(self, mean=0.5, deviation=0.1):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.norm.running_mean.fill_(mean)
        self.norm.running_var.fill_(deviation**2)

    def forward(self, images):
        return self.norm(images).mean(dim=(2, 3))


def pictures(folder, mean, deviation, count=12, seed=0):
    """Grey noise of this mean and deviation, on [0, 1]."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number in range(count):
        pixels = np.clip(generator.normal(mean, deviation, (32, 32, 3)) * 255, 0, 255).round().astype(np.uint8)
        path = folder / f"{number}.png"
        Image.fromarray(pixels).save(path)
        made.append(Picture(str(path), hashlib.sha256(path.read_bytes()).hexdigest()))
    return made


@pytest.mark.parametrize(
    ("mean", "deviation", "expected"),
    [(0.5, 0.1, 0.0), (0.6, 0.1, 1.0), (0.4, 0.1, 1.0), (0.5, 0.05, 0.5), (0.53, 0.06, 0.5)],
)
def test_the_distance_is_that_of_two_normal_distributions(tmp_path, mean, deviation, expected):
    """In deviations of the source: sqrt(shift squared + change of the deviation squared)."""
    shift = norm_shift(Net(), pictures(tmp_path, mean, deviation), CONFIG)
    assert shift == pytest.approx(expected, abs=0.03)


def test_a_network_keeps_what_it_had(tmp_path):
    net = Net().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    norm_shift(net, pictures(tmp_path, 0.6, 0.1), CONFIG)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not net.norm._forward_pre_hooks


@pytest.mark.parametrize("net", [nn.Flatten(), nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False))])
def test_what_keeps_no_statistics_says_nothing(tmp_path, net):
    assert norm_shift(net, pictures(tmp_path, 0.5, 0.1), CONFIG) is None


def test_random_weights_know_no_source(tmp_path):
    backbone = create_backbone("test_resnet", weights="random", image_size=32)
    assert norm_shift(backbone, pictures(tmp_path, 0.5, 0.1), backbone.data_config) is None


def test_noise_is_unlike_the_source_of_the_bundled_backbone(tmp_path):
    """Drawn surfaces are like photos to it, noise is not."""
    from transferkit.data.sample import sample_folder

    backbone = create_backbone("transferkit/mini", weights="bundled", image_size=64)
    files = sorted(Path(sample_folder()).glob("*/*.jpg"))[::12]
    drawn = [Picture(str(path), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]
    near = norm_shift(backbone, drawn, backbone.data_config)
    far = norm_shift(backbone, pictures(tmp_path, 0.5, 0.25), backbone.data_config)
    assert near < NEAR < far
