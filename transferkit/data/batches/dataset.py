"""The one data set: pictures of any source, read, verified, decoded and shown as views, a whole batch at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from transferkit.core.errors import DataError, TransferkitError
from transferkit.data.augment.draws import Piece
from transferkit.data.augment.packed import Packed, own_memory, pack
from transferkit.data.augment.views import PART, Renderer, Views
from transferkit.data.batches.boxes import Boxes, together
from transferkit.data.batches.slots import BatchSlots
from transferkit.data.images.decode import Pixels, UnreadableImage, decode_with_info, pixels_digest, read_bytes
from transferkit.data.images.known_files import forget_file
from transferkit.data.images.sketch import Sketch, sketch_of
from transferkit.data.masks.annotation import Annotation, Annotations
from transferkit.data.pixels.store import PixelStore

__all__ = ["ImageDataset", "Job", "Loaded", "Picture"]


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that can be shown.

    Attributes:
        name: How messages call it; the path of a file.
        sha256: Hex digest of its content as it was indexed: a file that has another one by now is an error. Empty
            where it was not: its content is what it is.
        content: The bytes of a file, or pixels ``(H, W, C) uint8``, decoded already; ``None`` to read the file `name`.
        error: Why it cannot be decoded, where that is known already.
        part: Which of its windows it stands for, where pictures are seen in windows.
    """

    name: str
    sha256: str = ""
    content: bytes | Pixels | None = None
    error: UnreadableImage | None = None
    part: int = 0


_Shown: TypeAlias = tuple[Pixels | Piece, Annotation | None]


class _Result(NamedTuple):
    """A picture that was shown: the digest of its content, its views or why there are none, its sketch, its size."""

    sha256: str | None
    views: list[_Shown] | UnreadableImage
    sketch: Sketch | None = None
    size: tuple[int, int] | None = None


class _Opened(NamedTuple):
    """A picture that was decoded: what it is known by, its sketch, its size, and its answers on pixels."""

    pixels: Pixels
    sha256: str
    sketch: Sketch | None
    size: tuple[int, int] | None
    annotation: Annotation | None


class Job(NamedTuple):
    """A picture, or its position in the data set, and the numbers of its views."""

    picture: int | Picture
    views: tuple[int, ...] = (0,)


class Loaded(NamedTuple):
    """A batch of pictures, in order.

    Attributes:
        images: ``(R, h, w, C) uint8``: the views of each picture that can be decoded; R may be 0. Empty where they are
            `packed`.
        names: Of all B pictures.
        hashes: Hex digest of each one's content; ``None`` where it could not be read.
        errors: Why each cannot be decoded; ``None`` where it can.
        targets: ``(B, ...)``, where the data set has any; of answers on pixels one per view: masks ``(R, h, w) uint8``,
            or `Boxes`.
        sketches: Of each picture, where they were asked for; empty where not.
        sizes: Height and width of each picture, upright; ``None`` where they are not known.
        packed: The same views before their augmentation, where the device does it.
    """

    images: Tensor
    names: list[str]
    hashes: list[str | None]
    errors: list[UnreadableImage | None]
    targets: Tensor | Boxes | None
    sketches: Sequence[Sketch | None] = ()
    sizes: Sequence[tuple[int, int] | None] = ()
    packed: Packed | None = None

    def labelled(self) -> tuple[Any, Any]:
        """Return images ``(B, h, w, C) uint8`` or `Packed`, and targets.

        Raises:
            UnreadableImage: The first picture that cannot be decoded.
        """
        for error in self.errors:
            if error is not None:  # raised itself, it would be in a cycle with this batch, and keep the loader alive
                raise UnreadableImage(str(error), path=error.path, reason=error.reason, passing=error.passing)
        if self.targets is None:
            raise ValueError("a data set without targets gives no labelled batches")
        return self.images if self.packed is None else self.packed, self.targets


class ImageDataset(Dataset[Loaded]):
    """Pictures by position, or those that the jobs bring along; whole batches at a time.

    Args:
        pictures: What can be named by its position.
        views: How they are shown; all views of a batch are of one size.
        targets: ``(N, ...)``, a row per picture.
        taught: ``(1 + K, N, ...)`` instead: a row per view and picture, of the evaluation view and the K of the
            `Views.cycle` of `views`.
        annotations: The answers on pixels of the same pictures, which go through their views with them: `views` is a
            `Views`, and pictures are named by their positions.
        pixels: Where decoded pictures are kept: those that were indexed are decoded once. It is left out where it keeps
            pictures that are decoded otherwise.
        threads: Decode so many pictures of a batch side by side, when this process is not a worker.
        sketches: Whether files that are decoded are sketched, too.

    Attributes:
        slots: Where workers that start from now on write their batches; ``None`` for memory of each batch's own.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        views: Renderer,
        *,
        targets: Tensor | None = None,
        taught: Tensor | None = None,
        annotations: Annotations | None = None,
        pixels: PixelStore | None = None,
        threads: int = 1,
        sketches: bool = False,
    ) -> None:
        if taught is not None and not (isinstance(views, Views) and len(taught) == 1 + views.cycle):
            raise ValueError("answers to views need a row for each of them")
        if annotations is not None and not (isinstance(views, Views) and len(annotations) == len(pictures)):
            raise ValueError("answers on pixels need a picture each, and views that carry them along")
        self.pictures = pictures
        self.views = views
        self.targets = targets
        self.taught = taught
        self.annotations = annotations
        self.pixels = pixels if pixels is not None and pixels.serves(views.evaluation.config) else None
        self.threads = threads
        self.sketches = sketches
        self.slots: BatchSlots | None = None
        self._rows: Tensor | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._last: tuple[Picture, _Opened] | None = None

    def __len__(self) -> int:
        return len(self.pictures)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None, "_last": None}  # threads do not travel to another process

    def __getitem__(self, key: int | Job) -> Loaded:
        return self.batch([key])

    def __getitems__(self, keys: Sequence[int | Job]) -> Loaded | TransferkitError:
        """Return a batch for `DataLoader`; in a worker, an error is handed over whole instead of as a traceback."""
        try:
            return self.batch(keys)
        except TransferkitError as error:
            if get_worker_info() is None:
                raise
            return error

    def _targets(self, jobs: Sequence[Job]) -> Tensor | None:
        """Return the targets of pictures, by what a teacher says of their views where there is one."""
        rows = self.targets if self.taught is None else self.taught
        if rows is None:
            return None
        places = torch.tensor([job.picture for job in jobs], dtype=torch.int64)  # targets are of numbered pictures
        if self.taught is None or not isinstance(self.views, Views):
            return rows[places]
        return rows[torch.tensor([self.views.row(job.views[0]) for job in jobs]), places]

    def batch(self, keys: Sequence[int | Job], *, threads: int | None = None) -> Loaded:
        """Return the views of some pictures; a position alone stands for its view 0.

        Args:
            keys: Which.
            threads: How many decode side by side; those of the data set when ``None``.

        Raises:
            DataError: An indexed file is gone, or its content has changed; likewise its answers on pixels.
        """
        jobs = [Job(key) if isinstance(key, int) else key for key in keys]
        pictures = [self.pictures[job.picture] if isinstance(job.picture, int) else job.picture for job in jobs]
        targets: Tensor | Boxes | None = self._targets(jobs)
        names = [picture.name for picture in pictures]
        if self._rows is not None:
            rows = self._rows[[job.picture for job in jobs]]
            return Loaded(rows, names, [picture.sha256 for picture in pictures], [None] * len(jobs), targets)
        # Windows of one picture follow each other, and it is decoded once for all of them.
        runs = [list(run) for _, run in groupby(zip(jobs, pictures, strict=True), key=lambda pair: _source(pair[1]))]
        if (threads or self.threads) > 1 and len(runs) > 1 and get_worker_info() is None:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
            shown = list(self._pool.map(self._show, runs))
        else:
            shown = list(map(self._show, runs))
        if self.views.evaluation.config.tiled and runs:
            self._last = shown[-1][1]
        results = list(chain.from_iterable(results for results, _ in shown))
        good = [result.views for result in results if not isinstance(result.views, UnreadableImage)]
        images = [image for shown in good for image, _ in shown]
        config = self.views.evaluation.config
        pieces = [image for image in images if isinstance(image, Piece)]
        ready = [image for image in images if not isinstance(image, Piece)]
        if pieces and ready:
            raise ValueError("views of one batch are augmented in one place")
        if self.annotations is not None:
            answers = [annotation for shown in good for _, annotation in shown if annotation is not None]
            targets = together(answers, config.image_size)
        return Loaded(
            self._together(ready) if ready else torch.zeros(0, *config.shown_shape, dtype=torch.uint8),
            names,
            [result.sha256 for result in results],
            [result.views if isinstance(result.views, UnreadableImage) else None for result in results],
            targets,
            [result.sketch for result in results] if self.sketches else (),
            [result.size for result in results],
            pack(pieces, self._memory) if pieces else None,
        )

    def _together(self, images: Sequence[Pixels]) -> Tensor:
        worker = get_worker_info()
        handed = self.slots.fill(worker.id, images) if worker is not None and self.slots is not None else None
        if handed is not None:
            return cast(Tensor, handed)  # which it becomes on its way to the other process
        return torch.from_numpy(np.stack(images))

    def _memory(self, count: int) -> tuple[npt.NDArray[np.uint8], Tensor]:
        """Return memory for a packed batch, to write to, and the tensor over it: in a slot where there is one."""
        worker = get_worker_info()
        taken = self.slots.take(worker.id, (count,)) if worker is not None and self.slots is not None else None
        return own_memory(count) if taken is None else (taken[0], cast(Tensor, taken[1]))

    def stand_in(self, rows: Tensor | None) -> None:
        """Give out ``rows (N, ...)`` in the place of images from now on, or images again.

        Only where batches are made in this process: workers that run already know nothing of it.
        """
        if rows is not None and self.annotations is not None:
            raise ValueError("rows stand for whole pictures, and these have answers on their pixels")
        self._rows = rows

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _show(self, run: Sequence[tuple[Job, Picture]]) -> tuple[list[_Result], tuple[Picture, _Opened] | None]:
        """Return what is shown of one picture, by several jobs; and the picture, for the next batch."""
        job, picture = run[0]
        before = self._last
        try:
            if before is not None and _source(before[0]) == _source(picture):
                opened = before[1]
            else:
                opened = self._open(job, picture)
        except _Unreadable as refusal:
            return [_Result(refusal.sha256, refusal.error) for _ in run], None
        results = [
            _Result(opened.sha256, self._views(each, one, opened), opened.sketch, opened.size) for each, one in run
        ]
        return results, (picture, opened)

    def _open(self, job: Job, picture: Picture) -> _Opened:
        sha256, content, sketch = picture.sha256 or None, picture.content, None
        if picture.error is not None:
            raise _Unreadable(sha256, picture.error)
        try:
            if content is None and sha256 is not None and self.pixels is not None:
                content = self.pixels.get(sha256)
            if isinstance(content, np.ndarray):
                pixels, sha256 = content, sha256 or pixels_digest(content)
                size = None if picture.sha256 else (pixels.shape[0], pixels.shape[1])
            else:
                if content is None:
                    content = read_bytes(picture.name) if sha256 is None else _read_indexed(picture.name, sha256)
                sha256 = sha256 or hashlib.sha256(content).hexdigest()
                config = self.views.evaluation.config
                pixels, info = decode_with_info(
                    content, min_side=config.decode_side, decoding=config.decoding, name=picture.name
                )
                if picture.content is None and picture.sha256 and self.pixels is not None:
                    self.pixels.put(picture.sha256, pixels)
                sketch = sketch_of(pixels, info) if self.sketches else None
                size = info.height, info.width
        except UnreadableImage as error:
            raise _Unreadable(sha256, error.with_traceback(None)) from None  # its frames hold the file
        annotation = None
        if self.annotations is not None:
            if not isinstance(job.picture, int):
                raise ValueError("answers on pixels belong to pictures of the data set")
            annotation = self.annotations.read(job.picture)
        return _Opened(pixels, sha256, sketch, size, annotation)

    def _views(self, job: Job, picture: Picture, opened: _Opened) -> list[_Shown]:
        pixels, sha256, _, size, annotation = opened
        views = [view + PART * picture.part for view in job.views]
        if annotation is None:
            return [(image, None) for image in self.views.render(pixels, sha256, views, size)]
        if not isinstance(self.views, Views):
            raise ValueError("answers on pixels go through views that carry them along")
        return [self.views.carry(pixels, annotation, sha256, view) for view in views]


class _Unreadable(Exception):
    """Why a picture cannot be shown, and what it is known by."""

    def __init__(self, sha256: str | None, error: UnreadableImage) -> None:
        super().__init__(str(error))
        self.sha256, self.error = sha256, error


def _source(picture: Picture) -> tuple[object, ...]:
    """Return what two pictures have in common that are decoded from the same."""
    return picture.name, picture.sha256, id(picture.content), id(picture.error)


def _read_indexed(path: str, sha256: str) -> bytes:
    """Return the bytes of a file that was indexed before. Raises `DataError` where it is gone or another one."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read any more ({error.strerror}) - it was there when the data were indexed; "
            "leave the folder alone while a run uses it, and run again"
        ) from error
    if hashlib.sha256(data).hexdigest() != sha256:
        forget_file(path)  # where no time and no size says that it changed
        raise DataError(
            f"{path}: its content changed since the data were indexed - leave the folder alone while a run "
            "uses it, and run again"
        )
    return data
