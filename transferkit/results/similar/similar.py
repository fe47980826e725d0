"""The verb `similar` and `tk.similar`: the pictures of a run's data that its model finds most like others."""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from transferkit.core.errors import ConfigError, DataError, ExportError, TransferkitWarning, did_you_mean
from transferkit.core.files import atomic_write, require_new_file
from transferkit.core.records import DataConfig
from transferkit.data.scan.named import find_pictures, warn_of_unread
from transferkit.features.extract.extract import make_compute
from transferkit.models.artifact import load_model
from transferkit.models.module import TransferModule
from transferkit.options.fields import make_config
from transferkit.options.results import SimilarConfig
from transferkit.results.predict.views import Source
from transferkit.results.similar.gallery import (
    Entry,
    Gallery,
    ModelFeatures,
    folder_entries,
    run_entries,
    unchanged,
)
from transferkit.results.similar.lines import ENDINGS, csv_of, format_of, json_of, text_of
from transferkit.results.similar.search import Similar, queries_of, search
from transferkit.runs.files import RunFiles
from transferkit.runs.labelled import run_columns
from transferkit.show.progress import counting_bar, output_console, progress_console

__all__ = ["find_similar", "similar"]


def similar(run: str | os.PathLike[str], pictures: Iterable[Source] | Source, **options: Any) -> list[Similar]:
    """Return the pictures of a run's training data that its model finds most like others.

    Pictures are compared by the cosine of the run's own penultimate features, or of the embedding of its head where
    that has one. Features lie in the feature store: each picture is computed once per model. The search is exact.

    Args:
        run: The run directory.
        pictures: Paths of pictures or folders, bytes of files, Pillow pictures or uint8 arrays ``(H, W, 3)``; or one.
        options: The fields of `SimilarConfig`: ``top``, ``data``, ``split``, ``with_same``, ``store``, ...

    Returns:
        A record per picture, in order: ``path``, ``matches`` (each with ``path, label, split, similarity, same``),
        ``same`` and ``error``, which is set for one that cannot be read.

    Raises:
        ConfigError: An option is unknown or out of range, or a source is no picture.
        DataError: A path does not exist, or none of the pictures to search is left.
        CheckpointError: The model is missing or damaged, or the run does not list its pictures.
        StoreError: A feature is not finite.
        StorageError: The disk is full or failing.
    """
    single = isinstance(pictures, str | os.PathLike | bytes | Image.Image) or (
        isinstance(pictures, np.ndarray) and pictures.ndim < 4 and pictures.dtype.kind not in "OUS"
    )
    sources: list[Any] = [pictures] if single else list(pictures)  # type: ignore[arg-type]
    if not sources:
        raise ConfigError("there is no picture, expected a path, a picture, or a list of them")
    paths = {at: os.fspath(one) for at, one in enumerate(sources) if isinstance(one, str | os.PathLike)}
    named = [paths.get(at, f"pictures[{at}]") for at in range(len(sources))]
    config = make_config(SimilarConfig, {"quiet": True, "run": run, "paths": named, **options})
    if config.out is not None:
        raise ConfigError("`out` is of the command line - use the records that are returned")
    listed: list[Source] = []
    for at, path in enumerate(config.paths):
        listed += find_pictures([path]) if at in paths else [sources[at]]
    return _find(config, listed)


def find_similar(config: SimilarConfig) -> None:
    """Find similar pictures, and print them or write them to a file.

    Raises:
        TransferkitError: As `similar` says.
        ExportError: Some pictures could not be read; their rows say why, and the others are done.
    """
    _check_out(config)
    unread: Counter[str] = Counter()
    paths = list(find_pictures(config.paths, sys.stdin, unread))
    warn_of_unread(unread)
    results = _find(config, paths)
    if config.out is None:
        console = output_console()
        for line in text_of(results):
            console.print(line, soft_wrap=True)
    else:
        atomic_write(Path(config.out), _content(config, format_of(config.out), results))
        if not config.quiet:
            print(f"similar    {sum(one.error is None for one in results):,} pictures, in {config.out}", flush=True)
    failed = sum(one.error is not None for one in results)
    if failed:
        raise ExportError(
            f"{failed:,} of {len(results):,} pictures could not be read; their rows say why - replace or remove them, "
            "and run again"
        )


def _content(config: SimilarConfig, kind: str, results: Sequence[Similar]) -> str:
    """Return what stands in the file."""
    if kind == "html":
        from transferkit.results.similar.page import page_of  # with matplotlib, which a table does without

        return page_of(results, config.run, RunFiles(Path(config.run)).decoding)
    return "".join((csv_of if kind == "csv" else json_of)(results))


def _find(config: SimilarConfig, sources: list[Source] | list[str]) -> list[Similar]:
    module, info = load_model(config.run, max_pixels=config.max_pixels)
    compute = make_compute(config.accelerator, config.precision, config.workers, "auto", config.batch_size)
    features = ModelFeatures(module.to(compute.device), info.preprocessing, compute, config.store)
    console = progress_console(config.quiet)
    with counting_bar(console, "reading") as progress:
        entries = _entries(config, module, info.preprocessing)
        here, others = unchanged(entries, rescan=config.rescan, progress=progress)
    where = f"of {config.run!r}" if config.data is None else f"in {config.data!r}"
    if not here:
        raise DataError(
            f"none of the {len(entries)} pictures {where} is where it was, such as {entries[0].path!r} - put them "
            "back, or name the folder where they are by --data: pictures are known by their content"
        )
    gallery = Gallery(here, features)
    queries = queries_of(sources, info.preprocessing.decoding, rescan=config.rescan)
    with counting_bar(console, f"comparing {features.words}") as progress:
        results = search(
            gallery, queries, config.top, with_same=config.with_same, decoding=info.preprocessing.decoding,
            progress=progress,
        )  # fmt: skip
    left_out = len(others) + len(gallery.failures)
    if left_out:
        example = others[0].path if others else here[min(gallery.failures)].path
        warnings.warn(
            f"{left_out} of {len(entries)} pictures {where} are gone, changed or no pictures, such as {example!r}; "
            "similar ones are sought among the others",
            TransferkitWarning,
            stacklevel=3,
        )
    return results


def _entries(config: SimilarConfig, module: TransferModule, preprocessing: DataConfig) -> list[Entry]:
    """Return the pictures that are searched."""
    on_pixels = module.feed.on_pixels  # there a label is a file, no word for a reader
    if config.data is None:
        entries = run_entries(config.run, "train" if config.split == "auto" else config.split)
    else:
        task = module.task
        columns = run_columns(
            Path(config.run), task.targets, task.targets.of(module.target_spec), config.data,
            path_column=config.path_column, root=config.root,
        )  # fmt: skip
        entries = folder_entries(config.data, columns, "all" if config.split == "auto" else config.split)
    return [Entry(one.path, one.sha256, "", one.split) for one in entries] if on_pixels else entries


def _check_out(config: SimilarConfig) -> None:
    """Refuse a file that cannot be written to, before any work is done."""
    if config.out is None:
        return
    path = Path(config.out)
    if not format_of(config.out):
        raise ConfigError(
            f"--out {path}: unknown ending {path.suffix!r}.{did_you_mean(path.suffix, ENDINGS)} Known: "
            f"{', '.join(ENDINGS)}"
        )
    require_new_file(path, overwrite=config.overwrite)
