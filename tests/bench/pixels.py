"""Pictures that are decoded once: memory of processes by start method, and pictures/s of an epoch from the disk.

``python tests/bench/pixels.py --data clothing/ [--images 800] [--rounds 3] [--part memory|speed]``

Memory is the proportional share (PSS) that Linux states of a process that keeps drawn pictures and of its two decoding
processes, after two epochs. ``arrays`` hands out an array per picture, as was done before; ``shared`` is what the
package does; over kept is what all three take more than with ``nothing`` kept, over the bytes of the pictures. Each is
measured in a process of its own. For speed, the ways take turns in each round; there is no network, only what feeds it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import DataLoader

from transferkit.core.records import DataConfig
from transferkit.data.augment.transform import eval_transform
from transferkit.data.augment.views import Views
from transferkit.data.batches.dataset import ImageDataset, Picture
from transferkit.data.batches.loader import ImageLoader, _as_is
from transferkit.data.pixels.store import open_pixels

if TYPE_CHECKING:
    from transferkit.data.batches.datamodule import ImageData

METHODS = ("fork", "forkserver", "spawn")


def data_of(options: argparse.Namespace, side: int, **places: object) -> ImageData:
    """The pictures, all of them for training."""
    from transferkit.data.batches.datamodule import ImageData  # with Lightning, which spawned processes do without

    return ImageData(
        options.data, image_size=side, batch_size=32, augment="none", val_split=0.0, test_split=0.0, allow_leaks=True,
        **places,
    )  # fmt: skip


def share(pid: int) -> float:
    """The proportional share of memory of a process, in MB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1000


def measure_memory(options: argparse.Namespace) -> None:
    """Print what one way of keeping pictures takes, in one process and two of one start method."""
    config = DataConfig((options.side, options.side))
    size = (2, 2, 3) if options.way == "nothing" else (2 * options.side, 3 * options.side, 3)
    pictures, store = [], open_pixels(config, memory=options.images * (size[0] * size[1] * 3 + 1), disk=0)
    rng = np.random.default_rng(0)
    for number in range(options.images):
        sha256 = hashlib.sha256(str(number).encode()).hexdigest()
        array = rng.integers(0, 256, size, np.uint8)
        if options.way == "arrays":
            pictures.append(Picture(str(number), sha256, array))
        else:
            store.put(sha256, array)
            pictures.append(Picture(str(number), sha256))
    kept = options.images * array.nbytes / 1e6
    del array
    dataset = ImageDataset(pictures, Views(eval_transform(config)), pixels=store)
    batches = [list(range(at, min(at + 32, len(pictures)))) for at in range(0, len(pictures), 32)]
    loader = DataLoader(
        dataset, batch_sampler=batches, num_workers=2, collate_fn=_as_is, persistent_workers=True,
        multiprocessing_context=options.method,
    )  # fmt: skip
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        for _ in loader:
            pass
        seconds.append(time.perf_counter() - started)
    pids = [os.getpid(), *(worker.pid for worker in loader._iterator._workers)]
    print(json.dumps({"kept": kept, "pss": [*map(share, pids)], "s": seconds}))


def memory(options: argparse.Namespace) -> None:
    """Compare both ways, by start method."""
    print("| start method | way | main MB | workers MB | over kept | first epoch s |", f"|{'---|' * 6}", sep="\n")
    for method in METHODS:
        rows = {}
        for way in ("nothing", "arrays", "shared"):
            words = ["--data", options.data, "--images", options.images, "--side", options.side]
            words += ["--part", "one", "--way", way, "--method", method]
            out = subprocess.run(
                [sys.executable, __file__, *map(str, words)], check=True, capture_output=True, encoding="utf-8"
            ).stdout
            rows[way] = row = json.loads(out.splitlines()[-1])
            over = "" if way == "nothing" else f"{(sum(row['pss']) - sum(rows['nothing']['pss'])) / row['kept']:.2f}"
            main, *workers = (f"{each:,.0f}" for each in row["pss"])
            print(f"| {method} | {way} | {main} | {' + '.join(workers)} | {over} | {row['s'][0]:.1f} |", flush=True)
    print(f"kept: {rows['shared']['kept']:,.0f} MB")


def epoch(loader: ImageLoader, number: int) -> float:
    """Pictures per second of one epoch; decoding processes run already."""
    loader.sampler.set_epoch(number)
    started = time.perf_counter()
    pictures = sum(len(images) for images, _ in loader)
    return pictures / (time.perf_counter() - started)


def speed(options: argparse.Namespace) -> None:
    """Compare epochs that decode anew with epochs from disk and from memory, and the passes that fill the places."""
    print(f"| side | workers | way | index s | pictures/s, later epochs | over decoding |\n|{'---|' * 6}")
    for side in (64, 224):
        with tempfile.TemporaryDirectory() as cache:
            os.environ["XDG_CACHE_HOME"] = cache
            places = {
                "decoded anew": {"keep_bytes": 0, "pixel_store": "off"},
                "disk": {"keep_bytes": 0, "pixel_store": "20GB"},
                "memory": {"keep_bytes": 1 << 40, "pixel_store": "off"},
            }
            sets, indexing = {}, {}
            for way, place in places.items():
                sets[way] = data_of(options, side, **place)
                started = time.perf_counter()
                sets[way].index  # noqa: B018
                indexing[way] = time.perf_counter() - started
            for workers in (0, 2):
                rates: dict[str, list[float]] = {way: [] for way in sets}
                loaders = {}
                for way, data in sets.items():
                    data._workers = workers
                    loaders[way] = data.train_dataloader()
                for number in range(options.rounds + 1):  # the first one starts the processes
                    for way, loader in loaders.items():
                        rates[way] += [epoch(loader, number)][: number > 0]
                del loaders, loader
                for way in sets:
                    over = statistics.median(
                        one / base for one, base in zip(rates[way], rates["decoded anew"], strict=True)
                    )
                    rate = statistics.median(rates[way])
                    spread = f"{min(rates[way]):,.0f} to {max(rates[way]):,.0f}"
                    print(f"| {side} | {workers} | {way} | {indexing[way]:.1f} | {rate:,.0f} ({spread}) | {over:.2f} |")


def main() -> None:
    """Measure what the words ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=800)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", choices=("all", "memory", "speed", "one"), default="all")
    parser.add_argument("--way", choices=("nothing", "arrays", "shared"), default="shared")
    parser.add_argument("--method", choices=METHODS, default="fork")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.part == "one":
        measure_memory(options)
        return
    if options.part in ("all", "memory"):
        memory(options)
    if options.part in ("all", "speed"):
        speed(options)


if __name__ == "__main__":
    main()
