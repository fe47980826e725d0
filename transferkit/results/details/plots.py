"""Charts of a classifier: who is taken for whom, and how far the stated confidence can be believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import MaxNLocator, PercentFormatter

from transferkit.show.charts import ACCENT, MUTED, Chart, in_percent, save_figure

__all__ = ["FEW", "plot_confusion", "reliability_chart"]

FEW = 5
"""Pictures under which a bin of the reliability diagram is drawn pale: its height says little."""

MOST_COUNTS = 20
"""Classes up to which every cell of the matrix holds its count."""

MOST_LABELS = 40
"""Classes up to which every row and column has its name."""

LONGEST = 24
"""Characters of a class name that are shown."""


def plot_confusion(matrix: Sequence[Sequence[int]], class_names: Sequence[str], path: Path, *, title: str) -> None:
    """Plot a confusion matrix; a row is a true class, its colours are shares of that class.

    The colour map goes from light to dark in one hue, so that it can be told by colour-blind readers and in grey. Rows
    of classes without pictures are hatched.

    Args:
        matrix: ``(C, C)`` counts, by true and predicted class.
        class_names: C names, in index order.
        path: The PNG to write.
        title: Of the plot.

    Raises:
        StorageError: The disk is full or read-only.
    """
    counts = np.asarray(matrix, dtype=np.int64)
    classes = len(counts)
    totals = counts.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        shares = np.where(totals > 0, counts / totals, np.nan)
    labelled = classes <= MOST_LABELS
    side = max(4.0, 2.2 + 0.42 * min(classes, 12) + 0.2 * max(0, classes - 12)) if labelled else 9.0
    longest = max(len(_short(name)) for name in class_names) if labelled else 0
    figure = Figure(figsize=(side + 1.4 + 0.07 * longest, side + 0.4 + 0.07 * longest), layout="constrained")
    axis = figure.subplots()
    colours = colormaps["Blues"].with_extremes(bad="#ffffff")
    image = axis.imshow(np.ma.masked_invalid(shares), cmap=colours, vmin=0.0, vmax=1.0, interpolation="nearest")
    for row in np.flatnonzero(totals[:, 0] == 0):
        axis.axhspan(row - 0.5, row + 0.5, facecolor="#f2f2f2", edgecolor="#bbbbbb", hatch="//", linewidth=0)
    if classes <= MOST_COUNTS:
        for row, column in np.argwhere(counts):
            axis.text(
                column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=9 if classes <= 12 else 7,
                color="white" if shares[row, column] > 0.55 else "black",
            )  # fmt: skip
    if labelled:
        _name_cells(axis, class_names)
    else:
        axis.set_xlabel("predicted class, by number")
        axis.set_ylabel("true class, by number")
    axis.set_title(title, fontsize="medium")
    bar = figure.colorbar(image, ax=axis, shrink=0.8, format=PercentFormatter(1.0, decimals=0))
    bar.set_label("share of the true class")
    save_figure(figure, path)


def reliability_chart(bins: Sequence[Mapping[str, Any]], title: str, pictures: str) -> Chart | None:
    """Return accuracy over stated probability, and how many pictures say so (Guo et al. 2017, figure 4).

    Args:
        bins: ``low, high, n, confidence, accuracy`` of each.
        title: Of the chart.
        pictures: What they were measured on, such as ``"test pictures"``.
    """
    rows = [row for row in bins if row.get("n") and row.get("accuracy") is not None]
    if not rows:
        return None
    lows, widths = [row["low"] for row in rows], [row["high"] - row["low"] for row in rows]

    def draw_accuracy(axis: Axes) -> None:
        for row, low, width in zip(rows, lows, widths, strict=True):
            pale = row["n"] < FEW
            axis.bar(low, row["accuracy"], width, align="edge", color=ACCENT, linewidth=0, alpha=0.13 if pale else 0.4)
        axis.plot([0, 1], [0, 1], color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
        axis.plot([row["confidence"] for row in rows], [row["accuracy"] for row in rows], color=ACCENT,
                  linestyle="none", marker="o", markersize=5, clip_on=False)  # fmt: skip
        axis.set_ylabel("accuracy")
        axis.set_xlim(0, 1)
        axis.set_ylim(0, 1)
        axis.grid(visible=False)
        axis.tick_params(labelbottom=False)
        in_percent(axis.yaxis)

    def draw_counts(axis: Axes) -> None:
        axis.bar(lows, [row["n"] for row in rows], widths, align="edge", color=MUTED, alpha=0.45, linewidth=0)
        axis.set_xlim(0, 1)
        axis.grid(visible=False)
        axis.set_ylabel("pictures")
        axis.set_xlabel("stated probability of the predicted class")
        in_percent(axis.xaxis)
        axis.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=2))

    worst = max(rows, key=lambda row: abs(row["accuracy"] - row["confidence"]) * row["n"])
    description = (
        f"Reliability diagram of the {pictures} in {len(rows)} bins. The largest share of the error: where "
        f"{100 * worst['confidence']:.0f}% were stated on average, {100 * worst['accuracy']:.0f}% of "
        f"{worst['n']} were right."
    )
    return Chart("reliability", title, description, ((4.0, draw_accuracy), (1.0, draw_counts)))


def _name_cells(axis: Axes, class_names: Sequence[str]) -> None:
    """Name rows and columns. Names are text as it stands: a dollar sign in one does not begin a formula."""
    places = range(len(class_names))
    names = [_drawable(_short(name), number) for number, name in enumerate(class_names)]
    size = "medium" if len(names) <= 12 else "small"
    steep = len(names) > 12 or max(map(len, names)) > 5
    axis.set_xticks(places, names, fontsize=size, parse_math=False, rotation=90 if steep else 0, ha="center", va="top")
    axis.set_yticks(places, names, fontsize=size, parse_math=False)
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def _drawable(name: str, number: int) -> str:
    """Return a name, or the number of its class where the font lacks a character of it."""
    known = get_font(findfont(FontProperties())).get_charmap()
    return name if all(ord(character) in known for character in name) else f"#{number}"
