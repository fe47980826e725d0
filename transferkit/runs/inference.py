"""Logits and probabilities of a loader's pictures: the one way in which a run measures its own model."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from transferkit.data.batches.datamodule import normalise
from transferkit.models.module import TransferModule

__all__ = ["predict_logits", "predict_probs"]


def predict_logits(
    module: TransferModule, loader: Iterable[tuple[Tensor, Tensor]], *, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Return logits ``(N, C) float32`` and labels ``(N,)`` of a loader's pictures, in order, in fp32.

    Args:
        module: The model.
        loader: Gives ``(B, H, W, 3) uint8`` pictures and labels.
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``.
    """
    module.eval().to(device)
    logits, labels = [], []
    with torch.inference_mode():
        for images, targets in loader:
            found = module(normalise(images.to(device, non_blocking=True), module.data_config))
            logits.append(found.float().cpu())
            labels.append(targets)
    return torch.cat(logits).clone(), torch.cat(labels).clone()


def predict_probs(
    module: TransferModule, loader: Iterable[tuple[Tensor, Tensor]], *, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Return probabilities ``(N, C) float32``, not calibrated, and labels ``(N,)``, as `predict_logits` does."""
    logits, labels = predict_logits(module, loader, device=device)
    return logits.softmax(dim=1), labels
