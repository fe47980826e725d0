"""How well nearest pictures are of the same class: recall at k and mean average precision at R."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transferkit.models.figures.bootstrap import bootstrap_intervals
from transferkit.models.figures.figure import Figure

__all__ = ["Retrieval", "retrieval_figures"]

KS = (1, 5)
"""Recall is told at so many neighbours."""


@dataclass(frozen=True)
class Retrieval:
    """What was found for one picture, by classes alone.

    Attributes:
        right: Whether each of the nearest pictures is of its class, the nearest first, ``(k,) bool``; at least R of
            them, and as many as recall asks for, where the gallery has so many.
        relevant: R, the pictures of its class in the gallery, the picture itself left out.
    """

    right: npt.NDArray[np.bool_]
    relevant: int

    def recall(self, k: int) -> float:
        """Return 1 where one of the k nearest is of its class, else 0: the recall of papers on metric learning."""
        return float(self.right[:k].any())

    @property
    def average_precision(self) -> float:
        """Return the mean over the R nearest of the precision at each that is right, and 0 at each that is wrong."""
        right = self.right[: self.relevant]
        precision = right.cumsum() / np.arange(1, len(right) + 1)
        return float((precision * right).sum() / self.relevant)


def retrieval_figures(results: Sequence[Retrieval], *, seed: int = 0) -> tuple[list[Figure], int]:
    """Return recall at 1 and 5 and MAP@R with 95 % intervals over pictures, and how many pictures cannot tell.

    MAP@R is that of Musgrave et al. 2020 (*A Metric Learning Reality Check*, section 3.2): R is each picture's own, and
    is what sums are divided by. A picture whose class the gallery has not is left out: whatever was found is wrong.

    Args:
        results: Of each picture.
        seed: Of the bootstrap.
    """
    known = [one for one in results if one.relevant]
    rows = np.array([[*(one.recall(k) for k in KS), one.average_precision] for one in known])
    meanings = [
        *(
            (f"recall_{k}", f"Recall@{k}", f"share of pictures with one of their class among the {k} nearest")
            for k in KS
        ),
        ("map_r", "MAP@R", "average precision over as many neighbours as there are pictures of the class"),
    ]
    if not known:
        return [Figure(key, label, None, None, True, "share", meaning) for key, label, meaning in meanings], len(
            results
        )
    intervals = bootstrap_intervals(lambda drawn: drawn @ rows / drawn.sum(), len(rows), seed=seed)
    figures = [
        Figure(key, label, float(value), interval, True, "share", meaning)
        for (key, label, meaning), value, interval in zip(meanings, rows.mean(axis=0), intervals, strict=True)
    ]
    return figures, len(results) - len(known)
