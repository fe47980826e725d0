"""Fixtures shared by all tests: no network, no shared caches, a small world of pictures."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import contextmanager

import pytest
from shapes import SMALL_RUN, draw_folder

pytest.register_assert_rewrite("contracts")
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", os.devnull)  # it keeps nothing: examples are the same each time
# Compute threads that sleep at barriers instead of spinning: tests stay quick beside other work on few cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if "PYTEST_XDIST_WORKER" in os.environ:  # as many workers as cores: more threads would only take turns
    os.environ.setdefault("OMP_NUM_THREADS", "1")

LOOPBACK = {"127.0.0.1", "::1", "localhost"}


SHARED_MEMORY = pytest.StashKey[bool]()


def pytest_configure(config):
    """Look for shared memory once. A loader that a skip leaves half made complains when it is collected."""
    from transferkit.machine.cores import has_shared_memory

    config.stash[SHARED_MEMORY] = has_shared_memory()
    if not config.stash[SHARED_MEMORY]:
        config.addinivalue_line("filterwarnings", "ignore:Exception ignored in.*DataLoaderIter.__del__")


def pytest_collection_modifyitems(items):
    """Skip what needs a GPU where there is none, and say so by name."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


@pytest.fixture
def without_heif(monkeypatch):
    """Be on a machine where pillow-heif is not installed."""
    from transferkit.data.scan.formats import read_extensions

    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    read_extensions.cache_clear()
    yield
    read_extensions.cache_clear()


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Fail on any connection that leaves this machine."""
    connect, resolve = socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self, address):
        if isinstance(address, tuple) and address[0] not in LOOPBACK:
            raise AssertionError(f"a test tried to reach the network: {address}")
        return connect(self, address)

    def guarded_resolve(host, *args, **kwargs):
        if host not in LOOPBACK and host is not None:
            raise AssertionError(f"a test tried to resolve a host name: {host}")
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_resolve)


@pytest.fixture(autouse=True)
def own_caches(monkeypatch, tmp_path_factory):
    """Give every test its own user cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk():
    """Leave flushing to the system: no test cuts the power, and those about `fsync` put their own in its place."""

    def fsync(handle):
        os.fstat(handle if isinstance(handle, int) else handle.fileno())  # of something that is open

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


@pytest.fixture(scope="session", autouse=True)
def plain_processor():
    """Compute in fp32 unasked, whatever the processor has; in fixtures of modules and after `monkeypatch.undo()` too.

    Returns the check of the processor as it is.
    """
    from transferkit.machine import precision

    with pytest.MonkeyPatch.context() as patch:
        own = precision.cpu_has_bf16
        patch.setattr(precision, "cpu_has_bf16", lambda: False)
        yield own


@pytest.fixture(autouse=True)
def own_processor(request, monkeypatch, plain_processor):
    """Show tests marked `precision` the processor as it is."""
    if request.node.get_closest_marker("precision"):
        from transferkit.machine import precision

        monkeypatch.setattr(precision, "cpu_has_bf16", plain_processor)


@pytest.fixture
def fast_bf16(monkeypatch):
    """A processor whose bf16 is four times as fast as fp32; where the machine has none, torch emulates it."""
    from transferkit.machine import precision

    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: True)
    monkeypatch.setattr(precision, "compare", lambda full, half: (full(), half(), 4.0)[-1])


@pytest.fixture
def decoding_processes(request):
    """Skip, by name, what is about processes that decode, where there can be none."""
    if not request.config.stash[SHARED_MEMORY]:
        pytest.skip("no shared memory: /dev/shm cannot be written")


@pytest.fixture(autouse=True)
def shared_memory(request, monkeypatch):
    """Skip, by name, what starts processes on a machine where they cannot wait for each other."""
    if not request.config.stash[SHARED_MEMORY]:
        if "machine" not in request.path.parts:  # where that is what is tested
            monkeypatch.setattr("transferkit.machine.device.has_shared_memory", lambda: False)  # looking starts nothing
        for name in ("multiprocessing.synchronize.SemLock.__init__", "multiprocessing.heap.Arena.__init__"):
            monkeypatch.setattr(name, lambda *_, **__: pytest.skip("no shared memory: /dev/shm cannot be written"))


@pytest.fixture
def one_thread():
    """Single pictures through a small network, and small problems: threads would only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pets(tmp_path):
    """Two classes of twenty pictures of noise each."""
    import data_sets

    return data_sets.folder(tmp_path / "pets")


@pytest.fixture
def store(tmp_path):
    """A feature store of this test's own."""
    from transferkit.features.store.store import FeatureStore

    return FeatureStore(tmp_path / "store")


@pytest.fixture
def decoded(monkeypatch):
    """Names of the pictures that data sets decode during the test."""
    from transferkit.data.batches import dataset

    decode, names = dataset.decode_with_info, []

    def counting(*args, **options):
        names.append(options["name"])
        return decode(*args, **options)

    monkeypatch.setattr(dataset, "decode_with_info", counting)
    return names


@pytest.fixture
def settled(monkeypatch):
    """Write files down at once, however new they are; where the clock of the disk matters tests wait for it."""
    from transferkit.data.images import known_files

    monkeypatch.setattr(known_files, "TICK_NS", 0)


@pytest.fixture
def read(monkeypatch):
    """Names of the files that are read to index or hash them."""
    from known_reads import names_read

    return names_read(monkeypatch)


@pytest.fixture
def two_cores(monkeypatch):
    """A machine of two cores at least: on one, a decoding process beside the compute thread is refused."""
    from transferkit.machine import device

    monkeypatch.setattr(device, "available_cores", lambda: 2)


@pytest.fixture
def real_figures():
    """Asked for by tests that look at the pictures of a plan or a run."""


@pytest.fixture(autouse=True)
def figures_are_not_rendered(request, monkeypatch):
    """Draw plans and the curves of runs, but do not lay them out and write them: that is half of a short run's time.

    Runs of module-wide fixtures come before, and write theirs.
    """
    charts = sys.modules.get("transferkit.show.charts")
    if charts is not None and "real_figures" not in request.fixturenames:
        monkeypatch.setattr(
            charts, "save_figure", lambda figure, path, dpi=0: path.write_bytes(b"not rendered in tests")
        )


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A small data set with splits: 3 classes x (8 train, 4 val, 3 test)."""
    root = tmp_path_factory.mktemp("pictures") / "shapes"
    for seed, (split, count) in enumerate((("train", 8), ("val", 4), ("test", 3))):
        draw_folder(root / split, per_class=count, seed=seed)
    return root


@pytest.fixture
def quick(folder):
    """Options of a fine-tuning run that takes a second."""
    return {
        "data": str(folder), "backbone": "test_resnet", "weights": "random", "image_size": 32, "batch_size": 4,
        "epochs": 2, "probe_epochs": 1, "precision": "32", "accelerator": "cpu", "workers": 0, "quiet": True,
        "augment": "standard",
    }  # fmt: skip


@contextmanager
def unchanged(run):
    """Give a run directory, and fail when a test has changed it: tests that write take a copy."""
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    yield run
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before, f"a test changed {run}"


@pytest.fixture(scope="session")
def finished_run(folder, tmp_path_factory):
    """The directory of a run by the command: an epoch of the head, then two of everything; with pages and charts."""
    from transferkit.cli.main import main

    out = tmp_path_factory.mktemp("runs") / "finished"
    words = ["finetune", "--data", str(folder), *SMALL_RUN, "--batch-size", "4", "--epochs", "2", "--probe-epochs", "1"]
    assert main([*words, "--out", str(out)]) == 0
    with unchanged(out):
        yield out


@pytest.fixture(scope="session")
def probed_run(folder, tmp_path_factory):
    """The directory of a run with a solved head on random features: right often enough, and wrong sometimes."""
    from transferkit.cli.main import main

    out = tmp_path_factory.mktemp("runs") / "probed"
    store = str(out.with_name("store"))
    words = [
        "finetune", "--data", str(folder), *SMALL_RUN, "--augment", "standard", "--phases", "probe", "--store", store,
        "--out", str(out),
    ]  # fmt: skip
    assert main([*words, "--quiet"]) == 0
    with unchanged(out):
        yield out


@pytest.fixture
def command(capsys):
    """Run a command; gives its exit status, and what it wrote on standard output and standard error."""
    from transferkit.cli.main import main

    def run(*words):
        status = main(list(map(str, words)))
        return status, *capsys.readouterr()

    return run
