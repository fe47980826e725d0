"""Batch norm folded into the convolution before it: the same function in eval mode, a pass over memory less."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["TOLERANCE", "fold_batch_norm"]

TOLERANCE = 1e-4
"""Largest error of the folded network, over the largest absolute value it returns; else nothing is folded."""


def fold_batch_norm(network: nn.Module, example: Tensor) -> int:
    """Fold every batch norm that follows a convolution directly, in place.

    Which convolution feeds which norm is read from a dry forward, so it works for any network, however its forward is
    written. Whether somebody else also uses the convolution's output cannot be seen that way: the folded network is
    compared with what it was, and put back as it was if it differs.

    Args:
        network: In eval mode; returns a tensor or a tuple of tensors. Its parameters must not be used afterwards.
        example: An input for it; random pictures show more than a constant one.

    Returns:
        Number of batch norms folded; 0 when it could not be done exactly.
    """
    with torch.no_grad():  # not inference mode: its tensors cannot be weights of a network that runs later
        before = _outputs(network, example)
        pairs = _pairs(network, example)
        replaced: list[tuple[nn.Module, str, nn.Module]] = []
        for conv_path, norm_path in pairs:
            conv, norm = network.get_submodule(conv_path), network.get_submodule(norm_path)
            # timm's norms carry dropout and activation as children, which stay.
            rest = list(norm.children())
            for path, new in (
                (conv_path, fuse_conv_bn_eval(conv, norm)),  # type: ignore[type-var, arg-type]
                (norm_path, nn.Sequential(*rest) if rest else nn.Identity()),
            ):
                parent_path, _, name = path.rpartition(".")
                parent = network.get_submodule(parent_path)
                replaced.append((parent, name, network.get_submodule(path)))
                setattr(parent, name, new.eval())
        after = _outputs(network, example)
        if all(_close(old, new) for old, new in zip(before, after, strict=True)):
            return len(pairs)
        for parent, name, module in reversed(replaced):
            setattr(parent, name, module)
        return 0


def _pairs(network: nn.Module, example: Tensor) -> list[tuple[str, str]]:
    """Return paths of convolutions and the norms right behind them, each module used exactly once in a forward."""
    outputs: dict[int, tuple[str, Tensor]] = {}  # holds the tensors, so that no id is used twice
    pairs: list[tuple[str, str]] = []
    calls: Counter[str] = Counter()
    handles = []

    def after_conv(path: str) -> object:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            calls[path] += 1
            outputs[id(output)] = (path, output)

        return hook

    def before_norm(path: str) -> object:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            calls[path] += 1
            if id(inputs[0]) in outputs:
                pairs.append((outputs[id(inputs[0])][0], path))

        return hook

    for path, module in network.named_modules():
        if module._forward_hooks:  # somebody listens: what it returns must stay what it is
            continue
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(after_conv(path)))  # type: ignore[arg-type]
        elif isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            handles.append(module.register_forward_pre_hook(before_norm(path)))  # type: ignore[arg-type]
    try:
        network(example)
    finally:
        for handle in handles:
            handle.remove()
    fed = Counter(conv for conv, _ in pairs)
    return [(conv, norm) for conv, norm in pairs if calls[conv] == calls[norm] == fed[conv] == 1]


def _outputs(network: nn.Module, example: Tensor) -> tuple[Tensor, ...]:
    out = network(example)
    return (out,) if isinstance(out, Tensor) else tuple(out)


def _close(old: Tensor, new: Tensor) -> bool:
    scale = old.abs().max().clamp_min(torch.finfo(old.dtype).tiny)
    return bool((new - old).abs().max() <= TOLERANCE * scale)
