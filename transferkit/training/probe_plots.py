"""Pictures of a probe: how its regularisation was chosen, accuracy over depth, accuracy over labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from transferkit.show.plots import save_figure

__all__ = ["plot_depth", "plot_learning_curve", "plot_path"]

BLUE, ORANGE, GREY = "#1f5fa8", "#d1701a", "#888888"


def plot_path(choice: Mapping[str, Any], path: Path, *, name: str) -> None:
    """Plot the cross-validated score over what was chosen between: C of a logistic regression, k of neighbours.

    Args:
        choice: The ``choice`` of a fitted probe, with a ``curve``.
        path: The PNG to write.
        name: ``"C"`` or ``"k"``.
    """
    curve = choice["curve"]
    values = [row[name] for row in curve]
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    accuracy = figure.subplots()
    accuracy.errorbar(
        values, [row["acc"] for row in curve], yerr=[row["acc_std"] for row in curve], color=BLUE, marker="o",
        markersize=4, capsize=3, label="accuracy (mean and deviation of the folds)",
    )  # fmt: skip
    accuracy.set_xscale("log")
    accuracy.set_xlabel(f"{name}" + (" (larger: weaker regularisation)" if name == "C" else " (neighbours that vote)"))
    accuracy.set_ylabel("cross-validated accuracy", color=BLUE)
    loss = accuracy.twinx()
    loss.plot(values, [row["nll"] for row in curve], color=ORANGE, marker="s", markersize=3, linewidth=1)
    loss.set_ylabel("cross-validated log loss", color=ORANGE)
    accuracy.axvline(choice[name], color=GREY, linestyle=":", linewidth=1)
    accuracy.annotate(
        f"chosen: {choice[name]:.3g}", (choice[name], 0.02), xycoords=("data", "axes fraction"), fontsize="small",
        color="#444444", xytext=(4, 0), textcoords="offset points",
    )  # fmt: skip
    accuracy.grid(axis="y", color="#dddddd", linewidth=0.6)
    save_figure(figure, path)


def plot_depth(rows: Sequence[Mapping[str, Any]], path: Path, *, split: str) -> None:
    """Plot a probe's accuracy over the depth of the layer, with 95 % intervals.

    Args:
        rows: From `depth_curve`, input to output.
        path: The PNG to write.
        split: What the accuracy was measured on.
    """
    figure = Figure(figsize=(max(5.0, 0.7 * len(rows) + 2), 4.2), layout="constrained")
    axis = figure.subplots()
    places = range(len(rows))
    low = [row["acc"] - row["acc_low"] for row in rows]
    high = [row["acc_high"] - row["acc"] for row in rows]
    accuracies = [row["acc"] for row in rows]
    axis.errorbar(places, accuracies, yerr=(low, high), color=BLUE, marker="o", capsize=3)
    for place, row in zip(places, rows, strict=True):
        axis.annotate(f"{row['acc']:.1%}", (place, row["acc"]), xytext=(6, -12), textcoords="offset points",
                      fontsize="x-small", color="#444444")  # fmt: skip
    axis.set_xticks(list(places), [f"{row['layer']}\n{row['width']}" for row in rows], fontsize="small",
                    rotation=0 if len(rows) <= 9 else 60)  # fmt: skip
    axis.set_xlabel("layer and width of its features, from input to output")
    axis.set_ylabel(f"{split} accuracy of a probe (95 % interval)")
    axis.set_xlim(-0.4, len(rows) - 0.4)
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)
    save_figure(figure, path)


def plot_learning_curve(rows: Sequence[Mapping[str, Any]], path: Path, *, split: str) -> None:
    """Plot accuracy over the number of labelled pictures: mean and range of the draws.

    Args:
        rows: From `learning_curve`.
        path: The PNG to write.
        split: What the accuracy was measured on.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    labels = [row["rows"] for row in rows]
    axis.fill_between(labels, [row["acc_min"] for row in rows], [row["acc_max"] for row in rows], color=BLUE, alpha=0.2,
                      label="range of the draws")  # fmt: skip
    axis.plot(labels, [row["acc"] for row in rows], color=BLUE, marker="o", label="mean")
    for row in rows:
        axis.annotate(f"{row['share']:.0%}", (row["rows"], row["acc"]), xytext=(0, -14), textcoords="offset points",
                      ha="center", fontsize="x-small", color="#444444")  # fmt: skip
    axis.set_xlabel("labelled training pictures")
    axis.set_ylabel(f"{split} accuracy")
    axis.set_xlim(0, 1.05 * max(labels))
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)
    axis.legend(loc="lower right")
    save_figure(figure, path)
