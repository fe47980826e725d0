"""What an evaluation says of a classifier besides its figures: classes, confusions, calibration, mistakes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transferkit.core.targets import TargetSpec
from transferkit.models.details import Answered
from transferkit.models.figures.classification import negative_log
from transferkit.models.figures.paired import Outcomes, compare
from transferkit.results.report.page import TaskSections
from transferkit.runs.files import RunFiles

__all__ = ["ClassDetails", "confusions"]

SHOWN = 10
"""Confusions in `metrics.json`."""

MOST = 50
"""Confusions in the table where there are too many classes for all pairs."""

WORST = 3
"""Classes, and confusions, that the terminal names."""


def confusions(rows: Sequence[Sequence[str]], names: Sequence[str], most: int) -> list[dict[str, Any]]:
    """Return the most frequent mistakes, ``class, predicted, n``, in descending order; of equal ones by class index.

    Takes memory for the pairs that occur, not for a matrix.

    Args:
        rows: Of each picture the class, the predicted class, and whatever follows.
        names: Of the classes, in index order.
        most: How many, at most.
    """
    pairs = Counter((row[0], row[1]) for row in rows if row[0] != row[1])
    index = {name: number for number, name in enumerate(names)}
    ordered = sorted(pairs.items(), key=lambda pair: (-pair[1], *(index[name] for name in pair[0])))
    return [{"class": true, "predicted": guess, "n": count} for (true, guess), count in ordered[:most]]


@dataclass(frozen=True)
class ClassDetails:
    """Classes and confusions as tables, charts, lines and parts of a page."""

    def values(self, rows: Sequence[Sequence[str]], spec: TargetSpec) -> dict[str, Any]:
        """Return the most frequent confusions."""
        return {"confusions": confusions(rows, spec.names, SHOWN)}

    def tables(
        self, splits: Mapping[str, Mapping[str, Any]], rows: Mapping[str, Sequence[Sequence[str]]]
    ) -> dict[str, list[Sequence[object]]]:
        """Return `per_class.csv`, `confusion.csv` and `reliability.csv`.

        `confusion.csv` has a row per pair of classes that occurs, ``split,class,predicted,n``, right ones included;
        with more than 1,000 classes it has the 50 most frequent mistakes.
        """
        classes: list[Sequence[object]] = [("split", "class", "n", "precision", "recall", "f1")]
        pairs: list[Sequence[object]] = [("split", "class", "predicted", "n")]
        bins: list[Sequence[object]] = [("split", "low", "high", "n", "confidence", "accuracy")]
        for split, values in splits.items():
            names = list(values["per_class"])
            for name, row in values["per_class"].items():
                classes.append((split, name, row["n"], *(_rounded(row[key]) for key in ("precision", "recall", "f1"))))
            if values["confusion"] is None:
                answers = [row[1:] for row in rows[split]]
                pairs += [(split, *pair.values()) for pair in confusions(answers, names, MOST)]
            else:
                matrix = np.asarray(values["confusion"])
                pairs += [(split, names[at], names[to], int(matrix[at, to])) for at, to in np.argwhere(matrix)]
            bins += [(split, _rounded(row["low"]), _rounded(row["high"]), row["n"], _rounded(row["confidence"]),
                      _rounded(row["accuracy"])) for row in values["reliability"]]  # fmt: skip
        return {"per_class.csv": classes, "confusion.csv": pairs, "reliability.csv": bins}

    def draw(self, out: Path, splits: Mapping[str, Mapping[str, Any]], name: str) -> None:
        """Draw confusions and reliability; of several splits each has its own, with its name in that of the file."""
        from transferkit.results.details.plots import plot_confusion, reliability_chart  # with matplotlib
        from transferkit.show.charts import save_charts

        for split, values in splits.items():
            mark = "" if len(splits) == 1 else f"_{split}"
            title = f"{name} on {values['n']:,} pictures" + ("" if split == "all" else f" ({split})")
            if values["confusion"] is not None:
                plot_confusion(
                    values["confusion"], list(values["per_class"]), out / f"confusion{mark}.png", title=title
                )
            before = values.get("uncalibrated")
            error = f"ECE {values['ece']:.3f}" + (f", {before['ece']:.3f} before calibration" if before else "")
            chart = reliability_chart(values["reliability"], f"{title}: {error}", "pictures")
            if chart is not None:
                save_charts([chart], out / f"reliability{mark}.png")

    def lines(self, values: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Return the classes that are recognised least, and the most frequent confusions."""
        rows = sorted((row["recall"], name, row["n"]) for name, row in values["per_class"].items() if row["n"])
        worst = ", ".join(f"{name} {recall:.1%} of {count:,}" for recall, name, count in rows[:WORST])
        confused = ", ".join(
            f"{row['class']} taken for {row['predicted']} {row['n']:,}x" for row in values["confusions"][:WORST]
        )
        return [(name, text) for name, text in (("worst", worst), ("confused", confused)) if text]

    def advice(self, rows: Sequence[Mapping[str, str]]) -> tuple[str, str] | None:
        """Return the surest mistake."""
        wrong = [row for row in rows if row["label"] != row["predicted"]]
        if not wrong:
            return None
        surest = max(wrong, key=lambda row: float(row["probability"]))
        what = f"{surest['label']} taken for {surest['predicted']}, {float(surest['probability']):.0%}"
        return surest["path"], f"the surest mistake: {what}"

    def compare(self, first: Answered, second: Answered, *, names: tuple[str, str], seed: int) -> dict[str, Any]:
        """Compare by which pictures each has right, see `compare`."""
        strata = first.targets.numpy()
        return compare(_outcomes(first), _outcomes(second), strata, first.spec.names, names=names, seed=seed)

    def compared(self, values: Mapping[str, Any]) -> str:
        """Return on how many pictures both are right, and one alone, and the difference of the log loss."""
        table, loss = values["table"], values["loss"]
        return (
            f"both right {table['both_right']:,}, only this run {table['only_first']:,}, only the other "
            f"{table['only_second']:,}, both wrong {table['both_wrong']:,}; NLL difference {loss['difference']:+.3f} "
            f"({loss['ci'][0]:+.3f} to {loss['ci'][1]:+.3f}), lower is better"
        )

    def differences(self, splits: Mapping[str, Mapping[str, Any]]) -> list[Sequence[object]]:
        """Return recall of both models by class, and the difference."""
        rows: list[Sequence[object]] = [("split", "class", "n", "recall", "against", "difference")]
        for split, values in splits.items():
            for name, row in values["per_class"].items():
                shares = (round(row[key], 6) for key in ("first", "second", "difference"))
                rows.append((split, name, row["n"], *shares))
        return rows

    def sections(self, files: RunFiles, *, pictures: bool) -> TaskSections:
        """Return what the page of a run says of its classes."""
        from transferkit.results.report.classes import class_sections

        return class_sections(files, pictures=pictures)

    def comparison(self, files: Sequence[RunFiles], names: Sequence[str], split: str | None) -> TaskSections:
        """Return what a page of several runs says of their classes."""
        from transferkit.results.report.classes import class_comparison

        return class_comparison(files, names, split)


def _outcomes(answered: Answered) -> Outcomes:
    own = answered.predictions.gather(1, answered.targets[:, None]).squeeze(1)
    right = answered.predictions.argmax(dim=1) == answered.targets
    return Outcomes(right.numpy(), negative_log(own).numpy())


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
