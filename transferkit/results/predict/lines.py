"""Predictions as lines, one after the other: of CSV, of JSON, or of one JSON list of COCO results."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from transferkit.core.csv import csv_text
from transferkit.core.errors import TransferkitWarning
from transferkit.core.targets import TargetSpec
from transferkit.core.text import valid_text
from transferkit.models.parts import Output, Record, Request
from transferkit.models.record_files import ObjectResults
from transferkit.options.results import PredictConfig
from transferkit.results.boxes.coco import CocoNumbers
from transferkit.results.predict.predictor import Predictor

__all__ = ["ENDINGS", "csv_header", "csv_rows", "format_of", "json_row", "lines_of", "unlike_values"]

ENDINGS: Final = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "coco"}


def format_of(config: PredictConfig) -> str:
    """Return ``"csv"``, ``"jsonl"`` or ``"coco"``; nothing where the ending of the file to write is none of them."""
    return config.format if config.format != "auto" else ENDINGS.get(Path(config.out or "-.csv").suffix.lower(), "")


def lines_of(
    records: Iterable[Record], kind: str, request: Request, predictor: Predictor, numbers: CocoNumbers | None = None
) -> Iterator[str]:
    """Yield what stands in a file, in pieces that end with a line; nothing before the first record is there.

    Args:
        records: Of pictures, in order; whole ones for COCO results.
        kind: ``"csv"``, ``"jsonl"`` or ``"coco"``.
        request: Which columns are wanted.
        predictor: The model.
        numbers: Of classes and pictures in COCO results.
    """
    output, spec = predictor.module.task.output, predictor.info.target_spec
    if kind == "coco":
        if output.objects is None:
            raise ValueError(f"{predictor.module.task.name} has no objects to list")
        yield from _coco_lines(records, output.objects, numbers or CocoNumbers.of(spec))
    elif kind == "jsonl":
        yield from (json_row(output, record) for record in records)
    else:
        header = csv_header(output, spec, request)
        for record in records:
            yield header + csv_rows(output, record, spec, request)
            header = ""


def csv_header(output: Output, spec: TargetSpec, request: Request) -> str:
    """Return the first line of the CSV: ``path``, the columns of the task[, ``unlike_training``], ``error``."""
    return csv_text(
        [["path", *output.header(spec, request), *(["unlike_training"] if request.unlike else []), "error"]]
    )


def csv_rows(output: Output, record: Record, spec: TargetSpec, request: Request) -> str:
    """Return a prediction as lines of CSV, one or more, that no spreadsheet takes for a formula."""
    share = None if record.unlike_training is None else f"{record.unlike_training:.4f}"
    more = [*([share] if request.unlike else []), record.error]
    return csv_text([[record.path, *cells, *more] for cells in output.cells(record, spec, request)])


def unlike_values(record: Record) -> dict[str, float]:
    """Return ``unlike_training`` of a record, where it is known."""
    return {} if record.unlike_training is None else {"unlike_training": round(record.unlike_training, 4)}


def json_row(output: Output, record: Record) -> str:
    """Return a prediction as a line of JSON: path, what the task says, `unlike_values`, error."""
    error = None if record.error is None else valid_text(record.error)
    values = {"path": valid_text(record.path), **output.values(record), **unlike_values(record), "error": error}
    return _json(values) + "\n"


def _coco_lines(records: Iterable[Record], objects: ObjectResults, numbers: CocoNumbers) -> Iterator[str]:
    """Yield one list of the entries of all pictures, and warn of pictures that one number stands for."""
    begun, seen, double = "[", set[int | str](), 0
    for record in records:
        key = numbers.image(record.path)
        double += key in seen
        seen.add(key)
        for entry in [] if record.error is not None else objects.entries(record, key, numbers.categories):
            yield f"{begun}\n{_json(entry)}"
            begun = ","
    yield "[]\n" if begun == "[" else "\n]\n"
    if double:
        warnings.warn(
            f"{double:,} pictures have the image_id of another one, since ids are the names of files without folder "
            "and ending - tell them apart by file_name, or predict one folder at a time",
            TransferkitWarning,
            stacklevel=2,
        )


def _json(values: object) -> str:
    return json.dumps(values, ensure_ascii=False, allow_nan=False)
