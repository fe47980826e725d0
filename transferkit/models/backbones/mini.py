"""The bundled backbone ``transferkit/mini``: a ResNet-10 at half width whose weights come with the package."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.models.resnet import BasicBlock, ResNet

from transferkit.core.errors import BackboneError
from transferkit.core.records import DataConfig
from transferkit.models.backbones.interface import BackboneFacts, first_line
from transferkit.models.backbones.timm import TimmBackbone
from transferkit.models.weights.loading import load_backbone_weights
from transferkit.models.weights.sources import data_config_beside, read_file

__all__ = ["MINI", "MINI_LICENSE", "build_mini"]

MINI = "transferkit/mini"
# The weights carry no pictures, but the pictures they were trained on (a part of ImageNet) are for research.
MINI_LICENSE = "Apache-2.0 (trained on Tiny-ImageNet, whose pictures are for research use)"

_FILE = Path(__file__).with_name("bundled") / "mini.safetensors"
# Trained at 64 px and of use up to about 128; 96 is where its features were measured.
_DATA_CONFIG = DataConfig(image_size=(96, 96))
_ARGUMENTS = ("drop_block_rate", "drop_path_rate", "drop_rate")


def build_mini(
    name: str, *, weights: str, image_size: tuple[int, int] | None, backbone_args: Mapping[str, Any]
) -> TimmBackbone:
    """Build the bundled backbone.

    Args:
        name: As the user wrote it.
        weights: ``"pretrained"`` or ``"bundled"`` for the package's own file, ``"random"``, or a file.
        image_size: ``(height, width)`` in place of 96 x 96.
        backbone_args: ``drop_rate``, ``drop_path_rate``, ``drop_block_rate``.

    Raises:
        BackboneError: An argument is unknown, or the weights do not fit.
    """
    unknown = sorted(set(backbone_args) - set(_ARGUMENTS))
    if unknown:
        raise BackboneError(f"backbone {name!r} does not take {', '.join(unknown)} - it takes {', '.join(_ARGUMENTS)}")
    if weights.startswith("hf-hub:"):
        raise BackboneError(f"backbone {name!r} is not on the hub - pass --weights bundled, random or FILE")
    try:
        model = ResNet(
            BasicBlock,  # type: ignore[arg-type]  # timm's hint names the instance; the class is what it wants
            (1, 1, 1, 1),
            channels=(32, 64, 128, 256),
            num_classes=0,
            **backbone_args,
        )
    except (TypeError, ValueError, AssertionError) as error:
        raise BackboneError(
            f"backbone {name!r} cannot be built ({first_line(error)}) - correct backbone_args"
        ) from error
    data_config, checkpoint = _DATA_CONFIG, None
    if weights in ("pretrained", "bundled"):
        checkpoint = read_file(str(_FILE), source="bundled", license_=MINI_LICENSE)
    elif weights != "random":
        checkpoint = read_file(weights)
        data_config = data_config_beside(weights) or data_config
    if image_size is not None:
        data_config = dataclasses.replace(data_config, image_size=image_size)
    if checkpoint is None:
        return TimmBackbone(model, BackboneFacts(name, data_config))
    load_backbone_weights(model, checkpoint.state, source=checkpoint.source, classifier=("fc",))
    return TimmBackbone(model, checkpoint.facts(name, data_config))
