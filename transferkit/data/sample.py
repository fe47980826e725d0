"""The bundled sample set: 360 drawn, photo-like pictures of six kinds of surface; nothing is downloaded.

They were drawn by a program, from a seed, and are shipped as the JPEG files that it wrote; see data/README.md.
"""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

from transferkit.core.errors import DataError
from transferkit.core.files import storage_errors, user_cache
from transferkit.options.data import SAMPLE

__all__ = ["SAMPLE", "sample_folder"]

_FOLDER = "sample-v1"  # another name where the pictures change: an old folder must not pass for the new set
_PICTURES = Path(__file__).with_name("sample_pictures.zip")


def sample_folder() -> Path:
    """Return the sample set as ``<class>/NNN.jpg`` in the user's cache, unpacked on first use.

    It appears whole or not at all, and several processes may ask at once. See `user_cache`.

    Raises:
        DataError: The folder is there but pictures are missing.
        StorageError: The cache cannot be written.
    """
    folder = user_cache() / _FOLDER
    with storage_errors("unpack the sample set in", folder), zipfile.ZipFile(_PICTURES) as archive:
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{_FOLDER}.", suffix=".tmp", dir=folder.parent) as work:
                unpacked = Path(work, "pictures")  # inside, because that folder is private and this one may be shared
                archive.extractall(unpacked)
                try:
                    unpacked.rename(folder)
                except OSError:
                    if not folder.is_dir():  # else another process was faster, and its folder is as good
                        raise
        names = archive.namelist()
        missing = sum(not (folder / name).is_file() for name in names)
    if missing:
        raise DataError(
            f"the sample set is damaged: {missing} of {len(names)} pictures are missing in {str(folder)!r} - delete "
            "that folder and run again, it is unpacked anew"
        )
    return folder
