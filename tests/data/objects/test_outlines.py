"""Run lengths are read as pycocotools reads them; polygons hold the pixels whose centres they hold."""

import cv2
import numpy as np
import pytest
from pycocotools import mask as reference

from transferkit.data.objects.outlines import drawn, numbered, packed_runs, runs_problem


@pytest.mark.parametrize("seed", range(5))
def test_run_lengths_packed_and_as_numbers(seed):
    noise = np.random.default_rng(seed).normal(size=(37, 53)).astype(np.float32)
    bits = cv2.GaussianBlur(noise, (0, 0), 3) > 0.05
    packed = reference.encode(np.asfortranarray(bits.astype(np.uint8)))
    packed = {"size": packed["size"], "counts": packed["counts"].decode()}
    for outline in (packed, packed_runs(bits)):
        assert runs_problem(outline, bits.shape) == "" and np.array_equal(drawn(outline, bits.shape), bits)
    for bits in (np.zeros((4, 5), bool), np.ones((4, 5), bool)):
        assert np.array_equal(drawn(packed_runs(bits), bits.shape), bits)


@pytest.mark.parametrize(("outline", "said"), [
    ({"size": [4, 5], "counts": [3, 4]}, "of 7 pixels, its picture of 20"),
    ({"size": [5, 4], "counts": [20]}, r"of \[5, 4\]"),
    ({"size": [4, 5], "counts": [30, -10]}, "of 20 pixels"),
    ({"size": [4, 5], "counts": "o"}, "cannot be read"),
    ({"size": [4, 5], "counts": None}, "cannot be read"),
])  # fmt: skip
def test_run_lengths_that_cannot_be_used(outline, said):
    import re

    assert re.search(said, runs_problem(outline, (4, 5)))


def test_polygons_hold_centres_and_the_later_is_on_top():
    triangle = [2.0, 1.0, 12.0, 4.0, 5.0, 11.0]
    bits = drawn([triangle], (15, 15))
    contour = np.array(triangle, dtype=np.float32).reshape(-1, 1, 2)
    for row, column in np.ndindex(15, 15):
        assert bits[row, column] == (cv2.pointPolygonTest(contour, (column + 0.5, row + 0.5), False) > 0)
    both = numbered([[[0, 0, 4, 0, 4, 4, 0, 4]], [[2, 2, 6, 2, 6, 6, 2, 6]]], (8, 8))
    assert both[3, 3] == 2 and both[1, 1] == 1 and (both == 2).sum() == 16 and (both == 1).sum() == 12
