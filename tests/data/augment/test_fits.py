"""Training views of rectangles, of whole pictures and of other channels than three."""

import dataclasses

import numpy as np
import pytest

from transferkit.core.records import DataConfig
from transferkit.data.augment.device import shown
from transferkit.data.augment.draws import AUGMENTATIONS
from transferkit.data.augment.packed import pack
from transferkit.data.augment.transform import eval_transform, train_transform
from transferkit.data.images.resize import frame, mean_colour

CONFIG = DataConfig(image_size=(48, 80))


def wide(seed=0, height=60, width=240, channels=3):
    """A picture that is dark at its left end, bright at its right one."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(20, 230, width)[None, :, None] + rng.normal(0, 3, (height, width, channels))
    return ramp.clip(0, 255).astype(np.uint8)


def of(mode, size=(48, 80)):
    return dataclasses.replace(CONFIG, crop_mode=mode, image_size=size)


def test_padded_training_views_lie_on_their_frame():
    config = of("pad")
    view = train_transform("light", config, flip=False, whole=True)
    ground = np.array(mean_colour(config))
    for seed in range(10):
        image = view(wide(), seed)
        beside = (image == ground).all(axis=2).all(axis=1)
        rows = np.flatnonzero(~beside)
        assert image.shape == (48, 80, 3)
        # A crop is no more than a third longer or flatter than the picture: it has about a quarter of the canvas.
        usual = frame((60, 240), config).height
        assert 0.7 * usual <= len(rows) <= 1.45 * usual
        assert abs(rows[0] - (47 - rows[-1])) <= 1
        columns = image[rows].mean(axis=(0, 2))
        assert columns[-3:].mean() - columns[:3].mean() > 120  # of its 210 levels: hardly anything of an end is cut off


def test_squashed_training_views_have_both_ends():
    view = train_transform("light", of("squash"), flip=False, whole=True)
    usual = train_transform("light", of("squash"), flip=False)
    spans, cropped = [], []
    for seed in range(20):
        for transform, into in ((view, spans), (usual, cropped)):
            columns = transform(wide(), seed).mean(axis=(0, 2))
            into.append(columns[-1] - columns[0])
    assert min(spans) > 150 > max(cropped)


def test_the_usual_steps_are_as_they_were():
    assert "RandomBox" in train_transform("light", of("squash")).describe()["steps"][0]
    assert "RandomPart" in train_transform("light", of("squash"), whole=True).describe()["steps"][0]
    keys = {str(train_transform("light", of(mode), whole=True).describe()) for mode in ("center", "squash", "pad")}
    assert len(keys) == 3


@pytest.mark.parametrize("mode", ["center", "squash", "pad"])
@pytest.mark.parametrize("size", [(48, 80), (80, 48), (64, 64), (300, 500)])
@pytest.mark.parametrize("name", ["light", "standard"])
def test_the_device_shows_the_same(name, size, mode):
    view = train_transform(name, of(mode, size), whole=mode != "center")
    pictures = [wide(1), wide(2, 200, 90), wide(3, 120, 130)]
    ours = np.stack([view(picture, seed) for seed, picture in enumerate(pictures)]).astype(float)
    pieces = [view.draw(picture, seed) for seed, picture in enumerate(pictures)]
    theirs = shown(pack(pieces)).permute(0, 2, 3, 1).numpy()
    difference = np.abs(ours - theirs)
    assert difference.mean() < (0.2 if name == "light" else 0.5)  # OpenCV enlarges in whole numbers
    assert np.quantile(difference, 0.98) <= (1 if name == "light" else 3)


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_preset_takes_any_number_of_channels(name, channels):
    config = CONFIG.of_channels(channels)
    view = train_transform(name, config)
    image = wide(channels=channels)
    first = [view(image, seed) for seed in range(12)]
    assert all(one.shape == (48, 80, channels) and one.dtype == np.uint8 for one in first)
    assert all(np.array_equal(one, train_transform(name, config)(image, seed)) for seed, one in enumerate(first))
    assert (len({one.tobytes() for one in first}) == 1) is (name == "none")
    assert np.array_equal(eval_transform(config)(image), train_transform("none", config)(image))
