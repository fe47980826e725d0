"""The trial of bf16 for features: is it faster here, and does every row point where fp32's does?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from transferkit.features.engine.engine import Engine
from transferkit.features.engine.taps import Tap
from transferkit.machine.precision import memory_of
from transferkit.machine.timings import Memory
from transferkit.models.backbones.interface import Backbone

__all__ = ["FeatureTrial", "draw_pictures"]

PICTURES = 32
"""Pictures that bf16 is tried on."""

LEAVES = 40
"""Rectangles of each."""


@dataclass
class FeatureTrial:
    """A frozen backbone in fp32 and in bf16, for `choose_precision`.

    The pictures are drawn: the answer depends on the network and the machine alone, not on the data that come first.

    Attributes:
        backbone: The backbone.
        digest: What identifies its weights.
        taps: Where features are taken.
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``.
    """

    backbone: Backbone
    digest: str
    taps: Sequence[Tap]
    device: str
    work: str = f"a forward pass of {PICTURES}"

    @property
    def memory(self) -> Memory:
        """Of the backbone, whatever its weights."""
        return memory_of(self.backbone, self.backbone.data_config.image_size, self.device)

    def ways(self) -> tuple[Callable[[], object], Callable[[], object]]:
        """Return a forward pass in fp32, and in bf16."""
        return partial(self._full.rows, self._pictures), partial(self._half.rows, self._pictures)

    def cosine(self) -> float:
        """Return the smallest cosine of a row in bf16 with fp32's, as it is remembered or measured now."""
        memory = Memory({**self.memory.subject, "weights": self.digest})
        places = ", ".join(f"{tap.layer} {tap.pool}" for tap in self.taps)
        cosine = memory.recall().get(places)
        if cosine is None:
            rows = zip(self._half.rows(self._pictures), self._full.rows(self._pictures), strict=True)
            cosines = torch.cat([functional.cosine_similarity(half, full, dim=1) for half, full in rows])
            cosine = float(cosines.nan_to_num(-1.0).min())  # what is no number points nowhere
            memory.remember({places: cosine})
        return cosine

    @cached_property
    def _full(self) -> Engine:
        return Engine(self.backbone, self.taps, device=self.device, precision="32", compiling="off")

    @cached_property
    def _half(self) -> Engine:
        return Engine(self.backbone, self.taps, device=self.device, precision="bf16", compiling="off")

    @cached_property
    def _pictures(self) -> Tensor:
        return draw_pictures(self.backbone.data_config.shown_shape)


def draw_pictures(shape: tuple[int, int, int]) -> Tensor:
    """Return pictures to try a network on, ``(PICTURES, *shape) uint8``, the same ones always.

    Rectangles of all sizes lie on each other like dead leaves, whose edges and sizes are distributed as in photos (Lee,
    Mumford and Huang 2001, "Occlusion Models for Natural Images"). Some pictures are bright and full of contrast, some
    dark and faint: on the latter, rounding has been seen to move features of `transferkit/mini` most.

    Args:
        shape: ``(height, width, channels)``.
    """
    generator = np.random.default_rng(0)
    height, width, channels = shape
    pictures = np.empty((PICTURES, *shape), dtype=np.float32)
    for picture in pictures:
        picture[:] = generator.uniform(-1, 1, channels)
        for top, left, tall, wide, *colour in generator.uniform(-1, 1, (LEAVES, 4 + channels)):
            # Sides go down to 2 pixels, most of them small.
            sides = [2 + round(length * abs(share) ** 3) for length, share in ((height, tall), (width, wide))]
            y, x = (round((place + 1) / 2 * length) for length, place in ((height, top), (width, left)))
            picture[y : y + sides[0], x : x + sides[1]] = colour
        picture *= 128 * generator.uniform(0.05, 1)
        picture += generator.uniform(20, 235)
    return torch.from_numpy(pictures.clip(0, 255).astype(np.uint8))
