"""Manifests: a CSV or Parquet table with a column of paths, columns of answers, and ``[,split][,group]``.

Paths are relative to the manifest's folder (or another root) and stay inside it: absolute paths and ``..`` are refused,
so that a table from elsewhere cannot reach for other files.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Collection, Sequence
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from transferkit.core.errors import DataError, did_you_mean
from transferkit.core.files import user_path
from transferkit.core.records import Finding
from transferkit.core.text import listing
from transferkit.data.scan.class_names import order_classes
from transferkit.data.scan.columns import CLASS_COLUMN, Columns
from transferkit.data.scan.records import SPLIT_NAMES, Kind, Scan, ScannedFile, split_named
from transferkit.options.data import MANIFEST_EXTENSIONS

__all__ = ["is_manifest", "read_table", "scan_manifest"]

SPLIT, GROUP = "split", "group"
"""The columns that may be there besides paths and answers."""

MISSPELT = 0.8
"""Similarity from which on a column is ``split`` or ``group`` misspelt, as ``spilt`` is; ``site`` and ``age_group`` are
columns of their own."""


def is_manifest(data: str) -> bool:
    """Whether a data set is a file whose name is that of a manifest."""
    path = user_path(data)
    return path.lower().endswith(MANIFEST_EXTENSIONS) and Path(path).is_file()


class _Row(NamedTuple):
    place: str  # how messages name it: "line 7"
    cells: dict[str, str]


def scan_manifest(manifest: str, columns: Columns = CLASS_COLUMN) -> Scan:
    """List the pictures that a manifest names. Files are not looked at, only whether any of them is there.

    The split column is optional; it must be filled in every row or in none. Other columns are ignored and noted.

    Args:
        manifest: The table.
        columns: Where the answers stand.

    Raises:
        DataError: The table cannot be read, lacks a column, or none of its files is there. What is wrong in its rows
            goes to `Scan.problems`.
    """
    names = {name for choice in columns.choices for name in choice}
    header, rows = read_table(manifest, {columns.path, SPLIT, GROUP, *names})
    answers = columns.chosen(header)
    notes = _check_columns(manifest, header, (columns.path, *answers))
    if not rows:
        expected = ",".join((columns.path, *answers))
        raise DataError(f"manifest {manifest!r} has no rows - expected a row per picture under {expected}")
    garbled = [row.place for row in rows if any(_is_garbled(row.cells[name]) for name in answers)]
    if garbled:
        raise DataError(
            f"manifest {manifest!r}: labels that are no UTF-8 text: {listing(garbled, quote=False)} - save it as UTF-8"
            "; it may be in Latin-1 or Windows-1252"
        )
    problems = _row_problems(manifest, rows, columns, answers)
    folder = Path(manifest).parent if columns.root is None else Path(columns.root)
    files = [
        ScannedFile(
            str(folder / row.cells[columns.path]),
            str(folder / _text(row, columns, answers)[0]) if columns.files else _text(row, columns, answers)[0],
            split_named(row.cells.get(SPLIT, "").strip()),
            row.cells.get(GROUP) or None,
        )
        for row in rows
    ]
    if not problems and not any(Path(file.path).exists() for file in files):
        windows = ", with / between folders, not \\" if any("\\" in row.cells[columns.path] for row in rows) else ""
        raise DataError(
            f"manifest {manifest!r}: none of its {len(files)} files exists, such as {files[0].path!r} - write paths as "
            f"they are below {str(folder)!r}, with their endings{windows}"
        )
    explicit = any(file.split for file in files)
    trained = [file.label for file in files if not explicit or file.split == "train"]
    if explicit and not trained:
        problems.append(Finding(Kind.NO_TRAIN, f"manifest {manifest!r} has no row whose split is 'train'"))
    problems += columns.name_problems({file.label for file in files})
    files.sort(key=lambda file: file.path)
    class_names = () if columns.files else order_classes(trained)
    return Scan(class_names, tuple(files), (), tuple(notes), tuple(problems), answers)


def read_table(manifest: str, names: Collection[str]) -> tuple[list[str], list[_Row]]:
    """Return all columns of a manifest, and its rows with the cells of those of `names` that are there.

    Raises:
        DataError: It cannot be read, or its rows have not as many cells as there are columns.
    """
    return (_read_parquet if manifest.lower().endswith(".parquet") else _read_csv)(manifest, names)


def _text(row: _Row, columns: Columns, answers: Sequence[str]) -> tuple[str, str]:
    """Return the answer of a row as one text, and what is wrong with it."""
    try:
        return columns.text(answers, [row.cells[name] for name in answers]), ""
    except ValueError as error:
        return "", str(error)


def _check_columns(manifest: str, columns: list[str], required: Sequence[str]) -> list[Finding]:
    """Return notes on ignored columns; raise `DataError` on missing, doubled or misspelt ones."""
    usual = (*required, SPLIT, GROUP)
    problems = [f"column {name!r} appears twice" for name in usual if columns.count(name) > 1]
    missing = [name for name in usual if name not in columns]
    unknown = [name for name in columns if name not in usual]
    for name in missing:
        if name in required:
            problems.append(f"no column {name!r}; found {listing(columns)}")
    absent = [name for name in missing if name in required]
    optional = [name for name in missing if name not in required]
    for name in unknown:
        if meant := did_you_mean(name.strip().lower(), absent):
            problems.append(f"unknown column {name!r}.{meant}")
        elif meant := did_you_mean(name.strip().lower(), optional, least=MISSPELT):
            problems.append(f"unknown column {name!r}.{meant} If not, rename it")
    if problems:
        raise DataError(
            f"manifest {manifest!r}: {'; '.join(problems)} - expected a first line like {','.join(required)}[,split]"
            "[,group], separated by commas"
        )
    if not unknown:
        return []
    return [Finding(Kind.NOTE, f"columns of the manifest that are not used: {listing(unknown)}", tuple(unknown))]


def _row_problems(manifest: str, rows: list[_Row], columns: Columns, answers: Sequence[str]) -> list[Finding]:
    blank, unclear, outside, unknown, unsplit, twice = [], [], [], [], [], []
    first: dict[str, str] = {}
    any_split = any(row.cells.get(SPLIT, "").strip() for row in rows)
    for row in rows:
        path, split = row.cells[columns.path], row.cells.get(SPLIT, "").strip()
        empty = not columns.optional and not all(row.cells[name] for name in answers)
        if not path or empty:
            blank.append(row.place)
            continue
        if problem := _text(row, columns, answers)[1]:
            unclear.append(f"{row.place}: {problem}")
        astray = [one for one in (path, *(row.cells[name] for name in answers if columns.files))
                  if not _stays_inside(one)]  # fmt: skip
        if astray:
            outside += [f"{one!r} ({row.place})" for one in astray]
            continue
        if split and split_named(split) is None:
            unknown.append(f"{split!r} ({row.place})")
        elif any_split and not split:
            unsplit.append(row.place)
        place = first.setdefault(os.path.normpath(path), row.place)
        if place != row.place:
            twice.append(f"{path!r} ({place} and {row.place})")
    kinds = (
        (blank, f"rows without a path or a {' or '.join(answers)}", "fill them in or remove them"),
        (unclear, "rows whose answer cannot be read", "correct or remove them"),
        (outside, "paths that are absolute or lead out of the manifest's folder", "give paths relative to that folder"),
        (unknown, "unknown splits", f"expected {', '.join(SPLIT_NAMES)}"),
        (unsplit, "rows without a split while others have one", "fill the split in every row or in none"),
        (twice, "pictures listed twice", "keep one row each"),
    )
    return [
        Finding(Kind.LAYOUT, f"manifest {manifest!r}: {what}: {listing(rows_, quote=False)} - {do}", tuple(rows_))
        for rows_, what, do in kinds
        if rows_
    ]


def _stays_inside(path: str) -> bool:
    # Windows' rules contain POSIX's: a drive or a leading slash of either kind is absolute, both slashes separate.
    windows = PureWindowsPath(path)
    return not windows.drive and not windows.root and ".." not in windows.parts and "\0" not in path


def _read_csv(manifest: str, names: Collection[str]) -> tuple[list[str], list[_Row]]:
    rows: list[_Row] = []
    ragged: list[str] = []
    try:
        # surrogateescape: a file name need not be UTF-8; -sig: spreadsheets write a byte order mark
        with Path(manifest).open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            columns = next(reader, [])
            for cells in reader:
                if not cells:
                    continue
                place = f"line {reader.line_num}"
                if len(cells) != len(columns):
                    ragged.append(f"{place}: {len(cells)}")
                    continue
                rows.append(
                    _Row(place, {name: cell for name, cell in zip(columns, cells, strict=True) if name in names})
                )
    except OSError as error:
        raise DataError(f"cannot read manifest {manifest!r}: {error.strerror} - check the path") from error
    except csv.Error as error:
        raise DataError(
            f"manifest {manifest!r} is not CSV: {error} (line {reader.line_num}) - write it anew"
        ) from error
    if ragged:
        raise DataError(
            f"manifest {manifest!r}: rows with another number of cells than the {len(columns)} columns:"
            f" {listing(ragged, quote=False)} - quote paths that hold commas"
        )
    return columns, rows


def _is_garbled(text: str) -> bool:
    return any("\udc80" <= char <= "\udcff" for char in text)  # bytes that `surrogateescape` kept


def _read_parquet(manifest: str, names: Collection[str]) -> tuple[list[str], list[_Row]]:
    try:
        from pyarrow import ArrowException, parquet  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError as error:
        raise DataError(
            f"reading {manifest!r} needs pyarrow: run 'pip install pyarrow', or write the manifest as CSV"
        ) from error
    try:
        table = parquet.read_table(manifest)
    except OSError as error:
        raise DataError(f"cannot read manifest {manifest!r}: {error.strerror or error} - check the path") from error
    except ArrowException as error:
        raise DataError(f"manifest {manifest!r} is not Parquet: {error} - write it anew") from error
    columns = [str(name) for name in table.column_names]
    known = {name: table.column(name).to_pylist() for name in columns if name in names and columns.count(name) == 1}
    rows = []
    for number in range(table.num_rows):
        cells = {name: "" if values[number] is None else str(values[number]) for name, values in known.items()}
        rows.append(_Row(f"row {number}", cells))
    return columns, rows
