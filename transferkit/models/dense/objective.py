"""What training on masks minimises, and what is watched while it goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor, nn

from transferkit.core.errors import ConfigError
from transferkit.core.targets import IGNORED
from transferkit.machine.lightning_import import Metric
from transferkit.models.answers.losses import balanced_class_weights
from transferkit.models.dense.losses import MASK_LOSSES, PixelLoss, pixel_losses
from transferkit.models.parts import LossOptions

__all__ = ["MaskFigure", "MaskObjective"]

MONITORS: Final[Mapping[str, bool]] = {
    "loss": False, "miou": True, "dice": True, "pixel_acc": True, "balanced_acc": True,
}  # fmt: skip


@dataclass(frozen=True)
class MaskObjective:
    """Cross entropy and Dice over pixels, or what the options ask for; the mean IoU beside it.

    Attributes:
        pixels: Of each class in the training masks; nothing where they have not been counted.
    """

    losses: tuple[str, ...] = MASK_LOSSES
    smoothing: float | None = 0.0
    monitor: str = "miou"
    running: tuple[str, ...] = ("pixel_acc",)
    by_heart: tuple[float, float] = (0.01, 0.01)
    watched: tuple[str, ...] = ("miou", "dice")
    monitors: Mapping[str, bool] = field(default_factory=lambda: MONITORS)
    pixels: tuple[int, ...] = ()

    def loss(self, options: LossOptions, width: int) -> nn.Module:
        """Return a `PixelLoss`. Raises `ConfigError`."""
        weights = None if options.class_weights is None else torch.tensor(options.class_weights)
        name = self.losses[0] if options.name == "auto" else options.name
        return PixelLoss(
            name, gamma=options.focal_gamma, class_weights=weights, label_smoothing=options.label_smoothing
        )

    def balanced(self, targets: Tensor | None, width: int) -> list[float]:
        """Return a weight per class by the pixels of the training masks, see `balanced_class_weights`.

        Raises:
            ConfigError: They have not been counted.
        """
        if len(self.pixels) != width:
            raise ConfigError(f"--class-weights balanced needs the pixels of {width} classes, and they are not counted")
        weights: list[float] = balanced_class_weights(list(self.pixels)).tolist()
        return weights

    def item_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean negative log-likelihood of each picture's pixels, ``(B,)``."""
        return pixel_losses(outputs, targets)

    def scaled(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the logits of pixels as they are."""
        return outputs

    def running_sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the share of pixels that are right, summed over the pictures, ``(1,)``."""
        counts = targets != IGNORED
        right = ((outputs.argmax(dim=1) == targets) & counts).sum(dim=(1, 2))
        return (right / counts.sum(dim=(1, 2)).clamp_min(1)).sum().reshape(1)

    def metrics(self, names: Sequence[str], width: int) -> dict[str, Metric]:
        """Return a metric for each of these figures, of `width` classes. Raises `ConfigError`."""
        unknown = [name for name in names if name not in self.monitors]
        if unknown:
            raise ConfigError(f"there is no figure {unknown[0]!r} to watch, expected one of {', '.join(self.monitors)}")
        return {name: MaskFigure(name, width) for name in names}


class MaskFigure(Metric):
    """A figure of the pixels of an epoch, on the canvas that the network sees.

    Args:
        name: One of the figures of `MaskObjective.monitors`.
        num_classes: Number of classes C.
    """

    confusion: Tensor

    def __init__(self, name: str, num_classes: int) -> None:
        super().__init__()
        self.name = name
        self.add_state("confusion", torch.zeros(num_classes, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Count a batch: scores ``(B, C, H, W)`` and classes ``(B, H, W)``; nothing here waits for the device."""
        width = len(self.confusion)
        # Pixels that do not count get a cell of their own at the end.
        cells = torch.where(targets != IGNORED, targets.long() * width + predictions.argmax(dim=1), width * width)
        counts = torch.zeros(width * width + 1, dtype=torch.int64, device=cells.device)
        counts.index_add_(0, cells.flatten(), torch.ones_like(cells).flatten())
        self.confusion += counts[:-1].reshape(width, width)

    def compute(self) -> Tensor:
        """Return the figure, a scalar."""
        confusion = self.confusion.double()
        hits, truths, predicted = confusion.diagonal(), confusion.sum(dim=1), confusion.sum(dim=0)
        if self.name == "pixel_acc":
            return hits.sum() / truths.sum().clamp_min(1)
        shares = {
            "miou": (hits, truths + predicted - hits),
            "dice": (2 * hits, truths + predicted),
            "balanced_acc": (hits, truths),
        }
        of, over = shares[self.name]
        return (of / over.clamp_min(1)).sum() / (over > 0).sum().clamp_min(1)
