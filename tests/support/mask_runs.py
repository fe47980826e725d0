"""A model of masks that was never trained, and pictures for it."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from transferkit.core.records import DataConfig
from transferkit.models.artifact import save_model
from transferkit.models.module import TransferModule

MASK_CLASSES = ("ground", "leaf", '<b>"stem"</b>')


def make_mask_run(directory, *, head="linear", side=64, palette=None, crop_mode="pad", facts=None):
    """Write a model whose masks are arbitrary, and its own; each of its classes is somewhere."""
    facts = {**(facts or {}), **({} if palette is None else {"palette": palette})}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = TransferModule(
            "transferkit/mini", len(MASK_CLASSES), head, weights="bundled", image_size=side, task="segmentation",
            class_names=MASK_CLASSES, target_facts=facts,
        )  # fmt: skip
        for weights in module.head.parameters():
            if weights.ndim > 1:
                torch.nn.init.normal_(weights, std=0.5)
    config = module.data_config
    directory.mkdir(parents=True, exist_ok=True)
    own = DataConfig.from_dict({**config.to_dict(), "crop_mode": crop_mode, "crop_pct": 1.0})
    save_model(directory, module, head=head, preprocessing=own)
    return Path(directory)


def picture(path, size=(50, 40), *, seed=0, **options):
    """Write a picture of coloured patches, ``(width, height)``."""
    rng = np.random.default_rng(seed)
    patches = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    patches.resize(size, Image.Resampling.BICUBIC).save(path, **options)
    return str(path)
