"""The history of a run: a row per epoch, `history.csv`, and the clocks behind its figures."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transferkit.core.csv import csv_text
from transferkit.core.files import atomic_write
from transferkit.training.plan.plan import Plan

__all__ = ["History"]

Row = dict[str, float | int | str]


class History:
    """What happened epoch by epoch.

    Args:
        path: The CSV file.
        figures: Those that come first in it, and that say how a phase ended; others follow by name.

    Attributes:
        rows: One per epoch: phase, epoch, step, LR of every group, figures, images per second.
        phase_seconds: By phase.
        solved: What came of a first phase that was solved, with its ``name``; ``None`` where none was.
    """

    def __init__(self, path: Path, figures: Sequence[str]) -> None:
        self.path = path
        self.figures = tuple(figures)
        self.rows: list[Row] = []
        self.phase_seconds: dict[str, float] = {}
        self.solved: dict[str, Any] | None = None
        self._started = 0.0
        self._pictures_before = 0
        self._rate = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume needs."""
        return {"history": self.rows, "phase_seconds": self.phase_seconds, "solved": self.solved}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the rows of the process that is being continued."""
        self.rows = list(state["history"])
        self.phase_seconds = dict(state["phase_seconds"])
        self.solved = state.get("solved")

    def begin_with(self, phase: str, figures: Mapping[str, Any]) -> None:
        """Take up a solved first phase.

        Args:
            phase: Its name.
            figures: What came of it, with ``time_s``.
        """
        self.solved = {"name": phase, **figures}
        self.phase_seconds[phase] = float(figures["time_s"])

    def start_clock(self, pictures: int = 0) -> None:
        """Start the clock of an epoch, or of what is left of it.

        Args:
            pictures: Those of the epoch that the process that is being continued has trained on.
        """
        self._started = time.perf_counter()
        self._pictures_before = pictures

    def end_training(self, pictures: int, processes: int) -> None:
        """Note the rate, after the last step of an epoch and before its validation.

        Args:
            pictures: Those that this process has trained on in this epoch.
            processes: How many do the same.
        """
        seconds = time.perf_counter() - self._started
        self._rate = (pictures - self._pictures_before) * processes / max(seconds, 1e-9)

    def add_time(self, phase: str) -> None:
        """Add the time since the clock was started to a phase."""
        self.phase_seconds[phase] = self.phase_seconds.get(phase, 0.0) + time.perf_counter() - self._started

    def add_row(self, plan: Plan, epoch: int, figures: Mapping[str, float]) -> None:
        """Add the row of an epoch that is over.

        Args:
            plan: Gives the phase and the LRs of the epoch's last step.
            epoch: From 0, over all phases.
            figures: What was measured, by name.
        """
        steps = (epoch + 1) * plan.steps_per_epoch
        self.rows.append(
            {
                "phase": plan.phases[plan.phase_at(epoch)].name,
                "epoch": epoch,
                "step": steps,
                **{f"lr_{group}": lr for group, lr in plan.lrs(steps - 1).items()},
                **{name: figures[name] for name in sorted(figures, key=self._place)},
                "images_per_s": round(self._rate, 1),
            }
        )

    def write(self) -> None:
        """Write `history.csv` anew, whole. Raises `StorageError`."""
        columns = list(dict.fromkeys(column for row in self.rows for column in row))
        rows = ([row.get(column, "") for column in columns] for row in self.rows)
        atomic_write(self.path, csv_text([columns, *rows]))

    def points(self) -> list[tuple[int, dict[str, float]]]:
        """Return what loggers take: steps and numbers by name, of a solved phase at step 0 and of every row."""
        solved = {key: self.solved[key] for key in self.figures if key in self.solved} if self.solved else {}
        points = [(0, solved)] if solved else []
        for row in self.rows:
            numbers = {key: value for key, value in row.items() if key != "step" and not isinstance(value, str)}
            points.append((int(row["step"]), numbers))
        return points

    def phases(self) -> list[dict[str, Any]]:
        """Return a record per phase for `metrics.json`: its epochs, its time and how it ended."""
        phases: list[dict[str, Any]] = [] if self.solved is None else [{"epochs": 0, **self.solved}]
        for name in dict.fromkeys(str(row["phase"]) for row in self.rows):
            epochs = [row for row in self.rows if row["phase"] == name]
            end = {key: epochs[-1].get(key) for key in (*self.figures, "images_per_s")}
            phases.append({"name": name, "epochs": len(epochs), "time_s": self.phase_seconds[name], **end})
        return phases

    def _place(self, name: str) -> tuple[int, str]:
        """Return where a figure's column stands among the others."""
        return (self.figures.index(name) if name in self.figures else len(self.figures), name)
