"""The answers of pictures, as predictions are measured by them: targets, or what lies on pixels at its own size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple
from typing import Any

import torch

from transferkit.core.records import DataConfig, Window
from transferkit.data.images.resize import frame
from transferkit.data.images.windows import windows
from transferkit.data.index.targets import Targets
from transferkit.data.masks.annotation import Annotation, Annotations
from transferkit.models.extent import Truth

__all__ = ["Truths", "answers_of", "truths_of"]


class Truths:
    """Answers on the pixels of some pictures, read as they are needed.

    Args:
        annotations: Of the pictures, in their order.
        labels: The files that they stand in.
        paths: The pictures.
        config: How pictures come on the canvas.
    """

    def __init__(
        self, annotations: Annotations, labels: Sequence[str], paths: Sequence[str], config: DataConfig
    ) -> None:
        self.annotations, self.labels, self.config = annotations, labels, config
        self._rows = {path: row for row, path in enumerate(paths)}

    def of(self, path: str) -> Truth:
        """Return the answer of a picture; of one that is seen in windows, the frame is itself. Raises `DataError`."""
        row = self._rows[path]
        annotation = self.annotations.read(row)
        size = _size(annotation)
        place = (0, 0, *size) if self.config.tiled else astuple(frame(size, self.config))
        return Truth(place, self.labels[row], annotation)

    def windows(self, truth: Truth) -> Iterator[Window]:
        """Yield the windows of a picture with this answer, in order."""
        return windows(_size(truth.annotation), self.config)


def truths_of(targets: Targets, labels: Iterable[str], paths: Iterable[str], config: DataConfig) -> Truths | None:
    """Return the answers of pictures with these labels; ``None`` where an answer is of a picture as a whole.

    Args:
        targets: Say what labels mean.
        labels: Of the pictures.
        paths: Their files.
        config: How pictures come on the canvas.
    """
    labels, paths = list(labels), list(paths)
    annotations = targets.annotate(labels, paths)
    return None if annotations is None else Truths(annotations, labels, paths, config)


def answers_of(targets: Targets, labels: Iterable[str], predictions: Any, truths: Truths | None) -> Any:
    """Return the answers of N pictures as `Scores.measure` takes them; those on pixels stand in the predictions.

    Args:
        targets: Say what labels mean.
        labels: Of the pictures.
        predictions: Of the pictures, as `Extent.table` returns them.
        truths: As `truths_of` returned them.
    """
    return torch.from_numpy(targets.encode(labels)) if truths is None else predictions


def _size(annotation: Annotation) -> tuple[int, int]:
    if annotation.size is not None:
        return annotation.size
    if annotation.mask is None:
        raise ValueError("an annotation without a mask has no size of its own")
    return annotation.mask.shape[0], annotation.mask.shape[1]
