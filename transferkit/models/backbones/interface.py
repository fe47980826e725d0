"""The backbone's interface: pictures in, features or feature maps out, layer groups and facts beside them."""

from __future__ import annotations

import abc
from collections.abc import Container, Mapping

import torch
from torch import Tensor, nn

from transferkit.core.errors import BackboneError, gather
from transferkit.core.records import DataConfig
from transferkit.core.text import first_line
from transferkit.models.backbones.facts import BackboneFacts
from transferkit.models.backbones.groups import STEM, LayerGroup
from transferkit.models.backbones.pyramid import LAST, Level, as_map, choose_levels, finer_stages, recorded
from transferkit.models.freezing import evaluation_mode

__all__ = ["Backbone"]

_USUAL_LEVELS = 4
"""Of a network that halves its maps from stride 4 to 32; with fewer, its sequences are opened."""


class Backbone(nn.Module, abc.ABC):
    """A network without its classifier, interchangeable with every other: pictures to features.

    Abstract; the adapters for timm, torchvision and registered networks are final. The network itself lies under
    ``model``, with the parameter names of its own library.

    Attributes:
        model: The network.
        num_features: Width D of the features, measured by a dry forward in eval mode.
        map_channels: Channels of the feature map (width of a token); ``None`` where the network has no one feature map.
        prefix_tokens: Class and register tokens before the patch tokens, for networks that work on tokens.
        adapted: Whether it takes another number of channels than its weights were made for.
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
        self.adapted = False
        self.name = facts.name
        self.data_config = facts.data_config
        self.license = facts.license
        self.weights_source = facts.weights_source
        self.weights_sha256 = facts.weights_sha256
        self._levels: tuple[Level, ...] | None = None

    @property
    def measures(self) -> bool:
        """Whether its channels have means and deviations of no pictures: grey has those of colour."""
        return self.adapted and self.data_config.channels > 1

    @abc.abstractmethod
    def forward_maps(self, images: Tensor) -> Tensor:
        """Return the last feature map, ``(B, C, H, W)``, or tokens, ``(B, N, C)``.

        Args:
            images: ``(B, C, H, W)`` float32, normalised as `data_config` says.

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
            images: ``(B, C, H, W)`` float32, normalised as `data_config` says.
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

    def pyramid(self) -> tuple[Level, ...]:
        """Return the levels of `forward_pyramid`, from fine to coarse, measured by a dry forward in eval mode.

        Of the stages, and of what comes before them, the last one at each stride counts. A network that works on
        tokens of one size has one level.

        Raises:
            BackboneError: The network has no feature map at its end, so that its stages are no trunk.
        """
        if self._levels is None:
            size = self.data_config.image_size
            images = self.blank_picture()
            stages, parts = self.stages(), finer_stages(self.model)
            with evaluation_mode(self), torch.no_grad(), recorded({**parts, **stages}) as outputs:
                end = self._laid_out(self.forward_maps(images), images)
            levels = choose_levels(self._trunk(outputs, stages, end, images), size)
            finer = choose_levels(self._trunk(outputs, parts, end, images), size)
            if len(levels) < _USUAL_LEVELS:
                levels = max(levels, finer, key=len)
            if len(levels) > 1:  # the stem is no stage, and its map is the finest
                levels = (*(level for level in finer if 1 < level.stride < levels[0].stride), *levels)
            if not levels:
                raise BackboneError(
                    f"backbone {self.name!r} has no pyramid: its end is no feature map (B, C, H, W), nor tokens of "
                    "patches - use another backbone, such as resnet18"
                )
            self._levels = levels
        return self._levels

    def forward_pyramid(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return a feature map ``(B, C, H / stride, W / stride)`` for each of the levels of `pyramid`.

        They are by-products of `forward_maps`: one pass, and gradients flow into all.

        Args:
            images: ``(B, C, H, W)`` float32, normalised as `data_config` says.

        Raises:
            BackboneError: As `pyramid`; or tokens cannot be laid out as a picture of this size.
        """
        levels = self.pyramid()
        modules = dict(self.model.named_modules())
        maps = self._maps(images, {level.name: modules[level.name] for level in levels if level.name != LAST})
        missing = [level.name for level in levels if level.name not in maps]
        if missing:
            size = "x".join(map(str, images.shape[2:]))
            raise BackboneError(
                f"backbone {self.name!r} gives no feature map of {gather(missing)} for pictures of {size} pixels - "
                "use sides that are multiples of its patches"
            )
        return tuple(maps[level.name] for level in levels)

    def forward_last_map(self, images: Tensor) -> Tensor:
        """Return what `forward_maps` does as a map ``(B, C, h, w)``, tokens laid out as the picture is.

        Raises:
            BackboneError: It is no map, nor tokens of patches.
        """
        end = self._laid_out(self.forward_maps(images), images)
        if end is None:
            raise BackboneError(f"backbone {self.name!r} has no map at its end - use another, such as resnet18")
        return end

    def _laid_out(self, end: Tensor, images: Tensor) -> Tensor | None:
        size = images.shape[2], images.shape[3]
        return as_map(end, size, channels_last=False, prefix_tokens=self.prefix_tokens)

    def _maps(self, images: Tensor, stages: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        """Return the feature maps of some stages, and the one at the end, see `_trunk`."""
        with recorded(stages) as outputs:
            end = self._laid_out(self.forward_maps(images), images)
        return self._trunk(outputs, stages, end, images)

    def _trunk(
        self, outputs: Mapping[str, object], stages: Container[str], end: Tensor | None, images: Tensor
    ) -> dict[str, Tensor]:
        """Return the feature maps of some stages, in the order in which they were computed, and the one at the end.

        Where the end is no map there are none: what the stages gave is no trunk then.
        """
        if end is None:
            return {}
        size = images.shape[2], images.shape[3]
        maps = {
            name: as_map(output, size, channels_last=self.channels_last, prefix_tokens=self.prefix_tokens)
            for name, output in outputs.items()
            if name in stages
        }
        trunk = {name: made for name, made in maps.items() if made is not None}
        # A stage of the last stride is what heads are used to; what follows it (a norm, a wider convolution) is not.
        return trunk if any(made.shape[2:] == end.shape[2:] for made in trunk.values()) else {**trunk, LAST: end}

    def blank_picture(self) -> Tensor:
        """Return zeros ``(1, 3, H, W) float32`` of the data config's size, where the network's parameters are."""
        device = next((parameter.device for parameter in self.parameters()), None)
        return torch.zeros(1, *self.data_config.input_shape, device=device)

    def measure(self) -> None:
        """Set `num_features` and `map_channels` by a dry forward. An adapter's constructor ends with this.

        A library's own number for the width is not the pooled one for every network (timm's ``num_features`` for
        mobilenetv3), so it does not count. Modes are restored.

        Raises:
            BackboneError: The network fails on one picture of the data config's size, or does not return one vector.
        """
        images = self.blank_picture()
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
