"""The balanced sampler: every class is drawn equally often, however many pictures it has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import torch

from transferkit.core.errors import DataError
from transferkit.data.batches.dataset import REPEAT, EpochSampler, Key

__all__ = ["BalancedSampler"]


class BalancedSampler(EpochSampler):
    """Draws as many pictures per epoch as there are, with replacement: first a class, then one of its pictures.

    Classes that have pictures are equally likely, and so are the pictures within a class. A picture of a rare class
    comes several times in an epoch, one of a frequent class perhaps not at all. Each time it is augmented anew: the
    epoch in its key, of which augmentation is a function, is raised by `REPEAT` for every time before (fault 26: the
    sampler knows positions in one split only, so no picture changes its split).

    The order is a function of ``(seed, epoch)``. Ranks share it, and it can start in the middle, as in `EpochSampler`.

    Args:
        targets: Class index of each picture, in index order.
        batch_size: Per rank. A last batch of one picture is left out.
        seed: Of the order.
        rank: This process.
        world_size: Number of processes.

    Raises:
        DataError: There are no pictures.
    """

    def __init__(
        self, targets: Sequence[int], *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if len(targets) == 0:
            raise DataError("there are no pictures to draw from, expected at least one - add training pictures")
        super().__init__(len(targets), batch_size=batch_size, seed=seed, rank=rank, world_size=world_size)
        labels = torch.as_tensor(targets, dtype=torch.int64)
        self._by_class = torch.argsort(labels, stable=True)
        counts = torch.unique(labels, return_counts=True)[1]
        self._counts = counts
        self._starts = counts.cumsum(0) - counts

    def __iter__(self) -> Iterator[Key]:  # type: ignore[override]
        generator = torch.Generator().manual_seed((self.seed << 20) + self.epoch)
        drawn = torch.randint(len(self._counts), (self.size,), generator=generator)
        share = torch.rand(self.size, generator=generator, dtype=torch.float64)  # below 1, and so is its product
        within = (share * self._counts[drawn]).long()
        order = self._by_class[self._starts[drawn] + within].tolist()
        seen: Counter[int] = Counter()
        keys: list[Key] = []
        for position in order:
            keys.append((self.epoch + REPEAT * seen[position], position))
            seen[position] += 1
        mine = [keys[(self.rank + step * self.num_replicas) % self.size] for step in range(self.num_samples)]
        return iter(mine[self.start :])
