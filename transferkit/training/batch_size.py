"""The batch size: the largest that fits into memory, and half of it after memory ran out."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from typing import Any

import torch

from transferkit.core.errors import TrainingError, TransferkitWarning
from transferkit.machine.cores import free_memory
from transferkit.models.module import TransferModule
from transferkit.options.training import AUTO, FinetuneConfig
from transferkit.show.progress import waiting
from transferkit.training.loop.trainer import is_out_of_memory
from transferkit.training.ranks.parallel import by_first
from transferkit.training.setup import Options, Training

__all__ = ["SIZES", "choose_batch_size", "halved", "with_batch_size"]

SIZES = (8, 16, 32, 64, 128, 256)
"""Larger batches need another LR and, on the few pictures of transfer learning, leave too few steps."""

STEPS_PER_EPOCH = 16
"""A batch is not so large that an epoch has fewer steps, memory or not."""

SHARE = 0.8
"""Of the memory that is free; the rest is for what one step does not show."""


def choose_batch_size(training: Training[Options]) -> int:
    """Return the largest batch size of `SIZES` at which a whole training step fits.

    A copy of the model does one step of every size in turn, everything trainable, optimizer included, until memory runs
    out. On a CPU the system might kill the process then: the memory of a step is computed from that of its activations.

    Args:
        training: What will be trained.

    Raises:
        TrainingError: Not even the smallest size fits.
    """
    device = training.device
    pictures = training.data.rows("train")
    sizes = [size for size in SIZES if size == SIZES[0] or size * STEPS_PER_EPOCH <= pictures]
    largest = 0
    with waiting(training.console, "measuring the batch size"):
        half, layout = training.machine.precision == "bf16", training.machine.layout
        trial = _Trial(training.module, _targets(training), device, half=half, layout=layout)
        try:
            for size in sizes:
                if device == "cpu" and trial.needs(size) > SHARE * free_memory():
                    break
                if device != "cpu" and not trial.fits(size):
                    break
                largest = size
        finally:
            del trial
            if device == "cuda":
                torch.cuda.empty_cache()
    if not largest:
        raise TrainingError(
            f"not even a batch of {SIZES[0]} pictures fits into memory - try a smaller --image-size or --backbone"
        )
    return largest


def _targets(training: Training[Options]) -> Any:
    """Return the targets of a few training pictures, ``(N, ...)``."""
    return training.data.dataset("train").batch([0, 1]).labelled()[1]


def with_batch_size(training: Training[Options]) -> Training[Options]:
    """Return the training with the batch size that fits, where it is ours to choose; of several processes the first's.

    Raises:
        TrainingError: Not even the smallest size fits.
    """
    if training.config.batch_size != AUTO:
        return training
    return training.in_batches_of(by_first(choose_batch_size)(training))


def halved(config: FinetuneConfig, size: int) -> FinetuneConfig:
    """Return the options with half the batch and twice the accumulation: the same steps in less memory."""
    accumulate = config.accumulate * 2
    message = f"out of memory at batch size {size}: going on with {size // 2}, {accumulate} batches per step"
    warnings.warn(message, TransferkitWarning, stacklevel=2)
    return dataclasses.replace(config, batch_size=size // 2, accumulate=accumulate)


class _Trial:
    """Training steps of a copy of the model.

    Args:
        module: The model.
        targets: ``(N, ...)``, of some pictures, as batches have them.
        device: Where to try.
        half: Under bf16 autocast.
        layout: How pictures and weights lie in memory.
    """

    def __init__(
        self,
        module: TransferModule,
        targets: torch.Tensor,
        device: str,
        *,
        half: bool,
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        self.module = copy.deepcopy(module).to(device, memory_format=layout)
        self.module.passage.memory_format = layout
        self.module.requires_grad_(True)
        self.module.train()
        self.optimizer = self.module.configure_optimizers()
        self.targets = targets
        self.device = device
        self.half = half

    def fits(self, size: int) -> bool:
        """Whether a step of `size` pictures can be done twice within the memory at hand."""
        try:
            if self.device == "cuda":
                torch.cuda.set_per_process_memory_fraction(SHARE)
            for _ in range(2):
                self._loss(size).backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            if self.device == "cuda":
                torch.cuda.set_per_process_memory_fraction(1.0)
        return True

    def needs(self, size: int) -> int:
        """Return the bytes of a step: the activations of a small batch, scaled up, twice for their gradients."""
        saved: dict[int, int] = {}

        def count(tensor: torch.Tensor) -> torch.Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = self._loss(2)
        del loss
        weights = sum(parameter.numel() * parameter.element_size() for parameter in self.module.parameters())
        return round(sum(saved.values()) / 2 * size * 2) + 3 * weights

    def _loss(self, size: int) -> torch.Tensor:
        images = torch.zeros(size, *self.module.data_config.input_shape, device=self.device)
        targets = self.targets[torch.arange(size) % len(self.targets)].to(self.device)
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.half):
            outputs = self.module.learn(images)
        loss: torch.Tensor = self.module.loss(outputs.float(), targets)
        return loss
