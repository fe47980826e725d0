"""A data set as an index: every picture with its label, split and content hash, checked before anything is trained.

All that is wrong with a data set comes back in one `DataError`. Nothing is repaired silently: what is left out is in
`ImageIndex.skipped`, what is worth knowing in `ImageIndex.findings`.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from transferkit.core.errors import ConfigError, DataError, TransferkitWarning, gather
from transferkit.core.records import USUAL, Decoding, Finding, ImageRecord, SkippedFile
from transferkit.core.text import listing
from transferkit.data.images.known_files import read_files
from transferkit.data.images.reading import ReadResult
from transferkit.data.images.sketch import Sketch
from transferkit.data.images.sketchbook import Sketchbook
from transferkit.data.index.checks import leaks, near_families, scattered_folders, special_pictures, unreadable_pictures
from transferkit.data.index.copies import Copies, find_copies
from transferkit.data.index.splits import Item, assign_splits, units_of
from transferkit.data.index.targets import ClassReader, PicturesRead, TargetReader, Targets
from transferkit.data.pixels.store import PixelStore
from transferkit.data.scan.records import SPLITS, Kind, Scan, ScannedFile
from transferkit.data.scan.scan import scan_data
from transferkit.options.data import DataOptions

__all__ = ["CLASSES", "ImageIndex", "build_index", "index_images", "warn_of"]

_Read = tuple[ScannedFile, ReadResult]

CLASSES = ClassReader()

FOLDER = "folder"
"""Of ``group_by``: a picture's group is its folder below that of its class."""


@dataclass(frozen=True)
class ImageIndex:
    """The pictures of a data set.

    Attributes:
        root: The data set, as the user wrote it.
        targets: What the labels mean, as far as the training split tells.
        records: Sorted by path.
        skipped: What is not part of the index, and why.
        findings: Facts worth telling.
        sketches: What copies are looked for by, by sha256, of pictures that were decoded. Not part of what makes two
            indexes equal.
        sizes: Height and width of each picture, upright, by sha256, of those that were decoded. Likewise.
    """

    root: str
    targets: Targets
    records: tuple[ImageRecord, ...]
    skipped: tuple[SkippedFile, ...] = ()
    findings: tuple[Finding, ...] = ()
    sketches: Mapping[str, Sketch] = field(default_factory=dict, compare=False, repr=False)
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes (or of what else the answers are), in index order: text order (``1, 10, 2``)."""
        return self.targets.spec.names

    @property
    def notes(self) -> tuple[str, ...]:
        """The findings that a run writes down, a sentence each: those on classes that are thin are not among them."""
        return tuple(finding.message for finding in self.findings if finding.kind != Kind.THIN)

    def split(self, name: str) -> tuple[ImageRecord, ...]:
        """Return the records of one split, ``"train"``, ``"val"`` or ``"test"``; empty when the set has none of it.

        Raises:
            ConfigError: There is no split of that name.
        """
        if name not in SPLITS:
            raise ConfigError(f"unknown split {name!r} - expected {', '.join(SPLITS)}")
        return tuple(record for record in self.records if record.split == name)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return ``{split: {stratum: pictures}}``, zeros included, for every split that has pictures.

        The strata of classification are the classes; a picture of several labels counts for each.
        """
        present = {record.split for record in self.records}
        labels = {split: [record.label for record in self.split(split)] for split in SPLITS if split in present}
        names = self.targets.stratum_names
        return {
            split: dict(zip(names, self.targets.counts(of_split), strict=True)) for split, of_split in labels.items()
        }

    def digest(self) -> str:
        """Return the sha256 of what is trained on what: contents, answers and splits, whatever the files are called."""
        identity = self.targets.identity
        lines = sorted(f"{record.sha256}\0{identity(record.label)}\0{record.split}\n" for record in self.records)
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def index_images(
    options: DataOptions,
    *,
    reader: TargetReader = CLASSES,
    min_side: int | None = None,
    decoding: Decoding | None = None,
    pixels: PixelStore | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> ImageIndex:
    """Index a folder or manifest: scan it, read and decode every picture once, check, split.

    Pictures that were decoded before and whose files are as they were are not read again. For their pixels there is a
    place then, which is filled when they are shown for the first time.

    A data set that names its splits keeps them; where it has no val split, val is hashed out of train, and test is only
    what it names itself. A data set without splits is hashed into three, see `transferkit.data.index.splits`.

    Args:
        options: Where the data set lies, how it is split, and what may be wrong with it.
        reader: Says what labels mean.
        min_side: As for `decode_image`.
        decoding: As for `decode_image`; what the options say when ``None``.
        pixels: Where decoded pictures are kept; ``None`` for nowhere.
        workers: Threads that read and decode.
        progress: Called with the number of files done and their total.

    Raises:
        DataError: Everything that is wrong with the data set, in one message and by kind.
        ConfigError: `min_side` or `workers` is out of range.
    """
    numbers = (("min_side", 1 if min_side is None else min_side), ("workers", workers))
    problems = [f"expected {name} to be at least 1, but got {value}" for name, value in numbers if value < 1]
    if problems:
        raise ConfigError(gather(problems))
    scan = scan_data(options.data, reader.columns_of(options))
    total = len(scan.files)
    decoding = options.decoding() if decoding is None else decoding
    results = read_files(
        [file.path for file in scan.files],
        min_side=min_side,
        decoding=decoding,
        keep=None if pixels is None else pixels.put_of_all,
        again=pixels is not None and pixels.private,
        rescan=options.rescan,
        workers=workers,
        progress=None if progress is None else lambda done: progress(done, total),
    )
    if pixels is not None:
        pixels.reserve(results)
        pixels.flush()
    left = 0 if pixels is None else pixels.room
    reader = reader.look(PicturesRead(scan.files, results, options, left, progress))
    book = Sketchbook(decoding)
    copies = find_copies(
        results, book, near=options.group_near, rescan=options.rescan, workers=workers, progress=progress
    )
    return build_index(options, scan, results, copies, reader=reader, decoding=decoding)


def build_index(
    options: DataOptions,
    scan: Scan,
    results: Sequence[ReadResult],
    copies: Copies,
    *,
    reader: TargetReader = CLASSES,
    decoding: Decoding = USUAL,
) -> ImageIndex:
    """Make an index of what was scanned and read already. See `index_images`.

    Args:
        options: How the data set is split, and what may be wrong with it.
        scan: Its files and classes.
        results: What reading (or only hashing) each of `scan.files` gave, in the same order.
        copies: Which of them are copies of each other.
        reader: Says what labels mean.
        decoding: How they were decoded, where they were.

    Raises:
        DataError: Everything that is wrong with the data set, in one message and by kind.
    """
    scan = _grouped(scan, options)
    reader = reader.look(PicturesRead(scan.files, results, options))
    reads = list(zip(scan.files, results, strict=True))
    bad = [(result.path, result.error) for result in results if result.error is not None]
    good = [read for read in reads if read[1].error is None and read[0].path not in reader.unusable]
    problems = list(scan.problems)
    if bad and not options.skip_bad:
        problems.append(unreadable_pictures(bad))
    counted = [file for file, _ in (good if options.skip_bad else reads)]
    problems += reader.problems(scan, counted, options)
    targets = reader.learn(scan)
    leaking = leaks(good, copies, targets.identity)
    if not options.allow_leaks:
        problems += [
            Finding(leak.kind, f"{leak.message} - remove them, or pass --allow-leaks", leak.items) for leak in leaking
        ]
    if problems:
        raise DataError(gather([problem.message for problem in problems]), problems)
    records, moved = _split(good, copies, targets, options)
    targets = targets.fitted(record.label for record in records if record.split == "train")
    left_out = Finding(Kind.UNREADABLE, f"{len(bad)} unreadable pictures left out", tuple(path for path, _ in bad))
    refused = {**reader.unusable, **dict(bad)}
    skipped = [*scan.skipped, *(SkippedFile(path, reason) for path, reason in refused.items())]
    return ImageIndex(
        root=options.data,
        targets=targets,
        records=records,
        skipped=tuple(sorted(skipped, key=lambda file: file.path)),
        findings=(
            *scan.notes,
            *([left_out] if bad else []),
            *near_families(copies),
            *leaking,
            *moved,
            *special_pictures(results, decoding),
            *scattered_folders(records, options.data),
            *reader.thin(targets, records, options),
        ),
        sketches={r.sha256: r.sketch for r in results if r.sha256 is not None and r.sketch is not None},
        sizes={r.sha256: (r.info.height, r.info.width) for r in results if r.sha256 is not None and r.info is not None},
    )


def _grouped(scan: Scan, options: DataOptions) -> Scan:
    """Return a scan whose pictures have the groups that ``group_by`` finds in their paths.

    Raises:
        DataError: The pattern is found in no path.
    """
    if options.group_by is None:
        return scan
    files = [replace(file, group=_group_of(file, options) or file.group) for file in scan.files]
    if not any(file.group for file in files):
        example = scan.files[0].path if scan.files else options.data
        raise DataError(f"--group-by {options.group_by!r} is found in no path, such as {example!r} - correct it")
    return replace(scan, files=tuple(files))


def _group_of(file: ScannedFile, options: DataOptions) -> str | None:
    """Return the name of the group of a picture: its folder below the class, or what the pattern finds in the path."""
    path = Path(file.path)
    inside = path.relative_to(options.data) if path.is_relative_to(options.data) else path
    if options.group_by == FOLDER:
        deep = len(inside.parts) > (2 if file.split is None else 3)
        return str(inside.parent) if deep else None
    match = re.search(options.group_by or "", inside.as_posix())
    return match and (match[1] if match.re.groups and match[1] is not None else match[0])


def warn_of(index: ImageIndex) -> ImageIndex:
    """Warn of leaks that are allowed and of classes that cannot be validated; return the index."""
    for finding in index.findings:
        if finding.kind in (Kind.LEAK, Kind.THIN):
            warnings.warn(finding.message, TransferkitWarning, stacklevel=3)
    return index


def _split(
    reads: Sequence[_Read], copies: Copies, targets: Targets, options: DataOptions
) -> tuple[tuple[ImageRecord, ...], list[Finding]]:
    named = {file.split for file, _ in reads} - {None}
    test_split = 0.0 if named and "val" not in named else options.test_split  # test is what the data set names
    family = {path: number for number, paths in enumerate(copies.near) for path in paths}
    items = [
        Item(copies.same.get(str(result.sha256), str(result.sha256)), stratum, file.group, family.get(file.path))
        for (file, result), stratum in zip(reads, targets.strata(f.label for f, _ in reads).tolist(), strict=True)
    ]
    hashed = [at for at, (file, _) in enumerate(reads) if "val" not in named and file.trains]
    seed = options.seed if options.split_seed is None else options.split_seed
    assigned, moved = assign_splits(
        [items[at] for at in hashed], val_split=options.val_split, test_split=test_split, seed=seed
    )
    drawn = dict(zip(hashed, assigned, strict=True))
    records = tuple(
        ImageRecord(
            file.path, file.label, drawn.get(at) or str(file.split), str(result.sha256), file.group,
            copies.same.get(str(result.sha256)), unit,
        )
        for at, ((file, result), unit) in enumerate(zip(reads, units_of(items), strict=True))
    )  # fmt: skip
    if not moved:
        return records, []
    names = tuple(targets.stratum_names[stratum] for stratum in moved)
    message = f"pictures moved to train, where their classes had none: {listing(names)}"
    return records, [Finding(Kind.NOTE, message, names)]
