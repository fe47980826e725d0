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
        mask: Class indices of the upright picture; ``None`` where the answers are none of pixels.
    """

    mask: Mask | None = None


class Annotations(Protocol):
    """The answers on pixels of some pictures, read as they are needed. Picklable; threads may read at once."""

    def __len__(self) -> int:
        """Return the number of pictures."""

    def read(self, row: int) -> Annotation:
        """Return the answers of one picture at its own size, upright.

        Raises:
            DataError: They are gone, have changed since they were indexed, or do not fit the picture.
        """
