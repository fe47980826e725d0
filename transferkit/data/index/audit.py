"""The `check` verb: what a data folder holds and what is wrong with it, before anything is trained."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from transferkit.core.errors import DataError, TransferkitWarning, gather
from transferkit.data.index.index import ImageIndex, index_images
from transferkit.data.sample import SAMPLE, sample_folder
from transferkit.machine.cores import available_cores

__all__ = ["audit", "print_audit"]

IMBALANCE = 10
"""A largest class so many times the smallest is worth a word."""


def audit(
    data: str,
    *,
    val_split: float,
    test_split: float,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[ImageIndex, list[str]]:
    """Index a folder leniently and return it with every finding.

    Args:
        data: Folder, manifest or ``"sample"``.
        val_split: As for `index_images`.
        test_split: As for `index_images`.
        seed: Of the split.
        progress: Called with pictures read and pictures in all.

    Raises:
        DataError: There is nothing that can be indexed at all.
    """
    folder = str(sample_folder()) if data == SAMPLE else data
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TransferkitWarning)
        index = index_images(
            folder, val_split=val_split, test_split=test_split, seed=seed, min_side=64, skip_bad=True,
            allow_empty_classes=True, allow_leaks=True, workers=available_cores(), progress=progress,
        )  # fmt: skip
    findings = [str(warning.message) for warning in caught if issubclass(warning.category, TransferkitWarning)]
    findings += [note for note in index.notes if note not in findings]
    sizes = {label: sum(by_class[label] for by_class in index.counts().values()) for label in index.class_names}
    empty = [label for label, size in sizes.items() if not size]
    if empty:
        findings.append(f"classes without pictures: {', '.join(empty)}")
    filled = {label: size for label, size in sizes.items() if size}
    largest, smallest = max(filled, key=filled.__getitem__), min(filled, key=filled.__getitem__)
    if filled[largest] >= IMBALANCE * filled[smallest]:
        findings.append(
            f"imbalance: {filled[largest]} pictures of {largest}, {filled[smallest]} of {smallest} - read balanced "
            "accuracy rather than accuracy"
        )
    return index, findings


def print_audit(
    data: str,
    *,
    val_split: float,
    test_split: float,
    seed: int,
    strict: tuple[str, ...],
    progress: Callable[[int, int], None] | None = None,
    console: Console | None = None,
) -> None:
    """Print what `audit` found; see there for the arguments.

    Args:
        data: Folder, manifest or ``"sample"``.
        val_split: As for `index_images`.
        test_split: As for `index_images`.
        seed: Of the split.
        strict: Which of ``"bad"``, ``"empty"``, ``"leaks"`` are errors.
        progress: Called with pictures read and pictures in all.
        console: Where to print.

    Raises:
        DataError: After printing, when `finetune` would refuse the folder.
    """
    console = console or Console(highlight=False)
    index, findings = audit(data, val_split=val_split, test_split=test_split, seed=seed, progress=progress)
    counts = index.counts()
    table = Table(title=data, title_justify="left", title_style="bold")
    table.add_column("class")
    for column in (*counts, "all"):
        table.add_column(column, justify="right")
    for label in index.class_names:
        row = [by_class[label] for by_class in counts.values()]
        table.add_row(label, *map(str, row), str(sum(row)))
    totals = [sum(by_class.values()) for by_class in counts.values()]
    table.add_section()
    table.add_row("all", *map(str, totals), str(sum(totals)))
    console.print(table)
    for finding in findings:
        console.print(f"- {finding}", soft_wrap=True, markup=False)
    for file in index.skipped:
        console.print(f"- skipped {file.path}: {file.reason}", soft_wrap=True, markup=False)
    if not findings and not index.skipped:
        console.print("nothing to complain of")
    fatal = {"bad": "unreadable pictures left out", "leaks": "in more than one split", "empty": "without pictures:"}
    fatal_too = {"leaks": "more than one label"}
    refused = [
        finding
        for finding in findings
        if any(fatal[kind] in finding or fatal_too.get(kind, "\0") in finding for kind in strict)
    ]
    if refused:
        raise DataError(f"{data}: finetune would refuse this folder: {gather(refused)}")
