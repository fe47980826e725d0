"""COCO results: detections as the tools that measure them read them, with the numbers that a set goes by."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from transferkit.core.errors import ConfigError, DataError
from transferkit.core.files import storage_errors
from transferkit.core.targets import TargetSpec
from transferkit.core.text import listing, valid_text
from transferkit.results.boxes.found import BoxPrediction
from transferkit.results.boxes.instances import plain_rle

__all__ = ["CocoNumbers", "CocoResults", "image_id"]


@dataclass(frozen=True)
class CocoNumbers:
    """What stands for classes and pictures.

    Attributes:
        categories: By name of the class.
        images: By the last part of their names in a COCO file, those names and numbers; ``None`` to go by file names.
        source: That file.
    """

    categories: Mapping[str, int]
    images: Mapping[str, Sequence[tuple[PurePath, int]]] | None = field(default=None, repr=False)
    source: str = ""

    @classmethod
    def of(cls, spec: TargetSpec) -> CocoNumbers:
        """Return the index of each class + 1."""
        return cls({name: number for number, name in enumerate(spec.names, 1)})

    @classmethod
    def read(cls, path: str, spec: TargetSpec) -> CocoNumbers:
        """Return those of a COCO file.

        Raises:
            ConfigError: It is none, or lacks classes of the model.
            StorageError: It cannot be read.
        """
        with storage_errors("read", Path(path)):
            content = Path(path).read_bytes()
        try:
            values = json.loads(content)
            categories = {str(one["name"]): int(one["id"]) for one in values["categories"]}
            images: dict[str, list[tuple[PurePath, int]]] = defaultdict(list)
            for one in values["images"]:
                name = PurePath(str(one["file_name"]).replace("\\", "/"))
                images[name.name].append((name, int(one["id"])))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(
                f"--coco-ids {path}: is no COCO file of images and categories ({type(error).__name__}) - name that of "
                "the annotations to measure by"
            ) from error
        missing = [name for name in spec.names if name not in categories]
        if missing:
            raise ConfigError(
                f"--coco-ids {path}: has no category for {listing(missing)} of the model, but "
                f"{listing(sorted(categories))} - name the file of its own data"
            )
        return cls(categories, images, path)

    def image(self, path: str) -> int | str:
        """Return the number of a picture.

        Raises:
            DataError: The COCO file has none for it, or several.
        """
        if self.images is None:
            return image_id(path)
        own = PurePath(path)
        named = self.images.get(own.name, ())
        fitting = [number for name, number in named if own.parts[-len(name.parts) :] == name.parts]
        matches = fitting or [number for _, number in named]
        if len(matches) != 1:
            many = "no image" if not matches else f"{len(matches)} images"
            raise DataError(f"{self.source}: has {many} for {path!r}, expected one - predict its own pictures alone")
        return matches[0]


@dataclass(frozen=True)
class CocoResults:
    """The part that lists what is found in a picture as entries of COCO results, be it told or not."""

    def entries(self, record: BoxPrediction, image: int | str, categories: Mapping[str, int]) -> list[dict[str, Any]]:
        """Return an entry for each box of a whole record, the most confident first.

        They hold ``image_id``, ``category_id``, ``bbox``, left, top, width and height in pixels, ``score``,
        ``segmentation`` where there are masks, and the names behind the two numbers: ``file_name`` and ``category``.
        """
        return [
            {
                "image_id": image,
                "category_id": categories[one.label],
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
