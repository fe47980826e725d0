"""Who may write where: locks that the system drops with their holder, and whether a place can be written at all."""

from __future__ import annotations

import contextlib
import errno
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from transferkit.core.errors import StorageError, TransferkitWarning
from transferkit.core.files import storage_errors

__all__ = ["hold", "is_read_only", "is_writable", "nearest_existing"]

_POLL_S = 0.01
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextlib.contextmanager
def hold(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold a lock for the time of the block; the file and its folder are made where they are missing.

    The lock belongs to this call: a second one in the same process goes away empty, like any other. A disk without
    locks, as some networks have them, costs a warning: then nothing is held, and all goes on as if it were.

    Args:
        path: The file that is locked. Its holder may remove it.
        wait: Go on trying until nobody else holds it.

    Yields:
        Whether it is held; ``False`` only without `wait`.

    Raises:
        StorageError: It cannot be made or locked.
    """
    lock = FileLock(path, timeout=-1 if wait else 0, poll_interval=_POLL_S, fallback_to_soft=False)
    with storage_errors("lock", path):
        try:
            held = _take(lock, path)
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                raise
            held = True
            warnings.warn(
                f"{str(path.parent)!r} is on a disk without locks: nothing keeps two processes from writing there at "
                "once - start one at a time, or name another place",
                TransferkitWarning,
                stacklevel=4,
            )
    try:
        yield held
    finally:
        lock.release()


def _take(lock: FileLock, path: Path) -> bool:
    for _ in range(100):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            return False
        except FileNotFoundError:
            continue  # the folder was removed in between
        return True
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
