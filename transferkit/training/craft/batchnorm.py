"""Batch-norm statistics recomputed by one pass over pictures, in place of the running average of training."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from transferkit.core.errors import DataError, TrainingError
from transferkit.models.freezing import evaluation_mode, frozen_modules

__all__ = ["learning_bn_layers", "recalibrate_bn"]


def recalibrate_bn(module: nn.Module, batches: Iterable[Tensor], *, device: torch.device | str) -> int:
    """Recompute the running statistics of batch-norm layers: the mean over the batches, each weighing its pictures.

    While a network trains, its running statistics are an exponential average over the last batches, of weights that
    were still moving. Here the weights stand still and every batch counts (Wu and Johnson 2021, *Rethinking "Batch" in
    BatchNorm*, section 3: "precise batch norm"; torch's `update_bn` does it with all layers, every batch alike). The
    variance is the mean of the unbiased variances of the batches, as torch's running variance is.

    Only the layers of `learning_bn_layers` use the statistics of the batch; all else is in eval mode, so dropout does
    not draw, and frozen layers stay what they are. The pass has no random numbers. A batch of a single picture has no
    statistics and is left out.

    Args:
        module: The model, on `device`; which groups train is set. Its weights do not change.
        batches: Images ``(B, 3, H, W) float32, normalised``: the training pictures, as they are evaluated or augmented.
        device: Where to compute.

    Returns:
        The number of layers. With none, no batch is looked at. Layers that ``forward`` does not call are left as they
        are and not counted.

    Raises:
        DataError: There is no batch of at least two pictures.
        TrainingError: Statistics are not finite. The old ones are back then, as after any other exception.
    """
    chosen = learning_bn_layers(module)
    if not chosen:
        return 0
    momenta = [layer.momentum for layer in chosen.values()]
    before = {name: [buffer.clone() for buffer in _statistics(layer)] for name, layer in chosen.items()}
    missed = list(chosen)
    handles = [layer.register_forward_pre_hook(_Weigher()) for layer in chosen.values()]
    try:
        with evaluation_mode(module):
            for layer in chosen.values():
                layer.train()
                layer.reset_running_stats()
            _one_pass(module, batches, device)
        broken = [name for name, layer in chosen.items() if not all(s.isfinite().all() for s in _statistics(layer))]
        if broken:
            raise TrainingError(
                f"batch-norm statistics of {broken[0]} are not finite over the pictures, expected numbers - the "
                "weights diverged; train with a lower LR"
            )
        missed = [name for name, layer in chosen.items() if not layer.num_batches_tracked]
    finally:
        for handle in handles:
            handle.remove()
        for layer, momentum in zip(chosen.values(), momenta, strict=True):
            layer.momentum = momentum
        for name in missed:  # all of them after an exception, else those that `forward` has no use for
            for buffer, value in zip(_statistics(chosen[name]), before[name], strict=True):
                buffer.copy_(value)
    return len(chosen) - len(missed)


def learning_bn_layers(module: nn.Module) -> dict[str, _BatchNorm]:
    """Return, by name, the batch-norm layers that keep running statistics and are in no frozen part of `module`."""
    frozen = {id(layer) for part in frozen_modules(module) for layer in part.modules()}
    return {
        name: layer for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None and id(layer) not in frozen
    }  # fmt: skip


class _Weigher:
    """Sets a layer's momentum before each call, so that its running average is the mean over all pictures so far."""

    def __init__(self) -> None:
        self.pictures = 0

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, _BatchNorm)
        size = len(inputs[0])
        self.pictures += size
        layer.momentum = size / self.pictures  # running = (1 - m) running + m batch


def _one_pass(module: nn.Module, batches: Iterable[Tensor], device: torch.device | str) -> None:
    any_batch = False
    for images in batches:
        if len(images) > 1:
            any_batch = True
            with torch.no_grad():
                module(images.to(device, non_blocking=True))
    if not any_batch:
        raise DataError(
            "there is no batch of at least two pictures to take batch-norm statistics of - use a batch size above 1"
        )


def _statistics(layer: _BatchNorm) -> list[Tensor]:
    return [s for s in (layer.running_mean, layer.running_var, layer.num_batches_tracked) if s is not None]
