"""Detectors that look once: every position of the maps says what lies there (Lin et al. 2017, Tian et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from transferkit.models.backbones.pyramid import Level
from transferkit.models.objects.anchors import anchor_scale
from transferkit.models.objects.detector import (
    CHANNELS,
    FLOOR,
    MOST,
    OVERLAP,
    Detector,
    WidthOnly,
    rows_of,
    sizes_of,
    truths,
)

__all__ = ["FCOSHead", "RetinaNetHead"]

STRIDES = (2, 4, 8)
SCALES = (4.0, 4.0 * 2 ** (1 / 3), 4.0 * 2 ** (2 / 3))
"""Sides of the anchors of RetinaNet, over the stride of their map, where objects are as in the paper."""
RATIOS = (0.5, 1.0, 2.0)


class _OneStageHead(Detector):
    """What the two have in common.

    Args:
        levels: Of the backbone's pyramid, from fine to coarse; the last four have twice the stride of the one before.
        num_classes: Number of classes C, at least 1.
        name: Of the head.
    """

    net: Any

    def __init__(self, levels: Sequence[Level], num_classes: int, *, name: str) -> None:
        from torchvision.ops.feature_pyramid_network import LastLevelP6P7

        coarser = LastLevelP6P7(CHANNELS, CHANNELS)
        super().__init__(levels, num_classes, strides=STRIDES, coarser=coarser, name=name)
        self.all_strides = (*self.strides, 2 * self.strides[-1], 4 * self.strides[-1])

    def _answers(self, inputs: tuple[Tensor, ...]) -> tuple[dict[str, Tensor], list[Tensor], list[int]]:
        """Return what the network says of all positions, their anchors, and how many each map has."""
        from torchvision.models.detection.image_list import ImageList

        maps = list(self.maps(inputs).values())
        answers = self.net.head(maps)
        anchors = self.net.anchor_generator(ImageList(inputs[0], sizes_of(inputs[0])), maps)
        each = self.net.anchor_generator.num_anchors_per_location()
        return answers, anchors, [one.shape[2] * one.shape[3] * n for one, n in zip(maps, each, strict=True)]

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return detections ``(B, 100, 6)``."""
        answers, anchors, counts = self._answers(inputs)
        by_map = {name: list(torch.split(value, counts, dim=1)) for name, value in answers.items()}
        anchors_by_map = [list(torch.split(one, counts)) for one in anchors]
        detections = self.net.postprocess_detections(by_map, anchors_by_map, sizes_of(inputs[0]))
        return rows_of(detections, first=0)


class RetinaNetHead(_OneStageHead):
    """RetinaNet: focal loss over anchors (Lin et al. 2017, *Focal Loss for Dense Object Detection*), of torchvision.

    Args:
        levels: As for every detector.
        num_classes: Likewise.
        shapes: Of typical objects, to which anchors are fitted; see `anchor_scale`.
        side: Of the network's input, in pixels.
    """

    def __init__(
        self, levels: Sequence[Level], num_classes: int, shapes: Sequence[tuple[float, float]] = (), side: int = 0
    ) -> None:
        super().__init__(levels, num_classes, name="retinanet")
        from torchvision.models.detection.anchor_utils import AnchorGenerator
        from torchvision.models.detection.retinanet import RetinaNet

        usual = [[round(stride * scale) for scale in SCALES] for stride in self.all_strides]
        strides = [stride for stride in self.all_strides for _ in SCALES]
        fitted = anchor_scale(shapes, side, [size for level in usual for size in level], strides, RATIOS)
        sizes = tuple(tuple(fitted * size for size in level) for level in usual)
        self.net = _without_backbone(RetinaNet(
            WidthOnly(), num_classes, anchor_generator=AnchorGenerator(sizes, (RATIOS,) * len(sizes)),
            score_thresh=FLOOR, nms_thresh=OVERLAP, detections_per_img=MOST,
        ))  # fmt: skip

    def losses(self, inputs: tuple[Tensor, ...], targets: object) -> dict[str, Tensor]:
        """Return the losses of classes and of boxes."""
        answers, anchors, _ = self._answers(inputs)
        losses: dict[str, Tensor] = self.net.compute_loss(truths(targets, first=0), answers, anchors)
        return losses


class FCOSHead(_OneStageHead):
    """FCOS: positions say how far the edges are (Tian et al. 2019, section 3), of torchvision. It has no anchors.

    Args:
        levels: As for every detector.
        num_classes: Likewise.
        shapes: Not looked at: any size fits a map.
        side: Likewise.
    """

    def __init__(
        self, levels: Sequence[Level], num_classes: int, shapes: Sequence[tuple[float, float]] = (), side: int = 0
    ) -> None:
        super().__init__(levels, num_classes, name="fcos")
        from torchvision.models.detection.anchor_utils import AnchorGenerator
        from torchvision.models.detection.fcos import FCOS

        sizes = tuple((stride,) for stride in self.all_strides)
        self.net = _without_backbone(FCOS(
            WidthOnly(), num_classes, anchor_generator=AnchorGenerator(sizes, ((1.0,),) * len(sizes)),
            score_thresh=FLOOR, nms_thresh=OVERLAP, detections_per_img=MOST,
        ))  # fmt: skip

    def losses(self, inputs: tuple[Tensor, ...], targets: object) -> dict[str, Tensor]:
        """Return the losses of classes, of boxes and of how central a position lies."""
        answers, anchors, counts = self._answers(inputs)
        losses: dict[str, Tensor] = self.net.compute_loss(truths(targets, first=0), answers, anchors, counts)
        return losses


def _without_backbone(net: nn.Module) -> nn.Module:
    """Return torchvision's detector without what stands before its head."""
    net.backbone = nn.Identity()
    return net
