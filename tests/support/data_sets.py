"""Small data sets of noise, and what an index of them is or why there is none."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transferkit.core.errors import DataError
from transferkit.core.records import USUAL
from transferkit.data.index.index import CLASSES, index_images
from transferkit.data.pixels.memory import MemoryPixels
from transferkit.data.pixels.spec import PixelSpec
from transferkit.data.pixels.store import PixelStore
from transferkit.options.data import DataOptions


def draw(path, seed, size=(20, 16), mode="RGB", kind=None, **options):
    """Write noise. As BMP the bytes, and so the splits, are the same whatever the version of the encoder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path, kind, **options)
    return path


def folder(root, classes=("cat", "dog"), count=20, start=0):
    """Draw a folder per class."""
    for number, name in enumerate(classes):
        for picture in range(count):
            draw(Path(root) / name / f"{picture:03}.bmp", start + 1000 * number + picture)
    return Path(root)


def three_splits(root, val="val"):
    """Draw four pictures per class in each of three splits."""
    for number, split in enumerate(("train", val, "test")):
        folder(root / split, count=4, start=number * 5000)
    return root


def table(path, *rows, header="path,label"):
    """Write a manifest."""
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def memory_only(min_side, keep_bytes):
    """Keep decoded pictures in memory, and none on disk."""
    return PixelStore(PixelSpec.of(min_side, USUAL), MemoryPixels(keep_bytes))


def index(data, *, min_side=None, keep_bytes=0, pixels=None, workers=1, progress=None, reader=CLASSES, **options):
    """Index a data set; options by keyword."""
    return index_images(
        DataOptions(data=str(data), **options), reader=reader,
        min_side=min_side, pixels=pixels or memory_only(min_side, keep_bytes), workers=workers, progress=progress,
    )  # fmt: skip


def labels_of(indexed):
    """Label by path, relative to the data set."""
    return {os.path.relpath(record.path, indexed.root): record.label for record in indexed.records}


def refused(data, *kinds, **options):
    """Return the findings of the error that a data set ends with, which are of these kinds, and its message."""
    with pytest.raises(DataError) as caught:
        index(data, **options)
    message, findings = str(caught.value), caught.value.findings
    assert "\n" not in message
    assert [finding.kind for finding in findings] == list(kinds)
    assert all(finding.message in message for finding in findings[:1])
    return message, findings
