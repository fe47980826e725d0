"""A data set as an index: every picture with its label, split and content hash, checked before anything is trained.

All that is wrong with a data set comes back in one `DataError`. Nothing is repaired silently: what is left out is in
`ImageIndex.skipped`, what is worth knowing in `ImageIndex.notes`.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from transferkit.core.errors import ConfigError, DataError, TransferkitWarning, gather
from transferkit.core.records import ImageRecord, SkippedFile
from transferkit.core.text import listing
from transferkit.data.images.decode import Pixels
from transferkit.data.images.reading import ReadResult, describe, read_images
from transferkit.data.index.checks import class_problems, leaks, thin_classes
from transferkit.data.index.splits import Item, assign_splits
from transferkit.data.scan.problems import SPLITS, FoundFile, Scan
from transferkit.data.scan.scan import scan_data

__all__ = ["ImageIndex", "build_index", "index_images"]

_Read = tuple[FoundFile, ReadResult]


@dataclass(frozen=True)
class ImageIndex:
    """The pictures of a data set.

    Attributes:
        root: The data set, as given by the user.
        class_names: Position is class index: plain text order of the names (``1, 10, 2``), from the training split.
        records: Sorted by path.
        skipped: What is not part of the index, and why.
        notes: Facts worth telling, a sentence each.
        pixels: Decoded pictures that were kept, by sha256: ``(H, W, 3)`` uint8 RGB as `decode_image` returns them for
            the `min_side` given. Not part of what makes two indexes equal.
    """

    root: str
    class_names: tuple[str, ...]
    records: tuple[ImageRecord, ...]
    skipped: tuple[SkippedFile, ...] = ()
    notes: tuple[str, ...] = ()
    pixels: Mapping[str, Pixels] = field(default_factory=dict, compare=False, repr=False)

    def split(self, name: str) -> tuple[ImageRecord, ...]:
        """Return the records of one split, ``"train"``, ``"val"`` or ``"test"``; empty when the set has none of it.

        Raises:
            ConfigError: There is no split of that name.
        """
        if name not in SPLITS:
            raise ConfigError(f"unknown split {name!r} - expected {', '.join(SPLITS)}")
        return tuple(record for record in self.records if record.split == name)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return ``{split: {class: pictures}}`` for every split that has pictures and every class, zeros included."""
        counted = Counter((record.split, record.label) for record in self.records)
        present = {split for split, _ in counted}
        return {
            split: {label: counted[split, label] for label in self.class_names} for split in SPLITS if split in present
        }

    def digest(self) -> str:
        """Return the sha256 of what is trained on what: contents, labels and splits, whatever the files are called."""
        lines = sorted(f"{record.sha256}\0{record.label}\0{record.split}\n" for record in self.records)
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def index_images(
    data: str | os.PathLike[str],
    *,
    val_split: float = 0.15,
    test_split: float = 0.15,
    seed: int = 0,
    min_side: int | None = None,
    keep_bytes: int = 0,
    skip_bad: bool = False,
    allow_empty_classes: bool = False,
    allow_leaks: bool = False,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> ImageIndex:
    """Index a folder or manifest: scan it, read and decode every picture once, check, split.

    A data set that names its splits keeps them; where it has no val split, val is hashed out of train, and test is only
    what it names itself. A data set without splits is hashed into three, see `transferkit.data.index.splits`.

    Args:
        data: ``folder/<class>/*``, ``folder/{train,val,test}/<class>/*``, or a CSV or Parquet manifest.
        val_split: Share of the pictures for validation where the data set does not say, in [0, 1).
        test_split: Share for testing, likewise. The sum of both must be below 1.
        seed: Of the split.
        min_side: As for `decode_image`; what `pixels` will hold.
        keep_bytes: How many bytes of decoded pictures to keep in `ImageIndex.pixels`.
        skip_bad: Leave unreadable pictures out, before splitting, instead of refusing the data set.
        allow_empty_classes: Keep the index of a class without pictures instead of refusing the data set.
        allow_leaks: Warn of equal pictures in several splits or classes instead of refusing the data set.
        workers: Threads that read and decode.
        progress: Called with the number of files done and their total.

    Raises:
        DataError: Everything that is wrong with the data set, in one message.
        ConfigError: An argument is out of range.

    Warns:
        TransferkitWarning: Classes without a val picture or with a single one; leaks that were allowed.
    """
    _check_arguments(val_split, test_split, min_side, keep_bytes, workers)
    scan = scan_data(data)
    total = len(scan.files)
    results = read_images(
        [file.path for file in scan.files],
        min_side=min_side,
        keep_bytes=keep_bytes,
        workers=workers,
        progress=None if progress is None else lambda done: progress(done, total),
    )
    return build_index(
        data,
        scan,
        results,
        val_split=val_split,
        test_split=test_split,
        seed=seed,
        skip_bad=skip_bad,
        allow_empty_classes=allow_empty_classes,
        allow_leaks=allow_leaks,
    )


def build_index(
    data: str | os.PathLike[str],
    scan: Scan,
    results: Sequence[ReadResult],
    *,
    val_split: float,
    test_split: float,
    seed: int,
    skip_bad: bool,
    allow_empty_classes: bool,
    allow_leaks: bool,
) -> ImageIndex:
    """Check and split what a scan found and reading gave; nothing is opened here.

    Args:
        data: The data set, as given by the user.
        scan: Its files and classes.
        results: What reading (or only hashing) each of `scan.files` gave, in the same order.
        val_split: As for `index_images`, like the rest.
        test_split: Likewise.
        seed: Likewise.
        skip_bad: Likewise.
        allow_empty_classes: Likewise.
        allow_leaks: Likewise.

    Raises:
        DataError: Everything that is wrong with the data set, in one message.

    Warns:
        TransferkitWarning: Classes without a val picture or with a single one; leaks that were allowed.
    """
    reads = list(zip(scan.files, results, strict=True))
    bad = [result for result in results if result.error is not None]
    problems = list(scan.problems)
    if bad and not skip_bad:
        told = [f"{result.path!r} ({result.error})" for result in bad]
        problems.append(
            f"{len(bad)} unreadable pictures: {listing(told, quote=False)} - replace or remove them,"
            " or pass --skip-bad to leave them out"
        )
    good = [read for read in reads if read[1].error is None]
    problems += class_problems(scan, [file for file, _ in (good if skip_bad else reads)], allow_empty_classes)
    leaking = leaks(good)
    if leaking and not allow_leaks:
        problems += [f"{leak} - remove them, or pass --allow-leaks" for leak in leaking]
    if problems:
        raise DataError(gather(problems))
    for leak in leaking:
        warnings.warn(leak, TransferkitWarning, stacklevel=3)

    records, split_notes = _split(good, val_split, test_split, seed)
    for warning in thin_classes(scan.class_names, records, val_split):
        warnings.warn(warning, TransferkitWarning, stacklevel=3)
    dropped = [f"{len(bad)} unreadable pictures left out"] if bad else []
    skipped = [*scan.skipped, *(SkippedFile(result.path, str(result.error)) for result in bad)]
    return ImageIndex(
        root=os.fspath(data),
        class_names=scan.class_names,
        records=records,
        skipped=tuple(sorted(skipped, key=lambda file: file.path)),
        notes=(*scan.notes, *dropped, *leaking, *split_notes, *describe(results)),
        pixels={r.sha256: r.pixels for r in results if r.sha256 is not None and r.pixels is not None},
    )


def _check_arguments(val_split: float, test_split: float, min_side: int | None, keep_bytes: int, workers: int) -> None:
    problems = [
        f"expected {name} in [0, 1), but got {value}"
        for name, value in (("val_split", val_split), ("test_split", test_split))
        if not 0 <= value < 1
    ]
    if not problems and val_split + test_split >= 1:
        problems.append(f"val_split {val_split} and test_split {test_split} leave nothing to train on; lower them")
    least = (
        ("min_side", 1 if min_side is None else min_side, 1),
        ("keep_bytes", keep_bytes, 0),
        ("workers", workers, 1),
    )
    problems += [f"expected {name} to be at least {low}, but got {value}" for name, value, low in least if value < low]
    if problems:
        raise ConfigError(gather(problems))


def _split(
    reads: Sequence[_Read], val_split: float, test_split: float, seed: int
) -> tuple[tuple[ImageRecord, ...], tuple[str, ...]]:
    named = {file.split for file, _ in reads} - {None}
    if named and "val" not in named:
        test_split = 0.0  # test is what the data set names
    hashed = [read for read in reads if "val" not in named and read[0].split in {None, "train"}]
    items = [Item(str(result.sha256), file.label, file.group) for file, result in hashed]
    assigned, moved = assign_splits(items, val_split=val_split, test_split=test_split, seed=seed)
    drawn = {file.path: split for (file, _), split in zip(hashed, assigned, strict=True)}
    records = tuple(
        ImageRecord(file.path, file.label, drawn.get(file.path) or str(file.split), str(result.sha256), file.group)
        for file, result in reads
    )
    notes = (f"pictures moved to train, where their classes had none: {listing(moved)}",) if moved else ()
    return records, notes
