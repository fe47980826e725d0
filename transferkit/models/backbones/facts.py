"""The request for a backbone, and the facts about one besides its layers: preparation, weights, cost of a picture."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from transferkit.core.errors import BackboneError
from transferkit.core.records import DataConfig
from transferkit.core.text import first_line
from transferkit.models.freezing import evaluation_mode
from transferkit.models.weights.checkpoint import Checkpoint, read_file

__all__ = ["MINI", "BackboneFacts", "Request", "construction", "multiply_adds", "parameter_count"]

MINI = "transferkit/mini"
"""The backbone whose weights come with the package."""

_HUB = "hf-hub:"


@contextlib.contextmanager
def construction(name: str, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Turn whatever a network's constructor raises in the block into a `BackboneError` that shows its arguments."""
    try:
        yield
    except Exception as error:  # TypeError for unknown names; for unfit values whatever the constructor meets
        shown = ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "none"
        raise BackboneError(
            f"backbone {name!r} cannot be built with the arguments {shown} ({first_line(error)}) - "
            "correct backbone_args or the image size"
        ) from error


@dataclass(frozen=True)
class BackboneFacts:
    """The facts about a backbone besides its layers.

    Attributes:
        name: As the user wrote it.
        data_config: How pictures must be prepared: the facts that travel with the weights.
        license: Of the weights; ``None`` where it is not known, and for random weights.
        weights_source: ``"random"``, ``"bundled"``, ``"registered"``, ``"hf-hub:ID"``, a URL or ``"file:NAME"``.
        weights_sha256: Hex digest of the weights file; ``None`` where there is none.
    """

    name: str
    data_config: DataConfig
    license: str | None = None
    weights_source: str = "random"
    weights_sha256: str | None = None


@dataclass(frozen=True)
class Request:
    """A backbone as the user wants it.

    Attributes:
        name: As the user wrote it.
        architecture: The name that its source knows it by.
        weights: ``"pretrained"``, ``"bundled"``, ``"random"``, ``"hf-hub:ID"`` or a file.
        image_size: ``(height, width)`` in place of the weights' own.
        arguments: Of the network's constructor.
        any_size: Whether pictures of other sizes will come, too, as `train_size` has them.
    """

    name: str
    architecture: str
    weights: str
    image_size: tuple[int, int] | None
    arguments: Mapping[str, Any]
    any_size: bool = False

    @property
    def hub_id(self) -> str | None:
        """The repository that the weights come from; ``None`` where they do not come from the hub."""
        return self.weights.removeprefix(_HUB) if self.weights.startswith(_HUB) else None

    def checkpoint(
        self, pretrained: Callable[[], Checkpoint | None], *, from_hub: Callable[[str], Checkpoint] | None = None
    ) -> Checkpoint | None:
        """Read the weights; ``None`` for random ones.

        Args:
            pretrained: Returns the source's own weights; ``None`` where the network is built with them.
            from_hub: Returns those of a repository; sources without it refuse them.

        Raises:
            BackboneError: There are no such weights for this backbone, or they cannot be had.
        """
        if self.weights == "random":
            return None
        if self.weights == "pretrained" or (self.weights == "bundled" and self.name == MINI):
            return pretrained()
        if self.weights == "bundled":
            raise BackboneError(
                f"backbone {self.name!r} has no bundled weights - only {MINI!r} has; pass --weights pretrained"
            )
        if self.hub_id is None:
            return read_file(self.weights)
        if from_hub is None:
            raise BackboneError(
                f"weights {self.weights!r} are for timm's networks, not for backbone {self.name!r} - pass the name of "
                "one of those, or --weights FILE"
            )
        return from_hub(self.hub_id)

    def facts(self, data_config: DataConfig, checkpoint: Checkpoint | None) -> BackboneFacts:
        """Return the facts of the backbone with these weights.

        Args:
            data_config: Of the network; what lies beside the weights goes before it, and the image size before both.
            checkpoint: From `checkpoint`.
        """
        if checkpoint is not None and checkpoint.data_config is not None:
            data_config = checkpoint.data_config
        if self.image_size is not None:
            data_config = dataclasses.replace(data_config, image_size=self.image_size)
        if checkpoint is None:
            return BackboneFacts(self.name, data_config)
        return BackboneFacts(self.name, data_config, checkpoint.license, checkpoint.source, checkpoint.sha256)


def multiply_adds(network: nn.Module, picture: Tensor) -> int:
    """Return the multiply-adds of a forward pass of one picture, in eval mode.

    Those of convolutions and of matrix products, attention's among them, as papers count; norms, activations, pooling
    and sums are left out. A network on the ``meta`` device is counted without computing anything.

    Args:
        network: Takes images ``(B, 3, H, W) float32``.
        picture: ``(1, 3, H, W) float32``; its values do not matter.
    """
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    with (
        evaluation_mode(network),
        torch.inference_mode(False),  # in which torch's counter sees nothing
        torch.no_grad(),
        FlopCounterMode(display=False) as counter,
    ):
        try:
            # torch's counter stumbles over parameters that modules are called with, such as class tokens.
            for parameter in learning:
                parameter.requires_grad_(False)
            network(picture)
        finally:
            for parameter in learning:
                parameter.requires_grad_(True)
    return int(counter.get_total_flops()) // 2  # torch counts a multiplication and an addition as two


def parameter_count(network: nn.Module) -> int:
    """Return how many numbers the parameters of a network hold, each parameter once."""
    return sum(parameter.numel() for parameter in network.parameters())
