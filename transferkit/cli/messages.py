"""Text for people: one line, without control characters; warnings in the manner of errors."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from transferkit.core.errors import TransferkitWarning

__all__ = ["one_line", "show_warnings"]


def one_line(text: object) -> str:
    """Fold a message into one line and make control characters visible: file names can hold terminal escapes."""
    folded = " ".join(str(text).split())
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in folded)


def show_warnings() -> None:
    """Print transferkit's own warnings in one line each from now on; leave the rest to Python."""
    usual = warnings.showwarning

    def show(message: Any, category: Any, *where: Any, **more: Any) -> None:
        if issubclass(category, TransferkitWarning):
            print(f"transferkit: warning: {one_line(message)}", file=sys.stderr)
        else:
            usual(message, category, *where, **more)

    warnings.showwarning = show
