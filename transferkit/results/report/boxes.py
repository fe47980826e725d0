"""What a report says of boxes: precision per class, precision over recall, mistakes by kind, boxes beside the truth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from matplotlib.axes import Axes

from transferkit.results.report.facts import NOUNS
from transferkit.results.report.page import Section, TaskSections, macros
from transferkit.results.report.svg import drawn
from transferkit.runs.files import RunFiles, number
from transferkit.show.charts import DASHES, SERIES, Chart, Line, in_percent

__all__ = ["box_comparison", "box_sections", "precision_chart"]

TEMPLATE = "boxes.html.j2"
CURVES: Final = 6
"""Classes whose curves a chart has room for: those with the most objects."""


def box_sections(files: RunFiles, *, pictures: bool = True) -> TaskSections:
    """Return what the page of a run says of its boxes; nothing where its files hold none.

    Args:
        files: The run.
        pictures: Whether mistakes and the worst pictures are shown, with boxes and objects drawn.
    """
    split = files.splits[0] if files.splits else None
    values = {} if split is None else files.metrics[split]
    noun, rows = NOUNS.get(split or "", ""), _rows(values)
    if not rows:
        return TaskSections()
    parts = macros(TEMPLATE)
    chart = precision_chart(values, "Precision over recall, IoU 0.50")
    body = parts.classes(rows, noun, None if chart is None else drawn(chart), any("mask_map" in row for row in rows))
    return TaskSections((), (Section("classes", "Classes", body),), title=f"{len(rows)} classes of objects")


def precision_chart(values: Mapping[str, Any], title: str) -> Chart | None:
    """Return precision over recall of each class, at overlaps of a half; ``None`` where no class has an object.

    Args:
        values: Of a split.
        title: Of the chart.
    """
    rows = [row for row in _rows(values) if (values.get("curves") or {}).get(row["name"])]
    rows = sorted(rows, key=lambda row: -row["objects"])[:CURVES]
    if not rows:
        return None
    recalls = [at / 100 for at in range(101)]
    lines = [
        Line(row["name"], recalls, values["curves"][row["name"]], colour, DASHES[at % len(DASHES)])
        for at, (row, colour) in enumerate(zip(rows, SERIES, strict=False))
    ]

    def draw(axis: Axes) -> None:
        for line in lines:
            values = [math.nan if value is None else value for value in line.y]
            axis.plot(line.x, values, color=line.colour, linestyle=line.dash, clip_on=False)
        axis.set_xlim(0, 1)
        axis.set_ylim(0, 1)
        axis.set_xlabel("recall")
        axis.set_ylabel("precision")
        in_percent(axis.xaxis)
        in_percent(axis.yaxis)

    ends = ", ".join(f"{row['name']} {row['map50']:.1%}" for row in rows if row["map50"] is not None)
    description = f"Precision over recall of {len(rows)} classes; the area below is the average precision: {ends}"
    return Chart("precision", title, description, ((1.0, draw),), tuple(lines))


def box_comparison(files: Sequence[RunFiles], names: Sequence[str], split: str | None) -> TaskSections:
    """Return the average precision of every class in several runs."""
    if split is None:
        return TaskSections()
    tables = [{row["name"]: row["map"] for row in _rows(one.metrics[split])} for one in files]
    rows = [
        {"name": name, "values": [table.get(name) for table in tables]}
        for name in dict.fromkeys(name for table in tables for name in table)
    ]
    if not rows:
        return TaskSections()
    body = macros(TEMPLATE).compared(rows, names, NOUNS[split])
    return TaskSections(sections=(Section("classes", "Classes", body),))


# ---- parts ------------------------------------------------------------------------------------------------------


def _rows(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    keys = ("map", "map50", "map75", "precision", "recall", "f1", "threshold")
    return [
        {
            "name": str(name),
            "ci": row.get("map_ci"),
            **{key: number(row.get(key)) for key in keys},
            **({"mask_map": number(row.get("mask_map"))} if "mask_map" in row else {}),
            "objects": int(row.get("objects") or 0),
            "n": int(row.get("n") or 0),
        }
        for name, row in (values.get("per_class") or {}).items()
    ]
