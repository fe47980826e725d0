"""Cores and memory that this process may use, of a whole machine or inside a container. Imports nothing heavy."""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["available_cores", "free_memory", "has_shared_memory"]

ROOT = Path("/")


def available_cores(root: Path = ROOT) -> int:
    """Return how many cores this process may use: those it may run on, or fewer where its control group has a quota.

    Args:
        root: Where ``proc`` and ``sys`` are.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # systems without processor affinity
        cores = os.cpu_count() or 1
    quotas = [_share(group / "cpu.max") for group in _groups(root, "")]
    quotas += [_number(group / "cpu.cfs_quota_us") / (_number(group / "cpu.cfs_period_us") or math.inf)
               for group in _groups(root, "cpu")]  # fmt: skip
    return max(1, min([cores, *(math.ceil(quota) for quota in quotas if 0 < quota < math.inf)]))


def free_memory(root: Path = ROOT) -> int:
    """Return the bytes of memory that are free for use, or 0 where the system does not say.

    What only holds pages of files counts as free: the system gives it back when it is needed. Inside a control group it
    is what the group, and each group around it, may still take.

    Args:
        root: Where ``proc`` and ``sys`` are.
    """
    free = [kilobytes * 1024 for kilobytes in (_facts(root / "proc/meminfo").get("MemAvailable"),) if kilobytes]
    for controller, limit, used, pages in (
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        for group in _groups(root, controller):
            most = _number(group / limit)
            if 0 < most < math.inf:
                taken = _number(group / used) - _facts(group / "memory.stat").get(pages, 0)
                free.append(max(0, int(most - taken)))
    if free:
        return min(free)
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


# ---- control groups ---------------------------------------------------------------------------------------------


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control group and of those around it; none where there are no such groups.

    Args:
        root: Where ``proc`` and ``sys`` are.
        controller: Of version 1, such as ``"memory"``; empty for version 2.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if controller in names.split(","):
            top = root / "sys/fs/cgroup" / controller
            folder = top / path.lstrip("/")  # a container may see itself as the top, whatever its path says
            yield from (group for group in (folder, *folder.parents) if group.is_relative_to(top))


def _share(path: Path) -> float:
    """Return the cores that `cpu.max` allows, ``"QUOTA PERIOD"`` in microseconds; 0 where it sets no limit."""
    quota, _, period = _text(path).partition(" ")
    return float(quota) / float(period) if quota.isdecimal() and period.strip().isdecimal() else 0.0


def _number(path: Path) -> float:
    """Return the number in a file; infinity for ``max`` and what stands for it, 0 where there is none."""
    text = _text(path).strip()
    if text == "max":
        return math.inf
    number = float(text) if text.isdecimal() else 0.0
    return math.inf if number >= 2**62 else number  # version 1 writes the largest number of pages for no limit


def _facts(path: Path) -> dict[str, int]:
    """Return a file of names and numbers, a pair per line."""
    pairs = (line.replace(":", " ").split()[:2] for line in _text(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # no such system, or not for us to read
        return ""
