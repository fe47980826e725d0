"""The data sets of `quality.py`: for each a pool to draw labelled pictures from, and pictures to test on, set apart."""

from __future__ import annotations

import hashlib
import random
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from transferkit.data.sample import sample_folder

SETS = ("clothing", "cells", "nuclei", "digits", "sample")
TEST_SHARE = {"clothing": 0.15, "cells": 0.3, "nuclei": 0.3, "digits": 0.3, "sample": 0.3}
MOST_TEST = 600
MOST_OF_A_CLASS = 400
"""Pictures that are cut out of photos, per class."""


def build(name: str, shared: Path, folder: Path) -> Path:
    """Write a set as ``{pool,test}/CLASS/FILE``, once.

    Whether a picture is one to test on is told by the hash of its content, or of the photo that it was cut out of, so
    that it never changes and no photo is on both sides.

    Args:
        name: One of `SETS`.
        shared: Holds `clothing`, `cells` and `nuclei`.
        folder: Of all sets.
    """
    made, done = folder / name, folder / name / "done"
    if done.is_file():
        return made
    counts: dict[tuple[str, str], int] = {}
    for label, file, source, image in PICTURES[name](shared):
        digest = hashlib.sha256(source).digest()
        part = "test" if int.from_bytes(digest[:4], "big") / 2**32 < TEST_SHARE[name] else "pool"
        counts[part, label] = counts.get((part, label), 0) + 1
        if isinstance(image, Image.Image) and counts[part, label] > MOST_OF_A_CLASS:
            continue
        path = made / part / label / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(image, Image.Image):
            image.save(path)
        elif not path.exists():
            path.symlink_to(image.resolve())
    if not counts:
        raise SystemExit(f"{shared}: no pictures of {name}")
    done.touch()
    return made


def files_of(folder: Path) -> dict[str, list[Path]]:
    """Return the pictures of each class, in the order of a hash of their names, which says nothing of what is shown."""
    return {
        each.name: sorted(each.iterdir(), key=lambda path: hashlib.sha256(path.name.encode()).digest())
        for each in sorted(folder.iterdir())
    }


def draw(folder: Path, labels: int | None, seed: int) -> tuple[list[tuple[Path, str, str]], list[tuple[Path, str]]]:
    """Return path, label and split of the pictures that are given, and the pictures to test on.

    Beside `labels` a class to train on there are half as many to validate on, at most 20; ``None`` is the whole pool.
    """
    shuffled = random.Random(seed)
    rows = []
    for label, files in files_of(folder / "pool").items():
        shuffled.shuffle(files)
        val = min(20, max(1, round(0.15 * len(files)))) if labels is None else min(20, (labels + 1) // 2)
        rows += [(path, label, "val") for path in files[:val]]
        rows += [(path, label, "train") for path in files[val:][:labels]]
    classes = files_of(folder / "test")
    share = MOST_TEST // len(classes)
    return rows, [(path, label) for label, files in classes.items() for path in files[:share]]


def clothing(shared: Path) -> Iterator[tuple[str, str, bytes, Path]]:
    """Yield the photos of clothes."""
    for path in sorted(shared.glob("clothing/*/*/*")):
        yield path.parent.name, path.name, path.read_bytes(), path


def sample(shared: Path) -> Iterator[tuple[str, str, bytes, Path]]:
    """Yield the pictures that come with the package."""
    for path in sorted(sample_folder().glob("*/*")):
        yield path.parent.name, path.name, path.read_bytes(), path


def cells(shared: Path) -> Iterator[tuple[str, str, bytes, Image.Image]]:
    """Yield blood cells cut out along their boxes."""
    for path in sorted(shared.glob("cells/JPEGImages/*")):
        source = path.read_bytes()
        photo = Image.open(path).convert("RGB")
        tree = ElementTree.parse(shared / "cells" / "Annotations" / f"{path.stem}.xml")
        for at, one in enumerate(tree.iter("object")):
            box = [int(one.findtext(f"bndbox/{side}", "0")) for side in ("xmin", "ymin", "xmax", "ymax")]
            if box[2] - box[0] >= 8 and box[3] - box[1] >= 8:
                yield one.findtext("name", ""), f"{path.stem}_{at}.png", source, photo.crop(box)


def nuclei(shared: Path) -> Iterator[tuple[str, str, bytes, Image.Image]]:
    """Yield squares with a nucleus in the middle, and squares of background."""
    side = 48
    for path in sorted(shared.glob("nuclei/*/images/*")):
        source, picture = path.read_bytes(), Image.open(path).convert("RGB")
        mask = np.asarray(Image.open(path.parents[1] / "masks" / path.name))
        draws = random.Random(path.name)
        corners = [(draws.randrange(mask.shape[0] - side), draws.randrange(mask.shape[1] - side)) for _ in range(60)]
        middles = {number: np.argwhere(mask == number).mean(axis=0) for number in np.unique(mask)[1:]}
        inside = [(int(row) - side // 2, int(column) - side // 2) for row, column in middles.values()]
        fits = [
            (top, left)
            for top, left in inside
            if 0 <= top <= mask.shape[0] - side and 0 <= left <= mask.shape[1] - side
        ]
        empty = [(top, left) for top, left in corners if not mask[top : top + side, left : left + side].any()]
        draws.shuffle(fits)
        for label, places in (("nucleus", fits[:4]), ("background", empty[:4])):
            for at, (top, left) in enumerate(places):
                yield label, f"{path.stem}_{at}.png", source, picture.crop((left, top, left + side, top + side))


def digits(shared: Path) -> Iterator[tuple[str, str, bytes, Image.Image]]:
    """Yield scikit-learn's digits, 8 x 8 pixels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    for at, (pixels, label) in enumerate(zip(data.images, data.target, strict=True)):
        grey = Image.fromarray((pixels * 255 / 16).round().astype(np.uint8))
        yield str(label), f"{at:04}.png", str(at).encode() + pixels.tobytes(), grey


PICTURES: dict[str, Callable[[Path], Iterator[tuple[str, str, bytes, Path | Image.Image]]]] = {
    "clothing": clothing,
    "cells": cells,
    "nuclei": nuclei,
    "digits": digits,
    "sample": sample,
}
