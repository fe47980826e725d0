"""From records to batches: a seeded sampler, a map-style data set and a loader that can continue in mid-epoch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, get_worker_info

from transferkit.core.errors import DataError, TransferkitError
from transferkit.core.records import ImageRecord
from transferkit.data.batches.workers import LOOK_S, TIMEOUT_S, from_workers, start_worker
from transferkit.data.images.decode import decode_image

__all__ = [
    "REPEAT",
    "EpochSampler",
    "EvaluationSampler",
    "ImageDataset",
    "ImageLoader",
    "as_is",
    "even_batch_size",
    "read_indexed",
    "sample_seed",
]

Key = tuple[int, int]
"""Epoch and position: what a sampler yields, so that a worker needs no message to know the epoch."""

REPEAT = 1 << 32
"""Added to the epoch of a key each time that the same picture comes again in it, so that it is augmented anew."""

Batch = tuple[Tensor, Tensor]
Pixels = npt.NDArray[np.uint8]


def sample_seed(seed: int, epoch: int, sha256: str) -> int:
    """Return the seed of one picture's augmentation in one epoch, below 2**63.

    It depends on the run's seed, the epoch and the picture, and on nothing else: not on worker, rank, batch or order.
    """
    digest = hashlib.blake2b(f"{seed}:{epoch}:{sha256}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class EpochSampler(DistributedSampler[int]):
    """Shuffles by ``(seed, epoch)`` and can start in the middle: sample order is a pure function.

    A `DistributedSampler`, so that Lightning neither replaces it nor has to be told its rank twice.

    Args:
        size: Number of pictures.
        batch_size: Per rank. A last batch of one picture is left out, since batch norm cannot train on it.
        seed: Of the order.
        rank: This process.
        world_size: Number of processes; all get the same number of pictures (the order wraps around).
    """

    def __init__(self, size: int, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(range(size), num_replicas=world_size, rank=rank, shuffle=True, seed=seed)  # type: ignore[arg-type]
        self.size = size
        self.batch_size = batch_size
        self.start = 0
        per_rank = math.ceil(size / world_size)
        self.num_samples = per_rank - 1 if per_rank % batch_size == 1 and per_rank > 1 < batch_size else per_rank

    def __iter__(self) -> Iterator[Key]:  # type: ignore[override]
        generator = torch.Generator().manual_seed((self.seed << 20) + self.epoch)
        order = torch.randperm(self.size, generator=generator).tolist()
        mine = [order[(self.rank + step * self.num_replicas) % self.size] for step in range(self.num_samples)]
        return iter([(self.epoch, position) for position in mine[self.start :]])

    def __len__(self) -> int:
        return self.num_samples

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch to yield; a new one starts at its beginning."""
        if epoch != self.epoch:
            self.start = 0
        self.epoch = epoch


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


class ImageDataset(Dataset[Batch]):
    """Pictures and labels by position; whole batches at a time.

    Args:
        records: What to read.
        class_names: In index order.
        transform: Called with pixels ``(H, W, 3) uint8`` and a seed; gives pixels of one size for all.
        decode_side: Short side in pixels that a decoded picture keeps at least.
        seed: Of the augmentation.
        pixels: Pictures that are decoded already, by sha256.
        threads: Decode so many pictures of a batch side by side, when this process is not a worker.

    Attributes:
        activations: ``(N, ...)``, given out instead of the pictures while it is set.
        test_view: What `transform` is in the epochs of `test_view_epochs`.
        test_view_epochs: Epochs in which pictures are as they are evaluated.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        class_names: Sequence[str],
        transform: Callable[[Pixels, int], Pixels],
        *,
        decode_side: int | None,
        seed: int = 0,
        pixels: Mapping[str, Pixels] | None = None,
        threads: int = 1,
    ) -> None:
        index = {name: number for number, name in enumerate(class_names)}
        self.records = tuple(records)
        self.targets = torch.tensor([index[record.label] for record in records], dtype=torch.int64)
        self.transform = transform
        self.decode_side = decode_side
        self.seed = seed
        self.pixels = pixels or {}
        self.threads = threads
        self.activations: Tensor | None = None
        self.test_view = transform
        self.test_view_epochs: frozenset[int] = frozenset()
        self._pool: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return len(self.records)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None}  # threads do not travel to another process

    def image(self, position: int, epoch: int = 0) -> Pixels:
        """Return one transformed picture, ``(H, W, 3) uint8``.

        Raises:
            DataError: The file is gone, unreadable, or not the one that was indexed.
        """
        record = self.records[position]
        transform = self.test_view if epoch % REPEAT in self.test_view_epochs else self.transform
        pixels = self.pixels.get(record.sha256)
        if pixels is None:
            pixels = decode_image(read_indexed(record.path, record.sha256), min_side=self.decode_side, name=record.path)
        return transform(pixels, sample_seed(self.seed, epoch, record.sha256))

    def __getitem__(self, key: int | Key) -> Batch:
        images, targets = self.batch([key])
        return images[0], targets[0]

    def batch(self, keys: Sequence[int | Key]) -> Batch:
        """Return pictures ``(B, H, W, 3) uint8`` and labels ``(B,) int64``."""
        pairs = [(0, key) if isinstance(key, int) else key for key in keys]
        if self.activations is not None:
            rows = [position for _, position in pairs]
            return self.activations[rows], self.targets[rows]
        if self.threads > 1 and len(pairs) > 1 and get_worker_info() is None:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
            images = list(self._pool.map(lambda pair: self.image(pair[1], pair[0]), pairs))
        else:
            images = [self.image(position, epoch) for epoch, position in pairs]
        positions = [position for _, position in pairs]
        return torch.from_numpy(np.stack(images)), self.targets[positions]

    def __getitems__(self, keys: Sequence[int | Key]) -> Batch | TransferkitError:
        """Return a batch for `DataLoader`; in a worker, an error is handed over whole instead of as a traceback."""
        try:
            return self.batch(keys)
        except TransferkitError as error:
            if get_worker_info() is None:
                raise
            return error


def read_indexed(path: str, sha256: str) -> bytes:
    """Return the bytes of a file that was indexed before.

    Raises:
        DataError: It is gone, or its content is no longer that of the index.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read any more ({error.strerror}) - it was there when the data were indexed; "
            "leave the folder alone while a run uses it, and run again"
        ) from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DataError(
            f"{path}: its content changed since the data were indexed - leave the folder alone while a run "
            "uses it, and run again"
        )
    return data


def as_is(batch: Any) -> Any:
    """Return a batch that the data set has put together already."""
    return batch


class ImageLoader(DataLoader[Any]):
    """A loader of whole batches that knows how far it is, so that a resume continues in mid-epoch.

    Args:
        dataset: Gives batches.
        batch_size: Pictures per batch.
        sampler: The training order, or a rank's part of an evaluation; pictures come in index order when ``None``.
        workers: Processes.
        pin_memory: For copies to a GPU that do not block.
        timeout: Seconds after which silent workers are an error.

    Raises:
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
        pin_memory: bool = False,
        timeout: float = TIMEOUT_S,
    ) -> None:
        super().__init__(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=workers,
            collate_fn=as_is,
            pin_memory=pin_memory,
            timeout=min(LOOK_S, timeout) if workers else 0,
            persistent_workers=workers > 0,
            worker_init_fn=start_worker,
            # Workers are seeded per picture. Without a generator of its own, every iterator would draw from the
            # global one, and a run resumed between two epochs would go on from another random state.
            generator=torch.Generator().manual_seed(dataset.seed),
        )
        self._silence = timeout
        self._yielded = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # A generator: the base iterator, and with it the workers' prefetching, starts at the first batch, after
        # Lightning has told the sampler the epoch.
        self._yielded = 0
        for batch in from_workers(super().__iter__(), self._silence):
            if isinstance(batch, TransferkitError):
                try:
                    raise batch
                finally:
                    del batch  # a cycle: its collector would close the queues before the workers are told to end
            self._yielded += 1
            yield batch

    def paths_of(self, batch: int) -> list[str]:
        """Return the files of a training batch of the epoch, counted from 0 at its beginning."""
        assert isinstance(self.sampler, EpochSampler)
        first = batch * self.sampler.batch_size - self.sampler.start
        keys = list(self.sampler)[first : first + self.sampler.batch_size]
        return [self.dataset.records[position].path for _, position in keys]

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
