"""COCO results: detections as the tools that measure them read them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transferkit.core.targets import TargetSpec
from transferkit.core.text import valid_text
from transferkit.results.boxes.found import BoxPrediction
from transferkit.results.boxes.instances import plain_rle

__all__ = ["CocoResults", "image_id"]


@dataclass(frozen=True)
class CocoResults:
    """The part that lists what is found in a picture as entries of COCO results, be it told or not."""

    def key(self, record: BoxPrediction) -> int | str:
        """Return what the entries of a picture are known by."""
        return image_id(record.path)

    def entries(self, record: BoxPrediction, spec: TargetSpec) -> list[dict[str, Any]]:
        """Return an entry for each box of a whole record, the most confident first.

        They hold ``image_id``, ``category_id``, which is the class's index + 1, ``bbox``, left, top, width and height
        in pixels, ``score``, ``segmentation`` where there are masks, and the names behind the two numbers:
        ``file_name`` and ``category``.
        """
        numbers = {name: number for number, name in enumerate(spec.names, 1)}
        return [
            {
                "image_id": self.key(record),
                "category_id": numbers[one.label],
                "bbox": [round(value, 4) for value in (one.left, one.top, one.right - one.left, one.bottom - one.top)],
                "score": round(one.score, 8),
                **({} if one.mask is None else {"segmentation": plain_rle(one.mask)}),
                "file_name": valid_text(record.path),
                "category": one.label,
            }
            for one in (*record.boxes, *record.unsure)
        ]


def image_id(path: str) -> int | str:
    """Return the number that a file's stem is, ``42`` for ``000042.jpg``, else the stem itself."""
    stem = Path(path).stem
    return int(stem) if stem.isascii() and stem.isdecimal() else valid_text(stem)
