"""One look at a data set, without opening a picture: which files, which classes, which splits."""

from __future__ import annotations

import os
from pathlib import Path

from transferkit.core.errors import DataError
from transferkit.data.scan.folders import scan_folder
from transferkit.data.scan.manifest import MANIFEST_EXTENSIONS, scan_manifest
from transferkit.data.scan.problems import Scan

__all__ = ["scan_data"]


def scan_data(data: str | os.PathLike[str]) -> Scan:
    """List the pictures of a folder or of a CSV or Parquet manifest.

    Raises:
        DataError: There is nothing at `data`, or nothing that is a data set.
    """
    path = os.fspath(data)
    if Path(path).is_dir():
        return scan_folder(path)
    if Path(path).is_file():
        if path.lower().endswith(MANIFEST_EXTENSIONS):
            return scan_manifest(path)
        expected = " or ".join(MANIFEST_EXTENSIONS)
        raise DataError(f"{path!r} is a file - expected a folder of class folders, or a manifest ({expected})")
    raise DataError(f"nothing found at {path!r} - expected a folder of class folders or a manifest; check the path")
