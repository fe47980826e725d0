"""Pictures of a run: training curves over the phases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from transferkit.core.files import write_atomically

__all__ = ["draw_rates", "plot_history", "plot_plan", "save_figure"]

SHADES = ("#eef3fb", "#fdf3e7", "#eef8ef", "#f7eef9")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all. Raises `StorageError`."""
    FigureCanvasAgg(figure)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))


def draw_rates(axis: Axes, plan: Mapping[str, Any]) -> None:
    """Draw every group's LR over the epochs, the head darkest.

    Args:
        axis: Where to; an epoch spans half a unit to both sides of its number.
        plan: The content of `plan.json`.
    """
    groups = [group["name"] for group in plan["groups"]]
    positions = [step / plan["steps_per_epoch"] + 0.5 for step in plan["lr"]["step"]]
    for number, group in enumerate(groups):
        lrs = [lr if lr > 0 else math.nan for lr in plan["lr"][group]]
        axis.plot(positions, lrs, color=str(0.75 * (1 - (number + 1) / len(groups))), label=group)
    peaks = [max(plan["lr"][group]) for group in groups if max(plan["lr"][group]) > 0]
    axis.set_yscale("log")
    axis.set_ylim(min(peaks) / 30, max(peaks) * 1.5)  # annealing ends near zero; how near says nothing
    axis.set_ylabel("learning rate")
    axis.legend(fontsize="x-small", ncols=max(1, len(groups) // 6), loc="upper left", bbox_to_anchor=(1.0, 1.0))


def plot_plan(plan: Mapping[str, Any], path: Path) -> None:
    """Plot every group's LR over a run that has not begun, phases shaded.

    Args:
        plan: The content of `plan.json`, with at least one epoch.
        path: The PNG to write.
    """
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axis = figure.subplots()
    draw_rates(axis, plan)
    trained = [phase for phase in plan["phases"] if phase["epochs"]]
    for number, phase in enumerate(trained):
        start = phase["first_epoch"] + 0.5
        axis.axvspan(start, start + phase["epochs"], color=SHADES[number % len(SHADES)], zorder=0, linewidth=0)
        axis.annotate(
            phase["name"], (start + 0.05, 1.02), xycoords=("data", "axes fraction"), fontsize="small", color="#444444"
        )
    axis.set_xlim(0.5, plan["epochs"] + 0.5)
    axis.set_xlabel("epoch")
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    save_figure(figure, path)


def plot_history(
    history: Sequence[Mapping[str, Any]],
    plan: Mapping[str, Any],
    path: Path,
    *,
    best_epoch: int,
    solved: Mapping[str, Any] | None = None,
) -> None:
    """Plot loss, accuracy and learning rates over the epochs, phases shaded.

    Args:
        history: Rows of `history.csv`.
        plan: The content of `plan.json`.
        path: The PNG to write.
        best_epoch: Epoch whose weights were kept, from 0; -1 for the solved probe before them.
        solved: Figures of a probe that was solved before the first epoch.
    """
    figure = Figure(figsize=(9, 7.5), layout="constrained")
    loss, accuracy, rate = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 2))
    epochs = [row["epoch"] + 1 for row in history]
    for axis, kind, label in ((loss, "loss", "loss"), (accuracy, "acc", "accuracy")):
        for split, colour in (("train", "#1f5fa8"), ("val", "#d1701a")):
            values = [row.get(f"{split}_{kind}") for row in history]
            if any(value is not None for value in values):
                axis.plot(epochs, values, marker="o", markersize=4, color=colour, label=split)
        axis.set_ylabel(label)
        if solved is not None and solved.get(f"val_{kind}") is not None:
            # Epoch 0 of the axis is the state before the first epoch.
            axis.plot(
                [0], [solved[f"val_{kind}"]], marker="D", markersize=6, color="#d1701a", label="val, solved probe"
            )
    draw_rates(rate, plan)
    rate.set_xlabel("epoch")
    names = list(dict.fromkeys(row["phase"] for row in history))
    for axis in (loss, accuracy, rate):
        for number, name in enumerate(names):
            inside = [epoch for epoch, row in zip(epochs, history, strict=True) if row["phase"] == name]
            axis.axvspan(inside[0] - 0.5, inside[-1] + 0.5, color=SHADES[number % len(SHADES)], zorder=0, linewidth=0)
            if axis is loss:
                axis.annotate(
                    name,
                    (inside[0] - 0.45, 1.02),
                    xycoords=("data", "axes fraction"),
                    fontsize="small",
                    color="#444444",
                )
        axis.axvline(best_epoch + 1, color="#888888", linestyle=":", linewidth=1)
        axis.set_xlim(0.5 if solved is None else -0.5, epochs[-1] + 0.5)
        axis.grid(axis="y", color="#dddddd", linewidth=0.6)
        axis.xaxis.get_major_locator().set_params(integer=True)
    accuracy.annotate(
        "kept", (best_epoch + 1, 0.95), xycoords=("data", "axes fraction"), fontsize="x-small", color="#666666",
        xytext=(3, 0), textcoords="offset points",
    )  # fmt: skip
    loss.legend(loc="upper right")
    accuracy.legend(loc="lower right")
    save_figure(figure, path)
