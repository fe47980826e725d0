"""The columns of a manifest that hold a picture's answer, and how they become the one text of a record."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from transferkit.core.errors import ConfigError
from transferkit.core.records import Finding
from transferkit.core.text import listing
from transferkit.data.scan.class_names import class_name_problems

__all__ = [
    "CLASS_COLUMN",
    "JOINT",
    "Columns",
    "file_column",
    "label_columns",
    "number",
    "number_columns",
    "split_labels",
]

JOINT = "|"
"""What stands between the answers of a picture in the text of a record."""

_YES, _NO = frozenset({"1", "1.0", "true", "yes"}), frozenset({"", "0", "0.0", "false", "no"})


def _alone(names: Sequence[str], cells: Sequence[str]) -> str:
    return cells[0]


@dataclass(frozen=True)
class Columns:
    """Where the answer of a row stands.

    Attributes:
        choices: Sets of columns, one of which has to be there; the first that is there whole is taken.
        text: Makes one text of the cells of these columns, from the columns' names and the cells. Raises `ValueError`
            with what is wrong, such as ``"'x' in 'red', expected a number"``.
        optional: Whether empty cells are an answer.
        name_problems: What is wrong with the texts of all rows, as names.
        path: The column of the paths.
        root: Folder that paths are relative to; that of the manifest when ``None``.
        files: Whether answers are files, as paths are: of a folder, those in ``masks`` beside ``images``.
        lenient: Whether pictures without such a file, and files without a picture, are left out instead of refused.
        objects: Whether answers are the objects of a COCO, Pascal VOC or YOLO set, which no manifest holds.
        numbered: Whether they may be numbers in masks, too.
    """

    choices: tuple[tuple[str, ...], ...] = (("label",),)
    text: Callable[[Sequence[str], Sequence[str]], str] = _alone
    optional: bool = False
    name_problems: Callable[[Iterable[str]], list[Finding]] = class_name_problems
    path: str = "path"
    root: str | None = None
    files: bool = False
    lenient: bool = False
    objects: bool = False
    numbered: bool = False

    def chosen(self, columns: Sequence[str]) -> tuple[str, ...]:
        """Return the columns of the answer in a table that has `columns`; the first choice where none is there."""
        whole = (choice for choice in self.choices if set(choice) <= set(columns))
        return next(whole, self.choices[0])


CLASS_COLUMN = Columns()
"""Of one class per picture."""


def split_labels(text: str, separator: str = JOINT) -> tuple[str, ...]:
    """Return the labels that a text lists, each once, without the spaces around them; nothing for an empty text."""
    parts = (part.strip() for part in text.split(separator))
    return tuple(dict.fromkeys(part for part in parts if part))


def label_columns(lists: Sequence[str], flags: Sequence[str], separator: str) -> Columns:
    """Return the columns of several labels per picture.

    Args:
        lists: Columns of which one lists the labels of a picture.
        flags: Columns, one per label, that hold 0 or 1.
        separator: What stands between the labels of a list.
    """

    def text(names: Sequence[str], cells: Sequence[str]) -> str:
        if set(names) != set(flags):
            labels = split_labels(cells[0], separator)
            if any(JOINT in label for label in labels):
                raise ValueError(f"{cells[0]!r} in {names[0]!r}, expected labels without {JOINT!r} in them")
            return JOINT.join(labels)
        for name, cell in zip(names, cells, strict=True):
            if cell.strip().lower() not in _YES | _NO:
                raise ValueError(f"{cell!r} in {name!r}, expected 0 or 1")
        chosen = [name for name, cell in zip(names, cells, strict=True) if cell.strip().lower() in _YES]
        return JOINT.join(chosen)

    def problems(texts: Iterable[str]) -> list[Finding]:
        return class_name_problems({label for one in texts for label in split_labels(one)})

    if any(JOINT in flag for flag in flags):
        raise ConfigError(f"--targets names {listing(flags)}, expected labels without {JOINT!r} - rename the columns")
    choices = (*((name,) for name in lists), *([tuple(flags)] if flags else []))
    return Columns(choices, text, optional=True, name_problems=problems)


def number_columns(choices: Sequence[Sequence[str]]) -> Columns:
    """Return the columns of one or several numbers per picture.

    Args:
        choices: As in `Columns`.
    """

    def text(names: Sequence[str], cells: Sequence[str]) -> str:
        for name, cell in zip(names, cells, strict=True):
            if number(cell) is None:
                raise ValueError(f"{cell!r} in {name!r}, expected a number")
        return JOINT.join(cell.strip() for cell in cells)

    return Columns(tuple(map(tuple, choices)), text, name_problems=lambda texts: [])


def file_column(name: str, *, lenient: bool = False) -> Columns:
    """Return the column of a file per picture.

    Args:
        name: The column.
        lenient: As in `Columns`.
    """
    return Columns(((name,),), name_problems=lambda texts: [], files=True, lenient=lenient)


def number(text: str) -> float | None:
    """Return the finite number that a text writes; ``None`` where it writes none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in text else None
