"""An advice: every candidate with what became of it, the data in the lectures' terms, and the recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from transferkit.core.csv import csv_text
from transferkit.core.files import atomic_write, write_json
from transferkit.models.figures.figure import Figure
from transferkit.options.advise import Candidate
from transferkit.results.advise.cost import Cost
from transferkit.results.advise.halving import Gap
from transferkit.results.advise.quadrants import Quadrants
from transferkit.results.advise.recipe import Setting
from transferkit.show.words import value_text

__all__ = ["PLOT", "RECIPE", "RECORD", "TABLE", "Advice", "Row", "write_table"]

RECIPE: Final = "recipe.yaml"
RECORD: Final = "advice.json"
TABLE: Final = "advice.csv"
PLOT: Final = "advice.png"


@dataclass(frozen=True)
class Row:
    """One candidate.

    Attributes:
        name: What it is called beside the others.
        candidate: What was asked for.
        state: ``"ranked"``, ``"dropped"`` (clearly behind on a part of the pictures), ``"failed"`` or ``"left out"``.
        note: Why it was dropped, failed or left out; of a ranked one how it stands to the first.
        rank: From 1; ``None`` where it is not ranked.
        pictures: That the figures are of; 0 where there are none.
        figures: Of the last rung that it was measured on, the one that counts most first.
        behind: Behind the leader of that rung; ``None`` of the leader.
        logme: Of the first rung, which all candidates have in common; ``None`` where it is not defined.
        cost: What it costs; ``None`` where it was left out.
        pareto: Whether no other ranked candidate is both quicker and better.
        laps: Of each rung that it was measured on, as plain values.
    """

    name: str
    candidate: Candidate
    state: str
    note: str = ""
    rank: int | None = None
    pictures: int = 0
    figures: tuple[Figure, ...] = ()
    behind: Gap | None = None
    logme: float | None = None
    cost: Cost | None = None
    pareto: bool = False
    laps: tuple[Mapping[str, Any], ...] = ()

    @property
    def figure(self) -> Figure | None:
        """The figure that it is ranked by."""
        return self.figures[0] if self.figures else None

    @property
    def tied(self) -> bool:
        """Whether it cannot be told from the first."""
        return self.state == "ranked" and (self.behind is None or self.behind.low <= 0)

    def figure_text(self) -> str:
        """Return the figure with its interval."""
        figure = self.figure
        if figure is None:
            return ""
        text = value_text(figure.value, figure.unit)
        if figure.interval is None:
            return text
        low, high = (value_text(end, figure.unit, percent="") for end in figure.interval)
        return f"{text} ({low} to {high})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        cost = self.cost
        return {
            "name": self.name,
            "backbone": self.candidate.backbone,
            "weights": self.candidate.weights,
            "image_size": None if cost is None else list(cost.image_size),
            "state": self.state,
            "note": self.note,
            "rank": self.rank,
            "pictures": self.pictures,
            "figures": [figure.to_dict() for figure in self.figures if figure.of is None],
            "behind": None if self.behind is None else self.behind.to_dict(),
            "logme": self.logme,
            "cost": None if cost is None else {**vars(cost), "image_size": list(cost.image_size)},
            "pareto": self.pareto,
            "rungs": list(self.laps),
        }


@dataclass(frozen=True)
class Advice:
    """Which backbone suits a data set, and how to tune it.

    Attributes:
        path: The directory.
        data: The data set.
        task: The kind of answer.
        rows: The candidates, the ranked ones first, from the best on.
        quadrants: The data in the lectures' terms.
        settings: The recipe.
        notes: What is worth knowing of the ranking, a sentence each.
        seconds: That it took.
    """

    path: Path
    data: str
    task: str
    rows: tuple[Row, ...]
    quadrants: Quadrants
    settings: tuple[Setting, ...]
    notes: tuple[str, ...]
    seconds: float

    @property
    def best(self) -> Row:
        """The first of the ranking."""
        return self.rows[0]

    @property
    def recipe(self) -> Path:
        """The recipe, for `finetune --config`."""
        return self.path / RECIPE

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "data": self.data,
            "task": self.task,
            "candidates": [row.to_dict() for row in self.rows],
            "quadrants": self.quadrants.to_dict(),
            "recipe": [vars(setting) for setting in self.settings],
            "notes": list(self.notes),
            "time_s": self.seconds,
        }

    def write(self) -> None:
        """Write `advice.json` and `advice.csv`. Raises `StorageError`."""
        write_table(self.path / TABLE, self.rows)
        write_json(self.path / RECORD, self.to_dict())


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Write candidates as CSV. Raises `StorageError`."""
    columns = ("rank", "name", "backbone", "weights", "height", "width", "state", "pictures", "figure", "value", "low",
               "high", "behind", "behind_low", "behind_high", "logme", "images_per_s", "parameters", "disk_bytes",
               "memory_bytes", "pareto", "note")  # fmt: skip
    table: list[tuple[object, ...]] = [columns]
    for row in rows:
        figure, cost, gap = row.figure, row.cost, row.behind
        low, high = (None, None) if figure is None or figure.ci is None else figure.ci
        size = (None, None) if cost is None else cost.image_size
        costs = (None,) * 4 if cost is None else (round(cost.images_per_s, 1), cost.parameters, cost.disk, cost.memory)
        table.append((
            row.rank, row.name, row.candidate.backbone, row.candidate.weights, *size, row.state, row.pictures,
            None if figure is None else figure.key, None if figure is None else _rounded(figure.value), _rounded(low),
            _rounded(high), *((None,) * 3 if gap is None else map(_rounded, gap.to_dict().values())),
            _rounded(row.logme), *costs, row.pareto, row.note,
        ))  # fmt: skip
    atomic_write(path, csv_text(table))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
