"""Whether an exported model is the run's: real pictures through both, side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from transferkit.core.errors import ExportError
from transferkit.core.files import sha256_of_file
from transferkit.core.records import DataConfig
from transferkit.data.augment.normalise import normalise
from transferkit.data.augment.transform import eval_transform
from transferkit.data.images.decode import UnreadableImage, decode_image
from transferkit.data.images.windows import middle_window
from transferkit.data.index.targets import Targets
from transferkit.data.scan.columns import Columns
from transferkit.models.figures.compared import Compared
from transferkit.models.heads.registry import one_at_a_time
from transferkit.results.predict.predictor import Predictor
from transferkit.runs.files import RunFiles
from transferkit.runs.labelled import labelled_pictures

__all__ = [
    "CALIBRATING",
    "Comparison",
    "ExportPictures",
    "Exported",
    "Limits",
    "compare",
    "export_pictures",
]

T = TypeVar("T")
Rows: TypeAlias = npt.NDArray[np.float32]

Exported: TypeAlias = Callable[[npt.NDArray[Any]], tuple[Rows | None, ...]]
"""The reloaded model: ``(B, 3, H, W) float32, normalised`` (or ``(B, H, W, 3) uint8`` of any size, where it prepares
pictures itself) to predictions, of classification probabilities, and, where it gives them, outputs, each ``(B, C)``,
and how unlike the training pictures each picture is, ``(B,)``."""

_SIZES = (1, 2, 7)
"""Batch sizes that are tried first, then `_BATCH`."""
_BATCH = 16
_TIMED = 8
"""Pictures of a batch whose speed is measured."""
_ROUNDS = 3
NEAR: Final = 1e-3
"""How far numbers may be apart and count as the same, in deviations of the training pictures."""
CALIBRATING: Final = 128
"""Pictures that int8 ranges are measured on, at most."""


# ---- pictures ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExportPictures:
    """Picture files.

    Attributes:
        compared: Those that both models see, spread over all there are.
        calibrating: Those that int8 ranges are measured on; not compared on, where there are others.
        origin: Those compared on, in words.
    """

    compared: tuple[str, ...]
    calibrating: tuple[str, ...]
    origin: str


def export_pictures(
    run: Path, targets: Targets, *, data: str | None, most: int, columns: Columns | None = None, rescan: bool = False
) -> ExportPictures:
    """Choose pictures: of `data`; without it the run's validation pictures, as `pictures.csv` or `predictions.csv` say.

    Args:
        run: The run directory.
        targets: What labels mean to the model.
        data: Labelled pictures.
        most: Pictures to compare on, at most.
        columns: How a manifest is read, see `run_columns`; as `targets` say when ``None``.
        rescan: As for `labelled_pictures`.

    Raises:
        ExportError: There is no picture.
        DataError: `data` is not labelled pictures.
        StorageError: A table of the run cannot be read.
    """
    if data is not None:
        splits = labelled_pictures(data, targets, skip_bad=True, rescan=rescan, columns=columns).splits
        name = next(iter(splits))
        held = [picture.path for picture in splits[name]]
        compared = _spread(held, most)
        rest = sorted({picture.path for pictures in splits.values() for picture in pictures} - set(compared))
        return ExportPictures(tuple(compared), tuple(_spread(rest or compared, CALIBRATING)), f"pictures of {data}")
    files = RunFiles(run)
    digests = {row["path"]: row["sha256"] for row in files.pictures if row["split"] == "val"}
    if not digests:
        digests = {row["path"]: "" for row in files.predictions if row["split"] == "val"}
    there = [path for path in digests if Path(path).is_file()]
    compared = [path for path in _spread(there, most) if digests[path] in ("", sha256_of_file(path))]
    if not compared:
        listed = f"{len(digests)} validation pictures, none of which is there unchanged" if digests else "none"
        raise ExportError(
            f"{run}: an export is compared on real pictures before it appears, but the run lists {listed} - "
            "pass --data with labelled pictures"
        )
    trained = [row["path"] for row in files.pictures if row["split"] == "train" and Path(row["path"]).is_file()]
    others = trained or sorted(set(there) - set(compared)) or compared
    return ExportPictures(tuple(compared), tuple(_spread(others, CALIBRATING)), "validation pictures of the run")


def _spread(items: Sequence[T], most: int) -> list[T]:
    """Return at most so many items, evenly over the whole sequence."""
    count = min(most, len(items))
    return [items[number * len(items) // count] for number in range(count)]


# ---- limits -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """How far an exported model may be from the run.

    Attributes:
        agreement: Least share of pictures that get the same answer; one picture of ten or more may always differ, where
            this is below 1.
        logits: Largest difference of a logit, over 1 or the largest logit of all, whichever is more.
        probability: Largest difference of a probability, or of a number in deviations of the training pictures.
        near: How far numbers may be apart and count as the same answer, in deviations.
        unlike: Largest difference of the share of held-out pictures that are nearer, in the mean over the pictures;
            what one held-out picture makes up does not count.
    """

    agreement: float
    logits: float | None = None
    probability: float | None = None
    near: float = NEAR
    unlike: float | None = None


@dataclass(frozen=True)
class Comparison:
    """How near an exported model is to the run's.

    Attributes:
        pictures: Compared.
        same: Of them, those that got the same answer.
        probability: Largest difference of a probability, or of a number in deviations of the training pictures.
        logits: Largest difference of a logit; ``None`` where the exported model gives none.
        largest_logit: Of the run, in size.
        ratio: Speed of the exported model over torch in eager mode; ``None`` where they do not do the same work.
        timed: Pictures of a batch that this was measured with.
        unlike: Difference of the share of held-out pictures that are nearer, in the mean over the pictures, beyond what
            one of those makes up; ``None`` where the exported model does not give it.
        words: What was compared.
    """

    pictures: int
    same: int
    probability: float
    logits: float | None = None
    largest_logit: float = 0.0
    ratio: float | None = None
    timed: int = 0
    unlike: float | None = None
    words: Compared = Compared()

    @property
    def agreement(self) -> float:
        """Share of pictures that got the same answer, in [0, 1]."""
        return self.same / self.pictures

    def problem(self, limits: Limits) -> str | None:
        """Return what is wrong, for a sentence; ``None`` where the model is within the limits."""
        problems = []
        allowed = int((1 - limits.agreement) * self.pictures + 1e-9)
        if limits.agreement < 1 and self.pictures >= 10:
            allowed = max(allowed, 1)
        other = self.pictures - self.same
        if other > allowed:
            problems.append(f"{other} of {self.pictures} pictures get {self.words.another} (at most {allowed} may)")
        if not np.isfinite([self.probability, self.logits or 0.0]).all():
            problems.append("it returns NaN or infinity")
        elif limits.probability is not None and self.probability > limits.probability:
            apart = f"differ by {self.probability:.2g} (at most {limits.probability:g} may)"
            problems.append(f"{self.words.values} {apart}")
        if limits.logits is not None and self.logits is not None:
            most = limits.logits * max(1.0, self.largest_logit)
            if self.logits > most:
                problems.append(f"logits differ by {self.logits:.2g} (at most {most:.2g} may)")
        if limits.unlike is not None and self.unlike is not None and not self.unlike <= limits.unlike:
            problems.append(f"unlike_training differs by {self.unlike:.2g} (at most {limits.unlike:g} may)")
        return "; ".join(problems) or None


def compare(
    exported: Exported,
    predictor: Predictor,
    paths: Sequence[str],
    *,
    inside: bool = False,
    mixing: bool = False,
    timed: bool = True,
    near: float = NEAR,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Run pictures through an exported model and through the run's own, in batches of 1, 2, 7 and 16.

    A model that takes one picture at a time is given them one by one.

    Args:
        exported: The reloaded model.
        predictor: The run's.
        paths: Pictures; those that cannot be read are left out.
        inside: Whether it takes decoded pictures of any size; then each goes alone, the first ones repeated.
        mixing: Whether an answer depends on the other pictures of the batch; then each picture goes alone too or,
            `inside`, with others of its size, and has to get the same answer both times.
        timed: Whether to measure speed too.
        near: See `Limits`.
        progress: Called with the pictures done and all.

    Raises:
        ExportError: None of the pictures can be read.
    """
    task = predictor.module.task
    scale = np.asarray(task.output.compared.scale or (1.0,))
    agreed: dict[int, bool] = {}
    moved: list[float] = []
    largest = farthest = 0.0
    apart: float | None = None
    example: npt.NDArray[Any] | None = None
    alone = one_at_a_time(predictor.module.head)
    for places, images, shown in _batches(predictor, paths, inside, mixing, alone):
        probs, *rest = exported(images)
        logits, *further = rest or [None]
        assert probs is not None
        expected = predictor.logits(shown)
        if further and further[0] is not None and (shares := predictor.shares(shown)) is not None:
            assert predictor.module.unlike is not None
            step = 1.0 / len(predictor.module.unlike.held_out)  # a picture that was held out lies on a step itself
            moved += np.maximum(np.abs(further[0] - shares) - step, 0.0).tolist()
        shapes = [rows.shape for rows in (probs, logits) if rows is not None]
        if any(shape != expected.shape for shape in shapes):
            raise ExportError(
                f"the reloaded model returns {' probabilities and '.join(map(str, shapes))} logits for a batch of "
                f"{len(shown)}, expected {expected.shape} of each - this backbone cannot be exported in this format"
            )
        predictions = task.predictions(torch.from_numpy(expected), predictor.info.calibration).numpy()
        for place, agrees in zip(places, task.output.agree(probs, predictions, near).tolist(), strict=True):
            agreed[place] = agrees and agreed.get(place, True)
        # `max` and `fmax` would pass over NaN
        if task.output.compared.measured:
            farthest = float(np.maximum(farthest, (np.abs(probs - predictions) / scale).max()))
        if logits is not None:
            apart = float(np.maximum(apart or 0.0, np.abs(logits - expected).max()))
        largest = max(largest, float(np.abs(expected).max()))
        example = images if example is None or (not inside and len(example) < len(images) <= _TIMED) else example
        if progress is not None:
            progress(len(agreed), len(paths))
    if example is None:
        raise ExportError(f"none of the {len(paths)} pictures can be read - pass --data with others")
    ratio = _speed(exported, predictor, example, inside) if timed else None
    unlike = float(np.mean(moved)) if moved else None
    return Comparison(
        len(agreed), sum(agreed.values()), farthest, apart, largest, ratio, len(example), unlike, task.output.compared
    )


def _batches(
    predictor: Predictor, paths: Sequence[str], inside: bool, mixing: bool, alone: bool
) -> Iterator[tuple[list[int], npt.NDArray[Any], npt.NDArray[np.uint8]]]:
    """Yield the numbers of pictures, what the exported model is given, and the run's own view of them."""
    config = predictor.info.preprocessing
    transform = eval_transform(config)
    shapes: dict[int, tuple[int, ...]] = {}
    again = _other_company(len(paths), inside, shapes) if mixing and not alone else iter(())
    first = ([place] for place in range(len(paths))) if alone else _plan(len(paths), inside)
    for places in chain(first, again):
        decoded: dict[int, npt.NDArray[np.uint8]] = {}
        for place in places:
            try:
                if place not in decoded:
                    decoded[place] = decode_image(paths[place], min_side=config.decode_side, decoding=config.decoding)
            except UnreadableImage:
                continue
        readable = [place for place in places if place in decoded]
        if not readable:
            continue
        shown = np.stack([transform(decoded[place], part=_part(decoded[place], config)) for place in readable])
        if inside:
            shapes |= {place: decoded[place].shape for place in readable}
            yield readable, np.stack([decoded[place] for place in readable]), shown
        else:
            yield readable, normalise(torch.from_numpy(shown), config).contiguous().numpy(), shown


def _part(pixels: npt.NDArray[np.uint8], config: DataConfig) -> int:
    """Return the window that models which see windows are compared on."""
    return middle_window((pixels.shape[0], pixels.shape[1]), config) if config.tiled else 0


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


def _other_company(count: int, inside: bool, shapes: Mapping[int, tuple[int, ...]]) -> Iterator[list[int]]:
    """Yield each picture alone; `inside`, where it went alone already, with others of its size, by `shapes`."""
    if not inside:
        yield from ([place] for place in range(count))
        return
    alike: dict[tuple[int, ...], list[int]] = {}
    for place, shape in sorted(shapes.items()):
        alike.setdefault(shape, []).append(place)
    for places in alike.values():
        batches = (places[start : start + _SIZES[-1]] for start in range(0, len(places), _SIZES[-1]))
        yield from (batch for batch in batches if len(batch) > 1)


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
            predictor.module.task.predictions(predictor.module(images), predictor.info.calibration)

    sides: tuple[Callable[[], object], ...] = (lambda: exported(example), eager)
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(_ROUNDS + 1):
        for side, times in zip(sides, seconds, strict=True):
            started = time.perf_counter()
            side()
            if number:  # the first one warms up
                times.append(time.perf_counter() - started)
    return statistics.median(seconds[1]) / statistics.median(seconds[0])
