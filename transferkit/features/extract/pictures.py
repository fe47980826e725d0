"""From pictures to the batches an engine takes: read, verified, decoded once for all of their views."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from transferkit.core.errors import TransferkitError
from transferkit.data.batches.augment import Transform
from transferkit.data.batches.dataset import as_is, read_indexed, sample_seed
from transferkit.data.batches.workers import LOOK_S, TIMEOUT_S, from_workers, start_worker
from transferkit.data.images.decode import UnreadableImage, decode_image

__all__ = ["EVALUATION", "Job", "Loaded", "Picture", "PictureBatches", "Views", "load_pictures"]

EVALUATION = 0
"""The number of the evaluation view; augmented views count from 1."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture to take features of: a file, or pixels.

    Attributes:
        sha256: Hex digest of its content, which is what its features are kept by.
        name: How messages call it; the path of a file.
        pixels: ``(H, W, 3) uint8``, decoded already; ``None`` to read the file `name`.
    """

    sha256: str
    name: str
    pixels: npt.NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Views:
    """How a picture is shown to the network: once as in evaluation, and `count` times augmented.

    Attributes:
        evaluation: The transform of view 0.
        augmented: The transform of views 1 to `count`; ``None`` when there are none.
        count: Augmented views of each picture.
        seed: Of the augmentation: view k of a picture is the same on every machine, whatever else is extracted.
    """

    evaluation: Transform
    augmented: Transform | None = None
    count: int = 0
    seed: int = 0

    def seed_of(self, sha256: str, view: int) -> int:
        """Return the seed of one view of one picture; 0 for the evaluation view."""
        return sample_seed(self.seed, view, sha256) if view else 0

    def render(self, pixels: npt.NDArray[np.uint8], sha256: str, view: int) -> npt.NDArray[np.uint8]:
        """Return one view, ``(h, w, 3) uint8``."""
        transform = self.augmented if view and self.augmented is not None else self.evaluation
        return transform(pixels, self.seed_of(sha256, view))


class Job(NamedTuple):
    """One picture and those of its views that are wanted."""

    position: int
    views: tuple[int, ...]


class Loaded(NamedTuple):
    """A batch of views.

    Attributes:
        images: ``(R, h, w, 3) uint8``; R is 0 when no picture of the batch could be read.
        places: R pairs of picture position and view.
        failures: Reason by position, of pictures that cannot be decoded.
    """

    images: Tensor
    places: list[tuple[int, int]]
    failures: dict[int, str]


class PictureBatches(Dataset[Loaded]):
    """Pictures by position, whole batches at a time.

    Args:
        pictures: What to read.
        views: How they are shown.
        threads: Decode so many pictures of a batch side by side, when this process is not a worker.
    """

    def __init__(self, pictures: Sequence[Picture], views: Views, *, threads: int = 1) -> None:
        self.pictures = pictures
        self.views = views
        self.threads = threads
        self._pool: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return len(self.pictures)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None}  # threads do not travel to another process

    def __getitem__(self, job: Job) -> Loaded:
        return self.batch([job])

    def __getitems__(self, jobs: Sequence[Job]) -> Loaded | TransferkitError:
        """Return a batch for `DataLoader`; in a worker, an error is handed over whole instead of as a traceback."""
        try:
            return self.batch(jobs)
        except TransferkitError as error:
            if get_worker_info() is None:
                raise
            return error

    def batch(self, jobs: Sequence[Job]) -> Loaded:
        """Return every wanted view of some pictures.

        Raises:
            DataError: A file is gone, or its content has changed since it was hashed.
        """
        if self.threads > 1 and len(jobs) > 1 and get_worker_info() is None:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
            rendered = list(self._pool.map(self._render, jobs))
        else:
            rendered = [self._render(job) for job in jobs]
        images: list[npt.NDArray[np.uint8]] = []
        places: list[tuple[int, int]] = []
        failures: dict[int, str] = {}
        for job, result in zip(jobs, rendered, strict=True):
            if isinstance(result, str):
                failures[job.position] = result
            else:
                images += result
                places += [(job.position, view) for view in job.views]
        height, width = self.views.evaluation.config.image_size
        stacked = np.stack(images) if images else np.zeros((0, height, width, 3), dtype=np.uint8)
        return Loaded(torch.from_numpy(stacked), places, failures)

    def _render(self, job: Job) -> list[npt.NDArray[np.uint8]] | str:
        """Return the views of one picture, or why it cannot be decoded."""
        picture = self.pictures[job.position]
        pixels = picture.pixels
        if pixels is None:
            data = read_indexed(picture.name, picture.sha256)
            try:
                pixels = decode_image(data, min_side=self.views.evaluation.config.decode_side, name=picture.name)
            except UnreadableImage as error:
                return error.reason
        return [self.views.render(pixels, picture.sha256, view) for view in job.views]


def load_pictures(
    dataset: PictureBatches, jobs: Sequence[Job], *, batch_size: int, workers: int, pin_memory: bool = False
) -> Iterator[Loaded]:
    """Yield the views of all jobs, in order, in batches of at most `batch_size` views (but whole pictures).

    Args:
        dataset: Where the pictures come from.
        jobs: What is wanted.
        batch_size: Views per batch.
        workers: Processes; 0 decodes in this one, on the data set's threads.
        pin_memory: For copies to a GPU that do not block.

    Raises:
        DataError: A file is gone, or its content has changed since it was hashed.
        StorageError: A worker was killed, or they are silent.
    """
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=_batches(jobs, batch_size),
        num_workers=workers,
        collate_fn=as_is,
        pin_memory=pin_memory,
        timeout=min(LOOK_S, TIMEOUT_S) if workers else 0,
        worker_init_fn=start_worker,
        generator=torch.Generator().manual_seed(0),  # else every iterator draws from the global one
    )
    for loaded in from_workers(loader, TIMEOUT_S):
        if isinstance(loaded, TransferkitError):
            raise loaded
        yield loaded


def _batches(jobs: Sequence[Job], batch_size: int) -> list[list[Job]]:
    batches: list[list[Job]] = []
    filled = batch_size
    for job in jobs:
        if filled + len(job.views) > batch_size:
            batches.append([])
            filled = 0
        batches[-1].append(job)
        filled += len(job.views)
    return batches
