"""Training pictures whose size depends on the epoch; what is evaluated never does."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from transferkit.core.errors import ConfigError
from transferkit.data.batches.datamodule import ImageData
from transferkit.models.task import task_named


def give(data, sizes):
    data.train_sizes = dataclasses.replace(data.train_sizes, epochs=tuple(sizes))


def epoch(loader, number):
    loader.sampler.set_epoch(number)
    return list(loader)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_has_its_size_and_the_same_draws_as_alone(folder, workers):
    """Whatever the workers, which live through epochs: a size goes by the number of a view."""
    options = {"image_size": 32, "batch_size": 8, "seed": 0}
    data = ImageData(folder, train_size=[20, 28], workers=workers, **options)
    give(data, [20, 28, None, 20])
    data.show_as_evaluated({2})
    loader = data.train_dataloader()
    alone = {side: ImageData(folder, train_size=side, **options) for side in (20, 28)}
    for number, side in ((0, 20), (1, 28), (3, 20), (4, 20)):
        for (images, targets), (expected, labels) in zip(
            epoch(loader, number), epoch(alone[side].train_dataloader(), number), strict=True
        ):
            assert images.shape[1:3] == (side, side)
            assert images.equal(expected)
            assert targets.equal(labels)
    plain = epoch(loader, 2)[0][0]
    assert plain.shape[1:3] == (32, 32)
    assert next(iter(data.val_dataloader()))[0].shape[1:3] == (32, 32)


def test_without_phases_it_is_the_last(folder):
    data = ImageData(folder, image_size=32, train_size="28,20", batch_size=8)
    assert not data.train_sizes.vary
    assert epoch(data.train_dataloader(), 0)[0][0].shape[1:3] == (20, 20)
    assert ImageData(folder, image_size=32).train_sizes.sides == ()


def test_the_same_sizes_are_one(folder):
    data = ImageData(folder, image_size=32, train_size=20, batch_size=8)
    give(data, [20, 20])
    assert not data.train_sizes.vary


@pytest.mark.filterwarnings("ignore:classes of few training pixels")
def test_masks_go_with_their_pictures(tmp_path):
    for split, count, start in (("train", 4, 2), ("val", 2, 8)):
        for kind in ("images", "masks"):
            (tmp_path / split / kind).mkdir(parents=True)
        for number in range(count):
            mask = np.zeros((40, 50), dtype=np.uint8)
            mask[10:30, start + number : 30] = 255
            Image.fromarray(np.stack([mask] * 3, axis=2)).save(tmp_path / split / "images" / f"{number}.png")
            Image.fromarray(mask).save(tmp_path / split / "masks" / f"{number}.png")
    reader = task_named("segmentation").targets
    data = ImageData(tmp_path, image_size=32, train_size="16,24", batch_size=2, reader=reader, augment="none")
    give(data, [16, 24])
    loader = data.train_dataloader()
    for number, side in ((0, 16), (1, 24)):
        for images, masks in epoch(loader, number):
            assert images.shape[1:3] == masks.shape[1:3] == (side, side)
            shown = masks != 255
            white = images.float().mean(dim=3) > 127
            assert ((white == (masks == 1)) | ~shown).float().mean() > 0.9


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ("16,x", "'x'"),
        (0, "train_size is 0"),
        ("32,80", "decoded at 64 pixels"),
        ("16,0,y", "instead of 0.*instead of 'y'"),
    ],
)
def test_what_cannot_be_is_refused(folder, size, words):
    with pytest.raises(ConfigError, match=words):
        ImageData(folder, image_size=32, train_size=size)


def test_windows_have_one_size(folder):
    reader = task_named("segmentation").targets
    with pytest.raises(ConfigError, match="windows of --tile have one size"):
        ImageData(folder, image_size=32, train_size=[16, 24], tile=True, reader=reader)


def test_pixels_are_those_of_the_largest_size(folder):
    """They are kept once, at the side of evaluation, of which no size is more than the double."""
    data = ImageData(folder, image_size=32, train_size=[16, 60], batch_size=8)
    give(data, [16, 60])
    loader = data.train_dataloader()
    assert torch.is_tensor(epoch(loader, 1)[0][0])
    assert data.data_config.decode_side == 64
