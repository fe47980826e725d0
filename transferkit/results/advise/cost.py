"""What a backbone costs: parameters, size on disk, memory of a training step, pictures per second on this machine."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch

from transferkit.core.errors import BackboneError
from transferkit.core.text import first_line
from transferkit.features.engine.compute import Compute, FrozenBackbone
from transferkit.features.engine.engine import Engine
from transferkit.features.engine.taps import find_taps
from transferkit.features.engine.trial import draw_pictures

__all__ = ["BATCH", "Cost", "measure_cost", "with_speeds"]

BATCH: Final = 32
"""Pictures of the training step whose memory is told."""

ROUNDS: Final = 5
"""Batches of each that are timed; the quickest counts, as others disturb and none helps."""


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
        channels: Of its pictures.
    """

    parameters: int
    disk: int
    memory: int
    images_per_s: float
    precision: str
    image_size: tuple[int, int]
    channels: int = 3


def measure_cost(frozen: FrozenBackbone, compute: Compute) -> tuple[Cost, Engine]:
    """Return what a backbone costs, its speed not known yet, and the engine to time it by.

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
        memory = _step_memory(frozen)
    except RuntimeError as error:  # whatever layers of any network say of a map that is too small for them
        size = " x ".join(map(str, backbone.data_config.image_size))
        raise BackboneError(
            f"{backbone.name} fails on a picture of {size} pixels ({first_line(error)}) - name another image_size"
        ) from error
    tensors = list(backbone.state_dict().values())
    cost = Cost(
        parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        disk=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        memory=memory,
        images_per_s=0.0,
        precision=precision,
        image_size=backbone.data_config.image_size,
        channels=backbone.data_config.channels,
    )
    return cost, engine


def with_speeds(measured: Sequence[tuple[Cost, Engine]], compute: Compute) -> list[Cost]:
    """Return costs with the pictures per second of each engine: the quickest of `ROUNDS` batches after one to warm up.

    The engines take turns, so that other work on the machine disturbs all of them alike.

    Args:
        measured: What `measure_cost` returns for each candidate.
        compute: What they run on.
    """
    batches = []
    for cost, _ in measured:
        drawn = draw_pictures((*cost.image_size, cost.channels))
        batches.append(drawn.repeat(-(-compute.batch // len(drawn)), 1, 1, 1)[: compute.batch])
    quickest = [math.inf] * len(measured)
    for number in range(1 + ROUNDS):
        for at, ((_, engine), images) in enumerate(zip(measured, batches, strict=True)):
            started = time.perf_counter()
            engine.rows(images)
            if compute.device == "cuda":
                torch.cuda.synchronize()
            if number:
                quickest[at] = min(quickest[at], time.perf_counter() - started)
    return [
        replace(cost, images_per_s=compute.batch / seconds)
        for (cost, _), seconds in zip(measured, quickest, strict=True)
    ]


def _step_memory(frozen: FrozenBackbone) -> int:
    """Return the bytes of a training step: what autograd keeps of two pictures, scaled up, and four of each weight."""
    network = copy.deepcopy(frozen.backbone).cpu().requires_grad_(True).train()
    saved: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        features = network(torch.zeros(2, *network.data_config.input_shape))
    del features
    activations = sum(size for place, size in saved.items() if place not in weights)
    sizes = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    return round(activations / 2 * BATCH) + 4 * sizes
