"""Windows of pictures: every pixel is decided once, from far enough inside, whatever the size."""

import random

import numpy as np
import pytest

from transferkit.core.records import DataConfig
from transferkit.data.images.resize import fit, fit_mask, frame
from transferkit.data.images.windows import (
    ZOOM,
    middle_window,
    random_window,
    window_at,
    window_count,
    windows,
)

SIDES = [1, 2, 7, 8, 9, 15, 16, 31, 32, 33, 48, 63, 64, 65, 97, 128, 200, 257, 1000, 6001]


def tiled(height, width=None):
    return DataConfig(image_size=(height, width or height), crop_mode="tile", crop_pct=1.0)


@pytest.mark.parametrize("side", [1, 3, 8, 16, 17, 32, 50, 224])
def test_every_pixel_is_decided_once_with_a_margin_around_it(side):
    rng = np.random.default_rng(side)
    lengths = sorted({*SIDES[:-2], *rng.integers(1, 5 * side + 20, 12).tolist()})
    for height, width in [*zip(lengths, reversed(lengths), strict=True), (1, 1), (side, side), (side + 1, side)]:
        if max(height, width) > 40 * side:
            continue
        size, config = (height, width), tiled(side, side + 5)
        decided = np.zeros(size, dtype=np.int64)
        listed = list(windows(size, config))
        assert len(listed) == window_count(size, config)
        for number, window in enumerate(listed):
            assert window == window_at(size, config, number)
            decided[window.core.slices] += 1
            sides = ((window.top, window.core.top, window.core.height, height, side),
                     (window.left, window.core.left, window.core.width, width, side + 5))  # fmt: skip
            for start, core, span, length, seen in sides:
                assert span >= 1
                if length <= seen:
                    assert (core, span, start) == (0, length, -((seen - length) // 2))
                    continue
                assert start >= 0 and start + seen <= length  # never beyond the picture
                assert start <= core and core + span <= start + seen
                assert core == 0 or core - start >= seen // 8
                assert core + span == length or start + seen - (core + span) >= seen // 8
        assert (decided == 1).all(), size


def test_windows_are_as_few_as_can_be():
    """Fewer would leave a pixel without its margin: n windows reach no further than their cores and two margins."""
    for side in (8, 32, 100):
        for length in range(side + 1, 12 * side, 7):
            count = window_count((length, 1), tiled(side))
            core = side - 2 * (side // 8)
            assert (count - 1) * core + 2 * (side // 8) < length <= count * core + 2 * (side // 8)


def test_cores_end_where_both_windows_see_equally_far():
    """By brute force: each pixel goes to the window in which it is farthest from the edge, the later one if equal."""
    for length, side in ((130, 32), (101, 32), (77, 50), (999, 224), (33, 32)):
        listed = list(windows((length, 1), tiled(side)))
        pixels = np.arange(length)
        depth = np.stack([np.minimum(pixels - one.top, one.top + side - 1 - pixels) for one in listed])
        # The picture goes on beyond neither of its ends: the first and the last window see all there is.
        depth[0, pixels < side // 2] = side
        depth[-1, pixels >= length - side // 2] = side
        best = len(listed) - 1 - depth[::-1].argmax(axis=0)
        for number, window in enumerate(listed):
            assert np.array_equal(np.flatnonzero(best == number), pixels[window.core.slices[0]])


def test_a_window_shows_the_pixels_that_lie_there_and_the_mean_colour_beside():
    image = np.random.default_rng(0).integers(0, 256, (70, 20, 3), dtype=np.uint8)
    config = tiled(32)
    padded = np.full((70 + 64, 20 + 64, 3), [124, 116, 104], dtype=np.uint8)
    padded[32:-32, 32:-32] = image
    mask = image[..., 0] // 2
    for number, window in enumerate(windows((70, 20), config)):
        shown = fit(image, config, part=number)
        assert np.array_equal(shown, padded[32 + window.top :, 32 + window.left :][:32, :32])
        assert shown.flags.c_contiguous and shown.base is None
        carried = fit_mask(mask, config, part=number)
        inside = np.zeros((32, 32), dtype=bool)
        inside[window.frame.slices] = True
        assert np.array_equal(carried != 255, inside)
        assert np.array_equal(carried[inside], mask[window.core.slices].ravel())
    with pytest.raises(ValueError, match="does not show whole pictures"):
        frame((70, 20), config)


def test_the_middle_one_is_in_the_middle():
    for size in ((32, 32), (100, 40), (300, 500)):
        window = window_at(size, tiled(32), middle_window(size, tiled(32)))
        for start, length in zip((window.core.top, window.core.left), size, strict=True):
            assert abs(start + 12 - length / 2) <= 24


@pytest.mark.parametrize("size", [(300, 200), (40, 500), (20, 9), (33, 32)])
def test_random_windows_are_at_about_the_pictures_own_scale(size):
    rng, seen, zooms = random.Random(0), np.zeros(size, dtype=np.int64), []
    for _ in range(3000):
        part, place = random_window(size, (32, 32), rng)
        assert part.top >= 0 and part.top + part.height <= size[0]
        assert part.left >= 0 and part.left + part.width <= size[1]
        assert place.top >= 0 and place.top + place.height <= 32
        assert place.left >= 0 and place.left + place.width <= 32
        for there, here, length in ((part.height, place.height, size[0]), (part.width, place.width, size[1])):
            assert there == length or here == 32  # all of it, or a full window
            if min(there, here) > 8:
                zooms.append(here / there)
        seen[part.slices] += 1
    assert ZOOM[0] * 0.95 < min(zooms) < 0.85 and 1.18 < max(zooms) < ZOOM[1] * 1.05
    assert abs(np.mean(np.log(zooms))) < 0.06
    assert seen.min() > 0.12 * seen.mean()  # a corner a quarter as often as the middle, but for chance
