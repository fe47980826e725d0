"""Cores and memory that this process may use. Imports nothing heavy."""

from __future__ import annotations

import multiprocessing
import os

__all__ = ["available_cores", "free_memory", "has_shared_memory"]


def available_cores() -> int:
    """Return how many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # systems without processor affinity
        return os.cpu_count() or 1


def free_memory() -> int:
    """Return the bytes of memory that are free for use, or 0 where the system does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 0


def has_shared_memory() -> bool:
    """Return whether processes can share memory and wait for each other; on Linux both need a writable ``/dev/shm``."""
    try:
        multiprocessing.get_context("fork").Lock()
    except (OSError, ImportError, ValueError):  # no place for semaphores, none built in, no such context
        return False
    return True
