"""The precision to compute in: one policy for training steps and for the forward passes of a frozen backbone.

``auto`` takes bf16 where the processor or GPU has it, where it is clearly faster, and where features stay what they
are. The answer is found once per processor, network, input size and release of torch, and remembered in the user's
cache, so that every verb and every process of this machine computes alike. Where a stopwatch cannot be trusted because
the machine is busy, it is fp32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import nn

from transferkit.machine.device import cpu_has_bf16, describe_device
from transferkit.machine.timings import Memory, compare

__all__ = [
    "COSINE",
    "GAIN",
    "Machine",
    "MemoryFormat",
    "Precision",
    "PrecisionChoice",
    "Trial",
    "choose_precision",
    "layout_of",
    "memory_of",
    "possible_precisions",
]

Precision = Literal["32", "bf16"]

MemoryFormat = Literal["channels_last", "contiguous"]

GAIN = 1.15
"""bf16 must be so much faster than fp32 to be chosen: a tie goes to the more exact one, run after run."""

COSINE = 0.9995
"""Smallest cosine of a row in bf16 with the same row in fp32 for features to be computed in bf16 unasked."""


@dataclass(frozen=True)
class Machine:
    """The means by which a run computes.

    Attributes:
        accelerator: ``"cpu"``, ``"gpu"`` or ``"mps"``.
        precision: ``"32"`` or ``"bf16"``.
        workers: Decoding processes.
        threads: Compute threads of this process.
        reason: Why steps run so.
        memory_format: How pictures and weights lie in memory while training: ``"channels_last"`` or ``"contiguous"``.
    """

    accelerator: str
    precision: Precision
    workers: int
    threads: int
    reason: str
    memory_format: MemoryFormat = "channels_last"

    @property
    def layout(self) -> torch.memory_format:
        """`memory_format` as torch's."""
        return layout_of(self.memory_format)


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
    possible, reason = possible_precisions(precision, device)
    if len(possible) == 1 and (precision != "auto" or possible == ("32",)):
        return PrecisionChoice(possible[0], reason)
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


def possible_precisions(precision: str, device: str) -> tuple[tuple[Precision, ...], str]:
    """Return the precisions to choose from, without a stopwatch, and why they are these.

    Args:
        precision: ``"auto"``, ``"32"`` or ``"bf16"``.
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``.
    """
    if precision != "auto":
        return (("bf16",) if precision == "bf16" else ("32",)), "as asked"
    if device == "mps":
        return ("32",), "bf16 autocast is not complete on MPS"
    if device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return ("32",), "the GPU has no bf16 arithmetic"
    if device == "cuda":
        return ("bf16",), "the GPU has bf16"  # and computes in it several times faster: nothing to time
    if not cpu_has_bf16():
        return ("32",), "the processor has no bf16 arithmetic"
    return ("32", "bf16"), "the processor has bf16"


def layout_of(memory_format: MemoryFormat) -> torch.memory_format:
    """Return torch's name of a memory format."""
    return torch.channels_last if memory_format == "channels_last" else torch.contiguous_format


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
