"""From a folder of pictures and the name of a backbone to features: X, y and records, cached on disk."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from transferkit.core.errors import ConfigError
from transferkit.core.records import DataConfig
from transferkit.data.augment.transform import eval_transform, train_transform
from transferkit.data.augment.views import Views
from transferkit.data.batches.dataset import Picture
from transferkit.data.batches.statistics import measured, ranged
from transferkit.data.images.known_files import hash_files
from transferkit.data.images.sketchbook import Sketchbook
from transferkit.data.index.copies import find_copies
from transferkit.data.index.index import ImageIndex, build_index, warn_of
from transferkit.data.index.targets import TargetReader
from transferkit.data.pixels.store import read_pixels
from transferkit.data.scan.records import SPLITS
from transferkit.data.scan.scan import scan_data
from transferkit.features.engine.compute import Compute, FrozenBackbone
from transferkit.features.engine.taps import find_taps
from transferkit.features.extract.extraction import Extraction, extract_pictures
from transferkit.features.extract.table import FeatureTable, check_export
from transferkit.features.store.store import FeatureStore
from transferkit.machine.cores import available_cores
from transferkit.machine.device import choose_accelerator, choose_workers, device_of, tune_process
from transferkit.models.backbones.registry import create_backbone
from transferkit.models.task import task_of
from transferkit.options.augment import augment_words
from transferkit.options.features import FeatureOptions, FeaturesConfig
from transferkit.options.fields import make_config

__all__ = [
    "build_once",
    "extract_features",
    "extract_table",
    "frozen_backbone",
    "make_compute",
    "make_views",
    "table_of",
]

log = logging.getLogger("transferkit")

Progress = Callable[[int, int], None]


def extract_features(data: str | os.PathLike[str], **options: Any) -> FeatureTable:
    """Return the features of every picture of a data set, as a table that unpacks into ``X, y``.

    What was extracted before, here or in another run, is read from the store; a picture is known by its content, so
    renaming and moving files costs nothing.

    Args:
        data: Folder, CSV or Parquet manifest, or ``"sample"``.
        options: The fields of `FeaturesConfig`: ``backbone``, ``weights``, ``image_size``, ``layer``, ``pool``,
            ``views``, ``augment``, ``store``, ``precision``, ``accelerator``, ...

    Returns:
        Features ``X (N, D) float32`` and labels ``y (N,) int64`` of all splits, with ``records`` (path, label, split),
        ``class_names``, ``layers`` and ``views``; ``.split("train")`` takes the rows of one split.

    Raises:
        ConfigError: An option is unknown or out of range.
        DataError: Pictures are missing, unreadable or contradictory.
        BackboneError: The backbone is unknown, or its weights cannot be had or do not fit.
        StoreError: Features are not finite.
        StorageError: The disk is full or failing.
    """
    config = make_config(FeaturesConfig, {"data": data, **options})
    if config.out is not None:
        check_export(Path(config.out))
    table = extract_table(config)
    if config.out is not None:
        table.save(config.out)
    return table


def extract_table(
    config: FeatureOptions,
    *,
    reader: TargetReader | None = None,
    indexing: Progress | None = None,
    extracting: Progress | None = None,
) -> FeatureTable:
    """Return the features that a configuration asks for.

    Args:
        config: The options.
        reader: Says what labels mean; that of the task when ``None``.
        indexing: Called with files hashed and files in all.
        extracting: Called with pictures computed and pictures to compute.

    Raises:
        TransferkitError: As `extract_features` says.
    """
    if reader is None:
        task = task_of(config)
        if not task.extent.whole:
            raise ConfigError(
                f"features are a row per picture, and the answers of {task.name} lie on its pixels - solve a head of "
                "masks by finetune --phases probe"
            )
        reader = task.targets
    config = ranged(config, reader)
    make_views(DataConfig(), config.views, config.augment, config.seed)  # wrong steps are an error before all else
    frozen = frozen_backbone(config.backbone, config.weights, config.size, config.seed, config.channels)
    taps = find_taps(frozen.backbone, config.layer, config.pool)
    usual = frozen.backbone.data_config  # of a network that others may use, too
    prepared = config.prepared(usual)
    compute = make_compute(config.accelerator, config.precision, config.workers, config.compile, config.batch_size)
    scan = scan_data(config.data, reader.columns_of(config))
    total, cores, book = len(scan.files), available_cores(), Sketchbook(prepared.decoding)
    hashes = hash_files(
        [file.path for file in scan.files],
        rescan=config.rescan,
        workers=cores,
        progress=None if indexing is None else lambda done: indexing(done, total),
    )
    hashes = book.fill(hashes)
    copies = find_copies(hashes, book, near=config.group_near, rescan=config.rescan, workers=cores, progress=indexing)
    index = build_index(config, scan, hashes, copies, reader=reader)  # faults of classes and splits come before work
    readable = [result for result in hashes if result.sha256 is not None]
    pictures = [Picture(result.path, str(result.sha256)) for result in readable]
    if frozen.backbone.measures:
        prepared = measured(prepared, {record.sha256: record.path for record in index.split("train")})
        frozen = frozen.prepared(prepared)
    views = make_views(
        prepared, config.views, config.augment, config.seed, flip=not config.no_flip, whole=config.keeps_whole
    )
    extraction = extract_pictures(
        pictures, frozen, taps, views, FeatureStore(config.store), compute, progress=extracting, sketches=True,
        pixels=read_pixels(prepared),
    )  # fmt: skip
    bad = {pictures[at].sha256: reason for at, reason in extraction.failures.items()}
    if bad or any(result.sketch is None for result in readable):  # more is known than before
        hashes = [replace(result, error=result.error or bad.get(str(result.sha256)),
                          sketch=result.sketch or extraction.sketches.get(str(result.sha256)))
                  for result in hashes]  # fmt: skip
        hashes = book.complete(hashes, workers=cores, progress=indexing)
        copies = replace(find_copies(hashes, book, workers=cores), near=copies.near)
        index = build_index(config, scan, hashes, copies, reader=reader)
        book.keep(hashes)
    warn_of(index)
    return table_of(index, pictures, extraction, _facts(config, frozen, prepared, extraction))


def frozen_backbone(
    name: str,
    weights: str,
    image_size: tuple[int, int] | None,
    seed: int | None = None,
    channels: int | None = None,
) -> FrozenBackbone:
    """Return a backbone to extract features with, made once per process.

    Args:
        name: As for `create_backbone`.
        weights: Likewise.
        image_size: Likewise.
        seed: Of random weights; ``None`` for others in every process.
        channels: As for `create_backbone`.

    Raises:
        BackboneError: The name is unknown, or the weights cannot be had or do not fit.
    """
    file = Path(weights)
    facts = file.stat() if file.is_file() else None  # another file under the same name is another network
    stamp = None if facts is None else (facts.st_ino, facts.st_ctime_ns, facts.st_mtime_ns, facts.st_size)
    return build_once(name, weights, image_size, stamp, seed if weights == "random" else None, channels)


@lru_cache(maxsize=2)  # the second call of a notebook, and every clone of an estimator, has its network compiled
def build_once(
    name: str,
    weights: str,
    image_size: tuple[int, int] | None,
    file: tuple[int, ...] | None,
    seed: int | None,
    channels: int | None = None,
) -> FrozenBackbone:
    """Do what `frozen_backbone` says, for a weights file (by inode, times and size) that is the same as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.seed() if seed is None else seed)
        backbone = create_backbone(name, weights=weights, image_size=image_size, channels=channels)
    return FrozenBackbone(backbone.eval().requires_grad_(False))


def make_views(
    config: DataConfig, count: int, augment: Any, seed: int, *, flip: bool = True, whole: bool = False
) -> Views:
    """Return the views of a picture: the evaluation view and `count` augmented ones; see `train_transform`."""
    augmented = train_transform(augment, config, flip=flip, whole=whole) if count else None
    return Views(eval_transform(config), augmented, count, seed)


def make_compute(
    accelerator: str = "auto",
    precision: str = "auto",
    workers: int | None = None,
    compiling: Literal["auto", "on", "off"] = "auto",
    batch_size: int | None = None,
) -> Compute:
    """Set this process up and return what to compute with.

    Raises:
        ConfigError: The accelerator is not on this machine.
    """
    chosen = choose_accelerator(accelerator)
    decoders, threads = choose_workers(workers, chosen)
    tune_process(threads)
    return Compute(device_of(chosen), precision, compiling, decoders, available_cores(), batch_size)


def table_of(
    index: ImageIndex,
    pictures: Sequence[Picture],
    extraction: Extraction,
    facts: Mapping[str, Any],
    *,
    splits: Sequence[str] = SPLITS,
) -> FeatureTable:
    """Return the rows of an index's records.

    Args:
        index: Says which pictures count, and their classes.
        pictures: What was extracted, at least all of the index in `splits`.
        extraction: Their features.
        facts: See `FeatureTable`.
        splits: Those that the table is to have.
    """
    place = {picture.sha256: at for at, picture in enumerate(pictures)}
    records = tuple(record for record in index.records if record.split in splits)
    order = [place[record.sha256] for record in records]
    whole = order == list(range(len(pictures)))  # then there is nothing to copy
    views = {tap.layer: rows[1:, order] for tap, rows in extraction.rows.items() if len(rows) > 1}
    return FeatureTable(
        layers={tap.layer: rows[0] if whole else rows[0, order] for tap, rows in extraction.rows.items()},
        y=index.targets.encode(record.label for record in records),
        records=records,
        views=views,
        facts=facts,
        index=index,
    )


def _facts(
    config: FeatureOptions, frozen: FrozenBackbone, prepared: DataConfig, extraction: Extraction
) -> dict[str, Any]:
    backbone = frozen.backbone
    return {
        "backbone": backbone.name,
        "weights": backbone.weights_source,
        "weights_sha256": frozen.digest,
        "data_config": prepared.to_dict(),
        "layers": {tap.layer: tap.pool for tap in extraction.rows},
        "views": config.views,
        "augment": augment_words(config.augment) if config.views else "none",
        "precision": extraction.precision.precision,
        "precision_reason": extraction.precision.reason,
        "computed": extraction.computed,
        "store": str(FeatureStore(config.store).root),
    }
