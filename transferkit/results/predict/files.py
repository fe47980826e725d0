"""The files that belong to records, such as masks: in a folder that appears when all are there, none named alike."""

from __future__ import annotations

import hashlib
import os
import shutil
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from transferkit.core.errors import ConfigError
from transferkit.core.files import put_in_place, staging_folder, storage_errors
from transferkit.data.scan.named import STDIN
from transferkit.models.module import TransferModule
from transferkit.models.parts import Record
from transferkit.models.record_files import RecordFiles
from transferkit.options.results import PredictConfig
from transferkit.results.predict.colours import is_mask_png
from transferkit.results.predict.lines import format_of
from transferkit.results.predict.predictor import Predictor
from transferkit.training.ranks.parallel import is_writer, on_first

__all__ = ["FileNames", "Files", "files_of", "filling", "masks_folder"]

LONGEST_STEM: Final = 220
"""Bytes of a name without its ending; file systems take 255."""


def files_of(module: TransferModule) -> RecordFiles | None:
    """Return what makes the files that belong to a model's records; ``None`` where it gives nothing for them."""
    files: RecordFiles | None = module.task.output.files
    return files if files is not None and files.given_by(module.head) else None


def masks_folder(config: PredictConfig, predictor: Predictor) -> str | None:
    """Return the folder of the files that belong to records, ``None`` for none; refuse one that cannot be written to.

    A folder is replaced only where it holds nothing but such files.
    """
    folder = config.masks
    if files_of(predictor.module) is None:
        if folder is not None:
            raise ConfigError(
                f"--masks is a folder for masks, and this model of {predictor.module.task.name} gives none - leave it "
                "out"
            )
        return None
    if folder is None and format_of(config) == "coco":
        return None  # the masks stand in the results
    if folder is None:
        if config.out is None or (Path(config.out).exists() and not Path(config.out).is_file()):  # a pipe, a device
            return None
        folder = str(Path(config.out).with_suffix("")) + "-masks"
    path = Path(folder)
    whole, out = path.resolve(), None if config.out is None else Path(config.out).resolve()
    if path.exists() and not path.is_dir():
        raise ConfigError(f"--masks {path}: is a file, expected a folder - name another")
    if not whole.parent.is_dir():
        raise ConfigError(f"--masks {path}: the folder {path.parent} does not exist - make it, or name another")
    if path.is_mount() or (out is not None and out.is_relative_to(whole)):
        holds = "a disk of its own" if path.is_mount() else f"where --out {config.out} lies"
        raise ConfigError(f"--masks {path}: is {holds}, and appears as a whole - name a folder inside, or another")
    above = [name for name in config.paths if name != STDIN and Path(name).is_dir()]
    above = [name for name in above if whole.is_relative_to(Path(name).resolve())]
    if above:
        raise ConfigError(
            f"--masks {path}: lies in {above[0]}, where the next time its masks would be taken for pictures - name a "
            "folder elsewhere by --masks"
        )
    if path.is_dir() and any(path.iterdir()):
        if not config.overwrite:
            raise ConfigError(f"--masks {path}: is not empty - replace it by --overwrite, or name another")
        with storage_errors("read", path):
            other = next((one for one in path.rglob("*") if not one.is_dir() and not is_mask_png(one)), None)
        if other is not None:
            raise ConfigError(
                f"--masks {path}: holds {other.relative_to(path)}, which predict did not write, so --overwrite will "
                "not replace it - name another"
            )
    return folder


class Files:
    """The files that belong to records; without a folder none is written, and records forget what they would hold.

    Args:
        predictor: The model.
        folder: Where they are in the end.
        staging: Where they are until all are there.
    """

    def __init__(self, predictor: Predictor, folder: str | None, staging: Path | None) -> None:
        self._part, self._spec = files_of(predictor.module), predictor.info.target_spec
        self.folder, self.staging = folder, staging
        self._names = FileNames("" if self._part is None else self._part.ending)

    def name(self, below: str) -> str:
        """Return what the file of a picture is called, in the first process; nothing where none is written."""
        return "" if self.staging is None else self._names.of(below)

    def written(self, record: Record, name: str) -> Record:
        """Return a record whose file is written."""
        if self._part is None:
            return record
        if self.folder is None or self.staging is None or record.error is not None:
            bare: Record = self._part.written(record, None)
            return bare
        path = self.staging / name
        with storage_errors("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self._part.content(record, self._spec))
        full: Record = self._part.written(record, str(Path(self.folder) / name))
        return full

    def put_in_place(self) -> None:
        """Let the files appear, once all are written."""
        if self.folder is not None and self.staging is not None:
            put_in_place(self.staging, self.folder)


@contextmanager
def filling(predictor: Predictor, folder: str | None) -> Iterator[Files]:
    """Yield the files; what is not in place at the end of the block is deleted."""
    staging = None if folder is None else on_first(staging_folder, folder)
    try:
        yield Files(predictor, folder, staging)
    finally:
        if staging is not None and is_writer():
            shutil.rmtree(staging, ignore_errors=True)


class FileNames:
    """Names of files that belong to pictures, by the pictures' paths: no two are the same, not even but for case.

    The names hang only on the pictures and their order. A digest of each is kept.

    Args:
        ending: Of the names, which takes the place of a picture's own.
    """

    def __init__(self, ending: str) -> None:
        self.ending = ending
        self._files: set[bytes] = set()
        self._folders: set[bytes] = set()

    def of(self, path: str) -> str:
        """Return the name for a picture of a relative path: ``"b.png"`` for ``"b.jpg"``, and ``"b-2.png"`` after it."""
        *folders, last = Path(path).parts or ("picture",)
        place = ""
        for name in folders:
            place = self._free(place, name, "", self._files)  # a file may be called like a folder
            self._folders.add(_key(place))
        taken = self._free(place, os.path.splitext(last)[0], self.ending, self._files, self._folders)  # noqa: PTH122
        self._files.add(_key(taken))
        return taken

    def _free(self, place: str, stem: str, ending: str, *taken: set[bytes]) -> str:
        if len(os.fsencode(stem)) > LONGEST_STEM:
            stem = os.fsencode(stem)[:LONGEST_STEM].decode(errors="ignore")
        name, number = str(Path(place, stem + ending)), 1
        while any(_key(name) in names for names in taken):
            number += 1
            name = str(Path(place, f"{stem}-{number}{ending}"))
        return name


def _key(name: str) -> bytes:
    """Return what two names have in common that a file system may take for one."""
    plain = unicodedata.normalize("NFC", name).casefold()
    return hashlib.blake2b(os.fsencode(plain), digest_size=8).digest()
