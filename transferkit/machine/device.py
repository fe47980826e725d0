"""The device to compute on: accelerator, cores for decoding and for compute, allocator, whether there is bf16."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from transferkit.core.errors import ConfigError, TransferkitWarning
from transferkit.machine.cores import available_cores, has_shared_memory

__all__ = [
    "choose_accelerator",
    "choose_workers",
    "compute_threads",
    "cpu_has_bf16",
    "describe_device",
    "device_of",
    "keep_memory",
    "tune_process",
]

GPU_WORKERS = 16
"""More decoding processes than this have not been seen to help one GPU."""


def choose_accelerator(accelerator: str, devices: int = 1) -> str:
    """Return the accelerator to use.

    Args:
        accelerator: ``"auto"``, ``"cpu"``, ``"gpu"`` or ``"mps"``.
        devices: How many of them.

    Raises:
        ConfigError: It is not there; nothing falls back to the CPU silently.
    """
    present = ["cpu"]
    if torch.cuda.is_available():
        present.append("gpu")
    if torch.backends.mps.is_available():
        present.append("mps")
    if accelerator == "auto":
        return present[-1]
    if accelerator not in present:
        raise ConfigError(f"--accelerator {accelerator} is not on this machine, which has: {', '.join(present)}")
    if accelerator == "gpu" and devices > torch.cuda.device_count():
        raise ConfigError(f"--devices {devices}, but this machine has {torch.cuda.device_count()} GPU(s)")
    return accelerator


def device_of(accelerator: str) -> str:
    """Return torch's name of an accelerator: ``"cpu"``, ``"cuda"`` or ``"mps"``."""
    return {"gpu": "cuda"}.get(accelerator, accelerator)


def choose_workers(workers: int | None, accelerator: str) -> tuple[int, int]:
    """Return decoding processes and compute threads; on a CPU together never more than there are cores.

    OpenMP's threads spin at barriers: two of them beside one busy core have been measured ten times slower than one.
    So on few cores pictures are decoded between the steps, on all cores, and compute has all of them in turn. A GPU
    leaves the cores free: one is kept for the process that feeds it. Compute never takes more threads than
    ``OMP_NUM_THREADS`` says, where other processes have been given the rest.

    Args:
        workers: Decoding processes that the user names, or ``None``.
        accelerator: From `choose_accelerator`.
    """
    cores = available_cores()
    allowed = _allowed_threads(cores)
    if workers != 0 and not has_shared_memory():
        if workers is not None:
            warnings.warn(
                f"--workers {workers} needs shared memory, and /dev/shm cannot be written here; using 0",
                TransferkitWarning,
                stacklevel=3,
            )
        workers = 0
    if accelerator != "cpu":
        workers = min(GPU_WORKERS, max(1, cores - 1)) if workers is None else workers
        return workers, max(1, min(cores - workers, allowed))
    workers = cores // 8 if workers is None else workers
    if workers > cores - 1:
        warnings.warn(
            f"--workers {workers} beside a compute thread would outnumber the {cores} core(s); using {cores - 1}",
            TransferkitWarning,
            stacklevel=3,
        )
        workers = cores - 1
    return workers, min(cores - workers, allowed)


def _allowed_threads(cores: int) -> int:
    """Return how many threads the environment allows OpenMP at its outermost level; `cores` where it names none."""
    named = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return (int(named) or cores) if named.isascii() and named.isdigit() else cores


def tune_process(threads: int) -> None:
    """Set this process up for computing: compute threads, and an allocator that keeps its memory."""
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high")  # TF32 where a GPU has it; no effect on CPUs
    keep_memory()


def keep_memory() -> None:
    """Have the allocator keep memory instead of returning it at every step.

    glibc hands large freed blocks back to the system and faults them in again at the next step, which has been
    measured to cost up to half the speed of small batches on a CPU.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # not glibc
    m_trim_threshold, m_mmap_threshold = -1, -3
    mallopt(ctypes.c_int(m_mmap_threshold), ctypes.c_int(1 << 30))
    mallopt(ctypes.c_int(m_trim_threshold), ctypes.c_int((1 << 31) - 1))


def describe_device(device: str) -> str:
    """Return the name of the processor or GPU that `device` stands for."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):  # not Linux
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{device}: {name}"


def cpu_has_bf16() -> bool:
    """Return whether the processor multiplies bf16 natively; elsewhere it would be emulated, at a snail's pace."""
    capability = torch.backends.cpu.get_cpu_capability()
    return capability == "AVX512" and bool(torch.cpu._is_avx512_bf16_supported())


@contextlib.contextmanager
def compute_threads(threads: int | None) -> Iterator[None]:
    """Leave cores to decoding processes for the time of the block."""
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        yield
    finally:
        if threads is not None:
            torch.set_num_threads(before)
