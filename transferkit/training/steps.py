"""How training steps run on this machine: precision and memory format, timed together on the real model, remembered.

A few steps of a copy on blank pictures say how fast each way is. On a GPU nothing is timed: bf16 where it has it, and
channels-last. Where the machine is too busy for a stopwatch it is fp32 and channels-last, until another time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from transferkit.machine.device import device_of
from transferkit.machine.precision import (
    GAIN,
    Machine,
    MemoryFormat,
    Precision,
    layout_of,
    memory_of,
    possible_precisions,
)
from transferkit.machine.timings import Memory, time_ways
from transferkit.models.heads.feed import Feed
from transferkit.models.module import TransferModule

__all__ = ["LEAST_PIXELS", "CompileChoice", "StepChoice", "StepTrial", "Way", "choose_steps", "fastest", "step_lines"]

FORMAT_GAIN = 1.05
"""Contiguous steps must be so much faster than channels-last ones to be chosen: a tie is one, run after run."""

TRIAL_BATCH = 32
"""Pictures of a timed step, at most."""

BUDGET_S = 2.0
"""Seconds that timing may take, about; a step of fewer pictures is timed where one of all of them takes too long."""

LEAST_PIXELS = 50e6
"""Pixels that a run shows at least for more to be timed than its precision: fewer are trained on within a minute."""

TURNS = 4.5
"""Turns of each way in a comparison, about, the one that warms up included."""


class Way(NamedTuple):
    """One way to run a step."""

    precision: Precision
    memory_format: MemoryFormat

    def __str__(self) -> str:
        return f"{self.precision} {self.memory_format}"


@dataclass(frozen=True)
class StepChoice:
    """How steps run, and why.

    Attributes:
        way: Precision and memory format.
        reason: Why, for the user.
    """

    way: Way
    reason: str


@dataclass(frozen=True)
class CompileChoice:
    """Whether steps are compiled, and why.

    Attributes:
        on: Whether.
        reason: Why, for the user.
    """

    on: bool
    reason: str


def step_lines(machine: Machine, compiled: CompileChoice) -> list[tuple[str, str]]:
    """Return how steps run and why, a line each, behind its name."""
    layout = machine.memory_format.replace("_", "-")
    return [
        ("steps", f"{'bf16' if machine.precision == 'bf16' else 'fp32'}, {layout}: {machine.reason}"),
        ("compile", f"{'on' if compiled.on else 'off'}: {compiled.reason}"),
    ]


def choose_steps(
    precision: str,
    memory_format: str,
    accelerator: str,
    module: TransferModule,
    batch_size: int,
    *,
    pixels: float = LEAST_PIXELS,
) -> StepChoice:
    """Return how the training steps of a model run.

    Args:
        precision: ``"auto"``, ``"32"`` or ``"bf16"``.
        memory_format: ``"auto"``, ``"channels_last"`` or ``"contiguous"``.
        accelerator: From `choose_accelerator`.
        module: A copy is timed.
        batch_size: Pictures per step.
        pixels: That the run will show the model, in all epochs together.
    """
    device = device_of(accelerator)
    precisions, reason = possible_precisions(precision, device)
    formats: tuple[MemoryFormat, ...] = ("channels_last", "contiguous")
    if memory_format != "auto":
        formats = ("contiguous",) if memory_format == "contiguous" else ("channels_last",)
    elif device != "cpu" or pixels < LEAST_PIXELS:
        formats = ("channels_last",)
    ways = [Way(one, layout) for one in precisions for layout in formats]
    if len(ways) == 1:
        return StepChoice(ways[0], reason)
    trial = StepTrial(module, batch_size, device)
    seconds = trial.seconds(ways)
    if seconds is None:
        return StepChoice(ways[0], "this machine is too busy to time steps; it is tried again another time")
    way = fastest(seconds)
    others = [f"{name} {1e3 * time:.3g}" for name, time in seconds.items() if name != way]
    text = f"{trial.work} takes {1e3 * seconds[way]:.3g} ms a picture here, {', '.join(others)}"
    return StepChoice(way, text if len(precisions) > 1 or precision != "auto" else f"{reason}; {text}")


def fastest(seconds: Mapping[Way, float]) -> Way:
    """Return the fastest way; where it is about a tie, the more exact one, and channels-last.

    Args:
        seconds: Of a step, by way.
    """
    best: dict[Precision, Way] = {}
    for precision in dict.fromkeys(way.precision for way in seconds):
        layouts = [way for way in seconds if way.precision == precision]
        usual = layouts[0]
        best[precision] = next(
            (way for way in layouts[1:] if seconds[usual] >= FORMAT_GAIN * seconds[way]), usual
        )  # fmt: skip
    if "bf16" in best and ("32" not in best or seconds[best["32"]] >= GAIN * seconds[best["bf16"]]):
        return best["bf16"]
    return best["32"]


class StepTrial:
    """Training steps of a copy of a model on blank pictures, and what is remembered of them.

    Args:
        module: Not changed.
        batch_size: Pictures per step of the run.
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``.
    """

    def __init__(self, module: TransferModule, batch_size: int, device: str) -> None:
        self.module = module
        self.batch = max(2, min(batch_size, TRIAL_BATCH))  # batch norm needs two
        self.size = module.data_config.image_size
        self.device = device
        head = "" if module.feed is Feed.FEATURES else f" with {type(module.head).__name__}"
        self.work = f"a training step of {self.batch}{head}"

    @property
    def memory(self) -> Memory:
        """Of the backbone."""
        return memory_of(self.module.backbone, self.size, self.device)

    def seconds(self, ways: Sequence[Way]) -> dict[Way, float] | None:
        """Return seconds a picture by way, as they are known or measured now; ``None`` where they cannot be had."""
        names = {way: f"{self.work}: {way}" for way in ways}
        memory = self.memory
        if not memory.recall().keys() >= set(names.values()):
            with memory.alone():
                if not memory.recall().keys() >= set(names.values()):
                    with torch.random.fork_rng(
                        devices=[]
                    ):  # a run must not depend on whether it is the one that measures
                        times = self._measure(ways)
                    memory.remember(
                        dict.fromkeys(names.values())
                        if times is None
                        else dict(zip(names.values(), times, strict=True))
                    )
        numbers = memory.recall()
        known = {way: seconds for way, name in names.items() if (seconds := numbers.get(name)) is not None}
        return known if len(known) == len(ways) else None

    def _measure(self, ways: Sequence[Way]) -> list[float] | None:
        copies = {layout: self.copy(layout) for layout in dict.fromkeys(way.memory_format for way in ways)}
        step = partial(self.step, copies[ways[0].memory_format], ways[0])
        blank = {way: self.images(way, 2) for way in ways}
        step(blank[ways[0]])
        alone = time_ways([partial(step, blank[ways[0]])], limit_s=BUDGET_S / 4)
        if alone is None:
            return None
        pictures = self.batch
        while pictures > 2 and pictures * alone[0] / 2 * len(ways) * TURNS > BUDGET_S:
            pictures //= 2
        turns: list[Callable[[], object]] = [
            partial(self.step, copies[way.memory_format], way, self.images(way, max(2, pictures))) for way in ways
        ]
        times = time_ways(turns, limit_s=BUDGET_S)
        return None if times is None else [seconds / max(2, pictures) for seconds in times]

    def copy(self, memory_format: MemoryFormat) -> TransferModule:
        """Return a copy of the model, all of which learns."""
        twin = copy.deepcopy(self.module).to(self.device, memory_format=layout_of(memory_format))
        twin.passage.memory_format = layout_of(memory_format)
        return twin.requires_grad_(True).train()

    def images(self, way: Way, pictures: int) -> Tensor:
        """Return blank pictures."""
        images = torch.zeros(pictures, *self.module.data_config.input_shape, device=self.device)
        return images.contiguous(memory_format=layout_of(way.memory_format))

    def step(self, module: TransferModule, way: Way, images: Tensor) -> None:
        """Take a step, but for what the optimizer does, which is the same by every way."""
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=way.precision == "bf16"):
            loss = module.learn_eagerly(images).float().sum()
        torch.autograd.backward(loss)
        module.zero_grad(set_to_none=True)
        if self.device == "cuda":
            torch.cuda.synchronize()
