"""The names of the classes of masks: a list of them, or a table of what stands for each in a mask file."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from transferkit.core.errors import DataError
from transferkit.core.files import user_path
from transferkit.core.targets import IGNORED
from transferkit.core.text import listing
from transferkit.data.scan.class_names import class_name_problems

__all__ = ["NAME_FILES", "Colour", "Palette", "read_palette"]

NAME_FILES: Final = ("classes.txt", "palette.csv")
"""What is looked for in a data folder."""

IGNORE: Final = "ignored"
"""The name, in any case, of rows whose pixels do not count."""

Colour: TypeAlias = tuple[int, int, int]

_MOST_VALUE: Final = 65_535
_SHAPES: Final = "name,value (a number of 0 to 65,535) or name,r,g,b (levels of 0 to 255)"


@dataclass(frozen=True)
class Palette:
    """What classes are called, and what stands for them.

    Attributes:
        path: The file.
        names: In index order.
        values: The number in a mask that stands for each; nothing where there are colours, or places alone count.
        colours: The colour in a mask that stands for each; nothing where there are none.
        ignored: Further numbers or colours, whose pixels do not count.
    """

    path: str
    names: tuple[str, ...]
    values: tuple[int, ...] = ()
    colours: tuple[Colour, ...] = ()
    ignored: tuple[int | Colour, ...] = ()


def read_palette(data: str, file: str | None) -> Palette | None:
    """Return the names of the classes of a data set; ``None`` where nobody gives any.

    Args:
        data: A folder or a manifest; `NAME_FILES` are looked for there.
        file: A file of either kind, which comes first.

    Raises:
        DataError: The file cannot be read or is none of these, or there are two.
    """
    if file is not None:
        return _read(Path(user_path(file)))
    place = Path(user_path(data))
    folder = place if place.is_dir() else place.parent
    there = [folder / name for name in NAME_FILES if (folder / name).is_file()]
    if len(there) > 1:
        names = listing([path.name for path in there])
        raise DataError(f"{str(folder)!r} has {names}, which both name the classes - name one of them by --palette")
    return _read(there[0]) if there else None


def _read(path: Path) -> Palette:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read the palette {str(path)!r}: {error.strerror} - check the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"the palette {str(path)!r} is no UTF-8 text - save it as UTF-8") from error
    rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text))]
    rows = [row for row in rows if any(row)]
    table = path.suffix.lower() == ".csv"
    palette = _table(path, rows) if table else Palette(str(path), tuple(line for line in _lines(text)))
    problems = [problem.message for problem in class_name_problems(palette.names)]
    if not palette.names:
        problems.append("it names no class")
    if len(palette.names) > IGNORED:
        problems.append(f"it names {len(palette.names)} classes, expected at most {IGNORED}")
    if twice := _repeated(palette.names):
        problems.append(f"names that stand twice: {listing(twice)}")
    if twice := _repeated([*map(str, palette.values or palette.colours), *map(str, palette.ignored)]):
        problems.append(f"{'colours' if palette.colours else 'values'} that stand twice: {listing(twice, quote=False)}")
    if problems:
        raise DataError(f"the palette {str(path)!r}: {'; '.join(problems)} - correct it")
    return palette


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _table(path: Path, rows: Sequence[Sequence[str]]) -> Palette:
    header = tuple(cell.lower() for cell in rows[0]) if rows else ()
    width = {("name", "value"): 1, ("name", "r", "g", "b"): 3}.get(header)
    if width is None:
        columns = ",".join(header)
        raise DataError(f"the palette {str(path)!r} starts with {columns!r}, expected the columns {_SHAPES}")
    most = _MOST_VALUE if width == 1 else 255
    odd = [
        ",".join(row)
        for row in rows[1:]
        if len(row) != 1 + width or not all(re.fullmatch("[0-9]{1,5}", cell) and int(cell) <= most for cell in row[1:])
    ]
    if odd:
        raise DataError(f"the palette {str(path)!r}: rows {listing(odd)}, expected {_SHAPES} - correct them")
    entries = [(row[0], tuple(map(int, row[1:]))) for row in rows[1:]]
    named = [(name, value) for name, value in entries if name.lower() != IGNORE]
    names = tuple(name for name, _ in named)
    left = tuple(value for name, value in entries if name.lower() == IGNORE)
    if width == 1:
        return Palette(
            str(path), names, values=tuple(value[0] for _, value in named), ignored=tuple(v[0] for v in left)
        )
    return Palette(
        str(path),
        names,
        colours=tuple((r, g, b) for _, (r, g, b) in named),
        ignored=tuple((r, g, b) for r, g, b in left),
    )


def _repeated(values: Sequence[str]) -> list[str]:
    return sorted({value for value in values if values.count(value) > 1})
