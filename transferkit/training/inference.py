"""Probabilities for pictures: the one way in which runs are measured and predictions are made."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from transferkit.data.datamodule import normalise
from transferkit.models.module import TransferModule

__all__ = ["predict_probs"]


def predict_probs(
    module: TransferModule, loader: Iterable[tuple[Tensor, Tensor]], *, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Return probabilities ``(N, C) float32`` and labels ``(N,)`` of a loader's pictures, in order, in fp32.

    The one way that a run's own figures and later predictions are computed, so that they agree.

    Args:
        module: The model.
        loader: Gives ``(B, H, W, 3) uint8`` pictures and labels.
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``.
    """
    module.eval().to(device)
    probs, labels = [], []
    with torch.inference_mode():
        for images, targets in loader:
            logits = module(normalise(images.to(device, non_blocking=True), module.data_config))
            probs.append(logits.float().softmax(dim=1).cpu())
            labels.append(targets)
    return torch.cat(probs).clone(), torch.cat(labels).clone()
