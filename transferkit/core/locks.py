"""Who may write where: locks that the system drops with their holder, and whether a place can be written at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from transferkit.core.errors import StorageError
from transferkit.core.files import storage_errors

__all__ = ["hold", "is_read_only", "is_writable", "nearest_existing"]

_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextlib.contextmanager
def hold(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold a lock for the time of the block; the file and its folder are made where they are missing.

    The lock belongs to this call: a second one in the same process has to wait, or goes away empty, like any other.

    Args:
        path: The file that is locked. Its holder may remove it.
        wait: Block until nobody else holds it.

    Yields:
        Whether it is held; ``False`` only without `wait`.

    Raises:
        StorageError: It cannot be made or locked.
    """
    with storage_errors("lock", path):
        handle = _take(path, wait)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_UN)  # closing alone would leave it to children forked meanwhile
            os.close(handle)


def _take(path: Path, wait: bool) -> int | None:
    for _ in range(100):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            continue  # the folder was removed in between
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), path.stat()):
                    return handle
        except BlockingIOError:
            os.close(handle)
            return None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its last holder has removed it: locked is a file that nobody else can find
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def nearest_existing(path: Path) -> Path:
    """Return the path itself or the nearest parent that exists. Raises `OSError` where it may not look."""
    return next((place for place in (path, *path.absolute().parents) if place.exists()), Path("/"))


def is_writable(path: Path) -> bool:
    """Whether files can be made in a directory or, while it is not there, in the nearest parent that is.

    As far as permissions and mount options tell; only trying is certain.
    """
    try:
        return os.access(nearest_existing(path), os.W_OK | os.X_OK)
    except OSError:
        return False


def is_read_only(error: StorageError) -> bool:
    """Whether an error says that a place can be read but not written."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in _READ_ONLY
