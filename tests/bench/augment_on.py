"""Augmentation on the CPU, a picture at a time, against batches on the device: time by part, pixels, and accuracy.

    python tests/bench/augment_on.py --data clothing/ [--image-size 224] [--images 256] [--rounds 5]
    python tests/bench/augment_on.py --data clothing/ --weights resnet18.safetensors --seeds 3 --epochs 3

The parts: albumentations on one thread; what is left to the CPU where the device augments (the draw, the copy of the
crop into the batch); and the device. Pictures are kept pixels. With `--weights` both ways are trained, seeds in turn.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from harness import compare, machine

from transferkit.cli.job import finetune
from transferkit.core.records import DataConfig
from transferkit.data.augment.device import shown
from transferkit.data.augment.draws import DRAWABLE
from transferkit.data.augment.packed import Packed, pack
from transferkit.data.augment.transform import Transform, train_transform
from transferkit.data.images.decode import Pixels, decode_image


def finish(device: str) -> None:
    """Wait for what was asked of a device."""
    if device == "cuda":
        torch.cuda.synchronize()


def on_cpu(transform: Transform, pictures: list[Pixels]) -> float:
    """Return milliseconds per picture of albumentations."""
    started = time.perf_counter()
    np.stack([transform(picture, number) for number, picture in enumerate(pictures)])
    return 1e3 * (time.perf_counter() - started) / len(pictures)


def handed(transform: Transform, pictures: list[Pixels], size: int) -> list[Packed]:
    """Return the batches that the device gets."""
    pieces = [transform.draw(picture, number) for number, picture in enumerate(pictures)]
    return [pack(pieces[first : first + size]) for first in range(0, len(pieces), size)]


def handing(transform: Transform, pictures: list[Pixels], size: int) -> float:
    """Return milliseconds per picture of what the CPU does for the device."""
    started = time.perf_counter()
    handed(transform, pictures, size)
    return 1e3 * (time.perf_counter() - started) / len(pictures)


def on_device(batches: list[Packed], device: str) -> float:
    """Return milliseconds per picture of the device, pictures there already."""
    started = time.perf_counter()
    for batch in batches:
        shown(batch)
    finish(device)
    return 1e3 * (time.perf_counter() - started) / sum(map(len, batches))


def parts(options: argparse.Namespace, device: str) -> None:
    """Print what each part takes, and how far the pixels are apart."""
    config = DataConfig(image_size=(options.image_size, options.image_size))
    paths = sorted(path for path in options.data.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    chosen = np.random.default_rng(0).permutation(len(paths))[: options.images]
    pictures = [decode_image(paths[at].read_bytes(), min_side=config.decode_side) for at in chosen]
    print(f"({machine()}; {len(pictures)} pictures, {options.image_size} px, batches of {options.batch_size})\n")
    print("| augment | CPU ms | draw and copy ms | device ms | crop KB | mean difference | 99 % | largest |")
    print("|---" * 8 + "|")
    for name in DRAWABLE:
        transform = train_transform(name, config)
        batches = [batch.to(device) for batch in handed(transform, pictures, options.batch_size)]
        figures = compare({
            "cpu": lambda t=transform: on_cpu(t, pictures),
            "hand": lambda t=transform: handing(t, pictures, options.batch_size),
            "device": lambda b=batches: on_device(b, device),
        }, rounds=options.rounds)  # fmt: skip
        theirs = np.stack([transform(picture, number) for number, picture in enumerate(pictures)]).astype(np.float32)
        ours = torch.cat([shown(batch) for batch in batches]).permute(0, 2, 3, 1).cpu().numpy()
        apart = np.abs(ours - theirs)
        size = sum(batch.pixels.numel() for batch in batches) / len(pictures) / 1e3
        times = " | ".join(f"{statistics.median(values):.3f}" for values in figures.values())
        far = f"{apart.mean():.4f} | {np.quantile(apart, 0.99):.0f} | {apart.max():.0f}"
        print(f"| {name} | {times} | {size:.0f} | {far} |", flush=True)


def accuracy(options: argparse.Namespace) -> None:
    """Print accuracy of both ways, seed by seed."""
    results: dict[str, list[float]] = {where: [] for where in options.on}
    print(f"\n({machine()}; {options.backbone}, {options.train_side} px, {options.epochs} epochs, {options.augment})\n")
    print("| seed | augment on | val accuracy | val loss | s |\n|---|---|---|---|---|")
    for seed in range(options.first, options.first + options.seeds):
        for where, values in results.items():
            with tempfile.TemporaryDirectory() as out:
                run = finetune(
                    data=str(options.data), backbone=options.backbone, weights=str(options.weights), seed=seed,
                    image_size=options.train_side, epochs=options.epochs, augment=options.augment, augment_on=where,
                    batch_size=32, report="off", quiet=True, out=str(Path(out) / "run"), allow_leaks=True,
                )  # fmt: skip
            val = run.metrics["val"]
            values.append(100 * val["acc"])
            print(
                f"| {seed} | {where} | {values[-1]:.1f} | {val['loss']:.4f} | {run.metrics['time_s']:.0f} |", flush=True
            )
    for where, values in results.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{where}: {statistics.mean(values):.2f} +- {spread:.2f} %")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--weights", type=Path, help="also train, from these")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--augment", choices=DRAWABLE, default="standard")
    parser.add_argument("--train-side", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--on", nargs="+", default=["cpu", "device"], help="the ways to train")
    parser.add_argument("--first", type=int, default=0, help="seed")
    options = parser.parse_args()
    if options.images:
        parts(options, "cuda" if torch.cuda.is_available() else "cpu")
    if options.weights is not None:
        accuracy(options)


if __name__ == "__main__":
    main()
