"""Which pictures an export is compared on, and which ones int8 is calibrated with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from transferkit.core.csv import read_csv
from transferkit.core.errors import ExportError
from transferkit.core.files import sha256_of_file
from transferkit.runs.labelled import labelled_pictures

__all__ = ["ExportPictures", "export_pictures"]

_Item = TypeVar("_Item")

CALIBRATING: Final = 128
"""Pictures that int8 ranges are measured on, at most."""


@dataclass(frozen=True)
class ExportPictures:
    """Picture files.

    Attributes:
        compared: Those that both models see, spread over all there are.
        calibrating: Those that int8 ranges are measured on; not compared on, where there are others.
        origin: Those compared on, in words.
    """

    compared: tuple[str, ...]
    calibrating: tuple[str, ...]
    origin: str


def export_pictures(run: Path, class_names: Sequence[str], *, data: str | None, most: int) -> ExportPictures:
    """Choose pictures: of `data`; without it the run's validation pictures, as `pictures.csv` or `predictions.csv` say.

    Args:
        run: The run directory.
        class_names: Of the model, in index order.
        data: Labelled pictures.
        most: Pictures to compare on, at most.

    Raises:
        ExportError: There is no picture.
        DataError: `data` is not labelled pictures.
        StorageError: A table of the run cannot be read.
    """
    if data is not None:
        splits = labelled_pictures(data, class_names, skip_bad=True).splits
        name = next(iter(splits))
        held = [picture.path for picture in splits[name]]
        compared = _spread(held, most)
        rest = sorted({picture.path for pictures in splits.values() for picture in pictures} - set(compared))
        return ExportPictures(tuple(compared), tuple(_spread(rest or compared, CALIBRATING)), f"pictures of {data}")
    rows = read_csv(run / "pictures.csv") if (run / "pictures.csv").is_file() else []
    digests = {row["path"]: row["sha256"] for row in rows if row["split"] == "val"}
    if not digests and (run / "predictions.csv").is_file():
        digests = {row["path"]: "" for row in read_csv(run / "predictions.csv") if row["split"] == "val"}
    there = [path for path in digests if Path(path).is_file()]
    compared = [path for path in _spread(there, most) if digests[path] in ("", sha256_of_file(path))]
    if not compared:
        seen = f"{len(digests)} validation pictures, none of which is there unchanged" if digests else "none"
        raise ExportError(
            f"{run}: an export is compared on real pictures before it appears, but the run lists {seen} - "
            "pass --data with labelled pictures"
        )
    trained = [row["path"] for row in rows if row["split"] == "train" and Path(row["path"]).is_file()]
    others = trained or sorted(set(there) - set(compared)) or compared
    return ExportPictures(tuple(compared), tuple(_spread(others, CALIBRATING)), "validation pictures of the run")


def _spread(items: Sequence[_Item], most: int) -> list[_Item]:
    """Return at most so many items, evenly over the whole sequence."""
    count = min(most, len(items))
    return [items[number * len(items) // count] for number in range(count)]
