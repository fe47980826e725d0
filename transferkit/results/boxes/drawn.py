"""Boxes and objects drawn over a picture, or a part of it: strokes that differ in dash and colour, and their names."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np

from transferkit.data.images.decode import Pixels
from transferkit.results.boxes.judged import CROWD, MISSED, TRUE, Box, Judged, JudgedBox, JudgedObject
from transferkit.results.report.page import data_uri

__all__ = ["Mark", "Scene", "around", "scene"]

LETTERS: Final = {"narrow": (0.34, frozenset(" .,:;'|!ijlftr()[]I1")), "wide": (0.85, frozenset("MWmw@%"))}
"""Widths of letters over the height of the text, about; others are `USUAL_LETTER` wide, or capitals."""
USUAL_LETTER: Final = 0.62
CAPITAL: Final = 0.72
TEXT: Final = 12.0
"""Height of names, in pixels of what is shown."""
ROOM: Final = 3.0
"""Sides of what is shown around a mistake, over those of its box."""
LEAST: Final = 64.0
"""The same in pixels of the picture, at least."""


@dataclass(frozen=True)
class Mark:
    """A box as it is drawn, in pixels of what is shown.

    Attributes:
        left: Of the box.
        top: Likewise.
        width: Likewise.
        height: Likewise.
        style: ``"right"``, ``"wrong"``, ``"object"``, ``"missed"`` or ``"crowd"``.
        strong: Whether it is what the picture is about.
        text: Its name; nothing where there is no room for it.
        text_left: Where the name stands.
        text_top: Likewise.
        text_width: Of what lies behind the name.
    """

    left: float
    top: float
    width: float
    height: float
    style: str
    strong: bool = False
    text: str = ""
    text_left: float = 0.0
    text_top: float = 0.0
    text_width: float = 0.0


@dataclass(frozen=True)
class Scene:
    """A picture, or a part of it, and what is drawn over it.

    Attributes:
        image: Address.
        width: In pixels.
        height: Likewise.
        marks: What lies below comes first.
        text: Height of the names.
    """

    image: str
    width: int
    height: int
    marks: tuple[Mark, ...]
    text: float = TEXT


def around(box: Box, size: tuple[int, int]) -> Box:
    """Return a square part of a picture ``(H, W)`` around a box, within the picture, as large as three of the box."""
    height, width = size
    left, top, right, bottom = box
    side = max(ROOM * max(right - left, bottom - top), LEAST)
    across, down = min(side, float(width)), min(side, float(height))
    first = min(max((left + right - across) / 2, 0.0), width - across)
    upper = min(max((top + bottom - down) / 2, 0.0), height - down)
    return first, upper, first + across, upper + down


def scene(
    picture: Pixels, judged: Judged, side: int, *, part: Box | None = None,
    chosen: JudgedBox | JudgedObject | None = None,
) -> Scene:  # fmt: skip
    """Return what is told and what is there, drawn.

    Args:
        picture: ``(H, W, 3) uint8``.
        judged: Of the picture.
        side: Pixels of the longer side of what is shown; of a whole picture at most.
        part: What of the picture is shown; all of it when ``None``.
        chosen: The one that is named and drawn strong; when ``None`` all that are told or missed are named.
    """
    height, width = picture.shape[:2]
    left, top, right, bottom = (0, 0, width, height) if part is None else _whole_pixels(part, (height, width))
    cut = picture[top:bottom, left:right]
    scale = side / max(cut.shape[:2])
    scale = min(1.0, scale) if part is None else scale
    size = max(1, round(cut.shape[1] * scale)), max(1, round(cut.shape[0] * scale))
    shown = cv2.resize(cut, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC).astype(np.uint8)
    items: list[tuple[JudgedBox | JudgedObject, str, str]] = [
        (one, {CROWD: "crowd", MISSED: "missed"}.get(one.kind, "object"), f"missed {one.label}")
        for one in judged.objects
    ]
    items += [
        (one, {TRUE: "right", CROWD: "crowd"}.get(one.kind, "wrong"), f"{one.label} {one.score:.2f}")
        for one in reversed(judged.boxes)
    ]
    marks, taken = [], list[Box]()
    for one, style, text in sorted(items, key=lambda item: item[0] is chosen):
        named = one is chosen if chosen is not None else style in ("right", "wrong", "missed")
        if not _meets(one.box, (left, top, right, bottom)):
            continue
        factors = (size[0] / cut.shape[1], size[1] / cut.shape[0]) * 2
        box = [(value - edge) * factor for value, edge, factor in zip(one.box, (left, top) * 2, factors, strict=True)]
        marks.append(_mark(box, style, text if named else "", size, taken, strong=one is chosen))
    return Scene(data_uri(shown), *size, tuple(marks))


def _mark(
    box: Sequence[float], style: str, text: str, size: tuple[int, int], taken: list[Box], *, strong: bool
) -> Mark:
    left, top, right, bottom = box
    place = _place(box, text, size, taken) if text else None
    words = {} if place is None else {"text": text, "text_left": place[0], "text_top": place[1],
                                      "text_width": place[2] - place[0]}  # fmt: skip
    return Mark(left, top, max(right - left, 1.0), max(bottom - top, 1.0), style, strong, **words)  # type: ignore[arg-type]


def _place(box: Sequence[float], text: str, size: tuple[int, int], taken: list[Box]) -> Box | None:
    """Return where a name stands: above its box, or where else there is room; ``None`` where there is none."""
    left, top, _, bottom = box
    width, height = TEXT * sum(map(_width, text)) + 6, TEXT + 5
    start = min(max(left, 0.0), max(0.0, size[0] - width))
    for upper in (top - height, top, bottom, bottom - height):
        place = (start, upper, start + width, upper + height)
        if upper >= 0 and upper + height <= size[1] and not any(_meets(place, other) for other in taken):
            taken.append(place)
            return place
    return None


def _width(letter: str) -> float:
    """Return about how wide a letter is, over the height of the text."""
    known = next((width for width, letters in LETTERS.values() if letter in letters), None)
    if known is not None:
        return known
    return 1.0 if unicodedata.east_asian_width(letter) in "WF" else CAPITAL if letter.isupper() else USUAL_LETTER


def _meets(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _whole_pixels(part: Iterable[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    left, top, right, bottom = part
    first, upper = int(left), int(top)
    return first, upper, min(size[1], max(first + 1, round(right))), min(size[0], max(upper + 1, round(bottom)))
