"""`selftest --resume`: runs that are killed at random points must end as one that was left alone, bit for bit."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Table
from safetensors.torch import load_file

from transferkit.core.errors import CheckpointError, TrainingError, TransferkitWarning
from transferkit.core.targets import TargetSpec
from transferkit.data.batches.boxes import tensors_of
from transferkit.machine.lightning_import import Callback, L
from transferkit.models.digest import tensor_digest
from transferkit.models.task import task_of
from transferkit.options.data import DataOptions
from transferkit.options.training import SelftestConfig
from transferkit.runs.files import RunFiles
from transferkit.show.progress import counting_bar, output_console, progress_console
from transferkit.training.finetune import finetune
from transferkit.training.loop.phase_schedule import running_epoch

__all__ = ["KINDS", "Kill", "KillAt", "Trace", "check_resume", "compare_runs", "compare_traces", "read_trace"]

KINDS = ("mid-epoch", "epoch end", "phase boundary")
RANDOM = "random"
"""Pictures of noise, drawn for the test."""

MIXUP = 0.2
"""Where answers can be mixed."""

PLATEAU = {"name": "plateau", "patience": 0, "threshold": 0.5}
"""Hardly ever satisfied, so that it has something to remember in phases of few epochs."""

LIMIT_S = 1800.0
"""After which a run that should have ended is abandoned."""


@dataclass(frozen=True)
class Kill:
    """One point.

    Attributes:
        kind: One of `KINDS`.
        epoch: Over all phases, from 0.
        batch: ``None`` at the end of the epoch.
        delay: Seconds after it has begun.
    """

    kind: str
    epoch: int
    batch: int | None
    delay: float


def check_resume(config: SelftestConfig) -> list[Kill]:
    """Run once undisturbed; then once per point, killed there and resumed; compare all of them with the first.

    What is compared: every weight and buffer, the history and the metrics without their times, and for every batch the
    pictures in it, the LRs and the momentum. The runs use what has a state of its own: augmentation, dropout, mixup
    where answers can be mixed, an average of the weights, gradual unfreezing, and validation that drives the schedule.

    Args:
        config: The options of the verb.

    Returns:
        The points.

    Raises:
        CheckpointError: A resumed run differs; the message says which and in what.
    """
    with tempfile.TemporaryDirectory(prefix="transferkit-selftest-") as name:
        root = Path(name)
        options = _options(config, root)
        console = progress_console(config.quiet)
        with counting_bar(console, "killing and resuming runs") as progress:
            started = time.perf_counter()
            _run({**options, "out": str(root / "reference")}, root / "reference.trace", None)
            seconds = time.perf_counter() - started
            kills = draw_kills(root / "reference", config.kills, config.seed, step_s=seconds / 100)
            rows, failures = [], []
            for number, kill in enumerate(kills):
                out, trace = root / f"run-{number}", root / f"run-{number}.trace"
                _run({**options, "out": str(out)}, trace, kill)
                _run({"out": str(out), "resume": True, "quiet": True}, trace, None)
                problems = compare_runs(out, root / "reference") + compare_traces(trace, root / "reference.trace")
                rows.append((kill, problems))
                failures += [f"killed at {place(kill)}: {problem}" for problem in problems]
                if progress is not None:
                    progress(number + 1, len(kills))
        if not config.quiet:
            _print(rows, seconds)
    if failures:
        raise CheckpointError(f"{len(failures)} difference(s) to the undisturbed run: {'; '.join(failures[:5])}")
    return kills


def draw_kills(reference: Path, count: int, seed: int, *, step_s: float) -> list[Kill]:
    """Return points to kill at: as many of each kind, drawn at random within it.

    Args:
        reference: The undisturbed run.
        count: How many.
        seed: Of the draw.
        step_s: The delay after each point is drawn from [0, `step_s`) seconds.
    """
    plan = RunFiles(reference).plan
    rows = _rows(reference)
    last = [epoch for epoch in range(len(rows) - 1) if rows[epoch]["phase"] != rows[epoch + 1]["phase"]]
    inner = [epoch for epoch in range(len(rows)) if epoch not in last] or last
    batches = int(plan["steps_per_epoch"])
    draw = random.Random(seed)
    kills = []
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        delay = draw.uniform(0, step_s)
        if kind == "mid-epoch":
            kills.append(Kill(kind, draw.randrange(len(rows)), draw.randrange(batches), delay))
        elif kind == "epoch end":
            kills.append(Kill(kind, draw.choice(inner), None, delay))
        elif draw.random() < 0.5:
            kills.append(Kill(kind, draw.choice(last or inner), None, delay))
        else:  # the first batch of the phase after it
            kills.append(Kill(kind, draw.choice(last or inner) + 1 if last else 0, 0, delay))
    return kills


def compare_runs(run: Path, reference: Path) -> list[str]:
    """Return in what two finished runs differ, times left out."""
    differences = []
    ours, theirs = load_file(run / "model.safetensors"), load_file(reference / "model.safetensors")
    changed = [name for name in theirs if name not in ours or not ours[name].equal(theirs[name])]
    if changed or ours.keys() != theirs.keys():
        differences.append(
            f"{len(changed)} of {len(theirs)} tensors differ, such as {changed[0] if changed else 'their names'}"
        )
    if _rows(run) != _rows(reference):
        differences.append("history.csv differs")
    if _metrics(run) != _metrics(reference):
        differences.append("metrics.json differs")
    return differences


def compare_traces(trace: Path, reference: Path) -> list[str]:
    """Return in what the steps of two runs differ."""
    ours, repeated = read_trace(trace)
    theirs, _ = read_trace(reference)
    differences = [f"batch {at} was not repeated as it was" for at in repeated[:1]]
    differing = [at for at in theirs if ours.get(at) != theirs[at]]
    if differing or ours.keys() != theirs.keys():
        differences.append(f"{len(differing)} of {len(theirs)} batches differ in pictures or LR, first {differing[:1]}")
    return differences


def place(kill: Kill) -> str:
    """Return a point in words."""
    where = "its end" if kill.batch is None else f"batch {kill.batch + 1}"
    return f"epoch {kill.epoch + 1}, {where}, after {kill.delay * 1000:.0f} ms"


# ---- parts ------------------------------------------------------------------------------------------------------


def _options(config: SelftestConfig, root: Path) -> dict[str, Any]:
    data = config.data
    if data == RANDOM:
        data = str(_draw_noise(root / "noise", config.seed))
    task = task_of(DataOptions(data=data))
    mixes = task.targets.mixer(TargetSpec(("first", "second")), MIXUP, 0.0) is not None
    return {
        "data": data, "backbone": config.backbone, "weights": config.weights, "image_size": config.image_size,
        "tile": config.tile,
        "phases": "gradual", "epochs": 7, "schedule": PLATEAU, "augment": "standard",
        "drop_rate": 0.2 if task.head_kinds.drops else 0.0,
        "mixup": MIXUP if mixes else 0.0, "ema": 0.9, "batch_size": 16, "precision": "32", "accelerator": "cpu",
        "memory_format": "channels_last", "compile": "off", "workers": 0, "quiet": True,
        "store": str(root / "store"), "seed": config.seed,
    }  # fmt: skip


def _draw_noise(root: Path, seed: int) -> Path:
    generator = np.random.default_rng(seed)
    for label in ("a", "b", "c"):
        (root / label).mkdir(parents=True)
        for number in range(30):
            pixels = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f"{number:02d}.png")
    return root


def _run(options: dict[str, Any], trace: Path, kill: Kill | None) -> None:
    """Run `finetune` in a process of its own, which may be killed."""
    # A server that has loaded everything once and forks: a fresh process without ten seconds of imports.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    errors = trace.with_suffix(".errors")
    process = context.Process(target=_child, args=(options, trace, kill, errors))
    process.start()
    process.join(LIMIT_S)
    if process.exitcode is None:
        process.kill()
        raise TrainingError(f"a run did not end within {LIMIT_S:.0f} s")
    if process.exitcode not in ((0,) if kill is None else (0, -signal.SIGKILL)):  # 0: it was through before the signal
        said = errors.read_text(encoding="utf-8").strip() if errors.exists() else f"exit status {process.exitcode}"
        raise CheckpointError(f"a run could not be {'started' if kill or 'data' in options else 'resumed'}: {said}")


def _child(options: dict[str, Any], trace: Path, kill: Kill | None, errors: Path) -> None:
    callbacks: list[Any] = [Trace(trace)]
    if kill is not None:
        callbacks.append(KillAt(kill.epoch, kill.batch, kill.delay))
    if kill is not None or "resume" in options:  # the undisturbed run has said it already
        warnings.simplefilter("ignore", TransferkitWarning)
    try:
        finetune(callbacks=callbacks, **options)
    except BaseException as error:
        errors.write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        traceback.print_exc(file=sys.stderr)
        sys.exit(1)


def _rows(run: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "images_per_s"} for row in RunFiles(run).history]


def _metrics(run: Path) -> dict[str, Any]:
    metrics = RunFiles(run).metrics
    times = ("time_s", "images_per_s", "computed")
    compared = {key: value for key, value in metrics.items() if key not in ("time_s", "environment")}
    compared["phases"] = [{key: value for key, value in phase.items() if key not in times}
                          for phase in metrics["phases"]]  # fmt: skip
    unlike = metrics.get("unlike_training", {})
    compared["unlike_training"] = {key: value for key, value in unlike.items() if key not in times}
    return compared


def _print(rows: list[tuple[Kill, list[str]]], seconds: float) -> None:
    console = output_console()
    table = Table(title="runs killed by SIGKILL and resumed", title_justify="left", title_style="bold")
    for column in ("kind", "killed at", "resumed run"):
        table.add_column(column)
    for kill, problems in rows:
        table.add_row(kill.kind, place(kill), "; ".join(problems) or "equal to the last bit")
    console.print(table)
    equal = sum(not problems for _, problems in rows)
    console.print(f"{equal} of {len(rows)} equal the undisturbed run of {seconds:.1f} s: weights, history, metrics, "
                  "batches, LRs", soft_wrap=True)  # fmt: skip


# ---- what a training did, step by step, in a file that survives its end --------------------------------------


class Trace(Callback):
    """Appends a line per batch: where it stands, every group's LR, the momentum, and what was in the batch.

    Args:
        path: A file of JSON lines, appended to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Write the line."""
        images, targets = batch
        groups = trainer.optimizers[0].param_groups
        line = {
            "at": f"{running_epoch(trainer)}:{batch_idx}",
            "lrs": {group["name"]: group["lr"] for group in groups},
            "momentum": groups[0]["betas"][0] if "betas" in groups[0] else groups[0]["momentum"],
            "batch": tensor_digest({"images": images, **tensors_of(targets)}),
        }
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


def read_trace(path: Path) -> tuple[dict[str, str], list[str]]:
    """Return the line of every batch by ``epoch:batch``, and the places whose repeated lines differ.

    A resumed run repeats what came after its checkpoint; it must repeat it exactly. A last line that a killed process
    left unfinished is skipped.
    """
    lines: dict[str, str] = {}
    differing = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            at = json.loads(text)["at"]
        except ValueError:
            continue
        if lines.setdefault(at, text) != text:
            differing.append(at)
    return lines, differing


class KillAt(Callback):
    """Kills its own process, as the system would: SIGKILL, a moment after a batch or a validation has begun.

    Args:
        epoch: Which epoch.
        batch: Which batch of it; ``None`` for the epoch's end, where validation begins and the checkpoints follow.
        delay: Seconds until the signal, so that it falls anywhere.
    """

    def __init__(self, epoch: int, batch: int | None, delay: float) -> None:
        self.epoch = epoch
        self.batch = batch
        self.delay = delay

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock at the batch."""
        if batch_idx == self.batch and running_epoch(trainer) == self.epoch:
            self._start()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock at the epoch's end."""
        if self.batch is None and trainer.current_epoch == self.epoch:
            self._start()

    def _start(self) -> None:
        timer = threading.Timer(self.delay, os.kill, (os.getpid(), signal.SIGKILL))
        timer.daemon = True
        timer.start()
