"""The means by which features are computed: device, precision, and a frozen backbone with its engines."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transferkit.core.records import DataConfig
from transferkit.features.engine.engine import Engine
from transferkit.features.engine.taps import Tap
from transferkit.features.engine.trial import FeatureTrial
from transferkit.machine.precision import Precision, PrecisionChoice, choose_precision, memory_of
from transferkit.models.backbones.interface import Backbone
from transferkit.models.digest import state_digest

__all__ = ["Compute", "FrozenBackbone"]

CPU_BATCH, GPU_BATCH = 32, 256
CPU_CHUNK, GPU_CHUNK = 512, 8192


@dataclass(frozen=True)
class Compute:
    """The means by which features are computed.

    Attributes:
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``.
        precision: ``"auto"``, ``"32"`` or ``"bf16"``.
        compiling: ``"auto"``, ``"on"`` or ``"off"``.
        workers: Decoding processes; 0 decodes in this one, between the forward passes.
        threads: Decoding threads of this process.
        batch_size: Pictures per forward pass; ``None`` for what suits the device.
    """

    device: str = "cpu"
    precision: str = "auto"
    compiling: Literal["auto", "on", "off"] = "auto"
    workers: int = 0
    threads: int = 1
    batch_size: int | None = None

    @property
    def batch(self) -> int:
        """Pictures per forward pass."""
        return self.batch_size or (CPU_BATCH if self.device == "cpu" else GPU_BATCH)

    @property
    def chunk(self) -> int:
        """Pictures between two writes to the store: what a killed process loses at most."""
        return CPU_CHUNK if self.device == "cpu" else GPU_CHUNK


class FrozenBackbone:
    """A backbone whose weights no longer change, and what identifies it.

    Args:
        backbone: Not changed here; must not be changed by anybody else meanwhile.

    Attributes:
        digest: Sha256 of its tensors and of its structure: what makes features of one network another's or not.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.digest = hashlib.sha256(f"{state_digest(backbone)}\n{backbone!r}".encode()).hexdigest()
        self._engines: dict[tuple[Any, ...], Engine] = {}

    def prepared(self, config: DataConfig) -> FrozenBackbone:
        """Return the same network for pictures that are prepared otherwise; weights are shared."""
        backbone = copy.copy(self.backbone)
        backbone.data_config = config
        return FrozenBackbone(backbone)

    def choose_precision(self, taps: Sequence[Tap], compute: Compute) -> PrecisionChoice:
        """Return the precision that features are computed in, the same for every data set and every process here.

        ``auto`` takes bf16 where it is faster and, on drawn pictures, every row points where fp32's does.

        Args:
            taps: Where features are taken.
            compute: Device, and the precision that the user asks for.
        """
        trial = FeatureTrial(self.backbone, self.digest, taps, compute.device)
        return choose_precision(compute.precision, compute.device, trial)

    def engine(self, taps: Sequence[Tap], precision: Precision, compute: Compute) -> Engine:
        """Return the engine for these taps, made on first use."""
        key = (tuple(taps), precision, compute.device, compute.compiling, compute.batch)
        if key not in self._engines:
            self._engines[key] = Engine(
                self.backbone,
                taps,
                device=compute.device,
                precision=precision,
                compiling=compute.compiling,
                batch=compute.batch,
                memory=memory_of(self.backbone, self.backbone.data_config.image_size, compute.device),
            )
        return self._engines[key]
