"""What training on objects minimises, and what is watched while it goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from transferkit.core.errors import ConfigError
from transferkit.machine.lightning_import import Metric, dim_zero_cat
from transferkit.models.detections.counts import BoxCounts
from transferkit.models.figures.boxes import box_tally
from transferkit.models.objects.kinds import Unanswered
from transferkit.models.parts import LossOptions

__all__ = ["BoxFigure", "BoxObjective", "overlap_losses"]

MONITORS: Final[Mapping[str, bool]] = {"loss": False, "map": True, "map50": True, "map75": True}
HALF: Final = 0.5
WIDE: Final = (1 << 20, 1 << 20)
"""Sides of a canvas that nothing reaches beyond."""


@dataclass(frozen=True)
class BoxObjective:
    """The detector's own losses, in sum; mean average precision beside them."""

    losses: tuple[str, ...] = ("detector",)
    smoothing: float | None = None
    monitor: str = "map"
    running: tuple[str, ...] = ()
    by_heart: tuple[float, float] = (0.5, 0.3)  # of regions that are drawn some are always hard
    watched: tuple[str, ...] = ("map", "map50")
    monitors: Mapping[str, bool] = field(default_factory=lambda: MONITORS)

    def loss(self, options: LossOptions, width: int) -> nn.Module:
        """Return the sum of the detector's losses. Raises `ConfigError`."""
        if options.class_weights is not None:
            raise ConfigError("--class-weights: detectors weigh objects by themselves - leave it out")
        return DetectorLoss()

    def balanced(self, targets: Any, width: int) -> list[float]:
        """Refuse: there is nothing to balance. Raises `ConfigError`."""
        raise ConfigError("--class-weights balanced: detectors weigh objects by themselves - leave it out")

    def item_losses(self, outputs: Any, targets: Any) -> Tensor:
        """Return the loss of each picture, ``(B,)``: of detections `overlap_losses`.

        Of what still waits for the answers, the detector's losses, as many times as there are pictures.
        """
        if isinstance(outputs, Unanswered):
            return _total(outputs, targets).expand(len(targets))
        return overlap_losses(outputs, targets)

    def scaled(self, outputs: Any, targets: Any) -> Any:
        """Return detections as they are."""
        return outputs

    def running_sums(self, outputs: Any, targets: Any) -> Tensor:
        """Return nothing, ``(0,)``."""
        none: Tensor = targets[0].boxes.new_zeros(0)
        return none

    def metrics(self, names: Sequence[str], width: int) -> dict[str, Metric]:
        """Return a metric for each of these figures, of `width` classes. Raises `ConfigError`."""
        unknown = [name for name in names if name not in self.monitors]
        if unknown:
            raise ConfigError(f"there is no figure {unknown[0]!r} to watch, expected one of {', '.join(self.monitors)}")
        return {name: BoxFigure(name, width) for name in names}


class DetectorLoss(nn.Module):
    """The sum of a detector's losses, a scalar."""

    def forward(self, outputs: Unanswered, targets: Any) -> Tensor:
        """Return it for what waits for the answers, and `Boxes`."""
        return _total(outputs, targets)


def overlap_losses(detections: Tensor, targets: Any) -> Tensor:
    """Return one minus the F1 of each picture's detections, scores counted as parts of boxes: ``(B,)`` in [0, 1].

    ``1 - 2 R / (S + M)``: R the scores of the detections that find an object, S those of all, M the objects. A
    detection finds the object of its class that it overlaps most, by a half or more, if no more confident one does.
    It is the Dice loss of boxes; unlike a detector's losses it needs no more than detections, and draws nothing. What
    finds a crowd counts neither way, and a picture without objects and detections has a loss of 0.

    Args:
        detections: ``(B, K, 6 or more)``, see `transferkit.models.objects.detector.Detector`.
        targets: `Boxes`, on the same device.
    """
    from torchvision.ops import box_iou

    losses = []
    for rows, one in zip(detections.float(), targets, strict=True):
        scores = rows[:, 4]
        if not len(one.classes):
            losses.append((scores.sum() > 0).float())
            continue
        overlaps = box_iou(rows[:, :4], one.boxes.float()) * (rows[:, 5, None] == one.classes)
        best, thing = overlaps.nan_to_num().max(dim=1)
        matched = best >= HALF
        claims = torch.where(matched, scores, 0.0)
        most = claims.new_zeros(len(one.classes)).scatter_reduce(0, thing, claims, "amax")
        crowd = one.crowd[thing] & matched
        right = matched & ~crowd & (scores == most[thing])
        counted = torch.where(crowd, 0.0, scores)
        whole = counted.sum() + (~one.crowd).sum()
        losses.append(torch.where(whole > 0, 1 - 2 * (counted * right).sum() / whole.clamp_min(1e-12), 0.0))
    return torch.stack(losses)


class BoxFigure(Metric):
    """A figure of the objects of an epoch, on the canvas that the network sees.

    Args:
        name: One of the figures of `BoxObjective.monitors`.
        num_classes: Number of classes C.
    """

    detections: list[Tensor]
    objects: list[Tensor]

    def __init__(self, name: str, num_classes: int) -> None:
        super().__init__()
        self.name, self.num_classes = name, num_classes
        self._pictures = 0
        for state in ("detections", "objects"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def update(self, predictions: Tensor, targets: Any) -> None:
        """Keep a batch: detections ``(B, K, 6 or more)`` and `Boxes`; nothing here waits for the device."""
        # Each process gives pictures numbers that no other does; double precision keeps them.
        world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        own = torch.distributed.get_rank() if world > 1 else 0
        for rows, one in zip(predictions.double(), targets, strict=True):
            number = self._pictures * world + own
            self._pictures += 1
            self.detections.append(functional.pad(rows[:, :6], (1, 0), value=float(number)))
            columns = (one.boxes.double(), one.classes.double()[:, None], one.crowd.double()[:, None])
            self.objects.append(functional.pad(torch.cat(columns, dim=1), (1, 0), value=float(number)))

    def reset(self) -> None:
        """Forget all pictures."""
        super().reset()
        self._pictures = 0

    def compute(self) -> Tensor:
        """Return the figure, a scalar; 0 where no picture has an object."""
        detections, objects = (dim_zero_cat(side).cpu() for side in (self.detections, self.objects))
        tallies = []
        for number in torch.unique(detections[:, 0]).tolist():
            rows, true = (side[side[:, 0] == number, 1:] for side in (detections, objects))
            boxes, classes, crowd = true[:, :4].numpy(), true[:, 4].numpy(), true[:, 5].numpy() > 0
            tallies.append(box_tally(rows, (0, 0, *WIDE), WIDE, boxes=boxes, classes=classes, crowd=crowd))
        counts = BoxCounts(tallies, range(self.num_classes), masks=False)
        values = dict(zip(counts.names[0], counts.figures(np.ones(len(tallies))).tolist(), strict=False))
        return torch.tensor(values[self.name], dtype=torch.float64).nan_to_num()


def _total(outputs: Unanswered, targets: Any) -> Tensor:
    return torch.stack([loss.float() for loss in outputs.losses(targets).values()]).sum()
