"""How the processes of a run find each other, and how all of them end when one fails."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from transferkit.core.errors import ConfigError, TrainingError, TransferkitError
from transferkit.core.text import first_line
from transferkit.training.ranks.parallel import ALONE, PeerError, Place, barrier, links

__all__ = ["STEP", "connected", "place_of_torchrun"]

MEETING = timedelta(minutes=10)
"""How long processes wait for each other when a run begins."""

STEP = timedelta(minutes=30)
"""How long a step, and the slowest write of a checkpoint in it, may take before a process counts as hung."""

WAIT = timedelta(days=1)
"""How long the others may wait for the first: it measures, solves and writes for all. A dead one is noticed at once."""

NOTE_S = 2.0
"""How long to look for what a process that is gone has left to say."""

FAILURES, FAILURE, READERS = "transferkit/failures", "transferkit/failure", "transferkit/readers"

LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|socket|timed? ?out", re.IGNORECASE)


def place_of_torchrun() -> Place:
    """Return this process's place as torchrun tells it in the environment; `ALONE` without torchrun.

    Raises:
        ConfigError: The machines run different numbers of processes.
    """
    if not dist.is_available() or not dist.is_torchelastic_launched():
        return ALONE
    place = Place(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))
    if place.world % place.local_world:
        raise ConfigError(
            f"torchrun runs {place.local_world} processes here and {place.world} in all, expected the same number on "
            "every machine - give each the same --nproc-per-node"
        )
    return place


# ---- connecting -------------------------------------------------------------------------------------------------


@contextmanager
def connected(place: Place, backend: str = "gloo") -> Iterator[None]:
    """Connect the processes of a run for the time of the block; each gets its share of the machine's cores.

    The first of them that fails says why, and leaves it as a `PeerError` to those that fail because of it.

    Args:
        place: Of this process. The first one's address is in the environment (``MASTER_ADDR``, ``MASTER_PORT``).
        backend: ``"gloo"`` or ``"nccl"``.

    Raises:
        TrainingError: Not all of them came, or one was lost.
        PeerError: Another one failed.
    """
    if place.world == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
    try:
        store, _, _ = next(rendezvous("env://", place.rank, place.world, timeout=MEETING))
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world, timeout=STEP)
        group: Any = dist.new_group(backend="gloo", timeout=WAIT)
        links.place, links.store, links.group = place, store, group
    except (RuntimeError, OSError) as error:
        raise TrainingError(
            f"rank {place.rank} of {place.world} could not reach the others through {os.environ.get('MASTER_ADDR')}:"
            f"{os.environ.get('MASTER_PORT')} ({_reason(error)}) - start all of them, with one address and port"
        ) from error
    cores = _take_cores(place)
    failed = True
    try:
        yield
        barrier()
        failed = False
    except BaseException as error:
        first = _first_failure(error, store, place)
        if first is error:
            raise
        raise first from error
    finally:
        if cores:
            os.sched_setaffinity(0, cores)
        links.place, links.group = ALONE, None
        if not (failed and backend == "nccl"):  # which would wait for what never comes
            dist.destroy_process_group()
        if failed:
            _let_read(store, place)


def _take_cores(place: Place) -> set[int]:
    """Keep to this process's share of the cores, so that all who ask for their number divide it; return all of them."""
    if place.local_world == 1 or sys.platform != "linux":
        return set()
    cores = sorted(os.sched_getaffinity(0))
    share = max(1, len(cores) // place.local_world)
    first = place.local_rank * share % len(cores)
    os.sched_setaffinity(0, cores[first : first + share])
    return set(cores)


def _first_failure(error: BaseException, store: Any, place: Place) -> BaseException:
    """Return what this process raises: its own error if it is the first that failed, else what the first one said."""
    lost, own = _is_lost(error), error
    if lost:
        own = TrainingError(
            f"rank {place.rank} lost another process of the run ({_reason(error)}) - look for what ended it, such "
            "as a lack of memory, and go on with --resume"
        )
    with contextlib.suppress(dist.DistNetworkError):  # the store is gone with the first process
        if isinstance(error, PeerError):
            store.add(READERS, 1)
            return error
        if (lost or store.add(FAILURES, 1) > 1) and _soon(lambda: store.check([FAILURE])):
            note = json.loads(store.get(FAILURE))
            store.add(READERS, 1)
            return PeerError(note["message"], note["status"])
        if not lost or store.add(FAILURES, 1) == 1:
            store.set(FAILURE, json.dumps({"message": f"rank {place.rank}: {own}", "status": _status(own)}))
    return own


def _let_read(store: Any, place: Place) -> None:
    """Where the store ends with this process, give the others time to read the note."""
    if place.rank or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return
    _soon(lambda: store.add(READERS, 0) >= place.world - 1)


def _soon(condition: Callable[[], bool]) -> bool:
    """Wait for a condition, not for long; return whether it came."""
    until = time.monotonic() + NOTE_S
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.05)
    return False


def _status(error: BaseException) -> int:
    if isinstance(error, TransferkitError):
        return error.exit_status
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def _is_lost(error: BaseException) -> bool:
    """Whether an error comes of another process that is gone, as torch words it."""
    if isinstance(error, TransferkitError):
        return False
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and bool(LOST.search(str(error))))


def _reason(error: BaseException) -> str:
    return first_line(error).split(". This is typically")[0]
