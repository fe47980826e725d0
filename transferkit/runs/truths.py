"""Answers that lie on the pixels of pictures, at the pictures' own sizes, to measure outputs of the canvas by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple

from transferkit.core.records import DataConfig
from transferkit.data.images.annotation import Annotation, Annotations
from transferkit.data.images.resize import frame
from transferkit.data.index.targets import Targets
from transferkit.models.extent import Truth

__all__ = ["Truths", "truths_of"]


class Truths:
    """The answers of some pictures, read as they are needed.

    Args:
        annotations: Of the pictures, in their order.
        config: How pictures come on the canvas.
    """

    def __init__(self, annotations: Annotations, config: DataConfig) -> None:
        self.annotations = annotations
        self.config = config

    def of(self, rows: Iterable[int]) -> list[Truth]:
        """Return the answers of the pictures at these places. Raises `DataError`."""
        read = [self.annotations.read(row) for row in rows]
        return [Truth(astuple(frame(_size(one), self.config)), one) for one in read]


def _size(annotation: Annotation) -> tuple[int, int]:
    if annotation.mask is None:
        raise ValueError("an annotation without a mask has no size of its own")
    return annotation.mask.shape[0], annotation.mask.shape[1]


def truths_of(targets: Targets, labels: Sequence[str], paths: Sequence[str], config: DataConfig) -> Truths | None:
    """Return the answers of pictures with these labels; ``None`` where an answer is of a picture as a whole.

    Args:
        targets: Say what labels mean.
        labels: Of the pictures.
        paths: Their files.
        config: How pictures come on the canvas.
    """
    annotations = targets.annotate(labels, paths)
    return None if annotations is None else Truths(annotations, config)
