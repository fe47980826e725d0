"""The training pictures nearest to a picture, in the eyes of the run's own model."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from transferkit.core.errors import CheckpointError, DataError, TransferkitWarning
from transferkit.data.batches.dataset import Picture
from transferkit.data.images.decode import Pixels
from transferkit.data.images.known_files import hash_files
from transferkit.features.engine.compute import Compute, FrozenBackbone
from transferkit.features.engine.taps import find_taps
from transferkit.features.extract.extract import make_views
from transferkit.features.extract.extraction import extract_pictures
from transferkit.features.store.store import FeatureStore
from transferkit.machine.cores import available_cores
from transferkit.machine.device import choose_workers
from transferkit.results.predict.predictor import Predictor
from transferkit.runs.files import RunFiles

__all__ = ["Neighbour", "TrainingNeighbours"]

BLOCK = 65_536
"""Training pictures compared at once."""

QUERIES = 32
"""Pictures to find neighbours of, at once."""

Rows: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Neighbour:
    """A training picture.

    Attributes:
        path: Its file.
        label: Its class; empty where the answer lies on its pixels.
        similarity: Cosine of its features with those of the picture asked about, in [-1, 1].
    """

    path: str
    label: str
    similarity: float


class TrainingNeighbours:
    """The training pictures of a run, by what its model makes of them: penultimate features, compared by their cosine.

    The features come from the feature store, where those of the run's own backbone are computed once. The search is
    exact: every training picture is compared. Files that are gone, or are not the ones that the run was trained on,
    are left out, with a warning. Not for several threads at once.

    Args:
        run: The run directory; its `pictures.csv` lists the training pictures.
        predictor: Its model.
        store: Directory of the feature store; the user's own when ``None``.
        progress: Called with pictures done and pictures in all, first for reading, then for computing.
        rescan: Read every training picture, instead of trusting what is known of files that are as they were.

    Attributes:
        computed: Training pictures whose features were not in the store.

    Raises:
        CheckpointError: The run does not say what it was trained on.
        DataError: None of its training pictures is there any more.
        StoreError: A feature is not finite.
        StorageError: `pictures.csv` or the store cannot be read, or the disk is full.
    """

    def __init__(
        self,
        run: str | os.PathLike[str],
        predictor: Predictor,
        store: str | os.PathLike[str] | None = None,
        progress: Callable[[int, int], None] | None = None,
        rescan: bool = False,
    ) -> None:
        rows = _training_pictures(Path(run))
        total = len(rows)
        read = hash_files(
            [row["path"] for row in rows],
            rescan=rescan,
            workers=available_cores(),
            progress=None if progress is None else lambda done: progress(done, total),
        )
        unchanged = [row for row, result in zip(rows, read, strict=True) if result.sha256 == row["sha256"]]
        if not unchanged:
            raise DataError(
                f"none of the {total} training pictures of {os.fspath(run)!r} is where it was, such as "
                f"{rows[0]['path']!r} - put them back, or go without them by --neighbours 0"
            )
        backbone = predictor.module.backbone
        frozen, taps = FrozenBackbone(backbone), find_taps(backbone)
        accelerator = "gpu" if predictor.device == "cuda" else predictor.device
        # The precision that features of this backbone are computed in anyway: a probe's are in the store already.
        compute = Compute(predictor.device, workers=choose_workers(None, accelerator)[0], threads=available_cores())
        extraction = extract_pictures(
            [Picture(row["path"], row["sha256"]) for row in unchanged],
            frozen,
            taps,
            make_views(predictor.info.preprocessing, 0, "none", 0),
            FeatureStore(store),
            compute,
            progress=progress,
        )
        good = [at for at in range(len(unchanged)) if at not in extraction.failures]
        if not good:
            raise DataError(f"none of the training pictures of {os.fspath(run)!r} can be decoded - restore them")
        if len(good) < total:
            warnings.warn(
                f"{total - len(good)} of {total} training pictures are gone or changed; nearest ones are sought among "
                "the others",
                TransferkitWarning,
                stacklevel=2,
            )
        self.computed = extraction.computed
        self._labels = not predictor.module.feed.on_pixels  # there a label is a file, no word for a reader
        self._pictures = [unchanged[at] for at in good]
        rows_of = extraction.rows[taps[0]][0]
        self._rows = _directions(rows_of if len(good) == len(unchanged) else rows_of[good])
        self._places: defaultdict[str, list[int]] = defaultdict(list)
        for at, row in enumerate(self._pictures):
            self._places[row["sha256"]].append(at)
        # The same arithmetic as the training pictures', but never compiled, which would pad a lone picture to a batch.
        self._engine = frozen.engine(
            taps, extraction.precision.precision, dataclasses.replace(compute, compiling="off")
        )

    def nearest(self, views: Sequence[Pixels], hashes: Sequence[str], k: int) -> list[list[Neighbour]]:
        """Return the k most similar training pictures of each picture, the most similar first.

        A picture that the model was trained on is not its own neighbour: it is known by its file. Of equally similar
        ones the first in the run's list goes first.

        Args:
            views: Evaluation views, ``(h, w, 3) uint8``, as `Predictor.decode` gives them.
            hashes: sha256 of each picture's file, as a hex digest.
            k: How many, at least 1. Fewer are returned where the run has fewer training pictures.
        """
        nearest: list[list[Neighbour]] = []
        for start in range(0, len(views), QUERIES):
            features = self._engine.rows(torch.from_numpy(np.stack(views[start : start + QUERIES])))[0]
            queries = _directions(features.float().cpu().numpy())
            own = [self._places.get(sha256, []) for sha256 in hashes[start : start + QUERIES]]
            nearest += [
                [self._neighbour(at, cosine) for at, cosine in best] for best in _top(queries, self._rows, k, own)
            ]
        return nearest

    def _neighbour(self, at: int, cosine: float) -> Neighbour:
        row = self._pictures[at]
        return Neighbour(row["path"], row["label"] if self._labels else "", max(-1.0, min(1.0, cosine)))


def _training_pictures(run: Path) -> list[dict[str, str]]:
    """Return the rows of a run's training pictures."""
    training = [row for row in RunFiles(run).pictures if row["split"] == "train"]
    if not training:
        raise CheckpointError(
            f"{run}: has no pictures.csv that lists training pictures - copy it again, train the run again, or go "
            "without training pictures by --neighbours 0"
        )
    return training


def _directions(rows: Rows) -> Rows:
    """Return rows of length 1; a row of zeros stays one."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    directions: Rows = rows / np.maximum(lengths, np.finfo(np.float32).tiny)
    return directions


def _top(queries: Rows, rows: Rows, k: int, own: Sequence[Sequence[int]]) -> list[list[tuple[int, float]]]:
    """Return position and cosine of the k most similar rows of each query.

    Args:
        queries: ``(Q, D)``, of length 1.
        rows: ``(N, D)``, likewise.
        k: How many.
        own: Positions that do not count, by query.
    """
    best: list[list[tuple[int, float]]] = [[] for _ in queries]
    for start in range(0, len(rows), BLOCK):
        cosines = queries @ rows[start : start + BLOCK].T
        for query, (row, left_out) in enumerate(zip(cosines, own, strict=True)):
            row[[at - start for at in left_out if start <= at < start + len(row)]] = -np.inf
            least = np.partition(row, -k)[-k] if k < len(row) else -np.inf
            chosen = np.flatnonzero((row >= least) & (row > -np.inf))  # with all that tie for the last place
            new = [(start + int(at), float(row[at])) for at in chosen]
            best[query] = sorted(best[query] + new, key=lambda pair: (-pair[1], pair[0]))[:k]
    return best
