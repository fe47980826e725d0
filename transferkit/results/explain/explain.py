"""Why a model says what it says: a page per picture, with its evidence and the training pictures nearest to it."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Final, TextIO

import cv2
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from rich.console import Console

from transferkit.core.csv import csv_text
from transferkit.core.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    ExportError,
    TransferkitWarning,
    did_you_mean,
)
from transferkit.core.files import atomic_write, storage_errors
from transferkit.core.records import DataConfig
from transferkit.core.text import listing
from transferkit.data.images.decode import Pixels, decode_image, read_bytes
from transferkit.data.images.resize import fit
from transferkit.options.results import ExplainConfig
from transferkit.results.explain.gradcam import COLOURS, Heat, heatmaps, overlay
from transferkit.results.explain.neighbours import Neighbour, TrainingNeighbours
from transferkit.results.predict.pictures import find_pictures
from transferkit.results.predict.predictor import Predictor, load
from transferkit.results.predict.record import Prediction
from transferkit.show.charts import save_figure
from transferkit.show.progress import counting_bar, progress_console

__all__ = ["confident_mistakes", "explain"]

TABLE: Final = "explain.csv"

TOP = 5
"""Most probable classes that a page shows."""

AT_ONCE = 16
"""Pictures explained at once."""

SHOWN_SIDE = 320
"""Longer side, in pixels, that pictures are shown at."""

PER_ROW = 5
"""Training pictures beside each other."""

SIDE, SMALL, ROW = 3.0, 1.72, 2.3
"""Inches: side of the picture, side of a training picture, height of a row of these with their labels."""

INK, FAINT, BAR, TARGET = "#222222", "#666666", "#9db8d9", "#1f5fa8"


def explain(config: ExplainConfig, *, stdin: TextIO | None = None) -> Path:
    """Write, for every picture, a PNG that shows why the model says what it says, and `explain.csv` about all.

    A page shows the picture as it is cropped for the network, where in it the evidence for the target lies (see
    `heatmaps`), the most probable classes, and the training pictures nearest to it. The table has a row per picture:
    ``path, label, probability, target, png``, then ``neighbour_1, label_1, similarity_1`` and so on, then ``error``.

    Args:
        config: The options.
        stdin: Where the path ``-`` reads its list; standard input when ``None``.

    Returns:
        The directory.

    Raises:
        ConfigError: The model has no class of the target's name.
        CheckpointError: The run is no finished one, does not say what it was trained on, or `out` is taken.
        DataError: There are no pictures, or none of the training pictures is left.
        ExportError: Some pictures could not be read; their rows say why, and the others are done.
        StorageError: The disk is full or read-only.
    """
    out = Path(config.out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise CheckpointError(f"{out}: is there already, expected a new or empty directory - give another --out")
    paths = list(find_pictures(config.paths, stdin if stdin is not None else sys.stdin))
    predictor = load(config.run, accelerator=config.accelerator, precision=config.precision)
    names = predictor.class_names
    if config.target is not None and config.target not in names:
        raise ConfigError(
            f"--target {config.target!r} is no class of this model.{did_you_mean(config.target, names)} It has: "
            f"{listing(names, limit=20)}"
        )
    console = progress_console(config.quiet)
    neighbours = None
    if config.neighbours:
        with counting_bar(console, "training pictures") as told:
            neighbours = TrainingNeighbours(config.run, predictor, config.store, told)
    with storage_errors("create", out):
        out.mkdir(parents=True, exist_ok=True)
    explainer = _Explainer(predictor, neighbours, config.neighbours, config.target, out, len(paths))
    predictions = predictor.stream(paths, top_k=TOP, batch_size=config.batch_size, workers=config.workers)
    rows: list[tuple[object, ...]] = []
    with counting_bar(console, "explaining") as told:
        while part := list(islice(predictions, AT_ONCE)):
            for row in explainer.explain(part):
                rows.append(row)
                if told is not None:
                    told(len(rows), len(paths))
    atomic_write(out / TABLE, csv_text([explainer.header, *rows]))
    failed = sum(bool(row[-1]) for row in rows)
    if not config.quiet:
        Console(highlight=False).print(
            f"{len(rows) - failed} pictures explained in {out}", soft_wrap=True, markup=False
        )
    if failed:
        raise ExportError(f"{failed} of {len(rows)} pictures could not be read; their rows in {out / TABLE} say why")
    return out


def confident_mistakes(rows: Sequence[Mapping[str, str]], k: int) -> list[Mapping[str, str]]:
    """Return the k mistakes that the model was surest of, the surest first; of equally sure ones in the order of paths.

    Args:
        rows: Of `predictions.csv`: ``label``, ``predicted``, ``probability`` and ``path`` are looked at. Rows without a
            prediction are left out.
        k: How many.
    """
    mistakes = [row for row in rows if row["predicted"] and row["predicted"] != row["label"]]
    return sorted(mistakes, key=lambda row: (-float(row["probability"]), row["path"]))[: max(0, k)]


class _Explainer:
    """Draws the pages and says what is on them.

    Args:
        predictor: The model.
        neighbours: Finds training pictures; ``None`` for none.
        k: How many of them.
        target: The class whose evidence is shown; ``None`` for the predicted one.
        out: Where pages go.
        total: Number of pictures.
    """

    def __init__(
        self,
        predictor: Predictor,
        neighbours: TrainingNeighbours | None,
        k: int,
        target: str | None,
        out: Path,
        total: int,
    ) -> None:
        self.predictor = predictor
        self.neighbours = neighbours
        self.k = k
        self.target = target
        self.out = out
        self._digits = max(4, len(str(total)))
        self._number = 0
        self._has_heat = True
        self._large = _large_config(predictor.info.preprocessing)
        self._thumbnail = lru_cache(maxsize=512)(self._show)
        columns = [f"{name}_{place}" for place in range(1, k + 1) for name in ("neighbour", "label", "similarity")]
        self.header = ("path", "label", "probability", "target", "png", *columns, "error")

    def explain(self, predictions: Sequence[Prediction]) -> Iterator[tuple[object, ...]]:
        """Draw pages and yield their rows, in order."""
        views: dict[int, Pixels] = {}
        hashes: dict[int, str] = {}
        errors = {at: prediction.error for at, prediction in enumerate(predictions) if prediction.error is not None}
        for at, prediction in enumerate(predictions):
            if at in errors:
                continue
            try:
                data = read_bytes(prediction.path)
                views[at], hashes[at] = self.predictor.decode(data), hashlib.sha256(data).hexdigest()
            except DataError as error:  # it has gone since it was predicted
                errors[at] = str(error)
        targets = [self.target or str(predictions[at].label) for at in views]
        stacked = np.stack(list(views.values())) if views else None
        heat = None if stacked is None else self._heat(stacked, targets)
        near: list[list[Neighbour]] = [[] for _ in views]
        if self.neighbours is not None and stacked is not None:
            near = self.neighbours.nearest(list(stacked), self.k, sha256s=list(hashes.values()))
        place = {at: number for number, at in enumerate(views)}
        for at, prediction in enumerate(predictions):
            self._number += 1
            if at in errors:
                empty = [""] * (3 * self.k)
                yield (prediction.path, "", "", self.target or "", "", *empty, errors[at])
                continue
            found = near[place[at]]
            name = _file_name(prediction.path, self._number, self._digits)
            self._draw(
                self.out / name, prediction, targets[place[at]], views[at],
                None if heat is None else heat[place[at]], found,
            )  # fmt: skip
            cells = [cell for one in found for cell in (one.path, one.label, f"{one.similarity:.4f}")]
            cells += [""] * (3 * self.k - len(cells))
            yield (prediction.path, prediction.label, f"{prediction.probability:.6f}", targets[place[at]], name, *cells,
                   "")  # fmt: skip

    def _heat(self, views: Pixels, targets: Sequence[str]) -> Heat | None:
        """Return heat maps, or ``None`` for a model that cannot have any, which is told once."""
        if not self._has_heat:
            return None
        try:
            return heatmaps(self.predictor, views, [self.predictor.class_names.index(target) for target in targets])
        except ConfigError as error:
            self._has_heat = False
            warnings.warn(f"pages without heat maps: {error}", TransferkitWarning, stacklevel=4)
            return None

    def _show(self, path: str) -> Pixels | None:
        """Return what the network sees of a picture, at a size to look at; ``None`` where it cannot be read."""
        try:
            return fit(decode_image(path, min_side=self._large.decode_side), self._large)
        except DataError:
            return None

    def _draw(
        self, path: Path, prediction: Prediction, target: str, view: Pixels, heat: Heat | None,
        near: Sequence[Neighbour],
    ) -> None:  # fmt: skip
        shown = self._show(prediction.path)
        shown = view if shown is None else shown
        with rc_context({"text.parse_math": False, "text.color": INK, "font.size": 9}), warnings.catch_warnings():
            # A class name in a script that the font has not is drawn as boxes; the table has it.
            warnings.filterwarnings("ignore", "Glyph .* missing from")
            page = _Page(rows=-(-len(near) // PER_ROW))
            page.say(0.0, 0.12, _text(prediction.path, 110, keep_end=True), color=FAINT)
            axis = _picture(page.axes(0.0, 0.75, SIDE, SIDE), shown)
            axis.set_title(f"{_text(str(prediction.label), 24)}, {prediction.probability:.1%}", fontweight="bold")
            self._draw_heat(page, shown, heat, target)
            axis = page.axes(2 * SIDE + 0.6, 0.75, 2.8, SIDE)
            _draw_classes(axis, prediction, target, self.predictor.class_names)
            if near:
                page.say(0.0, 4.4, "nearest training pictures, with cosine similarity", color=FAINT)
            for place, one in enumerate(near):
                row, column = divmod(place, PER_ROW)
                axis = page.axes(column * (SMALL + 0.2), 4.98 + row * ROW, SMALL, SMALL)
                thumbnail = self._thumbnail(one.path)
                if thumbnail is None:
                    _words(axis, "cannot be read")
                else:
                    _picture(axis, thumbnail)
                axis.set_title(f"{_text(one.label, 22)}\n{one.similarity:.3f}", fontsize="medium")
            save_figure(page.figure, path)

    def _draw_heat(self, page: _Page, shown: Pixels, heat: Heat | None, target: str) -> None:
        axis = page.axes(SIDE + 0.2, 0.75, SIDE, SIDE)
        axis.set_title(f"evidence for {_text(target, 24)}")
        if heat is None:
            _words(axis, "this model has no heat maps")
            return
        large = cv2.resize(heat, (shown.shape[1], shown.shape[0]), interpolation=cv2.INTER_LINEAR).astype(np.float32)
        _picture(axis, overlay(shown, large))
        if not heat.any():
            axis.set_xlabel("no place speaks for it", color=FAINT)
            return
        scale = page.axes(SIDE + 0.6, 3.9, SIDE - 0.8, 0.09)
        bar = page.figure.colorbar(ScalarMappable(cmap=COLOURS), cax=scale, orientation="horizontal")
        bar.set_ticks([0.0, 1.0], labels=["none", "most"])
        scale.tick_params(length=0, labelsize="small", labelcolor=FAINT)


# ---- the page ---------------------------------------------------------------------------------------------------


class _Page:
    """A figure whose parts are placed in inches from its upper left corner, within a margin.

    Args:
        rows: Of training pictures.
    """

    def __init__(self, *, rows: int) -> None:
        self.size = (3 * SIDE + 1.0, 4.3 + (0.25 + rows * ROW if rows else 0.0))
        self.figure = Figure(figsize=self.size)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Return axes in a box."""
        across, down = self.size
        box = ((left + 0.3) / across, 1.0 - (top + height) / down, width / across, height / down)
        return self.figure.add_axes(box)

    def say(self, left: float, top: float, text: str, *, color: str) -> None:
        """Write a line."""
        self.figure.text((left + 0.3) / self.size[0], 1.0 - top / self.size[1], text, va="top", color=color)


def _picture(axis: Axes, picture: Pixels) -> Axes:
    axis.imshow(picture)
    axis.set_anchor("N")
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
    return axis


def _words(axis: Axes, words: str) -> None:
    axis.set_axis_off()
    axis.text(0.5, 0.5, words, ha="center", va="center", color=FAINT, transform=axis.transAxes)


def _draw_classes(axis: Axes, prediction: Prediction, target: str, names: Sequence[str]) -> None:
    """Draw the most probable classes as bars, the target among them even if it is not one of these."""
    shown = list(prediction.top)
    if target not in {name for name, _ in shown}:
        shown[-1:] = [(target, prediction.probs[names.index(target)])]
    axis.set_title("probability")
    axis.set_axis_off()
    axis.set_xlim(0.0, 1.2)
    axis.set_ylim(TOP, 0)
    for at, (name, p) in enumerate(shown):
        axis.text(0.0, at + 0.4, _text(name, 32), va="bottom", fontweight="bold" if name == target else "normal")
        axis.barh(at + 0.62, p, height=0.34, color=TARGET if name == target else BAR)
        axis.text(p + 0.02, at + 0.62, f"{p:.1%}", va="center")


def _large_config(config: DataConfig) -> DataConfig:
    """Return the preparation that shows the same part of a picture, larger."""
    times = max(1.0, SHOWN_SIDE / max(config.image_size))
    height, width = (round(side * times) for side in config.image_size)
    return dataclasses.replace(config, image_size=(height, width))


def _text(text: str, most: int, *, keep_end: bool = False) -> str:
    """Return a text of other people's making, fit for one line: nothing unprintable, and not longer than `most`."""
    clean = "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}"
        for letter in text.encode("utf-8", "replace").decode("utf-8")
    )
    if len(clean) <= most:
        return clean
    return f"…{clean[1 - most :]}" if keep_end else f"{clean[: most - 1]}…"


def _file_name(path: str, number: int, digits: int) -> str:
    """Return the name of a page: unlike all others by its number, and without a character that means something."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(path).stem).strip("_-")[:60]
    return f"{number:0{digits}d}-{stem}.png" if stem else f"{number:0{digits}d}.png"
