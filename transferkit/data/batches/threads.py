"""Batches made ahead of the steps on threads of this process: nothing to start, and nothing to hand over."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from transferkit.data.augment.views import Views
from transferkit.data.batches.dataset import ImageDataset, Job, Loaded
from transferkit.machine.cores import available_cores
from transferkit.machine.device import choose_workers
from transferkit.machine.timings import Memory

__all__ = ["choose_makers", "from_threads", "share_of_cores"]

ENOUGH = 0.8
"""The share of the cores from which on threads do as well as processes, which spend some on handing over."""

TRIAL_S = 0.15
"""Seconds that batches are made for a measurement, on one thread and on all."""


def from_threads(
    dataset: ImageDataset, batches: Iterable[Sequence[int | Job]], *, threads: int, ahead: int, pin_memory: bool = False
) -> Iterator[Loaded]:
    """Yield batches in order, each made by one thread.

    Args:
        dataset: Where pictures come from.
        batches: What each batch is made of; taken from as the batches are needed.
        threads: How many make batches, at least 1.
        ahead: Batches that are ready or in work, at least 1.
        pin_memory: Put pictures where copies to a GPU do not block.

    Raises:
        DataError: An indexed file is gone, or its content has changed.
    """

    def load(keys: Sequence[int | Job]) -> Loaded:
        loaded = dataset.batch(keys, threads=1)
        if not pin_memory:
            return loaded
        packed = None if loaded.packed is None else loaded.packed.pin_memory()
        return loaded._replace(images=loaded.images.pin_memory(), packed=packed)

    waiting: deque[Future[Loaded]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="load")
    try:
        for keys in batches:
            waiting.append(pool.submit(load, keys))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def choose_makers(dataset: ImageDataset, workers: int | None, device: str) -> tuple[int, int]:
    """Return how many processes, or else threads, make batches beside the steps.

    A CPU has no cores to spare beside its steps: without processes each batch is made when it is asked for, on all
    threads. For an accelerator threads are enough where they use the cores as processes would, measured once on this
    machine, and remembered: decoders and large copies leave the interpreter's lock to others, augmentation holds it.

    Args:
        dataset: At least one picture; its first ones are shown.
        workers: Processes that the user names; ``None``: as measured.
        device: torch's name of the device that computes.

    Returns:
        Processes and threads; one of them is 0.
    """
    if device == "cpu":
        return workers or 0, 0
    threads = max(1, available_cores() - 1)
    if workers is None:
        workers = 0 if _threads_suffice(dataset, threads) else choose_workers(None, device)[0]
    return workers, 0 if workers else threads


def _threads_suffice(dataset: ImageDataset, threads: int) -> bool:
    views: Any = dataset.views
    augmented = views.augmented.describe() if isinstance(views, Views) and views.augmented is not None else None
    memory = Memory({
        "what": "threads that make batches", "threads": threads, "python": sys.version, "augmented": augmented,
        "evaluation": views.evaluation.describe(), "on_device": isinstance(views, Views) and views.hands_over,
    })  # fmt: skip
    share = memory.recall().get("share")
    if share is None:
        with memory.alone():
            share = memory.recall().get("share")
            if share is None:
                count = min(len(dataset), 64)
                share = share_of_cores(lambda number: dataset.batch([number % count], threads=1), threads)
                memory.remember({"share": share})
    return share >= ENOUGH


def share_of_cores(make: Callable[[int], object], threads: int) -> float:
    """Return which share of `threads` cores threads can use for some work: 1 where none ever waits for another.

    What holds the interpreter's lock while it works does not get faster by threads, and processes do it better.

    Args:
        make: Does the work of a number once.
        threads: How many threads, at least 1.
    """
    make(0)
    one = _rate(make, 1)
    return _rate(make, threads) / (one * threads)


def _rate(make: Callable[[int], object], threads: int) -> float:
    """Return how often per second threads do some work together."""
    until = time.perf_counter() + TRIAL_S

    def work(first: int) -> int:
        done = 0
        while time.perf_counter() < until or not done:
            make(first + done * threads)
            done += 1
        return done

    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(work, range(threads)))
    return done / (time.perf_counter() - began)
