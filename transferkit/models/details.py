"""The part of a task that says more of an evaluation than its figures: tables, charts, lines, parts of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from transferkit.core.targets import TargetSpec

__all__ = ["Answered", "Details"]


@dataclass(frozen=True)
class Answered:
    """What a model says of N pictures, and the truth, both in its own terms.

    Attributes:
        predictions: ``(N, ...) float32``.
        targets: ``(N, ...)``.
        spec: What they mean.
    """

    predictions: Any
    targets: Any
    spec: TargetSpec


class Details(Protocol):
    """What is written, drawn, printed and shown of a task besides its figures. Values are those of `metrics.json`."""

    def values(self, rows: Sequence[Sequence[str]], spec: TargetSpec) -> dict[str, Any]:
        """Return what an evaluation says of a split besides its figures, from the cells of `Output.rows`."""

    def tables(
        self, splits: Mapping[str, Mapping[str, Any]], rows: Mapping[str, Sequence[Sequence[str]]]
    ) -> dict[str, list[Sequence[object]]]:
        """Return the tables of an evaluation, columns first, by file name; `rows` are paths and `Output.rows`."""

    def draw(self, out: Path, splits: Mapping[str, Mapping[str, Any]], name: str) -> None:
        """Draw the charts of an evaluation into a directory; `name` is what the model is called."""

    def lines(self, values: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Return what the terminal says of a split besides its figures: a name and a text each."""

    def advice(self, rows: Sequence[Mapping[str, str]]) -> tuple[str, str] | None:
        """Return the picture that is worth explaining, and why, from the rows of `predictions.csv`."""

    def compare(self, first: Answered, second: Answered, *, names: tuple[str, str], seed: int) -> dict[str, Any]:
        """Compare two models on the same pictures, with paired intervals. Differences are first minus second.

        Args:
            first: The model in question.
            second: The one it is held against; its spec may have other names.
            names: What the models are called in the verdict.
            seed: Of the bootstrap.

        Returns:
            What `metrics.json` holds of it: ``n`` and ``verdict``, a sentence, and whatever the task has besides.

        Raises:
            ConfigError: The two have nothing in common.
        """

    def compared(self, values: Mapping[str, Any]) -> str:
        """Return what the terminal says of `compare`'s values below their verdict."""

    def differences(self, splits: Mapping[str, Mapping[str, Any]]) -> list[Sequence[object]]:
        """Return the rows of `against.csv` from `compare`'s values by split, the columns' names first."""

    def sections(self, files: Any, *, pictures: bool) -> Any:
        """Return the `TaskSections` of the page of a run, from its `RunFiles`, with pictures or without."""

    def comparison(self, files: Sequence[Any], names: Sequence[str], split: str | None) -> Any:
        """Return the `TaskSections` of a page that compares runs, of these names, on a split that all have."""
