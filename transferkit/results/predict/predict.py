"""The verb `predict`: pictures in, CSV, JSON lines or COCO results out, any number, by one process or several."""

from __future__ import annotations

import dataclasses
import sys
import time
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final, TextIO

from transferkit.core.errors import ConfigError, ExportError, did_you_mean
from transferkit.core.files import require_new_file, write_atomically
from transferkit.core.text import listing, printable
from transferkit.data.scan.named import (
    STDIN,
    class_folders,
    count_pictures,
    find_named_pictures,
    warn_of_unread,
)
from transferkit.models.parts import Record, Request
from transferkit.options.results import PredictConfig
from transferkit.results.boxes.coco import CocoNumbers
from transferkit.results.predict.files import Files, filling, masks_folder
from transferkit.results.predict.lines import ENDINGS, format_of, lines_of
from transferkit.results.predict.predictor import Predictor, load
from transferkit.show.progress import counting_bar, progress_console
from transferkit.training.ranks.connecting import connected, place_of_torchrun
from transferkit.training.ranks.parallel import gather, is_writer, on_first, rank, world

__all__ = ["predict_files"]

ROUND: Final = {"cpu": 512, "cuda": 8192}
"""Pictures of one process between two times that several processes meet."""

SHOWN_S: Final = 0.2
"""Seconds between two refreshes of what a reader or a person sees."""

Progress = Callable[[int, "int | None"], None]

_Named = tuple[str, str]
"""A picture, and what the file that belongs to its record is called."""


def predict_files(config: PredictConfig, stdin: TextIO | None = None) -> None:
    """Predict the class of every picture that a configuration names, and write a row for each, in order.

    Nothing but the file names of one folder is held for all pictures. A file appears when all is done; standard output
    gets rows as they come. Started by torchrun, each process predicts its part of the pictures, and the first writes.

    Args:
        config: The options.
        stdin: Where the path ``-`` is read from; the process's own when ``None``.

    Raises:
        ConfigError: An option does not fit the model, the paths or the machine.
        DataError: A path does not exist, or there is no picture at all.
        CheckpointError: The model is missing or damaged.
        ExportError: Pictures could not be read; their rows say why. With `strict`: the first such picture, and no file
            is written. With `check_classes`: the class folders are not the model's classes.
        StorageError: The disk is full or failing, or a decoding process was lost.
        TrainingError: Memory ran out, or a process was lost.
    """
    with connected(place_of_torchrun()):
        on_first(_check_out, config)
        predictor = load(
            config.run, accelerator=config.accelerator, precision=config.precision, max_pixels=config.max_pixels
        )
        if config.check_classes:
            on_first(_check_classes, config.paths, predictor)
        numbers = on_first(_check_format, config, predictor)
        counts = _Counts()
        console = progress_console(config.quiet or not is_writer())
        folder = on_first(masks_folder, config, predictor)
        with filling(predictor, folder) as files, counting_bar(console, "predicting") as progress:
            predictions = _predictions(predictor, config, stdin or sys.stdin, counts, progress, files)
            request = _request(config, predictor, files=folder is not None)
            lines = lines_of(predictions, format_of(config), request, predictor, numbers)
            if not is_writer():
                deque(predictions, maxlen=0)
            elif config.out is None:
                _print(lines)
                files.put_in_place()
            else:
                write_atomically(config.out, lambda temporary: _fill(temporary, lines, files))
        on_first(_conclude, config, counts, folder)


@dataclasses.dataclass
class _Counts:
    """What has been predicted, in all processes."""

    done: int = 0
    failed: int = 0
    abstained: int = 0
    unknown: int = 0
    total: int | None = None
    unread: Counter[str] = dataclasses.field(default_factory=Counter)


# ---- predictions ------------------------------------------------------------------------------------------------


def _predictions(
    predictor: Predictor, config: PredictConfig, stdin: TextIO, counts: _Counts, progress: Progress | None,
    files: Files,
) -> Iterator[Record]:  # fmt: skip
    """Yield every prediction, in every process, and count them."""
    pictures: list[Iterator[_Named]] = []

    def begin() -> int | None:
        entries = find_named_pictures(config.paths, stdin, counts.unread)
        pictures.append((path, files.name(below)) for path, below in entries)
        return count_pictures(config.paths)

    counts.total = on_first(begin)
    alone = world() == 1
    shown = 0.0
    for prediction in (
        _alone(predictor, config, pictures, counts.total, files)
        if alone
        else _together(predictor, config, pictures, files)
    ):
        counts.done += 1
        counts.failed += prediction.error is not None
        counts.abstained += prediction.abstained
        counts.unknown += config.unknown is not None and (prediction.unlike_training or 0.0) > config.unknown
        if config.strict and prediction.error is not None:
            on_first(_refuse, prediction)
        yield prediction
        if progress is not None and (now := time.monotonic()) - shown >= SHOWN_S:
            shown = now
            progress(counts.done, counts.total)


def _alone(
    predictor: Predictor, config: PredictConfig, pictures: Sequence[Iterator[_Named]], total: int | None, files: Files
) -> Iterator[Record]:
    return _stream(predictor, config, pictures[0], total, files)


def _together(
    predictor: Predictor, config: PredictConfig, pictures: Sequence[Iterator[_Named]], files: Files
) -> Iterator[Record]:
    """Yield what all processes predict, in all of them; `pictures` is known to the first alone."""
    size = ROUND.get(predictor.device, ROUND["cpu"]) * world()
    while part := on_first(lambda: list(islice(pictures[0], size))):
        mine = part[rank() :: world()]
        parts = gather(list(_stream(predictor, config, iter(mine), len(mine), files)))
        yield from (parts[at % world()][at // world()] for at in range(len(part)))


def _stream(
    predictor: Predictor, config: PredictConfig, pictures: Iterator[_Named], total: int | None, files: Files
) -> Iterator[Record]:
    """Yield the predictions of pictures, what belongs into files written already."""
    names: deque[str] = deque()

    def paths() -> Iterator[str]:
        for path, name in pictures:
            names.append(name)
            yield path

    records = predictor.stream(
        paths() if total is None else _Counted(paths(), total),
        tta=config.tta,
        top_k=config.top_k,
        abstain=config.abstain,
        abstain_by=config.abstain_by,
        coverage=config.coverage,
        unknown=config.unknown,
        batch_size=config.batch_size,
        workers=config.workers,
        seed=config.seed,
        whole=format_of(config) == "coco",
    )
    return (files.written(record, names.popleft()) for record in records)


class _Counted:
    """Paths whose number is known before they are."""

    def __init__(self, paths: Iterator[str], total: int) -> None:
        self.paths = paths
        self.total = total

    def __iter__(self) -> Iterator[str]:
        return self.paths

    def __len__(self) -> int:
        return self.total


def _refuse(prediction: Record) -> None:
    raise ExportError(
        f"cannot read picture {prediction.path!r}: {prediction.error} - replace or remove it, or leave out --strict"
    )


def _conclude(config: PredictConfig, counts: _Counts, folder: str | None) -> None:
    """Say in the first process how it ended."""
    warn_of_unread(counts.unread)
    if config.out is not None and not config.quiet:
        parts = [f"{counts.failed:,} unreadable"] if counts.failed else []
        parts += [f"{counts.abstained:,} without a label"] if config.abstain is not None else []
        parts += [f"{counts.unknown:,} unknown"] if config.unknown is not None else []
        parts += [f"in {config.out}", *([] if folder is None else [f"masks in {folder}"])]
        print(", ".join([f"predicted  {counts.done:,} pictures", *parts]), flush=True)
    if counts.failed:
        raise ExportError(
            f"{counts.failed:,} of {counts.done:,} pictures could not be read; their rows say why - replace or remove "
            "them, and run again"
        )


def _check_classes(paths: Sequence[str], predictor: Predictor) -> None:
    """Compare the class folders of every folder with the model's classes."""
    class_names, task = predictor.class_names, predictor.module.task
    if not task.output.names_one:
        raise ConfigError(
            f"--check-classes compares folders with classes, and a model of {task.name} has none - leave it out"
        )
    folders = [path for path in paths if path != STDIN and Path(path).is_dir()]
    if not folders:
        raise ConfigError("--check-classes needs a folder of class folders, found none among the paths - leave it out")
    expected = {unicodedata.normalize("NFC", name) for name in class_names}
    for folder in folders:
        here = class_folders(folder, class_names)
        if here != expected:
            unknown, missing = sorted(here - expected), sorted(expected - here)
            lacks = [f"the model lacks {listing(unknown, limit=len(unknown))}"] if unknown else []
            lacks += [f"the folder lacks {listing(missing, limit=len(missing))}"] if missing else []
            raise ExportError(
                f"{folder}: its class folders are not the classes of the model: {' and '.join(lacks)} - rename them, "
                "or leave out --check-classes; predictions do not depend on the names of folders"
            )


def _request(config: PredictConfig, predictor: Predictor, *, files: bool) -> Request:
    """Return which columns are wanted."""
    sets = config.abstain is not None and config.abstain_by != "thresholds"
    return Request(top_k=config.top_k, sets=sets, unlike=predictor.module.unlike is not None, files=files)


# ---- where they go ----------------------------------------------------------------------------------------------


def _check_format(config: PredictConfig, predictor: Predictor) -> CocoNumbers | None:
    """Refuse COCO results of a model that finds no objects; return the numbers of theirs that a file gives."""
    task = predictor.module.task
    if format_of(config) != "coco":
        if config.coco_ids is not None:
            raise ConfigError("--coco-ids is for COCO results - pass --format coco too, or an --out that ends in .json")
        return None
    if task.output.objects is None:
        asked = "--format coco" if config.format == "coco" else f"--out {config.out}: .json"
        raise ConfigError(
            f"{asked} is for COCO results, which list the objects of pictures, and a model of {task.name} finds none - "
            "write .csv or .jsonl"
        )
    return None if config.coco_ids is None else CocoNumbers.read(config.coco_ids, predictor.info.target_spec)


def _check_out(config: PredictConfig) -> None:
    """Refuse a file that cannot be written to, before any work is done."""
    if config.out is None:
        return
    path = Path(config.out)
    if not format_of(config):
        raise ConfigError(
            f"--out {path}: unknown ending {path.suffix!r}.{did_you_mean(path.suffix, ENDINGS)} Known: "
            f"{', '.join(ENDINGS)} - or pass --format"
        )
    require_new_file(path, overwrite=config.overwrite)


def _fill(path: Path, lines: Iterable[str], files: Files) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        stream.writelines(lines)
    files.put_in_place()


def _print(lines: Iterable[str]) -> None:
    """Write lines to standard output as they come; on a terminal with control characters made visible."""
    stream, flushed = sys.stdout, 0.0
    terminal = stream.isatty()
    for line in lines:
        stream.write(_shown(line, stream.encoding, terminal=terminal))
        if (now := time.monotonic()) - flushed >= SHOWN_S:
            flushed = now
            stream.flush()
    stream.flush()


def _shown(line: str, encoding: str | None, *, terminal: bool) -> str:
    """Return a line as the stream takes it: file names can hold terminal escapes, and characters it cannot encode."""
    if terminal:
        line = printable(line)
    return line.encode(encoding or "utf-8", "backslashreplace").decode(encoding or "utf-8")
