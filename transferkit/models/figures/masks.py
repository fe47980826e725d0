"""What is kept of a mask and of what a network says of it: counts of pixels at the picture's own size, some logits.

The logits of a picture are too many to keep for a data set. Every figure follows from the tallies, see `segmentation`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from transferkit.core.errors import ConfigError
from transferkit.core.targets import IGNORED

__all__ = ["PIXELS", "Counting", "MaskTally", "enlarged", "mask_of", "tally"]

PIXELS: Final = 256
"""Pixels whose logits are kept of a picture."""
STRIP: Final = 1 << 23
"""Numbers of the logits at a picture's own size that are made at once: 32 MiB."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class MaskTally:
    """What is kept of a picture and what a network says of it.

    Attributes:
        confusion: ``(C, C) int64``, pixels at the picture's own size: a row per true class, a column per predicted one.
            Pixels that count for nothing are in no row.
        logits: ``(P, C) float32``, of some of the pixels that count. Of a *prediction* they are log-probabilities.
            These are logits too: whoever reads either takes the softmax, which leaves probabilities what they are.
        truths: ``(P,) uint8``, the class of each.
        file: Of the mask; empty where it is not known.
    """

    confusion: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]
    truths: npt.NDArray[np.uint8]
    file: str = ""

    def log_probs(self, temperature: float = 1.0) -> MaskTally:
        """Return the same with log-probabilities for logits, softened by a temperature. No class changes by it."""
        exact = torch.from_numpy(self.logits).double() / temperature
        return replace(self, logits=exact.log_softmax(dim=1).float().numpy())


def tally(
    logits: Tensor, frame: tuple[int, int, int, int], mask: npt.NDArray[np.uint8], *, pixels: int = PIXELS
) -> MaskTally:
    """Return what is kept of a picture.

    The logits come to the picture's own size, and the class is that of the largest there: a mask that is enlarged after
    the choice of the class has coarser edges. This is done in strips, and their height changes nothing.

    Pixels are drawn without replacement, each that counts as likely as any other. The draw hangs only on where the mask
    counts, so that two models are measured at the same pixels.

    Args:
        logits: ``(C, h, w)``, on the canvas.
        frame: ``(top, left, height, width)`` of the picture on the canvas, in pixels.
        mask: ``(H, W) uint8`` at the picture's own size: classes, or `IGNORED`.
        pixels: How many to keep the logits of, at most.

    Raises:
        ConfigError: The frame is not within the canvas, or the mask is none or holds a class that has no logit.
    """
    counting = Counting(mask, pixels=pixels)
    counting.add(logits, frame, (0, 0, *mask.shape))
    return counting.tally()


class Counting:
    """A tally in the making, of a picture whose logits come in parts; see `tally`.

    Args:
        mask: ``(H, W) uint8`` of the whole picture, at its own size: classes, or `IGNORED`.
        pixels: How many to keep the logits of, at most. Which ones does not hang on the parts.

    Raises:
        ConfigError: The mask is none.
    """

    def __init__(self, mask: npt.NDArray[np.uint8], *, pixels: int = PIXELS) -> None:
        if mask.ndim != 2 or mask.dtype != np.uint8 or not mask.size:
            raise ConfigError(f"the mask is {mask.dtype} of shape {mask.shape}, expected uint8 of (H, W)")
        self._mask = mask
        self._rows, self._columns = _drawn(mask, pixels)
        self._cells: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._sample: npt.NDArray[np.float32] = np.zeros((len(self._rows), 0), dtype=np.float32)

    def add(self, logits: Tensor, frame: tuple[int, int, int, int], part: tuple[int, int, int, int]) -> None:
        """Count a part of the picture; no two parts share a pixel.

        Args:
            logits: ``(C, h, w)``, of the same C for all parts.
            frame: ``(top, left, height, width)`` of the part on them.
            part: ``(top, left, height, width)`` of it on the picture.

        Raises:
            ConfigError: The frame is not within the logits.
        """
        classes, logits = len(logits), logits.detach()
        if not len(self._cells):
            self._cells = np.zeros((IGNORED + 1) * classes, dtype=np.int64)
            self._sample = np.zeros((len(self._rows), classes), dtype=np.float32)
        top, left, height, width = part
        mask = self._mask[top : top + height, left : left + width]
        first, last = np.searchsorted(self._rows, (top, top + height))
        columns = self._columns[first:last] - left
        mine = first + np.flatnonzero((columns >= 0) & (columns < width))
        rows, columns = self._rows[mine] - top, self._columns[mine] - left
        for start, strip in enlarged(logits, frame, (height, width)):
            end = start + strip.shape[1]
            places = mask[start:end].astype(np.intp)  # of 8 bits, 16 classes would be too many
            places *= classes
            places += _largest(strip)
            self._cells += np.bincount(places.ravel(), minlength=len(self._cells))
            here = slice(*np.searchsorted(rows, (start, end)))
            flat = torch.from_numpy((rows[here] - start) * strip.shape[2] + columns[here]).to(strip.device)
            self._sample[mine[here]] = strip.flatten(1).index_select(1, flat).T.cpu().numpy()

    def tally(self) -> MaskTally:
        """Return the tally, once the parts are the picture.

        Raises:
            ConfigError: The mask holds a class that has no logit.
        """
        classes = self._sample.shape[1]
        table = self._cells.reshape(IGNORED + 1, classes)
        unknown = np.flatnonzero(table[classes:IGNORED].any(axis=1)) + classes
        if len(unknown):
            raise ConfigError(
                f"the mask holds class {unknown[0]}, but there are logits of {classes} classes, expected 0 to "
                f"{classes - 1}, or {IGNORED} where no class counts"
            )
        return MaskTally(table[:classes].copy(), self._sample, self._mask[self._rows, self._columns])


def mask_of(logits: Tensor, frame: tuple[int, int, int, int], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Return the predicted class of each pixel at a picture's own size, ``(H, W) uint8``, as `tally` counts it.

    Args:
        logits: ``(C, h, w)``, on the canvas.
        frame: ``(top, left, height, width)`` of the picture on the canvas, in pixels.
        size: ``(H, W)``.

    Raises:
        ConfigError: The frame is not within the canvas.
    """
    mask = np.empty(size, dtype=np.uint8)
    for start, strip in enlarged(logits.detach(), frame, size):
        mask[start : start + strip.shape[1]] = _largest(strip)
    return mask


def enlarged(
    logits: Tensor, frame: tuple[int, int, int, int], size: tuple[int, int], *, numbers: int = STRIP
) -> Iterator[tuple[int, Tensor]]:
    """Yield the logits at a picture's own size from top to bottom, bilinear between the centres of pixels.

    Args:
        logits: ``(C, h, w)``, on the canvas.
        frame: ``(top, left, height, width)`` of the picture on the canvas, in pixels.
        size: ``(H, W)`` of the picture.
        numbers: To make at once, about; a strip has at least one row.

    Yields:
        The first row of a strip, and its logits, ``(C, rows, W) float32`` on their device.

    Raises:
        ConfigError: The frame is not within the canvas, or there are too many classes for a mask.
    """
    top, left, height, width = frame
    inside = 0 <= top < top + height <= logits.shape[-2] and 0 <= left < left + width <= logits.shape[-1]
    if logits.ndim != 3 or not inside or not 1 <= len(logits) <= IGNORED:
        raise ConfigError(
            f"logits have shape {tuple(logits.shape)}, expected (C, h, w) of up to {IGNORED} classes around the frame "
            f"top {top}, left {left}, height {height}, width {width}"
        )
    part = logits[:, top : top + height, left : left + width].float().contiguous()
    down, right = (_between(few, many, part.device) for few, many in zip((height, width), size, strict=True))
    step = max(1, numbers // (len(part) * max(width, size[1])))
    for start in range(0, size[0], step):
        # torch's `interpolate` would not know where a strip lies, and its last digits hang on the shape. Products and
        # sums of single numbers do not.
        rows = [each[start : start + step] for each in down]
        some, places = torch.unique(torch.cat(rows[:2]), return_inverse=True)
        wide = _mixed(part.index_select(1, some), 2, *right)
        lower, upper = places.chunk(2)
        yield start, _mixed(wide, 1, lower, upper, rows[2])


def _between(few: int, many: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for `many` rows or columns, the two of `few` that each lies between, and the share of the second."""
    places = (torch.arange(many, dtype=torch.float64) + 0.5) * (few / many) - 0.5
    places = places.clamp(0, few - 1)
    lower = places.floor().long()
    return lower.to(device), (lower + 1).clamp_max(few - 1).to(device), (places - lower).float().to(device)


def _mixed(values: Tensor, side: int, lower: Tensor, upper: Tensor, shares: Tensor) -> Tensor:
    """Return what lies between two rows (side 1) or columns (side 2) of ``(C, rows, columns)``."""
    shares = shares if side == 2 else shares[:, None]
    first = values.index_select(side, lower).mul_(1 - shares)
    return first.add_(values.index_select(side, upper).mul_(shares))


def _largest(logits: Tensor) -> npt.NDArray[np.uint8]:
    """Return the class of the largest logit, the first of equal ones; three times as fast as torch's `argmax`."""
    return np.asarray(logits.max(dim=0).indices.to(torch.uint8).cpu().numpy())


def _drawn(mask: npt.NDArray[np.uint8], pixels: int) -> tuple[Array, Array]:
    """Return rows and columns of pixels that count, from top to bottom, without a list of all that do."""
    counts = mask != IGNORED
    ends = np.count_nonzero(counts, axis=1).cumsum()
    total = int(ends[-1])
    ranks = np.arange(total)[:pixels]
    if total > pixels:
        seed = zlib.crc32(np.packbits(counts).tobytes())
        ranks = np.sort(np.random.default_rng(seed).choice(total, pixels, replace=False, shuffle=False))
    rows = np.searchsorted(ends, ranks, side="right")
    places = ranks - np.r_[0, ends][rows]
    columns = [np.flatnonzero(counts[row])[place] for row, place in zip(rows, places, strict=True)]
    return rows, np.array(columns, dtype=np.int64)
