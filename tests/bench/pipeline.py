"""Where the time of a picture goes, from its file to the device: each part alone, all of them, and what is left over.

    python tests/bench/pipeline.py [--data FOLDER] [--image-size 224] [--augment light] [--seconds 30] [--rounds 3]

Every part works on the same pictures after a start that is not counted, on 1, 2, 4 ... threads and in as
many processes. A loader of the same threads or processes follows, with pictures decoded anew and with kept pixels: the
time to its first batch, then its rate in the steady state. `sum of parts` is what the parts come to one after the other
at their rates on as many threads or processes, measured once more just before the loader, as cores are not equally fast
all the time; the share of it that the loader reaches is what putting together leaves: the median of the rounds.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import machine
from torch.utils.data import DataLoader, Dataset, get_worker_info

from transferkit.core.records import DataConfig
from transferkit.data.augment.draws import AUGMENTATIONS
from transferkit.data.augment.normalise import normalise
from transferkit.data.augment.transform import Transform, eval_transform, train_transform
from transferkit.data.batches.datamodule import ImageData
from transferkit.data.batches.slots import BatchSlots
from transferkit.data.images.decode import Pixels, decode_image
from transferkit.data.sample import sample_folder
from transferkit.machine.cores import available_cores
from transferkit.machine.device import tune_process

START_S = 1.0
"""Seconds of a part that are not counted."""

Part = Callable[[int], object]
"""Does the part for the picture, or batch, of a number."""


@dataclass(frozen=True)
class Stock:
    """What the parts work on.

    Attributes:
        paths: Of files.
        contents: Their bytes.
        pictures: Their pixels, at the side that training needs.
        views: The same as the network takes them ``(h, w, 3) uint8``.
        config: Size and interpolation.
    """

    paths: list[str]
    contents: list[bytes]
    pictures: list[Pixels]
    views: list[Pixels]
    config: DataConfig

    @classmethod
    def of(cls, paths: list[str], config: DataConfig) -> Stock:
        """Read and decode some files."""
        contents = [Path(path).read_bytes() for path in paths]
        pictures = [decode_image(content, min_side=config.decode_side) for content in contents]
        transform = eval_transform(config)
        return cls(paths, contents, pictures, [transform(picture) for picture in pictures], config)


def parts_of(stock: Stock, batch_size: int) -> dict[str, tuple[Part, int]]:
    """Return each part by name, with how many pictures a call of it does."""
    count, config = len(stock.paths), stock.config
    transforms: dict[str, Transform] = {
        name: eval_transform(config) if name == "none" else train_transform(name, config) for name in AUGMENTATIONS
    }
    groups = [[stock.views[(first + at) % count] for at in range(batch_size)] for first in range(0, count, batch_size)]
    one = {
        "read": lambda at: Path(stock.paths[at % count]).read_bytes(),
        "hash": lambda at: hashlib.sha256(stock.contents[at % count]).hexdigest(),
        "decode": lambda at: decode_image(stock.contents[at % count], min_side=config.decode_side),
    }
    one |= {
        f"augment {name}": partial(lambda transform, at: transform(stock.pictures[at % count], at), transform)
        for name, transform in transforms.items()
    }
    stack = {"stack": (lambda at: torch.from_numpy(np.stack(groups[at % len(groups)])), batch_size)}
    return {name: (part, 1) for name, part in one.items()} | stack


def rate(part: Part, each: int, seconds: float) -> float:
    """Return pictures per second of a part in this thread."""
    until, at = time.perf_counter() + START_S, 0
    while time.perf_counter() < until:
        part(at)
        at += 1
    started, first = time.perf_counter(), at
    while time.perf_counter() < started + seconds:
        part(at)
        at += 1
    return (at - first) * each / (time.perf_counter() - started)


def on_threads(part: Part, each: int, threads: int, seconds: float) -> float:
    """Return pictures per second of a part on threads."""
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(lambda _: rate(part, each, seconds), range(threads)))


def in_processes(stock: Stock, name: str, batch_size: int, processes: int, seconds: float) -> float:
    """Return pictures per second of a part in processes."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def work() -> None:
        torch.set_num_threads(1)
        queue.put(rate(*parts_of(stock, batch_size)[name], seconds))

    started = [context.Process(target=work) for _ in range(processes)]
    for process in started:
        process.start()
    total = sum(queue.get() for _ in started)
    for process in started:
        process.join()
    return total


class Ready(Dataset[Any]):
    """Views that are there already: what is left is to put them together and to hand them over."""

    def __init__(self, views: list[Pixels], slots: BatchSlots | None) -> None:
        self.views, self.slots = views, slots

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, at: int) -> Any:
        worker = get_worker_info()
        handed = self.slots.fill(worker.id, self.views) if self.slots is not None and worker is not None else None
        return torch.from_numpy(np.stack(self.views)) if handed is None else handed


def as_it_is(batch: list[torch.Tensor]) -> torch.Tensor:
    """Return the one batch of a list."""
    return batch[0]


def handed_over(stock: Stock, batch_size: int, workers: int, seconds: float, pinned: bool, *, slots: bool) -> float:
    """Return pictures per second from processes that only put a batch together; in slots, or as torch does alone."""
    views = list(itertools.islice(itertools.cycle(stock.views), batch_size))
    place = BatchSlots.make(workers, 4, batch_size * views[0].nbytes) if slots else None
    loader = DataLoader(Ready(views, place), 1, collate_fn=as_it_is, num_workers=workers, pin_memory=pinned)
    return steady(iter(loader), batch_size, seconds)[1]


def steady(batches: Iterator[Any], batch_size: int, seconds: float) -> tuple[float, float]:
    """Return seconds to the first batch, and pictures per second after `START_S` more."""
    began = time.perf_counter()
    next(batches)
    first = time.perf_counter() - began
    while time.perf_counter() < began + first + START_S:
        next(batches)
    started, count = time.perf_counter(), 0
    while time.perf_counter() < started + seconds:
        next(batches)
        count += 1
    return first, count * batch_size / (time.perf_counter() - started)


def endless(data: ImageData) -> Iterator[Any]:
    """Yield the batches of one epoch after the other."""
    loader = data.train_loader(0, 1)
    for epoch in itertools.count():
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        yield from loader


def to_device(stock: Stock, batch_size: int, device: str, seconds: float) -> dict[str, float]:
    """Return pictures per second of the copy to the device, and of normalising there."""
    batch = torch.from_numpy(np.stack(list(itertools.islice(itertools.cycle(stock.views), batch_size))))
    if device == "cuda":
        batch = batch.pin_memory()
    there = batch.to(device)

    def copy(at: int) -> None:
        batch.to(device, non_blocking=True)
        finish(device)

    def normal(at: int) -> None:
        normalise(there, stock.config)
        finish(device)

    return {"copy to the device": rate(copy, batch_size, seconds), "normalise": rate(normal, batch_size, seconds)}


def finish(device: str) -> None:
    """Wait for what was asked of a device."""
    if device == "cuda":
        torch.cuda.synchronize()


def summed(rates: Mapping[str, float], names: list[str]) -> float:
    """Return pictures per second of parts that follow each other."""
    return 1 / sum(1 / rates[name] for name in names)


def parts_together(
    stock: Stock, names: list[str], batch_size: int, workers: int, seconds: float, pinned: bool
) -> float:
    """Return pictures per second of parts that follow each other, on all threads or in processes."""
    if not workers:
        parts, threads = parts_of(stock, batch_size), available_cores()
        rates = {name: on_threads(*parts[name], threads, seconds) for name in (*names, "stack")}
        return summed(rates, list(rates))
    rates = {name: in_processes(stock, name, batch_size, workers, seconds) for name in names}
    rates["hand-over"] = handed_over(stock, batch_size, workers, seconds, pinned, slots=True)
    return summed(rates, list(rates))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="class folders; default: the bundled sample set")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--augment", choices=AUGMENTATIONS, default="light")
    parser.add_argument("--augment-on", choices=("cpu", "device"), default="cpu", help="what the loader leaves to do")
    parser.add_argument("--images", type=int, default=512, help="that the parts work on")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measurement, in the steady state")
    parser.add_argument("--parts-seconds", type=float, default=5.0, help="of each part alone")
    parser.add_argument("--rounds", type=int, default=1, help="of parts and loader in turn, for the shares")
    parser.add_argument("--most", type=int, default=available_cores(), help="threads and processes")
    options = parser.parse_args()
    folder = options.data or sample_folder()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tune_process(available_cores())
    config = DataConfig(image_size=(options.image_size, options.image_size))
    paths = sorted(str(path) for path in folder.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(0)).tolist()[: options.images]
    stock = Stock.of([paths[at] for at in order], config)
    parts, short = parts_of(stock, options.batch_size), options.parts_seconds
    counts = [count for count in (1, 2, 4, 8, 16, 32, 64) if count < options.most] + [options.most]
    print(f"({machine()}; {len(stock.paths)} pictures, {options.image_size} px, batches of {options.batch_size})\n")
    print("| images/s |" + "".join(f" {count} threads | {count} processes |" for count in counts))
    print("|---" * (2 * len(counts) + 1) + "|")
    for name, (part, each) in parts.items():
        cells = []
        for count in counts:
            cells.append(on_threads(part, each, count, short))
            cells.append(in_processes(stock, name, options.batch_size, count, short))
        print(f"| {name} | " + " | ".join(f"{value:,.0f}" for value in cells) + " |", flush=True)
    for title, slots in (("stack and hand over, as torch does", False), ("stack and hand over, in slots", True)):
        handed = [
            handed_over(stock, options.batch_size, count, short, device == "cuda", slots=slots) for count in counts
        ]
        print(f"| {title} | " + " | ".join(f"| {value:,.0f}" for value in handed) + " |", flush=True)
    for name, value in to_device(stock, options.batch_size, device, short).items():
        print(f"| {name} | {value:,.0f} |" + " |" * (2 * len(counts) - 1), flush=True)
    print("\n| pictures | loader | first batch, s | images/s | sum of parts | share |\n|---|---|---|---|---|---|")
    augment = f"augment {options.augment}"
    for title, keep, names in (
        ("decoded anew", 0, ["read", "hash", "decode", augment]),
        ("kept pixels", None, [augment]),
    ):
        data = ImageData(
            folder, options.image_size, batch_size=options.batch_size, augment=options.augment,
            augment_on=options.augment_on, val_split=0.0, test_split=0.0, keep_bytes=keep, pixel_store="off",
            allow_leaks=True,
        )  # fmt: skip
        data.index  # noqa: B018  read before the clock
        if keep is None:  # known files are decoded in the first epoch, not for the index
            deque(data.train_loader(0, 1), maxlen=0)
        for workers in (0, *counts):
            data._workers = workers
            rounds = []
            for _ in range(options.rounds):
                total = parts_together(stock, names, options.batch_size, workers, short, device == "cuda")
                first, value = steady(endless(data), options.batch_size, options.seconds)
                rounds.append((value / total, first, value, total))
            share, first, value, total = sorted(rounds)[len(rounds) // 2]
            kind = f"{workers} processes" if workers else f"{available_cores()} threads"
            spread = f" ({min(rounds)[0]:.2f} to {max(rounds)[0]:.2f})" if len(rounds) > 1 else ""
            print(f"| {title} | {kind} | {first:.2f} | {value:,.0f} | {total:,.0f} | {share:.2f}{spread} |", flush=True)


if __name__ == "__main__":
    main()
