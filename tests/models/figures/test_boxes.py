"""Tallies of boxes: back from the canvas to the picture, masks as torchvision pastes them, COCO's packing."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from torchvision.models.detection.roi_heads import paste_masks_in_image

from transferkit.core.errors import ConfigError
from transferkit.models.figures import boxes as boxes_module
from transferkit.models.figures.boxes import box_tally, outlines, own_boxes, pasted, sampled

# pycocotools 2.0.11 decodes masks in the old way (measured with numpy 2.4)
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

NONE = {"boxes": np.zeros((0, 4)), "classes": np.zeros(0)}


def rows(*lines, masks=None):
    output = torch.tensor(lines, dtype=torch.float32).reshape(-1, 6)
    return output if masks is None else torch.cat([output, masks.flatten(1)], dim=1)


def test_boxes_come_back_from_the_canvas():
    """A picture of 300 x 200 on 64 x 64: resized by 64 / 300 it has 43 rows, from row 10 on."""
    frame, size = (10, 0, 43, 64), (200, 300)
    corners = torch.tensor([[0.0, 10.0, 64.0, 53.0], [32.0, 31.5, 48.0, 42.25]])
    expected = [[0.0, 0.0, 300.0, 200.0], [150.0, 100.0, 225.0, 150.0]]
    assert own_boxes(corners, frame, size).numpy() == pytest.approx(np.array(expected))
    one = box_tally(rows([*corners[1].tolist(), 0.5, 2]), frame, size, **NONE)
    assert one.boxes.tolist() == [expected[1]]
    assert (one.scores.tolist(), one.classes.tolist()) == ([0.5], [2])
    assert (one.boxes.dtype, one.scores.dtype, one.classes.dtype) == (np.float32, np.float32, np.int64)
    assert (one.masks, one.true_masks) == (None, None)


def test_the_way_there_and_back_is_the_same():
    generator = np.random.default_rng(0)
    corners = generator.uniform(0, 90, (50, 2))
    own = np.concatenate([corners, corners + generator.uniform(1, 10, (50, 2))], axis=1)
    frame, size = (7, 3, 50, 40), (100, 100)
    there = own * np.array([40, 50, 40, 50]) / 100 + np.array([3, 7, 3, 7])
    back = own_boxes(torch.from_numpy(there), frame, size)
    assert back.numpy() == pytest.approx(own)


def test_boxes_are_clipped_and_what_lies_on_the_padding_is_dropped():
    output = rows(
        [-5, -5, 20, 20, 0.9, 0],  # over a corner
        [2, 2, 8, 8, 0.8, 1],  # on the padding above the picture, which begins at row 10
        [0, 53, 64, 64, 0.7, 1],  # below it
        [30, 20, 30, 40, 0.6, 1],  # no width
        [40, 30, 30, 40, 0.5, 1],  # left and right are exchanged
        [50, 40, 90, 90, 0.4, 2],
    )
    one = box_tally(output, (10, 0, 43, 64), (200, 300), **NONE)
    assert one.classes.tolist() == [0, 2]
    assert one.boxes[0].tolist() == pytest.approx([0, 0, 20 * 300 / 64, 10 * 200 / 43])
    assert one.boxes[1, 2:].tolist() == [300, 200]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("column", range(6))
def test_rows_without_a_detection(value, column):  # fault 168
    output = rows([1, 1, 9, 9, 0.9, 0], [1, 1, 8, 8, 0.8, 1], [1, 1, 5, 5, 0.0, 0], [0, 0, 0, 0, 0, 0])
    output[1, column] = value
    assert box_tally(output, (0, 0, 16, 16), (16, 16), **NONE).scores.tolist() == pytest.approx([0.9])
    assert len(box_tally(output[2:], (0, 0, 16, 16), (16, 16), **NONE).boxes) == 0
    assert box_tally(output[:0], (0, 0, 16, 16), (16, 16), **NONE).boxes.shape == (0, 4)


def test_the_order_of_the_rows_changes_nothing():
    """cocodataset/cocoapi#650, Lightning-AI/torchmetrics#1966: equal scores gave another figure in another order."""
    generator = np.random.default_rng(1)
    corners = generator.integers(0, 20, (30, 2))
    output = torch.from_numpy(
        np.column_stack([corners, corners + 5, generator.integers(1, 4, 30) / 4, generator.integers(0, 3, 30)])
    ).float()
    one = box_tally(output, (0, 0, 32, 32), (64, 64), **NONE)
    other = box_tally(output[torch.randperm(30)], (0, 0, 32, 32), (64, 64), **NONE)
    for name in ("boxes", "scores", "classes"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert (np.diff(one.scores) <= 0).all()


SIZE = (60, 90)
PLACES = [
    [10.0, 10.0, 40.0, 50.0],
    [10.3, 10.7, 40.2, 50.9],
    [-20.5, -3.7, 30.0, 30.0],  # over the left and the upper edge
    [60.0, 40.0, 200.0, 80.5],  # over the right and the lower edge
    [-10.0, -10.0, 120.0, 90.0],  # larger than the picture
    [0.0, 0.0, 90.0, 60.0],
    [5.0, 5.0, 5.5, 5.5],  # less than a pixel
    [89.5, 59.5, 90.0, 60.0],
    [12.0, 0.0, 13.0, 60.0],
]


def test_masks_are_torchvisions():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(len(PLACES), 28, 28, generator=generator) * 3
    places = torch.tensor(PLACES)
    expected = paste_masks_in_image(logits.sigmoid()[:, None], places, SIZE)[:, 0] > 0.5
    masks = pasted(logits, places, SIZE)
    assert [mask["size"] for mask in masks] == [list(SIZE)] * len(PLACES)
    for mask, whole in zip(masks, expected.numpy(), strict=True):
        np.testing.assert_array_equal(coco.decode(mask), whole)
        assert mask["counts"] == coco.encode(np.asfortranarray(whole.astype(np.uint8)))["counts"]
    assert expected[0].any()


def test_a_mask_beside_the_picture_is_empty():
    """torchvision's own function fails on it."""
    beside = torch.tensor([[-30.0, -30.0, -5.0, -5.0]])
    [mask] = pasted(torch.full((1, 28, 28), 9.0), beside, SIZE)
    assert coco.area(mask) == 0
    with pytest.raises(RuntimeError, match="must match the existing size"):
        paste_masks_in_image(torch.ones(1, 1, 28, 28), beside, SIZE)


def test_masks_that_are_full_join_their_columns():
    [mask] = pasted(torch.full((1, 28, 28), 9.0), torch.tensor([[-10.0, -100.0, 100.0, 160.0]]), SIZE)
    assert mask["counts"] == coco.encode(np.asfortranarray(np.ones(SIZE, dtype=np.uint8)))["counts"]


def ellipse(box, size):
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    left, top, right, bottom = box
    across = (columns - (left + right) / 2) / (right - left) * 2
    return across**2 + ((rows - (top + bottom) / 2) / (bottom - top) * 2) ** 2 <= 1


def overlap(mask, expected):
    return float(coco.iou([mask], [coco.encode(np.asfortranarray(expected.astype(np.uint8)))], [0])[0, 0])


@pytest.mark.parametrize("box", [[20.0, 10.0, 42.0, 33.0], [20.6, 10.3, 41.1, 33.9], [-8.0, 30.0, 20.0, 75.0]])
def test_sampled_masks_are_those_of_the_object(box):
    """The logits are the truth's own, so that what is missing of the overlap is the fault of the drawing."""
    cells = (np.mgrid[:28, :28] + 0.5) / 14 - 1
    logits = torch.from_numpy((1 - (cells**2).sum(axis=0)) * 20).float()[None]
    expected = ellipse(box, SIZE)
    result, other = (overlap(way(logits, torch.tensor([box]), SIZE)[0], expected) for way in (sampled, pasted))
    assert result > 0.99
    assert other < result - 0.01


def test_sampled_masks_beside_the_picture_are_empty():
    places = torch.tensor([[-30.0, -30.0, -5.0, -5.0], [95.0, 0.0, 99.0, 9.0], [4.0, 4.0, 4.0, 4.0]])
    assert [coco.area(mask) for mask in sampled(torch.full((3, 28, 28), 9.0), places, SIZE)] == [0, 0, 0]


def test_exact_masks_take_back_the_shift_of_torchvisions_truths():
    """Logits from torchvision's own projection of true masks, as its heads learn them."""
    from torchvision.models.detection.roi_heads import project_masks_on_boxes

    size, box = (60, 60), [31.0, 20.0, 49.0, 42.0]
    whole = ellipse(box, size)
    twice = torch.from_numpy(np.kron(whole, np.ones((2, 2)))).float()[None]  # on a canvas of 120 x 120
    place = torch.tensor([box]) * 2
    logits = (project_masks_on_boxes(twice, place, torch.zeros(1, dtype=torch.int64), 28) - 0.5) * 20
    output = torch.cat([place, torch.tensor([[0.9, 0.0]]), logits.flatten(1)], dim=1)
    truth = {"boxes": [box], "classes": [0], "instances": whole.astype(np.uint16)}
    exact, usual = (box_tally(output, (0, 0, 120, 120), size, **truth, exact=exact).masks[0] for exact in (True, False))
    assert overlap(exact, whole) > 0.99
    assert overlap(usual, whole) < overlap(exact, whole) - 0.01


def test_outlines_are_those_of_pycocotools():
    generator = np.random.default_rng(0)
    instances = np.kron(generator.integers(0, 6, (6, 9)), np.ones((10, 10))).astype(np.uint16)
    instances[instances == 3] = 300  # beyond what is asked for, and object 3 has no pixel
    packed = outlines(instances, 5)
    assert len(packed) == 5
    for number, mask in enumerate(packed, 1):
        expected = coco.encode(np.asfortranarray((instances == number).astype(np.uint8)))
        assert (mask["size"], mask["counts"]) == (expected["size"], expected["counts"])
    assert coco.area(packed[2]) == 0
    assert outlines(instances, 0) == []


def test_a_tally_with_masks():
    """Masks go by the box as it was predicted, boxes end where the picture does."""
    instances = np.zeros((100, 100), np.uint16)
    instances[20:60, 30:80] = 1
    logits = torch.full((2, 28, 28), -9.0)
    logits[0] = 9.0
    logits[1, :, 14:] = 9.0
    output = rows([15, 10, 40, 30, 0.7, 0], [-10, 10, 10, 30, 0.9, 0], masks=logits)
    truth = {"boxes": [[30, 20, 80, 60]], "classes": [0], "crowd": [False]}
    one = box_tally(output, (0, 0, 50, 50), (100, 100), **truth, instances=instances)
    assert one.scores.tolist() == pytest.approx([0.9, 0.7])
    assert one.boxes[0].tolist() == [0, 20, 20, 60]
    masks = coco.decode(list(one.masks)).astype(bool)
    assert masks[30, 10, 0]
    assert masks[:, :, 0].sum() == pytest.approx(20 * 40, rel=0.15)
    overlap = coco.iou([one.masks[1]], [one.true_masks[0]], [0])[0, 0]
    assert overlap > 0.9
    # Where the objects' masks are unknown, those of detections stand alone.
    alone = box_tally(output, (0, 0, 50, 50), (100, 100), **truth)
    assert alone.true_masks is None and alone.masks == one.masks
    assert box_tally(output[:, :6], (0, 0, 50, 50), (100, 100), **truth, instances=instances).true_masks is None


@pytest.mark.parametrize(
    ("output", "frame", "more", "message"),
    [
        (torch.zeros(3, 5), (0, 0, 8, 8), {}, r"\(3, 5\) .*expected \(K, 6\) or \(K, 790\)"),
        (torch.zeros(6), (0, 0, 8, 8), {}, r"\(6,\)"),
        (torch.zeros(3, 6), (0, 0, 0, 8), {}, "frame of 0 x 8 pixels"),
        (torch.zeros(3, 6), (0, 0, 8, 8), {"classes": np.zeros(2)}, "1 boxes of objects, 2 classes and 1 marks"),
        (torch.zeros(3, 6), (0, 0, 8, 8), {"crowd": np.zeros(3)}, "3 marks of crowds"),
        (
            torch.zeros(3, 6),
            (0, 0, 8, 8),
            {"instances": np.zeros((8, 8), np.uint16)},
            r"\(8, 8\), expected the picture's size, \(16, 16\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(output, frame, more, message):
    truth = {"boxes": np.zeros((1, 4)), "classes": np.zeros(1), **more}
    with pytest.raises(ConfigError, match=message):
        box_tally(output, frame, (16, 16), **truth)


def test_without_the_library_the_error_says_what_to_type(monkeypatch):  # fault 167
    monkeypatch.setattr(boxes_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"faster-coco-eval, not installed - pip install 'transferkit\[dense\]'"):
        outlines(np.zeros((4, 4), np.uint16), 0)


LARGE = """
import resource
import numpy as np, torch
from transferkit.models.figures.boxes import box_tally
def tally(size, count):
    corners = torch.rand(count, 2, generator=torch.Generator().manual_seed(0)) * 200
    sides = torch.full((count, 2), 300.0)
    output = torch.cat([corners, corners + sides, torch.full((count, 1), 0.5), torch.zeros(count, 1),
                        torch.randn(count, 784)], dim=1)
    return box_tally(output, (85, 0, 341, 512), size, boxes=[[0, 0, 9, 9]], classes=[0],
                     instances=np.ones(size, np.uint16))
tally((64, 64), 2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = tally((4000, 6000), 20)
assert len(result.masks) == 20
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow  # seconds of a free core, many more of a busy one
def test_masks_of_a_large_picture_need_little_memory():
    """open-mmlab/mmdetection#8232: a hundred masks of 24 million pixels at once were too many for any GPU."""
    one = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", LARGE]
    run = subprocess.run(words, capture_output=True, encoding="utf-8", check=True, env=one)
    assert int(run.stdout) / 1024 < 500  # MiB
