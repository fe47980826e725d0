"""Training speed: transferkit over a hand-written minimal PyTorch loop, same model, data, batch size and workers.

The loop is what a careful person writes: ImageFolder, torchvision transforms, fp32, AdamW. transferkit runs as its
command does, with what it chooses for long runs on this machine: precision, memory format, compilation; its allocator
and decoding. Bare steps on synthetic tensors are taken by every precision and memory format, eager and compiled (in
channels-last: contiguous code is several times slower on a CPU).

    python tests/bench/training.py [--data FOLDER] [--backbone resnet18] [--image-size 96] [--workers 0] [--no-compile]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import timm
import torch
from harness import compare, print_table
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from transferkit.data.batches.datamodule import ImageData
from transferkit.data.sample import sample_folder
from transferkit.machine.cores import available_cores
from transferkit.machine.device import choose_accelerator, tune_process
from transferkit.machine.precision import MemoryFormat, layout_of, possible_precisions
from transferkit.models.backbones.registry import create_backbone
from transferkit.models.module import TransferModule
from transferkit.training.compiling import LEAST_GAIN, known_costs, measure_compiling
from transferkit.training.loop.checkpoints import AtomicCheckpointIO
from transferkit.training.loop.compiling import CompiledSteps
from transferkit.training.loop.early_stop import ByFigure, Selection
from transferkit.training.loop.interruption import SignalFlag
from transferkit.training.loop.phase_schedule import PhaseSchedule
from transferkit.training.loop.recorder import RunRecorder
from transferkit.training.loop.trainer import in_order
from transferkit.training.plan.phases import Phase
from transferkit.training.steps import StepTrial, Way, choose_steps


class Clock(L.Callback):
    """Times an epoch, and what of it goes into pictures and into optimisation; the rest is ours and Lightning's."""

    def __init__(self) -> None:
        self.images = 0
        self.seconds = 0.0
        self.work = 0.0

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Count a function's time as work."""

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.work += time.perf_counter() - started

        return wrapper

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Wrap the three places where work is done: reading, normalising, forward to step."""
        loop = trainer.fit_loop.epoch_loop.automatic_optimization
        loop.run = self.timed(loop.run)
        loader = trainer.train_dataloader
        loader.dataset.batch = self.timed(loader.dataset.batch)
        data = trainer.datamodule
        data.on_after_batch_transfer = self.timed(data.on_after_batch_transfer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start."""
        self.images, self.work, self.started = 0, 0.0, time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count."""
        self.images += len(batch[1])
        if batch_idx + 1 == trainer.num_training_batches:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds = time.perf_counter() - self.started


def plain_epoch(options: argparse.Namespace, folder: Path, device: str) -> float:
    """Images per second of one epoch of the hand-written loop."""
    torch.set_num_threads(available_cores())
    size = options.image_size
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=(0.5, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    data = ImageFolder(str(folder), transform)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).tolist()[: options.images]
    loader = DataLoader(
        Subset(data, order), options.batch_size, shuffle=True, num_workers=options.workers, drop_last=True
    )
    model = timm.create_model(options.backbone, num_classes=len(data.classes)).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    seen, started = 0, time.perf_counter()
    for images, targets in loader:
        images, targets = images.to(device), targets.to(device)
        loss = torch.nn.functional.cross_entropy(model(images), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        seen += len(targets)
    if device == "cuda":
        torch.cuda.synchronize()
    return seen / (time.perf_counter() - started)


def build(options: argparse.Namespace, folder: Path) -> tuple[TransferModule, ImageData]:
    """The model and data of our side."""
    backbone = create_backbone(options.backbone, weights="random", image_size=options.image_size)
    data = ImageData(
        folder, batch_size=options.batch_size, augment="light", data_config=backbone.data_config, val_split=0.0,
        test_split=0.0, workers=options.workers, keep_bytes=None if options.keep else 0, pixel_store="off",
        allow_leaks=True,
    )  # fmt: skip
    return TransferModule(backbone, data.num_classes), data


def our_epoch(
    options: argparse.Namespace, module: TransferModule, data: ImageData, accelerator: str, way: Way, compiled: bool,
    shares: list[float],
) -> float:  # fmt: skip
    """Images per second of one epoch of transferkit's training, with everything `finetune` hangs on it.

    Code is made at the first step, which is not counted: the epoch is that of a run that has begun.
    """
    tune_process(max(1, available_cores() - options.workers))
    layout = layout_of(way.memory_format)
    module.passage.memory_format = layout
    with tempfile.TemporaryDirectory() as out:
        schedule = PhaseSchedule([Phase("finetune", epochs=2 if compiled else 1)])
        clock = Clock()
        selection = Selection("train_loss", ByFigure(higher_is_better=False), patience=None)
        recorder = RunRecorder(Path(out), module, schedule, selection, SignalFlag())
        craft = [CompiledSteps()] if compiled else []
        trainer = L.Trainer(
            accelerator=accelerator, devices=1, precision="bf16-mixed" if way.precision == "bf16" else "32-true",
            callbacks=in_order(schedule, craft, [clock], recorder), plugins=[AtomicCheckpointIO()],
            max_epochs=2 if compiled else 1, gradient_clip_val=1.0,
            limit_train_batches=options.images // options.batch_size, logger=False,
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=out,
        )  # fmt: skip
        trainer.fit(module.to(memory_format=layout), datamodule=data)
    shares.append(1 - clock.work / clock.seconds)
    return clock.images / clock.seconds


class BareSteps:
    """The same steps on synthetic tensors in a bare loop: what an epoch costs more is ours.

    Args:
        options: Size, batch and pictures.
        module: A copy is trained.
        device: Where.
        way: Precision and memory format.
        compiled: Whether forward and backward are compiled.
    """

    def __init__(
        self, options: argparse.Namespace, module: TransferModule, device: str, way: Way, *, compiled: bool
    ) -> None:
        layout = layout_of(way.memory_format)
        self.module = copy.deepcopy(module).to(device, memory_format=layout).requires_grad_(True).train()
        self.optimizer = self.module.configure_optimizers()
        size = options.image_size
        images = torch.randn(options.batch_size, 3, size, size, device=device)
        self.images = images.contiguous(memory_format=layout)
        self.targets = torch.randint(0, module.num_classes, (options.batch_size,), device=device)
        self.steps = options.images // options.batch_size
        self.device, self.way = device, way

        def forward(pictures: torch.Tensor) -> torch.Tensor:
            outputs: torch.Tensor = self.module.head(self.module.backbone(pictures))
            return outputs

        self.forward = torch.compile(forward, dynamic=False) if compiled else forward

    def step(self) -> None:
        """Take one step."""
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.way.precision == "bf16"):
            loss = torch.nn.functional.cross_entropy(self.forward(self.images).float(), self.targets)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()

    def rate(self) -> float:
        """Return images per second of as many steps as an epoch of ours has."""
        started = time.perf_counter()
        for _ in range(self.steps):
            self.step()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return self.steps * len(self.targets) / (time.perf_counter() - started)


def bare_ways(options: argparse.Namespace, module: TransferModule, device: str) -> dict[str, BareSteps]:
    """Return bare steps by every precision, memory format and compilation that this machine has."""
    precisions, _ = possible_precisions("auto", device)
    layouts: tuple[MemoryFormat, ...] = ("channels_last", "contiguous")
    return {
        f"bare {way}{', compiled' if compiled else ''}": BareSteps(options, module, device, way, compiled=compiled)
        for way in (Way(precision, layout) for precision in precisions for layout in layouts)
        for compiled in (False, *((True,) if options.compiled and way.memory_format == "channels_last" else ()))
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="class folders; default: the bundled sample set")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--images", type=int, default=320, help="per epoch and side")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-keep", dest="keep", action="store_false", help="decode every epoch, as the loop does")
    parser.add_argument("--no-compile", dest="compiled", action="store_false", help="leave compiled steps out")
    options = parser.parse_args()
    folder = options.data or sample_folder()
    accelerator = choose_accelerator("auto")
    device = "cuda" if accelerator == "gpu" else "cpu"
    tune_process(available_cores())
    module, data = build(options, folder)
    data.index  # noqa: B018  read once, before the clock, as `finetune` does
    module.requires_grad_(True)
    choice = choose_steps("auto", "auto", accelerator, module, options.batch_size)
    print(f"{choice.way}: {choice.reason}")
    bare = bare_ways(options, module, device)
    for steps in bare.values():
        steps.step()  # code is made here
    trial = StepTrial(module, options.batch_size, device)
    compiled = False
    if options.compiled:
        measure_compiling(trial, choice.way, options.batch_size)
        costs = known_costs(trial, choice.way)
        compiled = costs.measured and costs.gain >= LEAST_GAIN
        print(f"compiled: {costs.gain:.2f} times as fast, {costs.compile_s:.0f} s to make; a long run is {compiled=}")
    way = Way(choice.way.precision, "channels_last") if compiled else choice.way
    shares: list[float] = []
    sides: dict[str, Callable[[], float]] = {
        "plain PyTorch loop": lambda: plain_epoch(options, folder, device),
        "transferkit, as it chooses": lambda: our_epoch(options, module, data, accelerator, way, compiled, shares),
        **{name: steps.rate for name, steps in bare.items()},
    }
    figures = compare(sides, rounds=options.rounds)
    title = (
        f"training {options.backbone} at {options.image_size} px, batch {options.batch_size}, workers {options.workers}"
    )
    print_table(title, figures, base="plain PyTorch loop", unit="images/s")
    rates = {name: statistics.median(values) for name, values in figures.items()}
    best = max(bare, key=rates.__getitem__)
    ours = figures["transferkit, as it chooses"]
    paired = statistics.median(one / other for one, other in zip(ours, figures[best], strict=True))
    print(f"  ours over the best bare step ({best}): {rates['transferkit, as it chooses'] / rates[best]:.3f}, "
          f"median of rounds {paired:.3f}")  # fmt: skip
    if options.workers == 0 and accelerator == "cpu":  # elsewhere work overlaps, and its parts do not add up
        print(f"  callbacks, metrics, logging and loops: {statistics.median(shares):.2%} of an epoch")


if __name__ == "__main__":
    main()
