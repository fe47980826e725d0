"""Lost decoding processes: killed, silent or out of shared memory, all are one kind of error; other errors are not."""

import os
import signal
import time

import pytest
from torch.utils.data import get_worker_info
from torch.utils.data._utils import signal_handling

from transferkit.core.errors import StorageError
from transferkit.data.batches import loader as loader_module
from transferkit.data.batches.datamodule import ImageData
from transferkit.data.batches.dataset import ImageDataset
from transferkit.data.batches.loader import ImageLoader
from transferkit.data.batches.workers import from_workers, worker_errors


def kill_oneself(keys):
    os.kill(os.getpid(), signal.SIGKILL)


def hang(keys):
    time.sleep(60)


@pytest.mark.parametrize(
    ("harm", "timeout", "reason"),
    [
        (kill_oneself, 300, r"a decoding process was lost \((DataLoader worker \(pid|its connection).*\)"),
        (hang, 1.0, "the decoding processes sent nothing for 1 s"),
    ],
)
def test_a_lost_worker_ends_with_what_to_do(monkeypatch, folder, harm, timeout, reason):  # fault 45
    dataset = ImageData(folder, image_size=32).dataset("train")
    batch = ImageDataset.batch

    def harmed(self, keys):
        if get_worker_info() is not None and 8 in keys:
            harm(keys)
        return batch(self, keys)

    monkeypatch.setattr(ImageDataset, "batch", harmed)
    monkeypatch.setattr(loader_module, "TIMEOUT_S", timeout)
    loader = ImageLoader(dataset, 4, workers=1)
    started, sizes = time.monotonic(), []
    with pytest.raises(StorageError, match=rf"^{reason}, as when .* reduce --workers or raise shm") as caught:
        sizes += [len(images) for images, _ in loader]
    assert caught.value.exit_status == 74
    assert time.monotonic() - started < 40  # far below the sleep, and below the usual timeout
    assert all(size == 4 for size in sizes)


def test_a_killed_worker_is_found_without_torchs_signal_handler(monkeypatch, folder):  # fault 45
    """Lightning puts the handlers back that were there before a fit, and torch does not look whether its own is."""
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", True)
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        loader = ImageLoader(ImageData(folder, image_size=32).dataset("train"), 4, workers=1)
        batches = iter(loader)
        next(batches)
        os.kill(loader._iterator._workers[0].pid, signal.SIGKILL)
        with pytest.raises(StorageError, match=r"lost \((DataLoader worker \(pid\(s\) \d+\) exited|its conn)"):
            list(batches)
    finally:
        if loader._iterator is not None:
            loader._iterator._shutdown_workers()  # or the handler would tell of the dead one
        signal.signal(signal.SIGCHLD, before)


def test_a_slow_worker_is_waited_for(monkeypatch, folder):
    monkeypatch.setattr(loader_module, "LOOK_S", 0.2)
    dataset = ImageData(folder, image_size=32).dataset("train")
    batch = ImageDataset.batch

    def slow(self, keys):
        if get_worker_info() is not None and keys[0] in (0, 8):
            time.sleep(0.7)
        return batch(self, keys)

    monkeypatch.setattr(ImageDataset, "batch", slow)
    loaders = [ImageLoader(dataset, 4, workers=workers) for workers in (0, 1)]
    here, there = ([images for images, _ in loader] for loader in loaders)
    assert len(here) == len(there) == 6
    assert all(ours.equal(theirs) for ours, theirs in zip(here, there, strict=True))


@pytest.mark.parametrize(
    "said",
    [
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
        "shared memory. Please try to raise your shared memory limit.",
        "DataLoader worker (pid(s) 7, 8) exited unexpectedly",
        "Pin memory thread exited unexpectedly",
        "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        "RuntimeError: unable to write to file </torch_7_1>: No space left on device (28)",
        "unable to open shared memory object </torch_7_1> in read-write mode: Too many open files (24)",
    ],
)
def test_what_torch_says_of_lost_workers(said):  # fault 45
    with pytest.raises(StorageError) as caught, worker_errors():
        raise RuntimeError(said)
    assert said.splitlines()[-1].rstrip(".") in str(caught.value)
    assert "\n" not in str(caught.value)


class Broken:
    """An iterator whose worker's connection broke, or that hands on what its worker has met."""

    def __init__(self, error):
        self.error = error

    def __iter__(self):
        return self

    def __next__(self):
        raise self.error


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_broken_connection_is_a_lost_worker(error):  # fault 45
    with pytest.raises(StorageError, match=r"lost \(its connection is gone\)"):
        list(from_workers(Broken(error), 300))
    met = EOFError("Caught EOFError in DataLoader worker process 0.\nOriginal Traceback")
    with pytest.raises(EOFError) as caught:
        list(from_workers(Broken(met), 300))
    assert caught.value is met


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback:\nRuntimeError: a bug"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("Pin memory thread exited unexpectedly"),
    ],
)
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as caught, worker_errors():
        raise error
    assert caught.value is error
