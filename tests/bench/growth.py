"""Growth: time and memory of every verb with the number of pictures, as processes of their own.

    python tests/bench/growth.py [--sizes 5000 50000] [--only predict probe] [--work FOLDER] [--plot growth.svg]

Draws tiny pictures, half JPEGs and half PNGs, each a file of its own, in ten classes of twenty folders each. Every verb
is called twice on the unchanged folder; first calls have nothing that is known from before but what the verbs above
left. Seconds are of the whole command, with start and imports, by the clock and of the processors: the latter hardly
change with other work on the machine. Memory is the peak of what the process and its children hold at one time, pages
that they share counted once (Linux). Exponents are of ``seconds ~ pictures ** k`` of the processors, from the smallest
number of pictures to the largest, with those of the same verb on 200 pictures taken off: 1 is linear.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from harness import machine
from PIL import Image

CLASSES, FOLDERS, SIDE, LEAST = 10, 20, 24, 200
BACKBONE = ("--backbone", "test_resnet", "--weights", "random", "--image-size", "32", "--precision", "32")


def write(root: Path, count: int) -> Path:
    """Write pictures of blots, all different, of about half a kilobyte each, the classes of different colours."""
    generator = np.random.default_rng(count)
    for number in range(count):
        label = number % CLASSES
        folder = root / f"class{label}" / f"part{number // CLASSES % FOLDERS:02}"
        folder.mkdir(parents=True, exist_ok=True)
        coarse = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        coarse = coarse // 2 + np.array([label % 3 * 60, label // 3 % 3 * 60, label // 9 * 120], dtype=np.uint8)
        Image.fromarray(coarse).resize((SIDE, SIDE)).save(folder / f"{number:06}.{'png' if number % 2 else 'jpg'}")
    return root


def verbs(data: Path, work: Path) -> dict[str, Sequence[str]]:
    """Return the commands by name, each with what it needs of those above."""
    store, run = ("--store", str(work / "store")), str(work / "run")
    again = ("--overwrite", "--quiet")
    train = ("--data", str(data), *BACKBONE, "--phases", "finetune", "--epochs", "1", "--batch-size", "64", *store)
    return {
        "check": ("check", "--data", str(data), "--quick", "--out", str(work / "check"), *again),
        "features": ("features", "--data", str(data), *BACKBONE, *store, "--quiet"),
        "probe": ("probe", "--data", str(data), *BACKBONE, *store, "--out", str(work / "probe"), *again),
        "plan": ("plan", *train, "--quiet"),
        "lr-find": ("lr-find", *train[:-2], "--steps", "30", "--out", str(work / "lr"), "--quiet"),
        "finetune": ("finetune", *train, "--out", run, *again),
        "evaluate": ("evaluate", run, str(data), "--out", str(work / "evaluate"), *again),
        "predict": ("predict", run, str(data), "--out", str(work / "predictions.csv"), *again),
    }


def children(pid: int) -> list[int]:
    """Return a process and all below it."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8")
    except OSError:
        return [pid]
    return [pid, *(one for child in text.split() for one in children(int(child)))]


def held(pid: int) -> int:
    """Return the bytes that a process holds, of shared pages its part."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


class Call(NamedTuple):
    """A command: its seconds by the clock and of the processors, and the peak of its memory in MB."""

    seconds: float
    processors: float
    memory: float


def command(words: Sequence[str]) -> Call:
    """Run a command."""
    place, peak, over = str(Path(__file__).parents[2]), [0], threading.Event()
    environment = {**os.environ, "PYTHONPATH": place}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "transferkit", *words], env=environment, cwd=place,
                                   stdout=subprocess.DEVNULL, stderr=said)  # fmt: skip

        def watch() -> None:
            while not over.wait(0.5):
                peak[0] = max(peak[0], sum(held(one) for one in children(process.pid)))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        status = process.wait()
        taken = time.perf_counter() - started
        over.set()
        watcher.join()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if status:
            said.seek(0)
            raise SystemExit(f"{' '.join(words)}: exit status {status}\n{said.read()}")
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Call(taken, used, peak[0] / 1e6)


def exponent(counts: Sequence[int], seconds: Sequence[float], start: float) -> float:
    """Return k of ``seconds - start ~ counts ** k`` between the first and the last."""
    first, last = (max(value - start, 0.01) for value in (seconds[0], seconds[-1]))
    return math.log(last / first) / math.log(counts[-1] / counts[0]) if len(counts) > 1 else math.nan


def plot(path: Path, sizes: Sequence[int], figures: dict[str, dict[int, list[Call]]]) -> None:
    """Draw seconds of first and second calls, and memory, over the number of pictures."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    for at, (title, pick) in enumerate((
        ("seconds of processors, first call", lambda calls: calls[0].processors),
        ("seconds of processors, second call", lambda calls: calls[1].processors),
        ("peak memory, MB", lambda calls: max(call.memory for call in calls)),
    )):  # fmt: skip
        axes = figure.add_subplot(1, 3, at + 1)
        for name, by_size in figures.items():
            axes.plot(sizes, [pick(by_size[size]) for size in sizes], marker="o", label=name)
        axes.set(xscale="log", yscale="log", title=title, xlabel="pictures")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.set_xticks([], minor=True)
        axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend(fontsize="small")
    canvas = FigureCanvasSVG(figure) if path.suffix == ".svg" else FigureCanvasAgg(figure)
    canvas.print_figure(path)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[5_000, 50_000])
    parser.add_argument("--only", nargs="+", help="verbs; each needs what those above it leave")
    parser.add_argument("--work", type=Path, help="where to write; default: a temporary folder")
    parser.add_argument("--plot", type=Path, help="an SVG or PNG")
    options = parser.parse_args()
    sizes = [LEAST, *sorted(options.sizes)]
    figures: dict[str, dict[int, list[Call]]] = {}
    print(f"growth ({machine()}), seconds by the clock (of processors)", flush=True)
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            work = Path(folder)
            os.environ["XDG_CACHE_HOME"] = str(work / "cache")
            data = write(work / "pictures", size)
            time.sleep(3)  # files that were written this moment are not taken for known
            for name, words in verbs(data, work).items():
                if options.only and name not in options.only:
                    continue
                calls = figures.setdefault(name, {})[size] = [command(words) for _ in range(1 if size == LEAST else 2)]
                texts = [f"{call.seconds:.1f} ({call.processors:.1f}) s {call.memory:,.0f} MB" for call in calls]
                print(f"  {size:>7,} {name:<10}{' / '.join(texts)}", flush=True)
    measured = sizes[1:]
    print("\n| verb | " + " | ".join(f"{size:,}: first, second, MB" for size in measured) + " | k first, second |")
    print("|---" * (len(measured) + 2) + "|")
    for name, by_size in figures.items():
        pairs = [by_size[size] for size in measured]
        cells = [
            f"{one.seconds:.1f} ({one.processors:.1f}), {two.seconds:.1f} ({two.processors:.1f}), "
            f"{max(one.memory, two.memory):,.0f}"
            for one, two in pairs
        ]
        start = by_size[LEAST][0].processors
        powers = [exponent(measured, [pair[at].processors for pair in pairs], start) for at in (0, 1)]
        print(f"| {name} | {' | '.join(cells)} | {', '.join(f'{power:.2f}' for power in powers)} |")
    if options.plot:
        plot(options.plot, measured, figures)


if __name__ == "__main__":
    main()
