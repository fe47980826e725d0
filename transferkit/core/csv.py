"""CSV that a spreadsheet cannot take for formulas, and that reads back as it was."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from transferkit.core.errors import StorageError
from transferkit.core.text import valid_text

__all__ = ["csv_lines", "csv_text", "read_csv", "safe_cell"]

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def safe_cell(text: str) -> str:
    """Return a text cell that no spreadsheet runs: an apostrophe goes before what could begin a formula.

    One goes before an apostrophe too, so that `read_csv` can take it off again. A number with its sign is none. Bytes
    of file names that are no UTF-8 become escapes.
    """
    valid = valid_text(text)
    return f"'{valid}" if valid.startswith((*_FORMULA, "'")) and not _NUMBER.fullmatch(valid) else valid


def csv_lines(rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Yield rows as lines of CSV, the header among them; texts made safe, ``None`` empty, numbers as they are."""
    for row in rows:
        line = io.StringIO()
        # Python before 3.13 quotes no lone carriage return unless lines end with one, and reads it as the end of a row.
        csv.writer(line, lineterminator="\r\n").writerow(
            [safe_cell(cell) if isinstance(cell, str) else cell for cell in row]
        )
        yield f"{line.getvalue().removesuffix(chr(13) + chr(10))}\n"


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Return rows as `csv_lines` yields them, in one text."""
    return "".join(csv_lines(rows))


def read_csv(path: str | os.PathLike[str]) -> list[dict[str, str]]:
    """Return the rows of a file of `csv_lines`, by column.

    Raises:
        StorageError: It cannot be read or is no such table.
    """
    try:
        with Path(path).open(encoding="utf-8", newline="") as stream:
            rows = list(csv.reader(stream))
    except (OSError, ValueError, csv.Error) as error:
        raise StorageError(f"cannot read {os.fspath(path)!r}: {error} - was it changed? Write it again") from error
    if not rows or any(len(row) != len(rows[0]) for row in rows):
        raise StorageError(
            f"cannot read {os.fspath(path)!r}: its rows differ in length - was it changed? Write it again"
        )
    return [dict(zip(rows[0], map(_plain, row), strict=True)) for row in rows[1:]]


def _plain(cell: str) -> str:
    return cell[1:] if cell.startswith("'") else cell
