"""Detectors that look twice: regions are proposed, and each of them is named (Ren et al. 2015, He et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from transferkit.models.backbones.pyramid import Level
from transferkit.models.objects.anchors import anchor_scale
from transferkit.models.objects.detector import (
    FLOOR,
    MOST,
    OVERLAP,
    Detector,
    WidthOnly,
    in_mode,
    rows_of,
    sizes_of,
    truths,
)

__all__ = ["FasterRCNNHead", "MaskRCNNHead"]

STRIDES = (1, 2, 4, 8)
ANCHOR = 8
"""Side of an anchor, over the stride of its map, where objects are as in the paper: 32 to 512 on strides of 4 to 64."""
RATIOS = (0.5, 1.0, 2.0)

REGIONS = 128
"""Of a picture that are named in training, a quarter of them objects where there are so many: as Ren et al. 2015 have
it. torchvision takes 512 of pictures of 800 pixels, which costs most of the time on the smaller ones here."""
PROPOSALS = 300
"""Of a picture that are named in the end (Ren et al. 2015, section 4.1); torchvision takes 1,000."""


class FasterRCNNHead(Detector):
    """Faster R-CNN (Ren et al. 2015) on a feature pyramid, as torchvision builds it but for the number of regions.

    Args:
        levels: Of the backbone's pyramid, from fine to coarse; the last four have twice the stride of the one before.
        num_classes: Number of classes C, at least 1.
        shapes: Of typical objects, to which anchors are fitted; see `anchor_scale`.
        side: Of the network's input, in pixels.
    """

    name = "faster_rcnn"

    def __init__(
        self, levels: Sequence[Level], num_classes: int, shapes: Sequence[tuple[float, float]] = (), side: int = 0
    ) -> None:
        from torchvision.models.detection.anchor_utils import AnchorGenerator
        from torchvision.models.detection.faster_rcnn import FasterRCNN
        from torchvision.models.detection.mask_rcnn import MaskRCNN
        from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

        super().__init__(levels, num_classes, strides=STRIDES, coarser=LastLevelMaxPool(), name=self.name)
        strides = (*self.strides, 2 * self.strides[-1])
        usual = [stride * ANCHOR for stride in strides]
        scale = anchor_scale(shapes, side, usual, strides, RATIOS)
        sizes = [scale * size for size in usual]
        kind = MaskRCNN if self.outlines else FasterRCNN
        net = kind(
            WidthOnly(),
            num_classes + 1,
            rpn_anchor_generator=AnchorGenerator(tuple((size,) for size in sizes), (RATIOS,) * len(sizes)),
            rpn_post_nms_top_n_test=PROPOSALS,
            box_batch_size_per_image=REGIONS,
            box_score_thresh=FLOOR,
            box_nms_thresh=OVERLAP,
            box_detections_per_img=MOST,
        )
        self.rpn, self.roi_heads = net.rpn, net.roi_heads

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return detections ``(B, 100, 6)``, of one with outlines ``(B, 100, 6 + 784)``."""
        with in_mode(self, training=False):
            maps, images, sizes = self._seen(inputs)
            proposals, _ = self.rpn(images, maps)
            detections, _ = self.roi_heads(maps, proposals, sizes)
        return rows_of(detections, first=1, masks=self.outlines)

    def losses(self, inputs: tuple[Tensor, ...], targets: Any) -> dict[str, Tensor]:
        """Return the losses of proposals and of what they are named. Regions to learn from are drawn."""
        known = truths(targets, first=1, masks=self.outlines)
        with in_mode(self, training=True):
            maps, images, sizes = self._seen(inputs)
            proposals, losses = self.rpn(images, maps, known)
            _, more = self.roi_heads(maps, proposals, sizes, known)
        return {**losses, **more}

    def _seen(self, inputs: tuple[Tensor, ...]) -> tuple[Any, Any, list[tuple[int, int]]]:
        """Return maps, images and sizes as torchvision takes them."""
        from torchvision.models.detection.image_list import ImageList

        sizes = sizes_of(inputs[0])
        return self.maps(inputs), ImageList(inputs[0], sizes), sizes


class MaskRCNNHead(FasterRCNNHead):
    """Mask R-CNN (He et al. 2017): Faster R-CNN, and an outline on each box."""

    name = "mask_rcnn"
    outlines = True
