"""Checkpoints that are whole, verified and free of code.

A checkpoint is torch's zip archive: every record in it carries a CRC-32, and `verify_checkpoint` reads them all. That
tells a damaged file from a whole one without a second file that could go missing. Loading is always `weights_only`.
"""

from __future__ import annotations

import pickle
import shutil
import signal
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from transferkit import __version__
from transferkit.core.errors import CheckpointError, Interrupted, StorageError, TransferkitWarning, gather
from transferkit.core.files import storage_errors, write_atomically
from transferkit.core.text import first_line, listing
from transferkit.data.index.index import ImageIndex
from transferkit.machine.lightning_import import L, TorchCheckpointIO
from transferkit.runs.files import RunFiles

__all__ = [
    "FORMAT",
    "AtomicCheckpointIO",
    "Checkpoints",
    "foreign_checkpoint",
    "load_checkpoint",
    "newest_checkpoint",
    "resume_point",
    "verify_checkpoint",
]

FORMAT = 1
"""Grows when an older transferkit can no longer read what a newer one writes."""

KEY = "transferkit"

REMEDY = "delete it, and resume from another or start anew"


class Checkpoints:
    """The checkpoints of a run: the newest one, and a copy of the one of the best epoch.

    Args:
        run: The run directory.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.last = run / "checkpoints" / "last.ckpt"
        self.best = run / "checkpoints" / "best.ckpt"

    def save(self, trainer: L.Trainer, *, best: bool = False) -> None:
        """Write `last.ckpt`. All processes call it, the first one writes.

        Args:
            trainer: Whose state is saved.
            best: Whether it is also the best so far.

        Raises:
            StorageError: The run directory has vanished, or the disk is full or read-only.
        """
        if trainer.is_global_zero and not self.run.is_dir():
            raise StorageError(f"{self.run}: the run directory has vanished - leave it alone while it is written to")
        trainer.save_checkpoint(self.last, weights_only=False)
        if best and trainer.is_global_zero:
            write_atomically(self.best, lambda temporary: _copy(self.last, temporary))

    def interrupted(self, signum: int) -> Interrupted:
        """Return the error of a training that a signal stopped after its state was saved."""
        name = signal.Signals(signum).name
        return Interrupted(f"stopped by {name}; saved {self.last} - go on with --resume --out {self.run}", signum)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes, reads back, renames: an earlier checkpoint survives every failure."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint whole or not at all. Raises `StorageError`, or `CheckpointError` for a failing disk."""
        checkpoint[KEY] = {"version": __version__, "format": FORMAT}
        target = Path(path)
        with storage_errors("create", target.parent):
            target.parent.mkdir(exist_ok=True)  # not its parents: a run directory that vanished stays so

        def write(temporary: Path) -> None:
            with temporary.open("wb") as stream:  # through Python, whose errors say "disk full" and torch's do not
                try:
                    torch.save(checkpoint, stream)
                except RuntimeError as error:  # torch ends the archive all the same, and finds it too short
                    if isinstance(error.__context__, OSError):
                        raise error.__context__ from None
                    raise
            problem = verify_checkpoint(temporary)
            if problem:
                raise CheckpointError(
                    f"{target}: what was just written cannot be read back: {problem} - check the disk"
                )

        write_atomically(target, write)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a checkpoint onto the CPU; objects other than plain data and tensors are refused."""
        return load_checkpoint(path)


def verify_checkpoint(path: Path) -> str | None:
    """Return what is wrong with the file's bytes, or ``None`` when every record matches its checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # of damaged bytes it may say that their compression is not implemented
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError) as error:
        return f"not a whole checkpoint ({error})"
    return None if damaged is None else f"record {damaged!r} does not match its checksum"


def load_checkpoint(path: Any) -> dict[str, Any]:
    """Load a checkpoint to resume from.

    Raises:
        CheckpointError: Missing, damaged, with code in it, weights only, or of a newer transferkit.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"{file}: no such checkpoint - start without --resume, or give the right --out")
    problem = verify_checkpoint(file)
    if problem:
        raise CheckpointError(f"{file}: {problem} - {REMEDY}")
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file}: holds objects other than tensors and plain data, refused ({first_line(error)}) - use a "
            "checkpoint that transferkit wrote"
        ) from error
    except OSError:
        raise
    except Exception as error:  # of a whole archive with other records in it: nearly anything
        raise CheckpointError(f"{file}: cannot be loaded ({first_line(error)}) - {REMEDY}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(f"{file}: not a training checkpoint - expected one that transferkit wrote")
    if "optimizer_states" not in checkpoint or "loops" not in checkpoint:
        raise CheckpointError(f"{file}: holds weights only, a resume needs the optimizer too - pass it to --init-from")
    kinds = {"state_dict": dict, "optimizer_states": list, "loops": dict, "callbacks": dict, KEY: dict}
    stamp = checkpoint.get(KEY, {})
    odd = [name for name, kind in kinds.items() if not isinstance(checkpoint.get(name, kind()), kind)]
    if odd or not isinstance(stamp.get("format", 0), int):
        raise CheckpointError(f"{file}: {listing(odd or [KEY])} in it cannot be right - {REMEDY}")
    if stamp.get("format", 0) > FORMAT:
        raise CheckpointError(
            f"{file}: written by transferkit {stamp.get('version')}, newer than this one ({__version__}) - upgrade"
        )
    return checkpoint


def foreign_checkpoint(path: str | Path, error: Exception) -> CheckpointError:
    """Return the error of a whole checkpoint whose values are not those that a training of this run holds."""
    return CheckpointError(f"{path}: is whole, but not of this training ({first_line(error)}) - {REMEDY}")


def newest_checkpoint(directory: Path) -> tuple[Path, list[str]]:
    """Return the newest whole checkpoint of a run, and what was wrong with newer ones.

    Args:
        directory: The run's ``checkpoints`` folder.

    Raises:
        CheckpointError: There is none.
    """
    paths = [directory / name for name in ("last.ckpt", "best.ckpt") if (directory / name).is_file()]
    if not paths:
        raise CheckpointError(
            f"{directory}: no checkpoint to resume from - start without --resume (add --overwrite to replace the run)"
        )
    damaged: list[str] = []
    for path in paths:
        problem = verify_checkpoint(path)
        if problem is None:
            return path, damaged
        damaged.append(f"{path.name}: {problem}")
    raise CheckpointError(f"{directory}: no whole checkpoint: {'; '.join(damaged)} - start anew with --overwrite")


def resume_point(run: Path, index: ImageIndex) -> Path:
    """Return the checkpoint to go on from, after making sure that it is of the same data.

    Args:
        run: The run directory.
        index: The pictures as they are now.

    Raises:
        CheckpointError: There is no whole checkpoint, or the data have changed.
    """
    path, damaged = newest_checkpoint(run / "checkpoints")
    for problem in damaged:
        warnings.warn(f"{problem}; going on from {path.name}", TransferkitWarning, stacklevel=2)
    load_checkpoint(path)
    files = RunFiles(run)
    before = files.data
    classes = list(index.class_names)
    problems = []
    if before["classes"] != classes:
        problems.append(f"classes were {before['classes']}, are now {classes}")
    elif before["digest"] != index.digest():
        now = {split: len(index.split(split)) for split in index.counts()}
        problems.append(f"pictures were {files.sizes}, are now {now}, or others")
    if problems:
        raise CheckpointError(f"{run}: the data changed since the run began: {gather(problems)} - give another --out")
    return path
