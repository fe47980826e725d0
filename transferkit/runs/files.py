"""The files of a run directory as plain values, each read when it is first asked for: the only reader there is."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from transferkit.core.csv import read_csv
from transferkit.core.documents import parse_json, parse_yaml
from transferkit.core.errors import CheckpointError, StorageError
from transferkit.core.files import stored_path
from transferkit.core.records import USUAL, Decoding
from transferkit.data.sample import SAMPLE
from transferkit.models.details import Details
from transferkit.models.figures.figure import Figure, classification_figures
from transferkit.models.parts import Epochs
from transferkit.models.task import is_registered, task_named

__all__ = [
    "CHOSEN",
    "EVALUATE",
    "FINETUNE",
    "PROBE",
    "SPLITS",
    "RunFiles",
    "figures_of",
    "followed_figures",
    "number",
    "read_run",
]

SPLITS = ("test", "val", "all", "train")
"""Of `metrics.json`, the ones that say most first: test was not looked at before, val was."""

PICTURE_COLUMNS = ("split", "label", "path", "sha256")

MAX_TABLE_BYTES = 64_000_000
"""A longer list of pictures (about 500,000) is left out of a page: it takes memory, and few are shown."""

CHOSEN = ("C", "k", "alpha")
"""What a probe may have chosen between."""

FINETUNE, PROBE, EVALUATE = "finetune", "probe", "evaluate"


class RunFiles:
    """What a run directory holds. A table that is missing is empty; a document has to be there.

    Args:
        run: The directory.
        lenient: All but `metrics` may be missing, damaged or too long: it is empty then, and `problems` says why.

    Attributes:
        run: The directory, as it was given.
        problems: What was left out, a sentence each.

    Raises:
        CheckpointError: By each property: its file is missing or damaged.
        StorageError: By each property: its table cannot be read.
    """

    def __init__(self, run: Path, *, lenient: bool = False) -> None:
        self.run = run
        self.problems: list[str] = []
        self._lenient = lenient

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """`metrics.json`, the last file of a run to be written: without it there is no finished run."""
        return self._document(self.run / "metrics.json", parse_json, needed=True)

    @cached_property
    def config(self) -> dict[str, Any]:
        """`config.yaml`, the options."""
        return self._document(self.run / "config.yaml", parse_yaml)

    @cached_property
    def data(self) -> dict[str, Any]:
        """`data.json`: classes, pictures per split, what was left out."""
        return self._document(self.run / "data.json", parse_json)

    @cached_property
    def plan(self) -> dict[str, Any]:
        """`plan.json`: phases, parameter groups and their LRs."""
        return self._document(self.run / "plan.json", parse_json)

    @cached_property
    def model(self) -> dict[str, Any]:
        """`model.json` of `model_run`."""
        return {} if self.model_run is None else self._document(self.model_run / "model.json", parse_json)

    @property
    def decoding(self) -> Decoding:
        """How the model has pictures decoded; as usual where there is no model, or what it says is none."""
        preprocessing = self.model.get("preprocessing")
        stored = preprocessing.get("decoding") if isinstance(preprocessing, dict) else None
        try:
            return Decoding.from_dict(stored) if isinstance(stored, dict) else USUAL
        except (TypeError, ValueError):  # who loads the model is told
            return USUAL

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """Rows of `history.csv`, an epoch each; everything but the phase is a number, or ``None``."""
        return [_numbers(row) for row in self._table("history.csv", ())]

    @cached_property
    def pictures(self) -> list[dict[str, str]]:
        """Rows of `pictures.csv`: ``split, label, path, sha256``."""
        return self._table("pictures.csv", PICTURE_COLUMNS)

    @cached_property
    def predictions(self) -> list[dict[str, str]]:
        """Rows of `predictions.csv`: ``split, path`` and the columns of the task."""
        columns = task_named(self.task).output.columns if is_registered(self.task) else ()
        return self._table("predictions.csv", ("split", "path", *columns))

    @cached_property
    def task(self) -> str:
        """The kind of answer; a run of release 0.1.0 has classes."""
        return str(self.metrics.get("task") or "classification")

    @property
    def details(self) -> Details | None:
        """What its task has to say besides figures; ``None`` also where the task is not known here."""
        return task_named(self.task).details if is_registered(self.task) else None

    @property
    def epochs(self) -> Epochs:
        """What its task has to say of curves; nothing where the task is not known here."""
        return task_named(self.task).epochs if is_registered(self.task) else Epochs()

    @cached_property
    def kind(self) -> str:
        """The verb that wrote it: ``"finetune"``, ``"probe"`` or ``"evaluate"``."""
        if "run" in self.config or "against" in self.config:
            return EVALUATE
        return PROBE if "classifier" in self.config else FINETUNE

    @cached_property
    def model_run(self) -> Path | None:
        """The directory that holds the model; for an evaluation that of the run it measured."""
        places = (self.run, Path(str(self.config.get("run") or self.run)))
        return next((place for place in places if (place / "model.json").is_file()), None)

    def has(self, name: str) -> bool:
        """Return whether the file of this name is there, whatever it holds."""
        return (self.run / name).is_file()

    @property
    def name(self) -> str:
        """The directory's own name."""
        return self.run.absolute().name or str(self.run)

    @property
    def splits(self) -> list[str]:
        """The splits that were measured, the most telling one first."""
        return [
            split for split in SPLITS if any(number(figure.value) is not None for figure in self.figures(split)[:1])
        ]

    @property
    def sizes(self) -> dict[str, int]:
        """Pictures by split. Runs of release 0.1.0 say how many of each class there are, which is as good there."""
        sizes = self.data.get("pictures")
        if isinstance(sizes, dict):
            return {str(split): int(count) for split, count in sizes.items()}
        return {str(split): sum(own.values()) for split, own in (self.data.get("counts") or {}).items()}

    @property
    def class_names(self) -> list[str]:
        """In index order, as far as the files tell."""
        for split in self.splits:
            if isinstance(self.metrics[split].get("per_class"), dict):
                return [str(name) for name in self.metrics[split]["per_class"]]
        return [str(name) for name in self.data.get("classes", ())]

    def figures(self, split: str) -> list[Figure]:
        """Return the figures of a split, the headline first."""
        values = self.metrics.get(split)
        return figures_of(values) if isinstance(values, dict) else []

    @cached_property
    def followed(self) -> list[Figure]:
        """What training followed: the loss, then a figure for each other ``val_KEY`` of its phases, without values."""
        return followed_figures(self.metrics.get("phases") or (), self.metrics)

    def shown_path(self, path: str) -> str:
        """Return a picture's path below the data folder, else below what all pictures have in common."""
        for root in self._roots:
            if path.startswith(root + os.sep):
                return path[len(root) + 1 :]
        return str(Path(*Path(path).parts[-2:]))

    @cached_property
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

    def _document(self, path: Path, parse: Callable[[str], Any], *, needed: bool = False) -> dict[str, Any]:
        if not path.is_file():
            if self._lenient and not needed:
                return {}
            what = f"no {path.name}, which marks a finished run" if needed else f"no {path.name}, expected one of a run"
            raise CheckpointError(f"{self.run}: {what} - let it finish (--resume), or check the path")
        try:
            content = parse(path.read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise ValueError("it holds no mapping")
        except (OSError, ValueError) as error:
            self._problem(path, f"cannot be read ({error})", error, needed=needed)
            return {}
        return content

    def _table(self, name: str, columns: Sequence[str]) -> list[dict[str, str]]:
        """Return the rows of a table that has these columns."""
        path = self.run / name
        if not path.is_file():
            return []
        if self._lenient and path.stat().st_size > MAX_TABLE_BYTES:
            self._problem(path, f"is longer than a report reads ({path.stat().st_size / 1e6:,.0f} MB)")
            return []
        try:
            rows = read_csv(path)
        except (StorageError, csv.Error) as error:
            self._problem(path, f"cannot be read ({error})", error)
            return []
        rows = [{**row, "path": stored_path(row["path"])} if "path" in row else row for row in rows]
        missing = [column for column in columns if rows and column not in rows[0]]
        if missing:
            self._problem(path, f"has no column {', '.join(missing)}")
            return []
        return rows

    def _problem(self, path: Path, what: str, error: Exception | None = None, *, needed: bool = False) -> None:
        """Note a problem, or raise it."""
        if self._lenient and not needed:
            self.problems.append(f"{path.name} {what}")
        elif isinstance(error, StorageError):
            raise error
        else:
            raise CheckpointError(f"{path}: {what} - was it edited? Copy it again, or make the run anew") from error


def read_run(run: Path) -> RunFiles:
    """Return what a finished run, or an evaluation, left behind, as far as it can be read; every file is read now.

    Args:
        run: The directory.

    Raises:
        CheckpointError: There is no directory, or no `metrics.json` of a finished run in it.
    """
    if not run.is_dir():
        raise CheckpointError(f"{run}: no such directory, expected one that finetune, probe or evaluate wrote")
    files = RunFiles(run, lenient=True)
    for name in ("metrics", "config", "data", "plan", "model", "history", "pictures", "predictions"):
        getattr(files, name)  # so that `problems` is whole
    return files


def figures_of(values: Mapping[str, Any]) -> list[Figure]:
    """Return the figures that `metrics.json` holds of a split; of a run of release 0.1.0, made from its other keys."""
    saved = values.get("figures")
    return classification_figures(values) if saved is None else [Figure.from_dict(row) for row in saved]


def followed_figures(rows: Iterable[Mapping[str, Any]], measured: Mapping[str, Any]) -> list[Figure]:
    """Return what training followed: the loss, then the figures in the order of `measured`; none has a value.

    Args:
        rows: Of `history.csv` or of ``phases``: a figure is known by its columns ``train_KEY`` and ``val_KEY``.
        measured: By split, what `metrics.json` holds: it tells label and unit.
    """
    keys = {key.partition("_")[2]: None for row in rows for key in row if key.startswith(("train_", "val_"))}
    known = classification_figures(keys)
    known += [figure for split in SPLITS if split in measured for figure in figures_of(measured[split])]
    figures = {figure.key: replace(figure, value=None, ci=None) for figure in known if figure.of is None}
    figures |= {key: Figure(key, key, None, None, True, "", "") for key in keys if key not in figures}
    loss = Figure("loss", "Loss", None, None, False, "", "what training minimises; on val without its extras")
    return [loss, *(figure for key, figure in figures.items() if key in keys and key != loss.key)]


def number(value: Any) -> float | None:
    """Return a finite number as it is; ``None`` for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) == float("inf"):
        return None
    return value


def _numbers(row: dict[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, text in row.items():
        try:
            values[key] = text if key == "phase" else number(float(text))
        except ValueError:
            values[key] = None
    return values
