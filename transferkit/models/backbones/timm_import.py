"""timm, and the parts of it that are used: imported here and nowhere else, and without W&B.

`timm.utils`, which comes with everything, imports W&B where that is installed (timm 1.0.31). That takes seconds, for
something that only `--logger wandb` asks for.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

__all__ = [
    "AsymmetricLossMultiLabel",
    "BasicBlock",
    "DropBlock2d",
    "DropPath",
    "PatchDropout",
    "PretrainedCfg",
    "ResNet",
    "convert_sync_batchnorm",
    "get_deprecated_models",
    "get_pretrained_cfg",
    "group_parameters",
    "is_model",
    "timm",
]


@contextlib.contextmanager
def _without(package: str) -> Iterator[None]:
    """Make a package that is not loaded yet one that cannot be imported, for the time of the block."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # what Python has for this
    try:
        yield
    finally:
        del sys.modules[package]


with _without("wandb"):
    import timm
    from timm import is_model
    from timm.layers.drop import DropBlock2d, DropPath
    from timm.layers.norm_act import convert_sync_batchnorm
    from timm.layers.patch_dropout import PatchDropout
    from timm.loss.asymmetric_loss import AsymmetricLossMultiLabel
    from timm.models import get_deprecated_models, get_pretrained_cfg, group_parameters
    from timm.models._pretrained import PretrainedCfg
    from timm.models.resnet import BasicBlock, ResNet
