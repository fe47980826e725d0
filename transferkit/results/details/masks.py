"""What an evaluation says of masks besides their figures: a table of classes, confused pixels, the worst picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transferkit.core.targets import TargetSpec
from transferkit.models.details import Answered
from transferkit.models.figures.paired import figure_differences, figures_compared
from transferkit.models.figures.segmentation import compare_masks
from transferkit.results.report.masks import class_chart, mask_comparison, mask_sections
from transferkit.results.report.page import TaskSections
from transferkit.runs.files import RunFiles
from transferkit.show.charts import save_charts
from transferkit.show.words import value_text

__all__ = ["MaskDetails"]

NAMED = 6
"""Classes that the terminal names."""

OF_A_CLASS = ("miou", "dice", "recall", "precision", "pixels", "predicted", "n")


@dataclass(frozen=True)
class MaskDetails:
    """Classes of pixels as tables, charts, lines and parts of a page."""

    def values(self, rows: Sequence[Sequence[str]], spec: TargetSpec) -> dict[str, Any]:
        """Return nothing: the figures say all."""
        return {}

    def tables(
        self, splits: Mapping[str, Mapping[str, Any]], rows: Mapping[str, Sequence[Sequence[str]]]
    ) -> dict[str, list[Sequence[object]]]:
        """Return `per_class.csv`, the figures of each class, and `confusion.csv`, pixels by true and given class."""
        of_class: list[Sequence[object]] = [("split", "class", "iou", *OF_A_CLASS[1:])]
        confusion: list[Sequence[object]] = [("split", "class", "predicted", "pixels")]
        for split, values in splits.items():
            names = list(values["per_class"])
            for name, row in values["per_class"].items():
                cells = (row[key] for key in OF_A_CLASS)
                of_class.append((split, name, *(round(c, 6) if isinstance(c, float) else c for c in cells)))
            for name, counts in zip(names, values["confusion"], strict=True):
                confusion += [(split, name, other, count) for other, count in zip(names, counts, strict=True)]
        return {"per_class.csv": of_class, "confusion.csv": confusion}

    def draw(self, out: Path, splits: Mapping[str, Mapping[str, Any]], name: str) -> None:
        """Draw the IoU of each class."""
        for split, values in splits.items():
            chart = class_chart(values, f"IoU per class on {split}")
            if chart is not None:
                mark = "" if len(splits) == 1 else f"_{split}"
                save_charts([chart], out / f"per_class{mark}.png")

    def lines(self, values: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Return the IoU of the worst classes, and what always the most frequent class gives."""
        known = {name: row["miou"] for name, row in values["per_class"].items() if row["miou"] is not None}
        worst = sorted(known, key=lambda name: known[name])[:NAMED]
        lines = [("classes", ", ".join(f"{name} {value_text(known[name], 'share')}" for name in worst))]
        always = values["always"]
        lines.append(("always", f"{always['class']}: mean IoU {value_text(always['miou'], 'share')}"))
        return lines

    def advice(self, rows: Sequence[Mapping[str, str]]) -> tuple[str, str] | None:
        """Return the picture of the lowest mean IoU."""
        measured = [row for row in rows if row.get("miou")]
        if not measured:
            return None
        worst = min(measured, key=lambda row: float(row["miou"]))
        return worst["path"], f"the lowest mean IoU: {float(worst['miou']):.2f}"

    def compare(self, first: Answered, second: Answered, *, names: tuple[str, str], seed: int) -> dict[str, Any]:
        """Compare the classes that both have, pixel by pixel. Raises `ConfigError` where there are none."""
        classes = first.spec.names, second.spec.names
        return compare_masks(first.predictions, second.predictions, classes, names=names, seed=seed)

    def compared(self, values: Mapping[str, Any]) -> str:
        """Return the differences of the other figures."""
        return figures_compared(values)

    def differences(self, splits: Mapping[str, Mapping[str, Any]]) -> list[Sequence[object]]:
        """Return every figure of both models, and the difference."""
        return figure_differences(splits)

    def sections(self, files: RunFiles, *, pictures: bool) -> TaskSections:
        """Return what the page of a run says of its classes."""
        return mask_sections(files, pictures=pictures)

    def comparison(self, files: Sequence[RunFiles], names: Sequence[str], split: str | None) -> TaskSections:
        """Return what a page of several runs says of their classes."""
        return mask_comparison(files, names, split)
