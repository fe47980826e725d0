"""The `explain` verb: a page per picture, with its evidence and the nearest training pictures, and a table of all."""

from __future__ import annotations

import hashlib
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np

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
from transferkit.core.text import listing
from transferkit.data.images.channels import Pixels, as_rgb
from transferkit.data.images.decode import decode_image, read_bytes
from transferkit.data.scan.named import find_pictures, warn_of_unread
from transferkit.models.parts import Request
from transferkit.options.results import ExplainConfig
from transferkit.results.explain.gradcam import Heat, heat_of_windows, heatmaps
from transferkit.results.explain.neighbours import Neighbour, TrainingNeighbours
from transferkit.results.explain.page import TOP, Evidence, draw_page
from transferkit.results.explain.pictures import enlarged, on_picture
from transferkit.results.predict.files import files_of
from transferkit.results.predict.predictor import Predictor, load
from transferkit.show.progress import counting_bar, output_console, progress_console

__all__ = ["explain"]

TABLE: Final = "explain.csv"
FILE: Final = "mask"
"""What the file of a record is called, after its page."""

AT_ONCE = 16
"""Pictures explained at once."""

SHOWN_SIDE = 320
"""Longer side, in pixels, that pictures are shown at."""

ONE: Final = Request(top_k=1)
"""What the table says of a prediction."""


def explain(config: ExplainConfig) -> Path:
    """Write, for every picture, a PNG that shows why the model says what it says, and `explain.csv` about all.

    A page shows what the network sees of the picture, neither stretched nor padded, where in it the evidence for the
    target lies (see `heatmaps`), the most probable classes, and the training pictures nearest to it. The table has a
    row per picture: ``path``, what is predicted (of classification ``label, probability``), ``target, png``, then
    ``neighbour_1, label_1, similarity_1`` and so on, then ``error``. Masks lie beside their pages, and the table names
    them.

    Args:
        config: The options.

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
    unread: Counter[str] = Counter()
    paths = list(find_pictures(config.paths, sys.stdin, unread))
    warn_of_unread(unread)
    predictor = load(
        config.run, accelerator=config.accelerator, precision=config.precision, max_pixels=config.max_pixels
    )
    names = predictor.class_names
    if config.target is not None and config.target not in names:
        raise ConfigError(
            f"--target {config.target!r} is no class of this model.{did_you_mean(config.target, names)} It has: "
            f"{listing(names, limit=20)}"
        )
    console = progress_console(config.quiet)
    neighbours = None
    if config.neighbours and predictor.info.preprocessing.tiled:
        warnings.warn(
            "pages without nearest training pictures: those are compared as a whole, and this model sees windows",
            TransferkitWarning,
            stacklevel=2,
        )
    elif config.neighbours:
        with counting_bar(console, "training pictures") as progress:
            neighbours = TrainingNeighbours(config.run, predictor, config.store, progress, config.rescan)
    with storage_errors("create", out):
        out.mkdir(parents=True, exist_ok=True)
    explainer = _Explainer(config, predictor, neighbours, len(paths))
    top = TOP if predictor.module.task.output.names_one else None  # of labels and numbers every one is shown
    predictions = predictor.stream(paths, top_k=top, batch_size=config.batch_size, workers=config.workers)
    rows: list[tuple[object, ...]] = []
    with counting_bar(console, "explaining") as progress:
        while part := list(islice(predictions, AT_ONCE)):
            for row in explainer.rows(part):
                rows.append(row)
                if progress is not None:
                    progress(len(rows), len(paths))
    atomic_write(out / TABLE, csv_text([explainer.header, *rows]))
    failed = sum(bool(row[-1]) for row in rows)
    if not config.quiet:
        output_console().print(f"{len(rows) - failed} pictures explained in {out}", soft_wrap=True)
    if failed:
        raise ExportError(f"{failed} of {len(rows)} pictures could not be read; their rows in {out / TABLE} say why")
    return out


@dataclass(frozen=True)
class _Picture:
    """A picture that can be explained: its record, its evaluation view, the digest of its file, and the target."""

    record: Any
    view: Pixels
    sha256: str
    target: str


class _Explainer:
    """Draws the pages and says what is on them.

    Args:
        config: The options.
        predictor: The model.
        neighbours: Finds training pictures; ``None`` for none.
        total: Number of pictures.
    """

    def __init__(
        self, config: ExplainConfig, predictor: Predictor, neighbours: TrainingNeighbours | None, total: int
    ) -> None:
        self.config = config
        self.predictor = predictor
        self.neighbours = neighbours
        self._output, self._spec = predictor.module.task.output, predictor.info.target_spec
        self._files = files_of(predictor.module)
        self._request = replace(ONE, files=self._files is not None)
        self._digits = max(4, len(str(total)))
        self._number = 0
        self._has_heat = True
        self._thumbnail = lru_cache(maxsize=512)(self._shown)
        columns = [
            f"{name}_{place}"
            for place in range(1, config.neighbours + 1)
            for name in ("neighbour", "label", "similarity")
        ]
        self.header = ("path", *self._output.header(self._spec, self._request), "target", "png", *columns, "error")

    def rows(self, records: Sequence[Any]) -> Iterator[tuple[object, ...]]:
        """Draw pages and yield their rows, in order."""
        opened = [self._open(record) for record in records]
        pictures = [picture for picture in opened if isinstance(picture, _Picture)]
        heats, near = iter(self._heats(pictures)), iter(self._near(pictures))
        for record, picture in zip(records, opened, strict=True):
            self._number += 1
            if isinstance(picture, _Picture):
                yield self._explained(picture, next(heats), next(near))
            else:
                unreadable = self._output.unreadable(record.path, picture)
                yield self._row(unreadable, self.config.target or "", "", [], picture)

    def _open(self, record: Any) -> _Picture | str:
        """Return what is needed to explain a picture, or why it cannot be read."""
        if record.error is not None:
            return str(record.error)
        try:
            data = read_bytes(record.path)
            view = self._view(data)
        except DataError as error:  # it has gone since it was predicted
            return str(error)
        target = self.config.target or self._output.answer(record, self._spec)
        return _Picture(record, view, hashlib.sha256(data).hexdigest(), target)

    def _view(self, data: bytes) -> Pixels:
        """Return what is explained of a picture: what the network sees; of windows, all of it."""
        config = self.predictor.info.preprocessing
        return decode_image(data, decoding=config.decoding) if config.tiled else self.predictor.decode(data)

    def _heats(self, pictures: Sequence[_Picture]) -> Sequence[Heat | None]:
        """Return heat maps; none for a model that cannot have any, which is said once."""
        if self._has_heat and pictures:
            try:
                if self.predictor.info.preprocessing.tiled:
                    return [heat_of_windows(self.predictor, one.view, one.target) for one in pictures]
                views = np.stack([picture.view for picture in pictures])
                return list(heatmaps(self.predictor, views, [picture.target for picture in pictures]))
            except ConfigError as error:
                self._has_heat = False
                warnings.warn(f"pages without heat maps: {error}", TransferkitWarning, stacklevel=4)
        return [None] * len(pictures)

    def _near(self, pictures: Sequence[_Picture]) -> Sequence[list[Neighbour]]:
        if self.neighbours is None or not pictures:
            return [[] for _ in pictures]
        views, hashes = [picture.view for picture in pictures], [picture.sha256 for picture in pictures]
        return self.neighbours.nearest(views, hashes, self.config.neighbours)

    def _explained(self, picture: _Picture, heat: Heat | None, near: Sequence[Neighbour]) -> tuple[object, ...]:
        """Draw the page of a picture, and return its row."""
        record, path = picture.record, picture.record.path
        shown = self._shown(path)
        if heat is not None and shown is not None:
            heat = on_picture(heat, shown, self.predictor.info.preprocessing)
        evidence = Evidence(
            path, as_rgb(picture.view) if shown is None else shown, self._output.answer(record, self._spec),
            self._output.shares(record, self._spec), picture.target, heat,
            [(one, self._thumbnail(one.path)) for one in near],
            self._output.compared.share,
            dict(zip(self._output.header(self._spec, self._request), self._first(record), strict=True)),
        )  # fmt: skip
        name = _file_name(path, self._number, self._digits)
        draw_page(evidence, Path(self.config.out) / name)
        return self._row(self._filed(record, name), picture.target, name, near, "")

    def _filed(self, record: Any, page: str) -> Any:
        """Return a record whose file, such as a mask, lies beside the page; as it is where it has none."""
        if self._files is None:
            return record
        name = f"{Path(page).stem}.{FILE}{self._files.ending}"
        atomic_write(Path(self.config.out) / name, self._files.content(record, self._spec))
        return self._files.written(record, name)

    def _row(
        self, record: Any, target: str, page: str, near: Sequence[Neighbour], error: str
    ) -> tuple[object, ...]:  # fmt: skip
        cells = [cell for one in near for cell in (one.path, one.label, f"{one.similarity:.4f}")]
        cells += [""] * (3 * self.config.neighbours - len(cells))
        return (record.path, *self._first(record), target, page, *cells, error)

    def _first(self, record: Any) -> list[object]:
        """Return the first row of a record: of several, that of what the model is most sure of."""
        first: list[object] = self._output.cells(record, self._spec, self._request)[0]
        return first

    def _shown(self, path: str) -> Pixels | None:
        """Return what the network sees of a picture, at a size to look at; ``None`` where it cannot be read."""
        try:
            return enlarged(path, self.predictor.info.preprocessing, SHOWN_SIDE)
        except DataError:
            return None


def _file_name(path: str, number: int, digits: int) -> str:
    """Return the name of a page: unlike all others by its number, and without a character that means something."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(path).stem).strip("_-")[:60]
    return f"{number:0{digits}d}-{stem}.png" if stem else f"{number:0{digits}d}.png"
