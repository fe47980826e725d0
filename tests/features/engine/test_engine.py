"""The engine: batches of any size, compiling where it pays and only there."""

import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from engine_worker import (
    CLOSE,
    build,
    error,
    own,
    pictures_of,
    plain_rows,
    prepared,
    random_images,
    small_net,
    views_of,
)

from transferkit.features.engine import engine
from transferkit.features.engine.compute import Compute, FrozenBackbone
from transferkit.features.engine.engine import (
    COMPILE_S,
    GAIN,
    Engine,
)
from transferkit.features.engine.network import FeatureNetwork
from transferkit.features.engine.taps import find_taps
from transferkit.features.extract.extraction import extract_pictures
from transferkit.machine.precision import memory_of
from transferkit.machine.timings import Memory

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def backbone():
    return build("test_resnet")


@pytest.fixture(scope="module")
def small():
    return own(small_net())


# --- batches


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_rows_do_not_depend_on_the_batch(backbone, folder, size):  # fault 71
    names = [picture.name for picture in pictures_of(folder)[:7]]
    exact = plain_rows(backbone, names)
    ours = Engine(backbone, find_taps(backbone), compiling="off")
    images = torch.cat([prepared(backbone, name) for name in names])
    rows = torch.cat([ours.rows(part)[0] for part in images.split(size)])
    assert rows.dtype == torch.float32
    assert error(rows, exact) <= CLOSE


def test_widths_are_known_before_the_first_picture(backbone):
    ours = Engine(backbone, find_taps(backbone, "all", "avgmax"), compiling="off")
    assert ours.widths == tuple(row.shape[1] for row in ours.rows(random_images(backbone, 2)))
    assert ours.widths[-1] == 2 * backbone.map_channels


# --- compiling


@pytest.mark.parametrize("layer", ["pooled", "all"])
def test_compiled_rows_are_the_same_and_a_short_batch_is_padded(small, layer):
    taps = find_taps(small, layer)
    images = random_images(small, 8)
    exact = Engine(small, taps, compiling="off").rows(images)
    ours = Engine(small, taps, compiling="on", batch=8)
    assert not ours.is_compiled
    first = ours.rows(images)
    assert ours.is_compiled
    with torch._dynamo.config.patch(error_on_recompile=True):
        parts = [ours.rows(images[:3]), ours.rows(images[3:4]), ours.rows(images[4:8])]
        again = ours.rows(images)
        more = ours.rows(images.repeat(2, 1, 1, 1))  # larger than what was compiled for
    for at, plain in enumerate(exact):
        assert error(first[at], plain) <= CLOSE
        assert error(torch.cat([part[at] for part in parts]), plain) <= CLOSE
        assert error(again[at], plain) <= CLOSE
        assert error(more[at], plain.repeat(2, 1)) <= CLOSE


def test_rows_of_compiled_code_are_not_written_over(small):
    ours = Engine(small, find_taps(small), compiling="on", batch=4)
    first = ours.rows(random_images(small, 4))[0]
    before = first.clone()
    ours.rows(random_images(small, 4, seed=1))
    assert torch.equal(first, before)


def test_a_small_first_batch_does_not_leave_the_larger_ones_in_eager_mode(small, monkeypatch):
    """An engine lives as long as the process: five new pictures today, thousands in the next call."""
    made = []

    def fake_compile(network, **options):
        def run(images):
            made.append(len(images))
            return network(images)

        return run

    monkeypatch.setattr(torch, "compile", fake_compile)
    ours = Engine(small, find_taps(small), compiling="on", batch=8)
    ours.rows(random_images(small, 2))
    made.clear()
    for _ in range(4):
        ours.rows(random_images(small, 8))
    assert 8 in made


def raising(*args, **options):
    raise RuntimeError("no C++ compiler here\nand a second line")


@pytest.mark.parametrize("where", ["at once", "when run"])
def test_without_a_compiler_it_goes_on_in_eager_mode(small, monkeypatch, caplog, where):
    monkeypatch.setattr(torch, "compile", raising if where == "at once" else lambda network, **options: raising)
    images = random_images(small, 4)
    exact = Engine(small, find_taps(small), compiling="off").rows(images)[0]
    ours = Engine(small, find_taps(small), compiling="on", batch=4)
    with caplog.at_level(logging.INFO, "transferkit"):
        for _ in range(3):
            assert torch.equal(ours.rows(images)[0], exact)
    assert not ours.is_compiled
    assert [record.getMessage() for record in caplog.records] == [
        "not compiled (RuntimeError: no C++ compiler here); going on in eager mode"
    ]


def test_a_compiler_that_was_missing_once_is_not_given_up_for_good(small, monkeypatch, store, folder):
    monkeypatch.setattr(torch, "compile", lambda network, **options: raising)
    options = Compute(precision="32", compiling="on", batch_size=4)
    taps = find_taps(small)
    extract_pictures(pictures_of(folder)[:8], FrozenBackbone(small), taps, views_of(small), store, options)
    frozen = FrozenBackbone(small)  # as in the next process
    later = Compute(precision="32", compiling="auto", batch_size=4)
    assert frozen.engine(taps, "32", later).gain > 1


@pytest.mark.slow
def test_a_missing_compiler_in_a_real_process(tmp_path):
    script = (
        "import logging; logging.basicConfig(level=logging.INFO, format='%(message)s')\n"
        "from test_engine import *\n"
        "small = own(small_net())\n"
        "ours = Engine(small, find_taps(small), compiling='on')\n"
        "images = random_images(small, 4)\n"
        "exact = Engine(small, find_taps(small), compiling='off').rows(images)[0]\n"
        "same = all(torch.equal(ours.rows(images)[0], exact) for _ in range(2))\n"
        "print(same, ours.is_compiled)\n"
    )
    place = os.path.dirname(__file__)  # noqa: PTH120  # for a path of modules
    environment = {
        **os.environ, "CXX": str(tmp_path / "no-compiler"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": place, "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, encoding="utf-8", timeout=200
    )
    assert done.stdout == "True False\n", done.stderr[-2000:]
    remarks = [line for line in done.stderr.splitlines() if "eager mode" in line]
    assert len(remarks) == 1
    assert remarks[0].startswith("not compiled (")


class World:
    """A machine whose clock moves by what forward passes and compiling are said to cost."""

    eager_s, compiled_s, compile_s = 0.1, 0.05, 20.0

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.compilations = 0
        self.inside = False
        forward = FeatureNetwork.forward

        def slow(network, images):
            if not self.inside:
                self.now += self.eager_s
            return forward(network, images)

        def fake_compile(network, **options):
            self.compilations += 1
            ready = []

            def run(images):
                self.now += self.compiled_s if ready else self.compile_s
                ready.append(True)
                self.inside = True
                try:
                    return network(images)
                finally:
                    self.inside = False

            return run

        monkeypatch.setattr(FeatureNetwork, "forward", slow)
        monkeypatch.setattr(torch, "compile", fake_compile)
        monkeypatch.setattr(engine, "time", SimpleNamespace(perf_counter=lambda: self.now))


@pytest.fixture
def world(monkeypatch):
    return World(monkeypatch)


# At 0.1 s for 4 pictures and a gain of 1.3, compiling saves left * 0.025 * (1 - 1 / 1.3): 30 s at 5200 pictures.
BREAK_EVEN = int(COMPILE_S / (0.025 * (1 - 1 / GAIN)))


ENOUGH = 10**9


@pytest.mark.parametrize(
    ("left", "remembered", "compiled_s", "compiling", "compiled", "compilations"),
    [
        # It compiles when the pictures still to come pay for it.
        (0, {}, 0.05, "auto", False, 0),
        (BREAK_EVEN - 10, {}, 0.05, "auto", False, 0),
        (BREAK_EVEN + 10, {}, 0.05, "auto", True, 1),
        # What was measured before decides: twice as fast after 1 s pays from 1 / (0.025 / 2) = 80 pictures on.
        (79, {"gain": 2.0, "compile_s": 1.0}, 0.05, "auto", False, 0),
        (81, {"gain": 2.0, "compile_s": 1.0}, 0.05, "auto", True, 1),
        (ENOUGH, {"gain": 1.0}, 0.05, "auto", False, 0),
        (ENOUGH, {"gain": 0.5}, 0.05, "auto", False, 0),
        # Compiled code that is slower is used only where it was asked for.
        (ENOUGH, {}, 0.2, "auto", False, 1),
        (ENOUGH, {}, 0.2, "on", True, 1),
    ],
)
def test_when_it_compiles(world, small, left, remembered, compiled_s, compiling, compiled, compilations):
    world.compiled_s = compiled_s
    memory = Memory({"network": "small"})
    memory.remember(remembered)
    ours = Engine(small, find_taps(small), compiling=compiling, batch=4, memory=memory)
    for _ in range(20):
        ours.rows(random_images(small, 4), left=left)
    assert ours.is_compiled == compiled
    assert world.compilations == compilations
    if compilations and compiling == "auto":
        assert ours.gain == pytest.approx(0.1 / compiled_s)
        assert ours.compile_s == pytest.approx(20.0)
    else:
        assert (ours.gain, ours.compile_s) == (
            remembered.get("gain", GAIN),
            remembered.get("compile_s", 20.0 if compiling == "on" else COMPILE_S),
        )


def test_three_batches_are_timed_before_it_decides(world, small):
    ours = Engine(small, find_taps(small), batch=4)
    compiled = []
    for _ in range(5):
        ours.rows(random_images(small, 4), left=10**9)
        compiled.append(ours.is_compiled)
    assert compiled == [False, False, False, True, True]


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_other_devices_are_left_in_eager_mode(world, small, device):
    ours = Engine(small, find_taps(small), batch=4)
    for _ in range(4):
        ours.rows(random_images(small, 4))
    ours.device = device
    assert not ours._should_compile(4, 10**9)


def test_the_gain_is_remembered(world, small, store, folder):
    world.compile_s = 0.5
    pictures, taps = pictures_of(folder), find_taps(small)
    options = Compute(precision="32", batch_size=4)
    memory = memory_of(small, small.data_config.image_size, "cpu")
    memory.remember({"gain": 1.5, "compile_s": 0.2})  # so that 45 pictures pay for it
    extract_pictures(pictures, FrozenBackbone(small), taps, views_of(small), store, options)
    assert world.compilations == 1
    assert memory.recall() == pytest.approx({"gain": 2.0, "compile_s": 0.5})
    ours = FrozenBackbone(small).engine(taps, "32", options)
    assert (ours.gain, ours.compile_s) == pytest.approx((2.0, 0.5))
    ours = FrozenBackbone(own(small_net(width=6))).engine(taps, "32", options)
    assert (ours.gain, ours.compile_s) == (GAIN, COMPILE_S)
