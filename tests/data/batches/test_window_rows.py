"""Windows as rows of a data set: each pixel of a split once, masks that go along, files that are decoded once."""

import pickle

import cv2
import numpy as np
import pytest
from PIL import Image

from transferkit.core.errors import ConfigError
from transferkit.core.records import DataConfig
from transferkit.core.targets import IGNORED
from transferkit.data.augment.transform import AUGMENTATIONS, train_transform
from transferkit.data.augment.views import PART, REPEAT, Views
from transferkit.data.batches import dataset as module
from transferkit.data.batches.datamodule import ImageData
from transferkit.data.images.windows import window_at
from transferkit.data.index.index import CLASSES
from transferkit.data.index.masks import MaskReader
from transferkit.data.index.numbers import NumberReader
from transferkit.data.masks.annotation import Annotation

SIZES = [(50, 70), (20, 90), (33, 31), (64, 64), (10, 12)]


def scene(seed, size):
    """A picture of noise, and a mask that is a function of its pixels: which of red and green is the larger."""
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    image = image.repeat(4, axis=0).repeat(4, axis=1)[: size[0], : size[1]]
    image[..., 1] = np.where(image[..., 0] > 127, 20, 235)
    return image, (image[..., 0] < image[..., 1]).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    for split, count in (("train", 5), ("val", 5)):
        for name in ("images", "masks"):
            (root / split / name).mkdir(parents=True)
        for at in range(count):
            image, mask = scene(at + 10 * (split == "val"), SIZES[at])
            Image.fromarray(image).save(root / split / "images" / f"{at}.png")
            Image.fromarray(mask).save(root / split / "masks" / f"{at}.png")
    return root


def data_of(folder, **options):
    return ImageData(folder, 32, tile=True, reader=MaskReader(), batch_size=4, **options)


def test_rows_of_evaluation_hold_each_pixel_once(folder):
    data = data_of(folder)
    assert data.data_config.crop_mode == "tile" and data.data_config.decode_side is None
    counts = np.zeros(2, dtype=np.int64)
    for images, targets in data.evaluation_loader("val"):
        counts += np.bincount(targets.numpy().ravel(), minlength=256)[:2]
        inside = (targets != IGNORED).numpy()
        right = (images[..., 0] < images[..., 1]).numpy() == targets.numpy()
        assert right[inside].all()
    expected = sum(np.bincount(scene(at + 10, size)[1].ravel(), minlength=2) for at, size in enumerate(SIZES))
    assert np.array_equal(counts, expected)
    assert data.rows("val") == len(data.dataset("val")) == 2 * 3 + 4 + 2 * 1 + 3 * 3 + 1
    assert [data.windows("val").place(row) for row in (0, 6, 9, 10, 21)] == [(0, 0), (1, 0), (1, 3), (2, 0), (4, 0)]


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_mask_is_a_function_of_the_pixels_after_every_preset(name):
    """Away from edges, where pixels are mixed."""
    config = DataConfig(image_size=(48, 64), crop_mode="tile", crop_pct=1.0, mean=(0.5, 0.5, 0.5))
    transform, counted = train_transform(name, config), []
    for seed in range(60):
        image = np.zeros((90, 120, 3), dtype=np.uint8)
        mask = np.zeros((90, 120), dtype=np.uint8)
        rng = np.random.default_rng(seed)
        for _ in range(5):
            top, left = rng.integers(0, 70), rng.integers(0, 90)
            mask[top : top + 40, left : left + 50] ^= 1
        image[..., 0], image[..., 1] = np.where(mask, 230, 15), np.where(mask, 15, 230)
        if seed % 3 == 0:
            image, mask = image[:30, :50], mask[:30, :50]  # smaller than the window
        shown, carried = transform.carry(image, Annotation(mask), seed)
        assert np.array_equal(shown, transform(image, seed))
        assert shown.shape == (48, 64, 3) and carried.mask.shape == (48, 64)
        if (np.ptp(shown.astype(int), axis=2) < 40).mean() > 0.5:
            continue  # "heavy" makes one in twenty grey; or the picture is smaller, and little of the window
        around = np.ones((11, 11), dtype=np.uint8)
        same = cv2.erode(carried.mask, around) == cv2.dilate(carried.mask, around)
        inside = same & (carried.mask != IGNORED)
        smooth = cv2.blur(shown, (5, 5))
        assert ((smooth[..., 0] > smooth[..., 1]) != carried.mask)[inside].mean() < 0.002, seed
        counted.append(inside.mean())
    assert np.mean(counted) > 0.15


def test_windows_of_training_differ_by_picture_window_and_epoch(folder):
    views = Views(*(train_transform(name, DataConfig(image_size=(32, 32), crop_mode="tile")) for name in
                    ("none", "light")), seed=3, plain=frozenset())  # fmt: skip
    seeds = {views.seed_of(sha256, epoch + REPEAT * again + PART * part) for sha256 in ("a", "b")
             for epoch in range(4) for again in range(3) for part in range(5)}  # fmt: skip
    assert len(seeds) == 2 * 4 * 3 * 5
    plain = Views(views.evaluation)
    assert [plain.seed_of("a", PART * part) for part in range(3)] == [0, 1, 2]  # rows of a store
    data = data_of(folder, augment="light")
    loader = data.train_loader(0, 1)
    epochs = []
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        epochs.append(np.concatenate([images.numpy() for images, _ in loader]))
        assert len(epochs[-1]) == data.rows("train") == 22
    assert len({image.tobytes() for image in np.concatenate(epochs)}) > 40


def test_epochs_as_evaluated_show_the_windows_of_evaluation(folder):
    data = data_of(folder, augment="standard")
    data.show_as_evaluated([1])
    loader = data.train_loader(0, 1)
    loader.sampler.set_epoch(1)
    shown = np.concatenate([targets.numpy() for _, targets in loader])
    expected = sum(np.bincount(scene(at, size)[1].ravel(), minlength=2) for at, size in enumerate(SIZES))
    assert np.array_equal(np.bincount(shown.ravel(), minlength=256)[:2], expected)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_file_is_decoded_once_for_the_windows_that_follow_each_other(folder, monkeypatch, threads):
    read = []
    real = module.decode_with_info
    monkeypatch.setattr(module, "decode_with_info", lambda *args, **options: read.append(options["name"])
                        or real(*args, **options))  # fmt: skip
    data = data_of(folder, keep_bytes=0, pixel_store="off")
    dataset = data.dataset("val")
    dataset.threads = threads
    listed = list(range(len(dataset)))
    batches = [dataset.batch(listed[start : start + 4]) for start in range(0, len(listed), 4)]
    dataset.close()
    assert len(read) == len(set(read)) == 5
    again = pickle.loads(pickle.dumps(dataset))
    one_by_one = [again.batch([row]) for row in listed]
    assert np.array_equal(np.concatenate([one.images for one in batches]), np.concatenate([one.images for one in
                                                                                           one_by_one]))  # fmt: skip
    assert [name for one in batches for name in one.names] == [name for one in one_by_one for name in one.names]


def test_windows_of_a_picture_are_dealt_out_to_processes(folder):
    data = data_of(folder)
    whole = [mask for _, targets in data.evaluation_loader("val") for mask in targets.numpy()]
    parts = []
    for rank in range(2):
        data._place = lambda rank=rank: (rank, 2)
        parts += [mask for _, targets in data.val_dataloader() for mask in targets.numpy()]
    assert sorted(mask.tobytes() for mask in parts) == sorted(mask.tobytes() for mask in whole)


def test_balanced_draws_go_by_pictures(folder):
    loader = data_of(folder, sampler="balanced").train_loader(0, 1)
    assert sum(len(images) for images, _ in loader) == 22


@pytest.mark.parametrize("reader", [CLASSES, NumberReader()])
def test_other_answers_have_no_windows(folder, reader):
    with pytest.raises(ConfigError, match="tile cuts pictures into windows"):
        ImageData(folder, 32, tile=True, reader=reader)


def test_places_are_in_the_picture(folder):
    data = data_of(folder)
    rows = data.windows("train")
    with pytest.raises(IndexError):
        rows.place(len(rows))
    picture, part = rows.place(len(rows) - 1)
    assert window_at(SIZES[picture], data.data_config, part).core.height == 10
