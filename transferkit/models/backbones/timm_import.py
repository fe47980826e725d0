"""timm, and the parts of it that are used: imported here and nowhere else, W&B when it is used.

`timm.utils`, which comes with everything, imports W&B where that is installed (timm 1.0.31). That takes seconds, for
something that only `--logger wandb` asks for.
"""

from __future__ import annotations

from transferkit.machine.later import later

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


with later("wandb"):
    import timm
    from timm import is_model
    from timm.layers.drop import DropBlock2d, DropPath
    from timm.layers.norm_act import convert_sync_batchnorm
    from timm.layers.patch_dropout import PatchDropout
    from timm.loss.asymmetric_loss import AsymmetricLossMultiLabel
    from timm.models import get_deprecated_models, get_pretrained_cfg, group_parameters
    from timm.models._pretrained import PretrainedCfg
    from timm.models.resnet import BasicBlock, ResNet
