"""The `check` verb: what a data set holds and what is wrong with it, before anything is trained.

The files are scanned and read; what needs no network is judged by the index, as in `finetune`, and by `files`, `layout`
and `copies`; a network is loaded only for what needs one: likely wrong labels and mirrored classes (`labels`). What
comes of it is an `Audit`, which is printed, and written as `check.json` and `check.html` (`page`). `fix` makes a
manifest of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
from rich.console import Console
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from transferkit.core.errors import (
    BackboneError,
    ConfigError,
    DataError,
    StorageError,
    TransferkitError,
    TransferkitWarning,
    gather,
)
from transferkit.core.files import storage_errors, write_json
from transferkit.core.records import Finding
from transferkit.data.batches.statistics import ranged
from transferkit.data.images.known_files import read_files
from transferkit.data.images.reading import CHECK_SIDE, ReadResult
from transferkit.data.images.sketchbook import Sketchbook
from transferkit.data.index.boxes import BoxReader
from transferkit.data.index.copies import find_copies
from transferkit.data.index.index import CLASSES, ImageIndex, build_index
from transferkit.data.index.labels import LabelReader
from transferkit.data.index.masks import MaskReader
from transferkit.data.index.numbers import NumberReader
from transferkit.data.index.targets import DETECTION, PicturesRead, TargetReader, task_name
from transferkit.data.scan.columns import Columns
from transferkit.data.scan.records import Kind, Scan
from transferkit.data.scan.scan import scan_data
from transferkit.machine.cores import available_cores
from transferkit.options.features import CheckConfig
from transferkit.results.audit.copies import Families, copy_issues, families_of
from transferkit.results.audit.files import file_issues
from transferkit.results.audit.fix import check_target, write_manifest
from transferkit.results.audit.labels import label_issues
from transferkit.results.audit.layout import layout_issues, window_issue
from transferkit.results.audit.outliers import ENOUGH, looks, outliers
from transferkit.results.audit.record import OBJECTS, PICTURES, Audit, Issue, Pictures, Row, issue_of
from transferkit.results.audit.summary import print_audit
from transferkit.runs.directory import LOCK, named_run_dir
from transferkit.show.progress import counting_bar, output_console, progress_console, waiting

if TYPE_CHECKING:
    from transferkit.features.engine.compute import FrozenBackbone
    from transferkit.results.audit.network import Sight

__all__ = ["audit", "check"]

PAGE, TABLE = "check.html", "check.json"

READERS: Final[dict[str, TargetReader]] = {
    "classification": CLASSES, "multilabel": LabelReader(), "regression": NumberReader(),
    "segmentation": MaskReader(), DETECTION: BoxReader(),
}  # fmt: skip
"""What reads the answers of the tasks of this package: `check` starts without torch, and so without `Task`."""

OF_FILES: Final = (Kind.UNREADABLE, Kind.WRONG_NAME, Kind.MODE, Kind.DEPTH, Kind.ONE_COLOUR)
"""Findings of the index that `files` tells with more detail."""

NEEDS_NETWORK = "likely wrong labels, mirrored classes, and what features tell of copies and outliers"

ORDER: Final = (
    Kind.LAYOUT, Kind.NO_TRAIN, Kind.CLASS_NAMES, Kind.ONE_CLASS, Kind.EMPTY, Kind.UNTRAINED, Kind.UNREADABLE,
    Kind.MASK, Kind.BOX, Kind.LEAK, Kind.WRONG_LABEL, Kind.NEAR_COPY, Kind.MIRROR, Kind.GROUP, Kind.THIN, Kind.COPY,
    Kind.ONE_COLOUR, Kind.OUTLIER, Kind.WRONG_NAME, Kind.SIZE, Kind.IMBALANCE, Kind.DEPTH, Kind.MODE, Kind.NOTE,
)  # fmt: skip
"""Of the kinds, those that call for an answer first."""


def check(config: CheckConfig) -> None:
    """Do what the verb does: audit, print, write.

    Raises:
        ConfigError: A file that would be written is there already.
        DataError: There is no data set; after printing and writing, when `finetune` would refuse it with these options,
            or would still refuse the cleaned manifest.
        StorageError: What is written cannot be.
    """
    reader = _reader(config)
    config = ranged(config, reader)
    columns = reader.columns_of(config)
    scan = scan_data(config.data, columns)
    if config.tile and not reader.tiles:
        raise ConfigError(
            f"--tile cuts pictures into windows with their masks, and answers of {task_name(config)} are none - leave "
            "it out"
        )
    if config.fix is not None and not _fixable(columns):
        raise ConfigError(
            f"--fix writes a manifest of labels, and these answers are {'objects' if columns.objects else 'masks'} - "
            "leave it out; --skip-bad, here and in finetune, leaves out what cannot be used"
        )
    if config.fix is not None:
        check_target(config)
    with _place(config) as place:
        result, pictures, families = audit(config, scan, reader)
        console = output_console()
        print_audit(result, console)
        lines = []
        if place is not None:
            write_json(place / TABLE, result.to_json())
            with waiting(progress_console(config.quiet), "writing the page"):
                from transferkit.results.audit.page import write_page

                write_page(result, place / PAGE, config.decoding())
            lines += [("page", str(place / PAGE)), ("all", str(place / TABLE))]
        if config.fix is not None:
            lines += write_manifest(config, result, pictures, families, reader)
    for name, text in lines:
        console.print(f"{name:<8} {text}", soft_wrap=True)
    refused = [issue.message for issue in result.issues if issue.refused]
    if refused and config.fix is None:
        raise DataError(f"{config.data}: finetune would refuse this folder: {gather(refused)}", pictures.problems)


@contextlib.contextmanager
def _place(config: CheckConfig) -> Iterator[Path | None]:
    """Yield the directory for page and table; ``None`` where the default one cannot be made.

    Raises:
        ConfigError: The directory that was named holds them already.
        StorageError: It cannot be made.
    """
    if config.out is not None:
        place = Path(config.out)
        there = [name for name in (PAGE, TABLE) if (place / name).exists()]
        if there and not config.overwrite:
            raise ConfigError(f"--out {place}: holds {' and '.join(there)} - pass --overwrite, or name another")
        with storage_errors("create", place):
            place.mkdir(parents=True, exist_ok=True)
        yield place
        return
    with contextlib.ExitStack() as stack:
        try:
            place = stack.enter_context(named_run_dir(None, config.data, "check"))
        except StorageError as error:
            message = f"no {PAGE} and no {TABLE}: {error} - or pass --out with a folder that can be written"
            warnings.warn(message, TransferkitWarning, stacklevel=4)
            yield None
            return
        yield place
        with contextlib.suppress(OSError):
            (place / LOCK).unlink()


def audit(config: CheckConfig, scan: Scan, reader: TargetReader) -> tuple[Audit, Pictures, tuple[Families, Families]]:
    """Audit a data set; see the module.

    Args:
        config: The options.
        scan: Its files.
        reader: Says what labels mean.

    Returns:
        What was found; what was read; the families of equal pictures and of near copies.

    Raises:
        BackboneError: There is no backbone of that name.
    """
    started = time.perf_counter()
    console = progress_console(config.quiet)
    left_out: list[str] = []
    frozen = _network(config, left_out)
    with counting_bar(console, "reading pictures") as progress:
        total = len(scan.files)
        reads = read_files(
            [file.path for file in scan.files],
            min_side=CHECK_SIDE,
            decoding=config.decoding(),
            rescan=config.rescan,
            workers=available_cores(),
            progress=None if progress is None else lambda done: progress(done, total),
        )
    with waiting(console, "comparing pictures"):
        pictures = _indexed(config, scan, reads, reader)
    index = pictures.index
    sight = _sight(config, frozen, pictures, left_out, console)
    features = {} if sight is None else dict(zip((r.path for r in sight.records), sight.plain, strict=True))
    # More threads of the BLAS wait for each other on a machine that has other work: ten times as long, measured.
    with threadpool_limits(1, user_api="blas"):
        with counting_bar(console, "comparing pictures") as progress:
            families = families_of(pictures, features, progress=progress)
        issues = [
            *_window_issues(config, frozen, index),
            *_index_issues(config, pictures),
            *file_issues(pictures, config.decoding(), refused=not config.skip_bad),
        ]
        files = pictures.files
        issues += [
            *copy_issues(families[0], (), pictures.answers),
            *copy_issues((), families[1], pictures.near_answers, fixable=_fixable(reader.columns_of(config))),
        ]
        issues += _outlier_issues(pictures, features, left_out, seed=config.seed)
        probe = None
        if sight is not None and index is not None:
            of_labels, probe = label_issues(sight, index.class_names)
            issues += of_labels
    return (
        Audit(
            data=config.data,
            files=files,
            counts={} if index is None else index.counts(),
            classes=() if index is None else index.class_names,
            sizes={} if index is None else {split: len(index.split(split)) for split in index.counts()},
            issues=tuple(sorted(issues, key=lambda issue: (not issue.refused, ORDER.index(issue.kind)))),
            skipped=scan.skipped,
            left_out=tuple(left_out),
            features=None if sight is None else sight.facts,
            probe=probe,
            seconds=time.perf_counter() - started,
            unit=OBJECTS if reader.columns_of(config).objects else PICTURES,
        ),
        pictures,
        families,
    )


def _window_issues(config: CheckConfig, frozen: FrozenBackbone | None, index: ImageIndex | None) -> list[Issue]:
    """Return how many windows `finetune --tile` sees. Raises `ConfigError` where nothing tells how large they are."""
    if index is None or not config.tile:
        return []
    own = None if frozen is None else frozen.backbone.data_config.image_size
    size = config.size or own
    if size is None:
        raise ConfigError("--tile needs the side of windows, and no backbone tells it here - pass --image-size")
    return [window_issue(index, size)]


def _reader(config: CheckConfig) -> TargetReader:
    """Return what reads the answers of a data set: the task that is named, or that its layout shows.

    Raises:
        ConfigError: There is no such task here; a task of one's own is known to Python alone.
        DataError: The manifest cannot be read.
    """
    name = task_name(config)
    if name not in READERS:
        known = ", ".join(READERS)
        raise ConfigError(f"check reads no answers of task {name!r}, expected one of {known} - or use finetune at once")
    return READERS[name]


def _network(config: CheckConfig, left_out: list[str]) -> FrozenBackbone | None:
    """Return the network; ``None``, with the reason, where there is none. Raises `BackboneError` for unknown names."""
    if config.quick:
        left_out.append(f"{NEEDS_NETWORK}: --quick")
        return None
    try:
        from transferkit.results.audit import network
    except ModuleNotFoundError as error:
        left_out.append(f"{NEEDS_NETWORK}: {error} - install it")
        return None
    try:
        return network.prepare(config)
    except BackboneError as error:
        if not network.knows(config):
            raise
        left_out.append(f"{NEEDS_NETWORK}: {error}")
        return None


def _fixable(columns: Columns) -> bool:
    """Return whether a manifest of labels can hold these answers."""
    return not (columns.files or columns.objects)


def _indexed(config: CheckConfig, scan: Scan, reads: Sequence[ReadResult], reader: TargetReader) -> Pictures:
    """Index what was read with all faults allowed; what `finetune` would say to that is in `Pictures.problems`."""
    columns = reader.columns_of(config)
    whole = _fixable(columns)
    lenient = dataclasses.replace(
        config, skip_bad=True, allow_leaks=True, allow_empty_classes=config.allow_empty_classes or not columns.objects
    )
    problems = scan.problems
    if problems and not columns.lenient:  # answers that cannot be used may be left out: look at the rest
        known = {read.path: read for read in reads}
        rest = scan_data(config.data, reader.columns_of(lenient))
        files = tuple(file for file in rest.files if file.path in known)
        scan, reads = dataclasses.replace(rest, files=files), [known[file.path] for file in files]
    try:
        reader = reader.look(PicturesRead(scan.files, reads, lenient))
        book = Sketchbook(config.decoding())
        copies = find_copies(reads, book, near=config.group_near, rescan=config.rescan, workers=available_cores())
        index = build_index(lenient, scan, reads, copies, reader=reader, decoding=book.decoding)
        if not whole:
            unused = {read.path for read in reads if read.error is not None} | set(reader.unusable)
            counted = [file for file in scan.files if not (config.skip_bad and file.path in unused)]
            problems += tuple(reader.problems(scan, counted, config))
    except DataError as error:
        others = error.findings or (Finding(Kind.LAYOUT, str(error)),)
        return Pictures(scan, reads, None, tuple(dict.fromkeys((*problems, *others))), whole)
    return Pictures(scan, reads, index, problems, whole)


def _index_issues(config: CheckConfig, pictures: Pictures) -> list[Issue]:
    """Return what the index itself has found, and what is wrong with classes and groups."""
    index = pictures.index
    issues = [issue_of(problem, refused=True) for problem in pictures.problems]
    if index is None:
        return issues + [issue_of(finding) for finding in pictures.scan.notes]
    refused_already = {_about(problem) for problem in pictures.problems}
    issues += [
        issue_of(finding)
        for finding in index.findings
        if finding.kind not in OF_FILES and _about(finding) not in refused_already
    ]
    issues += layout_issues(index)
    refused = {Kind.LEAK: not config.allow_leaks}
    if pictures.whole:  # of others the problems say it
        refused[Kind.EMPTY] = not config.allow_empty_classes
    return [dataclasses.replace(issue, refused=refused.get(issue.kind, issue.refused)) for issue in issues]


def _about(finding: Finding) -> tuple[str, frozenset[str]]:
    """Return what a finding is about: left out or refused, it is the same."""
    paths = {path for family in finding.families for path in family} or set(finding.items)
    return finding.kind, frozenset(paths)


def _sight(
    config: CheckConfig, frozen: FrozenBackbone | None, pictures: Pictures, left_out: list[str],
    console: Console | None,
) -> Sight | None:  # fmt: skip
    """Return what the network sees; ``None``, with the reason, where that cannot be had."""
    if frozen is None:
        return None
    if pictures.index is None or not pictures.index.records:
        left_out.append(f"{NEEDS_NETWORK}: the data set cannot be trained on as it is")
        return None
    from transferkit.results.audit.network import look

    try:
        with counting_bar(console, "extracting features") as progress:
            sight = look(config, frozen, pictures.index, progress=progress)
    except ConfigError:
        raise
    except TransferkitError as error:
        left_out.append(f"{NEEDS_NETWORK}: {error}")
        return None
    if sight.y is None and config.fix_labels != "keep":
        raise ConfigError(
            f"--fix-labels {config.fix_labels} is for one class per picture, no other answers are doubted - leave it "
            "out"
        )
    if sight.y is None:
        left_out.append("likely wrong labels and mirrored classes: pictures have not one class each")
    elif sight.probe is None:
        left_out.append("likely wrong labels and mirrored classes: too few pictures of two classes to hold any out")
    return sight


def _outlier_issues(
    pictures: Pictures, features: Mapping[str, npt.NDArray[np.float32]], left_out: list[str], *, seed: int
) -> list[Issue]:
    """Return the pictures that are unlike all others, as they look from afar and, where that is known, to a network."""
    seen: dict[str | None, ReadResult] = {}
    for read in pictures.reads:  # a picture that is there a hundred times is no neighbour of itself
        if read.sketch is not None and (not features or read.path in features):
            seen.setdefault(read.sha256, read)
    if len(seen) < ENOUGH:
        left_out.append(f"pictures unlike all others: it takes {ENOUGH} pictures to say what is usual")
        return []
    reads = list(seen.values())
    descriptions: list[npt.NDArray[np.float32]] = [looks([read.sketch for read in reads if read.sketch is not None])]
    if features:
        descriptions.append(np.stack([features[read.path] for read in reads]))
    positions, deviations = outliers(descriptions, seed=seed)
    if not len(positions):
        return []
    rows = []
    for at in positions.tolist():
        off = round(float(deviations[at]), 2)
        rows.append(Row((reads[at].path,), f"{off:.1f} deviations", {"deviations": off}))
    message = (
        f"pictures unlike all others: {len(rows)} of {len(reads)}, such as {rows[0].pictures[0]!r} - look whether they "
        "belong there"
    )
    return [Issue(Kind.OUTLIER, message, tuple(rows))]
