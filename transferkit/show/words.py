"""Numbers as a person would write them."""

from __future__ import annotations

__all__ = ["MINUS", "PERCENT", "duration", "mid_sentence", "value_text"]

MINUS = "\N{MINUS SIGN}"

PERCENT = "\u202f%"
"""The sign as a page has it, behind a narrow space that does not break."""


def duration(seconds: float) -> str:
    """Return seconds in the unit a person would use."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def value_text(value: float | None, unit: str, *, percent: str = "%") -> str:
    """Return a figure's value as it is read: a share in percent, anything else with its digits, ``n/a`` for none.

    Args:
        value: The value.
        unit: ``"share"`` for a number in [0, 1] that is read in percent.
        percent: The sign, `PERCENT` for a page.
    """
    if value is None:
        return "n/a"
    if unit == "share":
        return f"{100 * value:.1f}{percent}"
    size = abs(value)
    # Figures may be in the unit of what a user measured, however large or small.
    text = f"{value:,.0f}" if size >= 1000 else f"{value:.1f}" if size >= 100 else f"{value:.3f}"
    return f"{value:.2g}" if 1e-12 < size < 5e-4 else text


def mid_sentence(label: str) -> str:
    """Return a label as it stands inside a sentence: its first letter small, unless it is an abbreviation's."""
    return label if label[1:2].isupper() or label[1:2].isdigit() else label[:1].lower() + label[1:]
