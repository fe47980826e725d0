"""A picture and its mask go through every view by the same draw: pictures whose class is a function of their colour."""

import pickle

import cv2
import numpy as np
import pytest
from PIL import Image

from transferkit.core.errors import DataError
from transferkit.core.records import DataConfig
from transferkit.core.targets import IGNORED
from transferkit.data.augment.transform import AUGMENTATIONS, eval_transform, mirror_transform, train_transform
from transferkit.data.augment.views import Views
from transferkit.data.batches.datamodule import ImageData
from transferkit.data.batches.dataset import ImageDataset, Job, Picture
from transferkit.data.images.decode import decode_image
from transferkit.data.images.resize import fit, frame
from transferkit.data.index.masks import MaskReader
from transferkit.data.masks.annotation import Annotation

COLOURS = np.array([(230, 20, 20), (20, 230, 20), (20, 20, 230)], dtype=np.uint8)
CANVAS = DataConfig(image_size=(96, 128), crop_mode="pad", crop_pct=1.0)


def scene(seed, height=150, width=210, classes=3):
    """Rectangles of three colours, none of them alike to its mirror image: the picture and its mask."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), dtype=np.uint8)
    for _ in range(7):
        top, left = rng.integers(0, height - 20), rng.integers(0, width - 20)
        mask[top : top + rng.integers(20, height), left : left + rng.integers(20, width)] = rng.integers(0, classes)
    return COLOURS[mask], mask


def disagreement(image, mask, margin=5):
    """The share of pixels that count, away from borders of regions, whose colour is not that of their class."""
    window = np.ones((2 * margin + 1,) * 2, dtype=np.uint8)
    inside = (cv2.erode(mask, window) == cv2.dilate(mask, window)) & (mask != IGNORED)
    smooth = cv2.blur(image, (5, 5)) if margin else image
    return float((smooth.argmax(axis=2) != mask)[inside].mean()), float(inside.mean())


def colourless(image):
    return bool((np.ptp(image.astype(int), axis=2) < 40).mean() > 0.5)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_class_of_a_colour_is_the_same_after_every_preset(name):
    transform, counted, grey = train_transform(name, CANVAS), [], 0
    for seed in range(60):
        picture, mask = scene(seed)
        image, carried = transform.carry(picture, Annotation(mask), seed)
        assert image.shape == (96, 128, 3) and carried.mask.shape == (96, 128) and carried.mask.dtype == np.uint8
        assert set(np.unique(carried.mask)) <= {0, 1, 2, IGNORED}
        assert np.array_equal(image, transform(picture, seed))  # the mask does not change what is drawn
        if colourless(image):  # "heavy" makes one in twenty grey
            grey += 1
            continue
        wrong, inside = disagreement(image, carried.mask)
        assert wrong < 0.002, seed
        counted.append(inside)
    assert grey <= 10 and np.mean(counted) > 0.3


@pytest.mark.parametrize("name", ["light", "standard", "heavy"])
def test_other_draws_for_picture_and_mask_are_found(name):  # the guard above can fail
    transform, wrong = train_transform(name, CANVAS), []
    for seed in range(20):
        picture, mask = scene(seed)
        image = transform(picture, seed)
        if not colourless(image):
            wrong.append(disagreement(image, transform.carry(picture, Annotation(mask), seed + 1)[1].mask)[0])
    assert np.median(wrong) > 0.02


@pytest.mark.parametrize("make", [eval_transform, mirror_transform, lambda config: train_transform("light", config)])
def test_crops_flips_and_frames_are_exact(make):
    config = DataConfig(image_size=(96, 128), crop_mode="pad", interpolation="nearest", mean=(0.0, 0.0, 0.0))
    for seed in range(30):
        picture, mask = scene(seed, 31, 45)  # enlarged by the nearest pixel, as masks are: no border is unsharp
        image, carried = make(config).carry(picture, Annotation(mask), seed)
        counts = carried.mask != IGNORED
        assert np.array_equal(image.argmax(axis=2)[counts], carried.mask[counts])
        assert (image[~counts] == 0).all()


def test_padding_and_blots_have_no_class():
    picture, mask = scene(1, 60, 200)
    image, carried = eval_transform(CANVAS).carry(picture, Annotation(mask))
    place = frame((60, 200), CANVAS)
    outside = np.ones((96, 128), dtype=bool)
    outside[place.top : place.top + place.height, place.left : place.left + place.width] = False
    assert outside.mean() > 0.5 and np.array_equal(carried.mask == IGNORED, outside)
    assert (image[outside] == [124, 116, 104]).all()  # the mean of ImageNet, in levels
    heavy = train_transform("heavy", CANVAS)
    blots = [heavy.carry(*(lambda p, m: (p, Annotation(m)))(*scene(seed)), seed)[1].mask == IGNORED
             for seed in range(20)]  # fmt: skip
    assert 4 < sum(bool(one.any()) for one in blots) < 18


def test_pixels_that_were_ignored_stay_ignored():
    picture, mask = scene(3)
    mask[40:90, 60:140] = IGNORED
    _, carried = eval_transform(CANVAS).carry(picture, Annotation(mask))
    place = frame(mask.shape, CANVAS)
    part = carried.mask[place.top : place.top + place.height, place.left : place.left + place.width]
    assert abs((part == IGNORED).mean() - (mask == IGNORED).mean()) < 0.02


def test_a_picture_decoded_at_a_fraction_lies_where_its_mask_does(tmp_path):
    picture, mask = scene(5, 1501, 2203)
    Image.fromarray(picture).save(tmp_path / "p.jpg", quality=95)
    small = decode_image(tmp_path / "p.jpg", min_side=CANVAS.decode_side)
    assert small.shape[0] < 800
    for name in AUGMENTATIONS:
        image, carried = train_transform(name, CANVAS).carry(small, Annotation(mask), 7)
        assert disagreement(image, carried.mask)[0] < 0.002
    whole = eval_transform(CANVAS).carry(small, Annotation(mask))[0]
    assert np.array_equal(whole, fit(small, CANVAS, whole=mask.shape))


def test_one_that_has_no_mask_is_shown_as_ever():
    picture, _ = scene(0)
    image, carried = train_transform("standard", CANVAS).carry(picture, Annotation(), 3)
    assert np.array_equal(image, train_transform("standard", CANVAS)(picture, 3)) and carried.mask is None


@pytest.mark.parametrize("mask", [np.zeros((3, 4), dtype=np.int64), np.zeros((3, 4, 1), dtype=np.uint8), "m.png",
                                  np.zeros((0, 4), dtype=np.uint8)])  # fmt: skip
def test_what_is_no_mask_is_refused(mask):
    with pytest.raises(DataError, match=r"a mask must be an \(H, W\) uint8 array"):
        eval_transform(CANVAS).carry(scene(0)[0], Annotation(mask))


# ---- data sets --------------------------------------------------------------------------------------------------


class Scenes:
    """Answers on pixels that are made when they are asked for."""

    def __init__(self, masks):
        self.masks = masks

    def __len__(self):
        return len(self.masks)

    def read(self, row):
        return Annotation(self.masks[row])


def scenes(count):
    pairs = [scene(seed, 90 + seed, 130) for seed in range(count)]
    pictures = [Picture(str(seed), f"{seed:064x}", picture) for seed, (picture, _) in enumerate(pairs)]
    return pictures, Scenes([mask for _, mask in pairs])


@pytest.mark.parametrize("threads", [1, 3])
def test_a_data_set_gives_a_mask_per_view(threads):
    pictures, masks = scenes(5)
    views = Views(eval_transform(CANVAS), train_transform("standard", CANVAS), count=2, seed=4)
    dataset = pickle.loads(pickle.dumps(ImageDataset(pictures, views, annotations=masks, threads=threads)))
    loaded = dataset.batch([Job(3, (0, 1, 2)), Job(1, (5,))])
    assert loaded.images.shape == (4, 96, 128, 3) and loaded.targets.shape == (4, 96, 128)
    for image, mask in zip(loaded.images.numpy(), loaded.targets.numpy(), strict=True):
        assert disagreement(image, mask)[0] < 0.002
    images, targets = dataset.batch([2]).labelled()
    assert images.shape[0] == targets.shape[0] == 1
    dataset.close()


def test_answers_on_pixels_need_their_own_pictures():
    pictures, masks = scenes(3)
    with pytest.raises(ValueError, match="a picture each"):
        ImageDataset(pictures[:2], Views(eval_transform(CANVAS)), annotations=masks)
    dataset = ImageDataset(pictures, Views(eval_transform(CANVAS)), annotations=masks)
    with pytest.raises(ValueError, match="belong to pictures of the data set"):
        dataset.batch([Job(pictures[0])])
    with pytest.raises(ValueError, match="rows stand for whole pictures"):
        dataset.stand_in(dataset.batch([0]).images)


CASES = [(number, False) for number in range(1, 9)] + [(number, True) for number in range(5, 9)]


@pytest.mark.parametrize(("orientation", "stored"), CASES)
def test_exif_orientation_goes_for_both(tmp_path, orientation, stored):  # fault 166
    """The mask is drawn on the upright picture, or on the stored one where that can be told by its size."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for seed in range(6):
        picture, mask = scene(seed, 80, 130)
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(picture).save(tmp_path / "images" / f"{seed}.png", exif=exif)
        upright = decode_image(tmp_path / "images" / f"{seed}.png").argmax(axis=2).astype(np.uint8)
        assert (upright.shape == mask.shape) == (orientation < 5)
        Image.fromarray(mask if stored else upright).save(tmp_path / "masks" / f"{seed}.png")
    data = ImageData(tmp_path, (96, 128), val_split=0.0, test_split=0.0, reader=MaskReader(), augment="light")
    notes = [note for note in data.index.notes if "unturned" in note]
    assert bool(notes) == stored
    for images, masks in data.train_dataloader():
        for image, mask in zip(images.numpy(), masks.numpy(), strict=True):
            assert disagreement(image, mask)[0] < 0.002
