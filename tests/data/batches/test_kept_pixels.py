"""Pictures that are decoded once: the same pixels from memory, disk and files, whatever process shows them."""

import gc
import multiprocessing
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from transferkit.core.errors import ConfigError, DataError
from transferkit.core.records import DataConfig, Decoding
from transferkit.data.augment.transform import eval_transform
from transferkit.data.augment.views import Views
from transferkit.data.batches import dataset as dataset_module
from transferkit.data.batches.datamodule import ImageData
from transferkit.data.batches.dataset import ImageDataset, Picture
from transferkit.data.batches.loader import _as_is
from transferkit.data.images.decode import decode_image
from transferkit.data.pixels.store import open_pixels

SIDE = 16


def paint(path, number, size=(90, 70), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(number)
    rough = Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    if path.suffix == ".png" and options.pop("deep", False):
        values = rng.integers(0, 1 << 16, (size[1], size[0])).astype(np.uint16)
        Image.fromarray(values).save(path)
        return
    exif = Image.Exif()
    if turn := options.pop("turn", 0):
        exif[0x0112] = turn
    rough.save(path, exif=exif, **options)


@pytest.fixture
def photos(tmp_path):
    """JPEGs that are decoded at a fraction, turned ones, PNGs, grey of 16 bits; one file twice."""
    root = tmp_path / "photos"
    for number in range(8):
        folder = root / "ab"[number % 2]
        paint(folder / f"large{number}.jpg", number, (300, 200), quality=90)
        paint(folder / f"turned{number}.jpg", 100 + number, (200, 140), turn=1 + number)
        paint(folder / f"plain{number}.png", 200 + number)
        paint(folder / f"deep{number}.png", 300 + number, deep=True)
    shutil.copy(root / "a" / "plain0.png", root / "a" / "again.png")
    return root


def data_of(root, **options):
    options = {"image_size": SIDE, "batch_size": 3, "val_split": 0.0, "test_split": 0.0, "workers": 0, **options}
    return ImageData(root, **options)


def decoded_by(monkeypatch):
    """The names of pictures that are decoded for batches from now on."""
    names = []
    real = dataset_module.decode_with_info
    monkeypatch.setattr(dataset_module, "decode_with_info",
                        lambda *args, **options: names.append(options["name"]) or real(*args, **options))  # fmt: skip
    return names


def epochs(data, count=2):
    loader = data.train_dataloader()
    shown = []
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)
        shown.append(torch.cat([images for images, _ in loader]))
    return shown


PLACES = {
    "memory": {"keep_bytes": 10**8, "pixel_store": "off"},
    "disk": {"keep_bytes": 0, "pixel_store": "1GB"},
    "both": {"keep_bytes": 100_000, "pixel_store": "1GB"},
}


@pytest.mark.parametrize("place", PLACES)
def test_kept_pictures_are_those_of_the_decoder(photos, place):
    data = data_of(photos, **PLACES[place])
    side = data.data_config.decode_side
    for record in data.index.records:
        pixels = data.pixels.get(record.sha256)
        assert np.array_equal(pixels, decode_image(record.path, min_side=side)) and not pixels.flags.writeable
    assert (data.pixels.memory.room < PLACES[place]["keep_bytes"]) == (place != "disk")
    in_memory = len(data.pixels.memory)
    assert {"memory": in_memory == 32, "disk": in_memory == 0, "both": 0 < in_memory < 32}[place]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("augment", ["none", "heavy"])
@pytest.mark.parametrize("place", PLACES)
def test_it_changes_no_batch(photos, decoding_processes, place, augment, workers):
    plain = epochs(data_of(photos, keep_bytes=0, pixel_store="off", augment=augment))
    for _ in range(2):  # the first one fills the store, the second one finds it full
        shown = epochs(data_of(photos, augment=augment, workers=workers, **PLACES[place]))
        assert all(ours.equal(theirs) for ours, theirs in zip(plain, shown, strict=True))


@pytest.mark.parametrize("place", PLACES)
def test_nothing_is_decoded_for_batches_that_was_decoded_for_the_index(photos, monkeypatch, place):
    data = data_of(photos, **PLACES[place])
    data.index  # noqa: B018
    names = decoded_by(monkeypatch)
    epochs(data)
    assert names == []


def test_without_a_place_each_epoch_decodes_anew(photos, monkeypatch):
    data = data_of(photos, keep_bytes=0, pixel_store="off")
    names = decoded_by(monkeypatch)
    epochs(data)
    assert len(names) == 2 * 33


@pytest.mark.parametrize("place", PLACES)
def test_pictures_that_the_index_did_not_decode_are_decoded_in_the_first_epoch(photos, monkeypatch, place):
    data = data_of(photos, **PLACES[place])
    data.index  # noqa: B018
    data.pixels = open_pixels(data.data_config, memory=PLACES[place]["keep_bytes"], disk=0)
    if place != "memory":
        data.pixels = open_pixels(data.data_config, memory=PLACES[place]["keep_bytes"], disk=10**8)
        shutil.rmtree(data.pixels.disk.folder)
    names = decoded_by(monkeypatch)
    epochs(data, 1)
    assert 32 <= len(names) <= 33, "an equal file may be decoded beside the first"
    epochs(data, 2)
    assert len(names) <= 33


def test_the_next_run_finds_them_on_disk(photos, monkeypatch):
    first = data_of(photos, **PLACES["disk"])
    first.index  # noqa: B018
    pixels = open_pixels(first.data_config, memory=0, disk=10**9)
    records = first.index.records
    assert all(pixels.get(record.sha256) is not None for record in records)
    other = open_pixels(DataConfig((SIDE + 1, SIDE)), memory=0, disk=10**9)
    assert all(other.get(record.sha256) is None for record in records)


def test_a_store_of_pictures_decoded_otherwise_is_left_out(photos):
    config = DataConfig((SIDE, SIDE))
    pixels = open_pixels(config, memory=10**7, disk=0)
    for other in (DataConfig((2 * SIDE, SIDE)), DataConfig((SIDE, SIDE), decoding=Decoding(grey_bits=9)),
                  config.in_windows()):  # fmt: skip
        assert not pixels.serves(other)
        assert ImageDataset([], Views(eval_transform(other)), pixels=pixels).pixels is None
    assert ImageDataset([], Views(eval_transform(config)), pixels=pixels).pixels is pixels


def test_only_what_was_indexed_is_kept(photos):
    config = DataConfig((SIDE, SIDE))
    pixels = open_pixels(config, memory=10**7, disk=0)
    path = str(photos / "a" / "plain0.png")
    dataset = ImageDataset([Picture(path)], Views(eval_transform(config)), pixels=pixels)
    (sha256,) = dataset[0].hashes
    assert pixels.get(sha256) is None and len(pixels.memory) == 0
    indexed = ImageDataset([Picture(path, sha256)], Views(eval_transform(config)), pixels=pixels)
    assert np.array_equal(indexed[0].images, dataset[0].images) and pixels.get(sha256) is not None


@pytest.mark.parametrize("place", PLACES)
def test_a_changed_file_is_told_of_where_it_is_decoded(photos, place):  # fault 23
    data = data_of(photos, **PLACES[place])
    record = next(one for one in data.index.records if one.path.endswith("plain3.png"))
    expected = data.pixels.get(record.sha256).copy()
    paint(photos / "b" / "plain3.png", 999)
    assert np.array_equal(data.pixels.get(record.sha256), expected), "what is kept is of the content that was indexed"
    epochs(data, 1)
    del data.pixels
    if data.pixels.disk is not None:
        shutil.rmtree(data.pixels.disk.folder)
    with pytest.raises(DataError, match=r"plain3\.png: its content changed since"):
        epochs(data, 1)


@pytest.mark.parametrize("size", ["20", "20 apples", "-1GB", "0GB", "", "on", "nanGB", "1e3GB"])
def test_sizes_that_are_none(photos, size):
    with pytest.raises(ConfigError, match="--pixel-store is .*expected a size with its unit, such as 20GB, or off"):
        data_of(photos, pixel_store=size)


# ---- start methods ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "method"),
    [
        ("memory", "fork"),
        ("memory", "forkserver"),
        ("both", "spawn"),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in (("memory", "spawn"), ("both", "fork"))),
        pytest.param("both", "forkserver", marks=pytest.mark.slow),
    ],
)
def test_processes_of_every_start_method_show_kept_pictures(photos, decoding_processes, place, method):
    """The files are gone: what they show comes from memory, or from disk."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this system")
    data = data_of(photos, augment="standard", **PLACES[place])
    dataset = data.dataset("train", train=True)
    numbers = list(range(len(dataset)))
    batches = [numbers[at : at + 8] for at in range(0, len(numbers), 8)]
    expected = torch.cat([dataset.batch(batch).images for batch in batches])
    shutil.rmtree(photos)
    loader = DataLoader(
        dataset, batch_sampler=batches, num_workers=1, collate_fn=_as_is, multiprocessing_context=method
    )
    shown = list(loader)
    assert torch.cat([loaded.images for loaded in shown]).equal(expected)


def test_decoding_processes_write_what_they_decoded(photos, decoding_processes):
    data = data_of(photos, workers=2, **PLACES["disk"])
    data.index  # noqa: B018
    folder = data.pixels.disk.folder
    del data.pixels
    shutil.rmtree(folder)
    epochs(data, 1)  # its loader is gone then, and its processes with it
    gc.collect()
    pixels = open_pixels(data.data_config, memory=0, disk=10**9)
    records = data.index.records
    assert [record.path for record in records if pixels.get(record.sha256) is None] == []
    assert len(list(folder.glob("*.pixels"))) == 2


def test_of_several_processes_that_read_all_pictures_one_writes(photos, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    data = data_of(photos, **PLACES["both"])
    data.index  # noqa: B018
    assert len(data.pixels.memory) > 0 and not data.pixels.disk.folder.exists()
    epochs(data, 2)  # of which it sees its own part
    data.pixels.flush()
    assert data.pixels.disk.folder.exists()
