"""What a model returns for labelled pictures, one after the other; what cannot be read is set apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from transferkit.core.records import SkippedFile
from transferkit.features.engine.whole import Output
from transferkit.runs.labelled import LabelledPicture
from transferkit.show.progress import counting_bar, progress_console

__all__ = ["readable_outputs"]


def readable_outputs(
    pictures: Sequence[LabelledPicture], outputs: Iterable[Output], bad: list[SkippedFile], *, title: str, quiet: bool
) -> Iterator[tuple[LabelledPicture, Output]]:
    """Yield each picture that can be read, with what the network returns for it: its `logits` are there.

    Args:
        pictures: In the order of `outputs`.
        outputs: From `Predictor.outputs`, for the paths of the pictures.
        bad: Gets the other pictures, and why.
        title: Of the bar.
        quiet: No bar.
    """
    with counting_bar(progress_console(quiet), title) as progress:
        for number, (picture, output) in enumerate(zip(pictures, outputs, strict=True), 1):
            if output.logits is None:
                bad.append(SkippedFile(picture.path, str(output.error)))
            elif output.sha256 not in (None, picture.sha256):
                bad.append(SkippedFile(picture.path, "it changed while it was evaluated"))
            else:
                yield picture, output
            if progress is not None:
                progress(number, len(pictures))
