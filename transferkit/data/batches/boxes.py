"""A batch of answers: masks as one tensor, objects as a list of records that moves to a device as a tensor does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transferkit.data.masks.annotation import Annotation

__all__ = ["BoxTarget", "Boxes", "tensors_of", "together"]


@dataclass(frozen=True, slots=True, eq=False)
class BoxTarget:
    """The objects of one picture, on the canvas that the network sees.

    Attributes:
        boxes: ``(n, 4) float32``: left, top, right, bottom in pixels of the canvas; all have an area.
        classes: ``(n,) int64``.
        crowd: ``(n,) bool``: neither trained on nor counted against a model.
        instances: ``(h, w) int32``: object k has the value k + 1; ``None`` where only boxes are known.
    """

    boxes: Tensor
    classes: Tensor
    crowd: Tensor
    instances: Tensor | None = None

    def to(self, *args: Any, **kwargs: Any) -> BoxTarget:
        """Return the record on a device, as `Tensor.to` has it; types of numbers are not for change."""
        return self._map(lambda part: part.to(*args, **kwargs))

    def pin_memory(self, *args: Any) -> BoxTarget:
        """Return the record in page-locked memory."""
        return self._map(lambda part: part.pin_memory(*args))

    def _map(self, change: Any) -> BoxTarget:
        rest = {} if self.instances is None else {"instances": change(self.instances)}
        return replace(self, boxes=change(self.boxes), classes=change(self.classes), crowd=change(self.crowd), **rest)


class Boxes:
    """The objects of B pictures, a `BoxTarget` each.

    Args:
        pictures: In the order of the batch.
    """

    def __init__(self, pictures: Sequence[BoxTarget]) -> None:
        self.pictures = tuple(pictures)

    def __len__(self) -> int:
        return len(self.pictures)

    def __iter__(self) -> Iterator[BoxTarget]:
        return iter(self.pictures)

    def __getitem__(self, key: int | slice | Sequence[int] | Tensor) -> Any:
        """Return one picture's objects, or those of several, as a tensor's rows are taken."""
        if isinstance(key, int):
            return self.pictures[key]
        if isinstance(key, slice):
            return Boxes(self.pictures[key])
        rows = torch.as_tensor(key)
        return Boxes([self.pictures[row] for row in (rows.nonzero().flatten() if rows.dtype == torch.bool else rows)])

    def __repr__(self) -> str:
        return f"Boxes({len(self)} pictures, {sum(len(one.classes) for one in self)} objects)"

    def to(self, *args: Any, **kwargs: Any) -> Boxes:
        """Return the batch on a device."""
        return Boxes([one.to(*args, **kwargs) for one in self])

    def pin_memory(self, *args: Any) -> Boxes:
        """Return the batch in page-locked memory."""
        return Boxes([one.pin_memory(*args) for one in self])


def together(annotations: Sequence[Annotation], size: tuple[int, int]) -> Tensor | Boxes:
    """Return the answers of a batch: masks ``(B, h, w) uint8``, or `Boxes`.

    Args:
        annotations: On the canvas, all of one kind; of none the masks are empty.
        size: Height and width of the canvas.
    """
    if any(one.boxes is not None for one in annotations):
        return Boxes([_target(one) for one in annotations])
    masks = [one.mask for one in annotations if one.mask is not None]
    return torch.from_numpy(np.stack(masks) if masks else np.zeros((0, *size), dtype=np.uint8))


def tensors_of(targets: Tensor | Boxes) -> dict[str, Tensor]:
    """Return all that a batch of answers says, by name."""
    if isinstance(targets, Tensor):
        return {"targets": targets}
    return {
        f"{name} {number}": part
        for number, one in enumerate(targets)
        for name in ("boxes", "classes", "crowd", "instances")
        if (part := getattr(one, name)) is not None
    }


def _target(one: Annotation) -> BoxTarget:
    if one.boxes is None or one.classes is None or one.crowd is None:
        raise ValueError("boxes have classes and marks of crowds")
    return BoxTarget(
        torch.from_numpy(one.boxes),
        torch.from_numpy(one.classes),
        torch.from_numpy(one.crowd),
        None if one.instances is None else torch.from_numpy(one.instances.astype(np.int32)),
    )
