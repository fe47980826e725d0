"""The backbone's interface: pictures in, features or feature maps out, layer groups and facts beside them."""

from __future__ import annotations

import abc

import torch
from torch import Tensor, nn

from transferkit.core.errors import BackboneError
from transferkit.core.records import DataConfig
from transferkit.core.text import first_line
from transferkit.models.backbones.facts import BackboneFacts
from transferkit.models.backbones.groups import STEM, LayerGroup
from transferkit.models.freezing import evaluation_mode

__all__ = ["Backbone"]


class Backbone(nn.Module, abc.ABC):
    """A network without its classifier, interchangeable with every other: pictures to features.

    Abstract; the adapters for timm, torchvision and registered networks are final. The network itself lies under
    ``model``, with the parameter names of its own library.

    Attributes:
        model: The network.
        num_features: Width D of the features, measured by a dry forward in eval mode.
        map_channels: Channels of the feature map (width of a token); ``None`` where the network has no one feature map.
        prefix_tokens: Class and register tokens before the patch tokens, for networks that work on tokens.
        channels_last: Whether the network's stages give ``(B, H, W, C)`` (Swin) instead of ``(B, C, H, W)``.
    """

    name: str
    data_config: DataConfig
    license: str | None
    weights_source: str
    weights_sha256: str | None
    num_features: int
    map_channels: int | None

    def __init__(
        self, model: nn.Module, facts: BackboneFacts, *, prefix_tokens: int = 0, channels_last: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.prefix_tokens = prefix_tokens
        self.channels_last = channels_last
        self.name = facts.name
        self.data_config = facts.data_config
        self.license = facts.license
        self.weights_source = facts.weights_source
        self.weights_sha256 = facts.weights_sha256

    @abc.abstractmethod
    def forward_maps(self, images: Tensor) -> Tensor:
        """Return the last feature map, ``(B, C, H, W)``, or tokens, ``(B, N, C)``.

        Args:
            images: ``(B, 3, H, W)`` float32, normalised as `data_config` says.

        Raises:
            BackboneError: The network has no one feature map.
        """

    @abc.abstractmethod
    def pool(self, maps: Tensor) -> Tensor:
        """Return features ``(B, D)`` from what `forward_maps` gave."""

    @abc.abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Return features ``(B, D)``: the penultimate vector, equal to ``pool(forward_maps(images))`` where maps exist.

        Args:
            images: ``(B, 3, H, W)`` float32, normalised as `data_config` says.
        """

    @abc.abstractmethod
    def layer_groups(self) -> tuple[LayerGroup, ...]:
        """Return every parameter exactly once, in uniquely named groups, from input to output."""

    def stages(self) -> dict[str, nn.Module]:
        """Return the layer groups that are one module each, by name, from input to output; the stem is not one.

        What such a module returns is a feature map or tokens: the features of that depth.
        """
        modules = dict(self.model.named_modules())
        return {group.name: modules[group.name] for group in self.layer_groups() if group.name in modules
                and group.name != STEM}  # fmt: skip

    def measure(self) -> None:
        """Set `num_features` and `map_channels` by a dry forward. An adapter's constructor ends with this.

        A library's own number for the width is not the pooled one for every network (timm's ``num_features`` for
        mobilenetv3), so it does not count. Modes are restored.

        Raises:
            BackboneError: The network fails on one picture of the data config's size, or does not return one vector.
        """
        images = torch.zeros(1, 3, *self.data_config.image_size)
        size = "x".join(map(str, self.data_config.image_size))
        try:
            with evaluation_mode(self), torch.no_grad():
                try:
                    maps = self.forward_maps(images)
                    features = self.pool(maps)
                    self.map_channels = int(maps.shape[1] if maps.ndim == 4 else maps.shape[-1])
                except BackboneError:
                    features = self(images)
                    self.map_channels = None
        except BackboneError:
            raise
        except Exception as error:  # any network, any image size: whatever goes wrong in there is the user's to know
            raise BackboneError(
                f"backbone {self.name!r} fails on a picture of {size} pixels ({first_line(error)}) - "
                "choose another image size or other backbone arguments"
            ) from error
        if not isinstance(features, Tensor) or features.ndim != 2 or features.shape[0] != 1:
            what = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise BackboneError(
                f"backbone {self.name!r} returns {what} for one picture of {size} pixels - expected features (1, D); "
                "keep its pooling on"
            )
        self.num_features = int(features.shape[1])
