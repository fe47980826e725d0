"""What the machine at hand does best: accelerator, threads, allocator, precision. Measured, not assumed."""

from __future__ import annotations

import copy
import ctypes
import sys
import time
import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

from transferkit.data.datamodule import available_cores
from transferkit.errors import ConfigError, TransferkitWarning
from transferkit.models.module import TransferModule

__all__ = ["Machine", "choose_accelerator", "choose_precision", "choose_workers", "tune_process"]

Precision = Literal["32", "bf16"]

GAIN = 1.15
"""bf16 must be so much faster than fp32 to be chosen: a tie goes to the more exact one, run after run."""

TRIAL_S = 4.0
"""Seconds after which the measurement of bf16 against fp32 ends, once both have been timed."""

GPU_WORKERS = 16
"""More decoding processes than this have not been seen to help one GPU."""


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


def choose_accelerator(wanted: str, devices: int = 1) -> str:
    """Return the accelerator to use.

    Args:
        wanted: ``"auto"``, ``"cpu"``, ``"gpu"`` or ``"mps"``.
        devices: How many of them.

    Raises:
        ConfigError: It is not there; nothing falls back to the CPU silently.
    """
    present = ["cpu"]
    if torch.cuda.is_available():
        present.append("gpu")
    if torch.backends.mps.is_available():
        present.append("mps")
    if wanted == "auto":
        return present[-1]
    if wanted not in present:
        raise ConfigError(f"--accelerator {wanted} is not on this machine, which has: {', '.join(present)}")
    if wanted == "gpu" and devices > torch.cuda.device_count():
        raise ConfigError(f"--devices {devices}, but this machine has {torch.cuda.device_count()} GPU(s)")
    return wanted


def choose_workers(wanted: int | None, accelerator: str) -> tuple[int, int]:
    """Return decoding processes and compute threads; on a CPU together never more than there are cores.

    OpenMP's threads spin at barriers: two of them beside one busy core have been measured ten times slower than one.
    So on few cores pictures are decoded between the steps, on all cores, and compute has all of them in turn. A GPU
    leaves the cores free: one is kept for the process that feeds it.

    Args:
        wanted: What the user asked for, or ``None``.
        accelerator: From `choose_accelerator`.
    """
    cores = available_cores()
    if accelerator != "cpu":
        workers = min(GPU_WORKERS, max(1, cores - 1)) if wanted is None else wanted
        return workers, max(1, cores - workers)
    workers = cores // 8 if wanted is None else wanted
    if workers > cores - 1:
        warnings.warn(
            f"--workers {workers} beside a compute thread would outnumber the {cores} core(s); using {cores - 1}",
            TransferkitWarning,
            stacklevel=3,
        )
        workers = cores - 1
    return workers, cores - workers


def tune_process(threads: int) -> None:
    """Set this process up for training: compute threads, and memory that is kept instead of returned at every step.

    glibc hands large freed blocks back to the system and faults them in again at the next step, which has been
    measured to cost up to half the speed of small batches on a CPU.
    """
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high")  # TF32 where a GPU has it; no effect on CPUs
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # not glibc
    m_trim_threshold, m_mmap_threshold = -1, -3
    mallopt(ctypes.c_int(m_mmap_threshold), ctypes.c_int(1 << 30))
    mallopt(ctypes.c_int(m_trim_threshold), ctypes.c_int((1 << 31) - 1))


def choose_precision(wanted: str, accelerator: str, module: TransferModule, batch_size: int) -> tuple[Precision, str]:
    """Return ``"32"`` or ``"bf16"``, and why.

    On a CPU `auto` times a few training steps of each on the model and batch size at hand: bf16 is several times faster
    for dense convolutions on processors with AMX, and slower than fp32 for depthwise ones.

    Args:
        wanted: ``"auto"``, ``"32"`` or ``"bf16"``.
        accelerator: From `choose_accelerator`.
        module: The model; a copy is timed.
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
    if not _cpu_has_bf16():
        return "32", "the processor has no bf16 arithmetic"
    trial = copy.deepcopy(module).to(memory_format=torch.channels_last)
    full, half = _time_steps(trial, batch_size)
    ratio = full / half
    return ("bf16" if ratio >= GAIN else "32"), f"a training step in bf16 is {ratio:.2f} times as fast as in fp32 here"


def _cpu_has_bf16() -> bool:
    capability = torch.backends.cpu.get_cpu_capability()
    return capability == "AVX512" and bool(torch.cpu._is_avx512_bf16_supported())


def _time_steps(module: TransferModule, batch_size: int) -> tuple[float, float]:
    """Return the shortest seconds of a training step in fp32 and in bf16.

    They take turns, so that other work on the machine disturbs both alike; the first of each warms up, uncounted.
    """
    module.requires_grad_(True)
    module.train()
    size = module.data_config.image_size
    images = torch.zeros(min(batch_size, 32), 3, *size).contiguous(memory_format=torch.channels_last)
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
