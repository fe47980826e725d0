"""Digests of tensors: whether two of them, or two whole networks, are equal bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["saved_tensors", "state_digest", "tensor_digest"]


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 over tensors in the order of their names; names, shapes and types count too."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def state_digest(module: nn.Module) -> str:
    """Return the sha256 over all parameters and saved buffers of `module`, with their names, shapes and types."""
    return tensor_digest(saved_tensors(module))


def saved_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and saved buffers of `module` by name: the very objects, not copies."""
    state = module.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}
