"""The sizes of training pictures: one, or several that share the epochs out between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from transferkit.core.records import MAX_SIDE
from transferkit.core.text import shown
from transferkit.options.fields import at_least

__all__ = ["TrainSize", "train_size_problems", "train_sizes"]

TrainSize: TypeAlias = int | str | Sequence[int] | None
"""As an option has it: a number, several of them in a list or separated by commas, or ``None``."""

RANGE = at_least(1, most=MAX_SIDE)


def train_sizes(value: TrainSize) -> tuple[int, ...]:
    """Return the sides of training pictures in pixels, in the order in which they come; empty for ``None``.

    Args:
        value: Without `train_size_problems`.
    """
    return tuple(side for side in _sides(value) if isinstance(side, int))


def train_size_problems(value: TrainSize, *, tile: bool = False, name: str = "--train-size") -> list[str]:
    """Return what is wrong with the sizes of training pictures, a sentence each.

    Args:
        value: As an option has it.
        tile: Whether pictures are seen in windows, which have one size.
        name: What messages call the option.
    """
    sides = _sides(value)
    if value is not None and not sides:
        return [f"{name} is {shown(value)}, expected a side in pixels, or several such as 128,160,224"]
    problems = [
        f"{name} is {shown(side if len(sides) == 1 else value)}, expected {RANGE.words}"
        + (f" instead of {shown(side)}" if len(sides) > 1 else "")
        for side in sides
        if isinstance(side, bool) or not isinstance(side, int) or not RANGE.holds(side)
    ]
    if tile and len(sides) > 1:
        problems.append(f"{name} is {shown(value)}, and the windows of --tile have one size - name one, or none")
    return problems


def _sides(value: TrainSize) -> tuple[object, ...]:
    """Return the sides as far as they are numbers, and what is none as it is written."""
    if value is None:
        return ()
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",")] if value.strip() else []
        return tuple(int(part) if part.isascii() and part.isdigit() and len(part) <= 9 else part for part in parts)
    return tuple(value) if isinstance(value, Sequence) else (value,)
