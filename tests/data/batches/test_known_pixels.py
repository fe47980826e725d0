"""Pictures whose files are known: not read for the index, decoded in the first epoch, and never again."""

import multiprocessing
import shutil

import numpy as np
import pytest
import torch
from data_sets import draw

from transferkit.data.batches import dataset as dataset_module
from transferkit.data.batches import loader as loader_module
from transferkit.data.batches.datamodule import ImageData
from transferkit.data.images import decode, known_files, reading
from transferkit.data.images.decode import decode_image
from transferkit.data.pixels import memory

PLACES = {
    "memory": {"keep_bytes": 10**7, "pixel_store": "off"},
    "disk": {"keep_bytes": 0, "pixel_store": "1GB"},
    "both": {"keep_bytes": 30_000, "pixel_store": "1GB"},
}


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    """Write files down at once, however new they are."""
    monkeypatch.setattr(known_files, "TICK_NS", 0)


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    for number in range(12):
        size = (200, 150) if number % 3 else (60, 80)
        draw(root / "ab"[number % 2] / f"{number:02}.jpg", number, size)
    return root


@pytest.fixture
def read(monkeypatch):
    """Names of the files that are read for the index."""
    names = []
    monkeypatch.setattr(reading, "read_bytes", lambda path: names.append(path) or decode.read_bytes(path))
    return names


def data_of(root, **options):
    options = {"image_size": 16, "batch_size": 3, "val_split": 0.0, "test_split": 0.0, "workers": 0, **options}
    return ImageData(root, **options)


def known(root):
    """Let the files be known, and nothing of their pixels be kept."""
    data_of(root, keep_bytes=0, pixel_store="off").index  # noqa: B018


def epochs(data, count, between=lambda: None):
    loader, shown = data.train_dataloader(), []
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)
        shown.append(torch.cat([images for images, _ in loader]))
        between()
    return shown


@pytest.mark.parametrize("place", PLACES)
def test_each_is_decoded_once_and_shown_as_ever(photos, read, decoded, place):
    plain = epochs(data_of(photos, keep_bytes=0, pixel_store="off"), 3)
    read.clear(), decoded.clear()
    data = data_of(photos, **PLACES[place])
    assert [image.equal(other) for image, other in zip(epochs(data, 3), plain, strict=True)] == [True] * 3
    assert read == [] and len(decoded) == 12
    for record in data.index.records:
        expected = decode_image(record.path, min_side=data.data_config.decode_side)
        assert np.array_equal(data.pixels.get(record.sha256), expected)


@pytest.mark.parametrize("method", ["fork", "forkserver", pytest.param("spawn", marks=pytest.mark.slow)])
def test_processes_fill_the_memory_of_all(photos, read, decoding_processes, monkeypatch, method):
    """The files go after the first epoch: all that is shown then comes from memory that workers filled."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this system")
    known(photos)
    read.clear()
    plain = epochs(data_of(photos, keep_bytes=0, pixel_store="off"), 3)
    data = data_of(photos, workers=2, **PLACES["memory"])
    data.index  # noqa: B018
    assert read == []
    context = multiprocessing.get_context(method)
    own = loader_module.DataLoader.__init__
    monkeypatch.setattr(loader_module.DataLoader, "__init__", lambda self, *args, **options: own(
        self, *args, **{**options, "multiprocessing_context": context}))  # fmt: skip
    shown = epochs(data, 3, between=lambda: shutil.rmtree(photos, ignore_errors=True))
    assert [image.equal(other) for image, other in zip(shown, plain, strict=True)] == [True] * 3


def test_memory_that_cannot_be_shared_is_filled_at_once(photos, read, monkeypatch):
    def refuse(size):
        raise OSError("no memory to share")

    known(photos)
    read.clear()
    monkeypatch.setattr(memory, "_descriptor", refuse)
    data = data_of(photos, **PLACES["memory"])
    assert len(data.index.records) == len(read) == len(data.pixels.memory) == 12
    names = []
    real = dataset_module.decode_with_info
    monkeypatch.setattr(dataset_module, "decode_with_info",
                        lambda *args, **options: names.append(1) or real(*args, **options))  # fmt: skip
    epochs(data, 1)
    assert names == []


def test_some_new_files_among_known_ones(photos, read, decoded):
    known(photos)
    draw(photos / "a" / "new.jpg", 77, (90, 90))
    read.clear(), decoded.clear()
    data = data_of(photos, **PLACES["memory"])
    data.index  # noqa: B018
    assert [path[-7:] for path in read] == ["new.jpg"] and len(data.pixels.memory) == 1
    epochs(data, 2)
    assert len(data.pixels.memory) == 13 and len(decoded) == 12
