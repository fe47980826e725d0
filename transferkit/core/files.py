"""Files that appear whole or not at all: temporary file beside the target, fsync, rename."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from transferkit.core.errors import ConfigError, StorageError

__all__ = [
    "atomic_write",
    "is_too_long",
    "put_in_place",
    "require_new_file",
    "sha256_of_file",
    "staging_folder",
    "storage_errors",
    "stored_path",
    "sync_directory",
    "user_cache",
    "user_path",
    "write_atomically",
    "write_json",
]


def user_cache() -> Path:
    """Return the folder of what can be made anew: ``$XDG_CACHE_HOME/transferkit``, or ``~/.cache/transferkit``.

    Raises:
        StorageError: The user has no home folder.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if Path(base).is_absolute():  # the XDG specification has a relative path ignored
        return Path(base) / "transferkit"
    try:
        return Path.home() / ".cache" / "transferkit"
    except RuntimeError as error:
        raise StorageError(
            "this user has no home folder to keep features and measurements in - set XDG_CACHE_HOME to a folder that "
            "can be written, or pass --store"
        ) from error


def user_path(text: str) -> str:
    """Return a path as a shell would hand it over: ``~`` and ``$NAME`` stand for what they mean to this user.

    It is as the system decodes names, also where that is not UTF-8 and the text comes from a recipe.
    """
    path = os.path.expanduser(os.path.expandvars(text))  # noqa: PTH111  ~NAME of nobody stays, as in a shell
    return os.fsdecode(path.encode("utf-8", "surrogateescape"))


def is_too_long(path: str) -> bool:
    """Whether a path, or a name in it, is longer than the system takes."""
    try:
        os.lstat(path)
    except OSError as error:
        return error.errno == errno.ENAMETOOLONG
    except ValueError:  # a NUL or half of a character, which is another mistake
        return False
    return False


def stored_path(text: str) -> str:
    """Return the path that a table holds, as `valid_text` wrote it: bytes that are no UTF-8 stand there as escapes."""
    path = os.fsdecode(text.encode("utf-8", "surrogateescape"))
    if "\\x" in text and not os.path.lexists(path):
        raw = re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), text.encode("utf-8"))
        return os.fsdecode(raw) if os.path.lexists(raw) else path
    return path


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


def require_new_file(path: Path, *, overwrite: bool) -> None:
    """Check that a file of ``--out`` can be written, before any work is done.

    Args:
        path: Where it shall be.
        overwrite: Whether it may replace one that is there.

    Raises:
        ConfigError: It is a folder, is there already, or has no folder to be in.
    """
    if path.is_dir():
        raise ConfigError(f"--out {path}: is a folder, expected a file to write - name another")
    if path.is_file() and not path.is_symlink() and not overwrite:  # who makes a link means its file
        raise ConfigError(f"--out {path}: exists already - replace it by --overwrite, or name another")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--out {path}: the folder {path.parent} does not exist - make it, or name another")


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step.

    An earlier file at `path` stays untouched until the new one is complete on disk, and after any failure. A link is
    followed to the file that it stands for; a pipe or a device is written to when all is complete.

    Args:
        path: The target. Its directory must exist.
        write: Called with the temporary path; must create or fill that file.

    Raises:
        StorageError: The disk is full, read-only or failing. The temporary file is removed.
    """
    target = Path(path)
    with storage_errors("write", target):
        if target.is_symlink():
            target = target.resolve()
        stream_like = target.exists() and not target.is_file() and not target.is_dir()
        folder = None if stream_like else target.parent
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=folder)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            if stream_like:
                with temporary.open("rb") as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
                temporary.unlink()
                return
            umask = os.umask(0)
            os.umask(umask)
            try:
                temporary.chmod(0o666 & ~umask)  # mkstemp makes 0600; a run directory is shared like any other file
            except OSError as error:
                if error.errno not in (
                    errno.EPERM,
                    errno.EACCES,
                    errno.ENOTSUP,
                ):  # network disks keep rights to themselves
                    raise
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


def staging_folder(path: str | os.PathLike[str]) -> Path:
    """Make a hidden folder beside `path`, to be filled and then `put_in_place`. Raises `StorageError`."""
    target = Path(path).resolve()
    with storage_errors("write", target):
        return Path(tempfile.mkdtemp(prefix=f".{target.name[:80]}.", suffix=".tmp", dir=target.parent))


def put_in_place(staging: Path, path: str | os.PathLike[str]) -> None:
    """Give a folder that is complete its name, and delete an earlier folder of that name afterwards.

    Args:
        staging: From `staging_folder`.
        path: As it was called with; a link is followed.

    Raises:
        StorageError: The system refuses. An earlier folder is where it was.
    """
    target = Path(path).resolve()
    aside = staging.with_suffix(".replaced")
    with storage_errors("write", target):
        umask = os.umask(0)
        os.umask(umask)
        staging.chmod(0o777 & ~umask)  # mkdtemp makes 0700
        earlier = target.exists()
        if earlier:
            target.rename(aside)
        try:
            staging.rename(target)
        except OSError:
            if earlier:
                aside.rename(target)
            raise
        sync_directory(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON with a final newline. NaN is refused: it is not JSON. Raises `StorageError`."""
    atomic_write(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Flush a directory's entries, so that a rename survives a power cut, where system and disk know such a call."""
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # network disks flush them by themselves
            raise
    finally:
        os.close(handle)


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """Return the hex digest of a file's bytes."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
