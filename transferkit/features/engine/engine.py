"""The inference engine: a frozen backbone over batches of pictures, as fast as the machine runs it exactly enough.

Always: inference mode, batch norm folded into convolutions, channels-last, one normalisation per batch, features left
on the device until a chunk is done. Where the processor has bf16: autocast, if that is faster here and keeps every row
within `COSINE` of fp32 eager. Where the number of pictures pays for it: `torch.compile` with frozen weights.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from transferkit.core.text import first_line
from transferkit.features.engine.network import FeatureNetwork, freeze_network
from transferkit.features.engine.taps import Tap
from transferkit.machine.device import cpu_has_bf16
from transferkit.models.backbones.interface import Backbone

__all__ = ["COMPILE_S", "COSINE", "GAIN", "Engine", "PrecisionChoice", "choose_feature_precision", "settled_precision"]

Precision = Literal["32", "bf16"]

COSINE = 0.9995
"""Smallest cosine of a row in bf16 with the same row in fp32 eager for bf16 to be used unasked."""

SPEED_UP = 1.15
"""bf16 must be so much faster than fp32 to be used unasked."""

COMPILE_S = 30.0
"""Seconds that compiling is taken to cost until it has been measured here."""

GAIN = 1.3
"""How many times faster compiled code is taken to be until it has been measured here."""

TIMED_BATCHES = 10
"""Eager batches that are timed."""

log = logging.getLogger("transferkit")


@dataclass(frozen=True)
class PrecisionChoice:
    """The precision features are computed in, and what is known of its error.

    Attributes:
        precision: ``"32"`` or ``"bf16"``.
        reason: For the log.
        cosine: Smallest cosine with fp32 eager over the rows of the trial; ``None`` where nothing was tried.
    """

    precision: Precision
    reason: str
    cosine: float | None = None


def settled_precision(wanted: str, device: str) -> PrecisionChoice | None:
    """Return the precision where it needs no measurement; ``None`` where bf16 has to be tried."""
    if wanted != "auto":
        return PrecisionChoice("bf16" if wanted == "bf16" else "32", "as asked")
    if device == "cpu" and not cpu_has_bf16():
        return PrecisionChoice("32", "the processor has no bf16 arithmetic")
    if device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return PrecisionChoice("32", "the GPU has no bf16 arithmetic")
    if device == "mps":
        return PrecisionChoice("32", "bf16 autocast is not complete on MPS")
    return None


def choose_feature_precision(
    backbone: Backbone, taps: Sequence[Tap], images: Tensor, *, device: str
) -> PrecisionChoice:
    """Try bf16 on real pictures: it must be faster, and every row must point where fp32 eager's does.

    Args:
        backbone: The backbone.
        taps: Where features are taken from.
        images: ``(B, H, W, 3) uint8``, a few dozen real pictures.
        device: ``"cpu"`` or ``"cuda"``.
    """
    plain = freeze_network(backbone, taps, fold=False).to(device)
    full, half = (Engine(backbone, taps, device=device, precision=p, compiling="off") for p in ("32", "bf16"))
    with torch.inference_mode():
        reference = plain(images.to(device))
    cosine = min(
        float(functional.cosine_similarity(ours, exact, dim=1).min())
        for ours, exact in zip(half.rows(images), reference, strict=True)
    )
    seconds = {engine.precision: min(_seconds(engine, images) for _ in range(3)) for engine in (full, half)}
    ratio = seconds["32"] / seconds["bf16"]
    seen = f"bf16 is {ratio:.2f} times as fast as fp32 here, smallest cosine with fp32 {cosine:.6f}"
    if ratio >= SPEED_UP and cosine >= COSINE:
        return PrecisionChoice("bf16", seen, cosine)
    return PrecisionChoice("32", f"{seen}; wanted {SPEED_UP} and {COSINE}", cosine)


def _seconds(engine: Engine, images: Tensor) -> float:
    started = time.perf_counter()
    engine.rows(images)
    if engine.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


class Engine:
    """A backbone ready to run.

    Args:
        backbone: Copied, not changed.
        taps: Where to take features from.
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``.
        precision: ``"32"`` or ``"bf16"``.
        compiling: ``"on"``, ``"off"``, or ``"auto"``: when the pictures still to come pay for it.
        batch: Pictures per batch that compiled code is made for; smaller ones are padded, larger ones run without it.
        gain: Compiled speed over eager speed, where it was measured before.
        compile_s: Seconds that compiling took, likewise.

    Attributes:
        widths: Width of each tap's rows.
        gain: As given, or as measured since.
        compile_s: Likewise.
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
        gain: float = GAIN,
        compile_s: float = COMPILE_S,
    ) -> None:
        self.device = device
        self.precision = precision
        self.compiling = compiling
        self.gain, self.compile_s = gain, compile_s
        self.measured = False  # whether gain and compile_s were measured by this engine
        self._network: FeatureNetwork = freeze_network(backbone, taps).to(device)
        self._compiled: FeatureNetwork | None = None
        self._batch = batch
        self._eager: list[float] = []  # seconds per picture of the eager batches, while they count
        blank = torch.zeros(1, *backbone.data_config.image_size, 3, dtype=torch.uint8, device=device)
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
        return left * self._eager_seconds() * (1 - 1 / self.gain) > self.compile_s

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
        remarks = logging.getLogger("torch.utils.cpp_extension")  # on CUDA toolkits that nobody has asked for
        level = remarks.level
        remarks.setLevel(logging.ERROR)
        try:
            compiled = torch.compile(self._network, dynamic=False)
            with self._arithmetic():
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
            remarks.setLevel(level)
        if eager is not None:
            self.gain, self.measured = eager / min(seconds), True
            log.info("compiled in %.1f s: %.2f times as fast as eager", self.compile_s, self.gain)
            if self.gain <= 1.0 and self.compiling == "auto":
                self.compiling = "off"
                return
        self._compiled = compiled  # type: ignore[assignment]
