"""What a report says of several labels per picture: figures and thresholds per label, what is most surely wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from transferkit.data.scan.columns import split_labels
from transferkit.models.calibration.labels import NEVER
from transferkit.results.explain.pictures import mistake_pictures
from transferkit.results.report.facts import NOUNS, shown
from transferkit.results.report.page import Section, TaskSections, macros
from transferkit.runs.files import RunFiles, number
from transferkit.show.charts import ACCENT, Chart, in_percent
from transferkit.show.svg import drawn

__all__ = ["label_chart", "label_comparison", "label_sections"]

TEMPLATE = "labels.html.j2"
MISTAKES = 12
NAMED = 8
"""Labels that are named under a mistake; of more it is said how many there are."""
CHARTED = 16
"""Labels that the chart has room for; of more, those with the lowest average precision."""
LONGEST = 20
"""Characters of a label that the chart shows."""


def label_sections(files: RunFiles, *, pictures: bool = True) -> TaskSections:
    """Return what the page of a run says of its labels; nothing where its files hold none.

    Args:
        files: The run.
        pictures: Whether the pictures that are most surely wrong are shown, with heat maps.
    """
    split = files.splits[0] if files.splits else None
    values = {} if split is None else files.metrics[split]
    noun, parts, rows = NOUNS.get(split or "", ""), macros(TEMPLATE), _rows(values)
    sections = []
    if rows:
        chart = label_chart(values, "Average precision, lowest first")
        sentences = sentences_of_thresholds(files)
        body = parts.labels(rows, noun, None if chart is None else drawn(chart), sentences)
        sections.append(Section("labels", "Labels", body))
    wrong = _wrong(files, split)
    if wrong is not None:
        images = mistake_pictures(wrong["rows"], files.model_run) if pictures and wrong["rows"] else None
        sections.append(Section("mistakes", "Mistakes", parts.mistakes(wrong, images)))
    names = [str(name) for name in files.data.get("classes") or [row["name"] for row in rows]]
    data = parts.data(_counts(files, names))
    return TaskSections(
        tuple(_sentences(values, noun)), tuple(sections), data, f"{len(names):,} labels" if names else ""
    )


def label_chart(values: Mapping[str, Any], title: str) -> Chart | None:
    """Return the average precision of each label with its interval, lowest first, beside the share of positives.

    Args:
        values: Of a split.
        title: Of the chart.
    """
    known = [row for row in _rows(values) if row["ap"] is not None]
    rows = sorted(known, key=lambda row: row["ap"])[:CHARTED]
    if not rows:
        return None
    total = int(values.get("n") or 0)
    names = [row["name"] if len(row["name"]) <= LONGEST else f"{row['name'][: LONGEST - 1]}…" for row in rows]

    def draw(axis: Axes) -> None:
        for at, row in enumerate(rows):
            if row["ci"]:
                axis.plot(row["ci"], [at, at], color=ACCENT, alpha=0.4, linewidth=4, solid_capstyle="butt")
            axis.plot([row["ap"]], [at], color=ACCENT, marker="o", markersize=5, clip_on=False)
            axis.plot(
                [row["n"] / total] if total else [], [at] if total else [], color=ACCENT, marker="|", markersize=8
            )
        axis.set_yticks(range(len(rows)), names, parse_math=False)
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_xlim(0, 1)
        axis.grid(axis="y", visible=False)
        axis.set_xlabel("average precision; a tick: what chance would give")
        in_percent(axis.xaxis)

    low = rows[0]
    description = f"Average precision of {len(rows)} labels, from {low['name']} with {100 * low['ap']:.0f}% up."
    return Chart("average-precision", title, description, ((max(1.0, len(rows) / 9), draw),))


def sentences_of_thresholds(files: RunFiles) -> list[str]:
    """Return where the thresholds come from, and what they brought, a sentence each."""
    calibration = files.model.get("calibration") or {}
    if not calibration.get("thresholds"):
        return ["A label is given from a probability of 50 % on: no thresholds were chosen."]
    pictures = f"{NOUNS.get(str(calibration.get('fitted_on')), calibration.get('fitted_on'))} pictures"
    rate = number(calibration.get("precision"))
    if rate is None:
        chosen = f"that of the largest F1 on {pictures}, where a label that is hard to tell is best given often"
    else:
        share = shown(rate, "share")
        chosen = f"the lowest with a precision of {share} on {pictures}; a label that does not reach it is never given"
    sentences = [f"Each label has its own threshold: {chosen}."]
    figures = calibration.get("figures") or {}
    before, after = number(figures.get("f1_before")), number(figures.get("f1_after"))
    if before is not None and after is not None:
        sentences.append(
            f"There macro F1 was {shown(before, 'share')} at 50 % and is {shown(after, 'share')} at the thresholds."
        )
    return sentences


def label_comparison(files: Sequence[RunFiles], names: Sequence[str], split: str | None) -> TaskSections:
    """Return the average precision of every label in every run, and its difference to the first run's.

    Args:
        files: The runs.
        names: Of the runs.
        split: What all were measured on; ``None`` where there is none, and nothing to compare.
    """
    tables = [] if split is None else [one.metrics[split].get("per_label") or {} for one in files]
    rows = []
    for name in dict.fromkeys(name for table in tables for name in table):
        own = [number((table.get(name) or {}).get("ap")) for table in tables]
        first = own[0]
        differences = [None if first is None or value is None else value - first for value in own[1:]]
        count = next((table[name].get("n") for table in tables if name in table), None)
        rows.append({"name": str(name), "n": count, "values": own, "differences": differences})
    if not rows or split is None:
        return TaskSections()
    body = macros(TEMPLATE).compared(rows, names, NOUNS[split])
    return TaskSections(sections=(Section("labels", "Labels", body),))


# ---- parts ------------------------------------------------------------------------------------------------------


def _sentences(values: Mapping[str, Any], noun: str) -> list[str]:
    count, exact, hamming = int(values.get("n") or 0), number(values.get("subset_acc")), number(values.get("hamming"))
    sentences = []
    rates = [row["n"] / count for row in _rows(values) if row["n"]] if count else []
    if rates:
        chance = shown(sum(rates) / len(rates), "share")
        sentences.append(f"A ranking by chance would have a mean average precision of about {chance}.")
    if exact is not None and count:
        sentences.append(f"{round(exact * count):,} of {count:,} {noun} pictures were given exactly their labels.")
    labels = len(values.get("per_label") or {})
    if hamming is not None and labels:
        sentences.append(f"A picture is wrong in {_count(hamming * labels)} of {labels:,} labels on average.")
    return sentences


def _count(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def _few(names: Sequence[str]) -> list[str]:
    """Return the first of many names, and how many more there are."""
    names = list(names)
    return names if len(names) <= NAMED else [*names[:NAMED], f"{len(names) - NAMED:,} more"]


def _rows(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for name, row in (values.get("per_label") or {}).items():
        figures = {key: number(row.get(key)) for key in ("ap", "precision", "recall", "f1", "threshold")}
        never, count = figures["threshold"] == NEVER, int(row.get("n") or 0)
        rows.append({"name": str(name), "n": count, "ci": row.get("ap_ci"), "never": never, **figures})
    return rows


def _wrong(files: RunFiles, split: str | None) -> dict[str, Any] | None:
    inside = [row for row in files.predictions if row["split"] == split]
    if not inside:
        return None
    wrong = sorted((row for row in inside if row["labels"] != row["predicted"]), key=lambda row: -_loss(row))
    rows = []
    for row in wrong[:MISTAKES]:
        has, answer = split_labels(row["labels"]), split_labels(row["predicted"])
        extra = [name for name in answer if name not in has]
        missed = [name for name in has if name not in answer]
        rows.append({
            "path": row["path"], "shown": files.shown_path(row["path"]), "has": _few(has), "extra": _few(extra),
            "missed": _few(missed), "predicted": (extra or missed)[0] if extra or missed else "",
        })  # fmt: skip
    return {"noun": NOUNS.get(split or "", ""), "n": len(inside), "wrong": len(wrong), "rows": rows}


def _loss(row: Mapping[str, str]) -> float:
    try:
        return number(float(row["loss"])) or 0.0
    except ValueError:
        return 0.0


def _counts(files: RunFiles, names: Sequence[str]) -> dict[str, Any] | None:
    counts = {str(split): by_label for split, by_label in (files.data.get("counts") or {}).items() if by_label}
    if not counts or not names:
        return None
    others = [str(name) for by_label in counts.values() for name in by_label if name not in names]
    rows = [
        {"name": name, "counts": [int(by_label.get(name) or 0) for by_label in counts.values()]}
        for name in (*names, *dict.fromkeys(others))
    ]
    return {"splits": list(counts), "rows": rows}
