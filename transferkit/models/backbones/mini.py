"""The bundled backbone ``transferkit/mini``: a ResNet-10 at half width whose weights come with the package."""

from __future__ import annotations

from pathlib import Path

from transferkit.core.errors import BackboneError
from transferkit.core.records import DataConfig
from transferkit.models.backbones.facts import Request, construction
from transferkit.models.backbones.timm import TimmBackbone
from transferkit.models.backbones.timm_import import BasicBlock, ResNet
from transferkit.models.weights.checkpoint import read_file
from transferkit.models.weights.loading import load_backbone_weights

__all__ = ["MINI_LICENSE", "build_mini"]

# The weights carry no pictures, but the pictures they were trained on (a part of ImageNet) are for research.
MINI_LICENSE = "Apache-2.0 (trained on Tiny-ImageNet, whose pictures are for research use)"

_FILE = Path(__file__).with_name("bundled") / "mini.safetensors"
# Trained at 64 px and of use up to about 128; 96 is where its features were measured.
_DATA_CONFIG = DataConfig(image_size=(96, 96))
_ARGUMENTS = ("drop_block_rate", "drop_path_rate", "drop_rate")


def build_mini(request: Request) -> TimmBackbone:
    """Build the bundled backbone; ``"pretrained"`` and ``"bundled"`` are the package's own file.

    Raises:
        BackboneError: An argument is unknown, or the weights do not fit.
    """
    name, unknown = request.name, sorted(set(request.arguments) - set(_ARGUMENTS))
    if unknown:
        raise BackboneError(f"backbone {name!r} does not take {', '.join(unknown)} - it takes {', '.join(_ARGUMENTS)}")
    with construction(name, request.arguments):
        model = ResNet(
            BasicBlock,  # type: ignore[arg-type]  # timm's hint names the instance; the class is what it wants
            (1, 1, 1, 1),
            channels=(32, 64, 128, 256),
            num_classes=0,
            **request.arguments,
        )
    checkpoint = request.checkpoint(lambda: read_file(str(_FILE), source="bundled", license_=MINI_LICENSE))
    if checkpoint is not None:
        load_backbone_weights(model, checkpoint.state, source=checkpoint.source, classifier=("fc",))
    return TimmBackbone(model, request.facts(_DATA_CONFIG, checkpoint))
