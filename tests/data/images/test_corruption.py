"""Spoilt pictures beside scipy's blur, sums over random numbers, Pillow's own files and turned coordinates."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from transferkit.data.images.corruption import CORRUPTIONS, STRENGTHS, corrupt


@pytest.fixture
def image():
    rows, columns = np.mgrid[0:60, 0:80]
    waves = [128 + 100 * np.sin(rows / 7 + columns / 11 + phase) for phase in (0, 2, 4)]
    grain = np.random.default_rng(0).normal(0, 10, (60, 80, 3))
    return np.clip(np.stack(waves, axis=2) + grain, 0, 255).round().astype(np.uint8)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_shapes_stay_and_each_strength_is_further_away(image, kind):
    before = image.copy()
    made = [corrupt(image, kind, strength, 5) for strength in STRENGTHS]
    for one, strength in zip(made, STRENGTHS, strict=True):
        assert one.shape == image.shape
        assert one.dtype == np.uint8
        assert np.array_equal(one, corrupt(image, kind, strength, 5))
    away = [np.abs(one.astype(int) - image).mean() for one in made]
    assert 0 < away[0] < away[1] < away[2]
    assert np.array_equal(image, before)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_noise_has_its_deviation_and_other_seeds_other_noise(strength):
    grey = np.full((200, 200, 3), 128, dtype=np.uint8)
    noisy = corrupt(grey, "noise", strength, 0)
    draws = np.random.default_rng(1).normal(128, 255 * CORRUPTIONS["noise"][strength - 1], 400_000)
    assert noisy.std() == pytest.approx(np.clip(draws, 0, 255).std(), rel=0.02)
    assert not np.array_equal(noisy, corrupt(grey, "noise", strength, 1))


@pytest.mark.parametrize("strength", STRENGTHS)
def test_blur_is_gaussian(image, strength):
    deviation = CORRUPTIONS["blur"][strength - 1] * 60
    expected = gaussian_filter(image.astype(float), (deviation, deviation, 0), mode="nearest")
    assert np.abs(corrupt(image, "blur", strength, 0) - expected).mean() < 2.0


def test_jpeg_is_pillows(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=15)
    assert np.array_equal(corrupt(image, "jpeg", 2, 0), np.asarray(Image.open(file)))


def test_light_and_contrast_are_factors(image):
    assert np.abs(corrupt(image, "dark", 2, 0) - 0.5 * image).max() <= 1
    assert np.abs(corrupt(image, "bright", 1, 0) - np.minimum(1.4 * image, 255)).max() <= 1
    flat = corrupt(image, "contrast", 2, 0)
    assert flat.std() == pytest.approx(0.2 * image.std(), rel=0.05)
    assert flat.mean() == pytest.approx(image.mean(), abs=2)


def test_pictures_are_turned_about_their_middle_either_way(image):
    sides = {corrupt(image, "rotation", 1, seed).tobytes() for seed in range(12)}
    assert len(sides) == 2
    dot = np.zeros((61, 61, 3), dtype=np.uint8)
    dot[29:32, 48:51] = 255  # 19 pixels to the right of the middle
    turned = corrupt(dot, "rotation", 3, 0)
    row, column = np.argwhere(turned[..., 0] > 100).mean(axis=0)
    assert abs(row - 30) == pytest.approx(19 * np.sin(np.deg2rad(40)), abs=1)
    assert column - 30 == pytest.approx(19 * np.cos(np.deg2rad(40)), abs=1)
    assert np.array_equal(np.unique(corrupt(np.full((20, 30, 3), 9, np.uint8), "rotation", 3, 0)), [9])  # no corners
