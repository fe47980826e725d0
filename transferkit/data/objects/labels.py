"""The objects of a picture as the one text of a record: canonical JSON, the same whatever the layout they came from.

``{"objects": [{"box": [left, top, right, bottom], "class": name}, ...], "size": [height, width]}`` in pixels of the
upright picture, to a hundredth; ``"crowd": true`` and ``"outline"`` where there are any. Objects stand in the order of
their file: where outlines overlap, the later one is on top.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from transferkit.core.errors import DataError
from transferkit.core.text import shown
from transferkit.data.objects.stated import Box, Outline

__all__ = ["Item", "Objects", "identity_of", "objects_of", "rounded", "text_of"]

_PLACES: Final = 2


@dataclass(frozen=True, slots=True)
class Item:
    """One object.

    Attributes:
        name: Of its class.
        box: In pixels of the upright picture, within it.
        crowd: Whether it is neither learnt nor counted.
        outline: ``None`` where only the box is known.
    """

    name: str
    box: Box
    crowd: bool = False
    outline: Outline | None = None


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects of a picture.

    Attributes:
        size: Height and width of the picture, upright.
        items: In the order of the file; none for a picture that shows none.
    """

    size: tuple[int, int]
    items: tuple[Item, ...] = ()


def rounded(value: float) -> float:
    """Return a coordinate to a hundredth of a pixel."""
    return round(value, _PLACES) + 0.0  # no -0.0


def text_of(objects: Objects) -> str:
    """Return the text."""
    return _dump({"objects": [_plain(item) for item in objects.items], "size": list(objects.size)})


@lru_cache(maxsize=4096)
def objects_of(text: str) -> Objects:
    """Return the objects of a text. Raises `DataError` where it is none of `text_of`."""
    try:
        values = json.loads(text)
        height, width = map(int, values["size"])
        items = tuple(_item(one) for one in values["objects"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{shown(text, limit=80)} does not state the objects of a picture - read the data set anew"
        ) from error
    return Objects((height, width), items)


def identity_of(text: str) -> str:
    """Return what a text says whatever the order of the objects. Raises `DataError`."""
    objects = objects_of(text)
    return _dump([list(objects.size), sorted(_dump(_plain(item)) for item in objects.items)])


def _item(one: dict[str, Any]) -> Item:
    left, top, right, bottom = map(float, one["box"])
    return Item(str(one["class"]), (left, top, right, bottom), bool(one.get("crowd", False)), one.get("outline"))


def _plain(item: Item) -> dict[str, Any]:
    plain: dict[str, Any] = {"box": [_short(value) for value in item.box], "class": item.name}
    if item.crowd:
        plain["crowd"] = True
    if isinstance(item.outline, dict):
        plain["outline"] = item.outline
    elif item.outline is not None:
        plain["outline"] = [_shorts(polygon) for polygon in item.outline]
    return plain


def _shorts(values: Sequence[float]) -> list[float]:
    return [_short(value) for value in values]


def _short(value: float) -> float:
    """Return a whole number as one: 12, not 12.0."""
    value = rounded(value)
    return int(value) if value.is_integer() else value


def _dump(values: Any) -> str:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
