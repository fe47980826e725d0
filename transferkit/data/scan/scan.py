"""One look at a data set, without opening a picture: which files, which classes, which splits."""

from __future__ import annotations

import os
from pathlib import Path

from transferkit.core.errors import DataError
from transferkit.core.files import user_path
from transferkit.data.objects.layout import scan_objects
from transferkit.data.sample import SAMPLE, sample_folder
from transferkit.data.scan.columns import CLASS_COLUMN, Columns
from transferkit.data.scan.folders import scan_folder
from transferkit.data.scan.manifest import is_manifest, scan_manifest
from transferkit.data.scan.pairs import scan_pairs
from transferkit.data.scan.records import Scan
from transferkit.options.data import MANIFEST_EXTENSIONS

__all__ = ["scan_data"]


def scan_data(data: str, columns: Columns = CLASS_COLUMN) -> Scan:
    """List the pictures of a folder, of a CSV or Parquet manifest, of a COCO file, or of the bundled sample set.

    Args:
        data: Its path, or ``"sample"``.
        columns: Where the answers stand: of a manifest its columns, of a folder whether they are files, or objects.

    Raises:
        DataError: There is nothing at `data`, or nothing that is a data set, or two things go by that name.
        StorageError: The sample set cannot be unpacked.
    """
    if data == SAMPLE and Path(data).exists():
        raise DataError(
            f"{SAMPLE!r} stands for the bundled pictures, and there is a {str(Path(data).absolute())!r}, too - pass "
            f"{os.path.join('.', SAMPLE)!r} for yours, or go to another folder for the bundled ones"  # noqa: PTH118
        )
    path = str(sample_folder()) if data == SAMPLE else user_path(data)
    if columns.objects and Path(path).exists():
        return scan_objects(path, lenient=columns.lenient, numbered=columns.numbered)
    if Path(path).is_dir():
        return scan_pairs(path, lenient=columns.lenient) if columns.files else scan_folder(path)
    if Path(path).is_file():
        if is_manifest(path):
            return scan_manifest(path, columns)
        expected = " or ".join(MANIFEST_EXTENSIONS)
        raise DataError(
            f"{path!r} is a file - expected a folder of class folders, a manifest ({expected}) or a COCO file"
        )
    raise DataError(
        f"nothing found at {path!r} - expected a folder of pictures, a manifest or a COCO file; check the path"
    )
