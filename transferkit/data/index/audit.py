"""The `check` verb: what a data folder holds and what is wrong with it, before anything is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Final

from rich.table import Table

from transferkit.core.errors import ConfigError, DataError, gather
from transferkit.core.records import Finding
from transferkit.data.images.reading import CHECK_SIDE
from transferkit.data.index.index import CLASSES, ImageIndex, index_images
from transferkit.data.index.labels import LabelReader
from transferkit.data.index.numbers import NumberReader
from transferkit.data.index.targets import TargetReader, task_name
from transferkit.data.scan.records import Kind
from transferkit.machine.cores import available_cores
from transferkit.options.data import CheckConfig, DataOptions
from transferkit.show.progress import counting_bar, output_console, progress_console

__all__ = ["audit", "check", "print_audit"]

READERS: Final[dict[str, TargetReader]] = {
    "classification": CLASSES, "multilabel": LabelReader(), "regression": NumberReader(),
}  # fmt: skip
"""What reads the answers of the tasks of this package: `check` starts without torch, and so without `Task`."""

IMBALANCE = 10
"""A largest class so many times the smallest is worth a word."""


def check(config: CheckConfig) -> None:
    """Do what the verb does. Raises as `print_audit` does."""
    with counting_bar(progress_console(config.quiet), "reading pictures") as progress:
        print_audit(config, progress=progress)


def audit(
    options: DataOptions, *, progress: Callable[[int, int], None] | None = None
) -> tuple[ImageIndex, list[Finding]]:
    """Index a data set leniently and return it with every finding, those that call for an answer first.

    Args:
        options: Where it lies and how it is split; whatever they say, nothing is refused that can be let through.
        progress: Called with pictures read and pictures in all.

    Raises:
        DataError: There is nothing that can be indexed at all.
    """
    lenient = dataclasses.replace(options, skip_bad=True, allow_empty_classes=True, allow_leaks=True)
    reader = _reader(options)
    index = index_images(lenient, reader=reader, min_side=CHECK_SIDE, workers=available_cores(), progress=progress)
    findings = sorted(index.findings, key=lambda finding: finding.kind not in (Kind.LEAK, Kind.THIN))
    if index.targets.stratum_names == index.targets.spec.names:
        findings += _class_findings(index)
    return index, findings


def _reader(options: DataOptions) -> TargetReader:
    """Return what reads the answers of a data set: the task that is named, or that its layout shows.

    Raises:
        ConfigError: There is no such task here; a task of one's own is known to Python alone.
        DataError: The manifest cannot be read.
    """
    name = task_name(options)
    if name not in READERS:
        known = ", ".join(READERS)
        raise ConfigError(f"check reads no answers of task {name!r}, expected one of {known} - or use finetune at once")
    return READERS[name]


def _class_findings(index: ImageIndex) -> list[Finding]:
    """Return classes without pictures, and whether some have many more than others."""
    findings = []
    counts = index.counts().values()
    sizes = {name: sum(of_split[name] for of_split in counts) for name in index.targets.stratum_names}
    empty = tuple(name for name, size in sizes.items() if not size)
    if empty:
        findings.append(Finding(Kind.EMPTY, f"classes without pictures: {', '.join(empty)}", empty))
    filled = {name: size for name, size in sizes.items() if size}
    largest, smallest = max(filled, key=filled.__getitem__), min(filled, key=filled.__getitem__)
    if filled[largest] >= IMBALANCE * filled[smallest]:
        message = (
            f"imbalance: {filled[largest]} pictures of {largest}, {filled[smallest]} of {smallest} - read balanced "
            "accuracy rather than accuracy"
        )
        findings.append(Finding(Kind.IMBALANCE, message, (largest, smallest)))
    return findings


def print_audit(options: DataOptions, *, progress: Callable[[int, int], None] | None = None) -> None:
    """Print the pictures of each class and split, and every finding.

    Args:
        options: Where the data set lies, how it is split, and what is not an error.
        progress: Called with pictures read and pictures in all.

    Raises:
        DataError: After printing, when `finetune` would refuse the folder with these options.
    """
    console = output_console()
    index, findings = audit(options, progress=progress)
    counts = index.counts()
    table = Table(title=options.data, title_justify="left", title_style="bold")
    table.add_column("class")
    for column in (*counts, "all"):
        table.add_column(column, justify="right")
    for name in index.targets.stratum_names:
        row = [of_split[name] for of_split in counts.values()]
        table.add_row(name, *map(str, row), str(sum(row)))
    totals = [len(index.split(split)) for split in counts]  # a picture of several labels counts once
    table.add_section()
    table.add_row("all", *map(str, totals), str(sum(totals)))
    console.print(table)
    for finding in findings:
        console.print(f"- {finding.message}", soft_wrap=True)
    for file in index.skipped:
        console.print(f"- skipped {file.path}: {file.reason}", soft_wrap=True)
    if not findings and not index.skipped:
        console.print("nothing to complain of")
    allowed = {
        Kind.UNREADABLE: options.skip_bad, Kind.EMPTY: options.allow_empty_classes, Kind.LEAK: options.allow_leaks
    }  # fmt: skip
    refused = [finding for finding in findings if not allowed.get(Kind(finding.kind), True)]
    if refused:
        message = gather([finding.message for finding in refused])
        raise DataError(f"{options.data}: finetune would refuse this folder: {message}", refused)
