"""Two ways of one work compared in peace, and numbers that are remembered for all that runs on this machine."""

import json
import multiprocessing
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from transferkit.machine import timings
from transferkit.machine.timings import LEAST_ROUNDS, LIMIT_S, ROUNDS, Memory, compare


class Clock:
    """A machine whose clock moves by what the work is said to take, and whose cores others may take."""

    def __init__(self, monkeypatch):
        self.now = self.waited = 0.0
        self.calls = []
        monkeypatch.setattr(timings, "time", SimpleNamespace(perf_counter=lambda: self.now))
        monkeypatch.setattr(timings, "_waited", lambda: self.waited)

    def way(self, name, *seconds, waits=0.0):
        """Return a way of the work that takes so long at its first call, its second, and so on; the last stays."""
        left = list(seconds)

        def work():
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]
            self.waited += waits

        return work


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_the_shortest_times_count_after_warming_up(clock):
    first = clock.way("first", 9.0, 0.31, 0.30, 0.33, 0.30, 0.32)
    second = clock.way("second", 0.001, 0.10, 0.101, 0.10, 0.25, 0.10)
    assert compare(first, second) == pytest.approx(3.0)
    assert clock.calls == ["first", "second"] * (1 + ROUNDS)


def test_slow_work_is_timed_no_more_often_than_it_must(clock):
    assert compare(clock.way("first", LIMIT_S), clock.way("second", LIMIT_S)) == pytest.approx(1.0)
    assert len(clock.calls) == 2 * (1 + LEAST_ROUNDS)


def test_a_round_in_which_others_took_the_cores_does_not_count(clock):
    quiet, second = clock.way("first", 0.3), clock.way("second", 0.1)
    disturbed = clock.way("first", 0.9, waits=0.2)
    assert compare(lambda: (disturbed if len(clock.calls) in (2, 6) else quiet)(), second) == pytest.approx(3.0)
    assert len(clock.calls) == 2 * (1 + ROUNDS + 2)
    assert compare(disturbed, second) is None


def test_times_that_another_moment_does_not_repeat_are_none(clock):
    assert compare(clock.way("first", 1.0, 0.2, 0.3, 0.3, 0.3, 0.3), clock.way("second", 0.1)) is None
    assert compare(clock.way("first", 0.3), clock.way("second", 0.1, 0.05, 0.1)) is None


def busy(stop):
    while not stop.is_set():
        sum(range(10_000))


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the system does not say how long threads wait")
def test_waiting_for_a_core_is_seen():
    """Two processes on one core: this one has to wait while the other one runs."""
    cores = os.sched_getaffinity(0)
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    other = context.Process(target=busy, args=(stop,), daemon=True)
    os.sched_setaffinity(0, {min(cores)})
    try:
        other.start()
        waited, until = timings._waited(), time.monotonic() + 60
        while timings._waited() - waited < 0.2 and time.monotonic() < until:
            sum(range(100_000))
        assert timings._waited() - waited >= 0.2
    finally:
        os.sched_setaffinity(0, cores)
        stop.set()
        other.join(60)


# --- memory


def test_numbers_are_remembered_side_by_side_for_all_that_runs_here(monkeypatch):
    Memory({"network": "a", "size": (32, 32)}).remember({"gain": 2.0})
    monkeypatch.setattr(timings, "_SESSION", {})  # as in the next process
    memory = Memory({"size": [32, 32], "network": "a"})
    memory.remember({"speed": 1.5})
    assert memory.recall() == {"gain": 2.0, "speed": 1.5}
    assert memory.path.parent == Path(os.environ["XDG_CACHE_HOME"]) / "transferkit" / "measured"
    assert Memory({"network": "b", "size": [32, 32]}).recall() == {}


def test_what_could_not_be_measured_is_known_to_this_process_only(monkeypatch):
    memory = Memory({"network": "a"})
    memory.remember({"speed": None})
    assert memory.recall() == {"speed": None}
    monkeypatch.setattr(timings, "_SESSION", {})
    assert memory.recall() == {}


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    memory = Memory({"network": "a"})
    with memory.alone():
        memory.remember({"gain": 2.0})
    assert memory.recall() == {"gain": 2.0}


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"subject": 1, "numbers": {"gain": 9}}', '{"subject": {"network": "a"}}', "\udcff"]
)
def test_a_damaged_memory_is_no_memory(monkeypatch, text):
    memory = Memory({"network": "a"})
    memory.remember({"gain": 3.0})
    monkeypatch.setattr(timings, "_SESSION", {})
    memory.path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert memory.recall() == {}
    memory.remember({"gain": 2.0})
    assert json.loads(memory.path.read_text(encoding="utf-8"))["numbers"] == {"gain": 2.0}


def test_one_measures_at_a_time():
    memory, inside = Memory({"network": "a"}), []
    began = threading.Event()

    def measure():
        began.set()
        with memory.alone():
            inside.append("second")

    with memory.alone():
        other = threading.Thread(target=measure)
        other.start()
        assert began.wait(60)
        inside.append("first")
    other.join(60)
    assert inside == ["first", "second"]
