"""The precision to train in: measured on the model and machine at hand, not assumed."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from transferkit.machine.device import cpu_has_bf16

__all__ = ["Machine", "choose_precision"]

Precision = Literal["32", "bf16"]

GAIN = 1.15
"""bf16 must be so much faster than fp32 to be chosen: a tie goes to the more exact one, run after run."""

TRIAL_S = 4.0
"""Seconds after which the measurement of bf16 against fp32 ends, once both have been timed."""


@dataclass(frozen=True)
class Machine:
    """What a run computes with.

    Attributes:
        accelerator: ``"cpu"``, ``"gpu"`` or ``"mps"``.
        precision: ``"32"`` or ``"bf16"``.
        workers: Decoding processes.
        threads: Compute threads of this process.
        reason: Why this precision, for the log.
    """

    accelerator: str
    precision: Precision
    workers: int
    threads: int
    reason: str


def choose_precision(
    wanted: str, accelerator: str, module: nn.Module, image_size: tuple[int, int], batch_size: int
) -> tuple[Precision, str]:
    """Return ``"32"`` or ``"bf16"``, and why.

    On a CPU `auto` times a few training steps of each on the model and batch size at hand: bf16 is several times faster
    for dense convolutions on processors with AMX, and slower than fp32 for depthwise ones.

    Args:
        wanted: ``"auto"``, ``"32"`` or ``"bf16"``.
        accelerator: From `choose_accelerator`.
        module: The model; a copy is timed.
        image_size: ``(height, width)`` of the input, in pixels.
        batch_size: Pictures per step.
    """
    if wanted != "auto":
        return ("bf16" if wanted == "bf16" else "32"), "as asked"
    if accelerator == "gpu":
        return (
            ("bf16", "the GPU has it") if torch.cuda.is_bf16_supported(including_emulation=False) else ("32", "no bf16")
        )
    if accelerator == "mps":
        return "32", "bf16 autocast is not complete on MPS"
    if not cpu_has_bf16():
        return "32", "the processor has no bf16 arithmetic"
    trial = copy.deepcopy(module).to(memory_format=torch.channels_last)
    full, half = _time_steps(trial, image_size, batch_size)
    ratio = full / half
    return ("bf16" if ratio >= GAIN else "32"), f"a training step in bf16 is {ratio:.2f} times as fast as in fp32 here"


def _time_steps(module: nn.Module, image_size: tuple[int, int], batch_size: int) -> tuple[float, float]:
    """Return the shortest seconds of a training step in fp32 and in bf16.

    They take turns, so that other work on the machine disturbs both alike; the first of each warms up, uncounted.
    """
    module.requires_grad_(True)
    module.train()
    images = torch.zeros(min(batch_size, 32), 3, *image_size).contiguous(memory_format=torch.channels_last)
    targets = torch.zeros(len(images), dtype=torch.int64)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    began = time.perf_counter()
    while len(seconds[True]) < 2 or (len(seconds[True]) < 5 and time.perf_counter() - began < TRIAL_S):
        for half in (False, True):
            started = time.perf_counter()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                loss = functional.cross_entropy(module(images).float(), targets)
            torch.autograd.backward(loss)
            module.zero_grad(set_to_none=True)
            seconds[half].append(time.perf_counter() - started)
    return min(seconds[False][1:]), min(seconds[True][1:])
