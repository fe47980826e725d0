"""The training pictures nearest to a picture, in the eyes of the run's own model."""

from __future__ import annotations

import dataclasses
import hashlib
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

from transferkit.core.errors import CheckpointError, ConfigError, DataError, TransferkitWarning
from transferkit.data.batches.dataset import Picture
from transferkit.data.images.decode import read_bytes
from transferkit.data.images.reading import hash_images
from transferkit.features.engine.compute import Compute, FrozenBackbone
from transferkit.features.engine.taps import find_taps
from transferkit.features.extract.extract import make_views
from transferkit.features.extract.extraction import extract_pictures
from transferkit.features.store.store import FeatureStore
from transferkit.machine.cores import available_cores
from transferkit.machine.device import choose_workers
from transferkit.results.predict.predictor import Predictor
from transferkit.results.predict.views import Source
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
        label: Its class.
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

    Attributes:
        count: Training pictures that are compared.
        left_out: Training pictures that are gone, changed or unreadable.
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
        store: str | os.PathLike[str] | FeatureStore | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.predictor = predictor
        rows = _training_pictures(Path(run))
        total = len(rows)
        read = hash_images(
            [row["path"] for row in rows],
            workers=available_cores(),
            progress=None if progress is None else lambda done: progress(done, total),
        )
        kept = [row for row, result in zip(rows, read, strict=True) if result.sha256 == row["sha256"]]
        if not kept:
            raise DataError(
                f"none of the {total} training pictures of {os.fspath(run)!r} is where it was, such as "
                f"{rows[0]['path']!r} - put them back, or go without them by --neighbours 0"
            )
        backbone = predictor.module.backbone
        frozen, taps = FrozenBackbone(backbone), find_taps(backbone)
        kept_in = store if isinstance(store, FeatureStore) else FeatureStore(store)
        accelerator = "gpu" if predictor.device == "cuda" else predictor.device
        # The precision that features of this backbone are computed in anyway: a probe's are in the store already.
        compute = Compute(predictor.device, workers=choose_workers(None, accelerator)[0], threads=available_cores())
        extraction = extract_pictures(
            [Picture(row["path"], row["sha256"]) for row in kept],
            frozen,
            taps,
            make_views(predictor.info.preprocessing, 0, "none", 0),
            kept_in,
            compute,
            progress=progress,
        )
        good = np.array([at not in extraction.failures for at in range(len(kept))], dtype=bool)
        self._pictures = [row for row, is_good in zip(kept, good, strict=True) if is_good]
        self.count = len(self._pictures)
        self.left_out = total - self.count
        self.computed = extraction.computed
        if not self.count:
            raise DataError(f"none of the training pictures of {os.fspath(run)!r} can be decoded - restore them")
        if self.left_out:
            warnings.warn(
                f"{self.left_out} of {total} training pictures are gone or changed; nearest ones are sought among the "
                "others",
                TransferkitWarning,
                stacklevel=2,
            )
        rows_of = extraction.rows[taps[0]][0]
        self._rows = _directions(rows_of if good.all() else rows_of[good])
        self._places: defaultdict[str, list[int]] = defaultdict(list)
        for at, row in enumerate(self._pictures):
            self._places[row["sha256"]].append(at)
        # The same arithmetic as the training pictures', but never compiled, which would pad a lone picture to a batch.
        self._engine = frozen.engine(
            taps, extraction.precision.precision, dataclasses.replace(compute, compiling="off")
        )

    def nearest(
        self, images: Sequence[Source], k: int, *, sha256s: Sequence[str | None] | None = None
    ) -> list[list[Neighbour]]:
        """Return the k most similar training pictures of each picture, the most similar first.

        A picture that the model was trained on is not its own neighbour, where it is known by the sha256 of its file:
        for paths and bytes always, for arrays when `sha256s` tells it. Of equally similar ones the first in the run's
        list goes first.

        Args:
            images: Arrays are evaluation views, ``(h, w, 3) uint8``, as `Predictor.decode` gives them (one array
                ``(B, h, w, 3)`` does as well); everything else is decoded by it.
            k: How many, at least 1. Fewer are returned where the run has fewer training pictures.
            sha256s: Hex digest of each picture's file, ``None`` where it is not known.

        Raises:
            ConfigError: `k` is below 1, an array is no evaluation view, or `sha256s` are not as many as `images`.
            DataError: A picture cannot be read.
        """
        if k < 1:
            raise ConfigError(f"k is {k}, expected at least 1 neighbour")
        if sha256s is not None and len(sha256s) != len(images):
            raise ConfigError(f"{len(sha256s)} sha256s for {len(images)} pictures, expected one for each")
        found: list[list[Neighbour]] = []
        for start in range(0, len(images), QUERIES):
            views, known = zip(*(self._view(image) for image in images[start : start + QUERIES]), strict=True)
            hashes = known if sha256s is None else sha256s[start : start + QUERIES]
            features = self._engine.rows(torch.from_numpy(np.stack(views)))[0].float().cpu().numpy()
            own = [self._places.get(sha256, []) if sha256 is not None else [] for sha256 in hashes]
            found += [
                [self._neighbour(at, cosine) for at, cosine in nearest]
                for nearest in _top(_directions(features), self._rows, k, own)
            ]
        return found

    def _neighbour(self, at: int, cosine: float) -> Neighbour:
        row = self._pictures[at]
        return Neighbour(row["path"], row["label"], max(-1.0, min(1.0, cosine)))

    def _view(self, image: Source) -> tuple[npt.NDArray[np.uint8], str | None]:
        """Return the evaluation view, and the sha256 of the file where it is known."""
        if isinstance(image, np.ndarray):
            height, width = self.predictor.info.preprocessing.image_size
            if image.shape != (height, width, 3) or image.dtype != np.uint8:
                raise ConfigError(
                    f"an array is {image.shape} {image.dtype}, expected an evaluation view ({height}, {width}, 3) "
                    "uint8 - pass what Predictor.decode makes of it"
                )
            return image, None
        sha256 = None
        if isinstance(image, bytes | str | os.PathLike):
            sha256 = hashlib.sha256(image if isinstance(image, bytes) else read_bytes(image)).hexdigest()
        return self.predictor.decode(image), sha256


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
