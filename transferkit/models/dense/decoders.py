"""Heads of masks that decode: from a picture and its pyramid to a logit per class and pixel.

Each is called with ``(images, level, level, ...)``: images ``(B, 3, H, W)`` and maps from fine to coarse. Decoders are
those of segmentation_models_pytorch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from transferkit.core.errors import ConfigError
from transferkit.models.backbones.pyramid import Level
from transferkit.models.dense.linear import resized

__all__ = ["DeepLabHead", "FPNHead", "SimplePyramid", "UnetHead"]

UNET_CHANNELS = (256, 128, 64, 32, 16)
"""Of the blocks from coarse to fine: the defaults of segmentation_models_pytorch."""

FPN_CHANNELS, FPN_ANSWER = 256, 128
DEEPLAB_CHANNELS, ATROUS_RATES = 256, (12, 24, 36)

SIMPLE_CHANNELS = 256
SCALES = (4, 2, 1, 0.5)
LEAST_LEVELS = 4
"""With fewer, a pyramid is made of the last map."""


class SimplePyramid(nn.Module):
    """Levels made of one map, as ViTDet has it.

    Li et al. 2022 (*Exploring Plain Vision Transformer Backbones for Object Detection*, section 3): the map of a plain
    ViT at 4, 2, 1 and 1/2 times its resolution, by two, one, no transposed convolutions and by a maximum over 2 x 2,
    each followed by a 1 x 1 and a 3 x 3 convolution with layer norms.

    Args:
        level: Of the map.
        scales: Which resolutions, over that of the map, from fine to coarse.

    Attributes:
        levels: What it makes.
    """

    def __init__(self, level: Level, scales: Sequence[float] = SCALES) -> None:
        super().__init__()
        from torchvision.models.convnext import LayerNorm2d  # here: whoever only checks a data set does without

        width = level.channels
        half, quarter = max(1, width // 2), max(1, width // 4)
        fine = (nn.ConvTranspose2d(width, half, 2, stride=2), LayerNorm2d(half), nn.GELU(),
                nn.ConvTranspose2d(half, quarter, 2, stride=2))  # fmt: skip
        made: dict[float, tuple[tuple[nn.Module, ...], int]] = {
            4: (fine, quarter), 2: ((nn.ConvTranspose2d(width, half, 2, stride=2),), half), 1: ((), width),
            0.5: ((nn.MaxPool2d(2),), width),
        }  # fmt: skip
        self.scales = nn.ModuleList(
            nn.Sequential(
                *layers,
                nn.Conv2d(channels, SIMPLE_CHANNELS, 1, bias=False), LayerNorm2d(SIMPLE_CHANNELS),
                nn.Conv2d(SIMPLE_CHANNELS, SIMPLE_CHANNELS, 3, padding=1, bias=False), LayerNorm2d(SIMPLE_CHANNELS),
            )
            for layers, channels in (made[scale] for scale in scales)
        )  # fmt: skip
        self.levels = tuple(Level("", max(1, round(level.stride / scale)), SIMPLE_CHANNELS) for scale in scales)

    def forward(self, maps: Tensor) -> list[Tensor]:
        """Return maps ``(B, 256, h, w)``, from fine to coarse, of a map ``(B, D, h, w)``."""
        return [scale(maps) for scale in self.scales]


class DecodedHead(nn.Module):
    """A decoder on a pyramid, and one convolution to the classes.

    A pyramid of fewer than four levels is made anew of its last map, see `SimplePyramid`. A level as fine as the
    picture is left out: decoders have the picture's own size as their end.

    Args:
        levels: Of the pyramid, from fine to coarse.
        scales: Of a pyramid that is made of the last map.
    """

    takes_pyramid = True

    def __init__(self, levels: Sequence[Level], scales: Sequence[float] = SCALES) -> None:
        super().__init__()
        used = [level for level in levels if level.stride > 1]
        self.simple = None if len(used) >= LEAST_LEVELS else SimplePyramid(levels[-1], scales)
        self.levels = tuple(used) if self.simple is None else self.simple.levels

    def pyramid(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        """Return the images, and a map for each of `levels`."""
        images, *maps = inputs
        return [images, *(maps[len(maps) - len(self.levels) :] if self.simple is None else self.simple(maps[-1]))]

    def _by_stride(self, strides: Sequence[int], name: str) -> list[int]:
        """Return where levels of these strides, relative to the finest of the last four, stand among the maps.

        Raises:
            ConfigError: There is none of a stride.
        """
        base = self.levels[-LEAST_LEVELS].stride
        places = {level.stride: at for at, level in enumerate(self.levels, 1)}
        missing = [base * stride for stride in strides if base * stride not in places]
        if missing:
            strides_here = ", ".join(str(level.stride) for level in self.levels)
            raise ConfigError(
                f"head {name} needs maps of stride {missing[0]}, and the pyramid has {strides_here} - use another "
                "backbone, such as resnet18"
            )
        return [places[base * stride] for stride in strides]


class UnetHead(DecodedHead):
    """U-Net: maps are enlarged step by step, and joined with the finer ones (Ronneberger et al. 2015).

    Args:
        levels: Of the pyramid, from fine to coarse.
        num_classes: Number of classes C.
        drop_rate: Share of the channels before the last convolution that are set to zero in training, in [0, 1).
    """

    def __init__(self, levels: Sequence[Level], num_classes: int, *, drop_rate: float = 0.0) -> None:
        super().__init__(levels)
        from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder  # type: ignore[import-untyped]

        channels = UNET_CHANNELS[: len(self.levels)]
        self.decoder = UnetDecoder((3, *(level.channels for level in self.levels)), channels, n_blocks=len(channels))
        self.answer = nn.Sequential(nn.Dropout2d(drop_rate), nn.Conv2d(channels[-1], num_classes, 3, padding=1))

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return logits ``(B, C, H, W)``."""
        return resized(self.answer(self.decoder(self.pyramid(inputs))), inputs[0].shape[2:])


class FPNHead(DecodedHead):
    """Feature pyramid: maps of four strides, each with what the coarser ones know, are added (Kirillov et al. 2019).

    Args:
        levels: Of the pyramid, from fine to coarse; of the last four each has twice the stride of the one before.
        num_classes: Number of classes C.
        drop_rate: Share of the channels of the sum that are set to zero in training, in [0, 1).

    Raises:
        ConfigError: The strides are others.
    """

    def __init__(self, levels: Sequence[Level], num_classes: int, *, drop_rate: float = 0.0) -> None:
        super().__init__(levels)
        from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder  # type: ignore[import-untyped]

        self.places = self._by_stride((1, 2, 4, 8), "fpn")
        widths = [self.levels[at - 1].channels for at in self.places]
        self.decoder = FPNDecoder(widths, len(widths), FPN_CHANNELS, FPN_ANSWER, dropout=drop_rate)
        self.answer = nn.Conv2d(FPN_ANSWER, num_classes, 1)

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return logits ``(B, C, H, W)``."""
        maps = self.pyramid(inputs)
        return resized(self.answer(self.decoder([maps[at] for at in self.places])), inputs[0].shape[2:])


class DeepLabHead(DecodedHead):
    """DeepLabv3+: the last map seen at several rates, joined with a fine one (Chen et al. 2018).

    In the paper the backbone's last stage is dilated, so that its map has stride 16. Here a coarser one is enlarged to
    that stride, since any backbone is taken as it is.

    Args:
        levels: Of the pyramid, from fine to coarse; of the last four each has twice the stride of the one before.
        num_classes: Number of classes C.
        drop_rate: Share of the channels of the pooled pyramid that are set to zero in training, in [0, 1).

    Raises:
        ConfigError: The strides are others.
    """

    def __init__(self, levels: Sequence[Level], num_classes: int, *, drop_rate: float = 0.0) -> None:
        super().__init__(levels, scales=(4, 1))
        from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder  # type: ignore[import-untyped]

        self.fine, self.middle = (1, 2) if self.simple else self._by_stride((1, 4), "deeplabv3plus")
        widths = (3, 0, self.levels[self.fine - 1].channels, self.levels[-1].channels)
        self.decoder = DeepLabV3PlusDecoder(
            encoder_channels=widths, encoder_depth=5, out_channels=DEEPLAB_CHANNELS, atrous_rates=ATROUS_RATES,
            output_stride=16, aspp_separable=True, aspp_dropout=drop_rate,
        )  # fmt: skip
        self.answer = nn.Conv2d(DEEPLAB_CHANNELS, num_classes, 1)

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return logits ``(B, C, H, W)``."""
        maps = self.pyramid(inputs)
        last = resized(maps[-1], maps[self.middle].shape[2:])
        joined = self.decoder([maps[0], torch.empty(0), maps[self.fine], last])
        return resized(self.answer(joined), inputs[0].shape[2:])
