"""Decoding processes: how they start, and what is said when one of them is lost."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch

from transferkit.core.errors import StorageError, TransferkitError

__all__ = ["LOOK_S", "TIMEOUT_S", "batches_ahead", "from_workers", "start_worker", "worker_errors"]

TIMEOUT_S = 300.0
"""Seconds after which decoding processes that send nothing are an error."""

LOOK_S = 5.0
"""A loader's own timeout, in seconds: so often torch looks whether its workers are alive."""

HANDLER_S = 1.0
"""Seconds that torch's signal handler has to tell of a lost worker here, and not in the midst of something else."""

TIMED_OUT = "DataLoader timed out"

ADVICE = (
    "as when memory or /dev/shm is full - reduce --workers or raise shm (docker run --shm-size), and run again; "
    "what was saved is kept"
)

AHEAD_BYTES = 1 << 30
"""Batches that are ready or in work take no more memory than this, and an eighth of what is free."""

MOST_AHEAD = 8
"""Batches of a worker that are ready or in work: more have nothing to even out."""

T = TypeVar("T")

LOST = re.compile(
    r"DataLoader worker \(pid.*(killed by signal|exited unexpectedly)|Pin memory thread exited"
    r"|dataloader's workers are out of shared memory|shared memory object|</torch_.*No space left on device"
)
"""The words of torch, in a bare `RuntimeError`, when a worker was killed or has no room to send a batch in."""


def batches_ahead(workers: int, size: int, free: int) -> int:
    """Return how many batches each worker has ready or in work: by their bytes, at least one.

    Args:
        workers: Processes; 0 for none.
        size: Bytes of a batch.
        free: Bytes of memory that are free; 0 where it is not known.
    """
    room = min(AHEAD_BYTES, free // 8 or AHEAD_BYTES)
    return max(1, min(MOST_AHEAD, room // max(1, workers * size)))


def start_worker(worker: int) -> None:
    """Leave the cores to the other workers."""
    torch.set_num_threads(1)


@contextlib.contextmanager
def worker_errors() -> Iterator[None]:
    """Turn what torch says of a lost worker into a `StorageError`.

    It belongs around everything that is done while workers run, not around the loader alone: torch tells of a killed
    worker from a signal handler, wherever this process happens to be.
    """
    try:
        yield
    except RuntimeError as error:
        if not LOST.search(str(error)):
            raise
        reason = re.sub(r"\s+", " ", str(error).strip().splitlines()[-1]).rstrip(". ")
        raise StorageError(f"a decoding process was lost ({reason}), {ADVICE}") from error


def from_workers(batches: Iterable[T | TransferkitError], timeout: float) -> Iterator[T]:
    """Yield a loader's batches; where it has workers, its own timeout is to be no longer than `LOOK_S`.

    An error that a worker hands over in the place of a batch is raised. A killed worker is found after `LOOK_S` at the
    latest. Torch's signal handler may find it sooner, but Lightning takes that away at the end of a fit.

    Args:
        batches: The loader.
        timeout: Seconds that workers may be silent.

    Raises:
        TransferkitError: A worker met it.
        StorageError: A worker was killed, or they are silent.
    """
    with worker_errors():
        iterator, since = iter(batches), time.monotonic()
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except RuntimeError as error:
                if TIMED_OUT not in str(error):
                    raise
                if time.monotonic() - since >= timeout:
                    raise StorageError(f"the decoding processes sent nothing for {timeout:g} s, {ADVICE}") from error
                continue
            except (ConnectionError, EOFError) as error:  # a batch's memory comes over a socket of the worker
                if str(error).startswith("Caught"):  # what a worker that lives has met
                    raise
                time.sleep(HANDLER_S)
                raise StorageError(f"a decoding process was lost (its connection is gone), {ADVICE}") from error
            if isinstance(batch, TransferkitError):
                try:
                    raise batch
                finally:
                    del batch  # a cycle: its collector would close the queues before the workers have to end
            yield batch
            since = time.monotonic()
