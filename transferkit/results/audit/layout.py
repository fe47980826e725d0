"""What is wrong with classes, splits and groups: empty, missing or rare classes, and groups that names tell of."""

from __future__ import annotations

import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from transferkit.core.records import DataConfig, ImageRecord
from transferkit.core.text import listing
from transferkit.data.images.windows import window_count
from transferkit.data.index.index import ImageIndex
from transferkit.data.scan.records import SPLITS, Kind
from transferkit.results.audit.record import OBJECTS, PICTURES, Issue, Row

__all__ = ["class_issues", "group_issue", "layout_issues", "window_issue"]

IMBALANCE: Final = 10
"""A largest class so many times the smallest is worth a word."""

_WORDS: Final = (
    "patient", "subject", "participant", "person", "donor", "animal", "mouse", "case", "study", "session", "series",
    "slide", "plate", "well", "volume", "video", "clip", "scene", "shot", "sequence", "seq", "burst", "track",
)  # fmt: skip
_NAMED: Final = re.compile(rf"(?<![a-z])({'|'.join(_WORDS)})s?[-_ ]?\d+", re.IGNORECASE)
_NUMBERED: Final = r"(?i)([^/]+?)[-_ ]+(?:frame|img|image)?[-_ ]*\d+\.\w+$"


def layout_issues(index: ImageIndex) -> list[Issue]:
    """Return what is worth knowing of the classes, splits and groups of a data set that can be trained on."""
    classes = index.targets.stratum_names == index.targets.spec.names
    issues = class_issues(index.counts(), OBJECTS if index.targets.columns.objects else PICTURES) if classes else []
    known = any(finding.kind == Kind.GROUP for finding in index.findings)
    group = None if known else group_issue(index.records, index.root)
    pixels = index.targets.spec.facts.get("pixels")
    shares = [] if not pixels else [_pixel_issue(index.targets.spec.names, pixels)]
    return issues + shares + ([group] if group is not None else [])


def _pixel_issue(names: Sequence[str], pixels: Sequence[int]) -> Issue:
    """Return the share of each class in the pixels of the training masks, the largest first."""
    total = max(1, sum(pixels))
    counted = sorted(zip(names, pixels, strict=True), key=lambda pair: -pair[1])
    rows = tuple(
        Row(text=f"{name}: {count / total:.2%}", facts={"label": name, "pixels": count}) for name, count in counted
    )
    listed = listing([f"{name} {count / total:.2%}" for name, count in counted], quote=False)
    return Issue(Kind.NOTE, f"pixels of the training masks: {listed}", rows, title="Pixels of each class")


def window_issue(index: ImageIndex, size: tuple[int, int]) -> Issue:
    """Return how many windows of this height and width each split has, at the pictures' own resolution."""
    config = DataConfig(image_size=size, crop_mode="tile")
    counts = {split: sum(window_count(index.sizes[record.sha256], config) for record in index.split(split))
              for split in SPLITS if index.split(split)}  # fmt: skip
    listed = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    message = f"--tile: {sum(counts.values()):,} windows of {size[1]} x {size[0]} pixels: {listed}"
    rows = tuple(Row(text=f"{count:,} {split}", facts={"split": split, "windows": count})
                 for split, count in counts.items())  # fmt: skip
    return Issue(Kind.NOTE, message, rows)


def class_issues(counts: Mapping[str, Mapping[str, int]], unit: str = PICTURES) -> list[Issue]:
    """Return empty classes, classes that a split lacks, and how unbalanced the classes are.

    Args:
        counts: Pictures, or objects, by split and class.
        unit: Which of them.
    """
    names = list(next(iter(counts.values()), {}))
    sizes = {name: sum(of_split[name] for of_split in counts.values()) for name in names}
    issues = []
    empty = [name for name in names if not sizes[name]]
    if empty:
        message = f"classes without {unit}: {', '.join(empty)}"
        issues.append(Issue(Kind.EMPTY, message, tuple(Row(text=name, facts={"label": name}) for name in empty)))
    for split, of_split in counts.items():
        absent = [name for name in names if sizes[name] > 1 and not of_split[name]]
        if absent and split == "test":  # the index itself speaks of the others
            message = f"classes without a {split} {unit[:-1]}, whose {split} recall is therefore n/a: {listing(absent)}"
            rows = tuple(Row(text=name, facts={"label": name, "split": split}) for name in absent)
            issues.append(Issue(Kind.THIN, message, rows))
    filled = [name for name in names if sizes[name]]
    largest, smallest = max(filled, key=sizes.__getitem__, default=""), min(filled, key=sizes.__getitem__, default="")
    if filled and sizes[largest] >= IMBALANCE * sizes[smallest]:
        advice = {
            PICTURES: "read balanced accuracy rather than accuracy, or train with --sampler balanced",
            OBJECTS: "look at the figures of each class, not at their mean alone",
        }
        message = f"imbalance: {sizes[largest]} {unit} of {largest}, {sizes[smallest]} of {smallest} - {advice[unit]}"
        rows = tuple(Row(text=name, facts={"label": name, unit: sizes[name]}) for name in (largest, smallest))
        issues.append(Issue(Kind.IMBALANCE, message, rows))
    return issues


def group_issue(records: Iterable[ImageRecord], root: str) -> Issue | None:
    """Return whether pictures that seem to belong together, by their names, lie in several splits.

    Names such as ``patient12`` or ``video_3`` anywhere in the path count, and file names that are many names with a
    running number each, such as ``walk_0001.jpg``.

    Args:
        records: The pictures; those of a group already are left out.
        root: The data set.
    """
    inside = []
    for record in records:
        path = Path(record.path)
        if record.group is None:
            inside.append(((path.relative_to(root) if path.is_relative_to(root) else path).as_posix(), record))
    labels = {record.label for _, record in inside}
    for pattern in _patterns(name for name, _ in inside):
        groups: dict[str, list[ImageRecord]] = defaultdict(list)
        for name, record in inside:
            if match := re.search(pattern, name):
                groups[match[match.re.groups]].append(record)
        together = {name: group for name, group in groups.items() if len(group) > 1}
        apart = {name: group for name, group in together.items() if len({one.split for one in group}) > 1}
        if not apart or sum(map(len, together.values())) < len(inside) / 2 or len(together) <= len(labels):
            continue
        names = sorted(apart)
        message = (
            f"pictures of {len(apart)} of {len(together)} groups that names tell of are in several splits, such as "
            f"{listing(names, limit=3)}: if each is one patient, burst or video, keep it in one split; where the data "
            f"set has none of its own, by --group-by {shlex.quote(pattern)}"
        )
        rows = [
            Row(tuple(one.path for one in apart[name]), name, {"group": name, "pattern": pattern}) for name in names
        ]
        return Issue(Kind.GROUP, message, tuple(rows))
    return None


def _patterns(names: Iterable[str]) -> list[str]:
    """Return the patterns to try: the word for a group that most paths hold, and names with a running number."""
    words = Counter(match[1].lower() for name in names if (match := _NAMED.search(name)))
    return [*(rf"(?i){word}s?[-_ ]?\d+" for word, _ in words.most_common(1)), _NUMBERED]
