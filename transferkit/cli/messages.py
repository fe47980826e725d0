"""Warnings in the manner of errors: one line each, without control characters."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from transferkit.core.errors import TransferkitWarning
from transferkit.core.text import one_line

__all__ = ["show_warnings"]


def show_warnings() -> None:
    """Print transferkit's own warnings in one line each from now on; leave the rest to Python."""
    usual = warnings.showwarning

    def show(message: Any, category: Any, *where: Any, **more: Any) -> None:
        if issubclass(category, TransferkitWarning):
            print(f"transferkit: warning: {one_line(message)}", file=sys.stderr)
        else:
            usual(message, category, *where, **more)

    warnings.showwarning = show
