"""Augmentation on the device shows what the CPU shows: the same draws, and pixels within stated bounds."""

import dataclasses
import pickle

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image

from transferkit.core.errors import ConfigError, DataError
from transferkit.core.records import DataConfig
from transferkit.data.augment import device
from transferkit.data.augment.device import shown
from transferkit.data.augment.draws import AUGMENTATIONS, DRAWABLE
from transferkit.data.augment.packed import pack
from transferkit.data.augment.place import choose_place
from transferkit.data.augment.presets import RandomBox
from transferkit.data.augment.transform import Transform, train_transform

ROUNDED = (0.02, 1.0)
"""Mean and 99th percentile of the absolute difference, in levels, where only roundings of averages differ."""
RESAMPLED = (0.3, 2.0)
"""Likewise where a side grows, colours go by way of hues of 8 bits, or a picture is turned: OpenCV before 5 turns it by
places in 1/32 pixel."""


@pytest.fixture(scope="module")
def photographs():
    """Crops of two photographs, of many shapes and brightnesses."""
    china, flower = (load_sample_image(name) for name in ("china.jpg", "flower.jpg"))
    parts = [china[:, :400], china[40:400, 100:], flower, flower[20:300, 90:330], china[200:, 300:], flower[:, 200:450]]
    return [np.ascontiguousarray(part) for part in parts]


def on_cpu(transform, pictures, seed):
    return np.stack([transform(picture, seed + number) for number, picture in enumerate(pictures)]).astype(float)


def on_device(transform, pictures, seed, change=lambda draw: draw, where="cpu"):
    pieces = [transform.draw(picture, seed + number) for number, picture in enumerate(pictures)]
    batch = pack([piece._replace(draw=change(piece.draw)) for piece in pieces])
    return shown(batch.to(where)).permute(0, 2, 3, 1).cpu().double().numpy()


def apart(ours, theirs):
    """Mean and 99th percentile of the absolute difference of all pixels."""
    difference = np.abs(ours - theirs)
    return difference.mean(), np.quantile(difference, 0.99)


def within(measured, bound):
    return measured[0] <= bound[0] and measured[1] <= bound[1]


def bound_of(name):
    return ROUNDED if name == "light" else RESAMPLED


@pytest.mark.parametrize("name", DRAWABLE)
@pytest.mark.parametrize(("target", "interpolation"), [
    ((160, 160), "bilinear"), ((64, 96), "bicubic"), ((96, 40), "nearest"),
    ((448, 448), "bicubic"),  # sides that grow, and sides that shrink
])  # fmt: skip
def test_the_device_shows_what_the_cpu_shows(photographs, name, target, interpolation):
    transform = train_transform(name, DataConfig(image_size=target, interpolation=interpolation))
    for seed in range(0, 48, 6):
        ours, theirs = on_device(transform, photographs, seed), on_cpu(transform, photographs, seed)
        bound = RESAMPLED if target[0] == 448 else bound_of(name)
        assert within(apart(ours, theirs), bound)
        assert max(apart(one, other)[0] for one, other in zip(ours, theirs, strict=True)) <= 2 * bound[0]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_pictures_that_grow(photographs, interpolation):
    small = [cv2.resize(picture, (40, 30), interpolation=cv2.INTER_AREA) for picture in photographs]
    transform = train_transform("light", DataConfig(image_size=(112, 112), interpolation=interpolation))
    for seed in range(0, 30, 6):
        assert within(apart(on_device(transform, small, seed), on_cpu(transform, small, seed)), RESAMPLED)


MIRRORED = {"border_mode": cv2.BORDER_REFLECT_101}
ALONE = {
    "crop": ([], ROUNDED),
    "flip": ([A.HorizontalFlip(p=1.0)], ROUNDED),
    "affine": ([A.Affine(rotate=(-12, 12), shear=(-8, 8), **MIRRORED, p=1.0)], RESAMPLED),
    "perspective": ([A.Perspective((0.02, 0.06), **MIRRORED, p=1.0)], RESAMPLED),
    "brightness": ([A.ColorJitter(0.25, 0, 0, 0, p=1.0)], ROUNDED),
    "contrast": ([A.ColorJitter(0, 0.25, 0, 0, p=1.0)], ROUNDED),
    "saturation": ([A.ColorJitter(0, 0, 0.25, 0, p=1.0)], ROUNDED),
    "hue": ([A.ColorJitter(0, 0, 0, 0.1, p=1.0)], (0.15, 2.0)),
}


def alone(name):
    """A crop, and one step besides that always applies."""
    config = DataConfig(image_size=(128, 128))
    steps, bound = ALONE[name]
    return Transform("standard", [RandomBox((128, 128), (0.4, 1.0), (0.75, 1.33)), *steps], config), bound


@pytest.mark.parametrize("name", ALONE)
def test_each_step_alone(photographs, name):
    transform, bound = alone(name)
    for seed in range(0, 36, 6):
        assert within(apart(on_device(transform, photographs, seed), on_cpu(transform, photographs, seed)), bound)


def shifted(draw, by=0.5):
    return dataclasses.replace(draw, matrix=draw.matrix @ np.array([[1, 0, by], [0, 1, 0], [0, 0, 1.0]]))


def factor(which, by):
    def change(draw):
        factors = list(draw.factors)
        factors[which] += by
        return dataclasses.replace(draw, factors=tuple(factors))

    return change


WRONG = {
    "flip": ("light", lambda draw: dataclasses.replace(draw, flip=not draw.flip)),
    "a crop one pixel away": ("light", None),
    "half a pixel": ("light", shifted),
    "half a pixel of a turned one": ("affine", shifted),
    "turned the other way": ("affine", lambda draw: dataclasses.replace(draw, matrix=np.linalg.inv(draw.matrix))),
    "brightness": ("brightness", factor(0, 0.02)),
    "contrast": ("contrast", factor(1, 0.02)),
    "saturation": ("saturation", factor(2, 0.04)),
    "hue": ("hue", factor(3, 1)),
    "another order": ("standard", lambda draw: dataclasses.replace(draw, order=draw.order[::-1])),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_bounds_notice_another_draw(photographs, name):
    """What must not pass for a rounding."""
    kind, change = WRONG[name]
    transform, bound = (train_transform(kind, DataConfig(image_size=(128, 128))), bound_of(kind)) if kind in DRAWABLE \
        else alone(kind)  # fmt: skip
    broken = 0
    for seed in range(0, 36, 6):
        pictures = photographs if change is not None else [np.roll(picture, 1, axis=1) for picture in photographs]
        ours = on_device(transform, pictures, seed, change or (lambda draw: draw))
        broken += not within(apart(ours, on_cpu(transform, photographs, seed)), bound)
    assert broken == 6


@pytest.mark.parametrize("name", DRAWABLE)
@pytest.mark.parametrize("target", [(32, 32), (16, 48), (1, 7)])
def test_any_picture_size(name, target):  # fault 21
    transform = train_transform(name, DataConfig(image_size=target))
    generator = np.random.default_rng(0)
    shapes = [(1, 1), (1, 37), (37, 1), (2, 3), (7, 7), (2000, 8), (3, 4000), (33, 31), (200, 150)]
    pictures = [generator.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    for seed in range(0, 90, 9):
        ours, theirs = on_device(transform, pictures, seed), on_cpu(transform, pictures, seed)
        assert ours.shape == theirs.shape and (ours == ours.round()).all() and ours.min() >= 0 and ours.max() <= 255
        if name == "light" and min(target) > 1:
            assert apart(ours, theirs)[0] < 0.3


def test_a_crop_far_larger_than_the_target_is_resized_before(photographs):
    transform = train_transform("light", DataConfig(image_size=(48, 48)))
    piece = transform.draw(photographs[2], 3)
    assert piece.pixels.shape == (48, 48, 3)
    assert within(apart(on_device(transform, photographs, 3), on_cpu(transform, photographs, 3)), ROUNDED)


def test_a_picture_does_not_depend_on_its_neighbours(photographs):
    transform = train_transform("standard", DataConfig(image_size=(96, 96)))
    pieces = [transform.draw(picture, number) for number, picture in enumerate(photographs)]
    together = shown(pack(pieces))
    for number, piece in enumerate(pieces):
        assert (shown(pack([piece]))[0] - together[number]).abs().mean() < 1e-3


def test_large_batches_go_in_parts(photographs, monkeypatch):
    transform = train_transform("standard", DataConfig(image_size=(96, 96)))
    whole = on_device(transform, photographs, 5)
    monkeypatch.setattr(device, "MOST", 3 * 640 * 427 * 2)
    assert np.abs(on_device(transform, photographs, 5) - whole).mean() < 1e-3


def test_drawing_and_showing_do_not_disturb_each_other(photographs):
    transform = train_transform("standard", DataConfig(image_size=(64, 64)))
    before = [transform(photographs[0], seed) for seed in range(4)]
    mixed = []
    for seed in range(4):
        transform.draw(photographs[1], seed + 7)
        mixed.append(transform(photographs[0], seed))
    assert all(np.array_equal(one, other) for one, other in zip(before, mixed, strict=True))


def test_packed_pictures_travel_to_other_processes(photographs):
    transform = train_transform("standard", DataConfig(image_size=(64, 64)))
    batch = pack([transform.draw(picture, number) for number, picture in enumerate(photographs)])
    assert len(batch) == len(photographs)
    assert shown(pickle.loads(pickle.dumps(batch))).equal(shown(batch))


def test_nothing_is_left_in_half_precision_by_autocast(photographs):
    transform = train_transform("standard", DataConfig(image_size=(64, 64)))
    batch = pack([transform.draw(picture, 9) for picture in photographs])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert shown(batch).equal(shown(batch.to("cpu")))
        assert shown(batch).dtype == torch.float32
    assert not shown(batch).requires_grad


def test_a_picture_that_is_none_is_refused():
    with pytest.raises(DataError, match="a picture must be"):
        train_transform("light", DataConfig()).draw(np.zeros((4, 4), np.uint8), 0)


def prepared(windows):
    return DataConfig().in_windows() if windows else DataConfig()


@pytest.mark.parametrize(("where", "name", "on", "answers", "windows", "expected"), [
    ("auto", "light", "cuda", False, False, True),
    ("auto", "standard", "cuda", False, False, True),
    ("auto", "heavy", "cuda", False, False, False),
    ("auto", "light", "cuda", True, False, False),
    ("auto", "light", "cuda", False, True, False),
    ("auto", "light", "cpu", False, False, False),
    ("auto", "light", "mps", False, False, False),
    ("cpu", "light", "cuda", False, False, False),
    ("device", "light", "cpu", False, False, True),
    ("device", "none", "cuda", True, True, False),
])  # fmt: skip
def test_where_augmentation_runs(where, name, on, answers, windows, expected):
    place = choose_place(where, name, on, prepared(windows), answers=answers)
    assert place.on_device is expected and place.reason


@pytest.mark.parametrize(("name", "answers", "windows", "words"), [
    ("heavy", False, False, "'heavy' has steps that only albumentations has; the device does light and standard"),
    ("light", True, False, "masks and boxes are carried along by albumentations"),
    ("light", False, True, "windows are cut by albumentations"),
])  # fmt: skip
def test_what_the_device_cannot_do(name, answers, windows, words):
    with pytest.raises(ConfigError, match=f"^--augment-on device: {words} - pass --augment-on cpu or auto$"):
        choose_place("device", name, "cuda", prepared(windows), answers=answers)


def test_presets_that_can_be_drawn():
    config = DataConfig(image_size=(32, 32))
    drawable = [name for name in AUGMENTATIONS if train_transform(name, config).drawable]
    assert tuple(drawable) == DRAWABLE
    assert not train_transform("light", config.in_windows()).drawable


@pytest.mark.gpu
@pytest.mark.parametrize("name", DRAWABLE)
def test_a_gpu_shows_what_the_cpu_shows(photographs, name):
    transform = train_transform(name, DataConfig(image_size=(160, 160)))
    bound = (0.15, 1.0) if name == "light" else (0.5, 2.0)  # half precision rounds a few averages the other way
    for seed in range(0, 48, 6):
        ours = on_device(transform, photographs, seed, where="cuda")
        assert within(apart(ours, on_cpu(transform, photographs, seed)), bound)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_a_gpu_is_not_waited_for(photographs):
    transform = train_transform("standard", DataConfig(image_size=(160, 160)))
    pieces = [transform.draw(picture, number) for number, picture in enumerate(photographs)]
    shown(pack(pieces).to("cuda"))
    batch = pack(pieces).pin_memory()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        shown(batch.to("cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
