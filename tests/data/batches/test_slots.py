"""Batches that lie where a worker wrote them: the same pictures, no slot used twice at once, none lost."""

import gc
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from transferkit.core.records import DataConfig
from transferkit.data.augment.transform import eval_transform
from transferkit.data.augment.views import Views
from transferkit.data.batches.datamodule import ImageData
from transferkit.data.batches.dataset import ImageDataset, Job, Picture
from transferkit.data.batches.loader import BatchLoader, ImageLoader
from transferkit.data.batches.slots import BatchSlots
from transferkit.data.batches.workers import AHEAD_BYTES, MOST_AHEAD, batches_ahead

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no memory files")


def pictures(count, side=32):
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(count)]


def dataset(count, side=32):
    named = [Picture(str(at), content=pixels) for at, pixels in enumerate(pictures(count, side))]
    return ImageDataset(
        named, Views(eval_transform(DataConfig(image_size=(side, side), crop_pct=1.0))), targets=torch.arange(count)
    )


def arrived(handed):
    return pickle.loads(pickle.dumps(handed))


def test_a_batch_is_read_where_it_was_written():
    slots, shown = BatchSlots.make(2, 3, 4 * 32 * 32 * 3), pictures(4)
    batch = arrived(slots.fill(1, shown))
    assert torch.equal(batch, torch.from_numpy(np.stack(shown)))
    slots._bytes(3, 1)[0] = 255 - shown[0][0, 0, 0]  # the first slot of the second worker
    assert batch[0, 0, 0, 0] == 255 - shown[0][0, 0, 0]


def test_a_slot_is_free_when_no_tensor_is_left_on_it():
    slots = BatchSlots.make(1, 2, 4 * 32 * 32 * 3)
    first = arrived(slots.fill(0, pictures(4)))
    part = first[2:, :3].permute(0, 3, 1, 2)
    del first
    gc.collect()
    assert slots.free == 1
    before = part.clone()
    second = arrived(slots.fill(0, [255 - one for one in pictures(4)]))
    assert slots.fill(0, pictures(4)) is None  # both are taken
    assert torch.equal(part, before)
    del part, second
    assert slots.free == 2


def test_each_worker_has_slots_of_its_own():
    slots = BatchSlots.make(2, 1, 4 * 32 * 32 * 3)
    assert slots.fill(0, pictures(1)) is not None
    assert slots.fill(0, pictures(1)) is None
    assert slots.fill(1, pictures(1)) is not None


def test_what_is_too_large_for_a_slot_is_not_written():
    slots = BatchSlots.make(1, 1, 4096)
    assert slots.fill(0, pictures(2)) is None
    assert slots.free == 1


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_workers_of_every_start_method_write_into_them(monkeypatch, method, decoding_processes):
    taken = []
    opened = BatchSlots.open
    monkeypatch.setattr(BatchSlots, "open", lambda self, *place: (taken.append(place[0]), opened(self, *place))[1])
    loader = ImageLoader(dataset(24), 4, workers=1)
    loader.multiprocessing_context = method
    batches = [images.clone() for images, _ in loader]
    assert torch.equal(torch.cat(batches), torch.from_numpy(np.stack(pictures(24))))
    assert len(taken) == 6


def test_batches_that_are_kept_stay_as_they_are(decoding_processes):
    loader = ImageLoader(dataset(200), 4, workers=1)
    for _ in range(2):  # workers live on
        kept = [images for images, _ in loader]
        assert torch.equal(torch.cat(kept), torch.from_numpy(np.stack(pictures(200))))
    del kept, _
    gc.collect()
    assert loader._slots.free == loader.prefetch_factor + 2


def test_slots_of_an_epoch_that_was_left_are_free_again(decoding_processes):
    loader = ImageLoader(dataset(100), 4, workers=1)
    for _ in range(5):
        next(iter(loader))
    shown = [images.clone() for images, _ in loader]
    assert torch.equal(torch.cat(shown), torch.from_numpy(np.stack(pictures(100))))
    gc.collect()
    assert loader._slots.free == loader.prefetch_factor + 2


def test_two_loaders_of_one_data_set_do_not_mix(decoding_processes):
    data = dataset(40)
    first, second = ImageLoader(data, 4, workers=1), ImageLoader(data, 4, workers=1)
    pairs = list(zip(first, second, strict=True))
    assert first._slots is not second._slots
    for (ours, _), (theirs, _) in pairs:
        assert torch.equal(ours, theirs)
    assert torch.equal(torch.cat([images for (images, _), _ in pairs]), torch.from_numpy(np.stack(pictures(40))))


def test_without_memory_files_batches_come_torchs_way(monkeypatch, decoding_processes):
    def refuse(*_):
        raise OSError(38, "not implemented")

    monkeypatch.setattr("os.memfd_create", refuse)
    loader = ImageLoader(dataset(20), 4, workers=1)
    assert torch.equal(torch.cat([images for images, _ in loader]), torch.from_numpy(np.stack(pictures(20))))
    assert loader._slots is None


def test_larger_views_than_in_evaluation_fit(folder, decoding_processes, monkeypatch):
    data = ImageData(folder, image_size=32, train_size=64, batch_size=4, workers=1)
    opened, shapes = BatchSlots.open, []
    monkeypatch.setattr(BatchSlots, "open", lambda self, *place: (shapes.append(place[1]), opened(self, *place))[1])
    for images, _ in data.train_loader(0, 1):
        assert images.shape[1:] == (64, 64, 3)
    assert shapes == [(4, 64, 64, 3)] * 6


def test_batches_by_name_use_them_too(decoding_processes, monkeypatch):
    opened, shapes = BatchSlots.open, []
    monkeypatch.setattr(BatchSlots, "open", lambda self, *place: (shapes.append(place[1]), opened(self, *place))[1])
    data = dataset(9)
    batches = [[Job(at, (0,)) for at in range(first, min(first + 4, 9))] for first in (0, 4, 8)]
    shown = [loaded.images.clone() for loaded in BatchLoader(data, rows=4, workers=1).load(batches)]
    assert torch.equal(torch.cat(shown), torch.from_numpy(np.stack(pictures(9))))
    assert [shape[0] for shape in shapes] == [4, 4, 1]


def test_one_list_of_batches_after_the_other_has_the_same_workers(decoding_processes):
    loader, workers = BatchLoader(dataset(12), rows=4, workers=1), []
    for first in (0, 4, 8, 0):
        loaded = list(loader.load([[Job(at) for at in range(first, first + 4)]]))
        assert torch.equal(loaded[0].images, torch.from_numpy(np.stack(pictures(12)[first : first + 4])))
        workers += [worker.pid for worker in loader._loader._iterator._workers]
    assert len(workers) == 4 and len(set(workers)) == 1
    unfinished = loader.load([[Job(at)] for at in range(12)])
    next(unfinished)
    del unfinished
    assert [len(each.images) for each in loader.load([[Job(3), Job(4)]])] == [2]


def test_descriptors_are_given_back(decoding_processes):
    """Those of the memory of slots; torch's queues close theirs a while later."""

    def count():
        gc.collect()
        names = [str(each.readlink()) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
        return sum("transferkit-batches" in name for name in names)

    loader = ImageLoader(dataset(8), 4, workers=1)
    list(loader)
    before = count()
    assert before > 0
    for _ in range(3):
        list(ImageLoader(dataset(8), 4, workers=1))
    assert count() == before


@pytest.mark.parametrize(
    ("workers", "size", "free", "ahead"),
    [
        (16, 32 * 224 * 224 * 3, 1 << 40, MOST_AHEAD),
        (16, 128 * 224 * 224 * 3, 1 << 40, 3),
        (16, 128 * 640 * 640 * 3, 1 << 40, 1),
        (2, 128 * 224 * 224 * 3, 8 << 27, 3),  # an eighth of what is free
        (0, 1, 0, MOST_AHEAD),
        (1, AHEAD_BYTES // 5, 0, 5),
    ],
)
def test_batches_ahead_by_their_bytes(workers, size, free, ahead):
    assert batches_ahead(workers, size, free) == ahead
