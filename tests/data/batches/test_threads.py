"""Batches made ahead on threads: the same in the same order, errors where they belong, and how much threads help."""

import threading
import time

import numpy as np
import pytest
import torch

from transferkit.core.errors import DataError
from transferkit.data.batches import threads as module
from transferkit.data.batches.datamodule import ImageData
from transferkit.data.batches.dataset import ImageDataset
from transferkit.data.batches.loader import ImageLoader
from transferkit.data.batches.samplers import EpochSampler
from transferkit.data.batches.threads import choose_makers, from_threads, share_of_cores


@pytest.fixture
def data(folder):
    return ImageData(folder, image_size=32, batch_size=4, augment="heavy")


def training(data, threads, epoch=0):
    dataset = data.dataset("train", train=True)
    sampler = EpochSampler(len(dataset), batch_size=4, seed=0)
    sampler.set_epoch(epoch)
    return ImageLoader(dataset, 4, sampler=sampler, threads=threads)


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_batches_and_their_order_do_not_depend_on_threads(data, threads):
    for epoch in (0, 1):
        expected, made = list(training(data, 0, epoch)), list(training(data, threads, epoch))
        assert len(made) == len(expected) == 6
        for (images, targets), (theirs, labels) in zip(made, expected, strict=True):
            assert torch.equal(images, theirs) and torch.equal(targets, labels)


def test_a_resume_goes_on_in_mid_epoch(data):
    whole, first = training(data, 2), training(data, 2)
    batches = iter(first)
    for _ in range(2):
        next(batches)
    second = training(data, 2)
    second.load_state_dict(first.state_dict())
    rest = [images for images, _ in second]
    assert torch.equal(torch.cat(rest), torch.cat([images for images, _ in whole][2:]))


def test_batches_are_made_ahead_but_no_more_than_that(data, monkeypatch):
    made, batch = [], ImageDataset.batch
    monkeypatch.setattr(ImageDataset, "batch", lambda self, keys, **o: (made.append(keys), batch(self, keys, **o))[1])
    batches = from_threads(data.dataset("train"), ([at] for at in range(24)), threads=2, ahead=4)
    next(batches)
    deadline = time.monotonic() + 30
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(made) == 4
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("load")]


def test_an_error_comes_in_the_place_of_its_batch(folder, tmp_path):
    dataset = ImageData(folder, image_size=32, keep_bytes=0, pixel_store="off").dataset("train")
    broken = dataset.pictures[9]
    dataset.pictures = [*dataset.pictures]
    dataset.pictures[9] = type(broken)(str(tmp_path / "gone.png"), broken.sha256)
    batches = from_threads(dataset, [[at, at + 1] for at in range(0, 24, 2)], threads=3, ahead=6)
    assert [len(next(batches).images) for _ in range(4)] == [2] * 4
    with pytest.raises(DataError, match="gone.png"):
        next(batches)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("load")]


def test_pictures_are_pinned_where_they_were_made(data, monkeypatch):
    pinned = []
    monkeypatch.setattr(
        torch.Tensor, "pin_memory", lambda self: (pinned.append(threading.current_thread().name), self)[1]
    )
    list(from_threads(data.dataset("train"), [[0], [1]], threads=2, ahead=2, pin_memory=True))
    assert len(pinned) == 2
    assert all(name.startswith("load") for name in pinned)


@pytest.mark.parametrize(("together", "share"), [(400.0, 1.0), (100.0, 0.25)])
def test_the_share_is_of_what_as_many_cores_would_do(monkeypatch, together, share):
    monkeypatch.setattr(module, "_rate", lambda _, threads: {1: 100.0, 4: together}[threads])
    assert share_of_cores(lambda _: None, 4) == share


def test_each_number_is_worked_on_once(monkeypatch):
    monkeypatch.setattr(module, "TRIAL_S", 0.02)
    done, lock = [], threading.Lock()

    def note(number):
        with lock:
            done.append(number)
        time.sleep(0.001)

    share_of_cores(note, 3)
    assert np.bincount(done)[:3].min() >= 2  # on one thread, and on three


@pytest.fixture
def shares(monkeypatch):
    """What measurements will find, and how many there were."""
    found, asked = [0.9, 0.3], []

    def share(make, threads):
        asked.append(threads)
        make(70)  # beyond the pictures that are shown
        return found[len(asked) - 1]

    monkeypatch.setattr(module, "share_of_cores", share)
    monkeypatch.setattr(module, "available_cores", lambda: 5)
    monkeypatch.setattr(module, "choose_workers", lambda workers, device: (4, 1))
    return asked


def test_makers_are_measured_once_and_remembered(folder, shares):
    light, heavy = (ImageData(folder, 32, augment=name).dataset("train", train=True) for name in ("light", "heavy"))
    for _ in range(2):
        assert choose_makers(light, None, "cuda") == (0, 4)
        assert choose_makers(heavy, None, "cuda") == (4, 0)
    assert shares == [4, 4]


@pytest.mark.parametrize(
    ("workers", "device", "makers"),
    [(None, "cpu", (0, 0)), (0, "cpu", (0, 0)), (2, "cpu", (2, 0)), (0, "cuda", (0, 4)), (3, "cuda", (3, 0))],
)
def test_what_is_named_is_not_measured(data, shares, workers, device, makers):
    assert choose_makers(data.dataset("train"), workers, device) == makers
    assert shares == []
