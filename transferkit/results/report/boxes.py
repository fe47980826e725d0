"""What a report says of boxes: precision per class, precision over recall, mistakes by kind, boxes beside the truth."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Final

from matplotlib.axes import Axes

from transferkit.core.errors import TransferkitError
from transferkit.data.images.channels import as_rgb
from transferkit.data.images.decode import Pixels, decode_image
from transferkit.models.detections.mistakes import KINDS
from transferkit.results.boxes.drawn import Scene, around, scene
from transferkit.results.boxes.judged import MISSED, Judged, JudgedBox, JudgedObject
from transferkit.results.report.facts import NOUNS, shown
from transferkit.results.report.page import Section, TaskSections, compared_classes, macros
from transferkit.runs.files import RunFiles, number
from transferkit.show.charts import ACCENT, DASHES, SERIES, Chart, Line, in_percent
from transferkit.show.svg import drawn

__all__ = ["box_comparison", "box_sections", "mistake_chart", "precision_chart"]

TEMPLATE = "boxes.html.j2"
CURVES: Final = 6
"""Classes whose curves a chart has room for: those with the most objects."""
WRONG, LOST, WORST = 12, 12, 6
"""Wrong boxes, missed objects and whole pictures that are shown."""
PART_SIDE, WHOLE_SIDE = 280, 720
"""Pixels of their longer sides; about twice what the page shows, for dense screens."""


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
    masks = any("mask_map" in row for row in rows)
    sections = [
        Section("classes", "Classes", parts.classes(rows, noun, None if chart is None else drawn(chart), masks))
    ]
    judged = [_Picture(row["path"], Judged.read(row)) for row in files.predictions if row["split"] == split]
    if judged:
        album = _Album(files) if pictures else None
        made = mistake_chart(judged_kinds(one.judged for one in judged), "Mistakes by kind")
        body = parts.mistakes(_mistakes(judged, files, album), noun, None if made is None else drawn(made))
        sections.append(Section("mistakes", "Mistakes", body))
        worst = sorted((one for one in judged if one.mistakes), key=lambda one: -one.mistakes)[:WORST]
        if worst:
            body = parts.worst([_whole(one, files, album) for one in worst], len(judged), noun)
            sections.append(Section("worst", "Most mistakes", body))
    title = f"{len(rows)} {'class' if len(rows) == 1 else 'classes'} of objects"
    return TaskSections(tuple(_sentences(values, noun)), tuple(sections), title=title)


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
            heights = [math.nan if value is None else value for value in line.y]
            axis.plot(line.x, heights, color=line.colour, linestyle=line.dash, clip_on=False)
        axis.set_xlim(0, 1)
        axis.set_ylim(0, 1)
        axis.set_xlabel("recall")
        axis.set_ylabel("precision")
        in_percent(axis.xaxis)
        in_percent(axis.yaxis)

    ends = ", ".join(f"{row['name']} {row['map50']:.1%}" for row in rows if row["map50"] is not None)
    description = f"Precision over recall of {len(rows)} classes; the area below is the average precision: {ends}"
    return Chart("precision", title, description, ((1.0, draw),), tuple(lines))


def mistake_chart(counts: Mapping[str, int], title: str) -> Chart | None:
    """Return how many mistakes of each kind there are; ``None`` without any."""
    if not any(counts.values()):
        return None

    def draw(axis: Axes) -> None:
        places = range(len(counts))
        axis.barh(places, list(counts.values()), color=ACCENT, height=0.6)
        for place, count in zip(places, counts.values(), strict=True):
            axis.annotate(f"{count:,}", (count, place), (4, 0), textcoords="offset points", va="center")
        axis.set_yticks(places, list(counts))
        axis.set_ylim(len(counts) - 0.5, -0.5)
        axis.set_xlim(0, max(counts.values()) * 1.12)
        axis.set_xticks([])
        axis.grid(visible=False)
        axis.spines["bottom"].set_visible(False)

    counted = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
    return Chart("mistakes-by-kind", title, f"Mistakes by kind: {counted}", ((0.12 * len(counts) + 0.1, draw),))


def judged_kinds(pictures: Iterator[Judged]) -> dict[str, int]:
    """Return how many boxes are wrong of each kind, and how many objects are missed."""
    made: Counter[str] = Counter()
    for one in pictures:
        made.update(each.kind for each in one.wrong)
        made[MISSED] += len(one.missed)
    return {kind: made[kind] for kind in (*KINDS, MISSED)}


def box_comparison(files: Sequence[RunFiles], names: Sequence[str], split: str | None) -> TaskSections:
    """Return the average precision of every class in several runs."""
    if split is None:
        return TaskSections()
    tables = [{row["name"]: row["map"] for row in _rows(one.metrics[split])} for one in files]
    return compared_classes(tables, names, NOUNS[split], TEMPLATE)


# ---- parts ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Picture:
    """A picture and what is said of it."""

    path: str
    judged: Judged

    @property
    def mistakes(self) -> int:
        """Wrong boxes and missed objects."""
        return len(self.judged.wrong) + len(self.judged.missed)


class _Album:
    """Pictures to draw on, the last ones kept.

    Args:
        files: The run.
    """

    def __init__(self, files: RunFiles) -> None:
        self.picture = lru_cache(maxsize=4)(partial(self._read, files))

    @staticmethod
    def _read(files: RunFiles, path: str) -> Pixels | None:
        """Return a picture; ``None`` where it cannot be read any more."""
        try:
            return as_rgb(decode_image(path, decoding=files.decoding))
        except TransferkitError:
            return None


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


def _sentences(values: Mapping[str, Any], noun: str) -> list[str]:
    threshold, precision, recall = (number(values.get(key)) for key in ("threshold", "precision", "recall"))
    sentences = []
    if threshold is not None and precision is not None and recall is not None:
        sentences.append(
            f"A box is told from a score of {threshold:.2f} on: of those on {noun} pictures "
            f"{shown(precision, 'share')} are right, and {shown(recall, 'share')} of the objects are found, at half an "
            "overlap."
        )
        if values.get("chosen_here"):
            sentences.append("That score was chosen on these pictures themselves, which flatters both.")
    beyond = int(values.get("beyond") or 0)
    if beyond:
        sentences.append(f"{beyond:,} objects cannot be found: their pictures show more than 100 of their class.")
    return sentences


def _mistakes(pictures: Sequence[_Picture], files: RunFiles, album: _Album | None) -> dict[str, Any]:
    """Return what is said of mistakes: how many there are, and those that are shown."""
    wrong = [(one, box) for one in pictures for box in one.judged.wrong]
    lost = [(one, thing) for one in pictures for thing in one.judged.missed]
    wrong.sort(key=lambda pair: -pair[1].score)
    lost.sort(key=lambda pair: (pair[1].score > 0, -_area(pair[1].box)))
    return {
        "told": sum(len(one.judged.boxes) for one in pictures),
        "objects": sum(len(one.judged.objects) for one in pictures),
        "wrong": len(wrong),
        "lost": len(lost),
        "wrong_rows": [_part(*pair, files, album) for pair in wrong[:WRONG]],
        "lost_rows": [_part(*pair, files, album) for pair in lost[:LOST]],
    }


def _part(one: _Picture, chosen: JudgedBox | JudgedObject, files: RunFiles, album: _Album | None) -> dict[str, Any]:
    pixels = None if album is None else album.picture(one.path)
    drawing: Scene | None = None
    if pixels is not None:
        size = pixels.shape[0], pixels.shape[1]
        drawing = scene(pixels, one.judged, PART_SIDE, part=around(chosen.box, size), chosen=chosen)
    overlap = chosen.overlap if isinstance(chosen, JudgedBox) else None
    return {
        "path": files.shown_path(one.path), "label": chosen.label, "kind": chosen.kind, "score": chosen.score,
        "overlap": overlap, "scene": drawing,
    }  # fmt: skip


def _whole(one: _Picture, files: RunFiles, album: _Album | None) -> dict[str, Any]:
    pixels = None if album is None else album.picture(one.path)
    return {
        "path": files.shown_path(one.path), "wrong": len(one.judged.wrong), "missed": len(one.judged.missed),
        "right": one.judged.right, "scene": None if pixels is None else scene(pixels, one.judged, WHOLE_SIDE),
    }  # fmt: skip


def _area(box: tuple[float, float, float, float]) -> float:
    left, top, right, bottom = box
    return (right - left) * (bottom - top)
