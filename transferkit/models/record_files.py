"""What goes with records beside their rows: files, such as masks, lists of objects, the page that `serve` shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from transferkit.core.targets import TargetSpec

__all__ = ["ObjectResults", "Page", "RecordFiles"]


class RecordFiles(Protocol):
    """The files that belong to the records of a task, one each, such as masks: they are too large for a table."""

    @property
    def ending(self) -> str:
        """Of their names, such as ``".png"``."""

    @property
    def media_type(self) -> str:
        """As a browser knows them, such as ``"image/png"``."""

    def given_by(self, head: nn.Module) -> bool:
        """Return whether a model with this head gives what they hold."""

    def content(self, record: Any, spec: TargetSpec) -> bytes:
        """Return the file of a record that has a prediction."""

    def written(self, record: Any, file: str | None) -> Any:
        """Return a record without what its file holds, which says where that is; ``None``: nowhere."""

    def legend(self, spec: TargetSpec) -> list[tuple[str, str]]:
        """Return what the colours of a file mean: a name and a colour ``"#rrggbb"`` each, in index order."""


class ObjectResults(Protocol):
    """The objects of records as COCO results: what tools that measure detections read."""

    def entries(self, record: Any, image: int | str, categories: Mapping[str, int]) -> list[dict[str, Any]]:
        """Return an entry for each object of a whole record, told or not, as plain values.

        Args:
            record: Of a picture.
            image: What the picture is known by.
            categories: What each class is known by.
        """


def no_facts(spec: TargetSpec) -> Mapping[str, Any]:
    """Return nothing: a template needs no more than every page has."""
    return {}


@dataclass(frozen=True)
class Page:
    """A page of `serve`.

    Attributes:
        template: File in `results/templates`.
        facts: What the template needs to know of a spec beside what every page has, by the names that it uses.
    """

    template: str
    facts: Callable[[TargetSpec], Mapping[str, Any]] = no_facts
