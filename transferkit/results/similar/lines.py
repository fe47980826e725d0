"""Similar pictures as text: lines for a terminal, CSV, lines of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from transferkit.core.csv import csv_lines
from transferkit.core.text import valid_text, visible
from transferkit.results.similar.search import Similar

__all__ = ["ENDINGS", "HEADER", "csv_of", "format_of", "json_of", "text_of"]

ENDINGS: Final = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".html": "html", ".htm": "html"}

HEADER: Final = ("path", "rank", "similar", "label", "split", "similarity", "same", "error")
"""Columns of the CSV: a row for each similar picture, and one for each picture that has none."""


def format_of(out: str) -> str:
    """Return ``"csv"``, ``"jsonl"`` or ``"html"``; nothing where the ending of the file is none of them."""
    return ENDINGS.get(Path(out).suffix.lower(), "")


def csv_of(results: Sequence[Similar]) -> Iterator[str]:
    """Yield a CSV that no spreadsheet takes for formulas, line by line, under `HEADER`."""
    yield from csv_lines([HEADER])
    for one in results:
        rows = [
            (one.path, rank, match.path, match.label, match.split, f"{match.similarity:.6f}",
             "yes" if match.same else "no", None)
            for rank, match in enumerate(one.matches, 1)
        ]  # fmt: skip
        yield from csv_lines(rows or [(one.path, None, None, None, None, None, None, one.error)])


def json_of(results: Sequence[Similar]) -> Iterator[str]:
    """Yield a line of JSON for each picture: ``path, similar, same, error``."""
    for one in results:
        values = {
            "path": valid_text(one.path),
            "similar": [
                {"path": valid_text(match.path), "label": match.label or None, "split": match.split or None,
                 "similarity": round(match.similarity, 6), "same": match.same}
                for match in one.matches
            ],
            "same": [valid_text(path) for path in one.same],
            "error": None if one.error is None else valid_text(one.error),
        }  # fmt: skip
        yield json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n"


def text_of(results: Sequence[Similar]) -> Iterator[str]:
    """Yield what a person reads, line by line; names as they can be shown."""
    for one in results:
        yield visible(one.path)
        if one.error is not None:
            yield f"  cannot be read: {visible(one.error)}"
        width = max((len(visible(match.label)) for match in one.matches), default=0)
        for match in one.matches:
            label = f"{visible(match.label):<{width}}  " if width else ""
            same = "  (the same picture)" if match.same else ""
            yield f"  {match.similarity:6.3f}  {label}{visible(match.path)}{same}"
        left_out = [path for path in one.same if path not in {match.path for match in one.matches}]
        if left_out:
            yield f"  is itself among them: {', '.join(map(visible, left_out))}"
