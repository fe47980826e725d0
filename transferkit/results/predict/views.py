"""Pictures as a finished model is shown them: any source decoded once, one or several views of it, in order."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from transferkit.core.errors import ConfigError, TransferkitError
from transferkit.core.records import DataConfig
from transferkit.data.batches.augment import Transform, eval_transform, train_transform
from transferkit.data.batches.dataset import as_is, sample_seed
from transferkit.data.batches.workers import TIMEOUT_S, start_worker, worker_errors
from transferkit.data.images.decode import UnreadableImage, decode_image, image_pixels, read_bytes
from transferkit.data.images.resize import INTERPOLATIONS, resize
from transferkit.features.sklearn.inputs import pixels_digest

__all__ = ["CORNER_SHARE", "Job", "PredictionViews", "Shown", "Source", "SourceBatches", "load_sources", "name_sources"]

Pixels: TypeAlias = npt.NDArray[np.uint8]

Source: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | Pixels
"""A path, the bytes of a file, a Pillow picture, or pixels ``(H, W, 3)`` or ``(H, W)`` uint8."""

CORNER_SHARE = 0.875
"""Side of a corner crop over that of the largest crop, at most: 224 of 256 pixels, as in ten-crop testing."""

KINDS = ("none", "flip", "5crop")
MOST_VIEWS = 100


@dataclass(frozen=True)
class PredictionViews:
    """The views of a picture that are averaged; the first is always the evaluation view.

    - ``"none"``: that one.
    - ``"flip"``: and its mirror image.
    - ``"5crop"``: and crops at the four corners of the picture (Krizhevsky et al. 2012), each with `crop_pct` of the
      sides of the largest crop, but at most `CORNER_SHARE`: where evaluation takes the whole picture, corners must not.
    - a number K: and K views of the augmentation ``"light"``, seeded by the content of the picture.

    Attributes:
        evaluation: The transform of the evaluation view.
        kind: ``"none"``, ``"flip"``, ``"5crop"`` or ``"light"``.
        augmented: The transform of augmented views; ``None`` when there are none.
        count: All views, V.
        seed: Of the augmentation.
    """

    evaluation: Transform
    kind: str = "none"
    augmented: Transform | None = None
    count: int = 1
    seed: int = 0

    @classmethod
    def make(cls, config: DataConfig, tta: str | int = "none", seed: int = 0) -> PredictionViews:
        """Return the views that `tta` names.

        Args:
            config: How pictures must be prepared.
            tta: ``"none"``, ``"flip"``, ``"5crop"`` or a number of augmented views from 1 to 100.
            seed: Of the augmentation.

        Raises:
            ConfigError: `tta` is something else.
        """
        text, evaluation = str(tta), eval_transform(config)
        if text in KINDS:
            return cls(evaluation, text, count={"none": 1, "flip": 2, "5crop": 5}[text])
        if not (text.isdecimal() and 1 <= int(text) <= MOST_VIEWS):
            raise ConfigError(
                f"tta is {tta!r}, expected {', '.join(KINDS)} or a number of views from 1 to {MOST_VIEWS}"
            )
        return cls(evaluation, "light", train_transform("light", config), 1 + int(text), seed)

    def render(self, pixels: Pixels, sha256: str) -> list[Pixels]:
        """Return the V views ``(h, w, 3) uint8`` of one decoded picture.

        Args:
            pixels: ``(H, W, 3) uint8``.
            sha256: What the picture is known by.
        """
        first = self.evaluation(pixels)
        if self.kind == "flip":
            return [first, first[:, ::-1]]
        if self.kind == "5crop":
            return [first, *self._corners(pixels)]
        if self.augmented is not None:
            seeds = [sample_seed(self.seed, view, sha256) for view in range(1, self.count)]
            return [first, *(self.augmented(pixels, seed) for seed in seeds)]
        return [first]

    def _corners(self, pixels: Pixels) -> list[Pixels]:
        config = self.evaluation.config
        (height, width), (target_height, target_width) = pixels.shape[:2], config.image_size
        share = min(config.crop_pct, CORNER_SHARE)
        if config.crop_mode == "squash":
            box_height, box_width = share * height, share * width
        else:
            unit = share * min(height / target_height, width / target_width)
            box_height, box_width = unit * target_height, unit * target_width
        rows, columns = max(1, round(box_height)), max(1, round(box_width))
        places = [(top, left) for top in (0, height - rows) for left in (0, width - columns)]
        return [
            resize(pixels[top : top + rows, left : left + columns], config.image_size,
                   INTERPOLATIONS[config.interpolation])
            for top, left in places
        ]  # fmt: skip


# ---- sources ----------------------------------------------------------------------------------------------------


class Job(NamedTuple):
    """A source on its way to be decoded.

    Attributes:
        name: How it is called: its path, or its place among the sources.
        source: Path, bytes or pixels.
        error: Why it cannot be decoded, where that is known already.
    """

    name: str
    source: str | bytes | Pixels
    error: str | None = None


class Shown(NamedTuple):
    """A batch of pictures, readable or not, in order.

    Attributes:
        images: ``(R V, h, w, 3) uint8``: V views of each of the R that can be read.
        names: Of all pictures of the batch.
        hashes: What each is known by: the sha256 of a file's bytes or of pixels; ``None`` where nothing could be read.
        errors: Why each cannot be read, ``None`` where it can.
    """

    images: Tensor
    names: list[str]
    hashes: list[str | None]
    errors: list[str | None]


def name_sources(sources: Iterable[Source]) -> Iterator[Job]:
    """Yield a job for every source; lazy.

    Raises:
        ConfigError: A source is none.
    """
    for position, source in enumerate(sources):
        yield _job(f"images[{position}]", source)


def _job(name: str, source: Source) -> Job:
    match source:
        case str():
            return Job(source, source)
        case bytes():
            return Job(name, source)
        case os.PathLike() if isinstance(path := os.fspath(source), str):
            return Job(path, path)
        case Image.Image():
            # Here and not in a thread or process: the same picture may be given twice, and loading it is no two's work.
            try:
                return Job(name, image_pixels(source, name=name))
            except UnreadableImage as error:
                return Job(name, b"", error.reason)
        case np.ndarray() if source.dtype == np.uint8 and source.size:
            if source.ndim == 2:
                source = np.repeat(source[:, :, None], 3, axis=2)
            if source.ndim == 3 and source.shape[2] == 3:
                return Job(name, np.ascontiguousarray(source))
    seen = f"an array {source.shape} of {source.dtype}" if isinstance(source, np.ndarray) else type(source).__name__
    raise ConfigError(
        f"{name} is {seen}, expected a path, the bytes of a picture file, a Pillow image, or a uint8 array (H, W, 3)"
    )


class SourceBatches(Dataset[Shown]):
    """Decodes whole batches of sources.

    Args:
        views: How pictures are shown.
        threads: Decode so many pictures of a batch side by side, when this process is not a worker.
    """

    def __init__(self, views: PredictionViews, *, threads: int = 1) -> None:
        self.views = views
        self.threads = threads
        self._pool: ThreadPoolExecutor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None}  # threads do not travel to another process

    def __getitem__(self, job: Job) -> Shown:
        return self.batch([job])

    def __getitems__(self, jobs: Sequence[Job]) -> Shown | TransferkitError:
        """Return a batch for `DataLoader`; an error is handed over whole instead of as a traceback."""
        try:
            return self.batch(jobs)
        except TransferkitError as error:
            return error

    def batch(self, jobs: Sequence[Job]) -> Shown:
        """Return every view of some sources."""
        if self.threads > 1 and len(jobs) > 1 and get_worker_info() is None:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
            results = list(self._pool.map(self._render, jobs))
        else:
            results = [self._render(job) for job in jobs]
        images = [image for _, rendered in results if not isinstance(rendered, str) for image in rendered]
        height, width = self.views.evaluation.config.image_size
        stacked = np.stack(images) if images else np.zeros((0, height, width, 3), dtype=np.uint8)
        return Shown(
            torch.from_numpy(stacked),
            [job.name for job in jobs],
            [sha256 for sha256, _ in results],
            [rendered if isinstance(rendered, str) else None for _, rendered in results],
        )

    def _render(self, job: Job) -> tuple[str | None, list[Pixels] | str]:
        """Return what a picture is known by, and its views or why there are none."""
        if job.error is not None:
            return None, job.error
        sha256: str | None = None
        try:
            if isinstance(job.source, np.ndarray):
                pixels, sha256 = job.source, pixels_digest(job.source)
            else:
                data = job.source if isinstance(job.source, bytes) else read_bytes(job.source)
                sha256 = hashlib.sha256(data).hexdigest()
                pixels = decode_image(data, min_side=self.views.evaluation.config.decode_side, name=job.name)
        except UnreadableImage as error:
            return sha256, error.reason
        return sha256, self.views.render(pixels, sha256)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def load_sources(
    sources: Iterable[Source],
    views: PredictionViews,
    *,
    batch_size: int,
    workers: int,
    threads: int,
    pin_memory: bool = False,
) -> Iterator[Shown]:
    """Yield all sources, in order, in batches; taken from `sources` only as they are needed.

    Args:
        sources: As many as you like.
        views: How they are shown.
        batch_size: Pictures per batch.
        workers: Processes, started where there is more than one batch; 0 decodes in this process, between the batches.
        threads: Of this process.
        pin_memory: For copies to a GPU that do not block.

    Raises:
        ConfigError: A source is no picture.
        StorageError: A decoding process was killed or is silent.
    """
    dataset = SourceBatches(views, threads=threads)
    jobs = name_sources(sources)
    first = list(islice(jobs, batch_size))
    if len(first) < batch_size:
        workers = 0  # all is here already
    chained = chain(first, jobs)
    batches = iter(lambda: list(islice(chained, batch_size)), [])
    if not workers:
        try:
            yield from map(dataset.batch, batches)
        finally:
            dataset.close()
        return
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=as_is,
        pin_memory=pin_memory,
        timeout=TIMEOUT_S,
        worker_init_fn=start_worker,
        generator=torch.Generator().manual_seed(0),  # else every iterator draws from the global one
    )
    with worker_errors():
        for loaded in loader:
            if isinstance(loaded, TransferkitError):
                raise loaded
            yield loaded
