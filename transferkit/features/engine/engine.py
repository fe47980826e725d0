"""The inference engine: a frozen backbone over batches of pictures, as fast as the machine runs it exactly enough.

Always: inference mode, batch norm folded into convolutions, channels-last, one normalisation per batch, features left
on the device until a chunk is done. In bf16: autocast. Where the number of pictures pays for it: `torch.compile` with
frozen weights.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from transferkit.core.text import first_line
from transferkit.features.engine.network import FeatureNetwork, freeze_network
from transferkit.features.engine.taps import Tap
from transferkit.machine.compiling import pays, quiet_compiler
from transferkit.machine.precision import Precision
from transferkit.machine.timings import Memory
from transferkit.models.backbones.interface import Backbone

__all__ = ["COMPILE_S", "GAIN", "Engine"]

COMPILE_S = 30.0
"""Seconds that compiling is taken to cost until it has been measured here."""

GAIN = 1.3
"""Speed of compiled code over eager code, taken for granted until it has been measured here."""

TIMED_BATCHES = 10
"""Eager batches that are timed."""

log = logging.getLogger("transferkit")


class Engine:
    """A backbone ready to run.

    Args:
        backbone: Copied, not changed.
        taps: Where to take features from.
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``.
        precision: ``"32"`` or ``"bf16"``.
        compiling: ``"on"``, ``"off"``, or ``"auto"``: when the pictures still to come pay for it.
        batch: Pictures per batch that compiled code is made for; smaller ones are padded, larger ones run without it.
        memory: Where it is remembered what compiling this network costs and gains; ``None`` for nowhere.

    Attributes:
        widths: Width of each tap's rows.
        gain: Compiled speed over eager speed, as far as it is known.
        compile_s: Seconds that compiling takes, likewise.
    """

    def __init__(
        self,
        backbone: Backbone,
        taps: Sequence[Tap],
        *,
        device: str = "cpu",
        precision: Precision = "32",
        compiling: Literal["auto", "on", "off"] = "auto",
        batch: int = 32,
        memory: Memory | None = None,
    ) -> None:
        self.device = device
        self.precision = precision
        self.compiling = compiling
        self._memory = memory
        numbers = {} if memory is None else memory.recall()
        self.gain = numbers.get("gain") or GAIN
        self.compile_s = numbers.get("compile_s") or COMPILE_S
        self._network: FeatureNetwork = freeze_network(backbone, taps).to(device)
        self._compiled: FeatureNetwork | None = None
        self._batch = batch
        self._eager: list[float] = []  # seconds per picture of the eager batches, while they count
        blank = torch.zeros(1, *backbone.data_config.shown_shape, dtype=torch.uint8, device=device)
        with self._arithmetic():
            self.widths = tuple(row.shape[1] for row in self._network(blank))

    @property
    def is_compiled(self) -> bool:
        """Whether compiled code is in use."""
        return self._compiled is not None

    def rows(self, images: Tensor, *, left: int = 0) -> tuple[Tensor, ...]:
        """Return ``(B, D) float32`` per tap, on the device.

        Args:
            images: ``(B, H, W, 3) uint8``, on any device.
            left: Pictures still to come after these, for deciding whether to compile.
        """
        if self._compiled is None and self._should_compile(len(images), left):
            self._compile(images)
        started = time.perf_counter()
        moved = images.to(self.device, non_blocking=True)
        if self._compiled is not None and len(images) <= self._batch:
            filled = self._filled(moved)  # outside inference mode: for its tensors code would be compiled anew
            with self._arithmetic():
                return tuple(row[: len(moved)].clone() for row in self._compiled(filled))
        with self._arithmetic():
            rows: tuple[Tensor, ...] = self._network(moved)
        if self.device == "cpu" and self.compiling == "auto" and len(self._eager) < TIMED_BATCHES:
            self._eager.append((time.perf_counter() - started) / len(images))
        return rows

    def _filled(self, images: Tensor) -> Tensor:
        """Pad a batch to the one size that code is compiled for."""
        return functional.pad(images, (0, 0, 0, 0, 0, 0, 0, max(0, self._batch - len(images))))

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        """Inference mode in this engine's precision. fp32 means fp32: rows are the same from every device."""
        half = self.precision == "bf16"
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        try:
            if self.device == "cuda" and not half:
                torch.set_float32_matmul_precision("highest")
                torch.backends.cudnn.allow_tf32 = False
            with torch.inference_mode(), torch.autocast(self.device, torch.bfloat16, enabled=half):
                yield
        finally:
            if self.device == "cuda" and not half:
                torch.set_float32_matmul_precision(before[0])
                torch.backends.cudnn.allow_tf32 = before[1]

    def _should_compile(self, size: int, left: int) -> bool:
        if self.compiling == "on":
            return size <= self._batch
        # On a GPU large batches leave the launches of eager mode little to lose, and decoding is the limit.
        if self.compiling == "off" or self.device != "cpu" or len(self._eager) < 3:
            return False
        return pays(left * self._eager_seconds(), self.gain, self.compile_s)

    def _eager_seconds(self) -> float:
        """Seconds per picture in eager mode: the best batch but the first, which also warms up."""
        return min(self._eager[1:])

    def _compile(self, images: Tensor) -> None:
        """Compile for this batch size; where that fails or does not help, go on without."""
        from torch._inductor import config

        eager = self._eager_seconds() if len(self._eager) > 1 else None
        started = time.perf_counter()
        before, frozen = config.freezing, self._filled(images.to(self.device))
        config.freezing = True
        try:
            compiled = torch.compile(self._network, dynamic=False)
            with quiet_compiler(), self._arithmetic():
                compiled(frozen)
                self.compile_s = time.perf_counter() - started
                seconds = []
                for _ in range(2):
                    began = time.perf_counter()
                    compiled(frozen)
                    seconds.append((time.perf_counter() - began) / len(frozen))
        except Exception as error:  # no compiler, or one that cannot take this network: anything may come out of it
            log.warning("not compiled (%s); going on in eager mode", first_line(error))
            self.compiling = "off"  # for this process; a compiler may be there another day
            return
        finally:
            config.freezing = before
        if eager is not None:
            self.gain = eager / min(seconds)
            if self._memory is not None:
                self._memory.remember({"gain": self.gain, "compile_s": self.compile_s})
            log.info("compiled in %.1f s: %.2f times as fast as eager", self.compile_s, self.gain)
            if self.gain <= 1.0 and self.compiling == "auto":
                self.compiling = "off"
                return
        self._compiled = compiled  # type: ignore[assignment]
