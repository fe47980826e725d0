"""Feature extraction: over the machine's limit, over a plain PyTorch loop, a second time, and as a linear probe.

    python tests/bench/extraction.py --data clothing/ [--backbone resnet18] [--weights FILE] [--images 1024]
    python tests/bench/extraction.py --data clothing/ --part probe        # takes as long as ten epochs of the usual way

The limit is what the machine could do at best: the fastest pure forward (on pictures that are in memory) and pure
decoding and resizing, each on all cores, one after the other on the same cores; on a GPU beside each other, so the
slower of the two. The plain loop is what a careful person writes: ImageFolder, a DataLoader with workers (two on a
CPU), eager fp32 in inference mode. It runs in a process of its own, with the threads a user would have. Start-up and
imports are counted on neither side; compiling is shown by itself.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command sets it

import numpy as np
import timm
import torch
from harness import compare, print_table
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from transferkit.data.augment.transform import eval_transform
from transferkit.data.images.decode import decode_image
from transferkit.features.engine.engine import Engine
from transferkit.features.engine.taps import find_taps
from transferkit.features.extract.extract import extract_table, frozen_backbone
from transferkit.features.probe.probe import fit_probe
from transferkit.machine.cores import available_cores
from transferkit.machine.device import keep_memory
from transferkit.machine.precision import Precision
from transferkit.models.heads.solver import LabelledRows
from transferkit.options.features import FeaturesConfig
from transferkit.options.fields import make_config

LIMIT = "limit: best forward and decoding"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def chosen(folder: Path, count: int) -> list[int]:
    """Positions of a fixed random part of the pictures, so that classes and sizes are mixed."""
    size = len(ImageFolder(str(folder)))
    return torch.randperm(size, generator=torch.Generator().manual_seed(0)).tolist()[:count]


def copied(folder: Path, count: int, target: Path) -> Path:
    """Copy that part as class folders."""
    data = ImageFolder(str(folder))
    for position in chosen(folder, count):
        path, label = data.samples[position]
        place = target / data.classes[label]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    return target


def plain_loop(options: argparse.Namespace) -> float:
    """Images/s of the plain loop, in a process of its own."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    words = [sys.executable, __file__, "--part", "plain-loop", "--data", str(options.train), "--backbone",
             options.backbone, "--images", str(options.images), "--image-size", str(options.image_size),
             "--workers", str(options.workers)]  # fmt: skip
    result = subprocess.run(words, check=True, capture_output=True, encoding="utf-8", env=environment)
    return float(result.stdout.split()[-1])


def run_plain_loop(options: argparse.Namespace) -> None:
    """Print images/s of the plain loop."""
    size = options.image_size
    steps = [transforms.Resize(int(size / 0.875)), transforms.CenterCrop(size), transforms.ToTensor()]
    data = ImageFolder(str(options.data), transforms.Compose([*steps, transforms.Normalize(MEAN, STD)]))
    loader = DataLoader(Subset(data, chosen(options.data, options.images)), 32, num_workers=options.workers,
                        pin_memory=options.device == "cuda")  # fmt: skip
    model = timm.create_model(options.backbone, num_classes=0).eval().to(options.device)
    with torch.inference_mode():
        model(torch.zeros(32, 3, size, size, device=options.device))
        features, started = [], time.perf_counter()
        for images, _ in loader:
            features.append(model(images.to(options.device, non_blocking=True)))
        torch.cat(features).cpu()
    print(options.images / (time.perf_counter() - started))


class Bench:
    """The sides that share one process."""

    def __init__(self, options: argparse.Namespace, folder: Path, work: Path) -> None:
        self.options, self.folder, self.work = options, folder, work
        self.calls = 0
        self.frozen = frozen_backbone(options.backbone, options.weights, options.image_size)
        torch.set_num_threads(available_cores())
        keep_memory()
        self.paths = sorted(str(path) for path in folder.rglob("*.jpg"))
        side = self.frozen.backbone.data_config
        self.transform, self.decode_side = eval_transform(side), side.decode_side
        taps = find_taps(self.frozen.backbone)
        kinds: list[tuple[Precision, Literal["on", "off"]]] = [("32", "off"), ("32", "on")]
        if options.device == "cuda":
            kinds = [("32", "off"), ("bf16", "off"), ("bf16", "on")]
        self.engines = [
            Engine(self.frozen.backbone, taps, device=options.device, precision=precision, compiling=compiling,
                   batch=options.batch)
            for precision, compiling in kinds
        ]  # fmt: skip
        self.images = torch.from_numpy(np.stack([self.render(path) for path in self.paths[: options.batch]]))
        if options.device == "cuda":
            self.images = self.images.pin_memory()
        started = time.perf_counter()
        for engine in self.engines:
            engine.rows(self.images)
        print(f"compiling took {time.perf_counter() - started:.1f} s (not counted below)")

    def render(self, path: str) -> np.ndarray:
        """Decode and resize one picture, as extraction does."""
        return self.transform(decode_image(Path(path).read_bytes(), min_side=self.decode_side), 0)

    def decode(self) -> float:
        """Images/s of pure decoding and resizing on all cores."""
        started = time.perf_counter()
        with ThreadPoolExecutor(available_cores()) as pool:
            count = sum(1 for _ in pool.map(self.render, self.paths))
        return count / (time.perf_counter() - started)

    def forward(self, engine: Engine) -> float:
        """Images/s of a pure forward: the best of several passes over one batch."""
        seconds = []
        for _ in range(8):
            started = time.perf_counter()
            engine.rows(self.images)
            if engine.device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        return len(self.images) / min(seconds)

    def extract(self, compiling: str) -> float:
        """Images/s of extraction end to end, from the scan of the folder to the rows on disk."""
        self.calls += 1
        config = self.config(self.folder, self.work / f"store{self.calls}", compiling)
        started = time.perf_counter()
        table = extract_table(config)
        return len(table) / (time.perf_counter() - started)

    def config(self, folder: Path, store: Path, compiling: str = "auto") -> FeaturesConfig:
        """The options of one extraction."""
        return make_config(
            FeaturesConfig,
            {
                "data": str(folder), "backbone": self.options.backbone, "weights": self.options.weights,
                "image_size": self.options.image_size, "store": str(store), "compile": compiling, "val_split": 0.0,
                "test_split": 0.0, "allow_leaks": True, "precision": "auto",
            },
        )  # fmt: skip


def speed(options: argparse.Namespace) -> None:
    """Extraction over the limit and over the plain loop, and a second call."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        folder = copied(options.train, options.images, work / "pictures")
        bench = Bench(options, folder, work)

        def limit() -> float:
            forward = [bench.forward(engine) for engine in bench.engines]
            best, decode = max(forward), bench.decode()
            print(f"  forward {', '.join(f'{rate:.0f}' for rate in forward)}, decoding {decode:.0f} images/s")
            return min(best, decode) if options.device == "cuda" else 1 / (1 / best + 1 / decode)

        sides = {
            "plain PyTorch loop": lambda: plain_loop(options),
            LIMIT: limit,
            "transferkit, as it chooses": lambda: bench.extract("auto"),
        }
        if options.device == "cpu":
            bench.extract("on")  # compiles for the engine of this process
            sides["transferkit, compiled before"] = lambda: bench.extract("on")
        title = f"extraction, {options.backbone} at {options.image_size} px, {options.images} pictures"
        figures = compare(sides, rounds=options.rounds)
        print_table(title, figures, base="plain PyTorch loop", unit="images/s")
        best = np.median(figures[LIMIT])
        for name in list(sides)[2:]:
            print(f"  {name}: {np.median(figures[name]) / best:.2f} of the limit")

        store = work / "again"
        first = clocked(bench, folder, store)
        again = min(clocked(bench, folder, store) for _ in range(3))
        renamed = min(clocked(bench, folder.rename(work / f"renamed{number}"), store) if number == 0 else
                      clocked(bench, work / "renamed0", store) for number in range(2))  # fmt: skip
        print(f"  first call {first:.2f} s, second {again:.3f} s ({first / again:.0f} x), "
              f"renamed folder {renamed:.3f} s ({first / renamed:.0f} x)")  # fmt: skip


def clocked(bench: Bench, folder: Path, store: Path) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    extract_table(bench.config(folder, store))
    return time.perf_counter() - started


def probe(options: argparse.Namespace) -> None:
    """A linear probe of ten epochs the usual way, against extracting once and solving."""
    val = options.data / "val"
    size = options.image_size
    frozen = frozen_backbone(options.backbone, options.weights, size)
    torch.set_num_threads(available_cores())
    with tempfile.TemporaryDirectory() as store:
        started = time.perf_counter()
        table = extract_table(make_config(FeaturesConfig, {
            "data": str(options.data), "backbone": options.backbone, "weights": options.weights, "image_size": size,
            "store": store, "allow_leaks": True,
        }))  # fmt: skip
        extracted = time.perf_counter() - started
        train, held = table.split("train"), table.split("val")
        fitted = fit_probe(LabelledRows(train.X, train.y, len(table.class_names), [r.sha256 for r in train.records]))
        ours = time.perf_counter() - started
        accuracy = float((fitted.predict(held.X) == held.y).mean())
    print(f"extract {extracted:.1f} s and solve {ours - extracted:.1f} s: {ours:.1f} s, val accuracy {accuracy:.1%}")

    steps = [transforms.RandomResizedCrop(size, scale=(0.5, 1.0)), transforms.RandomHorizontalFlip()]
    plain = [transforms.Resize(int(size / 0.875)), transforms.CenterCrop(size)]
    last = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    sets = [ImageFolder(str(options.data / "train"), transforms.Compose([*steps, *last])),
            ImageFolder(str(val), transforms.Compose([*plain, *last]))]  # fmt: skip
    loaders = [DataLoader(data, 32, shuffle=number == 0, num_workers=2) for number, data in enumerate(sets)]
    torch.manual_seed(0)
    backbone, head = frozen.backbone.eval(), torch.nn.Linear(frozen.backbone.num_features, len(sets[0].classes))
    epochs = options.epochs
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loaders[0]))
    best, started = 0.0, time.perf_counter()
    for epoch in range(epochs):
        for images, targets in loaders[0]:
            with torch.no_grad():
                features = backbone(images)
            loss = torch.nn.functional.cross_entropy(head(features), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        with torch.inference_mode():
            right = sum(int((head(backbone(images)).argmax(1) == targets).sum()) for images, targets in loaders[1])
        best = max(best, right / len(sets[1]))
        print(f"  epoch {epoch + 1}: {time.perf_counter() - started:.0f} s, val accuracy {right / len(sets[1]):.1%}")
    seconds = (time.perf_counter() - started) * 10 / epochs
    kind = "10 epochs" if epochs == 10 else f"10 epochs, from {epochs},"
    print(f"{kind} the usual way: {seconds:.0f} s, last val accuracy {right / len(sets[1]):.1%}, best {best:.1%}")
    print(f"  ratio {seconds / ours:.1f}, accuracy {accuracy - right / len(sets[1]):+.1%}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and val/")
    parser.add_argument("--part", choices=("speed", "probe", "plain-loop"), default="speed")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--epochs", type=int, default=10, help="of the usual way; fewer are scaled up to ten")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, help="of the plain loop; default: 2, on a GPU all cores but one")
    options = parser.parse_args()
    options.train = options.data / "train" if (options.data / "train").is_dir() else options.data
    options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.workers is None:
        options.workers = 2 if options.device == "cpu" else max(1, available_cores() - 1)
    options.batch = 32 if options.device == "cpu" else 256
    {"speed": speed, "probe": probe, "plain-loop": run_plain_loop}[options.part](options)


if __name__ == "__main__":
    main()
