"""`Detector`: a head that finds objects - from a picture and its pyramid to boxes, or to losses of what it learns from.

The detectors themselves are torchvision's; they stand on any backbone's pyramid, and freezing is not their business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from transferkit.models.backbones.pyramid import Level
from transferkit.models.dense.decoders import DecodedHead
from transferkit.models.figures.boxes import COLUMNS, SIDE

__all__ = ["CHANNELS", "FLOOR", "MOST", "OVERLAP", "Detector", "WidthOnly", "rows_of", "sizes_of", "truths", "widths"]

CHANNELS: Final = 256
"""Of the maps of the feature pyramid."""
FLOOR: Final = 0.05
"""Score below which nothing is a detection."""
OVERLAP: Final = 0.5
"""Of two boxes of a class, from which on the less confident one is dropped."""
MOST: Final = 100
"""Detections of a picture, the most confident ones."""


class WidthOnly(nn.Module):
    """What torchvision's detectors ask of a backbone: how wide its maps are."""

    out_channels = CHANNELS


class Detector(DecodedHead, ABC):
    """A head that finds objects: torchvision's detectors on a feature pyramid (Lin et al. 2017) of the backbone's maps.

    It is called with ``(images, level, level, ...)``: images ``(B, 3, H, W)`` and maps from fine to coarse. Calling it
    returns detections ``(B, K, 6) float32``: left, top, right, bottom in pixels of the images, score in (0, 1], and
    class; rows without a detection are 0. One that finds outlines, too, has 28 x 28 logits more to a row,
    ``(B, K, 6 + 784)``, that lie on the box. `losses` is what it learns from; both work in any mode. A detector of
    one's own needs these two and the attributes ``takes_pyramid`` and ``finds_objects``, and nothing of this class.

    Args:
        levels: Of the backbone's pyramid, from fine to coarse; the last ones have twice the stride of the one before.
        num_classes: Number of classes C, at least 1.
        strides: Of the maps that are taken, over that of the finest of the last four.
        coarser: Makes maps beyond the last one.
        name: Of the head, for messages.

    Raises:
        ConfigError: The pyramid has other strides.
    """

    finds_objects = True
    one_at_a_time = True  # how much is computed depends on how much is found
    outlines = False

    def __init__(
        self, levels: Sequence[Level], num_classes: int, *, strides: Sequence[int], coarser: nn.Module | None, name: str
    ) -> None:
        super().__init__(levels)
        from torchvision.ops import FeaturePyramidNetwork

        self.num_classes = num_classes
        self.places = self._by_stride(strides, name)
        taken = [self.levels[at - 1] for at in self.places]
        self.strides = tuple(level.stride for level in taken)
        self.fpn = FeaturePyramidNetwork([level.channels for level in taken], CHANNELS, extra_blocks=coarser)

    def maps(self, inputs: tuple[Tensor, ...]) -> OrderedDict[str, Tensor]:
        """Return the maps ``(B, 256, h, w)`` of the feature pyramid, from fine to coarse, as torchvision names them."""
        pyramid = self.pyramid(inputs)
        maps: OrderedDict[str, Tensor] = self.fpn(
            OrderedDict((str(number), pyramid[at]) for number, at in enumerate(self.places))
        )
        return maps

    @abstractmethod
    def losses(self, inputs: tuple[Tensor, ...], targets: Any) -> dict[str, Tensor]:
        """Return the losses of a batch, by name: scalars whose sum is minimised.

        Args:
            inputs: As for a call.
            targets: `transferkit.data.batches.boxes.Boxes` on the images; crowds are not learnt from.
        """


@contextmanager
def in_mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    """Put a module of torchvision into a mode for the time of the block: what a detector does hangs on its mode.

    Nothing in it draws or keeps statistics but the choice of regions to learn from.
    """
    before = [(part, part.training) for part in module.modules()]
    for part, _ in before:
        part.training = training
    try:
        yield
    finally:
        for part, mode in before:
            part.training = mode


def truths(targets: Any, *, first: int, masks: bool = False) -> list[dict[str, Tensor]]:
    """Return the objects of a batch as torchvision has them, crowds left out.

    Args:
        targets: `Boxes`.
        first: Number of the first class: 1 where 0 is the background.
        masks: Whether outlines are wanted.
    """
    result = []
    for one in targets:
        own = ~one.crowd
        values = {"boxes": one.boxes[own], "labels": one.classes[own] + first}
        if masks:
            numbers = torch.arange(1, len(one.classes) + 1, device=one.boxes.device)[own]
            values["masks"] = (one.instances == numbers[:, None, None]).to(torch.uint8)
        result.append(values)
    return result


def rows_of(detections: Iterable[dict[str, Tensor]], *, first: int, masks: bool = False) -> Tensor:
    """Return detections ``(B, K, 6)``, or with masks ``(B, K, 6 + 784)``, of what torchvision returns.

    Args:
        detections: Of each picture ``"boxes"``, ``"scores"``, ``"labels"``, and ``"masks"``: probabilities on boxes.
        first: As for `truths`.
        masks: Whether there are masks.
    """
    rows = []
    for one in detections:
        columns = [one["boxes"].float(), one["scores"].float()[:, None], (one["labels"] - first).float()[:, None]]
        if masks:
            columns.append(torch.logit(one["masks"].float().flatten(1), eps=1e-6))
        table = torch.cat(columns, dim=1)[:MOST]
        rows.append(functional.pad(table, (0, 0, 0, MOST - table.shape[0])))
    return torch.stack(rows)


def widths() -> tuple[int, int]:
    """Return how many columns a row may have: without an outline, and with one."""
    return COLUMNS, COLUMNS + SIDE * SIDE


def sizes_of(images: Tensor) -> list[tuple[int, int]]:
    """Return height and width of each of ``(B, 3, H, W)``."""
    return [(images.shape[2], images.shape[3])] * images.shape[0]
