"""Stopping by SIGINT or SIGTERM: remembered until a training step has ended, and agreed on by all processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from transferkit.training.ranks.parallel import agree

__all__ = ["Interruption", "SignalFlag"]

SAME_SIGNAL_S = 1.0

ASK_S, ASK_STEPS = 1.0, 10
"""Several processes ask each other for signals about every second, and at least every ten steps."""


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


class Interruption:
    """When a training stops for a signal that any of its processes has received.

    The flag is read and never set: a signal that comes in the middle of an exchange counts the next time.

    Args:
        flag: Of this process.
    """

    def __init__(self, flag: SignalFlag) -> None:
        self.flag = flag
        self._ask_at = 0
        self._last_ask = 0.0

    def begin(self) -> None:
        """Get ready when training starts."""
        self.flag.hold()
        self.start_epoch()

    def start_epoch(self) -> None:
        """Begin to count steps anew."""
        self._ask_at, self._last_ask = 0, time.perf_counter()

    def signal_after(self, step: int, processes: int) -> int | None:
        """Return the signal to stop for between two steps; ``None`` for none, or none that all know of yet.

        Args:
            step: Steps of this epoch that are done, from 1.
            processes: How many train. They all ask each other at the same steps.
        """
        if processes == 1:
            return self.flag.received
        if step < self._ask_at:
            return None
        now = time.perf_counter()
        steps = min(ASK_STEPS, max(1, round(ASK_S * max(1, step - self._ask_at) / max(now - self._last_ask, 1e-9))))
        signum, steps = agree(self.flag.received or 0, steps)
        self._ask_at, self._last_ask = step + steps, now
        return signum or None

    def signal_of_any(self) -> int | None:
        """Return the signal that any of the processes has received; all ask, as at the end of an epoch."""
        return agree(self.flag.received or 0)[0] or None
