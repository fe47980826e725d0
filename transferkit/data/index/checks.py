"""Checks for data sets that are unfit, thin or odd: empty classes, leaks between splits, special pictures."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from transferkit.core.records import DEEPEST, USUAL, Decoding, Finding, ImageRecord
from transferkit.core.text import listing
from transferkit.data.images.decode import ImageInfo
from transferkit.data.images.reading import ReadResult
from transferkit.data.index.copies import Copies
from transferkit.data.scan.formats import EXTENSIONS, unread_text
from transferkit.data.scan.records import SPLITS, Kind, Scan, ScannedFile

__all__ = [
    "class_problems",
    "leaks",
    "near_families",
    "odd_labels",
    "scattered_folders",
    "special_pictures",
    "thin_classes",
    "unreadable_pictures",
]

MANY_NUMBERS = 12
"""Labels that are numbers, up to which they may well be names of classes: digits, grades, months."""

FEW_BITS = 14
"""Of 16: cameras and detectors have up to so many, and files of theirs are dark once they have 8 bits."""

DARK = 2**13
"""Of 65,536: a 16-bit picture whose brightest pixel is darker hardly has grey levels left once it has 8 bits."""

_LITTLE = "of which less than an eighth of the range is used, as by 10-bit cameras, so that few levels are left"
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")


def unreadable_pictures(reasons: Iterable[tuple[str, str]], *, limit: int = 10) -> Finding:
    """Return what to say of pictures that cannot be read.

    Args:
        reasons: Path and reason of each.
        limit: How many the message lists.
    """
    items = [f"{path!r} ({reason})" for path, reason in reasons]
    message = (
        f"{len(items)} unreadable pictures: {listing(items, limit=limit, quote=False)} - replace or remove them,"
        " or pass --skip-bad to leave them out"
    )
    return Finding(Kind.UNREADABLE, message, tuple(items))


def class_problems(scan: Scan, files: Sequence[ScannedFile], allow_empty: bool) -> list[Finding]:
    """Return what is wrong with the classes: a single one, none to train on, no pictures.

    Args:
        scan: Says which classes there should be.
        files: The pictures that count.
        allow_empty: Whether a class may have no picture at all.
    """
    problems = []
    if len(scan.class_names) == 1:
        message = f"need at least 2 classes, found only {scan.class_names[0]!r} - add a folder or label"
        problems.append(Finding(Kind.ONE_CLASS, message, scan.class_names))
    trained = {file.label for file in files if file.trains}
    elsewhere: dict[str, set[str]] = defaultdict(set)
    for file in files:
        if file.label not in trained and file.split is not None:
            elsewhere[file.label].add(file.split)
    if elsewhere:
        places = [f"{label!r} ({', '.join(sorted(splits))})" for label, splits in sorted(elsewhere.items())]
        message = (
            f"classes without training pictures that other splits have: {listing(places, quote=False)}"
            " - add them to train or remove them"
        )
        problems.append(Finding(Kind.UNTRAINED, message, tuple(sorted(elsewhere))))
    empty = [label for label in scan.class_names if label not in trained and label not in elsewhere]
    if empty and not allow_empty:
        inside = [path for file in scan.skipped if set((path := Path(file.path)).parts) & set(empty)]
        unread = unread_text(Counter(path.suffix.lower() for path in inside))
        message = (
            f"classes without pictures: {listing(empty, limit=len(empty))}{f' ({unread})' if inside else ''}"
            " - fill or remove them, or pass --allow-empty-classes to keep their place"
        )
        problems.append(Finding(Kind.EMPTY, message, tuple(empty)))
    if not trained and not elsewhere and (allow_empty or not empty):
        problems.append(Finding(Kind.EMPTY, "there is no picture to train on"))
    return problems


def leaks(
    reads: Iterable[tuple[ScannedFile, ReadResult]], copies: Copies, identity: Callable[[str], str] = str
) -> list[Finding]:
    """Return a finding per kind of leak: equal pictures in several splits or classes, groups in several splits.

    Args:
        reads: The pictures.
        copies: Which of them are copies.
        identity: What a label says, whatever its text.
    """
    splits: dict[str, str | None] = {}
    by_content: dict[str | None, list[ScannedFile]] = defaultdict(list)
    group_splits: dict[str, set[str]] = defaultdict(set)
    for file, result in reads:
        by_content[copies.same.get(str(result.sha256), result.sha256)].append(file)
        splits[file.path] = file.split
        if file.group is not None and file.split is not None:
            group_splits[file.group].add(file.split)
    findings = []
    for families, what in (
        ([same for same in by_content.values() if len({file.split for file in same}) > 1], "split"),
        ([same for same in by_content.values() if len(same) > 1 and len({identity(file.label) for file in same}) > 1],
         "label"),
    ):  # fmt: skip
        if families:
            alike = tuple(sorted(tuple(file.path for file in family) for family in families))
            equal = [" = ".join(map(repr, family)) for family in alike]
            message = f"{len(equal)} pictures {'in' if what == 'split' else 'with'} more than one {what}: "
            findings.append(Finding(Kind.LEAK, message + listing(equal, quote=False), tuple(equal), alike))
    groups = sorted(group for group, splits in group_splits.items() if len(splits) > 1)
    if groups:
        message = f"{len(groups)} groups in more than one split: {listing(groups)}"
        findings.append(Finding(Kind.LEAK, message, tuple(groups)))
    apart = [family for family in copies.near if len({splits[path] for path in family if path in splits}) > 1]
    if apart:
        near = [" ~ ".join(map(repr, family)) for family in apart]
        message = f"{len(near)} pictures with near copies in more than one split: {listing(near, quote=False)}"
        findings.append(Finding(Kind.LEAK, message, tuple(near), tuple(apart)))
    return findings


def near_families(copies: Copies) -> list[Finding]:
    """Return a note on near copies that are kept together."""
    if not copies.near:
        return []
    families = tuple(" ~ ".join(repr(path) for path in family) for family in copies.near)
    count = sum(map(len, copies.near))
    message = f"{count} pictures are kept together with their near copies: {listing(families, limit=3, quote=False)}"
    return [Finding(Kind.NOTE, message, families, copies.near)]


def thin_classes(class_names: Sequence[str], records: Iterable[ImageRecord], val_split: float) -> list[Finding]:
    """Return which classes cannot be validated, unless there is no validation at all."""
    counted = Counter((record.split, record.label) for record in records)
    if val_split == 0 and not any(split == "val" for split, _ in counted):
        return []
    sizes = {label: sum(counted[split, label] for split in SPLITS) for label in class_names}
    single = [label for label in class_names if sizes[label] == 1]
    absent = [label for label in class_names if sizes[label] > 1 and not counted["val", label]]
    findings = []
    if single:
        message = f"classes with a single picture, which is used for training only: {listing(single)}"
        findings.append(Finding(Kind.THIN, message, tuple(single)))
    if absent:
        message = f"classes without a val picture, whose val recall is therefore n/a: {listing(absent)}"
        findings.append(Finding(Kind.THIN, message, tuple(absent)))
    return findings


def odd_labels(labels: Sequence[str]) -> list[Finding]:
    """Return a note where the names of classes look like answers of another kind: numbers, or lists of labels."""
    names = sorted(set(labels))
    findings = []
    numbers = [name for name in names if _NUMBER.fullmatch(name.strip())]
    if len(numbers) == len(names) > MANY_NUMBERS or any("." in name for name in numbers):
        message = (
            f"the labels look like numbers ({len(names)} different ones, such as {names[0]!r}), and each is taken for "
            "a class of its own: to learn amounts pass --task regression, of a manifest with --label-column label"
        )
        findings.append(Finding(Kind.NOTE, message, tuple(numbers)))
    for mark in "|;,":
        lists = [name for name in names if mark in name and {part.strip() for part in name.split(mark)} & set(names)]
        if lists:
            message = (
                f"the labels look like lists of labels ({listing(lists, limit=3)}), and each list is taken for a class "
                f"of its own: for several labels per picture pass --task multilabel --label-separator {mark!r} "
                "--label-column label"
            )
            findings.append(Finding(Kind.NOTE, message, tuple(lists)))
    return findings


def scattered_folders(records: Sequence[ImageRecord], root: str) -> list[Finding]:
    """Return a note where pictures of one folder below their class, which may belong together, lie in several splits.

    Args:
        records: The pictures.
        root: The data set.
    """
    splits: dict[str, set[str]] = defaultdict(set)
    inside: dict[str, tuple[str, ...]] = {}
    for record in records:
        folder = os.path.dirname(record.path)  # noqa: PTH120  of many thousands of paths in a few folders
        if folder not in inside:
            inside[folder] = Path(folder).relative_to(root).parts if Path(folder).is_relative_to(root) else ()
        parts = inside[folder]
        if len(parts) > 1 and record.group is None and parts[-1] != record.label:  # that is the class, below a split
            splits[str(Path(*parts))].add(record.split)
    apart = sorted(folder for folder, of_folder in splits.items() if len(of_folder) > 1)
    if not apart:
        return []
    message = (
        f"pictures of {len(apart)} of {len(splits)} sub-folders are in several splits, such as those of {apart[0]!r}: "
        "if a sub-folder is one patient, burst or video, keep each group together by --group-by folder"
    )
    return [Finding(Kind.GROUP, message, tuple(apart))]


def special_pictures(results: Iterable[ReadResult], decoding: Decoding = USUAL) -> list[Finding]:
    """Count the decoded pictures that are of a special kind, a finding each.

    Args:
        results: Of all pictures.
        decoding: How they were decoded.
    """
    good = [(result.path, result.info) for result in results if result.info is not None]
    grey = [path for path, info in good if info.grey]
    blank = [path for path, info in good if info.one_colour]
    hidden = sum(info.transparent for _, info in good if info.one_colour)
    ground, other = {"#ffffff": ("white", "black"), "#000000": ("black", "white")}.get(
        decoding.ground, (decoding.ground, "another colour")
    )
    special = (
        (Kind.MODE, [path for path, info in good if not info.grey] if decoding.channels == 1 else [],
         "in colour: weighed to grey"),
        (Kind.MODE, grey if decoding.channels > 1 else [],
         f"{'all' if len(grey) == len(good) else 'some'} are greyscale: their one channel is used for all three"),
        (Kind.DEPTH, [path for path, info in good if info.mode.startswith("I;16")],
         "16-bit greyscale: scaled to 8 bits"),
        *((Kind.DEPTH, paths, text) for paths, text in _depth_counts(good, decoding.grey_bits)
          if decoding.value_range is None),
        (Kind.MODE, [path for path, info in good if info.mode == "CMYK"],
         "in CMYK: converted to RGB without a colour profile"),
        (Kind.MODE, [path for path, info in good if info.transparent and decoding.channels < 4],
         f"with transparency: laid over {ground}"),
        (Kind.ONE_COLOUR, blank,
         "of one colour as decoded: nothing is to be seen on them"
         + (f"; {hidden} have transparency, and may show something by --ground {other}" if hidden else "")),
        (Kind.MODE, [path for path, info in good if info.animated],
         "with several frames or pages: the first is used"),
        (Kind.WRONG_NAME,
         [path for path, info in good if EXTENSIONS.get(Path(path).suffix.lower(), info.format) != info.format],
         "with an extension that does not match the content: read by content"),
    )  # fmt: skip
    return [
        Finding(kind, f"{len(paths)} of {len(good)} pictures: {text}", families=tuple((path,) for path in paths))
        for kind, paths, text in special
        if paths
    ]


def _depth_counts(good: Sequence[tuple[str, ImageInfo]], bits: int) -> list[tuple[list[str], str]]:
    """Count pictures of 16 bits whose values use less, or more, than is made of them, and say what to do."""
    grey = {path: info.peak for path, info in good if info.peak is not None and info.mode.startswith("I;16")}
    colour = {path: info.peak for path, info in good if info.peak is not None and not info.mode.startswith("I;16")}
    most, above = max(grey.values(), default=0), [path for path, peak in grey.items() if peak >= 2**bits]
    needed = max(most.bit_length(), 8)
    dark = [path for path, peak in colour.items() if peak < DARK]
    counts = [(dark, f"16-bit colour {_LITTLE}: scale them to the whole range before")]
    if above:
        text = (
            f"16-bit greyscale with values above {2**bits - 1:,}, which become white: --grey-bits {needed} keeps them"
        )
        counts.append((above, text))
    elif grey and bits == DEEPEST and needed <= FEW_BITS:
        text = (
            f"16-bit greyscale, none of whose values is above {most:,}: few grey levels are left - if they have "
            f"{needed} bits, pass --grey-bits {needed}, and {2**needed - 1:,} becomes white"
        )
        counts.append((list(grey), text))
    elif bits == DEEPEST:
        text = f"16-bit greyscale {_LITTLE}, while others use more: scale them to the whole range before"
        counts.append(([path for path, peak in grey.items() if peak < DARK], text))
    return counts
