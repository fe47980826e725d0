"""Small sets of rectangles in colours that nothing else has, written as COCO, Pascal VOC and YOLO."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from transferkit.data.index.boxes import BoxReader
from transferkit.data.index.index import index_images
from transferkit.data.objects.labels import objects_of
from transferkit.options.data import DataOptions

NAMES = ("cat", "dog", "elk")
GROUND = (128, 128, 128)


class Scene(NamedTuple):
    """A picture ``(H, W, 3)``, boxes (left, top, right, bottom) and class indices; object k has `colour(k)`."""

    pixels: np.ndarray
    boxes: list[tuple[int, int, int, int]]
    classes: list[int]


def colour(number):
    """A saturated colour for each of four objects: far from grey, and a quarter of the circle of hues apart."""
    return [(255, 0, 0), (128, 255, 0), (0, 255, 255), (128, 0, 255)][number]


def scene(seed, height=90, width=130, objects=4):
    """Draw rectangles that do not overlap, one per cell of a 2 x 3 grid, and not centred in it."""
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), GROUND, dtype=np.uint8)
    boxes, classes = [], []
    for number in rng.permutation(6)[:objects]:
        row, column = divmod(int(number), 3)
        top, left = row * height // 2, column * width // 3
        bottom, right = (row + 1) * height // 2, (column + 1) * width // 3
        box = (left + int(rng.integers(1, 8)), top + int(rng.integers(1, 8)),
               right - int(rng.integers(1, 8)), bottom - int(rng.integers(1, 8)))  # fmt: skip
        pixels[box[1] : box[3], box[0] : box[2]] = colour(len(boxes))
        boxes.append(box)
        classes.append(int(rng.integers(0, 3)))
    return Scene(pixels, boxes, classes)


def save(path, pixels, orientation=1):
    """Write a picture; of another orientation the file is turned so that it is seen as `pixels`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)


def coco(root, scenes, *, name="train.json", folder="images", extra=(), images=(), **options):
    """Write a COCO file."""
    listed, annotations = [], []
    for stem, one in scenes.items():
        save(root / folder / f"{stem}.png", one.pixels)
        number = len(listed) + 1
        height, width = one.pixels.shape[:2]
        listed.append({"id": number, "file_name": f"{stem}.png", "height": height, "width": width})
        for (left, top, right, bottom), kind in zip(one.boxes, one.classes, strict=True):
            box = [left, top, right - left, bottom - top]
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": kind + 3, "bbox": box})
            if options.get("outlines"):
                corners = [left, top, right, top, right, bottom, left, bottom]
                annotations[-1]["segmentation"] = [corners]
    categories = [{"id": at + 3, "name": one} for at, one in enumerate(NAMES)]
    values = {"images": listed + list(images), "annotations": annotations + list(extra), "categories": categories}
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps(values), encoding="utf-8")
    return root


def voc(root, scenes, *, zero=False, split=None):
    """Write a Pascal VOC set, whose pixels count from 1, or from 0."""
    for stem, one in scenes.items():
        save(root / "JPEGImages" / f"{stem}.png", one.pixels)
        rows = [(NAMES[kind], *box) for box, kind in zip(one.boxes, one.classes, strict=True)]
        voc_xml(root, stem, one.pixels.shape[:2], rows if zero else [(n, a + 1, b + 1, c, d) for n, a, b, c, d in rows])
    if split is not None:
        lists = root / "ImageSets" / "Main"
        lists.mkdir(parents=True)
        for name in set(split.values()):
            stems = [stem for stem, other in split.items() if other == name]
            (lists / f"{name}.txt").write_text("\n".join(stems) + "\n", encoding="utf-8")
    return root


def voc_xml(root, stem, size, rows, rest=""):
    """Write one annotation: rows of name, xmin, ymin, xmax, ymax."""
    objects = "".join(
        f"<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax>"
        f"<ymax>{d}</ymax></bndbox></object>"
        for name, a, b, c, d in rows
    )
    path = root / "Annotations" / f"{stem}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"
    path.write_text(f"<annotation>{sizes}{objects}{rest}</annotation>", encoding="utf-8")


def yolo(root, scenes, *, split="", pixels=False, names=True):
    """Write a YOLO set."""
    for stem, one in scenes.items():
        save(root / "images" / split / f"{stem}.png", one.pixels)
        height, width = (1, 1) if pixels else one.pixels.shape[:2]
        rows = [
            f"{kind} {(a + c) / 2 / width:.6f} {(b + d) / 2 / height:.6f} {(c - a) / width:.6f} {(d - b) / height:.6f}"
            for (a, b, c, d), kind in zip(one.boxes, one.classes, strict=True)
        ]
        path = root / "labels" / split / f"{stem}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    if names:
        (root / "data.yaml").write_text(f"nc: 3\nnames: [{', '.join(NAMES)}]\n", encoding="utf-8")
    return root


def look(data, **options):
    """Index a set of objects without splits of ours."""
    options = {"val_split": 0.0, "test_split": 0.0, **options}
    return index_images(DataOptions(data=str(data), **options), reader=BoxReader())


def found(index):
    """Objects by file name: (class, left, top, right, bottom), in order."""
    return {
        Path(record.path).stem: [(item.name, *item.box) for item in objects_of(record.label).items]
        for record in index.records
    }


def expected(scenes):
    """What `found` gives for scenes."""
    return {
        stem: [(NAMES[kind], *map(float, box)) for box, kind in zip(one.boxes, one.classes, strict=True)]
        for stem, one in scenes.items()
    }
