"""The rows that a head of masks is solved on, beside loops over pixels; the solution beside scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

from transferkit.core.targets import IGNORED
from transferkit.features.engine.taps import places
from transferkit.features.probe.selection import cross_validation_folds
from transferkit.features.probe.solver import ClassSolver
from transferkit.models.heads.solver import ProbeOptions
from transferkit.training.head.cells import cell_rows, cells_of_pixels, pixels_by_class


def drawn_mask(shape, classes, seed, ignored=0.2):
    draw = np.random.default_rng(seed)
    mask = draw.integers(0, classes, shape).astype(np.uint8)
    mask[draw.random(shape) < ignored] = IGNORED
    return mask


@pytest.mark.parametrize(
    ("canvas", "grid"),
    [
        ((8, 8), (2, 2)),
        ((32, 48), (4, 6)),
        ((50, 30), (7, 5)),
        ((9, 9), (9, 9)),
        ((5, 7), (6, 9)),
        ((96, 96), (12, 12)),
    ],
)
def test_pixels_of_cells_beside_a_loop(canvas, grid):
    chosen, classes = places(*grid).numpy(), 3
    mask = drawn_mask(canvas, classes, seed=sum(canvas))
    counted = pixels_by_class(mask, cells_of_pixels(canvas, grid, chosen), len(chosen), classes)
    expected = np.zeros((len(chosen), classes), dtype=np.int64)
    for y in range(canvas[0]):
        for x in range(canvas[1]):
            place = int((y + 0.5) * grid[0] / canvas[0]) * grid[1] + int((x + 0.5) * grid[1] / canvas[1])
            if place in chosen.tolist() and mask[y, x] != IGNORED:
                expected[chosen.tolist().index(place), mask[y, x]] += 1
    assert (counted == expected).all()
    assert counted.sum() > 0


def test_a_pixel_belongs_to_the_place_that_weighs_most_when_the_map_is_enlarged():
    """That is how the head's logits come onto the canvas."""
    grid, canvas = (5, 7), (160, 224)
    ones = torch.eye(35).reshape(1, 35, *grid)
    nearest = functional.interpolate(ones, canvas, mode="bilinear", align_corners=False)[0].argmax(dim=0)
    assert (cells_of_pixels(canvas, grid, np.arange(35)) == nearest.numpy()).mean() > 0.95
    smallest = functional.interpolate(ones, canvas, mode="nearest-exact")[0].argmax(dim=0)
    assert (cells_of_pixels(canvas, grid, np.arange(35)) == smallest.numpy()).all()


def test_rows_are_cells_and_their_classes_and_a_picture_weighs_one():
    vectors = np.arange(12.0, dtype=np.float32).reshape(2, 3, 2)
    pixels = np.array([[[4, 0], [1, 3], [0, 0]], [[0, 0], [0, 2], [0, 0]]])
    rows = cell_rows(vectors, pixels, ["b", "a"])
    assert rows.X.tolist() == [[0, 1], [2, 3], [2, 3], [8, 9]]
    assert rows.y.tolist() == [0, 0, 1, 1]
    assert rows.weight.tolist() == [4 / 8, 1 / 8, 3 / 8, 1.0]
    assert rows.units().tolist() == [1, 1, 1, 0]
    assert rows.width == 2


def some_rows(pictures=24, cells=16, classes=3, width=5, seed=0):
    """Cells whose vectors say something of the shares of their classes."""
    draw = np.random.default_rng(seed)
    direction = draw.normal(size=(classes, width))
    share = draw.dirichlet(np.full(classes, 0.5), size=(pictures, cells))
    vectors = (share @ direction + draw.normal(size=(pictures, cells, width))).astype(np.float32) * 3 + 1
    pixels = np.round(share * draw.integers(0, 40, (pictures, cells, 1))).astype(np.int64)
    return vectors, pixels, cell_rows(vectors, pixels, [f"p{number // 2}" for number in range(pictures)])


def test_the_solution_is_scikit_learns_on_the_same_rows_and_weights():
    vectors, pixels, rows = some_rows()
    strength = 3.0
    solution = ClassSolver().fit(rows, ProbeOptions(classifier_args={"C": strength}))
    one_by_one, labels, weights, middle = [], [], [], []
    for picture in range(len(vectors)):
        total = pixels[picture].sum()
        for cell in range(vectors.shape[1]):
            for label in range(pixels.shape[2]):
                if pixels[picture, cell, label]:
                    one_by_one.append(vectors[picture, cell].astype(np.float64))
                    labels.append(label)
                    weights.append(pixels[picture, cell, label] / total)
    X, weights = np.array(one_by_one), np.array(weights)
    mean = np.average(X, axis=0, weights=weights)
    middle = np.sqrt(np.average((X - mean) ** 2, axis=0, weights=weights))
    reference = LogisticRegression(C=strength, tol=1e-10, max_iter=100_000)
    reference.fit((X - mean) / middle, labels, sample_weight=weights)
    logits = reference.decision_function((X - mean) / middle)
    ours = solution.outputs(rows.X)
    np.testing.assert_allclose(ours - ours.mean(axis=1, keepdims=True),
                               logits - logits.mean(axis=1, keepdims=True), atol=1e-4)  # fmt: skip


def test_the_cells_of_a_picture_stay_in_one_fold():
    rows = some_rows()[2]
    units = rows.units()
    parts = cross_validation_folds(rows, folds=4, seed=0)
    assert len(parts) == 4
    held = [set(units[validate].tolist()) for _, validate in parts]
    assert sum(map(len, held)) == 12 == len(set.union(*held))
    for train, validate in parts:
        assert not set(units[train].tolist()) & set(units[validate].tolist())


def test_masks_of_one_class_are_refused():
    assert ClassSolver(things="pixels").problems(np.zeros(4)) == [
        "pixels of one class, expected at least two to fit a head"
    ]
