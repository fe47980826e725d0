"""Whole batches of pictures made the numbers that a network was trained with, on the device that they are on.

It is the one door for them: a batch that comes before its augmentation is augmented here.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from transferkit.core.records import DataConfig
from transferkit.data.augment.device import shown
from transferkit.data.augment.packed import Packed

__all__ = ["normalise"]


def normalise(images: Tensor | Packed, config: DataConfig) -> Tensor:
    """Return ``(B, C, H, W) float32, normalised``, channels-last, of ``(B, H, W, C) uint8`` pictures or `Packed` ones.

    Pictures that are floating-point already are taken to be normalised and returned as they are.
    """
    if isinstance(images, Packed):
        shift, scale = _shift_and_scale(config, images.device)
        return torch.addcmul(shift, shown(images), scale).contiguous(memory_format=torch.channels_last)
    if images.is_floating_point():
        return images
    shift, scale = _shift_and_scale(config, images.device)
    return torch.addcmul(shift, images.permute(0, 3, 1, 2).float(), scale)


@lru_cache(maxsize=32)
def _shift_and_scale(config: DataConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return what turns x in 0..255 into (x / 255 - mean) / std by one multiplication and one addition.

    Kept per device: sending these few numbers to a GPU anew for every batch would make the host wait for it.
    """
    with torch.inference_mode(False):  # ordinary tensors, whoever asks first
        mean = torch.tensor(config.mean, device=device).view(1, -1, 1, 1)
        std = torch.tensor(config.std, device=device).view(1, -1, 1, 1)
        return -mean / std, 1.0 / (255.0 * std)
