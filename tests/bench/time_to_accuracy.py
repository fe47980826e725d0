"""Seconds from the command until validation accuracy is as high as fastai's `fine_tune` gets it in the end.

    python tests/bench/time_to_accuracy.py DATA --weights resnet18.safetensors --peer-python PEER/bin/python

Ours twice: as it is, and with the solved probe alone; the last accuracy is that of the model that is kept, known when
everything is written. All start as new processes, one after the other, with the same backbone, weights, pictures and
epochs: imports, reading and all that a user waits for is counted. The peer is installed apart. `DATA` has
`train/` and `val/`.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from harness import machine

LOOK_S = 0.1
"""Seconds between two looks at the table of epochs."""

Points = list[tuple[float, float]]
"""Seconds since the start, and the accuracy that was known then."""


@contextmanager
def started(words: list[str], output: int | IO[str]) -> Iterator[subprocess.Popen[str]]:
    """Start a command that ends with the block. Raises `SystemExit` where it fails."""
    process = subprocess.Popen(words, stdout=output, text=True, encoding="utf-8")
    try:
        yield process
    finally:
        process.wait()
    if process.returncode:
        raise SystemExit(f"{words[0]} failed with status {process.returncode}")


def fastai(options: argparse.Namespace, seed: int) -> tuple[Points, float]:
    """Return the points of the peer, and its seconds in all."""
    script = Path(__file__).with_name("peer_fastai.py")
    words = [
        options.peer_python, str(script), str(options.data), "--backbone", options.backbone, "--weights",
        str(options.weights), "--image-size", str(options.image_size), "--epochs", str(options.epochs), "--seed",
        str(seed),
    ]  # fmt: skip
    points: Points = []
    began = time.perf_counter()
    with started(words, subprocess.PIPE) as process:
        for line in process.stdout or ():
            if line.startswith("{"):
                points.append((time.perf_counter() - began, float(json.loads(line)["accuracy"])))
    return points, time.perf_counter() - began


def transferkit(options: argparse.Namespace, seed: int, more: list[str]) -> tuple[Points, float]:
    """Return our points, and the seconds until evaluation and report are written, too."""
    with tempfile.TemporaryDirectory() as folder:
        history = Path(folder) / "run" / "history.csv"
        words = [
            sys.executable, "-m", "transferkit", "finetune", "--data", str(options.data), "--backbone",
            options.backbone, "--weights", str(options.weights), "--image-size", str(options.image_size), "--epochs",
            str(options.epochs), "--seed", str(seed), "--store", f"{folder}/store", "--out", str(history.parent),
            "--quiet", *more,
        ]  # fmt: skip
        points: Points = []
        began = time.perf_counter()
        with started(words, subprocess.DEVNULL) as process:
            while process.poll() is None:
                time.sleep(LOOK_S)
                points += [(time.perf_counter() - began, value) for value in accuracies(history)[len(points) :]]
        seconds = time.perf_counter() - began
        record = json.loads(history.with_name("metrics.json").read_text(encoding="utf-8"))
    return [*points, (seconds, float(record["val"]["acc"]))], seconds


def accuracies(history: Path) -> list[float]:
    """Return the validation accuracies of the epochs that a run has written."""
    if not history.exists():
        return []
    with history.open(encoding="utf-8", newline="") as file:
        return [float(row["val_acc"]) for row in csv.DictReader(file) if row.get("val_acc")]


def reached(points: Points, goal: float) -> float | None:
    """Return the seconds until an accuracy, ``None`` where it was not reached."""
    return next((seconds for seconds, accuracy in points if accuracy >= goal), None)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=4, help="of everything; the peer has a frozen one before")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--peer-python", required=True, help="a Python with fastai, timm and safetensors")
    options, more = parser.parse_known_args()
    print(f"({machine()}; {options.backbone} at {options.image_size} px, {options.epochs} epochs)\n")
    print("| seed | side | s to the peer's last accuracy | first accuracy, after s | last accuracy | s in all |")
    print("|---|---|---|---|---|---|")
    for seed in range(options.seeds):
        theirs = fastai(options, seed)
        goal = theirs[0][-1][1]
        ours = {" ".join(["transferkit", *words]): transferkit(options, seed, [*words, *more])
                for words in ([], ["--phases", "probe"])}  # fmt: skip
        for side, (points, seconds) in {"fastai": theirs, **ours}.items():
            until = reached(points, goal)
            shown = "not reached" if until is None else f"{until:.1f}"
            first = f"{points[0][1]:.4f}, {points[0][0]:.1f}"
            print(f"| {seed} | {side} | {shown} | {first} | {points[-1][1]:.4f} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
