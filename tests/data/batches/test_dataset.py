"""Batches: order and augmentation are pure functions of seed, epoch and picture; errors keep their path."""

import gc
import shutil
import weakref

import numpy as np
import pytest
import torch

from transferkit.core.errors import ConfigError, DataError
from transferkit.core.records import DataConfig
from transferkit.data.augment.normalise import _shift_and_scale, normalise
from transferkit.data.augment.transform import eval_transform
from transferkit.data.augment.views import sample_seed
from transferkit.data.batches.datamodule import ImageData
from transferkit.data.batches.dataset import Job
from transferkit.data.batches.samplers import EpochSampler
from transferkit.data.images.decode import decode_image


@pytest.fixture
def data(folder):
    def build(**options):
        return ImageData(folder, **{"image_size": 32, "batch_size": 5, "augment": "standard", **options})

    return build


def epoch_of(loader, epoch):
    """Pictures and labels of an epoch, in order."""
    loader.sampler.set_epoch(epoch)
    batches = list(loader)
    return torch.cat([images for images, _ in batches]), torch.cat([targets for _, targets in batches])


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentations_differ_per_sample_and_epoch(data, workers):  # trap 15
    loader = data(workers=workers).train_dataloader()
    pictures = {picture.numpy().tobytes() for epoch in range(3) for picture in epoch_of(loader, epoch)[0]}
    assert len(pictures) == 3 * 24


def test_workers_change_nothing(data):  # fault 51
    alone, several = data(workers=0).train_dataloader(), data(workers=2).train_dataloader()
    for epoch in (0, 1):
        for ours, theirs in zip(epoch_of(alone, epoch), epoch_of(several, epoch), strict=True):
            assert ours.equal(theirs)


def test_ranks_share_an_epoch_and_augment_alike(data):
    whole = data()
    dataset = whole.dataset("train", train=True)
    samplers = [EpochSampler(24, batch_size=4, seed=0, rank=rank, world_size=2) for rank in (0, 1)]
    keys = [list(sampler) for sampler in samplers]
    assert sorted(job.picture for part in keys for job in part) == list(range(24))
    pictures = {dataset[job].images.numpy().tobytes() for part in keys for job in part}
    assert len(pictures) == 24


def test_kept_pixels_change_nothing(data):
    in_memory, read = data(keep_bytes=2**30), data(keep_bytes=0, pixel_store="off")
    assert (len(in_memory.index.records), len(in_memory.pixels.memory)) == (45, 45)
    assert (len(read.index.records), len(read.pixels.memory)) == (45, 0)
    assert epoch_of(in_memory.train_dataloader(), 0)[0].equal(epoch_of(read.train_dataloader(), 0)[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_continues_in_mid_epoch(data, workers):  # fault 52
    loader = data(workers=workers).train_dataloader()
    expected = epoch_of(loader, 1)[0]
    iterator = iter(loader)
    next(iterator)
    next(iterator)
    state = loader.state_dict()
    assert state == {"epoch": 1, "samples": 10}
    again = data(workers=workers).train_dataloader()
    again.load_state_dict(state)
    rest = torch.cat([images for images, _ in again])
    assert rest.equal(expected[10:])
    again.sampler.set_epoch(2)
    assert sum(len(images) for images, _ in again) == 24


def test_seeds_are_spread():
    seeds = {sample_seed(seed, epoch, sha) for seed in range(3) for epoch in range(50) for sha in ("a", "b")}
    assert len(seeds) == 300
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.fixture
def own(folder, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(folder, tmp_path / "own")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "cannot be read any more"),
        (lambda path: path.write_bytes(path.with_name("001.png").read_bytes()), "its content changed since"),
    ],
)
def test_a_file_that_changes_under_way_is_an_error(own, workers, damage, message):  # fault 23
    data = ImageData(own, image_size=32, batch_size=5, keep_bytes=0, pixel_store="off", workers=workers)
    loader = data.train_dataloader()
    victim = own / "train" / "circle" / "000.png"
    damage(victim)
    with pytest.raises(DataError, match=rf"^{victim}: {message}"):
        list(loader)


def test_an_error_does_not_keep_the_loader(own):
    """Kept in a cycle, its queues would be collected before its workers are told to end, and each waited for."""
    loader = ImageData(own, image_size=32, batch_size=5, keep_bytes=0, pixel_store="off", workers=1).train_dataloader()
    (own / "train" / "circle" / "000.png").unlink()
    alive = weakref.ref(loader)
    gc.disable()
    try:
        try:
            list(loader)
        except DataError:
            del loader
        assert alive() is None
    finally:
        gc.enable()


def test_training_evaluation_and_prediction_see_the_same_decoded_picture(data):  # fault 84
    whole = data(augment="none", keep_bytes=0, pixel_store="off")
    record = whole.index.split("val")[0]
    config = whole.data_config
    predicted = eval_transform(config)(decode_image(record.path, min_side=config.decode_side), 0)
    assert np.array_equal(whole.dataset("val").batch([0]).images[0], predicted)
    trained = whole.dataset("train", train=True)
    expected = eval_transform(config)(decode_image(trained.pictures[3].name, min_side=config.decode_side), 0)
    assert np.array_equal(trained.batch([Job(3, (5,))]).images[0], expected)


def test_normalise_equals_the_written_out_formula():
    config = DataConfig(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    images = torch.randint(0, 256, (2, 5, 4, 3), dtype=torch.uint8)
    result = normalise(images, config)
    expected = (images.permute(0, 3, 1, 2).double() / 255 - torch.tensor(config.mean).view(3, 1, 1)) / torch.tensor(
        config.std
    ).view(3, 1, 1)
    torch.testing.assert_close(result.double(), expected, atol=1e-6, rtol=0)
    assert result.shape == (2, 3, 5, 4)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert normalise(result, config) is result


def test_the_constants_of_normalising_are_made_once():
    """Made anew for every batch, they would be two copies to a GPU that the host waits for."""
    config = DataConfig(mean=(0.11, 0.2, 0.3))
    images = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)
    with torch.inference_mode():
        normalise(images, config)
    made = _shift_and_scale.cache_info().misses
    result = normalise(images, config)
    assert _shift_and_scale.cache_info().misses == made
    assert not result.is_inference()


def test_labels_are_indices_of_the_training_classes(data):
    whole = data()
    for split in ("train", "val", "test"):
        labels = [record.label for record in whole.index.split(split)]
        assert [whole.class_names[target] for target in whole.targets(split)] == labels
        assert whole.dataset(split).targets.equal(whole.targets(split))


def test_bad_arguments_come_together(folder):
    with pytest.raises(ConfigError, match=r"\(1\) --val-split is 1.0.*\(2\) batch_size is 0.*\(3\) workers is -1"):
        ImageData(folder, batch_size=0, workers=-1, val_split=1.0)
    with pytest.raises(ConfigError, match="leave nothing to train on"):
        ImageData(folder, val_split=0.5, test_split=0.5)
    with pytest.raises(ConfigError, match="'hevy'.* Did you mean 'heavy'"):
        ImageData(folder, augment="hevy")


def test_an_empty_split_is_an_error(folder, tmp_path):
    shutil.copytree(folder / "train", tmp_path / "flat")
    data = ImageData(tmp_path / "flat", val_split=0, test_split=0)
    assert data.val_dataloader() == []
    with pytest.raises(DataError, match="the data have no test pictures"):
        data.test_dataloader()
