"""Pictures of an evaluation: who is taken for whom, and how far the stated confidence can be believed."""

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

from transferkit.show.plots import save_figure

__all__ = ["plot_confusion", "plot_reliability"]

MOST_COUNTS = 20
"""Classes up to which every cell of the matrix holds its count."""

MOST_LABELS = 40
"""Classes up to which every row and column has its name."""

LONGEST = 24
"""Characters of a class name that are shown."""

BLUE, ORANGE, GREY = "#1f5fa8", "#d1701a", "#666666"


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


def plot_reliability(values: Mapping[str, Any], path: Path, *, title: str) -> None:
    """Plot stated confidence against accuracy (Guo et al. 2017, figure 1), and how often each confidence occurs.

    Args:
        values: Of one split of `metrics.json`: ``reliability``, ``ece`` and, where the model is calibrated,
            ``uncalibrated``.
        path: The PNG to write.
        title: Of the plot.

    Raises:
        StorageError: The disk is full or read-only.
    """
    bins = values["reliability"]
    filled = [row for row in bins if row["n"]]
    width = bins[0]["high"] - bins[0]["low"]
    figure = Figure(figsize=(5.6, 6.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="as sure as right")
    at = [row["low"] for row in filled]
    accuracy = [row["accuracy"] for row in filled]
    gaps = [row["confidence"] - row["accuracy"] for row in filled]
    upper.bar(at, accuracy, width, align="edge", color=BLUE, edgecolor="white", linewidth=0.6, label="accuracy")
    upper.bar(
        at, gaps, width, align="edge", bottom=accuracy, facecolor="#d1701a30", edgecolor=ORANGE, hatch="//",
        linewidth=0.8, label="gap to the confidence",
    )  # fmt: skip
    upper.set_ylim(0, 1)
    upper.set_ylabel("accuracy")
    upper.set_title(title, fontsize="medium")
    upper.legend(loc="upper left", fontsize="small")
    before = values.get("uncalibrated")
    told = f"ECE {values['ece']:.3f}" + (f"\nbefore calibration {before['ece']:.3f}" if before else "")
    upper.text(
        0.97, 0.04, told, transform=upper.transAxes, ha="right", va="bottom", fontsize="small",
        bbox={"facecolor": "white", "edgecolor": "#cccccc", "boxstyle": "round"},
    )  # fmt: skip
    lower.bar([row["low"] for row in bins], [row["n"] for row in bins], width, align="edge", color="#9bb4d3",
              edgecolor="white", linewidth=0.6)  # fmt: skip
    lower.set_ylabel("pictures")
    lower.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    lower.set_xlabel("confidence of the predicted class")
    lower.set_xlim(0, 1)
    for axis in (upper, lower):
        axis.grid(axis="y", color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


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
