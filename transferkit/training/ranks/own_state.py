"""What each of several processes has of its own in mid-epoch, in a checkpoint that the first one writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from transferkit.machine.lightning_import import L
from transferkit.machine.random import random_state
from transferkit.models.module import TransferModule
from transferkit.training.ranks.parallel import gather

__all__ = ["OwnState"]

KEY = "transferkit_ranks"


class OwnState:
    """Random numbers, sums of the epoch, and what is measured on a process's own pictures.

    Args:
        module: What is trained.
        sources: Give, by name, tensors that differ between processes until the epoch ends.
    """

    def __init__(self, module: TransferModule, sources: Sequence[Callable[[nn.Module], Mapping[str, Tensor]]]) -> None:
        self.module = module
        self.sources = sources
        self._saved: Mapping[str, Any] = {}

    def save(self, trainer: L.Trainer, checkpoint: dict[str, Any]) -> None:
        """Put every process's own state into a checkpoint."""
        if trainer.world_size > 1:
            checkpoint[KEY] = gather(
                {
                    "random": random_state(),
                    "sums": self.module.train_sums().detach().cpu().clone(),
                    **{name: tensor.detach().cpu().clone() for name, tensor in self._tensors()},
                }
            )

    def load(self, trainer: L.Trainer, checkpoint: Mapping[str, Any]) -> None:
        """Find what this process had; of another number of processes only what they had together."""
        saved = checkpoint.get(KEY)
        if saved is not None and len(saved) == trainer.world_size:
            self._saved = saved[trainer.global_rank]
        elif saved is not None or trainer.world_size > 1:
            sums = [own["sums"] for own in saved or [{"sums": checkpoint["transferkit_train_sums"]}]]
            self._saved = {"sums": torch.stack(sums).sum(dim=0) * trainer.is_global_zero}

    def restore(self, trainer: L.Trainer, random: dict[str, Any] | None) -> dict[str, Any] | None:
        """Give this process what it had; return the state that its random generators are to take.

        Args:
            trainer: Which has begun to train.
            random: What the first process had of them on a resume.
        """
        saved, self._saved = self._saved, {}
        if "random" in saved:
            random = saved["random"]
        elif trainer.global_rank:
            torch.manual_seed(torch.initial_seed() + trainer.global_rank)  # dropout of its own
            random = None
        if "sums" in saved:
            self.module.train_sums().copy_(saved["sums"])
        for name, tensor in self._tensors():
            if name in saved:
                tensor.copy_(saved[name])
        return random

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for source in self.sources:
            yield from ((f"buffer {name}", tensor) for name, tensor in source(self.module).items())
