"""Instance masks of predictions: a PNG that numbers them, and COCO's run lengths as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from torch import nn

from transferkit.core.targets import TargetSpec
from transferkit.data.index.meaning import class_colour
from transferkit.models.figures.boxes import Rle
from transferkit.results.boxes.found import BoxPrediction
from transferkit.results.predict.colours import hex_colour, numbers_png

__all__ = ["InstanceFiles", "class_colours", "numbered_masks", "plain_rle"]

BYTES: Final = 255
"""The largest number that a byte holds."""


@dataclass(frozen=True)
class InstanceFiles:
    """The part that makes a PNG of the instances of each picture: 0 is none of them, k the k-th box that is told."""

    ending: str = ".png"
    media_type: str = "image/png"

    def given_by(self, head: nn.Module) -> bool:
        """Return whether the head says that it finds outlines, too."""
        return bool(getattr(head, "outlines", False))

    def content(self, record: BoxPrediction, spec: TargetSpec) -> bytes:
        """Return the PNG of a record's instances; where they overlap, the more confident one is on top."""
        if record.size is None:
            raise ValueError(f"{record.path!r} has no masks")
        return numbers_png(numbered_masks([one.mask for one in record.boxes], record.size))

    def written(self, record: BoxPrediction, file: str | None) -> BoxPrediction:
        """Return a record that says where its file is. It keeps its masks: the file shows what lies on top."""
        return replace(record, file=file)

    def legend(self, spec: TargetSpec) -> list[tuple[str, str]]:
        """Return the classes and the colours of their boxes."""
        return list(zip(spec.names, class_colours(len(spec.names)), strict=True))


def numbered_masks(masks: Sequence[Rle | None], size: tuple[int, int]) -> npt.NDArray[Any]:
    """Return masks as numbers from 1 ``(H, W) uint8``, the first ones on top; ``uint16`` of more than 255.

    Args:
        masks: COCO masks of the size; ``None`` of a box without one.
        size: ``(H, W)``.
    """
    from faster_coco_eval.core import mask as library

    canvas = np.zeros(size, dtype=np.uint8 if len(masks) <= BYTES else np.uint16)
    for number, one in reversed(list(enumerate(masks, 1))):
        if one is not None:
            canvas[library.decode(dict(one)).astype(bool)] = number
    return canvas


def plain_rle(mask: Rle) -> dict[str, Any]:
    """Return a COCO mask as plain values: its counts as text."""
    counts = mask["counts"]
    return {"size": list(map(int, mask["size"])), "counts": counts.decode() if isinstance(counts, bytes) else counts}


def class_colours(count: int) -> list[str]:
    """Return a colour ``"#rrggbb"`` for the boxes of each class; none is black, which is the background of masks."""
    return [hex_colour(np.array(class_colour(index + 1), dtype=np.uint8)) for index in range(count)]
