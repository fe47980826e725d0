"""Labelled pictures for a finished model: its own classes by name, without the checks that only training needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from transferkit.core.errors import ConfigError, DataError, ExportError, did_you_mean, gather
from transferkit.core.files import user_path
from transferkit.core.records import Finding, SkippedFile
from transferkit.core.text import listing
from transferkit.data.images.decode import UnreadableImage
from transferkit.data.images.known_files import hash_files, read_files
from transferkit.data.images.reading import CHECK_SIDE, ReadResult, in_order
from transferkit.data.index.checks import unreadable_pictures
from transferkit.data.index.targets import TargetReader, Targets
from transferkit.data.masks.values import UnusableMask
from transferkit.data.scan.columns import Columns
from transferkit.data.scan.manifest import is_manifest, read_table
from transferkit.data.scan.records import SPLITS, Kind, Scan, ScannedFile
from transferkit.data.scan.scan import scan_data
from transferkit.machine.cores import available_cores
from transferkit.options.data import DataOptions
from transferkit.runs.files import RunFiles
from transferkit.runs.seen import run_splits

__all__ = ["Labelled", "LabelledPicture", "labelled_pictures", "refuse_unreadable", "run_columns", "trained_pictures"]

ALL = "all"


class LabelledPicture(NamedTuple):
    """A labelled picture.

    Attributes:
        path: Absolute.
        label: As the data set has it.
        target: What that stands for; of classification, the class index of the model.
        sha256: Hex digest of the file's bytes.
    """

    path: str
    label: str
    target: Any
    sha256: str

    @property
    def read(self) -> ReadResult:
        """The picture as a file that was read and not decoded."""
        return ReadResult(self.path, self.sha256)


@dataclass(frozen=True)
class Labelled:
    """Pictures that a model can be measured on.

    Attributes:
        splits: By split, each sorted by path and not empty; ``"all"`` is the only key for data without splits, and
            where the splits were asked for together.
        unknown: Classes that the model lacks, with the number of pictures that were left out for it.
        missing: Classes of the model without a picture here.
        skipped: Files that are no pictures or cannot be read, and why.
        notes: Facts worth telling.
        unreadable: How many of `skipped` are pictures that cannot be read.
        answers: What was left out or mended of masks and objects, a sentence each.
    """

    splits: Mapping[str, tuple[LabelledPicture, ...]]
    unknown: Mapping[str, int]
    missing: tuple[str, ...]
    skipped: tuple[SkippedFile, ...]
    notes: tuple[str, ...]
    unreadable: int = 0
    answers: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of pictures."""
        return sum(len(pictures) for pictures in self.splits.values())


def labelled_pictures(
    data: str,
    targets: Targets,
    *,
    split: str = "auto",
    skip_bad: bool = False,
    check_classes: bool = False,
    rescan: bool = False,
    columns: Columns | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Labelled:
    """List and hash the pictures of a labelled folder or manifest whose classes a model knows, by name.

    Names are compared in NFC form, so that it does not matter how a disk stores accents. Files are hashed and not
    decoded: one that turns out to be no picture later is for the caller to tell, see `refuse_unreadable`.

    Args:
        data: ``folder/<class>/*``, ``folder/{train,val,test}/<class>/*``, a CSV or Parquet manifest, or ``"sample"``.
        targets: What labels mean to the model.
        split: ``"train"``, ``"val"`` or ``"test"``; ``"auto"`` for every split but train, each on its own; ``"all"``
            for all of them together.
        skip_bad: Leave out files that cannot be read, and answers that cannot be used, instead of refusing them all in
            one message.
        columns: Of a manifest, see `run_columns`; those of `targets` when ``None``.
        check_classes: Refuse data whose classes are not exactly those of the model.
        rescan: Read every file, instead of trusting what is known of files that are as they were.
        progress: Called with the number of files read and their total.

    Raises:
        DataError: There is no such data or split, files cannot be read, or no picture is left.
        ExportError: The classes are not those of the model, with `check_classes`.
    """
    scan = scan_data(data, replace(columns or targets.columns, lenient=skip_bad))
    problems = [problem for problem in scan.problems if problem.kind != Kind.NO_TRAIN]
    if problems:
        raise DataError(gather([problem.message for problem in problems]), problems)
    if check_classes:
        _check_classes(data, scan, targets)
    chosen = _choose(data, scan.files, split)
    known = [(file, target) for file in chosen if (target := targets.find(file.label)) is not None]
    unknown = Counter(file.label for file in chosen) - Counter(file.label for file, _ in known)
    if not known:
        raise DataError(_nothing(data, unknown, targets.spec.names))
    results = hash_files(
        [file.path for file, _ in known],
        rescan=rescan,
        workers=available_cores(),
        progress=None if progress is None else lambda done: progress(done, len(known)),
    )
    bad = [SkippedFile(result.path, str(result.error)) for result in results if result.sha256 is None]
    if bad and not skip_bad:
        decoded = read_files(
            [file.path for file, _ in known], min_side=CHECK_SIDE, rescan=rescan, workers=available_cores()
        )
        refuse_unreadable([SkippedFile(result.path, result.error) for result in decoded if result.error] or bad)
    unusable = _unusable(targets, [file for (file, _), result in zip(known, results, strict=True) if result.sha256])
    if unusable and not skip_bad:
        message = f"{_told(unusable)} - correct them, or pass --skip-bad to leave them out"
        raise DataError(message, [Finding(Kind.MASK, message, tuple(file.path for file in unusable))])
    without = {file.path for file in unusable}
    splits: dict[str, list[LabelledPicture]] = {}
    for (file, target), result in zip(known, results, strict=True):
        if result.sha256 is not None and file.path not in without:
            name = ALL if split == ALL or file.split is None else file.split
            splits.setdefault(name, []).append(
                LabelledPicture(str(Path(file.path).absolute()), file.label, target, result.sha256)
            )
    if not splits:
        what = "can be read" if not unusable else f"can be used: {_told(unusable)}"
        raise DataError(f"{data}: none of its {len(known)} pictures {what} - check the files and permissions")
    labels = [picture.label for pictures in splits.values() for picture in pictures]
    return Labelled(
        {name: tuple(splits[name]) for name in (*SPLITS, ALL) if name in splits},
        dict(sorted(unknown.items())),
        tuple(_missing(labels, targets)),
        tuple(sorted([*scan.skipped, *bad, *unusable], key=lambda file: file.path)),
        tuple(note.message for note in scan.notes),
        len(bad),
        (
            *(note.message for note in scan.notes if note.kind in (Kind.MASK, Kind.BOX)),
            *([f"left out are {_told(unusable)}"] if unusable else []),
        ),
    )


def refuse_unreadable(bad: Sequence[SkippedFile]) -> None:
    """Raise a `DataError` that lists every unreadable picture, where there is one."""
    if bad:
        finding = unreadable_pictures(((file.path, file.reason) for file in bad), limit=len(bad))
        raise DataError(finding.message, [finding])


def trained_pictures(run: str | Path, pictures: Sequence[LabelledPicture]) -> int | None:
    """Return how many of the pictures a run was trained on; ``None`` where it does not say. See `run_splits`."""
    splits = run_splits(run, [picture.read for picture in pictures])
    return None if splits is None else sum(splits.get(picture.sha256) == "train" for picture in pictures)


def _unusable(targets: Targets, files: Sequence[ScannedFile]) -> list[SkippedFile]:
    """Return the pictures whose answers cannot be used, and why, where answers are files or objects.

    Of a picture that cannot be read itself nothing is said here.
    """
    answers = targets.annotate([file.label for file in files], [file.path for file in files])
    if answers is None:
        return []

    def problem(row: int) -> str | None:
        try:
            answers.read(row)
        except UnusableMask as error:
            return f"mask {error.path!r}: {error.reason}"
        except UnreadableImage:
            return None
        except DataError as error:
            return str(error)
        return None

    reasons = in_order(problem, range(len(files)), available_cores())
    return [SkippedFile(file.path, reason) for file, reason in zip(files, reasons, strict=True) if reason is not None]


def _told(unusable: Sequence[SkippedFile]) -> str:
    items = [f"{file.path!r} ({file.reason})" for file in unusable]
    return f"{len(items)} pictures whose answers cannot be used: {listing(items, quote=False)}"


# ---- parts ------------------------------------------------------------------------------------------------------


def _choose(data: str, files: Sequence[ScannedFile], split: str) -> list[ScannedFile]:
    present = [name for name in SPLITS if any(file.split == name for file in files)]
    if not files:
        raise DataError(f"{data}: holds no picture - expected folder/<class>/*.jpg; check the path")
    if not present:
        if split not in ("auto", ALL):
            raise DataError(f"{data}: has no splits, so there is no {split!r} - leave --split out, or name its folder")
        return list(files)
    splits = {"auto": ("val", "test"), ALL: SPLITS}.get(split, (split,))
    chosen = [file for file in files if file.split in splits]
    if not chosen:
        lacking = "no split but train" if split == "auto" else f"no {split!r} split"
        raise DataError(f"{data}: has {lacking}, found pictures in {listing(present)} - name one of them by --split")
    return chosen


def _missing(labels: Sequence[str], targets: Targets) -> list[str]:
    """Return the names of the model that none of these labels holds."""
    counts = dict(zip(targets.stratum_names, targets.counts(labels), strict=True))
    return [name for name in targets.spec.names if not counts.get(name, 1)]


def run_columns(
    run: Path, reader: TargetReader, targets: Targets, data: str, *, path_column: str | None, root: str | None
) -> Columns:
    """Return how the manifest `data` is read for a run: as its own was, where that fits, or as usual.

    Args:
        run: Its directory; where it keeps no options, nothing is known of its own.
        reader: Of its task.
        targets: What labels mean to its model.
        data: Labelled pictures; what is no manifest has no columns.
        path_column: Where the paths stand; when ``None`` the run's own column where the manifest has it, else ``path``.
        root: Folder that paths are relative to; when ``None`` the run's own for its own manifest, else its folder.

    Raises:
        ConfigError: `path_column` or `root` are given for what is no manifest.
        DataError: The manifest cannot be read.
    """
    usual, config = targets.columns, RunFiles(run, lenient=True).config
    said = {name: config[name] for name in ("targets", "label_column", "label_separator") if config.get(name)}
    own = reader.columns_of(DataOptions(data="-", **said))
    if is_manifest(data):
        theirs = config.get("path_column")
        if path_column is None and theirs and theirs in read_table(user_path(data), ())[0]:
            path_column = str(theirs)
        if root is None and config.get("root") and _same_file(data, config.get("data")):
            root = str(config["root"])
    elif path_column is not None or root is not None:
        raise ConfigError(
            f"--path-column and --root say how a manifest is read, and {data} is none - leave them out, or name a "
            "CSV or Parquet table"
        )

    def text(names: Sequence[str], cells: Sequence[str]) -> str:
        return (own if tuple(names) in own.choices else usual).text(names, cells)

    choices = tuple(dict.fromkeys((*own.choices, *usual.choices)))
    return replace(usual, choices=choices, text=text, path=path_column or usual.path, root=root)


def _same_file(data: str, own: Any) -> bool:
    try:
        return isinstance(own, str) and Path(user_path(data)).samefile(own)
    except OSError:
        return False


def _check_classes(data: str, scan: Scan, targets: Targets) -> None:
    labels = sorted({*scan.class_names, *(file.label for file in scan.files)})
    unknown = [label for label in labels if targets.find(label) is None]
    missing = _missing([label for label in labels if label not in unknown], targets)
    if unknown or missing:
        parts = [f"the model lacks {listing(unknown)}"] if unknown else []
        parts += [f"the data lack {listing(missing)}"] if missing else []
        raise ExportError(
            f"{data}: its classes are not those of the model: {' and '.join(parts)} - rename them, or leave out"
            " --check-classes"
        )


def _nothing(data: str, unknown: Mapping[str, int], class_names: Sequence[str]) -> str:
    hint = did_you_mean(next(iter(sorted(unknown)), ""), class_names)
    return (
        f"{data}: none of its classes ({listing(sorted(unknown))}) is one of the model ({listing(class_names)}),"
        f" expected folders or labels of the same names - rename them.{hint}"
    )
