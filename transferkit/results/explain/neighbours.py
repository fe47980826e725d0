"""The training pictures nearest to a picture, in the eyes of the run's own model."""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from transferkit.core.errors import CheckpointError, DataError, TransferkitWarning
from transferkit.data.images.decode import Pixels
from transferkit.features.engine.compute import Compute
from transferkit.machine.cores import available_cores
from transferkit.machine.device import choose_workers
from transferkit.results.predict.predictor import Predictor
from transferkit.results.similar.gallery import Entry, Gallery, ModelFeatures, run_entries, unchanged
from transferkit.results.similar.nearest import Nearest

__all__ = ["Neighbour", "TrainingNeighbours"]

QUERIES = 32
"""Pictures to find neighbours of, at once."""


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
        entries = _training_entries(run)
        here, _ = unchanged(entries, rescan=rescan, progress=progress)
        if not here:
            raise DataError(
                f"none of the {len(entries)} training pictures of {os.fspath(run)!r} is where it was, such as "
                f"{entries[0].path!r} - put them back, or go without them by --neighbours 0"
            )
        accelerator = "gpu" if predictor.device == "cuda" else predictor.device
        # The precision that features of this backbone are computed in anyway: a probe's are in the store already.
        compute = Compute(predictor.device, workers=choose_workers(None, accelerator)[0], threads=available_cores())
        self._features = ModelFeatures(predictor.module, predictor.info.preprocessing, compute, store)
        self._gallery = Gallery(here, self._features)
        self._blocks = list(self._gallery.blocks(progress))
        good = len(here) - len(self._gallery.failures)
        if not good:
            raise DataError(f"none of the training pictures of {os.fspath(run)!r} can be decoded - restore them")
        if good < len(entries):
            warnings.warn(
                f"{len(entries) - good} of {len(entries)} training pictures are gone or changed; nearest ones are "
                "sought among the others",
                TransferkitWarning,
                stacklevel=2,
            )
        self.computed = self._features.computed
        self._labels = not predictor.module.feed.on_pixels  # there a label is a file, no word for a reader
        self._places: defaultdict[str, list[int]] = defaultdict(list)
        for at, entry in enumerate(here):
            self._places[entry.sha256].append(at)

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
            queries = self._features.of_views(torch.from_numpy(np.stack(views[start : start + QUERIES])))
            best = Nearest(queries, k, [self._places.get(sha256, []) for sha256 in hashes[start : start + QUERIES]])
            for places, rows in self._blocks:
                best.see(places, rows)
            nearest += [
                [self._neighbour(at, cosine) for at, cosine in zip(*best.of(query), strict=True)]
                for query in range(len(queries))
            ]
        return nearest

    def _neighbour(self, at: int, cosine: float) -> Neighbour:
        entry = self._gallery.entries[at]
        return Neighbour(entry.path, entry.label if self._labels else "", float(cosine))


def _training_entries(run: str | os.PathLike[str]) -> list[Entry]:
    """Return a run's training pictures."""
    try:
        return run_entries(run)
    except CheckpointError as error:
        raise CheckpointError(f"{error}, or go without training pictures by --neighbours 0") from error
