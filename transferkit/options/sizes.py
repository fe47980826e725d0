"""The sizes of pictures: of the model's input, and of training, one or several that share the epochs out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from transferkit.core.records import MAX_SIDE
from transferkit.core.text import shown
from transferkit.options.fields import at_least

__all__ = ["ImageSize", "TrainSize", "image_size_of", "image_size_problem", "scaled_to", "train_size_problems",
           "train_sizes"]  # fmt: skip

ImageSize: TypeAlias = int | str | Sequence[int] | None
"""As an option has it: the side of a square, ``"224x320"`` or ``(224, 320)`` for height and width, or ``None``."""

TrainSize: TypeAlias = int | str | Sequence[int] | None
"""As an option has it: a number, several of them in a list or separated by commas, or ``None``."""

RANGE = at_least(1, most=MAX_SIDE)


def image_size_of(value: ImageSize) -> tuple[int, int] | None:
    """Return height and width of the model's input in pixels; ``None`` for the backbone's own.

    Args:
        value: As an option has it.

    Raises:
        ValueError: It is no size.
    """
    if value is None:
        return None
    parts: Sequence[object]
    if isinstance(value, str):
        parts = [int(part) if part.isascii() and part.isdigit() and len(part) <= 9 else part
                 for part in map(str.strip, value.lower().split("x"))]  # fmt: skip
    else:
        parts = list(value) if isinstance(value, Sequence) else [value]
    sides = [part for part in parts if isinstance(part, int) and not isinstance(part, bool) and RANGE.holds(part)]
    if len(sides) != len(parts) or len(sides) not in (1, 2):
        raise ValueError(f"{shown(value)}, expected a side or HEIGHTxWIDTH in pixels, such as 224 or 224x320, each "
                         f"{RANGE.words.removeprefix('a whole number ')}")  # fmt: skip
    return sides[0], sides[-1]


def image_size_problem(value: ImageSize, name: str = "--image-size") -> list[str]:
    """Return what is wrong with the size of the model's input: nothing, or a sentence.

    Args:
        value: As an option has it.
        name: What messages call the option.
    """
    try:
        image_size_of(value)
    except ValueError as error:
        return [f"{name} is {error}"]
    return []


def scaled_to(side: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return the shape of `size` with a longer side of `side` pixels: what a training size means for a rectangle."""
    longer = max(size)
    height, width = (max(1, round(side * length / longer)) for length in size)
    return height, width


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
