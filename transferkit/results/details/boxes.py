"""What an evaluation says of boxes besides their figures: tables of classes, curves and mistakes, the worst picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from transferkit.core.targets import TargetSpec
from transferkit.models.details import Answered
from transferkit.models.figures.detection import compare_boxes
from transferkit.models.figures.paired import figure_differences, figures_compared
from transferkit.results.boxes.judged import COLUMNS, Judged
from transferkit.results.report.boxes import box_comparison, box_sections, precision_chart
from transferkit.results.report.page import TaskSections
from transferkit.runs.files import RunFiles
from transferkit.show.charts import save_charts
from transferkit.show.words import value_text

__all__ = ["BoxDetails"]

NAMED: Final = 6
"""Classes that the terminal names."""
MOST: Final = 1000
"""Boxes, and objects, of a split that `mistakes.csv` lists."""
OF_A_CLASS: Final = ("map", "map50", "map75", "mask_map", "mask_map50", "precision", "recall", "f1", "threshold",
                     "objects", "predicted", "n")  # fmt: skip


@dataclass(frozen=True)
class BoxDetails:
    """Classes of objects as tables, charts, lines and parts of a page."""

    def values(self, rows: Sequence[Sequence[str]], spec: TargetSpec) -> dict[str, Any]:
        """Return nothing: the figures say all."""
        return {}

    def tables(
        self, splits: Mapping[str, Mapping[str, Any]], rows: Mapping[str, Sequence[Sequence[str]]]
    ) -> dict[str, list[Sequence[object]]]:
        """Return `per_class.csv`, `pr_curves.csv` and `mistakes.csv`.

        `pr_curves.csv` has precision at recalls of 0, 0.01 ... 1 by class, at overlaps of a half. `mistakes.csv` has
        the wrong boxes of each split, the most confident first, then the objects that no box that is told finds, large
        ones first: at most 1,000 of each.
        """
        known = [key for key in OF_A_CLASS if any(key in row for values in splits.values() for row in _rows(values))]
        of_class: list[Sequence[object]] = [("split", "class", *known)]
        curves: list[Sequence[object]] = [("split", "class", "recall", "precision")]
        mistakes: list[Sequence[object]] = [
            ("split", "path", "kind", "class", "score", "left", "top", "right", "bottom", "iou")
        ]
        for split, values in splits.items():
            for name, row in values["per_class"].items():
                of_class.append((split, name, *(_cell(row.get(key)) for key in known)))
            for name, curve in values["curves"].items():
                curves += [(split, name, f"{at / 100:.2f}", _cell(value)) for at, value in enumerate(curve or ())]
            mistakes += [(split, *row) for row in _mistakes(rows[split])]
        return {"per_class.csv": of_class, "pr_curves.csv": curves, "mistakes.csv": mistakes}

    def draw(self, out: Path, splits: Mapping[str, Mapping[str, Any]], name: str) -> None:
        """Draw precision over recall of each class."""
        for split, values in splits.items():
            chart = precision_chart(values, f"Precision over recall on {split}, IoU 0.50")
            if chart is not None:
                mark = "" if len(splits) == 1 else f"_{split}"
                save_charts([chart], out / f"pr_curves{mark}.png")

    def lines(self, values: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Return the worst classes, what is told from which score on, and what goes wrong there."""
        known = {name: row["map"] for name, row in values["per_class"].items() if row["map"] is not None}
        worst = sorted(known, key=lambda name: known[name])[:NAMED]
        lines = [("classes", ", ".join(f"{name} {value_text(known[name], 'share')}" for name in worst))]
        if values["threshold"] is not None:
            here = ", chosen on these pictures" if values["chosen_here"] else ""
            shares = (
                f"precision {value_text(values['precision'], 'share')}, recall {value_text(values['recall'], 'share')}"
            )
            lines.append(("told", f"from a score of {values['threshold']:.2f} on{here}: {shares}"))
        made = ", ".join(f"{count:,} {kind}" for kind, count in values["mistakes"].items() if count)
        return [(name, text) for name, text in (*lines, ("mistakes", made)) if text]

    def advice(self, rows: Sequence[Mapping[str, str]]) -> tuple[str, str] | None:
        """Return the picture with the most mistakes."""
        counted = [(int(row["wrong"]) + int(row["missed"]), row) for row in rows if row.get("wrong")]
        most, worst = max(counted, key=lambda pair: pair[0], default=(0, {}))
        if not most:
            return None
        return worst["path"], f"the most mistakes: {worst['wrong']} wrong boxes, {worst['missed']} missed objects"

    def compare(self, first: Answered, second: Answered, *, names: tuple[str, str], seed: int) -> dict[str, Any]:
        """Compare the classes that both have, on the same pictures. Raises `ConfigError` where there are none."""
        classes = first.spec.names, second.spec.names
        return compare_boxes(first.predictions, second.predictions, classes, names=names, seed=seed)

    def compared(self, values: Mapping[str, Any]) -> str:
        """Return the differences of the other figures, and which classes only one of the models has."""
        left = values["classes_left_out"]
        more = f"; classes that only one of them has are left out: {', '.join(left)}" if left else ""
        return f"{figures_compared(values)}{more}"

    def differences(self, splits: Mapping[str, Mapping[str, Any]]) -> list[Sequence[object]]:
        """Return every figure of both models, the difference and its interval."""
        return figure_differences(splits)

    def sections(self, files: RunFiles, *, pictures: bool) -> TaskSections:
        """Return what the page of a run says of its boxes."""
        return box_sections(files, pictures=pictures)

    def comparison(self, files: Sequence[RunFiles], names: Sequence[str], split: str | None) -> TaskSections:
        """Return what a page of several runs says of their classes."""
        return box_comparison(files, names, split)


def _rows(values: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(values["per_class"].values())


def _cell(value: Any) -> object:
    return round(value, 6) if isinstance(value, float) else value


def _mistakes(rows: Sequence[Sequence[str]]) -> list[Sequence[object]]:
    """Return the rows of `mistakes.csv` without their split, of the paths and cells of pictures."""
    judged = [(path, Judged.read(dict(zip(COLUMNS, cells, strict=True)))) for path, *cells in rows]
    wrong = [(path, one) for path, each in judged for one in each.wrong]
    missed = [(path, one) for path, each in judged for one in each.missed]
    wrong.sort(key=lambda pair: -pair[1].score)
    missed.sort(key=lambda pair: -_area(pair[1].box))
    return [
        *(
            (path, one.kind, one.label, f"{one.score:.4f}", *one.box, f"{one.overlap:.4f}")
            for path, one in wrong[:MOST]
        ),
        *((path, one.kind, one.label, f"{one.score:.4f}", *one.box, None) for path, one in missed[:MOST]),
    ]


def _area(box: tuple[float, float, float, float]) -> float:
    left, top, right, bottom = box
    return (right - left) * (bottom - top)
