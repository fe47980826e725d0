"""Several processes of one run: who this one is, and what they tell each other.

In a run of one process every function here does what it does for one, or nothing: callers need not ask. None of this
loads Lightning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from transferkit.core.errors import TrainingError, TransferkitError
from transferkit.models.digest import state_digest

__all__ = [
    "ALONE",
    "PeerError",
    "Place",
    "agree",
    "average",
    "barrier",
    "by_first",
    "gather",
    "is_writer",
    "links",
    "local_world",
    "of_first",
    "on_first",
    "rank",
    "require_equal",
    "statistics",
    "world",
]

T = TypeVar("T")
P = ParamSpec("P")


class PeerError(TransferkitError):
    """Another process of the run failed first, and has said why.

    Args:
        message: What it said.
        status: Its exit status, which is that of the run.
    """

    kind = "peer"

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.exit_status = status  # type: ignore[misc]  # that of the process that failed


@dataclass(frozen=True)
class Place:
    """Where a process stands.

    Attributes:
        rank: Among all.
        world: Number of processes.
        local_rank: Among those of this machine.
        local_world: Their number.
    """

    rank: int
    world: int
    local_rank: int
    local_world: int


ALONE = Place(0, 1, 0, 1)


@dataclass
class Links:
    """What connects this process.

    Attributes:
        place: Where it stands.
        group: Beside torch's own, on the CPU, for waits that are long and few.
        store: Holds the message of a process that failed, and outlives it so that the others can read it.
    """

    place: Place = ALONE
    group: dist.ProcessGroup | None = None
    store: dist.Store | None = None  # type: ignore[name-defined]


links = Links()


# ---- who --------------------------------------------------------------------------------------------------------


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if world() > 1 else 0


def world() -> int:
    """Return the number of processes that are connected."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def local_world() -> int:
    """Return the number of processes of this run on this machine."""
    return links.place.local_world


def is_writer() -> bool:
    """Whether this is the process that prints, and writes the run."""
    return rank() == 0


# ---- what they tell each other ----------------------------------------------------------------------------------


def on_first(function: Callable[..., T], *args: Any, **options: Any) -> T:
    """Call a function in the first process alone, and return to all what it returned there.

    Args:
        function: Must not wait for other processes.
        args: Its arguments.
        options: Its arguments by name.

    Raises:
        PeerError: In the others, when it raised.
    """
    if world() == 1:
        return function(*args, **options)
    box: list[Any] = [None, None]
    if is_writer():
        try:
            box = [function(*args, **options), None]
        except TransferkitError as error:
            _broadcast([None, (str(error), error.exit_status)])
            raise  # the others know
    value, failure = _broadcast(box)
    if failure is not None:
        raise PeerError(f"rank 0: {failure[0]}", failure[1])
    return value  # type: ignore[no-any-return]


def by_first(function: Callable[P, T]) -> Callable[P, T]:
    """Make a function one that the first process calls alone; all get what it returned. See `on_first`."""

    @wraps(function)
    def called(*args: P.args, **options: P.kwargs) -> T:
        return on_first(function, *args, **options)

    return called


def of_first(value: T) -> T:
    """Return to all the first process's value."""
    return on_first(lambda: value)


def _broadcast(box: list[Any]) -> list[Any]:
    dist.broadcast_object_list(box, src=0, group=links.group)
    return box


def gather(value: T) -> list[T]:
    """Return every process's value, by rank."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value, group=links.group)
    return values


def agree(*numbers: int) -> tuple[int, ...]:
    """Return the largest of every process's numbers, one by one."""
    if world() == 1:
        return numbers
    most = torch.tensor(numbers, dtype=torch.int64, device=_device())
    dist.all_reduce(most, op=dist.ReduceOp.MAX, group=links.group)
    return tuple(most.tolist())


def barrier() -> None:
    """Wait until all are here."""
    agree(0)


def statistics(module: nn.Module) -> dict[str, Tensor]:
    """Return the saved buffers of a module by name: what a process measures of its own pictures, and constants."""
    saved = module.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in module.named_buffers() if saved.get(name) is buffer}


@torch.no_grad()
def average(tensors: Iterable[Tensor]) -> None:
    """Make every process's tensors their mean, in place; whole numbers become those of the first process.

    What is equal everywhere stays what it is, bit for bit: in double precision its sum and quotient are exact.
    """
    floats: list[Tensor] = []
    integers: list[Tensor] = []
    for tensor in tensors:
        (floats if tensor.is_floating_point() else integers).append(tensor)
    if world() == 1:
        return
    for group, kind in ((floats, torch.float64), (integers, torch.int64)):
        if not group:
            continue
        flat = torch.cat([tensor.to(device=_device(), dtype=kind).flatten() for tensor in group])
        if kind is torch.float64:
            dist.all_reduce(flat, group=links.group)
            flat /= world()
        else:
            dist.broadcast(flat, src=0, group=links.group)
        parts = flat.split([tensor.numel() for tensor in group])  # type: ignore[no-untyped-call]
        for tensor, values in zip(group, parts, strict=True):
            tensor.copy_(values.view(tensor.shape))


def require_equal(module: nn.Module, when: str) -> None:
    """Refuse to go on with parameters or buffers that are not the same in every process.

    Args:
        module: The model.
        when: Such as ``"after epoch 3"``.

    Raises:
        TrainingError: They differ.
    """
    if world() == 1:
        return
    digests = gather(state_digest(module))
    others = [str(number) for number, digest in enumerate(digests) if digest != digests[0]]
    if others:
        raise TrainingError(
            f"{when} the weights of rank {', '.join(others)} are not those of rank 0, expected the same everywhere - "
            "is a callback changing the model in some processes only? Remove it, and go on with --resume"
        )


def _device() -> str:
    """Return where small numbers are exchanged: the CPU, unless only a group of GPUs is there."""
    return "cuda" if links.group is None and dist.get_backend() == "nccl" else "cpu"
