"""The way of pictures to the head: all of the backbone, or what is left of it from a boundary on."""

from __future__ import annotations

import torch
from torch import Tensor

from transferkit.models.backbones.interface import Backbone
from transferkit.models.boundary import Boundary
from transferkit.models.heads.feed import Feed, HeadInput, detached, feed

__all__ = ["Passage"]


class Passage:
    """What a backbone makes of pictures for the head.

    Args:
        backbone: The backbone.
        kind: What the head is given.

    Attributes:
        memory_format: How pictures are laid out before they enter; ``None`` to take them as they come.
        boundary: Where training steps enter instead, while there is one.
    """

    def __init__(self, backbone: Backbone, kind: Feed) -> None:
        self.backbone = backbone
        self.kind = kind
        self.memory_format: torch.memory_format | None = None
        self.boundary: Boundary | None = None

    @property
    def is_frozen(self) -> bool:
        """Whether nothing of the backbone learns."""
        return not any(parameter.requires_grad for parameter in self.backbone.parameters())

    def inputs(self, images: Tensor) -> HeadInput:
        """Return what the head is given, outside autograd where nothing below the head learns.

        Args:
            images: ``(B, 3, H, W) float32``, normalised.
        """
        if torch.is_grad_enabled() and not images.requires_grad and self.is_frozen:
            # Nothing below the head can get a gradient: skip autograd's bookkeeping. The copy is an ordinary tensor,
            # which the head may save for its own backward pass.
            with torch.inference_mode():
                inputs = self.run(images)
            return detached(inputs)
        return self.run(images)

    def run(self, images: Tensor) -> HeadInput:
        """Return what the head is given, inside autograd."""
        if self.memory_format is not None:
            images = images.contiguous(memory_format=self.memory_format)
        return feed(self.backbone, self.kind, images)

    def open_boundary(self, stage: str) -> Boundary:
        """Let training steps take activations of `stage` instead of pictures, until `close_boundary`.

        Args:
            stage: The last frozen stage; ``""`` for the features of a frozen backbone.
        """
        self.close_boundary()
        run = self.backbone.forward_maps if self.kind is Feed.MAPS else self.backbone.forward
        self.boundary = Boundary(self.backbone, stage, run)
        return self.boundary

    def close_boundary(self) -> None:
        """Let training steps take pictures again."""
        if self.boundary is not None:
            self.boundary.close()
            self.boundary = None
