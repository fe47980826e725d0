"""The charts of runs: figures and LRs over the epochs, how a probe was chosen, its accuracy over depth and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transferkit.models.figures.figure import Figure
from transferkit.show.charts import ACCENT, DASHES, INK, MUTED, SECOND, SERIES, Chart, Line, Lines, Span
from transferkit.show.words import mid_sentence, value_text

__all__ = [
    "corruption_chart",
    "depth_chart",
    "history_charts",
    "label_chart",
    "path_charts",
    "phase_spans",
    "rates_chart",
]


def history_charts(
    history: Sequence[Mapping[str, Any]],
    plan: Mapping[str, Any],
    followed: Sequence[Figure],
    *,
    chosen: float | None = None,
    solved: Mapping[str, Any] | None = None,
    val_loss: str = "",
) -> list[Chart]:
    """Return a chart of each figure that was followed, and one of the LRs, over the epochs, phases shaded.

    Args:
        history: Rows of `history.csv`.
        plan: The content of `plan.json`.
        followed: Figures whose values `history` has as ``train_KEY`` and ``val_KEY``.
        chosen: Epoch whose weights were kept, from 1; 0 for a head solved before them.
        solved: Figures of a head that was solved before the first epoch.
        val_loss: What the loss on val is, where it has another unit than that of training and so a chart of its own.
    """
    solved = solved or {}
    phases = phase_spans(history, solved)
    epochs = [row["epoch"] + 1 for row in history]
    charts = []
    for figure in followed:
        lines = [Line(split, epochs, [row.get(f"{split}_{figure.key}") for row in history], colour)
                 for split, colour in (("train", SECOND), ("val", ACCENT))]  # fmt: skip
        lines = [line for line in lines if any(value is not None for value in line.y)]
        if not lines:
            continue
        drawn = [(figure.key, figure.label, lines)]
        if val_loss and figure.key == "loss":
            words = {"train": "Loss in training", "val": f"Loss on val: {val_loss}"}
            drawn = [(f"{line.name}-loss", words[line.name], [line]) for line in lines]
        for key, label, inside in drawn:
            before = solved.get(f"val_{figure.key}") if any(line.name == "val" for line in inside) else None
            ends = [
                f"{line.name} ends at {value_text(line.y[-1], figure.unit)}"
                for line in inside
                if line.y[-1] is not None
            ]
            charts.append(
                Lines(
                    inside,
                    percent=figure.unit == "share",
                    phases=phases,
                    marks=[] if before is None else [(0.0, before, ACCENT)],
                    chosen=None if chosen is None else (chosen, "kept"),
                ).chart(key, label, f"{label} over {len(epochs)} epochs; {', '.join(ends)}")
            )
    rates = rates_chart(plan, [span for span in phases if span[1] >= 0])  # a solved phase has no LR
    return charts + ([] if rates is None else [rates])


def phase_spans(history: Sequence[Mapping[str, Any]], solved: Mapping[str, Any] | None = None) -> list[Span]:
    """Return name, begin and end of each phase on the axis of a chart, where epoch 1 spans 0.5 to 1.5."""
    spans: list[Span] = [(str(solved.get("name")), -0.5, 0.5)] if solved else []
    for name in dict.fromkeys(str(row.get("phase")) for row in history):
        inside = [row["epoch"] + 1 for row in history if str(row.get("phase")) == name]
        spans.append((name, min(inside) - 0.5, max(inside) + 0.5))
    return spans


def rates_chart(plan: Mapping[str, Any], phases: Sequence[Span] | None = None) -> Chart | None:
    """Return the LR of every group over the run, the head darkest; ``None`` where nothing trains by steps.

    Args:
        plan: The content of `plan.json`.
        phases: What is shaded; by default the phases of the plan.
    """
    rates, per_epoch = plan.get("lr") or {}, plan.get("steps_per_epoch")
    groups = [str(group["name"]) for group in plan.get("groups") or () if any(rates.get(group["name"], ()))]
    if not groups or not per_epoch:
        return None
    if phases is None:
        begins = [(str(phase["name"]), phase["first_epoch"] + 0.5, phase["epochs"]) for phase in plan["phases"]]
        phases = [(name, begin, begin + epochs) for name, begin, epochs in begins if epochs]
    x = [step / per_epoch + 0.5 for step in rates["step"]]
    lines = [Line(group, x, rates[group], INK, opacity=0.25 + 0.75 * (at + 1) / len(groups))
             for at, group in enumerate(groups)]  # fmt: skip
    named = range(len(groups)) if len(groups) <= 8 else (0, len(groups) // 2, len(groups) - 1)
    return Lines(lines, log=True, phases=phases).chart(
        "rates",
        "Learning rate of each layer group",
        f"Learning rate over {plan.get('epochs')} epochs, a line for each of {len(groups)} layer groups",
        legend=[lines[at] for at in named][::-1],
    )


# ---- the charts of a probe -----------------------------------------------------------------------------------------


_PATHS = (
    ("acc", "path", "accuracy", True),
    ("nll", "path-loss", "log loss", False),
    ("loss", "path-loss", "squared deviation", False),
)
"""Columns of a curve: what they hold, the name of the chart, the words for it, whether it is a share."""


def path_charts(curve: Sequence[Mapping[str, Any]], name: str, chosen: float | Sequence[float] | None) -> list[Chart]:
    """Return what was cross-validated over what was chosen between: accuracy and log loss, or squared deviations.

    Args:
        curve: Rows with `name`, and ``acc``, ``acc_std`` and ``nll``, or ``loss``.
        name: ``"C"`` of a logistic regression, ``"k"`` of nearest neighbours, ``"alpha"`` of a ridge regression.
        chosen: The value that was taken, or that of each target: where they differ none is marked.
    """
    x = [row[name] for row in curve]
    directions = {"C": "C (larger: weaker regularisation)", "alpha": "alpha (larger: stronger regularisation)"}
    values = set(chosen) if isinstance(chosen, Sequence) else {chosen}
    one = values.pop() if len(values) == 1 else None
    mark = None if one is None else (one, f"chosen: {one:.3g}")
    end = "" if one is None else f"; chosen: {one:.3g}"
    charts = []
    for column, key, words, percent in _PATHS:
        if column not in curve[0]:
            continue
        deviation = [row[f"{column}_std"] for row in curve] if f"{column}_std" in curve[0] else None
        line = Line(
            words, x, [row[column] for row in curve], ACCENT if percent else SECOND,
            reach=None if deviation is None else (deviation, deviation),
        )  # fmt: skip
        xlabel = directions.get(name, f"{name} (neighbours that vote)")
        charts.append(
            Lines([line], xlabel, percent=percent, log_x=True, chosen=mark).chart(
                key,
                f"Cross-validated {words} by {name}",
                f"Cross-validated {words} over {len(curve)} values of {name}{end}",
            )
        )
    return charts


def depth_chart(rows: Sequence[Mapping[str, Any]], split: str, figure: Figure) -> Chart:
    """Return what a probe is worth over the depth of the layer, with 95 % intervals.

    Args:
        rows: ``layer, width`` and, of the figure, ``KEY, KEY_low, KEY_high``, from input to output.
        split: What it was measured on.
        figure: Which one it is, without a value.
    """
    key = figure.key
    values = [row[key] for row in rows]
    reach = [row[key] - row[f"{key}_low"] for row in rows], [row[f"{key}_high"] - row[key] for row in rows]
    best = (max if figure.higher_is_better else min)(rows, key=lambda row: float(row[key]))
    return Lines(
        [Line(mid_sentence(figure.label), range(len(rows)), values, reach=reach)],
        "layer, from input to output",
        percent=figure.unit == "share",
        ticks=[str(row["layer"]) for row in rows],
        notes=[value_text(value, figure.unit) for value in values] if len(rows) <= 8 else (),
    ).chart(
        "depth",
        f"Probe {mid_sentence(figure.label)} over depth ({split}, 95 % intervals)",
        f"{figure.label} of a probe on {split} over {len(rows)} layers; best: {best['layer']}, "
        f"{value_text(best[key], figure.unit)}",
    )


def label_chart(rows: Sequence[Mapping[str, Any]], split: str, figure: Figure) -> Chart:
    """Return what a probe is worth over the number of labelled pictures: the mean and the range of the draws.

    Args:
        rows: ``rows, share`` and, of the figure, ``KEY, KEY_min, KEY_max`` of each number of pictures, ascending.
        split: What it was measured on.
        figure: Which one it is, without a value.
    """
    x, key = [row["rows"] for row in rows], figure.key
    lines = [Line("mean", x, [row[key] for row in rows]),
             *(Line(f"{name} of the draws", x, [row[column] for row in rows], MUTED, DASHES[1])
               for name, column in (("lowest", f"{key}_min"), ("highest", f"{key}_max")))]  # fmt: skip
    notes = [f"{row['share']:.0%}" for row in rows]
    first, last = (value_text(row[key], figure.unit) for row in (rows[0], rows[-1]))
    return Lines(
        lines, "labelled training pictures, and their share", percent=figure.unit == "share", notes=notes
    ).chart(
        "labels",
        f"{figure.label} over labelled pictures ({split})",
        f"{figure.label} on {split} over {len(rows)} amounts of labels, from {first} with "
        f"{rows[0]['rows']:,.0f} to {last} with {rows[-1]['rows']:,.0f}",
    )


# ---- the chart of an evaluation ------------------------------------------------------------------------------------


def corruption_chart(values: Mapping[str, Any], noun: str) -> Chart:
    """Return a figure over the strength of each corruption; at strength 0 that of the pictures as they are.

    Args:
        values: What `metrics.json` holds of a split: ``figure``, ``clean`` and, by kind, ``values``.
        noun: What the pictures are called.
    """
    figure = values["figure"]
    lines = [
        Line(kind, range(len(row) + 1), [values["clean"], *row], SERIES[at % len(SERIES)], DASHES[at % len(DASHES)])
        for at, (kind, row) in enumerate(values["values"].items())
    ]
    ends = ", ".join(f"{line.name} {value_text(line.y[-1], figure['unit'])}" for line in lines)
    return Lines(lines, "strength", percent=figure["unit"] == "share").chart(
        "corruptions", f"{figure['label']} of spoilt {noun}", f"{figure['label']} at the greatest strength: {ends}"
    )
