"""What an evaluation says of numbers besides their figures: a table of targets, charts, lines, the worst picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.core.csv import read_csv
from transferkit.core.errors import ConfigError
from transferkit.core.targets import TargetSpec
from transferkit.core.text import listing
from transferkit.data.scan.columns import JOINT
from transferkit.models.details import Answered
from transferkit.models.figures.numbers import KEYS, Pairs, number_figures
from transferkit.models.figures.paired import compare_figures, figure_differences, figures_compared
from transferkit.results.report.numbers import (
    CHARTED,
    measured_pairs,
    number_comparison,
    number_sections,
    target_charts,
)
from transferkit.results.report.page import TaskSections
from transferkit.runs.files import RunFiles
from transferkit.show.charts import save_charts
from transferkit.show.words import value_text

__all__ = ["NumberDetails"]

NAMED = 5
"""Targets that the terminal names."""


@dataclass(frozen=True)
class NumberDetails:
    """Targets as tables, charts, lines and parts of a page."""

    def values(self, rows: Sequence[Sequence[str]], spec: TargetSpec) -> dict[str, Any]:
        """Return nothing: the figures say all."""
        return {}

    def tables(
        self, splits: Mapping[str, Mapping[str, Any]], rows: Mapping[str, Sequence[Sequence[str]]]
    ) -> dict[str, list[Sequence[object]]]:
        """Return `per_target.csv`: the figures of each target, with the RMSE and MAE of always the mean."""
        keys = (*KEYS, "kappa")
        table: list[Sequence[object]] = [("split", "target", *keys, "mean_rmse", "mean_mae")]
        for split, values in splits.items():
            for name, row in values["per_target"].items():
                mean = row["always_mean"]
                numbers = (*(row.get(key) for key in keys), mean["rmse"], mean["mae"])
                table.append((split, name, *(None if value is None else round(value, 6) for value in numbers)))
        return {"per_target.csv": table}

    def draw(self, out: Path, splits: Mapping[str, Mapping[str, Any]], name: str) -> None:
        """Draw predicted over true numbers, and errors, of the first targets, from `predictions.csv`."""
        table = read_csv(out / "predictions.csv")
        for split, values in splits.items():
            measured = measured_pairs(table, split)
            if measured is None:
                continue
            mark = "" if len(splits) == 1 else f"_{split}"
            for at, target in enumerate(list(values["per_target"])[:CHARTED]):
                charts = target_charts(measured, at, target, split, None)
                save_charts(charts, out / f"target_{at + 1}{mark}.png")

    def lines(self, values: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Return the errors of the first targets, beside always the mean."""
        lines = []
        for name, row in list(values["per_target"].items())[:NAMED]:
            mean = value_text(row["always_mean"]["rmse"], "")
            more = {"median error": row["median_ae"], "R2": row["r2"], "kappa": row.get("kappa")}
            known = (f"{words} {value_text(value, '')}" for words, value in more.items() if value is not None)
            lines.append(("target", f"{name}: RMSE {value_text(row['rmse'], '')}, always the mean {mean}; "
                                    f"{', '.join(known)}"))  # fmt: skip
        more_targets = len(values["per_target"]) - NAMED
        return [*lines, ("target", f"{more_targets:,} more, in metrics.json")] if more_targets > 0 else lines

    def advice(self, rows: Sequence[Mapping[str, str]]) -> tuple[str, str] | None:
        """Return the picture of the largest error."""
        if not rows:
            return None
        worst = max(rows, key=lambda row: float(row["loss"]))
        return worst["path"], f"the largest error: {_first(worst['predicted'])} for {_first(worst['target'])}"

    def compare(self, first: Answered, second: Answered, *, names: tuple[str, str], seed: int) -> dict[str, Any]:
        """Compare the figures of the targets that both have. Raises `ConfigError` where there are none."""
        common = [name for name in first.spec.names if name in second.spec.names]
        if not common:
            raise ConfigError(
                f"{names[1]} has none of the targets {listing(first.spec.names, quote=False)} - compare runs that "
                "share one"
            )
        places = [[one.spec.names.index(name) for name in common] for one in (first, second)]
        scale = np.asarray(first.spec.facts.get("scale", [1.0] * len(first.spec.names)))[places[0]]
        true = first.targets.numpy()[:, places[0]]
        sides = [
            Pairs(one.predictions.numpy()[:, place], true, scale.tolist())
            for one, place in zip((first, second), places, strict=True)
        ]

        single = len(common) == 1  # then its own unit says most

        def statistics(pairs: Pairs) -> Callable[[npt.NDArray[Any]], Sequence[float]]:
            def of(weights: npt.NDArray[Any]) -> Sequence[float]:
                values = pairs.figures(weights)
                own, whole = values.T.ravel(), pairs.means(values)
                return [*own, *whole] if single else [*whole, *own]

            return of

        empty = dict.fromkeys(KEYS)
        figures = number_figures({**empty, "per_target": dict.fromkeys(common, empty)})
        return compare_figures(statistics(sides[0]), statistics(sides[1]), figures, len(true), names=names, seed=seed)

    def compared(self, values: Mapping[str, Any]) -> str:
        """Return the differences of the other figures."""
        return figures_compared(values)

    def differences(self, splits: Mapping[str, Mapping[str, Any]]) -> list[Sequence[object]]:
        """Return every figure of both models, and the difference."""
        return figure_differences(splits)

    def sections(self, files: RunFiles, *, pictures: bool) -> TaskSections:
        """Return what the page of a run says of its targets."""
        return number_sections(files, pictures=pictures)

    def comparison(self, files: Sequence[RunFiles], names: Sequence[str], split: str | None) -> TaskSections:
        """Return what a page of several runs says of their targets."""
        return number_comparison(files, names, split)


def _first(numbers: str) -> str:
    """Return the numbers of a picture, of many targets the first ones."""
    parts = numbers.split(JOINT)
    return JOINT.join(parts[:NAMED] + ([f"... ({len(parts):,} numbers)"] if len(parts) > NAMED else []))
