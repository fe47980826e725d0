"""`BoxHeads`: the heads that a detection task can have, by name, and what their losses wait for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from transferkit.core.errors import ConfigError, gather
from transferkit.core.text import first_line
from transferkit.models.backbones.interface import Backbone
from transferkit.models.freezing import evaluation_mode
from transferkit.models.heads.feed import Feed, HeadInput, dry_run
from transferkit.models.heads.registry import HeadOf, head_of, list_heads, registered_head, unknown_head
from transferkit.models.objects.detector import widths
from transferkit.models.objects.one_stage import FCOSHead, RetinaNetHead
from transferkit.models.objects.two_stage import FasterRCNNHead, MaskRCNNHead

__all__ = ["BoxHeads", "Unanswered"]

DETECTORS: Final[Mapping[str, Callable[..., nn.Module]]] = {
    "faster_rcnn": FasterRCNNHead, "fcos": FCOSHead, "mask_rcnn": MaskRCNNHead, "retinanet": RetinaNetHead,
}  # fmt: skip


class _Objects(NamedTuple):
    """The objects of a picture, as `transferkit.data.batches.boxes.BoxTarget` has them."""

    boxes: Tensor
    classes: Tensor
    crowd: Tensor
    instances: Tensor


@dataclass(frozen=True, eq=False)
class Unanswered:
    """What a detector learns from, before the answers are known.

    Attributes:
        head: The detector.
        inputs: Images and maps.
    """

    head: Any
    inputs: tuple[Tensor, ...]

    def float(self) -> Unanswered:
        """Return itself: its losses are single numbers, made float32 by whoever adds them up."""
        return self

    def losses(self, targets: Any) -> dict[str, Tensor]:
        """Return the losses of these pictures, by name.

        Args:
            targets: `Boxes`.
        """
        losses: dict[str, Tensor] = self.head.losses(self.inputs, targets)
        return losses

    def sum(self) -> Tensor:
        """Return the sum of the losses of pictures that show nothing: it depends on all that learns, as a tensor's."""
        images = self.inputs[0]
        nothing = _Objects(
            images.new_zeros(0, 4), images.new_zeros(0, dtype=torch.int64), images.new_zeros(0, dtype=torch.bool),
            images.new_zeros(images.shape[2:], dtype=torch.int32),
        )  # fmt: skip
        return torch.stack([loss.float() for loss in self.losses([nothing] * len(images)).values()]).sum()


@dataclass(frozen=True)
class BoxHeads:
    """Heads that return boxes.

    Attributes:
        outlines: Whether the objects have outlines to learn.
        shapes: Width and height of typical objects, over the longer side of their picture; none where not known.
    """

    usual: str = "faster_rcnn"
    drops: bool = False
    lr: float = 3e-4
    probe_lr: float = 3e-4
    outlines: bool = True
    shapes: tuple[tuple[float, float], ...] = ()

    def names(self) -> list[str]:
        """Return the names of those that are known, sorted."""
        return list_heads(HeadOf.OBJECTS)

    def feed(self, head: str | nn.Module) -> Feed:
        """Return the pyramid."""
        return Feed.PYRAMID

    def learning(self, head: nn.Module, inputs: HeadInput) -> Unanswered:
        """Return what waits for the answers."""
        if not isinstance(inputs, tuple):
            raise TypeError("a detector is given images and maps")
        return Unanswered(head, inputs)

    def loss(self, head: nn.Module, loss: nn.Module) -> nn.Module:
        """Return the task's own."""
        return loss

    def build(self, head: str | nn.Module, backbone: Backbone, width: int, *, drop_rate: float = 0.0) -> nn.Module:
        """Return a head of `width` classes.

        Raises:
            BackboneError: The backbone has no pyramid.
            ConfigError: With everything that is wrong.
        """
        problems = unknown_head(head, HeadOf.OBJECTS)
        if drop_rate:
            problems.append(f"drop_rate={drop_rate} has no effect on a head of objects - leave it out")
        if head == "mask_rcnn" and not self.outlines:
            problems.append(
                "head mask_rcnn learns outlines, and not all objects of these data have one - use faster_rcnn"
            )
        if isinstance(head, nn.Module) and head_of(head) is not HeadOf.OBJECTS:
            problems.append(
                f"head {type(head).__name__} is a head of {head_of(head)} - set `takes_pyramid = True` and "
                "`finds_objects = True` on its class"
            )
        if problems:
            raise ConfigError(gather(problems))
        with evaluation_mode(backbone):
            built = head if isinstance(head, nn.Module) else self._named(head, backbone, width)
            _check(built, dry_run(backbone, Feed.PYRAMID))
        return built

    def _named(self, name: str, backbone: Backbone, width: int) -> nn.Module:
        levels, builder = backbone.pyramid(), registered_head(name)
        if builder is not None:
            return builder(levels, width)
        return DETECTORS[name](levels, width, self.shapes, max(backbone.data_config.image_size))


def _check(head: nn.Module, inputs: HeadInput) -> None:
    """Run a head once in eval mode, and check what it returns. Modes are restored. Raises `ConfigError`."""
    name = type(head).__name__
    if not callable(getattr(head, "losses", None)):
        raise ConfigError(f"head {name} has no losses(inputs, targets) to learn from - a head of objects needs them")
    try:
        with evaluation_mode(head), torch.no_grad():
            rows = head(inputs)
    except Exception as error:  # the user's own code: anything may come out of it
        raise ConfigError(
            f"head {name} fails on a blank picture: {first_line(error)} - a head must accept pictures and pyramids and "
            "return detections (B, K, 6)"
        ) from error
    shape = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
    if not isinstance(rows, Tensor) or rows.ndim != 3 or len(rows) != 1 or rows.shape[2] not in widths():
        raise ConfigError(
            f"head {name} returns {shape} - it must return detections (1, K, 6), or (1, K, 790) with masks"
        )
