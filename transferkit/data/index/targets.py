"""What a label means: the one place where the text of a record becomes what is trained on."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import DataError, did_you_mean
from transferkit.core.targets import TargetSpec

__all__ = ["ClassTargets"]


@dataclass(frozen=True)
class ClassTargets:
    """Labels that are names of classes. Names are compared in NFC form: how a disk stores accents does not matter.

    Attributes:
        class_names: In index order.
    """

    class_names: tuple[str, ...]

    @property
    def spec(self) -> TargetSpec:
        """What a model's outputs mean."""
        return TargetSpec(self.class_names)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {unicodedata.normalize("NFC", name): number for number, name in enumerate(self.class_names)}

    def find(self, label: str) -> int | None:
        """Return the class index of a label, or ``None`` where there is no such class."""
        return self._index.get(unicodedata.normalize("NFC", label))

    def encode(self, labels: Iterable[str]) -> npt.NDArray[np.int64]:
        """Return the class indices ``(N,)`` of labels.

        Raises:
            DataError: A label is not one of the classes.
        """
        indices = []
        for label in labels:
            index = self.find(label)
            if index is None:
                raise DataError(f"{label!r} is not one of the classes.{did_you_mean(label, self.class_names)}")
            indices.append(index)
        return np.array(indices, dtype=np.int64)

    def strata(self, labels: Iterable[str]) -> npt.NDArray[np.int64]:
        """Return the stratum ``(N,)`` of each label, by which splits, folds and samplers are balanced: its class."""
        return self.encode(labels)
