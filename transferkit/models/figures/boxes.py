"""What is kept of the objects of a picture and of what a network finds: boxes and outlines at the picture's own size.

Boxes are left, top, right and bottom in pixels of the upright picture. Every figure follows from the tallies, see
`detection`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from transferkit.core.errors import ConfigError

__all__ = [
    "COLUMNS",
    "SIDE",
    "BoxTally",
    "Rle",
    "Thresholds",
    "box_tally",
    "outlines",
    "own_boxes",
    "pasted",
    "require_library",
    "sampled",
]

COLUMNS: Final = 6
"""Numbers of a detection before those of its mask: box, score, class."""
SIDE: Final = 28
"""Rows and columns of the logits of an instance's mask."""

Array = npt.NDArray[Any]

Rle: TypeAlias = Mapping[str, Any]
"""A mask as COCO packs it: ``"size"``, height and width, and ``"counts"``, bytes."""


@dataclass(frozen=True)
class Thresholds:
    """The scores from which on a detection is told.

    Attributes:
        every: One for all classes; ``None`` where none is any good.
        of_class: ``(C,)``, one of each class alone, likewise.
    """

    every: float | None
    of_class: tuple[float | None, ...]


@dataclass(frozen=True, eq=False)
class BoxTally:
    """What is kept of a picture and what a network finds in it: k detections, m objects.

    Attributes:
        boxes: ``(k, 4) float32``, the most confident first; of equal scores in the order of class and place.
        scores: ``(k,) float32`` in (0, 1].
        classes: ``(k,) int64``.
        true_boxes: ``(m, 4) float32``.
        true_classes: ``(m,) int64``.
        crowd: ``(m,) bool``: neither to be found nor wrong to find.
        masks: Of each detection; ``None`` where only boxes are predicted.
        true_masks: Of each object; ``None`` where only its box is known.
        size: ``(H, W)`` of the picture; ``None`` where nobody asked.
        thresholds: From which on its detections are told, chosen on other pictures; ``None`` for those of the model.
    """

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64]
    true_boxes: npt.NDArray[np.float32]
    true_classes: npt.NDArray[np.int64]
    crowd: npt.NDArray[np.bool_]
    masks: Sequence[Rle] | None = None
    true_masks: Sequence[Rle] | None = None
    size: tuple[int, int] | None = None
    thresholds: Thresholds | None = None


def box_tally(
    output: Tensor,
    frame: tuple[int, int, int, int],
    size: tuple[int, int],
    *,
    boxes: Array,
    classes: Array,
    crowd: Array | None = None,
    instances: npt.NDArray[np.uint16] | None = None,
    exact: bool = True,
) -> BoxTally:
    """Return what is kept of a picture.

    A row of the output is no detection where its score is 0 or a number of it is not finite, or where its box has no
    area within the picture: it lies on the padding. The order of the rows changes nothing.

    Args:
        output: ``(K, 6)`` on the canvas: box, score, class; or ``(K, 6 + 784)`` with logits of 28 x 28 on the box.
        frame: ``(top, left, height, width)`` of the picture on the canvas, in pixels.
        size: ``(H, W)`` of the picture.
        boxes: ``(m, 4)``, of the objects, in pixels of the picture.
        classes: ``(m,)``, of the objects.
        crowd: ``(m,) bool``; ``None`` for none.
        instances: ``(H, W)``: object k has the value k + 1; ``None`` where masks are unknown, and so not measured.
        exact: Whether masks are `sampled` instead of `pasted`. Heads of torchvision learn masks that lie half a pixel
            of the canvas too far left and up, which is taken back.

    Raises:
        ConfigError: The output has another shape, the frame is none, or what is said of the objects does not fit; masks
            are to be packed, and the package for it is missing.
    """
    true_boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    true_classes = np.asarray(classes, dtype=np.int64).reshape(-1)
    count = len(true_boxes)
    unseen = np.zeros(count, dtype=np.bool_) if crowd is None else np.asarray(crowd, dtype=np.bool_).reshape(-1)
    if not count == len(true_classes) == len(unseen):
        raise ConfigError(
            f"there are {count} boxes of objects, {len(true_classes)} classes and {len(unseen)} marks of crowds, "
            "expected as many of each"
        )
    if instances is not None and instances.shape != tuple(size):
        raise ConfigError(f"the mask of instances is of {instances.shape}, expected the picture's size, {tuple(size)}")
    rows, placed = _detections(output, frame, size)
    masks, true_masks = None, None
    if output.shape[1] > COLUMNS:
        logits = rows[:, COLUMNS:].reshape(-1, SIDE, SIDE)
        shift = torch.tensor([size[1] / frame[3], size[0] / frame[2]] * 2, dtype=torch.float64) / 2
        masks = sampled(logits, placed + shift, size) if exact else pasted(logits, placed, size)
        true_masks = None if instances is None else outlines(instances, count)
    return BoxTally(
        boxes=_clipped(placed, size).float().numpy(),
        scores=rows[:, 4].numpy(),
        classes=rows[:, 5].round().long().numpy(),
        true_boxes=true_boxes,
        true_classes=true_classes,
        crowd=unseen,
        masks=masks,
        true_masks=true_masks,
        size=(int(size[0]), int(size[1])),
    )


def own_boxes(boxes: Tensor, frame: tuple[int, int, int, int], size: tuple[int, int]) -> Tensor:
    """Bring boxes on the canvas to the picture's own pixels, without clipping.

    Args:
        boxes: ``(K, 4)``, on the canvas.
        frame: ``(top, left, height, width)`` of the picture on the canvas, in pixels.
        size: ``(H, W)`` of the picture.

    Returns:
        ``(K, 4) float64``; they may lie outside.
    """
    top, left, height, width = frame
    scale = torch.tensor([size[1] / width, size[0] / height] * 2, dtype=torch.float64)
    return (boxes.detach().cpu().double() - torch.tensor([left, top] * 2, dtype=torch.float64)) * scale


def pasted(logits: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[Rle]:
    """Return masks of detections at the picture's own size: where the probability is more than a half.

    They are what torchvision's `paste_masks_in_image` makes of the probabilities, bit by bit, but one at a time and no
    larger than its box: a hundred pictures of 24 million numbers would be 9 GiB.

    Args:
        logits: ``(K, 28, 28)``, on the boxes.
        boxes: ``(K, 4)`` in pixels of the picture; what lies outside is cut off.
        size: ``(H, W)`` of the picture.

    Raises:
        ConfigError: The package that packs masks is missing.
    """
    from torchvision.models.detection import roi_heads

    require_library()
    probs = logits.detach().cpu().float().sigmoid()[:, None]
    wide, scale = roi_heads.expand_masks(probs, 1)
    places = roi_heads.expand_boxes(boxes.float(), scale).to(torch.int64)
    masks = []
    for each, (left, top, right, bottom) in zip(wide[:, 0], places.tolist(), strict=True):
        first, last = (max(left, 0), max(top, 0)), (min(right + 1, size[1]), min(bottom + 1, size[0]))
        part = np.zeros((0, 0), dtype=np.bool_)
        if first[0] < last[0] and first[1] < last[1]:
            moved = torch.tensor([left, top, right, bottom]) - torch.tensor(first * 2)
            part = roi_heads.paste_mask_in_image(each, moved, last[1] - first[1], last[0] - first[0]).numpy() > 0.5
        masks.append(_packed(part, first[::-1], size))
    return masks


def sampled(logits: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[Rle]:
    """Return masks of detections at the picture's own size, each pixel by the probability at its centre.

    `pasted` rounds boxes to whole pixels and makes each a pixel larger, which costs small objects dear. Of 1,190 nuclei
    (40 pictures of BBBC038) with logits that are their true masks themselves, averaged over the cells of their true
    boxes by torchvision's `roi_align` on a canvas of 512 pixels, `pasted` has a mean average precision of 0.69, this
    function 1.00, on boxes that are moved as `box_tally` does.

    Args:
        logits: ``(K, 28, 28)``, on the boxes.
        boxes: ``(K, 4)`` in pixels of the picture; what lies outside is cut off.
        size: ``(H, W)`` of the picture.

    Raises:
        ConfigError: The package that packs masks is missing.
    """
    require_library()
    masks = []
    for probs, box in zip(logits.detach().cpu().float().sigmoid(), boxes.double(), strict=True):
        spans = []
        for side in (0, 1):  # columns, rows
            low, high = box[side], box[side + 2]
            first = max(int(low.floor()), 0)
            last = max(first, min(int(high.ceil()), size[1 - side]))
            spans.append((first, ((torch.arange(first, last) + 0.5 - low) / (high - low) * 2 - 1).float()))
        (left, across), (top, down) = spans
        if not len(across) or not len(down):
            masks.append(_packed(np.zeros((0, 0), dtype=np.bool_), (0, 0), size))
            continue
        grid = torch.stack([across.expand(len(down), -1), down[:, None].expand(-1, len(across))], dim=2)
        part = functional.grid_sample(probs[None, None], grid[None], align_corners=False)
        masks.append(_packed(part[0, 0].numpy() > 0.5, (top, left), size))
    return masks


def outlines(instances: npt.NDArray[np.uint16], count: int) -> list[Rle]:
    """Return the masks of objects that are numbered from 1, each of the pixels that show it.

    Args:
        instances: ``(H, W)``.
        count: Of the objects; one without a pixel has an empty mask.

    Raises:
        ConfigError: The package that packs masks is missing.
    """
    require_library()
    size = (instances.shape[0], instances.shape[1])
    places = ndimage.find_objects(instances, max_label=count) if count else []
    masks = []
    for number, place in enumerate(places, 1):
        if place is None:
            masks.append(_packed(np.zeros((0, 0), dtype=np.bool_), (0, 0), size))
        else:
            masks.append(_packed(instances[place] == number, (place[0].start, place[1].start), size))
    return masks


def require_library() -> None:
    """Make sure that faster-coco-eval is there, which packs masks and matches detections.

    Raises:
        ConfigError: It is not.
    """
    if importlib.util.find_spec("faster_coco_eval") is None:
        raise ConfigError("figures of boxes need faster-coco-eval, not installed - pip install 'transferkit[dense]'")


def _detections(output: Tensor, frame: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the rows that are detections, on the CPU, and their boxes in pixels of the picture, not clipped."""
    height, width = frame[2:]
    if output.ndim != 2 or output.shape[1] not in (COLUMNS, COLUMNS + SIDE * SIDE) or height < 1 or width < 1:
        raise ConfigError(
            f"the output is of {tuple(output.shape)} on a frame of {height} x {width} pixels, expected "
            f"(K, {COLUMNS}) or (K, {COLUMNS + SIDE * SIDE}) on one of a pixel or more"
        )
    rows = output.detach().cpu().float()
    placed = own_boxes(rows[:, :4], frame, size)
    inside = _clipped(placed, size)
    keep = (rows[:, 4] > 0) & rows.isfinite().all(dim=1) & ((inside[:, 2:] - inside[:, :2]) > 0).all(dim=1)
    rows, placed = rows[keep], placed[keep]
    keys = [*placed.T.flip(0).numpy(), rows[:, 5].numpy(), -rows[:, 4].numpy()]  # the last one counts most
    order = torch.from_numpy(np.lexsort(keys))
    return rows[order], placed[order]


def _clipped(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    most = torch.tensor([size[1], size[0]] * 2, dtype=boxes.dtype)
    return boxes.clamp(min=torch.zeros_like(most), max=most)


def _packed(part: npt.NDArray[np.bool_], corner: tuple[int, int], size: tuple[int, int]) -> Rle:
    """Return the RLE of a mask of which only the part from a corner (row, column) on may hold anything."""
    from faster_coco_eval.core import mask as library

    columns = np.zeros((part.shape[1], part.shape[0] + 2), dtype=np.int8)
    columns[:, 1:-1] = part.T
    steps = np.diff(columns, axis=1)
    # Of each run, where it begins and where it ends in the whole mask, column by column.
    begin, end = (
        (at + corner[1]) * size[0] + row + corner[0] for at, row in (np.nonzero(steps == way) for way in (1, -1))
    )
    apart = begin[1:] != end[:-1]  # a run to the foot of a column goes on at the head of the next
    begin, end = begin[np.r_[True, apart][: len(begin)]], end[np.r_[apart, True][: len(end)]]
    edges = np.stack([begin, end], axis=1).ravel()
    counts = np.diff(np.r_[0, edges, size[0] * size[1]])
    counts = counts[: len(counts) - int(len(counts) > 1 and not counts[-1])]  # a last run of nothing is not written
    packed: Rle = library.frPyObjects({"size": list(size), "counts": counts.tolist()}, *size)
    return packed
