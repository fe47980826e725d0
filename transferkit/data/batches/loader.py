"""From a data set to batches: in this process or in others, in order, and in training from the middle of an epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from transferkit.data.augment.views import Views
from transferkit.data.batches.dataset import ImageDataset, Job, Loaded
from transferkit.data.batches.samplers import EpochSampler, EvaluationSampler
from transferkit.data.batches.slots import BatchSlots
from transferkit.data.batches.threads import from_threads
from transferkit.data.batches.workers import LOOK_S, TIMEOUT_S, batches_ahead, from_workers, start_worker
from transferkit.machine.cores import free_memory

__all__ = ["BatchLoader", "ImageLoader"]

LARGER = 8
"""Times the bytes of an evaluation view that a slot has for each: training may be at another size."""


HANDED = 4
"""Times the bytes of a view that its picture has before augmentation: about twice the side."""

NEAR = 2
"""Batches that a worker has ready or in work, at most, of what is taken only as it is needed."""


class BatchLoader:
    """Loads what it is told to, list after list of batches, by the same workers.

    Args:
        dataset: Where pictures come from.
        rows: Views of a batch, at most; 0 where they are of no known size.
        workers: Processes; 0 decodes in this one, on the data set's threads.
        pin_memory: For copies to a GPU that do not block.
    """

    def __init__(self, dataset: ImageDataset, *, rows: int, workers: int, pin_memory: bool = False) -> None:
        ahead = min(NEAR, batches_ahead(workers, rows * _view_bytes(dataset), free_memory()))
        self._batches = _Batches()
        self._slots = _slots(dataset, rows, workers, ahead)
        self._loader = DataLoader(
            dataset,
            batch_sampler=self._batches,  # type: ignore[arg-type]
            persistent_workers=workers > 0,
            **_settings(workers, ahead, pin_memory),
        )

    def load(self, batches: Iterable[Sequence[Job]]) -> Iterator[Loaded]:
        """Yield batches in order; taken from `batches` only as they are needed.

        Raises:
            DataError: An indexed file is gone, or its content has changed.
            StorageError: A worker was killed, or they are silent.
        """
        self._batches.next = batches
        self._loader.dataset.slots = self._slots  # type: ignore[attr-defined]  # of its workers, which start now
        yield from from_workers(self._loader, TIMEOUT_S)


class _Batches:
    """The batches that are loaded next, for a loader that wants one sampler for all its time."""

    next: Iterable[Sequence[Job]] = ()

    def __iter__(self) -> Iterator[Sequence[Job]]:
        return iter(self.next)


def _view_bytes(dataset: ImageDataset) -> int:
    return math.prod(dataset.views.evaluation.config.shown_shape)


def _slots(dataset: ImageDataset, rows: int, workers: int, ahead: int) -> BatchSlots | None:
    """Return slots for what a worker has ready, what is on its way, and what is looked at."""
    return BatchSlots.make(workers, ahead + 2, LARGER * rows * _view_bytes(dataset)) if workers and rows else None


def _settings(workers: int, ahead: int, pin_memory: bool) -> dict[str, Any]:
    return {
        "num_workers": workers,
        "prefetch_factor": ahead if workers else None,
        "collate_fn": _as_is,
        "pin_memory": pin_memory,
        "timeout": min(LOOK_S, TIMEOUT_S) if workers else 0,
        "worker_init_fn": start_worker,
        # Workers are seeded per picture. Without a generator of its own, every iterator would draw from the global
        # one, and a run resumed between two epochs would go on from another random state.
        "generator": torch.Generator().manual_seed(0),
    }


def _as_is(batch: Any) -> Any:
    """Return a batch that the data set has put together already."""
    return batch


class ImageLoader(DataLoader[Any]):
    """A loader of labelled batches that knows how far it is, so that a resume continues in mid-epoch.

    Args:
        dataset: Pictures with targets.
        batch_size: Pictures per batch.
        sampler: The training order, or a rank's part of an evaluation; pictures come in index order when ``None``.
        workers: Processes.
        threads: Of this process that make batches ahead of the steps, where there are no workers; 0 for none: each
            batch is made when it is asked for.
        pin_memory: For copies to a GPU that do not block.

    Raises:
        DataError: While iterated, when a picture cannot be decoded, is gone, or has changed since it was indexed.
        StorageError: While iterated, when a worker was killed, or they are silent.
    """

    dataset: ImageDataset

    def __init__(
        self,
        dataset: ImageDataset,
        batch_size: int,
        *,
        sampler: EpochSampler | EvaluationSampler | None = None,
        workers: int = 0,
        threads: int = 0,
        pin_memory: bool = False,
    ) -> None:
        handed = isinstance(dataset.views, Views) and dataset.views.hands_over
        size = batch_size * _view_bytes(dataset) * (HANDED if handed else 1)
        ahead = batches_ahead(workers or threads, size, free_memory())
        super().__init__(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            persistent_workers=workers > 0,
            **_settings(workers, ahead, pin_memory),
        )
        self._threads, self._ahead = (0 if workers else threads), ahead
        self._slots: BatchSlots | None = None
        self._yielded = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:  # type: ignore[override]
        # A generator: the base iterator, and with it the workers' prefetching, starts at the first batch, after
        # Lightning has told the sampler the epoch.
        self._yielded = 0
        if self._slots is None:
            self._slots = _slots(self.dataset, self.batch_size or 1, self.num_workers, self.prefetch_factor or 0)
        self.dataset.slots = self._slots  # of this loader's workers, which start at its first batch
        batches: Iterable[Loaded]
        if self._threads:
            threads, ahead = self._threads, self._threads * self._ahead
            keys: Any = self.batch_sampler  # torch's stubs know no batches of jobs
            batches = from_threads(self.dataset, keys, threads=threads, ahead=ahead, pin_memory=self.pin_memory)
        else:
            batches = from_workers(super().__iter__(), TIMEOUT_S)
        for loaded in batches:
            batch = loaded.labelled()
            self._yielded += 1
            yield batch

    def paths_of(self, batch: int) -> list[str]:
        """Return the files of a training batch of the epoch, counted from 0 at its beginning."""
        assert isinstance(self.sampler, EpochSampler)
        first = batch * self.sampler.batch_size - self.sampler.start
        jobs = list(self.sampler)[first : first + self.sampler.batch_size]
        return [self.dataset.pictures[job.picture].name for job in jobs if isinstance(job.picture, int)]

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and how many of its pictures have been handed out; Lightning saves it in mid-epoch."""
        if not isinstance(self.sampler, EpochSampler):
            return {}
        return {
            "epoch": self.sampler.epoch,
            "samples": self.sampler.start + self._yielded * self.sampler.batch_size,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue the epoch of `state` at its next picture."""
        if isinstance(self.sampler, EpochSampler) and state:
            self.sampler.set_epoch(state["epoch"])
            self.sampler.start = state["samples"]
