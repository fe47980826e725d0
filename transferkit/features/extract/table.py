"""Features of a data set as arrays: X and y, with the records they come from; exported to npz, Parquet or CSV."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.core.csv import csv_lines
from transferkit.core.errors import ConfigError, did_you_mean
from transferkit.core.files import write_atomically
from transferkit.core.records import ImageRecord
from transferkit.core.text import valid_text
from transferkit.data.index.index import ImageIndex

__all__ = ["EXPORTS", "FeatureTable", "check_export"]

EXPORTS = (".npz", ".parquet", ".csv")


@dataclass(frozen=True)
class FeatureTable:
    """Features of a data set; ``X, y = table`` takes it apart.

    Attributes:
        layers: ``(N, D) float32`` of the evaluation view, by layer, from input to output; the last one is `X`.
        y: ``(N,) int64``, class indices.
        records: The picture of each row: path, label, split, sha256, group.
        views: ``(K, N, D) float32`` of the augmented views, by layer; empty when there are none.
        facts: What the features were made with: backbone, precision, image size, and so on.
        index: The data set: classes, splits, skipped files, notes.
    """

    layers: Mapping[str, npt.NDArray[np.float32]]
    y: npt.NDArray[np.int64]
    index: ImageIndex = field(repr=False)
    records: tuple[ImageRecord, ...] = field(repr=False)
    views: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names; position is class index."""
        return self.index.class_names

    @property
    def X(self) -> npt.NDArray[np.float32]:
        """Features ``(N, D) float32`` of the deepest layer."""
        return self.layers[list(self.layers)[-1]]

    @property
    def paths(self) -> list[str]:
        """The file of each row."""
        return [record.path for record in self.records]

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        return iter((self.X, self.y))

    def __len__(self) -> int:
        return len(self.records)

    def split(self, name: str) -> FeatureTable:
        """Return the rows of one split, ``"train"``, ``"val"`` or ``"test"``; there may be none."""
        chosen = [row for row, record in enumerate(self.records) if record.split == name]
        return replace(
            self,
            layers={layer: rows[chosen] for layer, rows in self.layers.items()},
            y=self.y[chosen],
            records=tuple(self.records[row] for row in chosen),
            views={layer: rows[:, chosen] for layer, rows in self.views.items()},
        )

    def save(self, path: str | Path) -> None:
        """Write the table to ``.npz``, ``.parquet`` or ``.csv``, whole or not at all.

        All three have ``path, label, split, sha256`` per row. The features are in ``X`` (npz; with ``y``,
        ``class_names``, and ``X_<layer>``, ``views_<layer>`` where there are several), in a list column ``features``
        (Parquet; ``features_<layer>``), or in columns ``f0, f1, ...`` (CSV; deepest layer and evaluation view only).

        Raises:
            ConfigError: The ending is another one, or Parquet's library is not installed.
            StorageError: The disk is full or read-only.
        """
        target = Path(path)
        check_export(target)
        match target.suffix:
            case ".npz":
                write_atomically(target, self._write_npz)
            case ".parquet":
                write_atomically(target, self._write_parquet)
            case _:
                write_atomically(target, self._write_csv)

    def _columns(self) -> dict[str, list[str]]:
        return {
            "path": [valid_text(record.path) for record in self.records],
            "label": [valid_text(record.label) for record in self.records],
            "split": [record.split for record in self.records],
            "sha256": [record.sha256 for record in self.records],
        }

    def _write_npz(self, path: Path) -> None:
        arrays: dict[str, Any] = {"X": self.X, "y": self.y, "class_names": np.array(self.class_names)}
        if len(self.layers) > 1:
            arrays |= {f"X_{layer}": rows for layer, rows in self.layers.items()}
        arrays |= {f"views_{layer}": rows for layer, rows in self.views.items()}
        arrays |= {name: np.array(values) for name, values in self._columns().items()}  # text, never objects
        with path.open("wb") as stream:
            np.savez(stream, **arrays)

    def _write_parquet(self, path: Path) -> None:
        arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
        columns: dict[str, Any] = dict(self._columns())
        for layer, rows in self.layers.items():
            name = "features" if len(self.layers) == 1 else f"features_{layer}"
            columns[name] = arrow.FixedSizeListArray.from_arrays(rows.reshape(-1), rows.shape[1])
        for layer, views in self.views.items():
            for number, rows in enumerate(views, 1):
                columns[f"view{number}_{layer}"] = arrow.FixedSizeListArray.from_arrays(rows.reshape(-1), rows.shape[1])
        parquet.write_table(arrow.table(columns), path)

    def _write_csv(self, path: Path) -> None:
        columns = self._columns()
        header = (*columns, *(f"f{number}" for number in range(self.X.shape[1])))
        # A float32 is written in the shortest decimals that read back as it.
        rows = ((*facts, *row) for *facts, row in zip(*columns.values(), self.X, strict=True))
        with path.open("w", newline="", encoding="utf-8") as stream:
            stream.writelines(csv_lines(chain((header,), rows)))


def check_export(path: Path) -> None:
    """Refuse a file that a table could not be written to, before any work is done.

    Raises:
        ConfigError: The ending is unknown, the folder is missing, or Parquet's library is not installed.
    """
    if path.suffix not in EXPORTS:
        raise ConfigError(
            f"--out {path}: unknown ending {path.suffix!r}.{did_you_mean(path.suffix, EXPORTS)} Known: "
            f"{', '.join(EXPORTS)}"
        )
    if path.is_dir():
        raise ConfigError(f"--out {path}: is a folder, expected a file to write - name another")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--out {path}: the folder {path.parent} does not exist - make it, or name another")
    if path.suffix == ".parquet":
        try:
            importlib.import_module("pyarrow.parquet")
        except ModuleNotFoundError as error:
            raise ConfigError(f"--out {path}: Parquet needs pyarrow - pip install pyarrow, or use .npz") from error
