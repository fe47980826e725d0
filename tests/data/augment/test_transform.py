"""The transforms: sizes, seeds, presets, checked arguments, no network."""

import json
import os
import pickle
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as reference

from transferkit.core.errors import ConfigError, DataError
from transferkit.core.records import DataConfig
from transferkit.data.augment import presets as transforms
from transferkit.data.augment.transform import AUGMENTATIONS, eval_transform, mirror_transform, train_transform
from transferkit.data.images import resize

A = transforms.A
REPOSITORY = Path(transforms.__file__).parents[2]
SMALL = DataConfig(image_size=(32, 32))


def texture(height, width, seed=0):
    """Noise in blocks: every crop, turn and colour shift of it is a different picture."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return np.ascontiguousarray(small.repeat(4, axis=0).repeat(4, axis=1)[:height, :width])


def smooth(height, width):
    """Slow waves, different in each channel, on which good resizers agree."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(4 * x + k) + np.cos(5 * y - 2 * k * x) for k in range(3)]
    return np.round(127.5 + 60 * np.stack(waves, axis=-1)).astype(np.uint8)


def digest(image):
    return sha256(image.tobytes()).hexdigest()


# --- evaluation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (533, 400), (64, 64), (40, 70), (97, 131)])
@pytest.mark.parametrize("target", [(96, 96), (64, 128)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_eval_is_resize_then_centre_crop(shape, target, interpolation):
    """Against Pillow's resize from the exact box, and against resizing and then cropping the centre.

    Ours cuts the box at whole pixels of the picture (within half a pixel a side), the other way cuts at whole pixels
    of the result. Half a pixel across and half a pixel down change a level by at most the steepest step.
    """
    image = smooth(*shape)
    steepest = max(np.abs(np.diff(image.astype(int), axis=axis)).max() for axis in (0, 1))
    picture = Image.fromarray(image)
    result = eval_transform(DataConfig(image_size=target, interpolation=interpolation))(image).astype(int)
    unit = 0.875 * min(shape[0] / target[0], shape[1] / target[1])
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    kernel = filters.get(interpolation, Image.Resampling.LANCZOS) if unit < 1 else Image.Resampling.BOX

    half_height, half_width = unit * target[0] / 2, unit * target[1] / 2
    middle = (shape[1] / 2, shape[0] / 2)
    box = (middle[0] - half_width, middle[1] - half_height, middle[0] + half_width, middle[1] + half_height)
    exact = np.abs(result - np.asarray(picture.resize(target[::-1], kernel, box)))
    assert exact.max() <= 1.5 + steepest

    size = [max(round(side / unit), goal) for side, goal in zip(shape, target, strict=True)]
    two_steps = reference.center_crop(picture.resize(size[::-1], kernel), list(target))
    difference = np.abs(result - np.asarray(two_steps))
    assert difference.max() <= 1.5 + steepest * (1 + unit)


def test_shrinking_averages_areas():
    checker = np.indices((64, 64)).sum(axis=0) % 2 * 255
    image = np.repeat(checker[..., None], 3, axis=2).astype(np.uint8)
    result = eval_transform(DataConfig(image_size=(16, 16), crop_pct=1.0, interpolation="nearest"))(image)
    assert set(np.unique(result)) <= {127, 128}


def test_one_side_shrinks_while_the_other_grows():
    image = np.zeros((400, 4, 3), np.uint8)
    image[::2] = 200  # stripes of one pixel: anything but area averaging shows them
    result = eval_transform(DataConfig(image_size=(20, 20), crop_mode="squash"))(image)
    assert np.abs(result.astype(int) - 100).max() <= 1


def test_squash_keeps_the_border_that_the_centre_crop_loses():
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, :4] = 255
    squashed = eval_transform(DataConfig(image_size=(20, 20), crop_mode="squash"))(image)
    cropped = eval_transform(DataConfig(image_size=(20, 20)))(image)
    assert squashed[:, 0].min() == 255
    assert cropped.max() == 0


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("target", [(32, 32), (16, 48), (8, 200)])
def test_any_picture_size(name, target):  # fault 21
    transform = train_transform(name, DataConfig(image_size=target))
    for shape in [(1, 1), (1, 37), (37, 1), (2, 3), (7, 7), (20000, 8), (3, 40000), (33, 31), (200, 150)]:
        for seed in range(8):
            result = transform(texture(*shape), seed)
            assert (result.shape, result.dtype) == ((*target, 3), np.uint8)
            assert result.flags["C_CONTIGUOUS"]


def test_random_box_stays_inside_and_covers_what_it_promises():
    rng = random.Random(0)
    shares = []
    for _ in range(500):
        left, top, right, bottom = resize.random_box(300, 400, scale=(0.35, 1.0), ratio=(0.75, 4 / 3), rng=rng)
        assert 0 <= left < right <= 400 and 0 <= top < bottom <= 300
        assert 0.74 < (right - left) / (bottom - top) < 1.35
        shares.append((right - left) * (bottom - top) / 120_000)
    assert min(shares) > 0.34 and max(shares) > 0.9


def test_random_box_of_an_extreme_picture_moves():
    rng = random.Random(0)
    boxes = [resize.random_box(9000, 8, scale=(0.5, 1), ratio=(0.75, 4 / 3), rng=rng) for _ in range(20)]
    assert len({box[1] for box in boxes}) > 15
    assert {(right - left, bottom - top) for left, top, right, bottom in boxes} == {(8, 11)}


def test_a_wide_input_is_not_fed_squeezed_crops():
    """A disc stays a disc where the target is twice as wide as high."""
    y, x = np.mgrid[:200, :400]
    image = np.repeat((((y - 100) ** 2 + (x - 200) ** 2 < 50**2) * 255).astype(np.uint8)[..., None], 3, axis=2)
    transform = train_transform("light", DataConfig(image_size=(64, 128)))
    stretch = []
    for seed in range(100):
        disc = transform(image, seed)[..., 0] > 127
        if not (disc[0].any() or disc[-1].any() or disc[:, 0].any() or disc[:, -1].any()):
            stretch.append(disc.any(axis=0).sum() / disc.any(axis=1).sum())
    assert len(stretch) > 30
    assert 0.9 < np.exp(np.mean(np.log(stretch))) < 1.1


# --- seeds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["light", "standard", "heavy"])
def test_augmentations_differ_per_seed(name):
    transform, image = train_transform(name, SMALL), texture(160, 200)
    assert len({digest(transform(image, seed)) for seed in range(200)}) >= 190  # crops of whole pixels come again
    seeds = [0, 1, -1, 2**32, 2**63, -(2**63) + 1, 5, -5]
    assert len({digest(transform(image, seed)) for seed in seeds}) == len(seeds)


@pytest.mark.parametrize("name", ["light", "standard", "heavy"])
def test_only_the_seed_decides(name):
    transform, image = train_transform(name, SMALL), texture(120, 90)
    first = [digest(transform(image, seed)) for seed in range(30)]

    np.random.seed(1)
    random.seed(1)
    torch.manual_seed(1)
    states = (np.random.get_state()[1].tobytes(), random.getstate(), torch.get_rng_state().tolist())
    again = [digest(transform(image, seed)) for seed in reversed(range(30))][::-1]
    assert (np.random.get_state()[1].tobytes(), random.getstate(), torch.get_rng_state().tolist()) == states
    assert again == first

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda seed: digest(transform(image, seed)), list(range(30)) * 4)) == first * 4
    fresh = train_transform(name, SMALL)
    assert [digest(fresh(image, seed)) for seed in range(30)] == first
    copied = pickle.loads(pickle.dumps(transform))
    assert [digest(copied(image, seed)) for seed in range(30)] == first
    assert copied.describe() == transform.describe()


CHILD = """
import hashlib, pickle, socket, sys
sys.modules["torch"] = None  # albumentations imports it where it is found; without it the child starts in half the time
attempts = []
def refuse(*args, **kwargs):
    attempts.append(args[:1])
    raise OSError("blocked")
socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse
from transferkit.data.augment import presets as transforms
transform, image = pickle.load(open(sys.argv[1], "rb"))
print(len(attempts), *(hashlib.sha256(transform(image, seed).tobytes()).hexdigest() for seed in range(10)))
"""


def in_another_process(tmp_path, transform, image, **environment):
    (tmp_path / "job.pkl").write_bytes(pickle.dumps((transform, image)))
    inherited = {key: value for key, value in os.environ.items() if key != "NO_ALBUMENTATIONS_UPDATE"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "job.pkl")],
        env=inherited | environment,
        cwd=REPOSITORY,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    attempts, *digests = done.stdout.split()
    return int(attempts), digests


def test_same_bytes_in_another_process_and_no_network_on_import(tmp_path):  # fault 91
    transform, image = train_transform("heavy", SMALL), texture(120, 90)
    attempts, digests = in_another_process(tmp_path, transform, image, PYTHONHASHSEED="7")
    assert attempts == 0
    assert digests == [digest(transform(image, seed)) for seed in range(10)]


def test_the_network_guard_can_fail(tmp_path):
    attempts, _ = in_another_process(tmp_path, eval_transform(SMALL), texture(9, 9), NO_ALBUMENTATIONS_UPDATE="0")
    assert attempts > 0


# --- presets ---------------------------------------------------------------------------------------------------------


def test_flips_happen_half_the_time():
    ramp = np.repeat(np.linspace(0, 255, 80).astype(np.uint8)[None, :, None], 60, axis=0).repeat(3, axis=2)
    transform = train_transform("light", DataConfig(image_size=(16, 16)))
    flips = sum(bool(np.diff(transform(ramp, seed)[8, [0, -1], 0].astype(int))[0] < 0) for seed in range(600))
    assert 250 < flips < 350  # four standard deviations around 300


@pytest.mark.parametrize("name", ["light", "standard", "heavy"])
def test_every_preset_changes_the_picture_and_leaves_the_input(name):
    image = texture(120, 90)
    before = image.copy()
    plain = eval_transform(SMALL)(image)
    assert (train_transform("none", SMALL)(image, 3) == plain).all()  # in which nothing is random
    transform = train_transform(name, SMALL)
    assert all((transform(image, seed) != plain).any() for seed in range(10))
    assert (image == before).all()


def test_an_output_never_shares_memory_with_the_input():
    image, config = texture(32, 32), DataConfig(image_size=(32, 32), crop_pct=1.0)
    assert (eval_transform(config)(image) == image).all()
    for name in AUGMENTATIONS:
        assert not any(np.shares_memory(train_transform(name, config)(image, seed), image) for seed in range(20))


def bends(name):
    """Seeds (of 80) for which a straight edge comes out bent by more than a pixel, and seeds it can be seen in."""
    image = np.zeros((128, 128, 3), np.uint8)
    image[:, 64:] = 255
    transform = train_transform(name, DataConfig(image_size=(96, 96)))
    bent, visible = 0, 0
    for seed in range(80):
        grey = transform(image, seed)[8:-8].astype(float).mean(axis=2)
        low, high = grey.min(axis=1, keepdims=True), grey.max(axis=1, keepdims=True)
        if (high - low).min() < 40:
            continue
        bright = (grey - low) / (high - low)
        edge = bright.sum(axis=1)  # sub-pixel place of the edge in each row, from one side
        rows = np.arange(edge.size)
        visible += 1
        bent += np.abs(edge - np.polyval(np.polyfit(rows, edge, 1), rows)).max() > 1
    return bent, visible


def without(monkeypatch, *names):
    for name in names:
        monkeypatch.setattr(A, name, lambda *args, **kwargs: A.NoOp())


def test_heavy_bends_straight_edges_and_standard_does_not(monkeypatch):
    bent, visible = bends("standard")
    assert visible > 60 and bent == 0
    without(monkeypatch, "CoarseDropout", "GaussNoise")
    bent, visible = bends("heavy")
    assert visible > 40 and 0.1 < bent / visible < 0.45
    without(monkeypatch, "ElasticTransform")
    assert bends("heavy")[0] == 0


def test_heavy_drops_boxes_and_standard_does_not(monkeypatch):
    flat = np.full((64, 64, 3), (90, 120, 60), np.uint8)

    def patched(name):
        transform = train_transform(name, SMALL)
        return sum(len(np.unique(transform(flat, seed).reshape(-1, 3), axis=0)) > 1 for seed in range(200))

    assert patched("standard") == 0
    without(monkeypatch, "GaussNoise")
    assert 65 < patched("heavy") < 135  # p = 0.5, five standard deviations
    without(monkeypatch, "CoarseDropout")
    assert patched("heavy") == 0


def test_standard_shifts_colours_and_light_does_not():
    flat = np.full((64, 64, 3), (90, 120, 60), np.uint8)
    colours = {name: set() for name in ("light", "standard")}
    for name, colours_of in colours.items():
        transform = train_transform(name, SMALL)
        colours_of.update(tuple(transform(flat, seed)[16, 16].tolist()) for seed in range(100))
    assert colours["light"] == {(90, 120, 60)}
    assert len(colours["standard"]) > 50


def test_describe_is_json_and_tells_presets_and_settings_apart():
    configs = [DataConfig(image_size=(32, 32)), DataConfig(image_size=(48, 48))]
    texts = {json.dumps(train_transform(name, config).describe()) for name in AUGMENTATIONS for config in configs}
    assert len(texts) == 2 * len(AUGMENTATIONS)


def test_steps_are_described_by_the_names_that_stores_hold():
    """They are part of the key of augmented features: a renamed step has all of them computed anew."""
    names = {name: [step.split("(")[0] for step in train_transform(name, SMALL).describe()["steps"]]
             for name in AUGMENTATIONS}  # fmt: skip
    light = ["RandomBox", "HorizontalFlip"]
    standard = [*light, "OneOf", "ColorJitter"]
    heavy = [*standard[:3], "ElasticTransform", "ColorJitter", "ToGray", "OneOf", "CoarseDropout"]
    assert names == {"none": [], "light": light, "standard": standard, "heavy": heavy}
    assert [step.split("(")[0] for step in mirror_transform(SMALL).describe()["steps"]] == ["Fit", "HorizontalFlip"]


def test_an_unknown_preset_is_refused():
    with pytest.raises(ConfigError, match=r"unknown augmentation 'standart'\. Did you mean 'standard'\?.*none, light"):
        train_transform("standart", SMALL)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_size": (0, 32)}, r"image_size is \(0, 32\)"),
        ({"crop_pct": 0.0}, r"crop_pct is 0\.0"),
        ({"crop_pct": 1.5}, r"crop_pct is 1\.5"),
        ({"crop_pct": float("nan")}, r"crop_pct is nan"),
        ({"interpolation": "bicubik"}, r"unknown interpolation 'bicubik'\. Did you mean 'bicubic'\?"),
        ({"crop_mode": "centre"}, r"unknown crop_mode 'centre'\. Did you mean 'center'\?"),
        ({"crop_pct": 0.0, "crop_mode": "x"}, r"\(1\) crop_pct.*\(2\) unknown crop_mode"),
    ],
)
@pytest.mark.parametrize("build", [eval_transform, lambda config: train_transform("light", config)])
def test_a_wrong_configuration_is_refused(values, message, build):
    with pytest.raises(ConfigError, match=message):
        build(DataConfig(**values))


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (np.zeros((8, 8), np.uint8), r"\(8, 8\) uint8"),
        (np.zeros((8, 8, 4), np.uint8), r"\(8, 8, 4\) uint8"),
        (np.zeros((8, 8, 3), np.float32), r"float32"),
        (np.zeros((0, 8, 3), np.uint8), r"\(0, 8, 3\)"),
        (Image.new("RGB", (8, 8)), r"Image"),
    ],
)
def test_what_is_no_picture_is_refused(image, kind):
    with pytest.raises(DataError, match=kind):
        eval_transform(SMALL)(image)


@pytest.mark.parametrize("name", ["light", "standard", "heavy"])
def test_without_flips_nothing_is_mirrored(name):  # fault 105
    half = np.zeros((64, 64, 3), dtype=np.uint8)
    half[:, 32:] = 255  # dark on the left
    sides = {}
    for flip in (True, False):
        transform = train_transform(name, DataConfig(image_size=(32, 32)), flip=flip)
        shown = [transform(half, seed).astype(float) for seed in range(40)]
        sides[flip] = sum(image[:, :8].mean() > image[:, -8:].mean() + 30 for image in shown)
    assert sides[True] > 5
    assert sides[False] == 0
    assert train_transform(name, SMALL).describe() != train_transform(name, SMALL, flip=False).describe()
