"""Compiled code: when it pays, and a compiler that keeps its remarks to itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from transferkit.core.logs import quiet_loggers

__all__ = ["pays", "quiet_compiler"]


def pays(seconds: float, gain: float, compile_s: float) -> bool:
    """Whether compiling takes less time than compiled code saves.

    Args:
        seconds: Of eager work still to come.
        gain: Speed of compiled code over eager code.
        compile_s: Seconds that compiling takes.
    """
    return seconds * (1 - 1 / gain) > compile_s


@contextmanager
def quiet_compiler() -> Iterator[None]:
    """Leave out torch's remarks on CUDA toolkits that nobody has asked for, while something is compiled."""
    with quiet_loggers(logging.ERROR, "torch.utils.cpp_extension"):
        yield
