"""`WholeNetwork`: backbone and head as one network for the inference engine, and what it returns for a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from transferkit.core.errors import BackboneError
from transferkit.core.records import Window
from transferkit.data.batches.dataset import Loaded
from transferkit.features.engine.engine import Engine
from transferkit.features.engine.taps import OWN, POOLED, Tap
from transferkit.models.backbones.facts import BackboneFacts
from transferkit.models.backbones.groups import LayerGroup
from transferkit.models.backbones.interface import Backbone
from transferkit.models.extent import Collected
from transferkit.models.heads.feed import as_float, feed, pooled
from transferkit.models.module import TransferModule

__all__ = [
    "NOT_FINITE",
    "Alone",
    "Gathered",
    "Output",
    "Predictions",
    "Rows",
    "WholeNetwork",
    "by_picture",
    "outputs_of",
    "whole_engine",
]

FEATURES, UNLIKE = "features", "unlike"

NOT_FINITE: Final = "the model returns NaN or infinity for it"

Rows: TypeAlias = tuple[Tensor, ...]
"""Of a batch: outputs and, where the model knows the distance from its training pictures, features and distances."""


@dataclass(frozen=True)
class Output:
    """What the network returns for one picture, or for one of the windows that it is seen in.

    Attributes:
        name: Its path, or its place among the sources, as ``"images[3]"``.
        logits: ``(V, C) float32``, a row per test-time view, the evaluation view first; ``None`` when it is unreadable.
        error: Why there are no logits.
        sha256: What it is known by: hex digest of the file's bytes, or of pixels; ``None`` where nothing could be read.
        distance: Of its evaluation view from the training pictures; ``None`` where the model knows none.
        features: Of that view, ``(D,)``, where they were asked for.
        size: Height and width of the picture, upright; ``None`` where it is not known.
        window: Which window it is of; ``None`` of the whole picture.
        last: Whether it is the last one of its picture.
    """

    name: str
    logits: npt.NDArray[np.float32] | None
    error: str | None = None
    sha256: str | None = None
    distance: float | None = None
    features: npt.NDArray[np.float32] | None = None
    size: tuple[int, int] | None = None
    window: Window | None = None
    last: bool = True


class Gathered(Protocol):
    """What is made of a picture, of one output after the other."""

    def add(self, output: Output) -> None:
        """Take the output of a window, or of the whole picture; it has logits."""

    def done(self) -> Any:
        """Return what was made, after the last one."""


def by_picture(outputs: Iterable[Output], begin: Callable[[Output], Gathered]) -> Iterator[tuple[Output, Any]]:
    """Yield each picture once, with what is made of all its outputs; they are gone by then.

    Args:
        outputs: Those of one picture follow each other.
        begin: Called with the first output of each picture that has any.

    Yields:
        The last output of a picture, or the one that says why it has none, and what `Gathered.done` returns;
        ``None`` where a window has no logits.
    """
    gathered: Gathered | None = None
    failed: Output | None = None
    for output in outputs:
        if output.logits is None:
            failed = failed or output
        elif failed is None:
            gathered = begin(output) if gathered is None else gathered
            gathered.add(output)
        if output.last:
            made = None if failed is not None or gathered is None else gathered.done()
            yield failed or output, made
            gathered = failed = None


class Alone:
    """What is made of the one output of a picture; see `Gathered`.

    Args:
        make: Of logits ``(V, ...)``.
    """

    def __init__(self, make: Callable[[npt.NDArray[np.float32]], Any]) -> None:
        self._make = make
        self._made: Any = None

    def add(self, output: Output) -> None:
        """Make it."""
        self._made = self._make(_logits(output))

    def done(self) -> Any:
        """Return it."""
        return self._made


class Predictions:
    """What is made of the predictions for the windows of a picture; see `Gathered`.

    Args:
        probs: Makes a prediction of logits ``(V, ...)``.
        collected: Takes it.
    """

    def __init__(self, probs: Callable[[npt.NDArray[np.float32]], Any], collected: Collected) -> None:
        self._probs, self._collected = probs, collected

    def add(self, output: Output) -> None:
        """Take the prediction for a window."""
        if output.window is None:
            raise ValueError("this output is of a whole picture")
        self._collected.add(self._probs(_logits(output)), output.window)

    def done(self) -> Any:
        """Return what was made of all."""
        return self._collected.done()


def _logits(output: Output) -> npt.NDArray[np.float32]:
    if output.logits is None:
        raise ValueError(f"{output.name}: there are no logits")
    return output.logits


class WholeNetwork(Backbone):
    """Backbone and head as one network for the engine, whose first row per picture are the logits.

    Where the model knows the distance from its training pictures there are two rows more, from the same pass: the
    features, and the distance.
    """

    def __init__(self, module: TransferModule) -> None:
        backbone = module.backbone
        super().__init__(backbone, BackboneFacts(backbone.name, backbone.data_config))
        self.head: nn.Module = module.head
        self.feed = module.feed
        self.seen = nn.Identity()
        self.unlike = module.unlike
        self.num_features = module.num_classes
        self.map_channels = None

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(B, C)``."""
        backbone = self.model
        assert isinstance(backbone, Backbone)
        inputs = feed(backbone, self.feed, images)
        with torch.autocast(images.device.type, enabled=False):  # logits in bf16 would have ties
            logits: Tensor = self.head(as_float(inputs))
            if self.unlike is not None:
                self.unlike(self.seen(pooled(backbone, self.feed, inputs).float()))
        return logits

    def stages(self) -> dict[str, nn.Module]:
        """Return the features and the distance, where there is one: they are rows of the same pass."""
        return {} if self.unlike is None else {FEATURES: self.seen, UNLIKE: self.unlike}

    def forward_maps(self, images: Tensor) -> Tensor:
        """Refused: the logits are the one tap. Raises `BackboneError`."""
        raise BackboneError(f"{self.name} with its head has no feature map - take one from the backbone alone")

    def pool(self, maps: Tensor) -> Tensor:
        """Refused, as `forward_maps`. Raises `BackboneError`."""
        raise BackboneError(f"{self.name} with its head has no feature map to pool - take one from the backbone alone")

    def layer_groups(self) -> tuple[LayerGroup, ...]:
        """Return none: nothing of it is trained."""
        return ()


def whole_engine(
    module: TransferModule,
    *,
    device: str,
    precision: Literal["32", "bf16"],
    batch: int = 32,
    compiling: Literal["auto", "off"] = "auto",
) -> Engine:
    """Return the inference engine of a whole model. For the arguments see `Engine`.

    Its rows are logits ``(B, C)`` and, where the model knows the distance from its training pictures, features
    ``(B, D)`` and distances ``(B, 1)``.
    """
    network = WholeNetwork(module)
    taps = (Tap(POOLED, OWN), *(Tap(name, "avg") for name in network.stages()))
    return Engine(network, taps, device=device, precision=precision, batch=batch, compiling=compiling)


def outputs_of(loaded: Loaded, rows: Rows, views: int) -> Iterator[Output]:
    """Yield the outputs of a batch; distances, and before them features, are of the first view of each picture.

    Args:
        loaded: The pictures.
        rows: Of the engine, on any device; nothing where no picture could be read.
        views: Of each picture.
    """
    logits, *further = (column.cpu().numpy() for column in rows) if rows else (None,)
    at = 0
    for name, sha256, error, size in zip(loaded.names, loaded.hashes, loaded.errors, loaded.sizes, strict=True):
        if error is not None or logits is None:
            yield Output(name, None, None if error is None else error.reason, sha256)
            continue
        mine = logits[at : at + views].copy()
        distance = float(further[-1][at, 0]) if further else None
        features = further[0][at].copy() if len(further) > 1 else None
        at += views
        if np.isfinite(mine).all():
            yield Output(name, mine, None, sha256, distance, features, size)
        else:
            yield Output(name, None, NOT_FINITE, sha256)
