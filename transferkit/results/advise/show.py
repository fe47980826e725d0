"""An advice on the terminal and as a plot: the table, the sentences, and what is quick against what is right."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from rich.console import Console
from rich.table import Table

from transferkit.core.text import visible
from transferkit.results.advise.cost import BATCH
from transferkit.results.advise.record import PLOT, Advice, Row
from transferkit.runs.summary import print_lines
from transferkit.show.charts import ACCENT, FONT, MUTED, Chart, Line, in_percent, save_charts
from transferkit.show.words import duration, mid_sentence

__all__ = ["draw_advice", "print_advice"]


def print_advice(advice: Advice, console: Console) -> None:
    """Print what a person needs: the table, a sentence for each quadrant, what to do next."""
    figure = advice.best.figure
    label = "" if figure is None else mid_sentence(figure.label)
    title = f"{advice.path}: {label} of {advice.best.pictures:,} held-out training pictures, with 95 % intervals"
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in ("", "candidate", label, "images/s", "params", "disk", "memory"):
        table.add_column(
            column, justify="left" if column in ("candidate", label) else "right", no_wrap=column == "candidate"
        )
    for row in advice.rows:
        table.add_row(*_cells(row), style=None if row.state == "ranked" else "dim")
    console.print(table)
    others = [row for row in advice.rows if row.note]
    print_lines(console, [(row.state, f"{row.name}: {row.note}") for row in others])
    print_lines(console, list(advice.quadrants.sentences().items()))
    print_lines(console, [("note", note) for note in advice.notes])
    print_lines(
        console,
        [
            ("images/s", "of the network here, decoding aside; *: none that is as good is quicker"),
            ("time", f"{duration(advice.seconds)}; memory is of a training step on {BATCH} pictures, estimated"),
            ("plot", str(advice.path / PLOT)),
            ("recipe", str(advice.recipe)),
            ("next", f"transferkit finetune --config {shlex.quote(str(advice.recipe))}"),
        ],
    )


def _cells(row: Row) -> tuple[str, ...]:
    cost = row.cost
    costs = ("", "", "", "") if cost is None else (
        f"{cost.images_per_s:,.0f}{'*' if row.pareto else ' '}", f"{cost.parameters / 1e6:.1f} M",
        _bytes(cost.disk), _bytes(cost.memory),
    )  # fmt: skip
    rank = "" if row.rank is None else str(row.rank)
    return rank, visible(row.name), row.figure_text(), *costs


def _bytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def draw_advice(rows: Sequence[Row], path: Path) -> None:
    """Plot the figure of each candidate against its pictures per second; the quickest for its figure are joined.

    Args:
        rows: Candidates; those without a figure are left out.
        path: The PNG.

    Raises:
        StorageError: The disk is full or read-only.
    """
    shown = [row for row in rows if row.figure is not None and row.figure.value is not None and row.cost is not None]
    figure = next((row.figure for row in shown if row.figure is not None), None)
    if figure is None:
        return
    title = f"{figure.label} of held-out training pictures, over images/s here"
    description = "; ".join(
        f"{row.name} {row.figure_text()} at {row.cost.images_per_s:,.0f} images/s" for row in shown if row.cost
    )
    draw = partial(_draw, rows=shown, label=figure.label, share=figure.unit == "share")
    legend = tuple(Line(f"{number} {_words(row)}", (), (), _colour(row)) for number, row in enumerate(shown, 1))
    save_charts([Chart("pareto", title, description, ((1.0, draw),), legend)], path)


def _draw(axis: Axes, *, rows: Sequence[Row], label: str, share: bool) -> None:
    front = sorted((_point(row) for row in rows if row.pareto), key=lambda point: point[0])
    if len(front) > 1:
        axis.plot([x for x, _ in front], [y for _, y in front], color=ACCENT, linewidth=1.2, linestyle=(0, (5, 2)))
    for number, row in enumerate(rows, 1):
        x, y = _point(row)
        bounds = None if row.figure is None else row.figure.interval
        reach = None if bounds is None else [[max(0.0, y - bounds[0])], [max(0.0, bounds[1] - y)]]
        axis.errorbar([x], [y], yerr=reach, fmt="o", capsize=3, markersize=5, color=_colour(row),
                      markerfacecolor=ACCENT if row.rank is not None else "none")  # fmt: skip
        axis.annotate(str(number), (x, y), xytext=(6, 4), textcoords="offset points", fontsize=FONT - 1.5, color=MUTED)
    axis.set_xscale("log")
    axis.margins(x=0.25, y=0.12)
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("images/s")
    axis.set_ylabel(mid_sentence(label))
    if share:
        in_percent(axis.yaxis)


def _words(row: Row) -> str:
    return visible(row.name) if row.rank is not None else f"{visible(row.name)}, of {row.pictures:,} pictures"


def _colour(row: Row) -> str:
    return ACCENT if row.rank is not None else MUTED


def _point(row: Row) -> tuple[float, Any]:
    rate = 0.0 if row.cost is None else row.cost.images_per_s
    return rate, None if row.figure is None else row.figure.value
