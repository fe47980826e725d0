"""Text from elsewhere, made fit for a line or a page: names can hold any character, and errors many lines."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence

__all__ = [
    "bytes_of",
    "first_line",
    "is_text",
    "listing",
    "name_text",
    "one_line",
    "printable",
    "shown",
    "valid_text",
    "visible",
]

_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")
"""Marks that turn the direction of what follows, and can make one name look like another."""


_UNITS = {"k": 1, "m": 2, "g": 3, "t": 4}


def bytes_of(text: str) -> int:
    """Return the bytes of a size such as ``20GB``, ``1.5G`` or ``512MiB``: powers of 1000, with an i of 1024.

    Raises:
        ValueError: It is none, or nothing; the message says what was expected.
    """
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s?([kmgt])(i?)b?", text.strip(), re.IGNORECASE | re.ASCII)
    size = 0 if match is None else int(float(match[1]) * (1024 if match[3] else 1000) ** _UNITS[match[2].lower()])
    if not size:
        raise ValueError("expected a size with its unit, such as 20GB")
    return size


def visible(text: str) -> str:
    """Return a text with its control characters, bytes that are no UTF-8 and marks of direction as escapes."""
    if text.isprintable():  # none of them is
        return text
    return "".join(
        char.encode("unicode_escape").decode()
        if (char in _TURNING or unicodedata.category(char) in ("Cc", "Cs")) and char != "\n" else char
        for char in text
    )  # fmt: skip


def valid_text(name: str) -> str:
    """Return the name of a file or folder as text that can be written: bytes that are no UTF-8 become escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def name_text(name: str) -> str:
    """Return the name of a file or folder as UTF-8 has it, whatever the language of the terminal; other bytes stay."""
    return os.fsencode(name).decode("utf-8", "surrogateescape")


def printable(text: str) -> str:
    """Return a text whose characters a terminal prints, the others and terminal escapes written out; lines stay."""
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)


def one_line(text: object) -> str:
    """Return a message folded into one printable line."""
    return printable(" ".join(str(text).split()))


def shown(value: object, *, limit: int = 200) -> str:
    """Return a value as Python writes it, for a message: of a long one the beginning."""
    try:
        text = repr(value)
    except Exception:  # of an object of anybody's; also whole numbers of thousands of digits
        return f"a {type(value).__name__}"
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text):,} characters)"


def is_text(value: str) -> bool:
    """Whether a text can be written down and used as a path: no NUL, and no half of a character.

    Bytes of file names that are no UTF-8, as Python escapes them, are fine.
    """
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def first_line(error: BaseException) -> str:
    """Return the type and the first line of an error of another library, 200 characters of it at most."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()[:200]}" if lines else type(error).__name__


def listing(items: Sequence[str], *, limit: int = 10, quote: bool = True) -> str:
    """Join the first `limit` items for a message, quoted so that any character fits on one line, and count the rest."""
    shown = ", ".join(repr(item) if quote else item for item in items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more ({len(items)} in all)"
