"""Keep Pillow's own warnings from escaping, safely in several threads."""

from __future__ import annotations

import contextlib
import re
import threading
import warnings
from collections.abc import Iterator
from typing import Any, Final, cast

__all__ = ["quiet_pillow"]

_lock = threading.Lock()
_depth = 0
_PATTERN: Final = r"PIL\."
_FILTER: Final = ("ignore", None, Warning, re.compile(_PATTERN), 0)  # the entry `filterwarnings` makes of it


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """Ignore warnings raised inside Pillow (odd metadata, large pictures) until the last thread has left the block.

    `warnings.catch_warnings` swaps the whole list of filters, so two threads that overlap leave a wrong list behind.
    Here exactly one entry, which matches Pillow's modules alone, is put in and taken out.
    """
    global _depth
    with _lock:
        if _depth == 0:
            warnings.filterwarnings("ignore", module=_PATTERN)
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                with contextlib.suppress(ValueError):  # someone else restored the list meanwhile
                    cast(list[Any], warnings.filters).remove(_FILTER)
