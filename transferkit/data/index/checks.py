"""What makes a data set unfit, or thin: classes without pictures, leaks between splits, contradicting labels."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from transferkit.core.records import ImageRecord
from transferkit.core.text import listing
from transferkit.data.images.reading import ReadResult
from transferkit.data.scan.problems import SPLITS, FoundFile, Scan

__all__ = ["class_problems", "leaks", "thin_classes"]


def class_problems(scan: Scan, files: Sequence[FoundFile], allow_empty: bool) -> list[str]:
    """Return a sentence per kind of trouble with classes: a single one, none to train on, no pictures.

    Args:
        scan: Says which classes there should be.
        files: The pictures that count.
        allow_empty: Whether a class may have no picture at all.
    """
    problems = []
    if len(scan.class_names) == 1:
        problems.append(f"need at least 2 classes, found only {scan.class_names[0]!r} - add a folder or label")
    trained = {file.label for file in files if file.split in {None, "train"}}
    elsewhere: dict[str, set[str]] = defaultdict(set)
    for file in files:
        if file.label not in trained and file.split is not None:
            elsewhere[file.label].add(file.split)
    if elsewhere:
        told = [f"{label!r} ({', '.join(sorted(splits))})" for label, splits in sorted(elsewhere.items())]
        problems.append(
            f"classes without training pictures that other splits have: {listing(told, quote=False)}"
            " - add them to train or remove them"
        )
    empty = [label for label in scan.class_names if label not in trained and label not in elsewhere]
    if empty and not allow_empty:
        problems.append(
            f"classes without pictures: {listing(empty, limit=len(empty))}"
            " - fill or remove them, or pass --allow-empty-classes to keep their place"
        )
    if not trained and not elsewhere and (allow_empty or not empty):
        problems.append("there is no picture to train on")
    return problems


def leaks(reads: Iterable[tuple[FoundFile, ReadResult]]) -> list[str]:
    """Return a sentence per kind of leak: equal files in several splits or classes, groups in several splits."""
    by_content: dict[str | None, list[FoundFile]] = defaultdict(list)
    group_splits: dict[str, set[str]] = defaultdict(set)
    for file, result in reads:
        by_content[result.sha256].append(file)
        if file.group is not None and file.split is not None:
            group_splits[file.group].add(file.split)
    across = [same for same in by_content.values() if len({file.split for file in same}) > 1]
    labels = [same for same in by_content.values() if len({file.label for file in same}) > 1]
    groups = sorted(group for group, splits in group_splits.items() if len(splits) > 1)
    found = []
    if across:
        found.append(f"{len(across)} pictures in more than one split: {listing(_equal(across), quote=False)}")
    if labels:
        found.append(f"{len(labels)} pictures with more than one label: {listing(_equal(labels), quote=False)}")
    if groups:
        found.append(f"{len(groups)} groups in more than one split: {listing(groups)}")
    return found


def _equal(families: Iterable[Sequence[FoundFile]]) -> list[str]:
    return sorted(" = ".join(repr(file.path) for file in family) for family in families)


def thin_classes(class_names: Sequence[str], records: Iterable[ImageRecord], val_split: float) -> list[str]:
    """Return warnings about classes that cannot be validated, unless no validation was asked for."""
    counted = Counter((record.split, record.label) for record in records)
    if val_split == 0 and not any(split == "val" for split, _ in counted):
        return []
    sizes = {label: sum(counted[split, label] for split in SPLITS) for label in class_names}
    single = [label for label in class_names if sizes[label] == 1]
    absent = [label for label in class_names if sizes[label] > 1 and not counted["val", label]]
    warned = []
    if single:
        warned.append(f"classes with a single picture, which is used for training only: {listing(single)}")
    if absent:
        warned.append(f"classes without a val picture, whose val recall is therefore n/a: {listing(absent)}")
    return warned
