"""What a backbone costs: parameters, size on disk, memory of a training step, pictures per second on this machine."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import Final

import torch

from transferkit.core.errors import BackboneError
from transferkit.core.text import first_line
from transferkit.features.engine.compute import Compute, FrozenBackbone
from transferkit.features.engine.engine import Engine
from transferkit.features.engine.taps import find_taps
from transferkit.features.engine.trial import draw_pictures

__all__ = ["BATCH", "Cost", "measure_cost"]

BATCH: Final = 32
"""Pictures of the training step whose memory is told."""

ROUNDS: Final = 3
"""Batches that are timed; the quickest counts, as others disturb and none helps."""

LIMIT_S: Final = 3.0
"""Seconds after which no other batch is timed."""


@dataclass(frozen=True)
class Cost:
    """What a backbone costs on this machine.

    Attributes:
        parameters: How many.
        disk: Bytes of its tensors, as a finished model has them.
        memory: Bytes of a step of fine-tuning all of it on `BATCH` pictures: activations that wait for their gradients,
            counted on two pictures, weights, gradients and the two moments of AdamW. In fp32, without the allocator's
            own.
        images_per_s: Of the inference engine, decoding not counted, without compiling.
        precision: ``"32"`` or ``"bf16"``, of that.
        image_size: Height and width of its input.
    """

    parameters: int
    disk: int
    memory: int
    images_per_s: float
    precision: str
    image_size: tuple[int, int]


def measure_cost(frozen: FrozenBackbone, compute: Compute) -> Cost:
    """Measure a backbone.

    Args:
        frozen: The backbone.
        compute: What it runs on.

    Raises:
        BackboneError: It fails on a picture of its size.
    """
    backbone, taps = frozen.backbone, find_taps(frozen.backbone)
    try:
        precision = frozen.choose_precision(taps, compute).precision
        engine = Engine(backbone, taps, device=compute.device, precision=precision, compiling="off")
        rate = _rate(engine, compute, backbone.data_config.image_size)
        memory = _step_memory(frozen)
    except RuntimeError as error:  # whatever layers of any network say of a map that is too small for them
        size = " x ".join(map(str, backbone.data_config.image_size))
        raise BackboneError(
            f"{backbone.name} fails on a picture of {size} pixels ({first_line(error)}) - name another image_size"
        ) from error
    tensors = list(backbone.state_dict().values())
    return Cost(
        parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        disk=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        memory=memory,
        images_per_s=rate,
        precision=precision,
        image_size=backbone.data_config.image_size,
    )


def _rate(engine: Engine, compute: Compute, size: tuple[int, int]) -> float:
    """Return the pictures per second of the quickest of some batches, after one that warms up."""
    drawn = draw_pictures(size)
    images = drawn.repeat(-(-compute.batch // len(drawn)), 1, 1, 1)[: compute.batch]
    quickest, began = float("inf"), time.perf_counter()
    for number in range(1 + ROUNDS):
        started = time.perf_counter()
        engine.rows(images)
        if compute.device == "cuda":
            torch.cuda.synchronize()
        if number or time.perf_counter() - began > LIMIT_S:
            quickest = min(quickest, time.perf_counter() - started)
        if time.perf_counter() - began > LIMIT_S:
            break
    return len(images) / quickest


def _step_memory(frozen: FrozenBackbone) -> int:
    """Return the bytes of a training step: what autograd keeps of two pictures, scaled up, and four of each weight."""
    network = copy.deepcopy(frozen.backbone).cpu().requires_grad_(True).train()
    kept: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        features = network(torch.zeros(2, 3, *network.data_config.image_size))
    del features
    activations = sum(size for place, size in kept.items() if place not in weights)
    sizes = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    return round(activations / 2 * BATCH) + 4 * sizes
