"""Answers on pixels: what is known of the places of a picture, beside what is known of the whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Annotation", "Annotations", "Mask"]

Mask: TypeAlias = npt.NDArray[np.uint8]
"""``(H, W) uint8``: the class index of each pixel, `transferkit.core.targets.IGNORED` where none counts."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """The answers on the pixels of one picture.

    Attributes:
        mask: Class indices of the upright picture; ``None`` where the answers are not a class per pixel.
        boxes: ``(n, 4) float32``: left, top, right and bottom of n objects, edges of pixels, within the picture;
            ``None`` where the answers are no objects.
        classes: ``(n,) int64``, with `boxes`.
        crowd: ``(n,) bool``, with `boxes`: neither trained on nor counted against a model.
        instances: ``(H, W) uint16``: object k has the value k + 1, and where objects overlap the later one is on top;
            ``None`` where only boxes are known.
        size: ``(H, W)`` of the upright picture, with `boxes`.
    """

    mask: Mask | None = None
    boxes: npt.NDArray[np.float32] | None = None
    classes: npt.NDArray[np.int64] | None = None
    crowd: npt.NDArray[np.bool_] | None = None
    instances: npt.NDArray[np.uint16] | None = None
    size: tuple[int, int] | None = None


class Annotations(Protocol):
    """The answers on pixels of some pictures, read as they are needed. Picklable; threads may read at once."""

    def __len__(self) -> int:
        """Return the number of pictures."""

    def read(self, row: int) -> Annotation:
        """Return the answers of one picture at its own size, upright.

        Raises:
            DataError: They are gone, have changed since they were indexed, or do not fit the picture.
        """
