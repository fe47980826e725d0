"""Frozen means: same function, same weights, same buffers (rule 1).

Three steps, and all three are needed: `set_trainable` decides which parameters learn, `keep_frozen_eval` keeps
what does not learn in eval mode, and `frozen_state_digest` proves afterwards that nothing moved.
`requires_grad=False` alone is not enough: batch norm goes on updating its running statistics and normalises by the
batch, dropout and drop path go on drawing at random. Swapping the layers for frozen ones is no way out either: it
changes the parameter objects under a live optimizer.

`keep_frozen_eval` belongs right after `super().train(mode)` in the `train` method of the module that owns the rest:
there `.train()` cannot undo it, and `.eval()` still reaches every layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from transferkit.core.errors import ConfigError
from transferkit.models.digest import saved_tensors, tensor_digest
from transferkit.models.optimizers import NamedParameters

__all__ = [
    "Grouped",
    "evaluation_mode",
    "frozen_modules",
    "frozen_state_digest",
    "group_names",
    "has_statistics",
    "keep_frozen_eval",
    "keep_statistics",
    "require_groups",
    "restored_modes",
    "set_trainable",
]


@runtime_checkable
class Grouped(Protocol):
    """A module whose layers can be frozen by groups: all that phases ask of a model."""

    def groups(self) -> Sequence[tuple[str, NamedParameters]]:
        """Return every parameter exactly once, by group, from input to output."""

    def train_groups(self, names: Sequence[str]) -> None:
        """Let exactly these groups learn, and freeze all others; see `set_trainable`."""


def group_names(module: Grouped) -> tuple[str, ...]:
    """Return the names of a module's groups, in order."""
    return tuple(name for name, _ in module.groups())


def require_groups(module: nn.Module, user: str) -> Grouped:
    """Return a module as one that has groups.

    Args:
        module: Any.
        user: Who needs them, for the message.

    Raises:
        ConfigError: It has none.
    """
    if isinstance(module, Grouped):
        return module
    raise ConfigError(
        f"{user} needs a module with groups() and train_groups(), saw {type(module).__name__} - fit a TransferModule, "
        "with your network as its backbone (`register_backbone`) or head, or write the two methods"
    )


def set_trainable(module: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    """Let exactly `parameters` of `module` learn, and freeze all others.

    Frozen parameters lose their gradient: an optimizer skips ``None``, but would still decay a weight whose gradient is
    zero. Call ``module.train()`` afterwards, so that thawed layers leave eval mode and frozen ones enter it.

    Args:
        module: The whole model.
        parameters: The parameters that shall learn, compared by identity; may be empty.

    Raises:
        ConfigError: A parameter is not one of `module`'s. Nothing is changed then.
    """
    chosen = {id(parameter) for parameter in parameters}
    own = list(module.parameters())
    strangers = len(chosen - {id(parameter) for parameter in own})
    if strangers:
        raise ConfigError(
            f"{strangers} of {len(chosen)} parameters to train do not belong to {type(module).__name__} - "
            "take them from the same model, after its last layer was replaced"
        )
    for parameter in own:
        trains = id(parameter) in chosen
        parameter.requires_grad_(trains)
        if not trains:
            parameter.grad = None


def frozen_modules(module: nn.Module) -> list[nn.Module]:
    """Return the largest parts of `module` that are frozen, in order of registration.

    A part is frozen when it holds at least one parameter and none of its parameters requires a gradient. Layers
    without parameters (dropout, drop path, pooling, batch norm without affine) have no such mark of their own. Inside
    a frozen part they are frozen with it; elsewhere they share the fate of the nearest sibling before them that holds
    parameters (ViT's ``pos_drop`` goes with ``patch_embed``), or of the next one where none comes before. A sibling
    that is frozen in part counts by the end that touches the layer. This takes the order of registration for
    the order from input to output, as timm, torchvision and ``nn.Sequential`` have it.

    A part that is frozen only in part stays in train mode itself, even when the parameters it holds directly (a class
    token) are all frozen: its own ``forward`` also runs through the parts that learn. What must be exact below it is
    listed on its own.
    """
    parts: dict[int, nn.Module] = {}
    learns: Learns = {}
    _mark(module, learns)
    _collect(module, learns, parts)
    return list(parts.values())


def keep_frozen_eval(module: nn.Module) -> None:
    """Put every frozen part of `module` into eval mode; leave the mode of all others as it is.

    Where one layer object without parameters serves in two places, one frozen and one not, it is in eval mode:
    exactness goes first.
    """
    for part in frozen_modules(module):
        part.eval()


def keep_statistics(module: nn.Module) -> None:
    """Put every batch norm of `module` that has running statistics into eval mode: it uses them, and moves none.

    Its scale and shift learn as before.
    """
    for part in _with_statistics(module):
        part.eval()


def has_statistics(module: nn.Module) -> bool:
    """Whether a batch norm of `module` has running statistics."""
    return any(True for _ in _with_statistics(module))


def _with_statistics(module: nn.Module) -> Iterator[nn.Module]:
    return (part for part in module.modules() if isinstance(part, _BatchNorm) and part.running_mean is not None)


def frozen_state_digest(module: nn.Module) -> str:
    """Return the sha256 over all frozen parameters and over the saved buffers of the frozen parts.

    Equal before and after a phase exactly when the phase moved no frozen tensor: the audit of rule 1. Names, shapes and
    types count too. Buffers that are no part of the state dict are caches and are left out.
    """
    frozen = {id(parameter) for parameter in module.parameters() if not parameter.requires_grad}
    frozen.update(id(buffer) for part in frozen_modules(module) for buffer in part.buffers())
    return tensor_digest({name: tensor for name, tensor in saved_tensors(module).items() if id(tensor) in frozen})


@contextlib.contextmanager
def restored_modes(module: nn.Module) -> Iterator[None]:
    """Give every part of `module` its mode, train or eval, back at the end of the block."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextlib.contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put `module` into eval mode for the time of the block; see `restored_modes`."""
    with restored_modes(module):
        module.eval()
        yield


Learns = dict[int, bool | None]
"""Whether any parameter of a part learns, by the part's id; ``None`` where there are no parameters."""


def _mark(module: nn.Module, learns: Learns) -> bool | None:
    """Note of `module` and of every part below whether it learns, each once."""
    if id(module) not in learns:
        marks = [parameter.requires_grad for parameter in module.parameters(recurse=False)]
        below = [_mark(child, learns) for child in module.children()]
        marks += [mark for mark in below if mark is not None]
        learns[id(module)] = any(marks) if marks else None
    return learns[id(module)]


def _collect(module: nn.Module, learns: Learns, parts: dict[int, nn.Module]) -> None:
    if learns[id(module)] is False:
        parts.setdefault(id(module), module)
    elif learns[id(module)]:
        children = list(module.children())
        for position, child in enumerate(children):
            if learns[id(child)] is not None:
                _collect(child, learns, parts)
            elif _neighbour_frozen(children, position, learns):
                parts.setdefault(id(child), child)


def _neighbour_frozen(children: Sequence[nn.Module], position: int, learns: Learns) -> bool:
    """Whether the parameterless child at `position` sits behind (or, as one of the first, before) a frozen part."""
    for sibling in reversed(children[:position]):
        if learns[id(sibling)] is not None:
            return _end_frozen(sibling, learns, last=True)
    for sibling in children[position + 1 :]:
        if learns[id(sibling)] is not None:
            return _end_frozen(sibling, learns, last=False)
    return False


def _end_frozen(module: nn.Module, learns: Learns, *, last: bool) -> bool:
    """Whether the last (or first) part of `module` that holds parameters is frozen."""
    if not learns[id(module)]:
        return True
    children = list(module.children())
    for child in reversed(children) if last else children:
        if learns[id(child)] is not None:
            return _end_frozen(child, learns, last=last)
    return False  # only parameters of its own, and at least one of them learns
