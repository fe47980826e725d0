"""Features of pictures through the store: what is kept is read, what is missing is computed once and kept.

Several processes may extract the same pictures at once: each chunk is computed by the one that claims it, the others
go on with other chunks and read it afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from transferkit.core.errors import TrainingError
from transferkit.data.batches.workers import worker_errors
from transferkit.features.engine.compute import Compute, FrozenBackbone
from transferkit.features.engine.engine import Engine
from transferkit.features.engine.taps import Tap
from transferkit.features.extract.pictures import Job, Picture, PictureBatches, Views, load_pictures
from transferkit.features.extract.rows import KeptRows, Rows, specs
from transferkit.features.store.store import FeatureStore
from transferkit.machine.precision import PrecisionChoice

__all__ = ["Extraction", "extract_pictures"]


@dataclass(frozen=True)
class Extraction:
    """Features of pictures.

    Attributes:
        rows: ``(1 + K, N, D) float32`` by tap: the evaluation view, then K augmented ones. Rows of pictures that could
            not be read are NaN.
        failures: Reason by position, of pictures that could not be read.
        computed: Pictures that the network was run on.
        precision: What the rows are computed in, and why.
    """

    rows: dict[Tap, Rows]
    failures: dict[int, str]
    computed: int
    precision: PrecisionChoice


def extract_pictures(
    pictures: Sequence[Picture],
    frozen: FrozenBackbone,
    taps: Sequence[Tap],
    views: Views,
    store: FeatureStore,
    compute: Compute,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Extraction:
    """Return the features of pictures, computing only what the store has not.

    Args:
        pictures: Equal ones share their rows.
        frozen: The backbone.
        taps: Where features are taken.
        views: How pictures are shown.
        store: Where features are kept.
        compute: What to compute with.
        progress: Called with pictures computed and pictures to compute.

    Raises:
        DataError: A file is gone or has changed since it was hashed.
        StoreError: A feature is not finite; the message names the pictures.
        StorageError: The disk is full or failing, or a decoding process was lost. What was computed before is kept.
        TrainingError: Memory ran out.
    """
    distinct = {picture.sha256: picture for picture in pictures}
    unique = list(distinct.values())
    dataset = PictureBatches(unique, views, threads=compute.threads)
    choice = frozen.choose_precision(taps, compute)
    kept = KeptRows(unique, views, specs(frozen, taps, views, choice.precision), store)

    def engine() -> Engine:
        return frozen.engine(taps, choice.precision, compute)

    kept.allocate(kept.widths() or engine().widths)
    missing = kept.read(range(len(unique)))
    computed = 0
    if missing:
        kept.require_space(missing)
        try:
            with worker_errors():
                computed = _compute(kept, missing, engine(), dataset, taps, compute, progress)
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"out of memory while extracting features in batches of {compute.batch} - pass a smaller batch size "
                f"(such as {max(1, compute.batch // 2)}) or image size"
            ) from error
    kept.touch()
    places = {sha256: place for place, sha256 in enumerate(distinct)}
    order = [places[picture.sha256] for picture in pictures]
    same = len(order) == len(unique)
    return Extraction(
        rows={tap: rows if same else rows[:, order] for tap, rows in kept.rows.items()},
        failures={at: kept.failures[place] for at, place in enumerate(order) if place in kept.failures},
        computed=computed,
        precision=choice,
    )


def _compute(
    kept: KeptRows,
    missing: dict[int, set[int]],
    engine: Engine,
    dataset: PictureBatches,
    taps: Sequence[Tap],
    compute: Compute,
    progress: Callable[[int, int], None] | None,
) -> int:
    """Compute, chunk by chunk, what this process claims first; wait for the rest and read it. Return what was done."""
    positions = list(missing)
    size = max(1, compute.chunk // (dataset.views.count + 1))
    chunks = [positions[start : start + size] for start in range(0, len(positions), size)]
    done = computed = 0

    def tell(pictures: int) -> None:
        nonlocal done
        done += pictures
        if progress is not None:
            progress(done, len(positions))

    stuck = False
    while chunks:
        busy: list[list[int]] = []
        for chunk in chunks:
            # Only when all that is left belongs to others is one of them waited for.
            with kept.first.claim(kept.keys(chunk), wait=stuck and not busy) as mine:
                if not mine:
                    busy.append(chunk)
                    continue
                left = kept.read(chunk)  # another process may have been here meanwhile
                tell(len(chunk) - len(left))
                if left:
                    unreadable = len(kept.failures)
                    _compute_chunk(kept, left, engine, dataset, taps, compute, tell, len(positions) - done)
                    computed += len(left) - (len(kept.failures) - unreadable)
        stuck = len(busy) == len(chunks)
        chunks = busy
    return computed


def _compute_chunk(
    kept: KeptRows,
    wanted: dict[int, set[int]],
    engine: Engine,
    dataset: PictureBatches,
    taps: Sequence[Tap],
    compute: Compute,
    tell: Callable[[int], None],
    left: int,
) -> None:
    jobs = [Job(position, tuple(sorted(views))) for position, views in wanted.items()]
    batches = load_pictures(
        dataset, jobs, batch_size=compute.batch, workers=compute.workers, pin_memory=compute.device == "cuda"
    )
    places: list[tuple[int, int]] = []
    made: list[tuple[torch.Tensor, ...]] = []
    failed: dict[int, str] = {}
    try:
        for loaded in batches:
            failed |= loaded.failures
            if loaded.places:
                made.append(engine.rows(loaded.images, left=left * (dataset.views.count + 1)))
                places += loaded.places
            pictures = len({position for position, _ in loaded.places}) + len(loaded.failures)
            left -= pictures
            tell(pictures)
    finally:  # after Ctrl-C too: what is computed is kept
        computed = {
            tap: torch.cat([rows[number] for rows in made]).cpu().numpy() if made else kept.rows[tap][0, :0]
            for number, tap in enumerate(taps)
        }
        kept.keep(places[: sum(len(rows[0]) for rows in made)], computed, failed)
