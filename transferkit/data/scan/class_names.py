"""The rules for the names of classes: their order, and which cannot be used."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable

from transferkit.core.records import Finding
from transferkit.core.text import listing
from transferkit.data.scan.records import Kind

__all__ = ["class_name_problems", "order_classes"]


def order_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct names in index order: plain text order of their NFC forms, so ``1, 10, 2`` and ``B, a``.

    The order does not depend on the language settings of the machine or on how a disk stores accents.
    """
    return tuple(sorted(set(names), key=lambda name: (unicodedata.normalize("NFC", name), name)))


def class_name_problems(names: Iterable[str]) -> list[Finding]:
    """Return what is wrong with class names; empty when all is well.

    A class name becomes part of file names and reports, so it must not be empty, ``.`` or ``..``, nor hold path
    separators, control characters or bytes that are no UTF-8. Names that differ only in case, in the form of their
    accents or in spaces at their ends are one folder on some disks and are refused.
    """
    problems, same = [], defaultdict(set)
    bad = sorted(name for name in set(names) if not _usable(name))
    if bad:
        message = (
            f"class names that cannot be used: {listing(bad)} - expected a non-empty name without path separators,"
            " control characters or undecodable bytes; rename them"
        )
        problems.append(Finding(Kind.CLASS_NAMES, message, tuple(bad)))
    for name in names:
        same[unicodedata.normalize("NFC", name).lower().strip()].add(name)
    clashes = [
        " and ".join(ascii(name) for name in sorted(group)) for _, group in sorted(same.items()) if len(group) > 1
    ]
    if clashes:
        message = (
            "class names that differ only in case, accent form or spaces at their ends: "
            f"{listing(clashes, quote=False)} - merge or rename them"
        )
        problems.append(Finding(Kind.CLASS_NAMES, message, tuple(clashes)))
    return problems


def _usable(name: str) -> bool:
    if not name.strip() or name in {".", ".."} or "/" in name or "\\" in name:
        return False
    return not any(unicodedata.category(character) in {"Cc", "Cs"} for character in name)
