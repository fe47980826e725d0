"""Batches whose augmentation is left to the device: the same order, draws and labels, whoever loads them."""

import numpy as np
import pytest
import torch
from PIL import Image

from transferkit.core.errors import ConfigError
from transferkit.core.records import DataConfig
from transferkit.data.augment.packed import Packed
from transferkit.data.batches.datamodule import ImageData
from transferkit.data.batches.dataset import Job
from transferkit.data.batches.samplers import EpochSampler


@pytest.fixture
def data(folder):
    def build(**options):
        common = {"image_size": 32, "batch_size": 5, "augment": "standard", "augment_on": "device"}
        return ImageData(folder, **{**common, **options})

    return build


def epoch_of(data, loader, epoch):
    """Pictures as the network gets them, and labels, of an epoch in order."""
    loader.sampler.set_epoch(epoch)
    batches = [data.prepare(batch, train=True) for batch in loader]
    return torch.cat([images for images, _ in batches]), torch.cat([targets for _, targets in batches])


def test_the_network_gets_what_the_cpu_would_give_it(data):
    ours, theirs = data(), data(augment_on="cpu")
    for epoch in (0, 1):
        mine, yours = (epoch_of(one, one.train_dataloader(), epoch) for one in (ours, theirs))
        assert mine[1].equal(yours[1])
        assert mine[0].is_contiguous(memory_format=torch.channels_last) and mine[0].dtype == torch.float32
        assert (mine[0] - yours[0]).abs().mean() < 0.02  # a level is 0.017
    assert isinstance(next(iter(ours.train_dataloader()))[0], Packed)


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentations_differ_per_sample_and_epoch(data, workers):  # trap 15
    own = data(workers=workers)
    loader = own.train_dataloader()
    pictures = {one.numpy().tobytes() for epoch in range(3) for one in epoch_of(own, loader, epoch)[0]}
    assert len(pictures) == 3 * 24


def test_workers_change_nothing(data):  # fault 51
    alone, several = data(workers=0), data(workers=2)
    for epoch in (0, 1):
        ours, theirs = (epoch_of(one, one.train_dataloader(), epoch) for one in (alone, several))
        assert ours[0].equal(theirs[0]) and ours[1].equal(theirs[1])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_continues_in_mid_epoch(data, workers):  # fault 52
    own = data(workers=workers)
    loader = own.train_dataloader()
    expected = epoch_of(own, loader, 1)[0]
    iterator = iter(loader)
    next(iterator)
    next(iterator)
    again = data(workers=workers).train_dataloader()
    again.load_state_dict(loader.state_dict())
    rest = torch.cat([own.prepare(batch, train=True)[0] for batch in again])
    assert rest.equal(expected[10:])


def test_ranks_share_an_epoch_and_augment_alike(data):
    own = data(batch_size=24)
    whole, positions = own.dataset("train", train=True), list(range(24))
    expected = own.prepare(whole.batch([Job(at, (0,)) for at in positions]).labelled(), train=False)[0]
    for rank in (0, 1):
        jobs = list(EpochSampler(24, batch_size=12, seed=0, rank=rank, world_size=2))
        shown = own.prepare(whole.batch(jobs).labelled(), train=False)[0]
        assert (shown - expected[[job.picture for job in jobs]]).abs().mean() < 1e-3


def test_epochs_as_evaluated_are_left_alone(data):
    own = data(train_size=24)
    own.show_as_evaluated([1])
    loader = own.train_dataloader()
    assert epoch_of(own, loader, 0)[0].shape[2:] == (24, 24)
    loader.sampler.set_epoch(1)
    images, _ = next(iter(loader))
    assert isinstance(images, torch.Tensor) and images.shape[1:] == (32, 32, 3)


def test_mixing_comes_after(data):
    own, plain = data(mixup=0.4), data()
    torch.manual_seed(0)
    batch = next(iter(own.train_dataloader()))
    mixed, targets = own.prepare(batch, train=True)
    assert targets.shape == (5, 3) and mixed.shape == (5, 3, 32, 32)
    assert not mixed.equal(plain.prepare(batch, train=True)[0])


def test_evaluation_is_as_ever(data):
    images, _ = next(iter(data().evaluation_loader("val")))
    assert isinstance(images, torch.Tensor) and images.dtype == torch.uint8


@pytest.mark.parametrize(("options", "words"), [
    ({"augment": "heavy"}, "'heavy' has steps"), ({"augment_on": "gpu"}, "augment_on is 'gpu', expected one of auto"),
])  # fmt: skip
def test_refused(data, options, words):
    with pytest.raises(ConfigError, match=words):
        data(**options).train_dataloader()


def test_pictures_of_every_shape_share_a_batch(tmp_path):
    generator = np.random.default_rng(0)
    for number, size in enumerate([(40, 30), (30, 40), (200, 20), (20, 200), (3, 3), (64, 64), (300, 300), (10, 90)]):
        for label in ("a", "b"):
            path = tmp_path / label / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(generator.integers(0, 255, (*size, 3), dtype=np.uint8)).save(path)
    config = DataConfig(image_size=(24, 32), interpolation="bicubic")
    common = {"data_config": config, "val_split": 0.0, "test_split": 0.0, "batch_size": 16, "augment": "light"}
    ours, theirs = (ImageData(tmp_path, augment_on=where, **common) for where in ("device", "cpu"))
    mine, yours = (one.prepare(next(iter(one.train_dataloader())), train=True)[0] for one in (ours, theirs))
    assert (mine - yours).abs().mean() < 0.01
