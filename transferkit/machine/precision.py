"""The precision to compute in: one policy for training steps and for the forward passes of a frozen backbone.

``auto`` takes bf16 where the processor or GPU has it, where it is clearly faster, and where features stay what they
are. The answer is found once per processor, network, input size and release of torch, and remembered in the user's
cache, so that every verb and every process of this machine computes alike. Where a stopwatch cannot be trusted because
the machine is busy, it is fp32.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import torch
from torch import nn

from transferkit.machine.device import cpu_has_bf16, describe_device, device_of
from transferkit.machine.timings import Memory, compare

__all__ = [
    "COSINE",
    "GAIN",
    "Machine",
    "Precision",
    "PrecisionChoice",
    "Trial",
    "choose_precision",
    "choose_training_precision",
    "memory_of",
]

Precision = Literal["32", "bf16"]

GAIN = 1.15
"""bf16 must be so much faster than fp32 to be chosen: a tie goes to the more exact one, run after run."""

COSINE = 0.9995
"""Smallest cosine of a row in bf16 with the same row in fp32 for features to be computed in bf16 unasked."""

TRIAL_BATCH = 32
"""Pictures of a timed training step, at most."""


@dataclass(frozen=True)
class Machine:
    """The means by which a run computes.

    Attributes:
        accelerator: ``"cpu"``, ``"gpu"`` or ``"mps"``.
        precision: ``"32"`` or ``"bf16"``.
        workers: Decoding processes.
        threads: Compute threads of this process.
        reason: Why this precision.
    """

    accelerator: str
    precision: Precision
    workers: int
    threads: int
    reason: str


@dataclass(frozen=True)
class PrecisionChoice:
    """A precision, and what is known of its error.

    Attributes:
        precision: ``"32"`` or ``"bf16"``.
        reason: Why, for the user.
        cosine: Smallest cosine of a row with fp32; ``None`` where it was not needed.
    """

    precision: Precision
    reason: str
    cosine: float | None = None


class Trial(Protocol):
    """Work that can be done in fp32 and in bf16.

    Attributes:
        work: What it is, in words; also its name in the memory.
    """

    work: str

    @property
    def memory(self) -> Memory:
        """Of the network, from `memory_of`."""

    def ways(self) -> tuple[Callable[[], object], Callable[[], object]]:
        """Return the work in fp32 and in bf16, ready to be timed; only called on a CPU that has bf16."""

    def cosine(self) -> float | None:
        """Return the smallest cosine of a row in bf16 with fp32; ``None`` where no row is kept."""


def choose_precision(precision: str, device: str, trial: Trial) -> PrecisionChoice:
    """Return the precision: as the user says, as the device must have it, or as it was measured once and for all.

    Args:
        precision: ``"auto"``, ``"32"`` or ``"bf16"``.
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``.
        trial: The work at hand.
    """
    if precision != "auto":
        return PrecisionChoice("bf16" if precision == "bf16" else "32", "as asked")
    if device == "mps":
        return PrecisionChoice("32", "bf16 autocast is not complete on MPS")
    if device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return PrecisionChoice("32", "the GPU has no bf16 arithmetic")
    if device == "cpu" and not cpu_has_bf16():
        return PrecisionChoice("32", "the processor has no bf16 arithmetic")
    reason = "the GPU has bf16"  # and computes in it several times faster: nothing to time
    if device == "cpu":
        gain = _gain(trial)
        if gain is None:
            return PrecisionChoice("32", "this machine is too busy to time bf16; it is tried again another time")
        reason = f"{trial.work} in bf16 is {gain:.2f} times as fast as in fp32 here"
        if gain < GAIN:
            return PrecisionChoice("32", f"{reason}, expected {GAIN}")
    cosine = trial.cosine()
    if cosine is None:
        return PrecisionChoice("bf16", reason)
    reason += f", smallest cosine with fp32 {cosine:.6f}"
    if cosine < COSINE:
        return PrecisionChoice("32", f"{reason}, expected {COSINE}", cosine)
    return PrecisionChoice("bf16", reason, cosine)


def choose_training_precision(
    precision: str, accelerator: str, backbone: nn.Module, image_size: tuple[int, int], batch_size: int
) -> PrecisionChoice:
    """Return the precision to train in.

    On a CPU ``auto`` times training steps: bf16 is several times faster for dense convolutions on processors with AMX,
    and slower than fp32 for depthwise ones.

    Args:
        precision: ``"auto"``, ``"32"`` or ``"bf16"``.
        accelerator: From `choose_accelerator`.
        backbone: Returns a tensor for pictures ``(B, 3, H, W)``; a copy is timed.
        image_size: ``(height, width)`` of the input, in pixels.
        batch_size: Pictures per step.
    """
    device = device_of(accelerator)
    return choose_precision(precision, device, TrainingTrial(backbone, image_size, batch_size, device))


class TrainingTrial:
    """A training step of a backbone, for `choose_precision`. Arguments as for `choose_training_precision`."""

    def __init__(self, backbone: nn.Module, image_size: tuple[int, int], batch_size: int, device: str) -> None:
        self.backbone = backbone
        self.shape = (max(2, min(batch_size, TRIAL_BATCH)), 3, *image_size)  # batch norm needs two
        self.device = device
        self.work = f"a training step of {self.shape[0]}"

    @property
    def memory(self) -> Memory:
        """Of the backbone."""
        return memory_of(self.backbone, self.shape[2:], self.device)

    def ways(self) -> tuple[Callable[[], None], Callable[[], None]]:
        """Return a training step of a copy in fp32, and in bf16."""
        trial = copy.deepcopy(self.backbone).to(memory_format=torch.channels_last).requires_grad_(True).train()
        images = torch.zeros(self.shape).contiguous(memory_format=torch.channels_last)

        def step(half: bool) -> None:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                loss = trial(images).float().square().mean()
            torch.autograd.backward(loss)
            trial.zero_grad(set_to_none=True)

        return partial(step, False), partial(step, True)

    def cosine(self) -> None:
        """A step leaves no row that is kept."""


def memory_of(network: nn.Module, image_size: tuple[int, int], device: str) -> Memory:
    """Return what was measured of a network's structure, whatever its weights, on this kind of processor.

    Args:
        network: The network.
        image_size: ``(height, width)`` of the input, in pixels.
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``.
    """
    return Memory(
        {
            "network": hashlib.sha256(repr(network).encode()).hexdigest(),
            "size": list(image_size),
            "device": describe_device(device),
            "torch": str(torch.__version__),
        }
    )


def _gain(trial: Trial) -> float | None:
    """Return how many times as fast bf16 is, as it is known or measured now; ``None`` where it cannot be measured."""
    memory, work = trial.memory, trial.work
    if work not in memory.recall():
        with memory.alone():
            if work not in memory.recall():
                with torch.random.fork_rng(devices=[]):  # a run must not depend on whether it is the one that measures
                    memory.remember({work: compare(*trial.ways())})
    return memory.recall()[work]
