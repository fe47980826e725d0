"""Anchors fitted to objects, beside overlaps of torchvision's own anchors with objects that lie anywhere."""

import numpy as np
import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from transferkit.models.backbones.registry import create_backbone
from transferkit.models.objects.anchors import SCALES, anchor_scale
from transferkit.models.objects.kinds import BoxHeads

STRIDES = (4, 8, 16, 32, 64)
SIZES = tuple(8 * stride for stride in STRIDES)
RATIOS = (0.5, 1.0, 2.0)


def best_overlap(shapes, side, scale):
    """Mean IoU of objects at random places with the best of all of torchvision's anchors on a blank picture."""
    generator = AnchorGenerator(tuple((scale * size,) for size in SIZES), (RATIOS,) * len(SIZES))
    maps = [torch.zeros(1, 1, -(-side // stride), -(-side // stride)) for stride in STRIDES]
    (anchors,) = generator(ImageList(torch.zeros(1, 3, side, side), [(side, side)]), maps)
    draws = np.random.default_rng(0)
    boxes = []
    for width, height in side * np.array(shapes):
        left, top = draws.uniform(0, side - width), draws.uniform(0, side - height)
        boxes.append([left, top, left + width, top + height])
    return float(box_iou(torch.tensor(boxes, dtype=torch.float32), anchors).max(dim=1).values.mean())


@pytest.mark.parametrize(("low", "high"), [(0.05, 0.1), (0.08, 0.2), (0.2, 0.5)])
@pytest.mark.parametrize("side", [128, 256])
def test_fitted_anchors_lie_better_on_objects_anywhere(low, high, side):
    shapes = np.random.default_rng(1).uniform(low, high, (60, 2)).tolist()
    scale = anchor_scale(shapes, side, SIZES, STRIDES, RATIOS)
    fitted, usual = best_overlap(shapes, side, scale), best_overlap(shapes, side, 1.0)
    best = max(best_overlap(shapes, side, each) for each in SCALES)
    assert fitted >= best - 0.05
    assert fitted >= usual or scale == 1.0
    if high * side < 20:  # between the smallest anchor and nothing
        assert fitted > usual + 0.2


def test_anchors_of_the_papers_stay_where_they_fit():
    shapes = [(share, share) for share in np.linspace(0.04, 0.6, 40)]
    assert anchor_scale(shapes, 800, SIZES, STRIDES, RATIOS) == 1.0
    assert anchor_scale([], 64, SIZES, STRIDES, RATIOS) == 1.0


@pytest.mark.parametrize("name", ["faster_rcnn", "retinanet", "fcos"])
def test_detectors_have_them(name):
    backbone = create_backbone("test_resnet", weights="random", image_size=64)
    small = tuple((0.1, 0.1) for _ in range(5))
    plain, fitted = (BoxHeads(shapes=shapes).build(name, backbone, 2) for shapes in ((), small))
    sides = []
    for head in (plain, fitted):
        net = head.rpn if name == "faster_rcnn" else head.net
        sides.append(torch.cat([each[:, 2:] - each[:, :2] for each in net.anchor_generator.cell_anchors]))
    if name == "fcos":
        assert torch.equal(*sides)
    else:
        assert sides[1].max() < sides[0].max()
        assert (sides[1].prod(1).sqrt() - 6.4).abs().min() < 3
    assert [tensor.shape for tensor in fitted.state_dict().values()] == [
        tensor.shape for tensor in plain.state_dict().values()
    ]
