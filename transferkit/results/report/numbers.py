"""What a report says of numbers: targets beside always the mean, predicted over true, errors, the worst pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from transferkit.data.scan.columns import JOINT
from transferkit.results.explain.pictures import thumbnail
from transferkit.results.report.facts import NOUNS
from transferkit.results.report.page import Section, TaskSections, macros
from transferkit.runs.files import RunFiles, number
from transferkit.show.charts import ACCENT, MUTED, SECOND, Chart
from transferkit.show.svg import drawn
from transferkit.show.words import value_text

__all__ = ["CHARTED", "Measured", "measured_pairs", "number_comparison", "number_sections", "target_charts"]

TEMPLATE = "numbers.html.j2"

CHARTED = 6
"""Targets with charts of their own: those with the largest errors beside always the mean."""

WORST = 12

DOTS = 2000
"""Pictures that a chart shows; of more, evenly spaced ones."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Measured:
    """Numbers of N pictures, in the units of their T targets.

    Attributes:
        paths: N files.
        true: ``(N, T)``.
        predicted: ``(N, T)``.
        losses: ``(N,)``, mean squared deviations.
    """

    paths: tuple[str, ...]
    true: Array
    predicted: Array
    losses: Array


def measured_pairs(rows: Sequence[Mapping[str, str]], split: str) -> Measured | None:
    """Return what `predictions.csv` holds of a split; ``None`` where there is nothing, or no numbers."""
    inside = [row for row in rows if row["split"] == split]
    try:
        true, predicted = (
            np.array([[float(part) for part in row[key].split(JOINT)] for row in inside])
            for key in ("target", "predicted")
        )
        losses = np.array([float(row["loss"]) for row in inside])
    except (KeyError, ValueError):
        return None
    if not inside or true.ndim != 2 or true.shape != predicted.shape:
        return None
    return Measured(tuple(row["path"] for row in inside), true, predicted, losses)


def target_charts(measured: Measured, at: int, name: str, noun: str, interval: float | None) -> list[Chart]:
    """Return predicted over true numbers of a target, and its errors over what was predicted.

    Args:
        measured: The pictures.
        at: Which target.
        name: Of the target.
        noun: What the pictures are called.
        interval: How far 90 % intervals reach to both sides; ``None`` where there are none.
    """
    shown = np.unique(np.linspace(0, len(measured.true) - 1, min(DOTS, len(measured.true))).round().astype(int))
    true, predicted = measured.true[shown, at], measured.predicted[shown, at]
    low, high = min(true.min(), predicted.min()), max(true.max(), predicted.max())
    room = 0.04 * (high - low) or 1.0
    off = predicted - true
    faint = 0.75 if len(shown) <= 300 else 0.35

    def draw_pairs(axis: Axes) -> None:
        ends = [low - room, high + room]
        axis.plot(ends, ends, color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
        axis.plot(true, predicted, color=ACCENT, linestyle="none", marker="o", markersize=3.5, alpha=faint)
        axis.set_xlim(*ends)
        axis.set_ylim(*ends)
        axis.set_xlabel("true")
        axis.set_ylabel("predicted")

    def draw_errors(axis: Axes) -> None:
        axis.axhline(0, color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
        for side in () if interval is None else (-interval, interval):
            axis.axhline(side, color=SECOND, linestyle=":", linewidth=1.2)
        axis.plot(predicted, off, color=ACCENT, linestyle="none", marker="o", markersize=3.5, alpha=faint)
        axis.set_xlabel("predicted")
        axis.set_ylabel("predicted - true")

    largest = off[np.abs(off).argmax()]
    inside = "" if interval is None else "; dotted: the 90 % interval"
    return [
        Chart(
            f"pairs-{at}", f"{name}: predicted over true",
            f"{name} of {len(shown):,} {noun} pictures, predicted over true: true ones from {true.min():.4g} to "
            f"{true.max():.4g}, predicted ones from {predicted.min():.4g} to {predicted.max():.4g}",
            ((1.0, draw_pairs),),
        ),
        Chart(
            f"errors-{at}", f"{name}: errors over predicted{inside}",
            f"Errors of {name} on {len(shown):,} {noun} pictures: mean {off.mean():+.4g}, the largest {largest:+.4g}",
            ((1.0, draw_errors),),
        ),
    ]  # fmt: skip


def number_sections(files: RunFiles, *, pictures: bool = True) -> TaskSections:
    """Return what the page of a run says of its targets; nothing where its files hold none.

    Args:
        files: The run.
        pictures: Whether the worst pictures are shown.
    """
    split = files.splits[0] if files.splits else None
    values = {} if split is None else files.metrics[split]
    noun, rows = NOUNS.get(split or "", ""), target_rows(values)
    title = f"{len(rows):,} target{'s' * (len(rows) != 1)}" if rows else ""
    if split is None or not rows:
        return TaskSections(title=title)
    parts, sections = macros(TEMPLATE), [("targets", "Targets", macros(TEMPLATE).targets(rows, noun))]
    measured = measured_pairs(files.predictions, split)
    names = [row["name"] for row in rows]
    if measured is not None and measured.true.shape[1] == len(names):
        order = sorted(range(len(names)), key=lambda at: -_ratio(rows[at]))[:CHARTED]
        charts = [
            drawn(chart)
            for at in sorted(order)
            for chart in target_charts(measured, at, names[at], noun, _half_width(values, names[at]))
        ]
        sections.append(("pairs", "Predicted and true", parts.pairs(charts, len(order), len(names))))
        worst = worst_pictures(files, measured, names, pictures=pictures)
        sections.append(("worst", "Largest errors", parts.worst(worst, len(measured.paths), noun)))
    return TaskSections(tuple(sentences_of(rows, noun)), tuple(Section(*section) for section in sections), title=title)


def target_rows(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row per target of one split, as words: its figures, and what always the mean gives."""
    rows = []
    for name, row in (values.get("per_target") or {}).items():
        mean = row.get("always_mean") or {}
        figures = {key: number(row.get(key)) for key in ("rmse", "mae", "median_ae", "r2", "spearman", "kappa")}
        intervals = next((one for one in (values.get("intervals") or {}).get(name, ()) if one["coverage"] == 0.9), None)
        rows.append({
            "name": str(name),
            **figures,
            "mean_rmse": number(mean.get("rmse")),
            "half_width": None if intervals is None else number(intervals["half_width"]),
            "measured": None if intervals is None else number(intervals["measured"]),
        })  # fmt: skip
    return rows


def sentences_of(rows: Sequence[Mapping[str, Any]], noun: str) -> list[str]:
    """Return what the errors mean beside always giving the mean of the training pictures, for up to three targets."""
    sentences = []
    for row in rows[:3]:
        if row["rmse"] is None or not row["mean_rmse"]:
            continue
        share = 1 - row["rmse"] / row["mean_rmse"]
        side = f"{abs(share):.0%} {'less' if share >= 0 else 'more'} than"
        sentences.append(
            f"“{row['name']}” is off by {value_text(row['rmse'], '')} (RMSE) on {noun} pictures, {side} always the "
            f"mean of the training pictures ({value_text(row['mean_rmse'], '')})."
        )
    if len(rows) > 3:
        sentences.append(f"{len(rows) - 3:,} more stand in the table of targets.")
    return sentences


def worst_pictures(
    files: RunFiles, measured: Measured, names: Sequence[str], *, pictures: bool
) -> list[dict[str, Any]]:
    """Return the pictures of the largest mean squared deviations, with their numbers, of many the worst ones."""
    rows = []
    spread = measured.true.std(axis=0)
    off = np.abs(measured.predicted - measured.true) / np.where(spread > 0, spread, 1.0)
    for at in np.argsort(-measured.losses, kind="stable")[:WORST]:
        path = measured.paths[at]
        shown = list(range(len(names)))
        if len(names) > CHARTED:  # those that are furthest off
            shown = sorted(np.argsort(-off[at], kind="stable")[:CHARTED].tolist())
        numbers = [
            {"name": names[target], "true": f"{measured.true[at, target]:.4g}",
             "predicted": f"{measured.predicted[at, target]:.4g}"}
            for target in shown
        ]  # fmt: skip
        image = thumbnail(path) if pictures else None
        more = len(names) - len(numbers)
        rows.append({"shown": files.shown_path(path), "numbers": numbers, "more": more, "picture": image})
    return rows


def number_comparison(files: Sequence[RunFiles], names: Sequence[str], split: str | None) -> TaskSections:
    """Return the errors of every target in several runs; the first run is what the others are held against."""
    if split is None:
        return TaskSections()
    tables = [{row["name"]: row for row in target_rows(one.metrics[split])} for one in files]
    rows = [
        {"name": name, "values": [(table.get(name) or {}).get("rmse") for table in tables],
         "mean": next((table[name]["mean_rmse"] for table in tables if name in table), None)}
        for name in dict.fromkeys(name for table in tables for name in table)
    ]  # fmt: skip
    if not rows:
        return TaskSections()
    body = macros(TEMPLATE).compared(rows, names, NOUNS[split])
    return TaskSections(sections=(Section("targets", "Targets", body),))


def _ratio(row: Mapping[str, Any]) -> float:
    return float(row["rmse"] / row["mean_rmse"]) if row["rmse"] is not None and row["mean_rmse"] else 0.0


def _half_width(values: Mapping[str, Any], name: str) -> float | None:
    rows = (values.get("intervals") or {}).get(name, ())
    return next((number(row["half_width"]) for row in rows if row["coverage"] == 0.9), None)
