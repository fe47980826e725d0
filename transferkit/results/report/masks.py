"""What a report says of masks: IoU per class, which classes are taken for each other, masks beside the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from transferkit.core.errors import TransferkitError
from transferkit.core.text import first_line
from transferkit.data.images.channels import as_rgb
from transferkit.data.images.decode import Pixels, decode_image
from transferkit.results.predict.colours import hex_colour, laid_over, palette_of
from transferkit.results.report.facts import NOUNS
from transferkit.results.report.page import Section, TaskSections, compared_classes, data_uri, macros
from transferkit.runs.files import RunFiles, number
from transferkit.show.charts import ACCENT, Chart, in_percent
from transferkit.show.svg import drawn

if TYPE_CHECKING:
    from transferkit.results.predict.predictor import Predictor

__all__ = ["class_chart", "mask_comparison", "mask_sections"]

TEMPLATE = "masks.html.j2"
WORST = 8
CHARTED = 24
CONFUSED = 12
LONGEST = 24
"""Characters of a class that a chart shows."""

SIDE = 360  # pixels of a shown picture's longer side; about twice what the page shows, for dense screens


def mask_sections(files: RunFiles, *, pictures: bool = True) -> TaskSections:
    """Return what the page of a run says of its classes; nothing where its files hold none.

    Args:
        files: The run.
        pictures: Whether the worst pictures are shown, with the masks that the model gives them.
    """
    split = files.splits[0] if files.splits else None
    values = {} if split is None else files.metrics[split]
    noun, rows = NOUNS.get(split or "", ""), _rows(values)
    title = f"{len(rows)} classes of pixels" if rows else ""
    if not rows:
        return TaskSections(title=title)
    parts = macros(TEMPLATE)
    chart = class_chart(values, "IoU per class, lowest first")
    sections = [
        Section("classes", "Classes", parts.classes(rows, noun, None if chart is None else drawn(chart))),
        Section("confused", "Confused pixels", parts.confused(_confused(values), noun)),
    ]
    measured = [row for row in files.predictions if row["split"] == split and row.get("miou")]
    worst = sorted(measured, key=lambda row: float(row["miou"]))[:WORST]
    if worst:
        shown = _pictures(files, worst) if pictures else _Shown()
        body = parts.worst(
            [{"path": files.shown_path(row["path"]), "miou": float(row["miou"]), "images": images}
             for row, images in zip_longest(worst, shown.images)],
            shown.legend, shown.problem, len(measured), noun,
        )  # fmt: skip
        sections.append(Section("worst", "Lowest IoU", body))
    return TaskSections(tuple(_sentences(values, noun)), tuple(sections), title=title)


def class_chart(values: Mapping[str, Any], title: str) -> Chart | None:
    """Return the IoU of each class with its interval, lowest first; ``None`` where no class has one."""
    rows = sorted((row for row in _rows(values) if row["iou"] is not None), key=lambda row: row["iou"])[:CHARTED]
    if not rows:
        return None
    names = [row["name"] if len(row["name"]) <= LONGEST else f"{row['name'][: LONGEST - 1]}…" for row in rows]

    def draw(axis: Axes) -> None:
        for at, row in enumerate(rows):
            if row["ci"]:
                axis.plot(row["ci"], [at, at], color=ACCENT, alpha=0.4, linewidth=4, solid_capstyle="butt")
            axis.plot([row["iou"]], [at], color=ACCENT, marker="o", markersize=5, clip_on=False)
        axis.set_yticks(range(len(rows)), names, parse_math=False)
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_xlim(0, 1)
        in_percent(axis.xaxis)

    ends = " to ".join(f"{row['iou']:.1%} of {row['name']}" for row in (rows[0], rows[-1]))
    text = f"IoU of {len(rows)} classes, from {ends}"
    return Chart("iou", title, text, ((max(0.35, 0.12 * len(rows)), draw),))


def mask_comparison(files: Sequence[RunFiles], names: Sequence[str], split: str | None) -> TaskSections:
    """Return the IoU of every class in several runs; the first run is what the others are held against."""
    if split is None:
        return TaskSections()
    tables = [{row["name"]: row["iou"] for row in _rows(one.metrics[split])} for one in files]
    return compared_classes(tables, names, NOUNS[split], TEMPLATE)


# ---- parts ------------------------------------------------------------------------------------------------------


def _rows(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": str(name),
            "iou": number(row.get("miou")),
            "ci": row.get("miou_ci"),
            **{key: number(row.get(key)) for key in ("dice", "recall", "precision")},
            "share": (row.get("pixels") or 0) / (values.get("pixels") or 1),
            "n": int(row.get("n") or 0),
        }
        for name, row in (values.get("per_class") or {}).items()
    ]


def _sentences(values: Mapping[str, Any], noun: str) -> list[str]:
    always, miou = values.get("always") or {}, number(values.get("miou"))
    base = number(always.get("miou"))
    if miou is None or base is None:
        return []
    return [f"On {noun} pictures the mean IoU is {miou:.1%}; always saying “{always['class']}” would give {base:.1%}."]


def _confused(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return which classes are taken for which, the most pixels first."""
    names = [str(name) for name in values.get("per_class") or {}]
    table = np.array(values.get("confusion") or np.zeros((0, 0)))
    if table.shape != (len(names), len(names)):
        return []
    pairs = [(int(table[i, j]), i, j) for i in range(len(names)) for j in range(len(names)) if i != j and table[i, j]]
    return [
        {"true": names[i], "given": names[j], "pixels": count, "of_class": count / max(1, int(table[i].sum()))}
        for count, i, j in sorted(pairs, reverse=True)[:CONFUSED]
    ]


class _Shown:
    """Pictures with their masks, of some rows.

    Attributes:
        images: Of each row addresses of the picture, with the true mask and with the model's; ``None`` where there is
            none.
        legend: Name and colour of each class.
        problem: Why there are none, in words.
    """

    def __init__(self) -> None:
        self.images: list[dict[str, str | None]] = []
        self.legend: list[tuple[str, str]] = []
        self.problem = ""


def _pictures(files: RunFiles, rows: Sequence[Mapping[str, str]]) -> _Shown:
    """Return pictures beside the truth and what the model says of them now."""
    from transferkit.results.predict.predictor import load  # Lightning, which a page without pictures does without

    shown = _Shown()
    if files.model_run is None:
        shown.problem = "the model is not there any more, so its masks cannot be shown"
        return shown
    try:
        predictor = load(files.model_run, accelerator="cpu")
    except TransferkitError as error:
        shown.problem = f"the model cannot be loaded, so its masks cannot be shown ({first_line(error)})"
        return shown
    spec = predictor.info.target_spec
    palette = palette_of(spec)
    shown.legend = [(name, hex_colour(palette[at])) for at, name in enumerate(spec.names)]
    predictions = predictor.predict([row["path"] for row in rows], workers=0)
    for row, prediction in zip(rows, predictions, strict=True):
        shown.images.append(_laid(predictor, row, getattr(prediction, "mask", None), palette))
    return shown


def _laid(
    predictor: Predictor, row: Mapping[str, str], prediction: npt.NDArray[np.uint8] | None, palette: Pixels
) -> dict[str, str | None]:
    """Return a picture, and the same under the true and the given mask, as addresses; ``None`` where one is gone."""
    images: dict[str, str | None] = dict.fromkeys(("picture", "true", "given"))
    try:
        picture = as_rgb(decode_image(row["path"], decoding=predictor.info.preprocessing.decoding))
    except TransferkitError:
        return images
    scale = min(1.0, SIDE / max(picture.shape[:2]))
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
    images["picture"] = data_uri(small)
    masks = {"given": prediction, "true": _truth(predictor, row)}
    for name, mask in masks.items():
        if mask is not None:
            fitted = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT).astype(np.uint8)
            images[name] = data_uri(laid_over(small, fitted, palette))
    return images


def _truth(predictor: Predictor, row: Mapping[str, str]) -> npt.NDArray[np.uint8] | None:
    file = row.get("mask")
    if not file or not Path(file).is_file():
        return None
    try:
        annotations = predictor.info.targets.annotate([file], [row["path"]])
        mask: npt.NDArray[np.uint8] | None = None if annotations is None else annotations.read(0).mask
    except TransferkitError:
        return None
    return mask
