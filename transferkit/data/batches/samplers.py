"""The order of pictures: shuffled or balanced by ``(seed, epoch)`` for training, dealt out to ranks for evaluation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import DistributedSampler

from transferkit.data.augment.views import REPEAT
from transferkit.data.batches.dataset import Job

__all__ = ["EpochSampler", "EvaluationSampler", "even_batch_size"]


class EpochSampler(DistributedSampler[int]):
    """Draws an order by ``(seed, epoch)`` and can start in the middle of it: a pure function.

    Every picture comes once; or, with `balance`, as many as there are are drawn with replacement, first a stratum, then
    one of its pictures. Strata that have pictures are equally likely, and so are the pictures within one. A picture of
    a rare stratum comes several times in an epoch, one of a frequent stratum perhaps not at all (fault 26: positions
    are those of one split, so no picture changes its split).

    Yields jobs whose view is the epoch, so that a worker needs no message to know it; raised by `REPEAT` for every time
    that the picture came before, so that it is augmented anew. A `DistributedSampler`, so that Lightning neither
    replaces it nor has to be told its rank twice.

    Args:
        size: Number of pictures, at least 1.
        batch_size: Per rank. A last batch of one picture is left out, since batch norm cannot train on it.
        seed: Of the order.
        rank: This process.
        world_size: Number of processes; all get the same number of pictures (the order wraps around).
        balance: ``(N,)`` stratum of each picture, such as its class; ``None`` for the plain order.
    """

    def __init__(
        self,
        size: int,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        balance: Sequence[int] | None = None,
    ) -> None:
        super().__init__(range(size), num_replicas=world_size, rank=rank, shuffle=True, seed=seed)  # type: ignore[arg-type]
        self.size = size
        self.batch_size = batch_size
        self.start = 0
        per_rank = math.ceil(size / world_size)
        self.num_samples = per_rank - 1 if per_rank % batch_size == 1 and per_rank > 1 < batch_size else per_rank
        self._strata = None if balance is None else torch.as_tensor(balance, dtype=torch.int64)

    def __iter__(self) -> Iterator[Job]:  # type: ignore[override]
        generator = torch.Generator().manual_seed((self.seed << 20) + self.epoch)
        if self._strata is None:
            views = (self.epoch,)
            jobs = [Job(position, views) for position in torch.randperm(self.size, generator=generator).tolist()]
        else:
            jobs, times = [], Counter[int]()
            for position in _balanced(self._strata, generator).tolist():
                jobs.append(Job(position, (self.epoch + REPEAT * times[position],)))
                times[position] += 1
        steps = range(self.start, self.num_samples)
        return iter([jobs[(self.rank + step * self.num_replicas) % self.size] for step in steps])

    def __len__(self) -> int:
        return self.num_samples

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch to yield; a new one starts at its beginning."""
        if epoch != self.epoch:
            self.start = 0
        self.epoch = epoch


def _balanced(strata: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw as many positions as there are, with replacement: first a stratum, then one of its positions."""
    by_stratum = torch.argsort(strata, stable=True)
    counts = torch.unique(strata, return_counts=True)[1]
    drawn = torch.randint(len(counts), (len(strata),), generator=generator)
    share = torch.rand(len(strata), generator=generator, dtype=torch.float64)  # below 1, and so is its product
    within = (share * counts[drawn]).long()
    return by_stratum[(counts.cumsum(0) - counts)[drawn] + within]


class EvaluationSampler(DistributedSampler[int]):
    """Every picture once, whatever the number of ranks: rank r has positions r, r + world_size, ...; none is padded.

    A `DistributedSampler`, so that Lightning does not replace it by one that pads.

    Args:
        size: Number of pictures.
        rank: This process.
        world_size: Number of processes.
    """

    def __init__(self, size: int, *, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(range(size), num_replicas=world_size, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self._mine = range(rank, size, world_size)

    def __iter__(self) -> Iterator[int]:
        return iter(self._mine)

    def __len__(self) -> int:
        return len(self._mine)


def even_batch_size(size: int, batch_size: int, world_size: int) -> int | None:
    """Return the largest batch size by which all ranks of an `EvaluationSampler` have equally many batches.

    Under some strategies a rank with one batch more than the others would wait for them for ever.

    Args:
        size: Number of pictures.
        batch_size: The most.
        world_size: Number of processes.

    Returns:
        ``None`` where there is none, as with fewer pictures than ranks.
    """
    fewest, rest = divmod(size, world_size)  # a rank has so many pictures, or one more
    if not rest:
        return batch_size
    return next((candidate for candidate in range(batch_size, 1, -1) if fewest % candidate), None)
