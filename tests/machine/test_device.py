"""What the machine has: threads that fit the cores, accelerators that exist."""

import pytest
import torch

from transferkit.core.errors import ConfigError, TransferkitWarning
from transferkit.machine import device as machine


@pytest.fixture(autouse=True)
def no_number_of_threads(monkeypatch):
    """The environment says nothing about threads; workers of pytest-xdist are told to keep to one."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.parametrize("cores", [1, 2, 8, 64])
@pytest.mark.parametrize("workers", [None, 0, 1])
def test_threads_and_workers_never_outnumber_the_cores(monkeypatch, cores, workers):
    monkeypatch.setattr(machine, "available_cores", lambda: cores)
    if workers == 1 and cores == 1:
        with pytest.warns(TransferkitWarning, match=r"--workers 1 .* would outnumber the 1 core\(s\); using 0"):
            workers, threads = machine.choose_workers(workers, "cpu")
    else:
        workers, threads = machine.choose_workers(workers, "cpu")
    assert workers + threads <= cores
    assert threads >= 1


@pytest.mark.parametrize(
    ("said", "threads"), [("3", 3), (" 1 ", 1), ("2,4", 2), ("16", 7), ("0", 7), ("", 7), ("many", 7), ("-1", 7)]
)
def test_never_more_threads_than_the_environment_says(monkeypatch, said, threads):
    monkeypatch.setattr(machine, "available_cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert machine.choose_workers(None, "cpu") == (1, threads)
    assert machine.choose_workers(5, "gpu") == (5, min(threads, 3))


def test_a_gpu_leaves_the_cores_to_the_decoders(monkeypatch):
    monkeypatch.setattr(machine, "available_cores", lambda: 8)
    assert machine.choose_workers(None, "gpu") == (7, 1)
    assert machine.choose_workers(3, "gpu") == (3, 5)


@pytest.mark.parametrize("accelerator", ["cpu", "gpu"])
def test_without_shared_memory_pictures_are_decoded_in_this_process(monkeypatch, accelerator):
    def no_place(*args, **options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(machine, "available_cores", lambda: 16)
    assert machine.choose_workers(None, accelerator)[0] > 0
    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", no_place)
    assert machine.choose_workers(None, accelerator) == machine.choose_workers(0, accelerator) == (0, 16)
    with pytest.warns(TransferkitWarning, match="--workers 2 needs shared memory, .* using 0"):
        assert machine.choose_workers(2, accelerator) == (0, 16)


def test_accelerators(monkeypatch):  # fault 43
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert machine.choose_accelerator("auto") == "cpu"
    with pytest.raises(ConfigError, match="--accelerator gpu is not on this machine, which has: cpu"):
        machine.choose_accelerator("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert machine.choose_accelerator("auto") == "gpu"
    with pytest.raises(ConfigError, match=r"--devices 2, but this machine has 1 GPU\(s\)"):
        machine.choose_accelerator("gpu", 2)
