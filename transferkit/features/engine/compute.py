"""What features are computed with: device, precision, and a frozen backbone with its engines."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from transferkit.features.engine.engine import (
    COMPILE_S,
    GAIN,
    Engine,
    PrecisionChoice,
    choose_feature_precision,
    settled_precision,
)
from transferkit.features.engine.taps import Tap
from transferkit.features.store.store import FeatureStore
from transferkit.machine.device import describe_device
from transferkit.machine.timings import Memory
from transferkit.models.backbones.interface import Backbone
from transferkit.models.digest import state_digest

__all__ = ["Compute", "FrozenBackbone"]

CPU_BATCH, GPU_BATCH = 32, 256
CPU_CHUNK, GPU_CHUNK = 512, 8192

log = logging.getLogger("transferkit")


@dataclass(frozen=True)
class Compute:
    """What features are computed with.

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

    def memory(self, taps: Sequence[Tap], compute: Compute, store: FeatureStore) -> Memory:
        """Return what was measured for this backbone on this machine."""
        return Memory(
            store.root,
            {
                "weights": self.digest,
                "taps": [[tap.layer, tap.pool] for tap in taps],
                "size": list(self.backbone.data_config.image_size),
                "device": describe_device(compute.device),
                "torch": str(torch.__version__),
            },
        )

    def choose_precision(
        self, taps: Sequence[Tap], compute: Compute, memory: Memory, trial: Callable[[], Tensor]
    ) -> PrecisionChoice:
        """Return the precision: as asked, as it must be, as measured before, or as measured now.

        Args:
            taps: Where features are taken.
            compute: Device, and what was asked for.
            memory: Where the measurement is kept, so that the next call finds the same features.
            trial: Gives some real pictures ``(B, H, W, 3) uint8``, only called where they are needed.
        """
        settled = settled_precision(compute.precision, compute.device)
        if settled is not None:
            return settled
        known = memory.recall()
        if known.get("precision") in ("32", "bf16"):
            return PrecisionChoice(known["precision"], f"{known['reason']} (measured before)", known.get("cosine"))
        images = trial()
        if not len(images):
            return PrecisionChoice("32", "there is no readable picture to try bf16 on")
        choice = choose_feature_precision(self.backbone, taps, images, device=compute.device)
        log.info("features in precision %s: %s", choice.precision, choice.reason)
        memory.remember(precision=choice.precision, reason=choice.reason, cosine=choice.cosine)
        return choice

    def engine(self, taps: Sequence[Tap], precision: str, compute: Compute, memory: Memory) -> Engine:
        """Return the engine for these taps, made on first use."""
        key = (tuple(taps), precision, compute.device, compute.compiling, compute.batch)
        if key not in self._engines:
            known = memory.recall()
            self._engines[key] = Engine(
                self.backbone,
                taps,
                device=compute.device,
                precision="bf16" if precision == "bf16" else "32",
                compiling=compute.compiling,
                batch=compute.batch,
                gain=float(known.get("gain", GAIN)),
                compile_s=float(known.get("compile_s", COMPILE_S)),
            )
        return self._engines[key]
