"""Whether an exported model is the model: real pictures through both, side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from transferkit.core.errors import ExportError
from transferkit.data.batches.augment import eval_transform
from transferkit.data.batches.datamodule import normalise
from transferkit.data.images.decode import UnreadableImage, decode_image
from transferkit.results.predict.model import Predictor

__all__ = ["LIMITS", "Comparison", "Exported", "Limits", "Verified", "compare"]

Rows: TypeAlias = npt.NDArray[np.float32]

Exported: TypeAlias = Callable[[npt.NDArray[Any]], tuple[Rows, Rows]]
"""The reloaded model: ``(B, 3, H, W) float32, normalised`` (or ``(B, H, W, 3) uint8`` of any size, where it prepares
pictures itself) to probabilities and logits, each ``(B, C)``."""

_SIZES = (1, 2, 7)
"""Batch sizes that are tried first, then `_BATCH`."""
_BATCH = 16
_TIMED = 8
"""Pictures of a batch whose speed is measured."""
_ROUNDS = 3
_TIE = 1e-6
"""Probabilities nearer than this are equal: either class is the right one."""


@dataclass(frozen=True)
class Limits:
    """How far an exported model may be from the run.

    Attributes:
        agreement: Least share of pictures that get the same class; one picture of ten or more may always differ, where
            this is below 1.
        logits: Largest difference of a logit, over 1 or the largest logit of all, whichever is more.
        probability: Largest difference of a probability.
    """

    agreement: float
    logits: float | None = None
    probability: float | None = None


LIMITS: Final = {
    "32": Limits(agreement=1.0, logits=1e-4),
    # Pictures that grow are interpolated by other rounding than OpenCV's.
    "inside": Limits(agreement=0.99, probability=0.02),
    "fp16": Limits(agreement=0.99, probability=0.02),
    "int8": Limits(agreement=0.97),
    # The features are made anew, in the precision that suits this machine.
    "skops": Limits(agreement=0.99, probability=1e-4),
}
"""By precision; ``"inside"`` for fp32 that prepares pictures itself, ``"skops"`` for classifiers of features."""


@dataclass(frozen=True)
class Comparison:
    """What came of it.

    Attributes:
        pictures: Compared.
        same: Of them, those that got the same class.
        probability: Largest difference of a probability.
        logits: Largest difference of a logit; ``None`` where the exported model gives none.
        largest_logit: Of the run, in size.
        ratio: Speed of the exported model over torch in eager mode; ``None`` where they do not do the same work.
        timed: Pictures of a batch that this was measured with.
    """

    pictures: int
    same: int
    probability: float
    logits: float | None = None
    largest_logit: float = 0.0
    ratio: float | None = None
    timed: int = 0

    @property
    def agreement(self) -> float:
        """Share of pictures that got the same class, in [0, 1]."""
        return self.same / self.pictures

    def problem(self, limits: Limits) -> str | None:
        """Return what is wrong, for a sentence; ``None`` where the model is within the limits."""
        found = []
        allowed = int((1 - limits.agreement) * self.pictures + 1e-9)
        if limits.agreement < 1 and self.pictures >= 10:
            allowed = max(allowed, 1)
        other = self.pictures - self.same
        if other > allowed:
            found.append(f"{other} of {self.pictures} pictures get another class (at most {allowed} may)")
        if not np.isfinite([self.probability, self.logits or 0.0]).all():
            found.append("it returns NaN or infinity")
        elif limits.probability is not None and self.probability > limits.probability:
            found.append(f"probabilities differ by {self.probability:.2g} (at most {limits.probability:g} may)")
        if limits.logits is not None and self.logits is not None:
            most = limits.logits * max(1.0, self.largest_logit)
            if self.logits > most:
                found.append(f"logits differ by {self.logits:.2g} (at most {most:.2g} may)")
        return "; ".join(found) or None


@dataclass(frozen=True)
class Verified:
    """A file that was written, read back and compared.

    Attributes:
        comparison: What came of it.
        origin: The pictures compared on, in words.
        weights: Which weights went out, in words.
        notes: What else is worth telling.
    """

    comparison: Comparison
    origin: str
    weights: str
    notes: tuple[str, ...] = ()


def compare(
    exported: Exported,
    predictor: Predictor,
    paths: Sequence[str],
    *,
    inside: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Run pictures through an exported model and through the run's own, in batches of 1, 2, 7 and 16.

    Args:
        exported: The reloaded model.
        predictor: The run's.
        paths: Pictures; those that cannot be read are left out.
        inside: Whether it takes decoded pictures of any size; then each goes alone, the first ones repeated.
        progress: Called with the pictures done and all.

    Raises:
        ExportError: None of the pictures can be read.
    """
    agreed: dict[int, bool] = {}
    largest = apart = farthest = 0.0
    example: npt.NDArray[Any] | None = None
    for places, given, shown in _batches(predictor, paths, inside):
        probs, logits = exported(given)
        wanted = predictor.logits(shown)
        wanted_probs = predictor.info.calibration.probs(torch.from_numpy(wanted)).numpy()
        if logits.shape != wanted.shape or probs.shape != wanted.shape:
            raise ExportError(
                f"the reloaded model returns {probs.shape} probabilities and {logits.shape} logits for a batch of "
                f"{len(shown)}, expected {wanted.shape} of each - this backbone cannot be exported in this format"
            )
        rows = np.arange(len(wanted))
        ties = wanted_probs[rows, probs.argmax(axis=1)] >= wanted_probs.max(axis=1) - _TIE
        for place, tie in zip(places, ties.tolist(), strict=True):
            agreed[place] = tie and agreed.get(place, True)
        # `fmax` would pass over NaN.
        apart = float(np.maximum(apart, np.abs(logits - wanted).max()))
        farthest = float(np.maximum(farthest, np.abs(probs - wanted_probs).max()))
        largest = max(largest, float(np.abs(wanted).max()))
        example = given if example is None or (not inside and len(example) < len(given) <= _TIMED) else example
        if progress is not None:
            progress(len(agreed), len(paths))
    if example is None:
        raise ExportError(f"none of the {len(paths)} pictures can be read - pass --data with others")
    ratio = _speed(exported, predictor, example, inside)
    return Comparison(len(agreed), sum(agreed.values()), farthest, apart, largest, ratio, len(example))


def _batches(
    predictor: Predictor, paths: Sequence[str], inside: bool
) -> Iterator[tuple[list[int], npt.NDArray[Any], npt.NDArray[np.uint8]]]:
    """Yield the numbers of pictures, what the exported model is given, and the run's own view of them."""
    config = predictor.info.preprocessing
    transform = eval_transform(config)
    for places in _plan(len(paths), inside):
        decoded: dict[int, npt.NDArray[np.uint8]] = {}
        for place in places:
            try:
                if place not in decoded:
                    decoded[place] = decode_image(paths[place], min_side=config.decode_side)
            except UnreadableImage:
                continue
        readable = [place for place in places if place in decoded]
        if not readable:
            continue
        shown = np.stack([transform(decoded[place]) for place in readable])
        if inside:
            yield readable, np.stack([decoded[place] for place in readable]), shown
        else:
            yield readable, normalise(torch.from_numpy(shown), config).contiguous().numpy(), shown


def _plan(count: int, inside: bool) -> Iterator[list[int]]:
    """Yield the pictures of each batch; where there are few, the first ones again."""
    if inside:  # pictures of one size only can share a batch
        for place in range(max(count, len(_SIZES))):
            yield [place % count] * (_SIZES[place] if place < len(_SIZES) else 1)
        return
    start = 0
    for size in _SIZES:
        yield [(start + number) % count for number in range(size)]
        start += size
    while start < count:
        yield list(range(start, min(start + _BATCH, count)))
        start += _BATCH


def _speed(exported: Exported, predictor: Predictor, example: npt.NDArray[Any], inside: bool) -> float:
    """Return how many times as fast the exported model is as torch in eager mode, in turn on the same pictures."""
    config = predictor.info.preprocessing
    transform = eval_transform(config)

    def eager() -> None:
        with torch.inference_mode():
            if inside:
                images = normalise(torch.from_numpy(np.stack([transform(picture) for picture in example])), config)
            else:
                images = torch.from_numpy(example).to(memory_format=torch.channels_last)
            predictor.info.calibration.probs(predictor.module(images))

    sides: tuple[Callable[[], object], ...] = (lambda: exported(example), eager)
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(_ROUNDS + 1):
        for side, taken in zip(sides, seconds, strict=True):
            started = time.perf_counter()
            side()
            if number:  # the first one warms up
                taken.append(time.perf_counter() - started)
    return statistics.median(seconds[1]) / statistics.median(seconds[0])
