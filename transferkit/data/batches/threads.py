"""Batches made ahead of the steps on threads of this process: nothing to start, and nothing to hand over."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from transferkit.data.batches.dataset import ImageDataset, Job, Loaded

__all__ = ["from_threads", "share_of_cores"]

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
