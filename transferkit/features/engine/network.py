"""The frozen network that the engine runs: uint8 pictures in, features of one or several depths out."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from transferkit.features.engine.folding import fold_batch_norm
from transferkit.features.engine.taps import CELLS, OWN, POOLED, Tap, cell_maps, cells, places, pool_maps
from transferkit.models.backbones.interface import Backbone

__all__ = ["FeatureNetwork", "freeze_network"]


class FeatureNetwork(nn.Module):
    """Normalises pictures, runs the backbone once and pools every tap.

    Args:
        backbone: Not copied: the caller hands over one of its own, in eval mode.
        taps: Where to take features from; cells only alone.
    """

    shift: Tensor
    scale: Tensor
    places: Tensor

    def __init__(self, backbone: Backbone, taps: Sequence[Tap]) -> None:
        super().__init__()
        self.backbone = backbone
        self.taps = tuple(taps)
        mean = torch.tensor(backbone.data_config.mean).view(1, -1, 1, 1)
        std = torch.tensor(backbone.data_config.std).view(1, -1, 1, 1)
        self.register_buffer("shift", -mean / std)
        self.register_buffer("scale", 1.0 / (255.0 * std))
        self._stage_rows: dict[Tap, Tensor] = {}
        self.takes_cells = any(tap.pool == CELLS for tap in self.taps)
        if self.takes_cells and len(self.taps) > 1:
            raise ValueError("cells are taken alone")
        nowhere = torch.zeros(0, dtype=torch.int64)
        self.register_buffer("places", _places(backbone, self.taps[0]) if self.takes_cells else nowhere)
        if self.takes_cells:
            return
        stages, tokens = backbone.stages(), _tokens(backbone)
        for tap in self.taps:
            if tap.layer != POOLED:
                stages[tap.layer].register_forward_hook(_PoolOutput(self._stage_rows, tap, backbone, tokens))
        self._wants_maps = any(tap.layer == POOLED and tap.pool != OWN for tap in self.taps)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return ``(B, D) float32`` per tap for pictures ``(B, H, W, 3) uint8``."""
        # (x / 255 - mean) / std, by one multiplication and one addition, as in training
        inputs = torch.addcmul(self.shift, images.permute(0, 3, 1, 2).float(), self.scale)
        if self.takes_cells:
            return (cells(cell_maps(self.backbone, self.taps[0], inputs), self.places),)
        maps = self.backbone.forward_maps(inputs) if self._wants_maps else None
        own = self.backbone(inputs) if maps is None else maps
        rows = []
        for tap in self.taps:
            if tap.layer != POOLED:
                row = self._stage_rows[tap]
            elif tap.pool == OWN:
                row = own
            else:
                row = pool_maps(own, tap.pool, prefix_tokens=self.backbone.prefix_tokens)
            rows.append(row.float())
        self._stage_rows.clear()
        return tuple(rows)


class _PoolOutput:
    """A forward hook that pools a stage's output at once: the next layer may write into it."""

    def __init__(self, rows: dict[Tap, Tensor], tap: Tap, backbone: Backbone, places: int | None) -> None:
        self.rows = rows
        self.tap = tap
        self.declared = backbone.channels_last
        self.size = backbone.data_config.image_size
        self.prefix_tokens = backbone.prefix_tokens
        self.places = places

    def __call__(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        if output.ndim == 4 and _channels_last(output.shape[1:], self.size, self.declared):
            output = output.permute(0, 3, 1, 2)
        # In some networks (CaiT, XCiT) the class token joins late: until then every token is a place.
        joined = output.ndim == 3 and output.shape[1] != self.places
        self.rows[self.tap] = pool_maps(output, self.tap.pool, prefix_tokens=self.prefix_tokens if joined else 0)


def _channels_last(shape: Sequence[int], size: tuple[int, int], declared: bool) -> bool:
    """Whether a stage gives ``(H, W, C)``: its places have the proportions of the input, its channels have not.

    Some networks mix both layouts (VOLO, the patch embedding of PVT v2), so their own word is taken only where the
    shape fits both.
    """
    height, width = size
    first, last = (abs(h * width - w * height) < max(size) for h, w in (shape[:2], shape[1:]))
    return declared if first == last else first


def _tokens(backbone: Backbone) -> int | None:
    """Return how many tokens stand for places, where there are others; ``None`` where that is not known."""
    if not backbone.prefix_tokens or backbone.map_channels is None:
        return None
    with torch.no_grad():
        maps = backbone.forward_maps(torch.zeros(1, *backbone.data_config.input_shape))
    return maps.shape[1] - backbone.prefix_tokens if maps.ndim == 3 else None


def _places(backbone: Backbone, tap: Tap) -> Tensor:
    """Return the `places` ``(K,)`` of cells of pictures of the size that the backbone takes."""
    with torch.no_grad():
        finest = cell_maps(backbone, tap, torch.zeros(1, *backbone.data_config.input_shape))[0]
    return places(*finest.shape[2:])


def freeze_network(backbone: Backbone, taps: Sequence[Tap]) -> FeatureNetwork:
    """Return a copy of a backbone made ready for inference: eval mode, batch norm folded, channels-last.

    Args:
        backbone: Left as it is.
        taps: Where to take features from.
    """
    network = FeatureNetwork(copy.deepcopy(backbone).cpu().eval(), taps).eval().requires_grad_(False)
    shape = (1, *backbone.data_config.shown_shape)
    generator = torch.Generator().manual_seed(0)
    fold_batch_norm(network, torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator))
    return network.to(memory_format=torch.channels_last)
