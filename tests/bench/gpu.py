"""Everything that is asked of a GPU, in one command of at most ten minutes; each figure is printed when it is known.

    python tests/bench/gpu.py [--data CLOTHING --weights resnet18.safetensors] [--images 6144] [--minutes 9]

Pictures are JPEGs of 500 x 375 that are drawn first, or cut from those of `--data`. Then, as ratios of one run:

- the limit of the cores: reading and decoding in as many processes;
- for each backbone steps on synthetic tensors, and training as `finetune` trains: the first epoch, which decodes, and
  later ones from kept pixels, by where augmentation runs and by what makes batches;
- extraction into an empty store over the lower of the limit and a bare forward, decoding and from kept pixels;
- with `--data`: accuracy with augmentation on the CPU and on the device, by seeds.

What would not end in time is left out, and said. `--accelerator cpu` with few small pictures tries the script itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import logging
import multiprocessing
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from harness import machine
from PIL import Image

import transferkit as tk
from transferkit.data.batches.datamodule import ImageData
from transferkit.data.batches.dataset import Picture
from transferkit.data.images.decode import decode_image
from transferkit.features.engine.compute import Compute
from transferkit.features.engine.taps import find_taps
from transferkit.features.extract.extract import frozen_backbone, make_views
from transferkit.features.extract.extraction import extract_pictures
from transferkit.features.store.store import FeatureStore
from transferkit.machine.cores import available_cores
from transferkit.machine.device import choose_workers, device_of, tune_process
from transferkit.models.backbones.registry import create_backbone
from transferkit.models.module import TransferModule
from transferkit.training.loop.phase_schedule import PhaseSchedule
from transferkit.training.plan.phases import Phase

SHAPE = (375, 500)
CLASSES = 10


@dataclasses.dataclass
class Bench:
    """What all parts share.

    Attributes:
        options: Of the command line.
        folder: Class folders of JPEGs.
        until: When the last part is to begin, on the clock of `time.monotonic`.
        limit: Images/s that the cores decode.
    """

    options: argparse.Namespace
    folder: Path
    until: float
    limit: float = 0.0

    @property
    def device(self) -> str:
        """torch's name of the device."""
        return device_of(self.options.accelerator)

    def paths(self) -> list[Path]:
        """The JPEGs."""
        return sorted(self.folder.rglob("*.jpg"))

    def in_time(self, what: str) -> bool:
        """Return whether a part may still begin; say so where not."""
        if time.monotonic() < self.until:
            return True
        print(f"left out, for time: {what}", flush=True)
        return False

    def finish(self) -> None:
        """Wait for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()


# ---- pictures and what the cores can do --------------------------------------------------------------------------


def draw(job: tuple[int, str, list[str]]) -> None:
    """Write one JPEG: a piece of a photo, or edges and grain that take as long to decode."""
    number, path, photos = job
    generator = np.random.default_rng(number)
    height, width = SHAPE
    if photos:
        photo = decode_image(photos[number % len(photos)])
        top, left = (int(generator.integers(0, max(1, photo.shape[side] // 4))) for side in (0, 1))
        image = Image.fromarray(photo[top:, left:]).resize((width, height))
    else:
        coarse = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((width, height)), dtype=np.int16)
        image = Image.fromarray((smooth + generator.normal(0, 6, (*SHAPE, 1))).clip(0, 255).astype(np.uint8))
    image.save(path, quality=85)


def draw_all(folder: Path, count: int, data: Path | None) -> None:
    """Write class folders of JPEGs, none of which is another's copy."""
    photos = sorted(map(str, data.rglob("*.jpg"))) if data else []
    jobs = []
    for number in range(count):
        place = folder / f"class{number % CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        jobs.append((number, str(place / f"{number:06}.jpg"), photos))
    with multiprocessing.get_context("spawn").Pool(available_cores()) as pool:
        pool.map(draw, jobs, chunksize=16)


def decoding(job: tuple[list[str], int, float]) -> float:
    """Return pictures per second that this process reads and decodes."""
    paths, side, seconds = job
    decode_image(paths[0], min_side=side)
    began, done = time.perf_counter(), 0
    for path in itertools.cycle(paths):
        decode_image(Path(path).read_bytes(), min_side=side)
        done += 1
        if time.perf_counter() - began > seconds:
            break
    return done / (time.perf_counter() - began)


def decode_limit(bench: Bench, side: int) -> float:
    """Return pictures per second that all cores read and decode."""
    paths, cores = list(map(str, bench.paths())), available_cores()
    jobs = [(paths[first::cores] or paths, side, bench.options.seconds) for first in range(cores)]
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        return sum(pool.map(decoding, jobs, chunksize=1))


# ---- training ------------------------------------------------------------------------------------------------------


class Epochs(L.Callback):
    """Images per second of each epoch."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.rates: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self.bench.finish()
        self.began, self.images = time.perf_counter(), 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count, and stop the clock at the last."""
        self.images += len(batch[1])
        if batch_idx + 1 == trainer.num_training_batches:
            self.bench.finish()
            self.rates.append(self.images / (time.perf_counter() - self.began))


def data_of(bench: Bench, backbone: Any, **options: Any) -> ImageData:
    """Return the pictures as training gets them."""
    return ImageData(
        bench.folder, batch_size=bench.options.batch_size, augment=bench.options.augment,
        data_config=backbone.data_config, val_split=0.0, test_split=0.0, pixel_store="off", allow_leaks=True, **options,
    )  # fmt: skip


def fresh(backbone: str, size: int) -> TransferModule:
    """Return a model with random weights."""
    return TransferModule(create_backbone(backbone, weights="random", image_size=size), CLASSES)


def trained(bench: Bench, name: str, data: ImageData, epochs: int) -> list[float]:
    """Return images per second of each epoch of training everything."""
    module, clock = fresh(name, bench.options.image_size), Epochs(bench)
    precision: Any = "bf16-mixed" if bench.device == "cuda" else "32-true"
    with tempfile.TemporaryDirectory() as out:
        trainer = L.Trainer(
            accelerator=bench.options.accelerator, devices=1, precision=precision, max_epochs=epochs,
            callbacks=[PhaseSchedule([Phase("finetune", epochs=epochs)]), clock], gradient_clip_val=1.0, logger=False,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
            num_sanity_val_steps=0, default_root_dir=out,
        )  # fmt: skip
        trainer.fit(module.to(memory_format=torch.channels_last), datamodule=data)
    return clock.rates


def bare(bench: Bench, name: str) -> float:
    """Return images per second of the same steps on tensors that are there."""
    options = bench.options
    module = fresh(name, options.image_size).to(bench.device, memory_format=torch.channels_last).train()
    module.requires_grad_(True)
    optimizer = module.configure_optimizers()
    size = options.image_size
    images = torch.randn(options.batch_size, 3, size, size, device=bench.device)
    images = images.contiguous(memory_format=torch.channels_last)
    targets = torch.randint(0, CLASSES, (options.batch_size,), device=bench.device)

    def step() -> None:
        with torch.autocast(bench.device, dtype=torch.bfloat16, enabled=bench.device == "cuda"):
            loss = torch.nn.functional.cross_entropy(module.head(module.backbone(images)).float(), targets)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()

    return repeated(bench, step, options.batch_size)


def repeated(bench: Bench, work: Any, each: int) -> float:
    """Return images per second of some work, after three times that do not count."""
    for _ in range(3):
        work()
    bench.finish()
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < bench.options.seconds:
        for _ in range(4):
            work()
        bench.finish()
        done += 4
    return done * each / (time.perf_counter() - began)


def ways(bench: Bench) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the ways of making batches: where augmentation runs, and in what."""
    processes = choose_workers(None, "gpu")[0]
    yield f"device, {processes} processes", {"augment_on": "device", "workers": processes}
    yield "device, threads", {"augment_on": "device", "workers": 0}
    yield f"cpu, {processes} processes", {"augment_on": "cpu", "workers": processes}


def training(bench: Bench) -> None:
    """Print steps on synthetic tensors, and training over them."""
    print("\n| backbone | steps on tensors | augmentation, batches | first epoch | of the decode limit | "
          "kept pixels | of the steps |\n|---|---|---|---|---|---|---|")  # fmt: skip
    for name in bench.options.backbones:
        if not bench.in_time(f"training {name}"):
            continue
        steps = bare(bench, name)
        for title, way in ways(bench):
            if not bench.in_time(f"{name}, {title}"):
                continue
            data = data_of(bench, fresh(name, bench.options.image_size).backbone, **way)
            rates = trained(bench, name, data, 1 + bench.options.epochs)
            kept = sorted(rates[1:])[len(rates[1:]) // 2]
            print(f"| {name} | {steps:,.0f} | {title} | {rates[0]:,.0f} | {rates[0] / bench.limit:.2f} | {kept:,.0f} | "
                  f"{kept / steps:.2f} |", flush=True)  # fmt: skip


# ---- extraction ------------------------------------------------------------------------------------------------------


def extraction(bench: Bench) -> None:
    """Print extraction over the lower of decoding and forward."""
    options = bench.options
    name = options.backbones[0]
    frozen = frozen_backbone(name, "random", options.image_size, 0)
    config = frozen.backbone.data_config
    compute = Compute(bench.device, "auto", "auto", choose_workers(None, "gpu")[0], available_cores())
    taps = find_taps(frozen.backbone)
    choice = frozen.choose_precision(taps, compute)
    engine = frozen.engine(taps, choice.precision, compute)
    batch = torch.randint(0, 256, (compute.batch, *config.image_size, 3), dtype=torch.uint8)
    batch = batch.pin_memory() if bench.device == "cuda" else batch
    forward = repeated(bench, lambda: engine.rows(batch, left=0), compute.batch)
    data = data_of(bench, frozen.backbone)
    known = [Picture(record.path, record.sha256) for record in data.index.records]
    print("\n| extraction | images/s | limit | share |\n|---|---|---|---|")
    for title, pixels, limit in (
        ("decoding", None, min(bench.limit, forward)),
        ("decoding for the first time, and keeping", data.pixels, min(bench.limit, forward)),
        ("from kept pixels", data.pixels, forward),
    ):
        if not bench.in_time(f"extraction {title}"):
            continue
        with tempfile.TemporaryDirectory() as store:
            began = time.perf_counter()
            extract_pictures(known, frozen, taps, make_views(config, 0, "none", 0), FeatureStore(store), compute,
                             pixels=pixels)  # fmt: skip
            rate = len(known) / (time.perf_counter() - began)
        print(f"| {name}, {title} | {rate:,.0f} | {limit:,.0f} | {rate / limit:.2f} |", flush=True)


# ---- accuracy --------------------------------------------------------------------------------------------------------


def accuracy(bench: Bench) -> None:
    """Print accuracy by where augmentation runs."""
    options = bench.options
    print("\n| augmentation | seed | val accuracy | seconds |\n|---|---|---|---|")
    for seed, where in itertools.product(range(options.seeds), ("cpu", "device")):
        if not bench.in_time(f"accuracy, {where}, seed {seed}"):
            continue
        with tempfile.TemporaryDirectory() as out:
            began = time.perf_counter()
            run = tk.finetune(
                data=str(options.data), backbone="resnet18", weights=str(options.weights), image_size=96, epochs=5,
                augment="standard", augment_on=where, seed=seed, accelerator=options.accelerator, quiet=True,
                out=f"{out}/run", store=f"{out}/store", phases="finetune",
            )  # fmt: skip
            found = run.metrics["val"]["acc"]
        print(f"| {where} | {seed} | {found:.4f} | {time.perf_counter() - began:.1f} |", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="photos in train/ and val/, for pictures and for accuracy")
    parser.add_argument("--weights", type=Path, help="of resnet18, for accuracy")
    parser.add_argument("--backbones", nargs="+", default=["resnet18", "resnet50", "convnext_tiny"])
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--augment", default="light")
    parser.add_argument("--images", type=int, default=6144)
    parser.add_argument("--epochs", type=int, default=3, help="from kept pixels")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each part alone")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=8.5, help="after which no part begins")
    parser.add_argument("--accelerator", default="gpu", choices=("gpu", "cpu"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of Lightning, about each of many small trainers
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    until = time.monotonic() + 60 * options.minutes
    tune_process(available_cores())
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder) / "pictures", until)
        draw_all(bench.folder, options.images, options.data)
        print(f"({machine()}; {available_cores()} cores, {options.images} JPEGs, {options.image_size} px, batches of "
              f"{options.batch_size}, {options.augment})", flush=True)  # fmt: skip
        side = fresh(options.backbones[0], options.image_size).backbone.data_config.decode_side
        bench.limit = decode_limit(bench, side)
        # Files are known from now on: an index decodes none, and the first epoch does.
        data_of(bench, fresh(options.backbones[0], options.image_size).backbone, keep_bytes=0).index  # noqa: B018
        print(f"decode limit of {available_cores()} cores: {bench.limit:,.0f} images/s", flush=True)
        training(bench)
        extraction(bench)
        if options.data and options.weights:
            accuracy(bench)
    print(f"\n{(time.monotonic() - until) / 60 + options.minutes:.1f} minutes", flush=True)


if __name__ == "__main__":
    main()
