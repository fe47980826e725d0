"""The wish to stop: SIGINT and SIGTERM remembered until a training step has ended."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["SignalFlag"]

SAME_SIGNAL_S = 1.0


class SignalFlag:
    """Remembers the first SIGINT or SIGTERM, so that training can stop between two steps; a second one ends at once.

    `timeout`, batch systems and terminals signal a process and its group, so the same wish can arrive twice: what
    follows within a second is the first one again.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._at = 0.0
        self._held = False

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._at = signum, now
        elif now - self._at > SAME_SIGNAL_S:
            os._exit(128 + signum)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Catch the signals for the time of the block; a no-op outside the main thread."""
        try:
            before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # signals can be set in the main thread only
            before = {}
        self._held = bool(before)
        try:
            yield
        finally:
            self._held = False
            for number, handler in before.items():
                signal.signal(number, handler)

    def hold(self) -> None:
        """Take SIGTERM back from Lightning, whose handler ends an evaluation half-way and waits for other ranks."""
        if self._held:
            signal.signal(signal.SIGTERM, self._handle)
