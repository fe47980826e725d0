"""The meaning of a data set's answers: a record that travels with the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

__all__ = ["IGNORED", "TargetSpec"]

IGNORED: Final = 255
"""The class index of pixels that do not count: nobody said what they are, or they lie outside the picture."""


@dataclass(frozen=True)
class TargetSpec:
    """The meaning of the answers of a data set; it travels in `model.json`.

    Attributes:
        names: Of the classes, labels or numbers, in index order.
        facts: What else is needed to read a model's outputs, as plain JSON values: units, means, a palette.
    """

    names: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def with_facts(self, facts: Mapping[str, Any]) -> Self:
        """Return the same names with more facts."""
        return replace(self, facts={**self.facts, **facts})

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"names": list(self.names), "facts": dict(self.facts)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return what `to_dict` gave."""
        return cls(tuple(map(str, values["names"])), dict(values["facts"]))
