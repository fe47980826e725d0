"""Whether training steps are compiled: where what compiled code saves in the epochs to come pays for making it."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from transferkit.machine.compiling import pays
from transferkit.machine.precision import MemoryFormat
from transferkit.machine.timings import time_ways
from transferkit.models.heads.feed import Feed
from transferkit.models.tuning.layout import layout_of
from transferkit.show.words import duration
from transferkit.training.loop.compiling import compile_learning
from transferkit.training.plan.phases import HEAD
from transferkit.training.plan.sizes import epoch_sizes
from transferkit.training.setup import Options, Training
from transferkit.training.steps import LEAST_PIXELS, CompileChoice, StepTrial, Way

__all__ = [
    "COMPILE_S",
    "GAIN",
    "LEAST_GAIN",
    "Costs",
    "choose_compile",
    "compiled_seconds",
    "decide",
    "known_costs",
    "measure_compiling",
]

COMPILE_S = 60.0
"""Seconds that compiling the steps of one size is taken to cost until it has been measured here."""

GAIN = 1.1
"""Speed of compiled steps over eager ones, taken for granted until it has been measured here."""

LEAST_GAIN = 1.1
"""Compiled steps must be so much faster to be chosen: a smaller gain has been seen to turn into a loss."""

log = logging.getLogger("transferkit")


@dataclass(frozen=True)
class Costs:
    """What compiling brings and takes.

    Attributes:
        gain: Speed of compiled steps over eager ones.
        compile_s: Seconds to make code once.
        measured: Whether it was measured on this machine, or is taken for granted.
    """

    gain: float = GAIN
    compile_s: float = COMPILE_S
    measured: bool = False


def decide(stretches: Sequence[float], costs: Costs) -> CompileChoice:
    """Return whether compiling pays.

    Args:
        stretches: Seconds of eager steps still to come, for each time that code has to be made.
        costs: Of compiling.
    """
    total = sum(stretches)
    known = "measured" if costs.measured else "taken to be"
    text = (
        f"about {duration(total)} of steps; compiled code is {known} {costs.gain:.2f} times as fast, "
        f"{len(stretches)} x {duration(costs.compile_s)} to make"
    )
    worth = costs.gain >= LEAST_GAIN and pays(total, costs.gain, len(stretches) * costs.compile_s)
    return CompileChoice(bool(stretches) and worth, text)


def choose_compile(training: Training[Options], *, measure: bool = True) -> CompileChoice:
    """Return whether the steps of a training are compiled.

    Where it would pay by what is taken for granted, it is measured first, once per network, size, batch and precision
    on this machine.

    Args:
        training: With numbers for everything that could be ``"auto"``.
        measure: Whether to time and compile what is not known; else only to decide by what is.
    """
    config = training.config
    if config.devices * config.num_nodes > 1:
        return CompileChoice(False, "several processes")
    if config.compile != "auto":
        return CompileChoice(config.compile == "on", "as asked")
    if training.device == "mps":
        return CompileChoice(False, "not on MPS")
    if training.shown_pixels < LEAST_PIXELS:
        return CompileChoice(False, "the run is too short to pay for it")
    trial = StepTrial(training.module, training.data.batch_size, training.device)
    way = Way(training.machine.precision, training.machine.memory_format)
    if training.module.feed is Feed.PYRAMID:
        return CompileChoice(False, "heads that take several maps are not compiled")
    if not compiled_seconds(training, 1.0):
        return CompileChoice(False, "no phase trains the backbone")
    times = trial.seconds([way])
    if times is None:
        return CompileChoice(False, "this machine is too busy to time steps; it is tried again another time")
    stretches = compiled_seconds(training, times[way] * training.data.batch_size)
    choice = decide(stretches, known_costs(trial, way))
    if choice.on and measure and not known_costs(trial, way).measured:
        measure_compiling(trial, way, training.data.batch_size)
        choice = decide(stretches, known_costs(trial, way))
        if not known_costs(trial, way).measured:
            return CompileChoice(False, "no code could be made, or timed, here")
    return choice


def compiled_seconds(training: Training[Options], step_s: float) -> list[float]:
    """Return the eager seconds of each stretch of epochs that has code of its own: a phase, at one size.

    Args:
        training: What will be trained.
        step_s: Seconds of one batch at the model's own size.
    """
    side = max(training.module.data_config.image_size)
    layout = layout_of(training.module)
    sizes = epoch_sizes(training.phases, training.config.train_size, layout)
    stretches: dict[tuple[int, int], float] = {}
    epoch = 0
    for number, phase in enumerate(training.phases):
        for size in sizes[epoch : epoch + phase.epochs]:
            if phase.trained(layout) != (HEAD,):
                batches = training.plan.steps_per_epoch * training.config.accumulate
                share = ((size or side) / side) ** 2
                place = number, size or side
                stretches[place] = stretches.get(place, 0.0) + batches * step_s * share
        epoch += phase.epochs
    return list(stretches.values())


def measure_compiling(trial: StepTrial, way: Way, batch_size: int) -> None:
    """Compile the steps of a copy, and remember what that takes and brings; nothing where it fails.

    Args:
        trial: The steps.
        way: How they run eagerly.
        batch_size: Pictures per step of the run, which code is made for.
    """
    layout: MemoryFormat = "channels_last"  # contiguous code has been measured several times slower on a CPU
    compiled_way = way._replace(memory_format=layout)
    module, eager = trial.copy(layout), trial.copy(way.memory_format)
    images = trial.images(compiled_way, batch_size)
    context: Any = partial(torch.autocast, trial.device, dtype=torch.bfloat16, enabled=way.precision == "bf16")
    with torch.random.fork_rng(devices=[]), trial.memory.alone():
        started = time.perf_counter()
        learning = compile_learning(module, images, context)
        compile_s = time.perf_counter() - started
        if learning is None:
            return
        module.compiled = learning
        times = time_ways([
            partial(trial.step, eager, way, trial.images(way, batch_size)),
            partial(trial.step, module, compiled_way, images),
        ])  # fmt: skip
        if times is None:
            return
        gain = times[0] / times[1]
        before = trial.memory.recall().get(f"{_name(trial, way)} compile_s") or 0.0
        numbers = {"gain": gain, "compile_s": max(compile_s, before)}  # less where code was made here before
        trial.memory.remember({f"{_name(trial, way)} {name}": number for name, number in numbers.items()})
        log.info("compiled in %.1f s: steps are %.2f times as fast as eager ones", compile_s, gain)


def known_costs(trial: StepTrial, way: Way) -> Costs:
    """Return what compiling costs and brings, as it was measured here, or as it is taken for granted."""
    numbers = trial.memory.recall()
    gain, compile_s = (numbers.get(f"{_name(trial, way)} {name}") for name in ("gain", "compile_s"))
    return Costs() if gain is None or compile_s is None else Costs(gain, compile_s, measured=True)


def _name(trial: StepTrial, way: Way) -> str:
    return f"compiled {trial.work}: {way}"
