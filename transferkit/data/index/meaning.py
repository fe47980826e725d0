"""What the masks of a set mean, all together: which values are classes, what they are called, which are ignored.

The rules, by which all masks of a set are decided on at once; what came of it is said in one line:

- ``--mask-values binary``: anything above 0 is class 1, whatever the values are.
- A palette file with values or colours says it. One with names alone, of C classes, means the values 0 to C - 1, or 0
  and 255 where it names two and the masks hold no others.
- Without names: of masks that hold nothing but 0 and 255 these are the two classes. Else every value of the training
  masks but 255 is a class, named by its number, up to `MOST_UNNAMED`; two of them, with 0, are background and
  foreground.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from transferkit.core.errors import DataError
from transferkit.core.records import Finding
from transferkit.core.targets import IGNORED
from transferkit.core.text import listing
from transferkit.data.masks.coding import Coding, MaskFacts, odd_text
from transferkit.data.masks.values import Stored, colour_text
from transferkit.data.scan.palette import Colour, Palette
from transferkit.data.scan.records import Kind

__all__ = ["MOST_UNNAMED", "Meaning", "class_colour", "known_coding", "legend_of", "odd_values", "understood"]

_BRIGHT: Final[tuple[Colour, ...]] = (
    (0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
    (204, 121, 167),
)  # fmt: skip

MOST_UNNAMED: Final = 32
"""Classes that numbers may stand for without names: beyond that they are taken for the numbers of objects."""

TWO: Final = ("background", "foreground")


@dataclass(frozen=True)
class Meaning:
    """What was understood of the masks of a set.

    Attributes:
        names: Of the classes.
        coding: What stands for each.
        line: What was understood, for people.
        problems: Why it cannot be told, or is not to be trained on.
    """

    names: tuple[str, ...]
    coding: Coding
    line: str
    problems: tuple[Finding, ...] = ()


def odd_values(facts: MaskFacts, meaning: Meaning) -> str:
    """Return what a mask holds that stands for nothing; nothing where all is well or nothing is understood."""
    if meaning.problems or not meaning.names:
        return ""
    classes = facts.classes(meaning.coding)
    odd = [value for value, index in zip(facts.numbers(meaning.coding.bit), classes.tolist(), strict=True)
           if index > IGNORED]  # fmt: skip
    return odd_text(odd, meaning.coding) if odd else ""


def known_coding(palette: Palette | None, *, binary: bool) -> Coding | None:
    """Return the coding that options and palette say without a look at any mask.

    Raises:
        DataError: The palette names another number of classes than ``binary`` has.
    """
    if binary:
        if palette is not None and len(palette.names) != 2:
            raise DataError(
                f"--mask-values binary has two classes, and {palette.path!r} names {len(palette.names)} - leave one out"
            )
        return Coding((0, 1), binary=True)
    if palette is None or not (palette.values or palette.colours):
        return None
    return Coding(palette.values or palette.colours, palette.ignored)


def understood(used: Sequence[tuple[str | None, MaskFacts]], palette: Palette | None, coding: Coding | None) -> Meaning:
    """Return what masks mean, by the rules of this module.

    Args:
        used: Split and facts of each mask that can be used.
        palette: What names the classes.
        coding: What is known already.
    """
    if coding is not None:
        names = palette.names if palette is not None else TWO
        named = f" of {palette.path!r}" if palette is not None else ""
        if coding.binary:
            line = f"anything above 0 in a mask is {names[1]!r}, 0 is {names[0]!r}"
        else:
            line = f"masks hold the {'colours' if coding.coloured else 'values'}{named}, {len(names)} classes"
        return Meaning(names, coding, line)
    if coloured := [facts for _, facts in used if facts.stored is Stored.COLOUR]:
        return Meaning((), Coding(()), "", (_unnamed_colours(coloured, len(used)),))
    whole = {value for _, facts in used if facts.stored is not Stored.BIT for value in facts.values}
    two = 255 in whole and whole <= {0, 255}
    bit = 255 if two else 1
    values = {value for _, facts in used for value in facts.numbers(bit)}
    if palette is not None:
        numbers = (0, 255) if two and len(palette.names) == 2 else tuple(range(len(palette.names)))
        return Meaning(palette.names, Coding(numbers), _line(numbers, values, palette.names, palette.path))
    if two:
        return Meaning(TWO, Coding((0, 255)), _line((0, 255), values, TWO))
    trained = {value for split, facts in used if split in {None, "train"} for value in facts.numbers(bit)}
    numbers = tuple(sorted(trained - {IGNORED}))
    other = tuple(sorted(values - trained - {IGNORED}))
    problems = []
    if len(numbers) > MOST_UNNAMED:
        message = (
            f"masks hold {len(numbers)} different values, from {numbers[0]} to {numbers[-1]} - if they number objects, "
            "pass --mask-values instances (a box and an outline each) or binary (one class of pixels); if they are "
            "classes, name them by classes.txt or --palette FILE; if edges are smoothed, cut the masks at a level "
            "before"
        )
        problems.append(Finding(Kind.MASK, message, tuple(map(str, numbers))))
    elif other:
        message = (
            f"values without training pixels that masks of other splits hold: {listing(list(map(str, other)))} - "
            "correct them, add such masks to train, or name the classes by --palette FILE"
        )
        problems.append(Finding(Kind.UNTRAINED, message, tuple(map(str, other))))
    names = TWO if len(numbers) == 2 and numbers[0] == 0 else tuple(map(str, numbers))
    return Meaning(names, Coding(numbers), _line(numbers, values, names), tuple(problems))


def _line(numbers: Sequence[int], values: set[int], names: Sequence[str], path: str | None = None) -> str:
    """Return what was understood of masks of numbers."""
    ignored = f", and {IGNORED} where no pixel counts" if IGNORED in values and IGNORED not in numbers else ""
    if len(numbers) == 2:
        first, second = (f"{value} for {name!r}" for value, name in zip(numbers, names, strict=True))
        return f"masks hold {first} and {second}{ignored}"
    every = list(numbers) == list(range(numbers[0], numbers[-1] + 1)) if numbers else False
    span = f"{numbers[0]} to {numbers[-1]}" if every else listing(list(map(str, numbers)), quote=False)
    return f"masks hold the classes {span}{ignored}" + (f", named by {path!r}" if path else "")


def _unnamed_colours(coloured: Sequence[MaskFacts], masks: int) -> Finding:
    colours = sorted({value for facts in coloured for value in facts.values})
    message = (
        f"{len(coloured)} of {masks} masks hold colours, {len(colours)} different ones: "
        f"{listing([colour_text(value) for value in colours], limit=6, quote=False)} - say what each stands for by "
        "--palette FILE, a CSV of name,r,g,b"
    )
    return Finding(Kind.MASK, message, tuple(facts.path for facts in coloured))


def legend_of(names: Sequence[str], coding: Coding, masks: Sequence[MaskFacts]) -> list[Colour]:
    """Return a colour per class: what stands for it, or that of the first indexed file, or of a fixed sequence."""
    if coding.coloured:
        return [value for value in coding.values if isinstance(value, tuple)]
    numbers = [value for value in coding.values if isinstance(value, int)]
    for facts in masks:
        if facts.stored is Stored.INDEX and not coding.binary and max(numbers, default=0) < len(facts.legend):
            colours = [facts.legend[value] for value in numbers]
            if len(set(colours)) == len(colours) and any(len(set(colour)) > 1 for colour in colours):
                return colours
            break
    return [class_colour(index) for index in range(len(names))]


def class_colour(index: int) -> Colour:
    """Return a colour of a fixed sequence: black, seven bright ones, then those of Pascal VOC.

    The bright ones are told apart by colour-blind eyes (Okabe and Ito 2008, *Color Universal Design*). Those of VOC are
    the bits of the index, spread over the channels.
    """
    if index < len(_BRIGHT):
        return _BRIGHT[index]
    channels = [0, 0, 0]
    for shift in range(7, -1, -1):
        for channel in range(3):
            channels[channel] |= (index >> channel & 1) << shift
        index >>= 3
    return channels[0], channels[1], channels[2]
