"""Detectors on our pyramid do what torchvision's own do on theirs, and what a head must."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from transferkit.core.errors import ConfigError
from transferkit.data.batches.boxes import Boxes, BoxTarget
from transferkit.models.backbones.pyramid import Level
from transferkit.models.backbones.registry import create_backbone
from transferkit.models.heads.feed import Feed, feed
from transferkit.models.heads.registry import HeadOf, list_heads
from transferkit.models.objects.kinds import DETECTORS, BoxHeads, Unanswered
from transferkit.models.objects.two_stage import FasterRCNNHead, MaskRCNNHead

SIDE = 64


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return create_backbone("resnet18", weights="random", image_size=SIDE).eval()


@pytest.fixture(scope="module")
def inputs(backbone):
    images = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return feed(backbone, Feed.PYRAMID, images)


def objects(*, crowd=False):
    """Return two pictures: one with three objects, one without any."""
    boxes = torch.tensor([[4.0, 4, 26, 30], [34, 6, 60, 28], [12, 34, 54, 60]])
    instances = torch.zeros(SIDE, SIDE, dtype=torch.int32)
    for number, (left, top, right, bottom) in enumerate(boxes.int().tolist(), 1):
        instances[top:bottom, left:right] = number
    marks = torch.tensor([crowd, False, False])
    first = BoxTarget(boxes, torch.tensor([0, 1, 2]), marks, instances)
    none = torch.zeros(0, dtype=torch.int64)
    return Boxes([first, BoxTarget(torch.zeros(0, 4), none, none.bool(), torch.zeros_like(instances))])


@pytest.fixture(scope="module", params=sorted(DETECTORS))
def head(request, backbone):
    torch.manual_seed(0)
    return BoxHeads().build(request.param, backbone, 3)


def test_every_detector_finds_in_any_mode_and_learns_in_any_mode(head, inputs):
    totals = []
    for mode in (False, True):
        head.train(mode)
        torch.manual_seed(3)
        losses = Unanswered(head, inputs).losses(objects())
        assert all(module.training is mode for module in head.modules())
        assert all(loss.ndim == 0 and bool(loss.isfinite()) for loss in losses.values())
        totals.append(sum(losses.values()))
    torch.testing.assert_close(*totals)  # the same draws, whatever the mode
    with torch.no_grad():
        rows = head(inputs)  # in training mode, too
    assert rows.shape == (2, 100, 6 + 784 * head.outlines) and rows.dtype == torch.float32
    boxes, scores, classes = rows[..., :4], rows[..., 4], rows[..., 5]
    assert bool(((scores >= 0) & (scores <= 1)).all()) and bool((scores.diff(dim=1) <= 0).all())
    assert set(classes.unique().tolist()) <= {0.0, 1.0, 2.0}
    assert bool((boxes >= 0).all()) and bool((boxes <= SIDE).all())
    assert not rows[scores == 0].any()


def test_all_that_learns_has_a_part_in_the_losses_of_nothing(head, inputs):
    """So processes that wait for each other's gradients find those of every parameter in each batch."""
    head.zero_grad()
    Unanswered(head, inputs).sum().backward()
    assert [name for name, parameter in head.named_parameters() if parameter.grad is None] == []


def test_crowds_are_not_learnt_from(head, inputs):
    """An object that is marked changes the losses as one that is not there does."""

    def total(targets):
        torch.manual_seed(3)
        return sum(Unanswered(head, inputs).losses(targets).values())

    whole, crowd = objects(), objects(crowd=True)
    one = whole[0]
    instances = torch.where(one.instances == 1, 0, one.instances - 1).clamp_min(0).int()
    without = Boxes([BoxTarget(one.boxes[1:], one.classes[1:], one.crowd[1:], instances), whole[1]])
    torch.testing.assert_close(total(crowd), total(without))
    assert not torch.allclose(total(crowd), total(whole))


@pytest.mark.parametrize("outlines", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_stages_are_torchvisions(backbone, inputs, outlines):
    """The same weights in torchvision's whole detector, on the same maps, find and lose the same."""
    from torchvision.models.detection.faster_rcnn import FasterRCNN
    from torchvision.models.detection.mask_rcnn import MaskRCNN

    torch.manual_seed(0)
    head = (MaskRCNNHead if outlines else FasterRCNNHead)(backbone.pyramid(), 3)

    class Maps(nn.Module):
        out_channels = 256

        def forward(self, images):
            return head.maps((images, *inputs[1:]))

    from torchvision.models.detection.anchor_utils import AnchorGenerator

    sizes = tuple((32 * 2**step,) for step in range(5))
    kind = MaskRCNN if outlines else FasterRCNN
    whole = kind(
        Maps(), 4, min_size=SIDE, max_size=SIDE, image_mean=[0.0] * 3, image_std=[1.0] * 3,
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5), rpn_post_nms_top_n_test=300,
        box_batch_size_per_image=128,
    )  # fmt: skip
    whole.rpn.load_state_dict(head.rpn.state_dict())
    whole.roi_heads.load_state_dict(head.roi_heads.state_dict())
    whole.transform.torch_choice = lambda sizes: sizes[0]  # it draws of one size, too
    whole.eval()
    head.eval()
    with torch.no_grad():
        found, rows = whole(list(inputs[0])), head(inputs)
    for one, row in zip(found, rows, strict=True):
        count = len(one["scores"])
        assert count == int((row[:, 4] > 0).sum()) and count
        torch.testing.assert_close(row[:count, :4], one["boxes"])
        torch.testing.assert_close(row[:count, 4], one["scores"])
        assert (row[:count, 5] + 1).tolist() == one["labels"].tolist()
    whole.train()
    targets = [
        {"boxes": one.boxes, "labels": one.classes + 1,
         "masks": torch.stack([one.instances == at + 1 for at in range(len(one.classes))]).to(torch.uint8)
         if len(one.classes) else torch.zeros(0, SIDE, SIDE, dtype=torch.uint8)}
        for one in objects()
    ]  # fmt: skip
    torch.manual_seed(5)
    theirs = whole(list(inputs[0]), targets)
    torch.manual_seed(5)
    ours = Unanswered(head, inputs).losses(objects())
    assert {name: float(loss.detach()) for name, loss in ours.items()} == pytest.approx(
        {name: float(loss.detach()) for name, loss in theirs.items()}, rel=1e-5
    )


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_one_stage_is_torchvisions(backbone, inputs, name):
    torch.manual_seed(0)
    head = BoxHeads().build(name, backbone, 3).eval()
    net = head.net

    class Maps(nn.Module):
        def forward(self, images):
            return OrderedDict(head.maps((images, *inputs[1:])))

    torch.manual_seed(5)
    ours = Unanswered(head, inputs).losses(objects())
    with torch.no_grad():
        rows = head(inputs)
    net.backbone = Maps()
    net.transform.min_size, net.transform.max_size = (SIDE,), SIDE
    net.transform.image_mean, net.transform.image_std = [0.0] * 3, [1.0] * 3
    net.train()
    theirs = net(list(inputs[0]), [{"boxes": one.boxes, "labels": one.classes} for one in objects()])
    assert {key: float(value.detach()) for key, value in ours.items()} == pytest.approx(
        {key: float(value.detach()) for key, value in theirs.items()}, rel=1e-5
    )
    net.eval()
    with torch.no_grad():
        found = net(list(inputs[0]))
    for one, row in zip(found, rows, strict=True):
        count = len(one["scores"])
        torch.testing.assert_close(row[:count, :4], one["boxes"])
        torch.testing.assert_close(row[:count, 4], one["scores"])


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_efficientnet"])
def test_detectors_stand_on_other_backbones(name):
    torch.manual_seed(0)
    backbone = create_backbone(name, weights="random").eval()
    size = backbone.data_config.image_size
    for kind in ("faster_rcnn", "retinanet"):
        head = BoxHeads().build(kind, backbone, 1)
        with torch.no_grad():
            inputs = feed(backbone, Feed.PYRAMID, torch.zeros(1, 3, *size))
            assert head(inputs).shape == (1, 100, 6)
        assert bool(Unanswered(head, inputs).sum().isfinite())


def test_heads_are_refused_in_words(backbone):
    kinds = BoxHeads(outlines=False)
    for head, words in (
        ("mask_rcnn", "not all objects of these data have one"),
        ("unet", "It is a head of masks"),
        ("fasterrcnn", "Did you mean 'faster_rcnn'"),
        (nn.Linear(3, 3), "is a head of one answer per picture"),
    ):
        with pytest.raises(ConfigError, match=words):
            kinds.build(head, backbone, 3)
    with pytest.raises(ConfigError, match="drop_rate=0.5 has no effect"):
        kinds.build("fcos", backbone, 3, drop_rate=0.5)


def test_a_head_of_ones_own_needs_detections_and_losses(backbone):  # fault 194
    class Silent(nn.Module):
        takes_pyramid = True
        finds_objects = True

        def forward(self, inputs):
            return torch.zeros(len(inputs[0]), 10, 6)

    with pytest.raises(ConfigError, match="has no losses"):
        BoxHeads().build(Silent(), backbone, 3)

    class Flat(Silent):
        def losses(self, inputs, targets):
            return {"loss": inputs[0].sum()}

        def forward(self, inputs):
            return torch.zeros(len(inputs[0]), 6)

    with pytest.raises(ConfigError, match=r"it must return detections \(1, K, 6\)"):
        BoxHeads().build(Flat(), backbone, 3)

    class Right(Flat):
        def forward(self, inputs):
            return torch.zeros(len(inputs[0]), 10, 6)

    assert isinstance(BoxHeads().build(Right(), backbone, 3), Right)


def test_a_pyramid_of_other_strides_is_refused():
    levels = [Level("a", 4, 8), Level("b", 8, 8), Level("c", 32, 8), Level("d", 64, 8)]
    with pytest.raises(ConfigError, match="needs maps of stride 16"):
        FasterRCNNHead(levels, 2)


def test_names_are_those_that_can_be_built():
    assert set(DETECTORS) <= set(list_heads(HeadOf.OBJECTS))
    assert set(DETECTORS).isdisjoint((*list_heads(), *list_heads(HeadOf.MASKS)))
