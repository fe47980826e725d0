"""Frozen means: same function, same weights, same buffers (DESIGN.md 4, rule 1).

Three steps, and all three are needed: `set_trainable` decides which parameters learn, `keep_frozen_eval` keeps
what does not learn in eval mode, and `frozen_state_digest` proves afterwards that nothing moved.
`requires_grad=False` alone is not enough: batch norm goes on updating its running statistics and normalises by the
batch, dropout and drop path go on drawing at random. Swapping the layers for frozen ones is no way out either: it
changes the parameter objects under a live optimizer.

`keep_frozen_eval` belongs right after `super().train(mode)` in the `train` method of the module that owns the rest:
there `.train()` cannot undo it, and `.eval()` still reaches every layer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from transferkit.core.errors import ConfigError

__all__ = ["frozen_modules", "frozen_state_digest", "keep_frozen_eval", "set_trainable", "state_digest"]


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
    found: dict[int, nn.Module] = {}
    _collect(module, found)
    return list(found.values())


def keep_frozen_eval(module: nn.Module) -> None:
    """Put every frozen part of `module` into eval mode; leave the mode of all others as it is.

    Where one layer object without parameters serves in two places, one frozen and one not, it is in eval mode:
    exactness goes first.
    """
    for part in frozen_modules(module):
        part.eval()


def frozen_state_digest(module: nn.Module) -> str:
    """Return the sha256 over all frozen parameters and over the saved buffers of the frozen parts.

    Equal before and after a phase exactly when the phase moved no frozen tensor: the audit of rule 1. Names, shapes and
    types count too. Buffers that are no part of the state dict are caches and are left out.
    """
    frozen = {id(parameter) for parameter in module.parameters() if not parameter.requires_grad}
    frozen.update(id(buffer) for part in frozen_modules(module) for buffer in part.buffers())
    return _digest(module, frozen)


def state_digest(module: nn.Module) -> str:
    """Return the sha256 over all parameters and saved buffers of `module`, with their names, shapes and types."""
    return _digest(module, None)


def _digest(module: nn.Module, only: set[int] | None) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict(keep_vars=True).items()):
        if isinstance(tensor, torch.Tensor) and (only is None or id(tensor) in only):
            digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _learns(module: nn.Module) -> bool | None:
    """Whether any parameter below learns; ``None`` where there are no parameters."""
    marks = [parameter.requires_grad for parameter in module.parameters()]
    return any(marks) if marks else None


def _collect(module: nn.Module, found: dict[int, nn.Module]) -> None:
    learns = _learns(module)
    if learns is False:
        found.setdefault(id(module), module)
    elif learns:
        children = list(module.children())
        for position, child in enumerate(children):
            if _learns(child) is not None:
                _collect(child, found)
            elif _neighbour_frozen(children, position):
                found.setdefault(id(child), child)


def _neighbour_frozen(children: Sequence[nn.Module], position: int) -> bool:
    """Whether the parameterless child at `position` sits behind (or, as one of the first, before) a frozen part."""
    for sibling in reversed(children[:position]):
        if _learns(sibling) is not None:
            return _end_frozen(sibling, last=True)
    for sibling in children[position + 1 :]:
        if _learns(sibling) is not None:
            return _end_frozen(sibling, last=False)
    return False


def _end_frozen(module: nn.Module, *, last: bool) -> bool:
    """Whether the last (or first) part of `module` that holds parameters is frozen."""
    if not _learns(module):
        return True
    children = list(module.children())
    for child in reversed(children) if last else children:
        if _learns(child) is not None:
            return _end_frozen(child, last=last)
    return False  # only parameters of its own, and at least one of them learns
