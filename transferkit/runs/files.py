"""The files of a run directory as plain values; what is missing or unreadable is left out and said."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from transferkit.core.csv import read_csv
from transferkit.core.errors import CheckpointError, StorageError
from transferkit.data.sample import SAMPLE

__all__ = ["SPLITS", "RunFiles", "number", "read_run"]

SPLITS = ("test", "val", "all", "train")
"""Of `metrics.json`, the ones that say most first: test was not looked at before, val was."""

MAX_TABLE_BYTES = 64_000_000
"""A longer list of pictures (about 500,000) is not read: it would take memory and time, and a page shows a few."""

FINETUNE, PROBE, EVALUATE = "finetune", "probe", "evaluate"


@dataclass(frozen=True)
class RunFiles:
    """What a run directory holds.

    Attributes:
        run: The directory, as it was given.
        kind: The verb that wrote it: ``"finetune"``, ``"probe"`` or ``"evaluate"``.
        metrics: `metrics.json`.
        config: `config.yaml`, the options.
        data: `data.json`.
        plan: `plan.json`.
        model: `model.json`.
        history: Rows of `history.csv`, numbers as numbers.
        pictures: Rows of `pictures.csv`: ``split, label, path, sha256``.
        predictions: Rows of `predictions.csv`: ``split, path, label, predicted, probability, label_probability``.
        model_run: The directory that holds the model; for an evaluation that of the run it measured.
        problems: What could not be read, a sentence each.
    """

    run: Path
    kind: str
    metrics: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[dict[str, str]] = field(default_factory=list)
    predictions: list[dict[str, str]] = field(default_factory=list)
    model_run: Path | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The directory's own name."""
        return self.run.absolute().name or str(self.run)

    @property
    def splits(self) -> list[str]:
        """The splits that were measured, the most telling one first."""
        return [split for split in SPLITS if number(_mapping(self.metrics.get(split)).get("acc")) is not None]

    @property
    def class_names(self) -> list[str]:
        """In index order, as far as the files tell."""
        for split in self.splits:
            if isinstance(self.metrics[split].get("per_class"), dict):
                return [str(name) for name in self.metrics[split]["per_class"]]
        return [str(name) for name in self.data.get("classes", ())]

    def shown_path(self, path: str) -> str:
        """Return a picture's path below the data folder, else below what all pictures have in common."""
        for root in self._roots():
            if path.startswith(root + os.sep):
                return path[len(root) + 1 :]
        return str(Path(*Path(path).parts[-2:]))

    def _roots(self) -> list[str]:
        data = str(self.config.get("data") or "")
        roots = [str(Path(data).absolute())] if data and data != SAMPLE else []
        if not roots or not any(row["path"].startswith(roots[0] + os.sep) for row in self.predictions[:1]):
            folders = {str(Path(row["path"]).parent) for row in self.predictions or self.pictures[:1000]}
            if len(folders) > 1:
                try:
                    roots.append(os.path.commonpath(folders))
                except ValueError:  # relative and absolute ones together
                    return roots
        return roots


def read_run(run: Path) -> RunFiles:
    """Read what a finished run, or an evaluation, left behind.

    Args:
        run: The directory.

    Raises:
        CheckpointError: There is no directory, or no `metrics.json` of a finished run in it.
    """
    if not run.is_dir():
        raise CheckpointError(f"{run}: no such directory, expected one that finetune, probe or evaluate wrote")
    path = run / "metrics.json"
    if not path.is_file():
        raise CheckpointError(f"{run}: no metrics.json, which marks a finished run - let it finish (--resume) first")
    problems: list[str] = []
    metrics = _json(path, problems)
    if not metrics or problems:
        raise CheckpointError(f"{path}: cannot be read as a finished run's figures - write the run again")
    config = _yaml(run / "config.yaml", problems)
    kind = EVALUATE if "run" in config or "against" in config else PROBE if "classifier" in config else FINETUNE
    model_run = run if (run / "model.json").is_file() else None
    if model_run is None and config.get("run") and (Path(str(config["run"])) / "model.json").is_file():
        model_run = Path(str(config["run"]))
    return RunFiles(
        run=run,
        kind=kind,
        metrics=metrics,
        config=config,
        data=_json(run / "data.json", problems),
        plan=_json(run / "plan.json", problems),
        model={} if model_run is None else _json(model_run / "model.json", problems),
        history=[_numbers(row) for row in _table(run / "history.csv", (), problems)],
        pictures=_table(run / "pictures.csv", ("split", "label", "path", "sha256"), problems),
        predictions=_table(
            run / "predictions.csv",
            ("split", "path", "label", "predicted", "probability", "label_probability"),
            problems,
        ),
        model_run=model_run,
        problems=problems,
    )


def number(value: Any) -> float | None:
    """Return a finite number as it is; ``None`` for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) == float("inf"):
        return None
    return value


# ---- one file ---------------------------------------------------------------------------------------------------


def _json(path: Path, problems: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return _mapping(json.loads(path.read_text(encoding="utf-8")), path.name)
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} cannot be read ({error})")
        return {}


def _yaml(path: Path, problems: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return _mapping(yaml.safe_load(path.read_text(encoding="utf-8")), path.name)
    except (OSError, ValueError, yaml.YAMLError) as error:
        problems.append(f"{path.name} cannot be read ({error})")
        return {}


def _mapping(value: Any, name: str | None = None) -> dict[str, Any]:
    """Return a mapping as it is; raise `ValueError` for anything else in a file, and be empty elsewhere."""
    if isinstance(value, dict):
        return value
    if name is None:
        return {}
    raise ValueError("it holds no mapping")


def _table(path: Path, columns: tuple[str, ...], problems: list[str]) -> list[dict[str, str]]:
    """Return the rows of a table that has these columns."""
    if not path.is_file():
        return []
    if path.stat().st_size > MAX_TABLE_BYTES:
        problems.append(f"{path.name} is longer than a report reads ({path.stat().st_size / 1e6:,.0f} MB)")
        return []
    try:
        rows = read_csv(path)
    except (StorageError, csv.Error) as error:
        problems.append(f"{path.name} cannot be read ({error})")
        return []
    missing = [column for column in columns if rows and column not in rows[0]]
    if missing:
        problems.append(f"{path.name} has no column {', '.join(missing)}")
        return []
    return rows


def _numbers(row: dict[str, str]) -> dict[str, Any]:
    """Return a row of history: everything but the phase is a number, or unknown."""
    found: dict[str, Any] = {}
    for key, text in row.items():
        try:
            found[key] = text if key == "phase" else number(float(text))
        except ValueError:
            found[key] = None
    return found
