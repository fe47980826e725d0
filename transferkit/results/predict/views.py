"""Pictures as a finished model is shown them: any source decoded once, one or several views of it, in order."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from transferkit.core.errors import ConfigError
from transferkit.core.records import DataConfig, Decoding, Window
from transferkit.data.augment.transform import Transform, eval_transform, train_transform
from transferkit.data.augment.views import sample_seed
from transferkit.data.batches.dataset import ImageDataset, Job, Loaded, Picture
from transferkit.data.batches.loader import BatchLoader
from transferkit.data.batches.workers import worker_errors
from transferkit.data.images.channels import from_array
from transferkit.data.images.corruption import corrupt
from transferkit.data.images.decode import Pixels, UnreadableImage, image_pixels
from transferkit.data.images.readers import Refused
from transferkit.data.images.resize import fit, mean_colour
from transferkit.data.images.windows import cut, middle_window, window_count, windows
from transferkit.features.engine.whole import NOT_FINITE, Output, Rows, outputs_of
from transferkit.machine.device import compute_threads

__all__ = [
    "CORNER_SHARE",
    "PredictionViews",
    "Shown",
    "Source",
    "load_sources",
    "load_windows",
    "name_sources",
    "window_outputs",
]

Source: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | Pixels
"""A path, the bytes of a file, a Pillow picture, or pixels ``(H, W, 3)`` or ``(H, W)`` uint8."""

CORNER_SHARE = 0.875
"""Side of a corner crop over that of the largest crop, at most: 224 of 256 pixels, as in ten-crop testing."""

KINDS = ("none", "flip", "5crop")
MOST_VIEWS = 100


@dataclass(frozen=True)
class PredictionViews:
    """The views of a picture that are averaged; the first is always the evaluation view.

    - ``"none"``: that one.
    - ``"flip"``: and its mirror image.
    - ``"5crop"``: and crops at the four corners of the picture (Krizhevsky et al. 2012), each with `crop_pct` of the
      sides of the largest crop, but at most `CORNER_SHARE`: where evaluation takes the whole picture, corners must not.
      They have the shape of the input, but for a model of squashed pictures that of the picture.
    - a number K: and K views of the augmentation ``"light"``, seeded by the content of the picture.

    Attributes:
        evaluation: The transform of the evaluation view.
        kind: ``"none"``, ``"flip"``, ``"5crop"``, ``"light"`` or ``"spoilt"``.
        augmented: The transform of augmented views; ``None`` when there are none.
        count: All views, V.
        seed: Of the augmentation.
        corruptions: Kind and strength of each spoilt view, see `corrupt`.
    """

    evaluation: Transform
    kind: str = "none"
    augmented: Transform | None = None
    count: int = 1
    seed: int = 0
    corruptions: tuple[tuple[str, int], ...] = ()

    @classmethod
    def spoilt(cls, config: DataConfig, corruptions: Sequence[tuple[str, int]], seed: int = 0) -> PredictionViews:
        """Return the evaluation view, and that view spoilt in each of the ways: not to be averaged.

        Args:
            config: How pictures must be prepared.
            corruptions: Kinds and strengths.
            seed: Of their chance.
        """
        if config.channels != len("RGB"):
            raise ConfigError(f"corruptions are of RGB pictures, and this model's have {config.channels} channel(s)")
        ways = tuple(corruptions)
        return cls(eval_transform(config), "spoilt", count=1 + len(ways), seed=seed, corruptions=ways)

    @classmethod
    def make(cls, config: DataConfig, tta: str | int = "none", seed: int = 0) -> PredictionViews:
        """Return the views that `tta` names.

        Args:
            config: How pictures must be prepared.
            tta: ``"none"``, ``"flip"``, ``"5crop"`` or a number of augmented views from 1 to 100.
            seed: Of the augmentation.

        Raises:
            ConfigError: `tta` is something else.
        """
        text, evaluation = str(tta), eval_transform(config)
        if text in KINDS:
            return cls(evaluation, text, count={"none": 1, "flip": 2, "5crop": 5}[text])
        if not (text.isdecimal() and 1 <= int(text) <= MOST_VIEWS):
            raise ConfigError(
                f"tta is {tta!r}, expected {', '.join(KINDS)} or a number of views from 1 to {MOST_VIEWS}"
            )
        augmented = train_transform("light", config, whole=config.crop_mode == "pad")
        return cls(evaluation, "light", augmented, 1 + int(text), seed)

    @property
    def mirrored(self) -> tuple[int, ...]:
        """The views that are mirror images."""
        return (1,) if self.kind == "flip" else ()

    def render(
        self, pixels: Pixels, sha256: str, views: Sequence[int], whole: tuple[int, int] | None = None
    ) -> list[Pixels]:
        """Return views ``(h, w, 3) uint8`` of one decoded picture, by their numbers in [0, V).

        Args:
            pixels: ``(H, W, 3) uint8``.
            sha256: What the picture is known by.
            views: Which.
            whole: See `Renderer.render`.
        """
        config = self.evaluation.config
        part = middle_window((pixels.shape[0], pixels.shape[1]), config) if config.tiled else 0
        first = self.evaluation(pixels, whole=whole, part=part)
        if self.kind == "flip":
            rendered = [first, first[:, ::-1]]
        elif self.kind == "5crop":
            rendered = [first, *self._corners(pixels)]
        elif self.augmented is not None:
            seeds = [sample_seed(self.seed, view, sha256) for view in range(1, self.count)]
            rendered = [first, *(self.augmented(pixels, seed) for seed in seeds)]
        else:
            seeds = [sample_seed(self.seed, view, sha256) for view in range(1, self.count)]
            rendered = [first, *(corrupt(first, *way, seed) for way, seed in zip(self.corruptions, seeds, strict=True))]
        return [rendered[view] for view in views]

    def _corners(self, pixels: Pixels) -> list[Pixels]:
        config = self.evaluation.config
        (height, width), (target_height, target_width) = pixels.shape[:2], config.image_size
        share = min(config.crop_pct, CORNER_SHARE)
        if config.crop_mode in ("squash", "pad"):
            box_height, box_width = share * height, share * width
        else:
            unit = share * min(height / target_height, width / target_width)
            box_height, box_width = unit * target_height, unit * target_width
        rows, columns = max(1, round(box_height)), max(1, round(box_width))
        places = [(top, left) for top in (0, height - rows) for left in (0, width - columns)]
        shown = config if config.crop_mode == "pad" else replace(config, crop_mode="squash")
        return [fit(pixels[top : top + rows, left : left + columns], shown) for top, left in places]


# ---- sources ----------------------------------------------------------------------------------------------------


def name_sources(sources: Iterable[Source], decoding: Decoding) -> Iterator[Picture]:
    """Yield a picture for every source; lazy.

    Args:
        sources: As many as you like.
        decoding: For Pillow pictures, which are decoded here.

    Raises:
        ConfigError: A source is none.
    """
    for position, source in enumerate(sources):
        yield _picture(f"images[{position}]", source, decoding)


def _picture(name: str, source: Source, decoding: Decoding) -> Picture:
    match source:
        case str():
            return Picture(source)
        case bytes():
            return Picture(name, content=source)
        case os.PathLike() if isinstance(path := os.fspath(source), str):
            return Picture(path)
        case Image.Image():
            # Here, not in a thread or process: one Pillow object may be listed twice, and two threads must not load it.
            try:
                return Picture(name, content=image_pixels(source, decoding=decoding, name=name))
            except UnreadableImage as error:
                return Picture(name, error=error)
        case np.ndarray() if source.dtype == np.uint8 and source.size:
            with contextlib.suppress(Refused):
                return Picture(name, content=from_array(source, decoding))
    kind = f"an array {source.shape} of {source.dtype}" if isinstance(source, np.ndarray) else type(source).__name__
    raise ConfigError(
        f"{name} is {kind}, expected a path, the bytes of a picture file, a Pillow image, or a uint8 array "
        f"(H, W, {decoding.channels})"
    )


def load_sources(
    sources: Iterable[Source],
    views: PredictionViews,
    *,
    batch_size: int,
    workers: int,
    threads: int,
    pin_memory: bool = False,
) -> Iterator[Loaded]:
    """Yield all sources, in order, in batches; taken from `sources` only as they are needed.

    Args:
        sources: As many as you like.
        views: How they are shown.
        batch_size: Pictures per batch.
        workers: Processes, started where there is more than one batch; 0 decodes in this process, between the batches.
        threads: Of this process.
        pin_memory: For copies to a GPU that do not block.

    Raises:
        ConfigError: A source is no picture.
        StorageError: A decoding process was killed or is silent.
    """
    numbers = tuple(range(views.count))
    jobs = (Job(picture, numbers) for picture in name_sources(sources, views.evaluation.config.decoding))
    yield from _load(
        ImageDataset([], views, threads=threads), jobs, batch_size, batch_size * views.count, workers, pin_memory
    )


class Shown(NamedTuple):
    """A window of a picture.

    Attributes:
        loaded: The picture, alone in its batch.
        pixels: ``(h, w, 3) uint8`` of the window; ``None`` where the picture cannot be read.
        window: Where it lies.
        size: Height and width of the picture, upright.
        last: Whether it is the picture's last.
    """

    loaded: Loaded
    pixels: Pixels | None = None
    window: Window | None = None
    size: tuple[int, int] | None = None
    last: bool = True


def load_windows(sources: Iterable[Source], config: DataConfig, *, workers: int) -> Iterator[Shown]:
    """Yield the windows of all sources, in order; of a picture that cannot be read a record without pixels.

    Pictures are decoded whole, one at a time, and their windows are cut as they are needed. Raises as `load_sources`.

    Args:
        sources: As many as you like.
        config: How they are decoded, and how large windows are.
        workers: Processes that decode; each has two pictures ready at most.
    """
    dataset = ImageDataset([], _AsItIs(eval_transform(config)))
    ground = mean_colour(config)
    for loaded in _load(dataset, map(Job, name_sources(sources, config.decoding)), 1, 0, workers, False):
        if loaded.errors[0] is not None:
            yield Shown(loaded)
            continue
        pixels: Pixels = loaded.images[0].numpy()
        size = pixels.shape[0], pixels.shape[1]
        count, known = window_count(size, config), loaded._replace(images=loaded.images[:0])  # windows outlive it
        for number, window in enumerate(windows(size, config), 1):
            yield Shown(known, cut(pixels, window, config.image_size, ground), window, size, number == count)


def window_outputs(
    sources: Iterable[Source],
    views: PredictionViews,
    run: Callable[[Tensor], Rows],
    *,
    batch_size: int,
    workers: int,
    threads: int | None,
) -> Iterator[Output]:
    """Yield an output for every window; batches are filled across pictures, and hold no more than they need.

    Args:
        sources: As many as you like.
        views: Of each window.
        run: Returns what the network says of ``(B, h, w, 3) uint8``.
        batch_size: Views per batch.
        workers: As for `load_windows`.
        threads: Of the network meanwhile; ``None`` for as many as there are.
    """
    waiting: list[Shown] = []
    with worker_errors(), compute_threads(threads):
        for shown in load_windows(sources, views.evaluation.config, workers=workers):
            waiting.append(shown)
            if len(waiting) == max(1, batch_size // views.count):
                yield from _seen(waiting, views, run)
                waiting = []
        yield from _seen(waiting, views, run)


def _seen(waiting: Sequence[Shown], views: PredictionViews, run: Callable[[Tensor], Rows]) -> Iterator[Output]:
    """Yield the outputs of some windows, of all their views."""
    pixels = [each for one in waiting if one.pixels is not None
              for each in ((one.pixels, one.pixels[:, ::-1]) if views.mirrored else (one.pixels,))]  # fmt: skip
    rows = run(torch.from_numpy(np.stack(pixels))) if pixels else ()
    logits = iter(rows[0].cpu().numpy().reshape(-1, views.count, *rows[0].shape[1:]) if rows else ())
    for one in waiting:
        (known,) = outputs_of(one.loaded, (), 1)
        if one.pixels is None:
            yield known
            continue
        mine = next(logits)
        finite = bool(np.isfinite(mine).all())
        yield replace(
            known, logits=mine if finite else None, error=None if finite else NOT_FINITE, size=one.size,
            window=one.window, last=one.last,
        )  # fmt: skip


@dataclass(frozen=True)
class _AsItIs:
    """Shows decoded pictures as they are; see `Renderer`."""

    evaluation: Transform

    def render(
        self, pixels: Pixels, sha256: str, views: Sequence[int], whole: tuple[int, int] | None = None
    ) -> list[Pixels]:
        return [pixels] * len(views)


def _load(
    dataset: ImageDataset, jobs: Iterable[Job], batch_size: int, rows: int, workers: int, pin_memory: bool
) -> Iterator[Loaded]:
    jobs, ahead = iter(jobs), max(2, batch_size)
    first = list(islice(jobs, ahead))
    chained = chain(first, jobs)
    batches = iter(lambda: list(islice(chained, batch_size)), [])
    workers = 0 if len(first) < ahead else workers  # all is here already
    try:
        yield from BatchLoader(dataset, rows=rows, workers=workers, pin_memory=pin_memory).load(batches)
    finally:
        dataset.close()
