"""Timings of this machine: two ways of the same work compared in peace, and a memory of what was measured."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transferkit.core.documents import parse_json
from transferkit.core.errors import StorageError
from transferkit.core.files import user_cache, write_json
from transferkit.core.locks import hold

__all__ = ["Memory", "compare", "time_ways"]

ROUNDS = 5
"""Calm rounds after which a comparison ends."""

LEAST_ROUNDS = 3
"""Calm rounds that it needs."""

LIMIT_S = 4.0
"""Seconds after which it ends, once it has had its `LEAST_ROUNDS`."""

WAIT = 0.1
"""A round is calm when this process's threads waited for a core for less than this share of it."""

SPREAD = 0.1
"""The two shortest times of each way must agree within this share."""

_SESSION: dict[Path, dict[str, float | None]] = {}
"""Numbers that cannot or must not be written down, but hold for this process: it computes all its rows alike."""


class Memory:
    """Numbers measured on this machine, by name: a JSON file in the user's cache, shared by all that runs here.

    Forgetting one costs a measurement, so nothing here is an error.

    Args:
        subject: What the numbers depend on: network, input size, device, library versions.
    """

    def __init__(self, subject: Mapping[str, Any]) -> None:
        self.subject = json.loads(json.dumps(dict(subject)))
        text = json.dumps(self.subject, sort_keys=True)
        name = f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"
        try:
            self.path = user_cache() / "measured" / name
        except StorageError:  # nowhere to write: what is measured is known to this process
            self.path = Path(os.devnull) / name

    def recall(self) -> dict[str, float | None]:
        """Return the numbers; empty where none are known or the file is damaged. ``None``: no number can be had now."""
        return {**_SESSION.get(self.path, {}), **self._written()}

    def remember(self, numbers: Mapping[str, float | None]) -> None:
        """Add numbers. ``None``, and what cannot be written, is known to this process only."""
        lasting = {name: number for name, number in numbers.items() if number is not None}
        _SESSION.setdefault(self.path, {}).update(numbers)
        if lasting:
            with contextlib.suppress(StorageError, OSError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_json(self.path, {"subject": self.subject, "numbers": {**self._written(), **lasting}})

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Let one process at a time measure: two would disturb each other, and the second can read what is known."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(StorageError):
                stack.enter_context(hold(self.path.with_suffix(".lock"), wait=True))
            yield

    def _written(self) -> dict[str, float]:
        try:
            content = parse_json(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(content, dict) or content.get("subject") != self.subject:
            return {}
        numbers = content.get("numbers")
        items = numbers.items() if isinstance(numbers, dict) else ()
        return {
            name: float(number) for name, number in items
            if isinstance(number, int | float) and abs(number) <= sys.float_info.max
        }  # fmt: skip


def compare(first: Callable[[], object], second: Callable[[], object]) -> float | None:
    """Return how many times as fast as the first way of some work the second is; ``None`` where it cannot be told.

    Args:
        first: Does the work once, the first way.
        second: Likewise, the second way.
    """
    seconds = time_ways((first, second))
    return None if seconds is None else seconds[0] / seconds[1]


def time_ways(ways: Sequence[Callable[[], object]], *, limit_s: float = LIMIT_S) -> list[float] | None:
    """Return the seconds of some work by each of several ways; ``None`` where they cannot be told.

    The ways take turns, and the first turn of each, which warms up, is not counted. Only rounds count in which no other
    process took the cores, as far as the system tells, and the shortest times must be reached twice: a number that
    another moment would not repeat is none.

    Args:
        ways: Each does the work once.
        limit_s: Seconds after which it ends, once it has had its `LEAST_ROUNDS`.
    """
    for way in ways:
        way()
    calm: list[list[float]] = []
    rounds, began = 0, time.perf_counter()
    while len(calm) < ROUNDS and (rounds < LEAST_ROUNDS or time.perf_counter() - began < limit_s):
        waited = _waited()
        seconds = [_seconds(way) for way in ways]
        if _waited() - waited <= WAIT * sum(seconds):
            calm.append(seconds)
        rounds += 1
    if len(calm) < LEAST_ROUNDS:
        return None
    times = [sorted(round[way] for round in calm)[:2] for way in range(len(ways))]
    if any(next_best > (1 + SPREAD) * best for best, next_best in times):
        return None
    return [best for best, _ in times]


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _waited() -> float:
    """Return the seconds that threads of this process were ready to run and had no core; 0 where Linux does not say."""
    nanoseconds = 0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # a thread that has just ended
            nanoseconds += int(file.read_text(encoding="ascii").split()[1])
    return nanoseconds / 1e9
