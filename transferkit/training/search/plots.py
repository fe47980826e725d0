"""A search as files and on the terminal: its trials, their picture, the importance of options, the best as a recipe."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from transferkit.core.csv import csv_text
from transferkit.core.documents import yaml_text
from transferkit.core.files import atomic_write
from transferkit.show.charts import ACCENT, FONT, MUTED, SECOND, Chart, in_percent, save_charts
from transferkit.show.words import duration
from transferkit.training.search.space import Monitor, SearchPlan

__all__ = [
    "ENDED",
    "SearchBar",
    "TrialRow",
    "best_of",
    "plot_search",
    "short_text",
    "write_best",
    "write_trials",
]


ENDED = ("finished", "pruned", "failed")
"""States of trials that are not run again."""


@dataclass(frozen=True)
class TrialRow:
    """One trial.

    Attributes:
        number: From 0.
        state: ``"finished"``, ``"pruned"``, ``"failed"``, ``"running"`` or ``"stopped"`` (to be done again).
        value: The monitored value: of the best epoch of a finished trial, of the last one of a pruned trial.
        seconds: Its duration.
        params: Its options, of those that are searched.
        note: Why it failed or was stopped.
    """

    number: int
    state: str
    value: float | None
    seconds: float | None
    params: Mapping[str, Any]
    note: str = ""


def best_of(rows: Sequence[TrialRow], monitor: Monitor) -> TrialRow | None:
    """Return the finished trial with the best value, of equal ones the first; ``None`` when none has finished."""
    finished = [(row.value, row) for row in rows if row.state == "finished" and row.value is not None]
    best = max if monitor.higher_is_better else min
    return best(finished, key=lambda item: item[0])[1] if finished else None


def write_best(path: Path, plan: SearchPlan, best: TrialRow, rows: Sequence[TrialRow]) -> None:
    """Write the recipe of the best trial, for `finetune --config`.

    Args:
        path: The YAML file to write.
        plan: Of the search.
        best: The trial.
        rows: All trials.

    Raises:
        StorageError: The disk is full or read-only.
    """
    assert best.value is not None
    finished = sum(row.state == "finished" for row in rows)
    lines = [
        f"The best of {finished} finished trials: trial {best.number}, {plan.monitor.name} {best.value:.6g}.",
        "It was chosen on val, so that figure is optimistic; test was not looked at.",
        *(
            ["Its head was trained on cached features: finetune has other figures, by a little."]
            if plan.head_only
            else []
        ),
        "",
        f"  transferkit finetune --config {shlex.quote(str(path))}",
    ]
    text = yaml_text(plan.recipe(best.params))
    atomic_write(path, "".join(f"# {line}".rstrip() + "\n" for line in lines) + text)


def write_trials(rows: Sequence[TrialRow], names: Sequence[str], path: Path) -> None:
    """Write the trials as CSV: number, state, value, seconds, one column for each of `names`, note.

    Raises:
        StorageError: The disk is full or read-only.
    """
    table: list[tuple[Any, ...]] = [("number", "state", "value", "seconds", *names, "note")]
    for row in rows:
        params = [_plain(row.params.get(name, "")) for name in names]
        seconds = None if row.seconds is None else round(row.seconds, 3)
        table.append((row.number, row.state, row.value, seconds, *params, row.note))
    atomic_write(path, csv_text(table))


def plot_search(rows: Sequence[TrialRow], importance: Mapping[str, float], path: Path, *, monitor: Monitor) -> None:
    """Plot the value of every trial with the best one so far, and the importance of every option.

    Args:
        rows: By number.
        importance: Share of the variance of the values that each option alone explains; empty while it is not known.
        path: The PNG to write.
        monitor: What they are compared by.

    Raises:
        StorageError: The disk is full or read-only.
    """
    best, finished = best_of(rows, monitor), sum(row.state == "finished" for row in rows)
    reached = "" if best is None else f", the best of {finished}: {monitor.text(best.value)}"
    title, description = f"{monitor.name} of {len(rows)} trials", f"{monitor.name} over {len(rows)} trials{reached}"
    draw_values = partial(_draw_values, rows=rows, best=best, monitor=monitor)
    charts = [Chart("values", title, description, ((1.0, draw_values),))]
    if importance:
        title = f"Share of the variance over {finished} finished trials (fANOVA, Hutter et al. 2014)"
        draw = partial(_draw_importance, importance=importance)
        charts.append(Chart("importance", title, f"Importance of {len(importance)} options", ((1.0, draw),)))
    save_charts(charts, path)


def _draw_values(axis: Axes, *, rows: Sequence[TrialRow], best: TrialRow | None, monitor: Monitor) -> None:
    finished = [row for row in rows if row.state == "finished" and row.value is not None]
    pruned = [row for row in rows if row.state == "pruned" and row.value is not None]
    failed = [row for row in rows if row.state == "failed"]
    if best is not None:
        numbers, reached = [row.number for row in finished], [float(row.value or 0.0) for row in finished]
        so_far = list(accumulate(reached, max if monitor.higher_is_better else min))
        axis.step([*numbers, rows[-1].number], [*so_far, so_far[-1]], where="post", color=SECOND, label="best so far")
        axis.plot(numbers, reached, "o", markersize=5, color=ACCENT, label="finished")
        axis.annotate(
            f"trial {best.number}: {monitor.text(best.value)}", (best.number, float(best.value or 0.0)),
            xytext=(0, 8 if monitor.higher_is_better else -16), textcoords="offset points", fontsize=FONT - 1.5,
            color=MUTED, ha="right" if 2 * best.number > rows[-1].number else "left",
        )  # fmt: skip
    if pruned:
        axis.plot([row.number for row in pruned], [float(row.value or 0.0) for row in pruned], "v", markersize=5,
                  markerfacecolor="none", color=MUTED, label="pruned, last value")  # fmt: skip
    if failed:
        axis.plot([row.number for row in failed], [0.02] * len(failed), "x", color=MUTED, label="failed",
                  transform=axis.get_xaxis_transform())  # fmt: skip
    axis.set_xlabel("trial")
    axis.margins(y=0.14)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if finished or pruned or failed:
        axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=FONT - 1.5)


def _draw_importance(axis: Axes, *, importance: Mapping[str, float]) -> None:
    names = sorted(importance, key=lambda name: importance[name])
    axis.barh(names, [importance[name] for name in names], color=ACCENT, height=0.6)
    for place, name in enumerate(names):
        axis.annotate(f"{importance[name]:.0%}", (importance[name], place), xytext=(4, 0), va="center",
                      textcoords="offset points", fontsize=FONT - 1.5, color=MUTED)  # fmt: skip
    axis.set_xlim(0, 1.12 * max(importance.values()))
    axis.grid(visible=False, axis="y")
    in_percent(axis.xaxis)


class SearchBar:
    """The bar over the trials while a search runs, and a line for each that ends.

    Args:
        console: Where to draw; ``None`` for nowhere.
        total: Trials in all.
        monitor: What they are compared by.
    """

    def __init__(self, console: Console | None, total: int, monitor: Monitor) -> None:
        self.monitor, self.total = monitor, total
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(),
                   TextColumn("{task.fields[note]}"))  # fmt: skip
        self.bar = Progress(*columns, console=console, transient=True, disable=console is None)
        self._task = self.bar.add_task("trials", total=total, note="")

    def __enter__(self) -> Self:
        """Begin to draw."""
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Give the terminal back."""
        self.bar.stop()

    def show(self, rows: Sequence[TrialRow], ended: int | None = None) -> None:
        """Show how many trials are done.

        Args:
            rows: All trials.
            ended: Number of the one that has just ended.
        """
        best = best_of(rows, self.monitor)
        done = sum(row.state in ENDED for row in rows)
        note = "" if best is None else f"best {self.monitor.name} {self.monitor.text(best.value)} (trial {best.number})"
        self.bar.update(self._task, completed=min(done, self.total), note=note)
        for row in rows:
            if row.number == ended and not self.bar.disable:
                params = "  ".join(f"{name} {short_text(value)}" for name, value in row.params.items())
                spent = "" if row.seconds is None else duration(row.seconds)
                self.bar.console.print(
                    f"trial {row.number:<3} {row.state:<8} {self.monitor.text(row.value):>6}  {spent:>7}  {params}",
                    soft_wrap=True, highlight=False,
                )  # fmt: skip

    def epoch(self, number: int, epoch: int, value: float) -> None:
        """Show how far the running trial is.

        Args:
            number: The trial's.
            epoch: Epochs done.
            value: Its value on val.
        """
        self.bar.update(self._task, note=f"trial {number}, epoch {epoch}: {self.monitor.text(value)}")


def short_text(value: Any) -> str:
    """Return an option's value in a few characters."""
    return f"{value:.3g}" if isinstance(value, float) else str(_plain(value))


def _plain(value: Any) -> Any:
    """Return a value as one cell: mappings and lists as JSON."""
    return json.dumps(value) if isinstance(value, dict | list | tuple) else "null" if value is None else value
