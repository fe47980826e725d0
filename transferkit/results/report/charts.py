"""Charts of a report: training, learning rates, reliability, and how a probe was chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from transferkit.core.text import visible
from transferkit.results.report.svg import (
    ACCENT,
    DASHES,
    FONT,
    INK,
    MUTED,
    SERIES,
    SHADES,
    STYLE,
    VARIABLES,
    WIDTH,
    Chart,
    figure_with_axis,
    svg_of,
)
from transferkit.runs.files import number

__all__ = [
    "FEW",
    "Line",
    "depth_chart",
    "lines_chart",
    "path_chart",
    "rates_chart",
    "reliability_chart",
    "series_line",
]

FEW = 5
"""Pictures under which a bin of the reliability diagram is drawn pale: its height says little."""


LETTERS = 62
"""About so many fit side by side above a chart."""


@dataclass(frozen=True)
class Line:
    """One line of `lines_chart`.

    Attributes:
        name: For the legend.
        x: Positions.
        y: Values; ``None`` where there is none.
        colour: A stand-in of this module.
        dash: Of the line.
        opacity: In (0, 1].
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    colour: str = ACCENT
    dash: Any = "solid"
    opacity: float = 1.0


def series_line(number_: int, name: str, x: Sequence[float], y: Sequence[float | None]) -> Line:
    """Return the line of one of several runs: colours first, then dashes."""
    count = len(SERIES)
    return Line(name, x, y, SERIES[number_ % count], DASHES[number_ // count % len(DASHES)])


def lines_chart(
    name: str,
    title: str,
    lines: Sequence[Line],
    *,
    description: str,
    xlabel: str = "epoch",
    percent: bool = False,
    log: bool = False,
    phases: Sequence[tuple[str, float, float]] = (),
    marks: Sequence[tuple[float, float, str]] = (),
    kept: float | None = None,
    legend: Sequence[int] | None = None,
) -> Chart:
    """Draw lines over epochs, steps or pictures.

    Args:
        name: Unique within the page.
        title: The heading.
        lines: At least one.
        description: What a reader who cannot see it is told.
        xlabel: Of the horizontal axis.
        percent: The values are shares.
        log: Logarithmic values; zeros are left out.
        phases: Name, begin and end of what is shaded behind.
        marks: Single points: position, value, colour.
        kept: Where a dotted line stands.
        legend: Which lines it names; by default all, where there are several.
    """
    with mpl.rc_context(STYLE):
        figure, axis = figure_with_axis()
        _shade(axis, phases)
        for line in lines:
            values = [math.nan if value is None or (log and value <= 0) else value for value in line.y]
            few = sum(value == value for value in values) <= 30
            axis.plot(
                line.x, values, color=line.colour, linestyle=line.dash, alpha=line.opacity,
                marker="o" if few and not log else "", markersize=3.5,
            )  # fmt: skip
        for x, y, colour in marks:
            axis.plot([x], [y], marker="D", markersize=6, color=colour, linestyle="none")
        if kept is not None:
            axis.axvline(kept, color=MUTED, linestyle=":", linewidth=1.2)
            axis.annotate("kept", (kept, 0.03), xycoords=("data", "axes fraction"), xytext=(4, 0),
                          textcoords="offset points", fontsize=FONT - 1.5, color=MUTED)  # fmt: skip
        axis.set_xlabel(xlabel)
        if log:
            peaks = [max(value for value in line.y if value) for line in lines if any(line.y)]
            axis.set_yscale("log")
            axis.set_ylim(min(peaks) / 30, max(peaks) * 1.5)  # annealing ends near zero; how near says nothing
            axis.yaxis.set_major_locator(LogLocator(numticks=6))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-")))
            axis.yaxis.set_minor_formatter(NullFormatter())
        elif percent:
            _in_percent(axis.yaxis)
        if phases:
            axis.set_xlim(min(begin for _, begin, _ in phases), max(end for _, _, end in phases))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
        svg = svg_of(figure, name, description)
    named = range(len(lines)) if legend is None else legend
    told = tuple((visible(lines[at].name), VARIABLES[lines[at].colour], lines[at].opacity, _dash(lines[at].dash))
                 for at in named)  # fmt: skip
    return Chart(svg, title, told if len(lines) > 1 else ())


def rates_chart(plan: Mapping[str, Any], phases: Sequence[tuple[str, float, float]]) -> Chart | None:
    """Draw the LR of every group over the run, the head darkest.

    Args:
        plan: The content of `plan.json`.
        phases: As for `lines_chart`.
    """
    rates, per_epoch = plan.get("lr") or {}, number(plan.get("steps_per_epoch"))
    groups = [str(group["name"]) for group in plan.get("groups") or () if any(rates.get(group["name"], ()))]
    if not groups or not per_epoch:
        return None
    x = [step / per_epoch + 0.5 for step in rates["step"]]
    lines = [Line(group, x, rates[group], INK, opacity=0.25 + 0.75 * (at + 1) / len(groups))
             for at, group in enumerate(groups)]  # fmt: skip
    shown = range(len(groups)) if len(groups) <= 8 else (0, len(groups) // 2, len(groups) - 1)
    return lines_chart(
        "rates", "Learning rate of each layer group", lines, log=True, phases=phases, legend=list(shown)[::-1],
        description=f"Learning rate over {plan.get('epochs')} epochs, a line for each of {len(groups)} layer groups",
    )  # fmt: skip


def reliability_chart(bins: Sequence[Mapping[str, Any]], split: str) -> Chart | None:
    """Draw accuracy over stated probability, and how many pictures say so (Guo et al. 2017, figure 4).

    Args:
        bins: ``low, high, n, confidence, accuracy`` of each.
        split: What they were measured on.
    """
    rows = [row for row in bins if row.get("n") and number(row.get("accuracy")) is not None]
    if not rows:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH / 72, 330 / 72), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        lows, widths = [row["low"] for row in rows], [row["high"] - row["low"] for row in rows]
        for row, low, width in zip(rows, lows, widths, strict=True):
            above.bar(low, row["accuracy"], width, align="edge", color=ACCENT, linewidth=0,
                      alpha=0.4 if row["n"] >= FEW else 0.13)  # fmt: skip
        above.plot([0, 1], [0, 1], color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
        above.plot([row["confidence"] for row in rows], [row["accuracy"] for row in rows], color=ACCENT,
                   linestyle="none", marker="o", markersize=5, clip_on=False)  # fmt: skip
        below.bar(lows, [row["n"] for row in rows], widths, align="edge", color=MUTED, alpha=0.45, linewidth=0)
        above.set_ylabel("accuracy")
        below.set_ylabel("pictures")
        below.set_xlabel("stated probability of the predicted class")
        above.set_xlim(0, 1)
        above.set_ylim(0, 1)
        for axis in (above.xaxis, above.yaxis):
            _in_percent(axis)
        below.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=2))
        worst = max(rows, key=lambda row: abs(row["accuracy"] - row["confidence"]) * row["n"])
        description = (
            f"Reliability diagram of the {split} pictures in {len(rows)} bins. The largest share of the error: where "
            f"{100 * worst['confidence']:.0f}% were stated on average, {100 * worst['accuracy']:.0f}% of "
            f"{worst['n']} were right."
        )
        svg = svg_of(figure, "reliability", description)
    return Chart(svg, "Stated probability against accuracy")


def depth_chart(rows: Sequence[Mapping[str, Any]], split: str) -> Chart:
    """Draw a probe's accuracy over the depth of the layer, with 95 % intervals.

    Args:
        rows: ``layer, width, acc, acc_low, acc_high`` from input to output.
        split: What the accuracy was measured on.
    """
    with mpl.rc_context(STYLE):
        figure, axis = figure_with_axis()
        acc = [row["acc"] for row in rows]
        low = [row["acc"] - row["acc_low"] for row in rows]
        high = [row["acc_high"] - row["acc"] for row in rows]
        axis.errorbar(range(len(rows)), acc, yerr=(low, high), color=ACCENT, marker="o", markersize=5, capsize=3)
        many = len(rows) > 7
        axis.set_xticks(range(len(rows)), [visible(str(row["layer"])) for row in rows], rotation=60 if many else 0)
        axis.set_xlabel("layer, from input to output")
        _in_percent(axis.yaxis)
        best = max(rows, key=lambda row: float(row["acc"]))
        description = (
            f"Accuracy of a probe on {split} over {len(rows)} layers; best: {best['layer']}, {best['acc']:.1%}"
        )
        svg = svg_of(figure, "depth", description)
    return Chart(svg, f"Probe accuracy over depth ({split}, 95 % intervals)")


def path_chart(curve: Sequence[Mapping[str, Any]], name: str, chosen: float | None) -> Chart:
    """Draw the cross-validated accuracy over what was chosen between: C, or k.

    Args:
        curve: Rows with `name`, ``acc`` and ``acc_std``.
        name: ``"C"`` or ``"k"``.
        chosen: The value that was taken.
    """
    with mpl.rc_context(STYLE):
        figure, axis = figure_with_axis()
        acc, deviation = [row["acc"] for row in curve], [row["acc_std"] for row in curve]
        axis.errorbar([row[name] for row in curve], acc, yerr=deviation, color=ACCENT, marker="o", markersize=4,
                      capsize=3)  # fmt: skip
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(numticks=6))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        _in_percent(axis.yaxis)
        axis.set_xlabel("C (larger: weaker regularisation)" if name == "C" else f"{name} (neighbours that vote)")
        if chosen is not None:
            axis.axvline(chosen, color=MUTED, linestyle=":", linewidth=1.2)
        told = "" if chosen is None else f"; chosen: {chosen:.3g}"
        svg = svg_of(figure, "path", f"Cross-validated accuracy over {len(curve)} values of {name}{told}")
    return Chart(svg, f"How {name} was chosen (cross-validated inside train)")


# ---- parts ------------------------------------------------------------------------------------------------------


def _shade(axis: Axes, phases: Sequence[tuple[str, float, float]]) -> None:
    """Shade every other phase, and name them where there are several, as far as there is room."""
    whole = sum(end - begin for _, begin, end in phases)
    for at, (name, begin, end) in enumerate(phases):
        axis.axvspan(begin, end, color=SHADES[at % 2], zorder=0, linewidth=0)
        room = int(LETTERS * (end - begin) / whole)
        if len(phases) > 1 and room >= 3:
            told = visible(name)
            axis.annotate(
                told if len(told) <= room else f"\u2026{told[1 - room :]}", (begin, 1.02),  # names differ at the end
                xycoords=("data", "axes fraction"), xytext=(2, 0), textcoords="offset points", fontsize=FONT - 1.5,
                color=MUTED,
            )  # fmt: skip


def _dash(dash: Any) -> str:
    return "solid" if dash == "solid" else "dashed" if dash == DASHES[1] else "dotted"


def _in_percent(axis: Axis) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))
