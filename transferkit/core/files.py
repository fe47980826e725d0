"""Files that appear whole or not at all: temporary file beside the target, fsync, rename."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from transferkit.core.errors import StorageError

__all__ = [
    "atomic_write",
    "sha256_of_file",
    "storage_errors",
    "sync_directory",
    "user_cache",
    "write_atomically",
    "write_json",
]


def user_cache() -> Path:
    """Return the folder of what can be made anew: ``$XDG_CACHE_HOME/transferkit``, or ``~/.cache/transferkit``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification has a relative path ignored.
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "transferkit"


@contextlib.contextmanager
def storage_errors(action: str, path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an `OSError` inside the block into a `StorageError` that names `action` and `path`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(
            f"cannot {action} {os.fspath(path)!r}: {reason} - check free space and permissions, then run again"
        ) from error


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step.

    An earlier file at `path` stays untouched until the new one is complete on disk, and after any failure.

    Args:
        path: The target. Its directory must exist.
        write: Called with the temporary path; must create or fill that file.

    Raises:
        StorageError: The disk is full, read-only or failing. The temporary file is removed.
    """
    target = Path(path)
    with storage_errors("write", target):
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)  # mkstemp makes 0600; a run directory is shared like any other file
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(target.parent)


def atomic_write(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write text (UTF-8) or bytes to `path`, whole or not at all. Raises `StorageError`.

    Bytes of file names that are no UTF-8 are written as escapes.
    """
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    write_atomically(path, lambda temporary: _fill(temporary, data))


def _fill(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON with a final newline. NaN is refused: it is not JSON. Raises `StorageError`."""
    atomic_write(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Flush a directory's entries, so that a rename survives a power cut. A no-op where the system has no such call."""
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """Return the hex digest of a file's bytes."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
