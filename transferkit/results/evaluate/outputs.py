"""What a model returns for labelled pictures, one after the other; what cannot be read is set apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.core.records import SkippedFile
from transferkit.features.engine.whole import Alone, Gathered, Output, Predictions, by_picture
from transferkit.models.extent import Truth
from transferkit.results.predict.predictor import Predictor
from transferkit.runs.labelled import LabelledPicture
from transferkit.show.progress import counting_bar, progress_console

__all__ = ["Several", "measuring", "readable_outputs"]


def readable_outputs(
    pictures: Sequence[LabelledPicture],
    outputs: Iterable[Output],
    begin: Callable[[Output], Gathered],
    bad: list[SkippedFile],
    *,
    title: str,
    quiet: bool,
) -> Iterator[tuple[LabelledPicture, Output, Any]]:
    """Yield each picture that can be read, with its last output and what is made of all of them.

    Args:
        pictures: In the order of `outputs`.
        outputs: From `Predictor.outputs`, for the paths of the pictures.
        begin: See `by_picture`.
        bad: Gets the other pictures, and why.
        title: Of the bar.
        quiet: No bar.
    """
    with counting_bar(progress_console(quiet), title) as progress:
        made = by_picture(outputs, begin)
        for number, (picture, (output, value)) in enumerate(zip(pictures, made, strict=True), 1):
            if output.logits is None:
                bad.append(SkippedFile(picture.path, str(output.error)))
            elif output.sha256 not in (None, picture.sha256):
                bad.append(SkippedFile(picture.path, "it changed while it was evaluated"))
            else:
                yield picture, output, value
            if progress is not None:
                progress(number, len(pictures))


class Several:
    """Several things that are made of the outputs of a picture, at once; see `Gathered`.

    Args:
        parts: Each of them.
    """

    def __init__(self, parts: Sequence[Gathered]) -> None:
        self._parts = parts

    def add(self, output: Output) -> None:
        """Take an output, for all of them."""
        for part in self._parts:
            part.add(output)

    def done(self) -> list[Any]:
        """Return what was made, in order."""
        return [part.done() for part in self._parts]


def measuring(
    predictor: Predictor,
    output: Output,
    truth: Truth | None,
    probs: Callable[[npt.NDArray[np.float32]], Any] | None = None,
) -> Gathered:
    """Return what is made of the outputs of a picture to measure it, see `Extent.entry`.

    Args:
        predictor: The model.
        output: The first one.
        truth: The answer that lies on the picture.
        probs: What makes predictions of outputs ``(V, ...)``; `Predictor.probs` when ``None``.
    """
    extent, activation = predictor.module.task.extent, probs or predictor.probs
    if output.window is not None and extent.windows is not None and truth is not None:
        return Predictions(activation, extent.windows.measured(truth))
    return Alone(lambda logits: extent.entry(activation(logits), truth))
