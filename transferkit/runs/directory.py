"""The run directory: who may write into it, and what replaces what."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from transferkit.core.errors import CheckpointError, StorageError
from transferkit.core.files import storage_errors
from transferkit.core.locks import hold

__all__ = ["LOCK", "default_run_dir", "is_complete", "named_run_dir", "open_run_dir", "prepare_run_dir", "run_stem"]

LONGEST_NAME = 80
"""Bytes of a name that become part of another: file systems take 255, and the kind, a number and more are added."""

LOCK = ".lock"
"""Lies in a directory while somebody writes to it."""


def default_run_dir(data: str, backbone: str) -> Path:
    """Return ``runs/<data>-<backbone>-<n>``, with the first free number."""
    stem = run_stem(data, backbone)
    number = 1
    while (Path("runs") / f"{stem}-{number}").exists():
        number += 1
    return Path("runs") / f"{stem}-{number}"


@contextlib.contextmanager
def named_run_dir(out: str | None, data: str, backbone: str) -> Iterator[Path]:
    """Yield the directory of a run: the one that was named, else the first free default.

    A default is made at once, so that no other run takes it, and taken away again where nothing was written.

    Args:
        out: Its path; ``None`` for the default.
        data: What the run is about.
        backbone: Likewise.

    Raises:
        StorageError: The default cannot be made.
    """
    if out is not None:
        yield Path(out)
        return
    run = default_run_dir(data, backbone)
    with storage_errors("create", run):
        while True:
            try:
                run.mkdir(parents=True)
                (run / LOCK).touch()  # says what it is, to whoever looks for pictures
                break
            except FileExistsError:
                run = default_run_dir(data, backbone)
    try:
        yield run
    finally:
        with contextlib.suppress(OSError):
            if all(item.name == LOCK for item in run.iterdir()):
                (run / LOCK).unlink(missing_ok=True)
                run.rmdir()


def run_stem(data: str, backbone: str) -> str:
    """Return ``<data>-<backbone>``, fit for a file name: of long names the beginning."""
    names = (re.sub(r"[^\w.-]+", "_", part).strip("_") or "data" for part in (Path(data).stem, backbone))
    return "-".join(name.encode()[:LONGEST_NAME].decode(errors="ignore") for name in names)


def is_complete(run: Path) -> bool:
    """Whether a run has come to its end: its metrics are the last file written."""
    return (run / "metrics.json").is_file()


def prepare_run_dir(run: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a directory that a run cannot be written to, before any work is done. Creates nothing.

    Raises:
        CheckpointError: It holds something and neither `resume` nor `overwrite` is set; or there is nothing to resume.
    """
    if run.exists() and not run.is_dir():
        raise CheckpointError(f"{run}: is a file, expected a directory - give another --out")
    filled = run.is_dir() and any(item.name != LOCK for item in run.iterdir())
    if resume:
        if not filled:
            raise CheckpointError(f"{run}: nothing to resume - start without --resume")
        if not (run / "config.yaml").is_file():
            raise CheckpointError(f"{run}: holds no run (no config.yaml), so there is nothing to resume - check --out")
    elif filled and not overwrite:
        raise CheckpointError(
            f"{run}: is not empty - go on with it by --resume, replace it by --overwrite, or give another --out"
        )
    if overwrite and filled and not ((run / "config.yaml").is_file() or is_complete(run)):
        raise CheckpointError(
            f"{run}: holds no run (no config.yaml), so --overwrite will not replace it - give another --out"
        )


@contextlib.contextmanager
def open_run_dir(run: Path, *, resume: bool, overwrite: bool) -> Iterator[Path]:
    """Create and lock a run directory for the time of the block; yield its path.

    With `overwrite` an earlier run is moved aside and deleted only when the block succeeds; after a failure it is put
    back in its place.

    Raises:
        CheckpointError: Another process has it, or has filled it meanwhile.
        StorageError: It cannot be created or written to.
    """
    aside = run.with_name(f".{run.name}.replaced")
    if aside.exists() and not run.exists():
        with storage_errors("restore", run):
            aside.rename(run)  # an earlier --overwrite was killed before it could put the old run back
    existing = run.is_dir()
    with _lock(run) if existing else contextlib.nullcontext():
        if not resume:
            prepare_run_dir(run, resume=False, overwrite=overwrite)  # another run may have come and gone
        replaced = overwrite and existing and any(item.name != LOCK for item in run.iterdir())
        if replaced:
            with storage_errors("move aside", run):
                shutil.rmtree(aside, ignore_errors=True)
                run.rename(aside)
                (aside / LOCK).unlink(missing_ok=True)
    with storage_errors("create", run):
        run.mkdir(parents=True, exist_ok=True)
    with _lock(run):
        try:
            _probe(run)
            yield run
        except BaseException:
            if replaced and not (run / "checkpoints").exists():
                shutil.rmtree(run, ignore_errors=True)
                aside.rename(run)
            elif not existing:
                with contextlib.suppress(OSError):
                    (run / LOCK).unlink(missing_ok=True)
                    run.rmdir()  # only when nothing was written
            raise
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def _lock(run: Path) -> Iterator[None]:
    """Hold an exclusive lock on a directory that is there; the system drops it with the process, however that ends."""
    path = run / LOCK
    with hold(path, wait=False) as held:
        if not held:
            with contextlib.suppress(FileNotFoundError):
                owner = path.read_text(encoding="utf-8", errors="replace") or "another process"
                raise CheckpointError(f"{run}: locked by {owner} - wait for it to end, or give another --out")
            raise CheckpointError(f"{run}: another process has just let go of it - run again")
        with storage_errors("lock", path):
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
            ours = path.stat()
        try:
            yield
        finally:  # only what is still ours, and nothing that would hide why the block failed
            with contextlib.suppress(OSError):
                if os.path.samestat(ours, path.stat()):
                    path.unlink()


def _probe(run: Path) -> None:
    """Find out that a directory cannot be written to before training, not after."""
    try:
        with tempfile.NamedTemporaryFile(dir=run, prefix=".probe.", suffix=".tmp"):
            pass
    except OSError as error:
        raise StorageError(f"cannot write to {run}: {error.strerror} - give another --out") from error
