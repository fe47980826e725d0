"""A backbone for pictures of another number of channels: its first convolutions are adapted, and that is proven.

Of ``C`` channels in place of the ``K`` that a network was trained on (3: RGB):

- fewer than K: each has the sum of the K weights, shared out evenly: grey has all of it;
- more than K: the weights are repeated in turn (R, G, B, R, ...), each divided by how often it comes.

So where all channels are equal, as normalised, the adapted network says what the network of before says of a grey
picture: exactly, but for rounding. timm's ``adapt_input_conv`` sums and repeats alike, but scales what it repeats by
``3 / C``, which keeps that for multiples of three alone; and it cannot be asked of networks from elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor, nn

from transferkit.core.errors import BackboneError
from transferkit.models.backbones.interface import Backbone
from transferkit.models.freezing import evaluation_mode

__all__ = ["adapt_channels", "adapted_weight"]

_TOLERANCE: Final = 1e-3
"""Of features, relative to the largest."""


def adapt_channels(backbone: Backbone, channels: int) -> None:
    """Have a backbone take so many channels, in place; its data config with them.

    Args:
        backbone: For other pictures.
        channels: At least 1.

    Raises:
        BackboneError: What sees the picture first is no plain convolution, or the network has more to do with it.
    """
    before = backbone.data_config
    if channels == before.channels:
        return
    generator = torch.Generator().manual_seed(0)
    grey = torch.randn((2, 1, *before.image_size), generator=generator)
    with evaluation_mode(backbone), torch.no_grad():
        with _called(backbone, before.channels) as first:
            expected = backbone(grey.expand(-1, before.channels, -1, -1))
        for convolution in first:
            weight = convolution.weight
            convolution.weight = nn.Parameter(adapted_weight(weight, channels), weight.requires_grad)
            convolution.in_channels = channels
        try:
            features = backbone(grey.expand(-1, channels, -1, -1)) if first else None
        except RuntimeError:
            features = None
    if features is None or not _equal(features, expected):
        raise BackboneError(
            f"backbone {backbone.name!r} cannot be adapted to {channels} channels: what sees its pictures first is no "
            "plain convolution - use another, such as resnet18 or convnext_tiny"
        )
    backbone.data_config = before.of_channels(channels)
    backbone.adapted = True


def adapted_weight(weight: Tensor, channels: int) -> Tensor:
    """Return weights ``(O, C, h, w)`` for other pictures of weights ``(O, K, h, w)``, see above."""
    own = weight.shape[1]
    if channels < own:
        return (weight.sum(dim=1, keepdim=True) / channels).repeat(1, channels, 1, 1)
    turn = torch.arange(channels, device=weight.device) % own
    return weight[:, turn] / torch.bincount(turn)[turn].view(1, -1, 1, 1)


@contextmanager
def _called(backbone: Backbone, channels: int) -> Iterator[list[nn.Conv2d]]:
    """Collect the convolutions of a network that are called on a picture's channels in the block, each once."""
    called: list[nn.Conv2d] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(module, nn.Conv2d) and module not in called:
            called.append(module)

    handles = [module.register_forward_pre_hook(note) for module in backbone.modules()
               if isinstance(module, nn.Conv2d) and module.in_channels == channels and module.groups == 1]  # fmt: skip
    try:
        yield called
    finally:
        for handle in handles:
            handle.remove()


def _equal(features: Tensor, expected: Tensor) -> bool:
    return bool(((features - expected).abs().max() <= _TOLERANCE * expected.abs().max()).item())
