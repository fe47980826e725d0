"""Charts, each drawn once, for a PNG file in a run directory and for the page of a report alike.

The colours are those of the page in light; the page replaces each by its own variable, and so has it in dark as well.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from transferkit.core.files import write_atomically
from transferkit.core.text import visible

__all__ = [
    "ACCENT",
    "DASHES",
    "FONT",
    "GRID",
    "HEIGHT",
    "INK",
    "MUTED",
    "SECOND",
    "SERIES",
    "SHADES",
    "WIDTH",
    "Chart",
    "Line",
    "Lines",
    "Panel",
    "Span",
    "drawing",
    "in_percent",
    "save_charts",
    "save_figure",
]

INK, MUTED, GRID = "#1c1e22", "#5a5f66", "#dddeda"
ACCENT, SECOND = "#1c5c9f", "#a5490d"
SHADES = ("#f5f5f2", "#eef1f4")
SERIES = (ACCENT, SECOND, "#2f7449", "#8a3a86", "#7a6a10", "#b02a4a")
DASHES = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))

WIDTH, HEIGHT = 440, 264
"""Points of a chart; about what a phone shows, so that the texts keep their size there."""

FONT = 11.5
LETTERS = 62
"""About so many fit side by side above a chart."""

DPI = 160
"""Of charts as files: about 1,000 pixels wide."""

STYLE: Final[Any] = {
    "svg.fonttype": "none",  # texts in the page's own font, found by its search
    "text.parse_math": False,  # a class may be called $x$
    "font.size": FONT,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "lines.linewidth": 1.8,
    "path.simplify": True,
}

Span: TypeAlias = tuple[str, float, float]
Panel: TypeAlias = tuple[float, Callable[[Axes], None]]
"""Height beside that of the chart's other panels, and what draws it."""


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: For the legend.
        x: Positions.
        y: Values; ``None`` where there is none.
        colour: One of this module's.
        dash: Of the line.
        opacity: In (0, 1].
        reach: How far the error bars go below and above the values.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    colour: str = ACCENT
    dash: Any = "solid"
    opacity: float = 1.0
    reach: tuple[Sequence[float], Sequence[float]] | None = None


@dataclass(frozen=True)
class Chart:
    """A chart, not drawn yet.

    Attributes:
        name: Unique within a page.
        title: What it shows, as a heading.
        description: The same for a reader who cannot see it, with its main figures.
        panels: What is drawn, from top to bottom; panels share their horizontal axis.
        legend: The lines that are named beside it.
    """

    name: str
    title: str
    description: str
    panels: tuple[Panel, ...]
    legend: tuple[Line, ...] = ()


@dataclass(frozen=True)
class Lines:
    """Lines over epochs, steps, pictures or layers.

    Attributes:
        lines: At least one.
        xlabel: Of the horizontal axis.
        percent: The values are shares.
        log: Logarithmic values; zeros are left out.
        log_x: Logarithmic positions.
        fractions: There is something to see between whole positions.
        phases: Name, begin and end of what is shaded behind.
        marks: Single points: position, value, colour.
        chosen: Where a dotted line stands, and the word beside it.
        ticks: Names of the positions 0, 1, 2, ...
        notes: Words at the points of the first line.
    """

    lines: Sequence[Line]
    xlabel: str = "epoch"
    percent: bool = False
    log: bool = False
    log_x: bool = False
    fractions: bool = False
    phases: Sequence[Span] = ()
    marks: Sequence[tuple[float, float, str]] = ()
    chosen: tuple[float, str] | None = None
    ticks: Sequence[str] = ()
    notes: Sequence[str] = ()

    def chart(self, name: str, title: str, description: str, *, legend: Sequence[Line] | None = None) -> Chart:
        """Return them as a chart; its legend names every line where there are several, or those of `legend`."""
        named = self.lines if legend is None else legend
        return Chart(name, title, description, ((1.0, self.draw),), tuple(named) if len(self.lines) > 1 else ())

    def draw(self, axis: Axes) -> None:
        """Draw them."""
        _shade(axis, self.phases)
        for line in self.lines:
            values = [math.nan if value is None or (self.log and value <= 0) else value for value in line.y]
            few = sum(value == value for value in values) <= 30
            style: dict[str, Any] = {"color": line.colour, "linestyle": line.dash, "alpha": line.opacity,
                                     "marker": "o" if few and not self.log else "", "markersize": 3.5}  # fmt: skip
            if line.reach is None:
                axis.plot(line.x, values, **style)
            else:
                axis.errorbar(line.x, values, yerr=line.reach, capsize=3, **style)
        for x, y, colour in self.marks:
            axis.plot([x], [y], marker="D", markersize=6, color=colour, linestyle="none")
        if self.chosen is not None:
            axis.axvline(self.chosen[0], color=MUTED, linestyle=":", linewidth=1.2)
            _write(axis, self.chosen[1], (self.chosen[0], 0.03), (4, 0), above="axes fraction")
        for note, at in zip(self.notes, zip(self.lines[0].x, self.lines[0].y, strict=True), strict=False):
            if at[1] is not None:
                _write(axis, note, (at[0], at[1]), (4, -13))
        axis.set_xlabel(self.xlabel)
        self._scale(axis)

    def _scale(self, axis: Axes) -> None:
        if self.log:
            peaks = [max(value for value in line.y if value) for line in self.lines if any(line.y)]
            axis.set_yscale("log")
            axis.set_ylim(min(peaks) / 30, max(peaks) * 1.5)  # annealing ends near zero; how near says nothing
            _in_powers(axis.yaxis, lambda value: f"{value:.0e}".replace("e-0", "e-"))
        elif self.percent:
            in_percent(axis.yaxis)
        if self.phases:
            axis.set_xlim(min(begin for _, begin, _ in self.phases), max(end for _, _, end in self.phases))
        if self.ticks:
            steep = len(self.ticks) > 7
            axis.set_xticks(range(len(self.ticks)), list(map(visible, self.ticks)), rotation=60 if steep else 0)
        elif self.log_x:
            axis.set_xscale("log")
            _in_powers(axis.xaxis, lambda value: f"{value:g}")
        elif not self.fractions:
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))


# ---- parts ---------------------------------------------------------------------------------------------------------


def in_percent(axis: Axis) -> None:
    """Write the values of an axis, shares, in percent."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))


def _in_powers(axis: Axis, text: Callable[[float], str]) -> None:
    axis.set_major_locator(LogLocator(numticks=6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_formatter(NullFormatter())


def _shade(axis: Axes, phases: Sequence[Span]) -> None:
    """Shade every other phase, and name them where there are several, as far as there is room."""
    whole = sum(end - begin for _, begin, end in phases)
    for at, (name, begin, end) in enumerate(phases):
        axis.axvspan(begin, end, color=SHADES[at % 2], zorder=0, linewidth=0)
        room = int(LETTERS * (end - begin) / whole)
        if len(phases) > 1 and room >= 3:
            name = visible(name)
            shown = name if len(name) <= room else f"\u2026{name[1 - room :]}"  # names differ at the end
            _write(axis, shown, (begin, 1.02), (2, 0), above="axes fraction")


def _write(axis: Axes, text: str, at: tuple[float, float], offset: tuple[float, float], *, above: str = "data") -> None:
    """Write small words beside a point; `above` is what its height is measured in."""
    axis.annotate(text, at, xycoords=("data", above), xytext=offset, textcoords="offset points", fontsize=FONT - 1.5,
                  color=MUTED)  # fmt: skip


# ---- files ---------------------------------------------------------------------------------------------------------


@contextmanager
def drawing(panels: Sequence[Panel], height: float) -> Iterator[tuple[Figure, list[Axes]]]:
    """Draw panels below each other; yield the figure and its axes, for as long as the style of charts is set."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # A name in a script that the font has not: the page has it as text, a PNG shows boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=[share for share, _ in panels])
        axes = [row[0] for row in grid]
        for axis, (_, draw) in zip(axes, panels, strict=True):
            axis.grid(axis="y", color=GRID, linewidth=0.8)
            axis.set_axisbelow(True)
            draw(axis)
        yield figure, axes


def save_charts(charts: Sequence[Chart], path: Path) -> None:
    """Write charts below each other as PNG, whole or not at all. Raises `StorageError`."""
    panels = [(share / sum(part for part, _ in chart.panels), draw) for chart in charts for share, draw in chart.panels]
    with drawing(panels, (HEIGHT + 24) * len(charts)) as (figure, axes):
        for chart in charts:
            top, axes = axes[0], axes[len(chart.panels) :]
            top.set_title(chart.title, loc="left", fontsize=FONT, pad=18)
            handles = [Line2D([], [], color=line.colour, linestyle=line.dash, alpha=line.opacity, label=line.name)
                       for line in chart.legend]  # fmt: skip
            if handles:
                top.legend(handles=handles, loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=FONT - 1.5)
        save_figure(figure, path, dpi=DPI)


def save_figure(figure: Figure, path: Path, *, dpi: int = 120) -> None:
    """Write a figure as PNG, whole or not at all. Raises `StorageError`."""
    FigureCanvasAgg(figure)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=dpi))
