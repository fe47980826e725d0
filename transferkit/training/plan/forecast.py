"""What a phase will take: seconds per step and peak memory, from a few steps on real pictures."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from transferkit.models.freezing import evaluation_mode
from transferkit.models.tuning.layout import layout_of, train_parts
from transferkit.training.setup import Options, Training

__all__ = ["Forecast", "forecast"]

WARMUP, TIMED = 2, 4
"""Steps of a phase that are not timed, and that are."""


@dataclass(frozen=True)
class Forecast:
    """What was measured.

    Attributes:
        step_s: By phase, seconds of one batch, decoding included; of a solved phase, of one batch through the backbone.
        memory: By phase, peak bytes: of the process on a CPU, of torch's tensors on a GPU.
        evaluation_s: Seconds to evaluate one batch.
    """

    step_s: tuple[float, ...]
    memory: tuple[int, ...]
    evaluation_s: float


def forecast(training: Training[Options]) -> Forecast:
    """Do a few steps of every phase. The module is changed: it is not the one to train afterwards.

    Args:
        training: What would be trained.
    """
    device = training.device
    module = training.module.to(device, memory_format=training.machine.layout)
    module.passage.memory_format = training.machine.layout
    optimizer = module.configure_optimizers()
    batches = _endless(training)
    seconds, memory = [], []
    for phase in training.phases:
        with _peak_memory(device) as peak:
            if phase.solve:
                seconds.append(_time(lambda: _evaluate(training, batches, device), device))
            else:
                train_parts(module, phase.parts(layout_of(module)))
                module.train()
                seconds.append(_time(lambda: _step(training, batches, optimizer, device), device))
        memory.append(peak[0])
    return Forecast(tuple(seconds), tuple(memory), _time(lambda: _evaluate(training, batches, device), device))


def _time(step: Callable[[], object], device: str) -> float:
    seconds = []
    for number in range(WARMUP + TIMED):
        started = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        if number >= WARMUP:
            seconds.append(time.perf_counter() - started)
    return sum(seconds) / len(seconds)


def _endless(training: Training[Options]) -> Iterator[tuple[Tensor, Tensor]]:
    loader = training.data.train_dataloader()
    while True:
        yield from loader


def _step(
    training: Training[Options],
    batches: Iterator[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    device: str,
) -> None:
    images, targets = (tensor.to(device) for tensor in next(batches))
    images, targets = training.data.on_after_batch_transfer((images, targets), 0)
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # the time of a step, not what it does
    with torch.autocast(device, dtype=torch.bfloat16, enabled=training.machine.precision == "bf16"):
        loss = training.module.training_step((images, targets), 0)
    torch.autograd.backward(loss)
    training.module.settle_gradients(1)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _evaluate(training: Training[Options], batches: Iterator[tuple[Tensor, Tensor]], device: str) -> None:
    images, targets = (tensor.to(device) for tensor in next(batches))
    images, _ = training.data.on_after_batch_transfer((images, targets), 0)
    with evaluation_mode(training.module), torch.inference_mode():
        training.module(images)


@contextlib.contextmanager
def _peak_memory(device: str) -> Iterator[list[int]]:
    """Measure the block's peak memory in bytes; the list holds it afterwards."""
    result = [0]
    status = Path("/proc/self/status")
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif status.is_file():
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # Linux: start the high-water mark anew
    yield result
    if device == "cuda":
        result[0] = torch.cuda.max_memory_allocated()
    elif status.is_file():
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
        result[0] = int(line.split()[1]) * 1024
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        result[0] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
