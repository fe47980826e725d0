"""The pictures that are searched, and how a run's model sees them: features from the store, block by block."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from transferkit.core.errors import CheckpointError, ConfigError, DataError
from transferkit.core.records import DataConfig
from transferkit.core.text import listing
from transferkit.data.batches.dataset import Picture
from transferkit.data.images.known_files import hash_files
from transferkit.data.images.reading import ReadResult
from transferkit.data.scan.columns import Columns
from transferkit.data.scan.named import find_pictures
from transferkit.data.scan.scan import scan_data
from transferkit.features.engine.compute import Compute, FrozenBackbone
from transferkit.features.engine.taps import find_taps
from transferkit.features.extract.extract import make_views
from transferkit.features.extract.extraction import extract_pictures
from transferkit.features.store.store import FeatureStore
from transferkit.machine.cores import available_cores
from transferkit.machine.precision import Precision
from transferkit.models.heads.embedding import embedding_of
from transferkit.models.heads.feed import Feed
from transferkit.models.module import TransferModule
from transferkit.results.similar.nearest import Places, Rows, directions
from transferkit.runs.files import RunFiles

__all__ = ["Entry", "Gallery", "ModelFeatures", "folder_entries", "run_entries", "unchanged"]

BLOCK = 8192
"""Pictures whose features are in memory at once."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Entry:
    """A picture that can be found.

    Attributes:
        path: Its file.
        sha256: Hex digest of its bytes; empty before they are read.
        label: Its answer as the data have it, such as its class; empty where there is none.
        split: ``"train"``, ``"val"`` or ``"test"``; empty where the data have no splits.
    """

    path: str
    sha256: str
    label: str
    split: str


# ---- which pictures ---------------------------------------------------------------------------------------------


def run_entries(run: str | os.PathLike[str], split: str = "train") -> list[Entry]:
    """Return the pictures of a run, as its `pictures.csv` lists them: they need not be there any more.

    Args:
        run: Its directory.
        split: ``"train"``, ``"val"``, ``"test"``, or ``"all"`` of them.

    Raises:
        CheckpointError: The run does not list its pictures, or has none of this split.
        StorageError: The list cannot be read.
    """
    rows = RunFiles(Path(run)).pictures
    entries = [
        Entry(row["path"], row["sha256"], row["label"], row["split"]) for row in rows if split in (row["split"], "all")
    ]
    if entries:
        return entries
    noun = {"train": "training ", "all": ""}.get(split, f"{split} ")
    others = f", only those of {listing(sorted({row['split'] for row in rows}))}" if rows else ""
    raise CheckpointError(
        f"{os.fspath(run)}: has no pictures.csv that lists {noun}pictures{others} - copy it again, or train anew"
    )


def folder_entries(data: str, columns: Columns, split: str = "all") -> list[Entry]:
    """Return the pictures of a data set, or of any folder that is none: those have no labels.

    Args:
        data: Folder, manifest or ``"sample"``.
        columns: Where answers stand, see `run_columns`.
        split: As for `run_entries`.

    Raises:
        DataError: There is nothing there, no picture, or none of this split.
    """
    try:
        scan = scan_data(data, columns)
        files = [] if scan.problems and Path(data).is_dir() else list(scan.files)
    except DataError:
        if not Path(data).is_dir():
            raise
        files = []
    if files:
        entries = [Entry(file.path, "", file.label, file.split or "") for file in files]
    else:
        entries = [Entry(path, "", "", "") for path in find_pictures([data])]
    if split == "all":
        return entries
    chosen = [entry for entry in entries if entry.split == split]
    if not chosen:
        known = sorted({entry.split for entry in entries} - {""})
        has = f"has splits {listing(known)}" if known else "has no splits"
        raise DataError(f"{data}: {has}, and no {split} - name one of them by --split, or leave it out")
    return chosen


def unchanged(
    entries: Sequence[Entry], *, rescan: bool = False, progress: Progress | None = None
) -> tuple[list[Entry], list[ReadResult]]:
    """Return the pictures that are where they were and what they were, with their digests, and the other files.

    Args:
        entries: Pictures; of those whose digest is not known any content will do.
        rescan: Read every file, instead of trusting what is known of files that are as they were.
        progress: Called with files read and files in all.
    """
    total = len(entries)
    results = hash_files(
        [entry.path for entry in entries],
        rescan=rescan,
        workers=available_cores(),
        progress=None if progress is None else lambda done: progress(done, total),
    )
    same, others = [], []
    for entry, result in zip(entries, results, strict=True):
        if result.sha256 is not None and entry.sha256 in ("", result.sha256):
            same.append(dataclasses.replace(entry, sha256=result.sha256))
        else:
            others.append(result)
    return same, others


# ---- how a model sees them --------------------------------------------------------------------------------------


class ModelFeatures:
    """The directions that a run's model compares pictures by: of its penultimate features, or its head's embedding.

    Penultimate features lie in the feature store, under the digest of the run's own weights: each picture is computed
    once per model. An embedding (see `embedding_of`) is computed from them each time, which costs next to nothing. Of a
    head that answers for pixels, or takes maps, the backbone's own pooled features are taken.

    Args:
        module: The model, in eval mode.
        config: How its pictures are prepared.
        compute: What to compute with.
        store: Directory of the feature store; the user's own when ``None``.

    Attributes:
        computed: Pictures that the network was run on so far.
        words: What is compared, for a sentence.

    Raises:
        ConfigError: The model sees pictures in windows.
    """

    def __init__(
        self, module: TransferModule, config: DataConfig, compute: Compute, store: str | os.PathLike[str] | None = None
    ) -> None:
        if config.tiled:
            raise ConfigError(
                "pictures are compared as a whole, and this model sees them in windows (--tile) - take a run that sees "
                "whole pictures"
            )
        self.compute = compute
        self.computed = 0
        self._config = config
        self._embedding = embedding_of(module.head) if module.feed is Feed.FEATURES else None
        self._frozen = FrozenBackbone(module.backbone)
        self._taps = find_taps(module.backbone)
        self._views = make_views(config, 0, "none", 0)
        self._store = FeatureStore(store, stays_open=True)
        self.words = "penultimate features" if self._embedding is None else "embeddings of its head"

    def of(self, pictures: Sequence[Picture], progress: Progress | None = None) -> tuple[Rows, dict[int, str]]:
        """Return directions ``(N, D)``, and why pictures at some places have none: those are NaN.

        Args:
            pictures: Each with its sha256.
            progress: Called with pictures computed and pictures to compute.

        Raises:
            DataError: A file is gone or has changed since it was hashed.
            StoreError: A feature is not finite.
            StorageError: The disk is full or failing, or a decoding process was lost.
            TrainingError: Memory ran out.
        """
        extraction = extract_pictures(
            pictures, self._frozen, self._taps, self._views, self._store, self.compute, progress=progress
        )
        self.computed += extraction.computed
        return self._directions(torch.from_numpy(extraction.rows[self._taps[0]][0])), extraction.failures

    def of_views(self, views: Tensor) -> Rows:
        """Return directions ``(N, D)`` of evaluation views ``(N, h, w, 3) uint8``, past the store."""
        # The arithmetic of the store's rows, but never compiled, which would pad a lone picture to a batch.
        plain = dataclasses.replace(self.compute, compiling="off")
        return self._directions(self._frozen.engine(self._taps, self._precision(), plain).rows(views)[0])

    def _precision(self) -> Precision:
        return self._frozen.choose_precision(self._taps, self.compute).precision

    def _directions(self, features: Tensor) -> Rows:
        if self._embedding is not None:
            with torch.inference_mode():
                parameter = next(self._embedding.parameters(), features)
                features = self._embedding(features.to(parameter.device, torch.float32))
        rows: Rows = features.float().cpu().numpy()
        return directions(rows)


@dataclass
class Gallery:
    """Pictures, and how a model sees them; their features are in memory block by block.

    Attributes:
        entries: The pictures, as they lie on disk.
        features: Of the model.
        failures: Why pictures at some places cannot be searched, as far as `blocks` has come.
    """

    entries: Sequence[Entry]
    features: ModelFeatures
    failures: dict[int, str] = dataclasses.field(default_factory=dict)

    def blocks(self, progress: Progress | None = None) -> Iterator[tuple[Places, Rows]]:
        """Yield places ``(n,)`` and directions ``(n, D)`` of all pictures that can be decoded, in order.

        Args:
            progress: Called with pictures done and pictures in all.

        Raises:
            TransferkitError: As `ModelFeatures.of` says.
        """
        total = len(self.entries)
        for start in range(0, total, BLOCK):
            part = self.entries[start : start + BLOCK]
            report = None if progress is None else _shifted(progress, start, len(part), total)
            rows, failures = self.features.of([Picture(entry.path, entry.sha256) for entry in part], report)
            self.failures |= {start + at: reason for at, reason in failures.items()}
            good = np.array([at for at in range(len(part)) if at not in failures], dtype=np.int64)
            if progress is not None:
                progress(start + len(part), total)
            yield good + start, rows if len(good) == len(part) else rows[good]


def _shifted(progress: Progress, start: int, size: int, total: int) -> Progress:
    """Return what tells of all pictures when it is told of those of a block that have to be computed."""
    return lambda done, missing: progress(start + size - missing + done, total)
