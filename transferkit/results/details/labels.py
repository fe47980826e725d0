"""What an evaluation says of several labels per picture besides its figures: labels, thresholds, mistakes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import ConfigError
from transferkit.core.targets import TargetSpec
from transferkit.data.scan.columns import split_labels
from transferkit.models.details import Answered
from transferkit.models.figures.figure import Figure
from transferkit.models.figures.labels import THRESHOLD, LabelCounts, Ranking
from transferkit.models.figures.paired import compare_figures, figure_differences, figures_compared
from transferkit.results.report.labels import label_chart, label_comparison, label_sections
from transferkit.results.report.page import TaskSections
from transferkit.runs.files import RunFiles
from transferkit.show.charts import save_charts

__all__ = ["LabelDetails"]

WORST = 3
"""Labels that the terminal names."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class LabelDetails:
    """Labels as tables, charts, lines and parts of a page."""

    def values(self, rows: Sequence[Sequence[str]], spec: TargetSpec) -> dict[str, Any]:
        """Return of each label how many pictures were not given it that have it, and were given it that lack it."""
        missed: Counter[str] = Counter()
        extra: Counter[str] = Counter()
        for truth, assigned in ((set(split_labels(row[0])), set(split_labels(row[1]))) for row in rows):
            missed.update(truth - assigned)
            extra.update(assigned - truth)
        return {"mistakes": {name: {"missed": missed[name], "extra": extra[name]} for name in spec.names}}

    def tables(
        self, splits: Mapping[str, Mapping[str, Any]], rows: Mapping[str, Sequence[Sequence[str]]]
    ) -> dict[str, list[Sequence[object]]]:
        """Return `per_label.csv`."""
        keys = ("ap", "precision", "recall", "f1", "threshold")
        table: list[Sequence[object]] = [("split", "label", "n", *keys, "missed", "extra")]
        for split, values in splits.items():
            for name, row in values["per_label"].items():
                numbers = (None if row[key] is None else round(row[key], 6) for key in keys)
                table.append((split, name, row["n"], *numbers, *values["mistakes"][name].values()))
        return {"per_label.csv": table}

    def draw(self, out: Path, splits: Mapping[str, Mapping[str, Any]], name: str) -> None:
        """Draw the average precision of the labels; of several splits each has its own, with its name in the file's."""
        for split, values in splits.items():
            mark = "" if len(splits) == 1 else f"_{split}"
            title = f"{name} on {values['n']:,} pictures" + ("" if split == "all" else f" ({split})")
            chart = label_chart(values, title)
            if chart is not None:
                save_charts([chart], out / f"average_precision{mark}.png")

    def lines(self, values: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Return the labels that are found least, and pictures without any."""
        known = sorted(
            (row["ap"], name, row["n"]) for name, row in values["per_label"].items() if row["ap"] is not None
        )
        worst = ", ".join(f"{name} {ap:.1%} of {count:,}" for ap, name, count in known[:WORST])
        unknown = sum(row["ap"] is None for row in values["per_label"].values())
        bare = values["none"]
        lines = [("worst", f"average precision {worst}")] if worst else []
        if unknown:
            lines.append(("n/a", f"{unknown:,} {'label' if unknown == 1 else 'labels'} that no picture has"))
        if bare["n"]:
            lines.append(("bare", f"{bare['given_none']:,} of {bare['n']:,} pictures without a label were given none"))
        return lines

    def advice(self, rows: Sequence[Mapping[str, str]]) -> tuple[str, str] | None:
        """Return the picture whose labels are most surely wrong."""
        wrong = [row for row in rows if row["wrong"] not in ("", "0")]
        if not wrong:
            return None
        worst = max(wrong, key=lambda row: float(row["loss"]))
        has, assigned = (worst[key].replace("|", ", ") or "no label" for key in ("labels", "predicted"))
        return worst["path"], f"the largest loss: has {has}; given {assigned}"

    def compare(self, first: Answered, second: Answered, *, names: tuple[str, str], seed: int) -> dict[str, Any]:
        """Compare mean average precision, F1 and exact matches, and the average precision of each label.

        Labels that one of the two lacks are left out.
        """
        shared = [name for name in first.spec.names if name in second.spec.names]
        if not shared:
            raise ConfigError(f"{names[0]} and {names[1]} have no label in common - name another run")
        ours, theirs = _statistics(first, shared), _statistics(second, shared)
        figures = [
            Figure("map", "Mean average precision (mAP)", None, None, True, "share", ""),
            Figure("f1_macro", "macro F1", None, None, True, "share", ""),
            Figure("subset_acc", "exact matches", None, None, True, "share", ""),
            *(Figure("ap", "Average precision", None, None, True, "share", "", of=name) for name in shared),
        ]
        count = len(first.targets)
        resamples = int(np.clip(2e8 / max(1, count * len(shared)), 100, 1000))
        left = sorted({*first.spec.names, *second.spec.names} - set(shared))
        result = compare_figures(ours, theirs, figures, count, names=names, seed=seed, resamples=resamples)
        return {**result, "labels_left_out": left}

    def compared(self, values: Mapping[str, Any]) -> str:
        """Return the differences of the other figures, and which labels only one of the models has."""
        left = values["labels_left_out"]
        more = f"; labels that only one of them has are left out: {', '.join(left)}" if left else ""
        return f"{figures_compared(values)}{more}"

    def differences(self, splits: Mapping[str, Mapping[str, Any]]) -> list[Sequence[object]]:
        """Return every figure of both models, the difference and its interval."""
        return figure_differences(splits)

    def sections(self, files: RunFiles, *, pictures: bool) -> TaskSections:
        """Return what the page of a run says of its labels."""
        return label_sections(files, pictures=pictures)

    def comparison(self, files: Sequence[RunFiles], names: Sequence[str], split: str | None) -> TaskSections:
        """Return what a page of several runs says of their labels."""
        return label_comparison(files, names, split)


def _statistics(answered: Answered, shared: Sequence[str]) -> Callable[[Array], list[float]]:
    """Return what gives mAP, macro F1, exact matches and average precisions of some labels under weights ``(N,)``."""
    columns = [answered.spec.names.index(name) for name in shared]
    probs = answered.predictions.numpy()[:, columns].astype(np.float64)
    truth = answered.targets.numpy()[:, columns] > 0.5
    chosen = answered.spec.facts.get("thresholds")
    limits = np.full(len(columns), THRESHOLD) if chosen is None else np.asarray(chosen)[columns]
    assigned = probs >= limits
    ranking, exact, both = Ranking(probs, truth), (assigned == truth).all(axis=1), assigned & truth

    def statistics(weights: Array) -> list[float]:
        precisions = ranking.precisions(weights)
        counts = LabelCounts(weights @ truth, weights @ assigned, weights @ both)
        present = counts.positives > 0
        if not present.any():
            return [np.nan, np.nan, float(weights @ exact / weights.sum()), *precisions]
        f1 = counts.ratio("f1")[present].mean()
        return [float(precisions[present].mean()), float(f1), float(weights @ exact / weights.sum()), *precisions]

    return statistics
