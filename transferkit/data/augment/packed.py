"""A batch of pictures before their augmentation: crops of different sizes in one piece of memory, and the draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from transferkit.data.augment.draws import Piece

__all__ = ["Packed", "own_memory", "pack"]


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """B crops with what is to be done to them; moves to a device as a tensor does. `shown` does it.

    Attributes:
        pixels: ``(N,) uint8``: the crops, row after row, one after the other; a longest row more at the end, so that
            every row of every crop can be read at that length.
        places: ``(B, 3) int64``: where each begins, its height and its width.
        frames: ``(B, 4) int64``: where on the target each lies: top, left, height, width.
        matrices: ``(B, 3, 3) float32``, see `Draw`.
        flips: ``(B,) bool``.
        factors: ``(B, 4) float32``, see `Draw`.
        order: ``(B, 4) int64``, likewise.
        hued: For each place in the order the rows ``(n,) int64`` whose hue is moved there.
        sizes: Height and width of each crop, known to the host.
        target: Height and width that they are brought to.
        spans: Height and width of each of `frames`, known to the host.
        ground: The colour beside them.
        interpolation: The word for what enlarges.
        warps: Whether any is turned, sheared or seen from elsewhere.
        jitters: Whether the colours of any are changed.
    """

    pixels: Tensor
    places: Tensor
    frames: Tensor
    matrices: Tensor
    flips: Tensor
    factors: Tensor
    order: Tensor
    hued: tuple[Tensor, ...]
    sizes: tuple[tuple[int, int], ...]
    target: tuple[int, int]
    spans: tuple[tuple[int, int], ...]
    ground: tuple[int, ...]
    interpolation: str
    warps: bool
    jitters: bool

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.pixels.device

    def to(self, device: Any, *, non_blocking: bool | None = None) -> Packed:
        """Return the batch on a device; from page-locked memory without waiting, unless told otherwise."""
        waits = not self.pixels.is_pinned() if non_blocking is None else not non_blocking
        return self._map(lambda part: part.to(device, non_blocking=not waits))

    def pin_memory(self, *args: Any) -> Packed:
        """Return the batch in page-locked memory."""
        return self._map(lambda part: part.pin_memory(*args))

    def _map(self, change: Any) -> Packed:
        parts = {name: change(getattr(self, name))
                 for name in ("pixels", "places", "frames", "matrices", "flips", "factors", "order")}  # fmt: skip
        return replace(self, **parts, hued=tuple(change(part) for part in self.hued))


def own_memory(count: int) -> tuple[npt.NDArray[np.uint8], Tensor]:
    """Return new memory of so many bytes, to write to, and the tensor over it."""
    memory = torch.empty(count, dtype=torch.uint8)
    return memory.numpy(), memory


def pack(pieces: Sequence[Piece], memory: Callable[[int], tuple[npt.NDArray[np.uint8], Tensor]] = own_memory) -> Packed:
    """Copy some crops into one piece of memory: at least one, all with one target.

    Args:
        pieces: The crops.
        memory: Gives so many bytes.
    """
    sizes = tuple((piece.pixels.shape[0], piece.pixels.shape[1]) for piece in pieces)
    areas = np.array([3 * height * width for height, width in sizes], dtype=np.int64)
    starts = np.concatenate([[0], areas.cumsum()])
    flat, pixels = memory(int(starts[-1]) + 3 * max(width for _, width in sizes))
    flat[starts[-1] :] = 0
    for piece, start, area in zip(pieces, starts, areas, strict=False):
        flat[start : start + area].reshape(piece.pixels.shape)[...] = piece.pixels
    draws = [piece.draw for piece in pieces]
    factors = np.array([draw.factors for draw in draws], dtype=np.float32)
    order = np.array([draw.order for draw in draws], dtype=np.int64)
    matrices = np.stack([draw.matrix for draw in draws])
    moved = factors[:, 3] != 0
    return Packed(
        pixels=pixels,
        places=torch.from_numpy(np.column_stack([starts[:-1], np.array(sizes, dtype=np.int64)])),
        frames=torch.tensor([astuple(piece.place) for piece in pieces]),
        matrices=torch.from_numpy(matrices.astype(np.float32)),
        flips=torch.tensor([draw.flip for draw in draws]),
        factors=torch.from_numpy(factors),
        order=torch.from_numpy(order),
        hued=tuple(torch.from_numpy(np.flatnonzero(moved & (order[:, at] == 3))) for at in range(4)),
        sizes=sizes,
        target=pieces[0].target,
        spans=tuple((piece.place.height, piece.place.width) for piece in pieces),
        ground=pieces[0].ground,
        interpolation=pieces[0].interpolation,
        warps=bool((matrices != np.eye(3)).any()),
        jitters=bool((factors != (1, 1, 1, 0)).any()),
    )
