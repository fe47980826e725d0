"""What a run writes about itself: options, pictures and plan before it begins, figures when it ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from transferkit.core.csv import csv_text
from transferkit.core.documents import yaml_text
from transferkit.core.files import atomic_write, write_json
from transferkit.data.index.index import ImageIndex
from transferkit.models.artifact import versions

__all__ = [
    "NOT_SAVED",
    "PATHS",
    "absolute",
    "environment",
    "write_config",
    "write_data",
    "write_metrics",
    "write_plan",
]

NOT_SAVED = frozenset({
    "dry_run", "logger", "logger_args", "out", "overfit_batches", "overwrite", "quiet", "report", "rescan", "resume",
    "store",
})  # fmt: skip
"""Options that say where and how to run, not what: left out of `config.yaml`, so that it repeats the run elsewhere."""

PATHS = ("add", "data", "init_from", "root", "teacher", "to", "weights")
"""Options that may be paths."""


def write_config(run: Path, options: Mapping[str, Any]) -> None:
    """Write `config.yaml`: what to run, without where and how; paths absolute, so that it repeats the run elsewhere."""
    values = {key: value for key, value in options.items() if key not in NOT_SAVED}
    for key in PATHS:
        if key in values:
            values[key] = absolute(values[key])
    atomic_write(run / "config.yaml", yaml_text(values))


def absolute(value: str | None) -> str | None:
    """Make an existing path absolute, so that a recipe works from anywhere; leave names alone."""
    return str(Path(value).absolute()) if value is not None and Path(value).exists() else value


def write_data(run: Path, index: ImageIndex, *, skip_bad: bool, earlier: Sequence[Mapping[str, str]] = ()) -> None:
    """Write `data.json` and `pictures.csv`, and `bad_files.csv` where files were left out.

    Args:
        run: The run directory.
        index: The pictures.
        skip_bad: Whether files were left out.
        earlier: Rows of the `pictures.csv` of a run that this one goes on from; they are pictures of this one, too.
    """
    write_json(
        run / "data.json",
        {
            "classes": list(index.class_names),
            "counts": index.counts(),
            "pictures": {split: len(index.split(split)) for split in index.counts()},
            "digest": index.digest(),
            "skipped": [{"path": file.path, "reason": file.reason} for file in index.skipped],
            "notes": list(index.notes),
        },
    )
    columns = ("split", "label", "path", "sha256")
    pictures = [tuple(row[column] for column in columns) for row in earlier]
    pictures += [(record.split, record.label, str(Path(record.path).absolute()), record.sha256)
                 for record in index.records]  # fmt: skip
    atomic_write(run / "pictures.csv", csv_text([columns, *pictures]))
    if skip_bad and index.skipped:
        rows = ((file.path, file.reason) for file in index.skipped)
        atomic_write(run / "bad_files.csv", csv_text([("path", "reason"), *rows]))


def write_plan(run: Path, plan: Mapping[str, Any]) -> None:
    """Write `plan.json`."""
    write_json(run / "plan.json", plan)


def write_metrics(run: Path, metrics: Mapping[str, Any]) -> None:
    """Write `metrics.json`, the last file of a run: it marks a complete one."""
    write_json(run / "metrics.json", metrics)


def environment(device: str) -> dict[str, Any]:
    """Return versions and the name of a device, as `metrics.json` holds them."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"{device}, {torch.get_num_threads()} threads"
    return {**versions(), "device": name}
