"""Text from elsewhere, made fit for a page or a message: names of files, and errors of other libraries."""

from __future__ import annotations

import unicodedata

__all__ = ["first_line", "valid_text", "visible"]

_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")
"""Marks that turn the direction of what follows, and can make one name look like another."""


def visible(text: str) -> str:
    """Return a text with its control characters, bytes that are no UTF-8 and marks of direction as escapes."""
    return "".join(
        char.encode("unicode_escape").decode()
        if (char in _TURNING or unicodedata.category(char) in ("Cc", "Cs")) and char != "\n" else char
        for char in text
    )  # fmt: skip


def valid_text(name: str) -> str:
    """Return the name of a file or folder as text that can be written: bytes that are no UTF-8 become escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def first_line(error: BaseException) -> str:
    """Return the type and the first line of an error of another library, 200 characters of it at most."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()[:200]}" if lines else type(error).__name__
