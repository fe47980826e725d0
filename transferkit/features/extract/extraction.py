"""Features of pictures through the store: what it has is read, what is missing is computed once and written.

Several processes may extract the same pictures at once: each chunk is computed by the one that claims it, the others
go on with other chunks and read it afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from transferkit.core.errors import TrainingError
from transferkit.data.augment.views import Views
from transferkit.data.batches.dataset import ImageDataset, Job, Picture
from transferkit.data.batches.loader import BatchLoader
from transferkit.data.batches.workers import worker_errors
from transferkit.data.images.decode import UnreadableImage
from transferkit.data.images.sketch import Sketch
from transferkit.data.pixels.store import PixelStore
from transferkit.features.engine.compute import Compute, FrozenBackbone
from transferkit.features.engine.engine import Engine
from transferkit.features.engine.taps import Tap
from transferkit.features.extract.rows import Rows, StoredRows, specs
from transferkit.features.store.store import FeatureStore
from transferkit.machine.precision import PrecisionChoice

__all__ = ["Extraction", "extract_pictures", "pack"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Extraction:
    """Features of pictures.

    Attributes:
        rows: ``(1 + K, N, D) float32`` by tap: the evaluation view, then K augmented ones. Rows of pictures that could
            not be read are NaN.
        failures: Reason by position, of pictures that could not be read.
        computed: Pictures that the network was run on.
        precision: What the rows are computed in, and why.
        sketches: By sha256, of the pictures that were decoded here, where they were asked for.
    """

    rows: dict[Tap, Rows]
    failures: dict[int, str]
    computed: int
    precision: PrecisionChoice
    sketches: Mapping[str, Sketch]


def extract_pictures(
    pictures: Sequence[Picture],
    frozen: FrozenBackbone,
    taps: Sequence[Tap],
    views: Views,
    store: FeatureStore,
    compute: Compute,
    *,
    progress: Progress | None = None,
    sketches: bool = False,
    pixels: PixelStore | None = None,
) -> Extraction:
    """Return the features of pictures, computing only what the store has not.

    Args:
        pictures: Equal ones share their rows; windows of one are different pictures.
        frozen: The backbone.
        taps: Where features are taken.
        views: How pictures are shown.
        store: Where features lie.
        compute: What to compute with.
        progress: Called with pictures computed and pictures to compute.
        sketches: Whether pictures that have to be decoded are sketched, too.
        pixels: Where decoded pictures are kept.

    Raises:
        DataError: A file is gone or has changed since it was hashed.
        StoreError: A feature is not finite; the message names the pictures.
        StorageError: The disk is full or failing, or a decoding process was lost. What was computed before is stored.
        TrainingError: Memory ran out.
    """
    distinct = {(picture.sha256, picture.part): picture for picture in pictures}
    unique = list(distinct.values())
    choice = frozen.choose_precision(taps, compute)
    rows = StoredRows(unique, views, specs(frozen, taps, views, choice.precision), store)
    rows.allocate(rows.widths() or frozen.engine(taps, choice.precision, compute).widths)
    missing = rows.read(range(len(unique)))
    computed, drawn = 0, {}
    if missing:
        rows.require_space(missing)
        dataset = ImageDataset(unique, views, pixels=pixels, threads=compute.threads, sketches=sketches)
        try:
            with worker_errors():
                engine = frozen.engine(taps, choice.precision, compute)
                loader = BatchLoader(
                    dataset,
                    rows=max(compute.batch, rows.views),
                    workers=compute.workers,
                    pin_memory=compute.device == "cuda",
                )
                computation = _Computation(rows, engine, dataset, loader, compute, len(missing), progress)
                computed, drawn = computation.run(missing), computation.sketches
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"out of memory while extracting features in batches of {compute.batch} - pass a smaller batch size "
                f"(such as {max(1, compute.batch // 2)}) or image size"
            ) from error
    rows.touch()
    places = {key: place for place, key in enumerate(distinct)}
    order = [places[picture.sha256, picture.part] for picture in pictures]
    same = len(order) == len(unique)
    return Extraction(
        rows={tap: each if same else each[:, order] for tap, each in rows.rows.items()},
        failures={at: rows.failures[place] for at, place in enumerate(order) if place in rows.failures},
        computed=computed,
        precision=choice,
        sketches=drawn,
    )


@dataclass
class _Computation:
    """The computing of what the store has not, chunk by chunk."""

    rows: StoredRows
    engine: Engine
    dataset: ImageDataset
    loader: BatchLoader
    compute: Compute
    total: int
    progress: Progress | None
    done: int = 0
    computed: int = 0
    sketches: dict[str, Sketch] = field(default_factory=dict)

    def run(self, missing: dict[int, set[int]]) -> int:
        """Compute what this process claims first; wait for the rest and read it. Return the pictures computed."""
        positions = list(missing)
        size = max(1, self.compute.chunk // self.rows.views)
        chunks = [positions[start : start + size] for start in range(0, len(positions), size)]
        stuck = False
        while chunks:
            busy: list[list[int]] = []
            for chunk in chunks:
                # Only when all that is left belongs to others is one of them waited for.
                with self.rows.first.claim(self.rows.keys(chunk), wait=stuck and not busy) as mine:
                    if mine:
                        self._chunk(chunk)
                    else:
                        busy.append(chunk)
            stuck = len(busy) == len(chunks)
            chunks = busy
        return self.computed

    def _chunk(self, chunk: Sequence[int]) -> None:
        missing = self.rows.read(chunk)  # another process may have been here meanwhile
        self._advance(len(chunk) - len(missing))
        if not missing:
            return
        batches = pack([(position, tuple(sorted(views))) for position, views in missing.items()], self.compute.batch)
        loading = self.loader.load([[Job(position, views) for position, views in batch] for batch in batches])
        places: list[tuple[int, int]] = []
        parts: list[tuple[torch.Tensor, ...]] = []
        failures: dict[int, UnreadableImage] = {}
        try:
            for batch, loaded in zip(batches, loading, strict=True):
                before = len(failures)
                for (position, views), error in zip(batch, loaded.errors, strict=True):
                    if error is None:
                        places += [(position, view) for view in views]
                    else:
                        failures[position] = error
                drawn = zip(batch, loaded.sketches, strict=False)  # there are none where none were asked for
                self.sketches |= {self.dataset.pictures[at].sha256: sketch for (at, _), sketch in drawn if sketch}
                if len(loaded.images):
                    left = (self.total - self.done) * self.rows.views
                    parts.append(self.engine.rows(loaded.images, left=left))
                self.computed += len(batch) - (len(failures) - before)
                self._advance(len(batch))
        finally:  # after Ctrl-C too: what is computed is stored
            finished = sum(len(part[0]) for part in parts)
            columns = [torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)]
            self.rows.add(places[:finished], columns, failures)

    def _advance(self, pictures: int) -> None:
        self.done += pictures
        if self.progress is not None:
            self.progress(self.done, self.total)


def pack(pictures: Sequence[tuple[int, tuple[int, ...]]], batch_size: int) -> list[list[tuple[int, tuple[int, ...]]]]:
    """Return positions and their views in batches of at most `batch_size` views, but whole pictures."""
    batches: list[list[tuple[int, tuple[int, ...]]]] = []
    filled = batch_size
    for position, views in pictures:
        if filled + len(views) > batch_size:
            batches.append([])
            filled = 0
        batches[-1].append((position, views))
        filled += len(views)
    return batches
