"""Masks on real pictures: transferkit beside segmentation_models_pytorch's U-Net in a loop written by hand.

    python tests/bench/nuclei.py NUCLEI --weights resnet18.safetensors [--epochs 6] [--image-size 128] [--seeds 1]
    python tests/bench/nuclei.py NUCLEI --weights resnet18.safetensors --tile 128 --image-size 256 [--solved]

NUCLEI holds `train/` and `val/` with `images/` and `masks/` of numbered nuclei; above 0 is a nucleus. Every way has the
same weights, pictures on the same canvas, augmentation (`light`), loss (cross entropy and Dice), batch size, AdamW at
the same LR with a warm-up and a cosine, and is measured at the pictures' own sizes by scikit-learn's confusion matrix.
The loop trains the whole U-Net for as many epochs as probe-finetune trains in both of its phases together.

`--steps N` times N training steps of both instead, in turn on the same batches.

With `--tile` pictures that are seen whole, at that side and at `--image-size`, are held against windows of that side at
their own resolution: the U-Net on the frozen backbone, of about as many pixels in all, or, `--solved`, a solved head.
"""

from __future__ import annotations

import argparse
import csv
import math
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median

import numpy as np
import segmentation_models_pytorch as smp
import torch
from PIL import Image
from safetensors.torch import load_file
from segmentation_models_pytorch.losses import DiceLoss
from sklearn.metrics import confusion_matrix
from torch.nn import functional

import transferkit as tk
from transferkit.data.augment.normalise import normalise
from transferkit.models.backbones.registry import create_backbone
from transferkit.models.figures.masks import mask_of
from transferkit.models.module import TransferModule
from transferkit.results.predict.predictor import load
from transferkit.runs.truths import truths_of
from transferkit.tasks.segmentation import TASK

BATCH = 16
WARMUP = 0.1
"""Of the steps of the loop."""


def scores(nuclei: Path, masks: dict[str, np.ndarray]) -> tuple[float, float, float]:
    """Return mean IoU, Dice of the nuclei, and mean Dice of masks by name, at the pictures' own sizes."""
    table = np.zeros((2, 2))
    for name, mask in masks.items():
        truth = np.asarray(Image.open(nuclei / "val" / "masks" / name)) > 0
        table += confusion_matrix(truth.ravel(), mask.ravel() > 0, labels=[False, True])
    right, both = table.diagonal(), table.sum(axis=0) + table.sum(axis=1)
    dice = 2 * right / both
    return float((right / (both - right)).mean()), float(dice[1]), float(dice.mean())


def line(name: str, nuclei: Path, masks: dict[str, np.ndarray], seconds: float, rate: float | None) -> None:
    """Print a row."""
    miou, dice, mean = scores(nuclei, masks)
    shown = "" if rate is None else f"{rate:.2f}"
    print(f"| {name} | {miou:.3f} | {dice:.3f} | {mean:.3f} | {seconds:.0f} s | {shown} |", flush=True)


def ours(name: str, options: argparse.Namespace, **more: object) -> None:
    """Train a run, and print its row: all seconds from the first line to the model, and steps per second."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        run = tk.finetune(
            data=str(options.nuclei), mask_values="binary", backbone="torchvision/resnet18" if options.torchvision else
            "resnet18", weights=options.weights, batch_size=BATCH, workers=0, precision="32", accelerator="cpu",
            quiet=True, report="off", calibrate="none", lr=options.lr, store=f"{folder}/store", out=f"{folder}/run",
            **{"image_size": options.image_size, **more},
        )  # fmt: skip
        seconds = time.perf_counter() - started
        predictor = load(run.path, accelerator="cpu")
        paths = sorted((options.nuclei / "val" / "images").iterdir())
        made = predictor.predict(list(map(str, paths)), workers=0)
        masks = {path.name: one.mask for path, one in zip(paths, made, strict=True)}
        history = run.path / "history.csv"  # of the last epoch, as of the loop: its pictures are decoded already
        epochs = list(csv.DictReader(history.read_text(encoding="utf-8").splitlines())) if history.is_file() else []
        line(name, options.nuclei, masks, seconds, float(epochs[-1]["images_per_s"]) / BATCH if epochs else None)


def loop(options: argparse.Namespace, epochs: int, seed: int) -> None:
    """Train segmentation_models_pytorch's U-Net by hand, and print its row."""
    torch.manual_seed(seed)
    started = time.perf_counter()
    network = smp.Unet("resnet18", encoder_weights=None, classes=2)
    weights = load_file(options.weights)
    own = network.encoder.state_dict()
    network.encoder.load_state_dict({**own, **{key: value for key, value in weights.items() if key in own}})
    network = network.to(memory_format=torch.channels_last)
    data = tk.ImageData(
        str(options.nuclei), options.image_size, batch_size=BATCH, augment="light", mask_values="binary",
        reader=TASK.targets, seed=seed,
    )  # fmt: skip
    loader, dice = data.train_loader(0, 1), DiceLoss("multiclass", ignore_index=255)
    steps = epochs * len(loader)
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.lr, weight_decay=0.05)

    def factor(step: int) -> float:
        ready = max(1, round(WARMUP * steps))
        if step < ready:
            return (step + 1) / ready
        return 0.5 * (1 + math.cos(math.pi * (step - ready) / max(1, steps - ready)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    begun = 0.0
    for epoch in range(epochs):
        begun = time.perf_counter()
        loader.sampler.set_epoch(epoch)
        network.train()
        for images, targets in loader:
            logits = network(normalise(images, data.data_config))
            targets = targets.long()
            loss = by_hand_loss(logits, targets, dice)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    rate = len(loader) / (time.perf_counter() - begun)
    seconds = time.perf_counter() - started
    records = data.index.split("val")
    truths = truths_of(
        data.index.targets, [record.label for record in records], [record.path for record in records], data.data_config
    )
    masks, done = {}, 0
    network.eval()
    with torch.inference_mode():
        for images, _ in data.evaluation_loader("val"):
            for logits in network(normalise(images, data.data_config)):
                path = records[done].path
                truth = truths.of(path)
                masks[Path(path).name] = mask_of(logits, truth.frame, truth.annotation.mask.shape)
                done += 1
    line(f"segmentation_models_pytorch by hand, {epochs} epochs, seed {seed}", options.nuclei, masks, seconds, rate)


def speed(options: argparse.Namespace) -> None:
    """Time training steps of both U-Nets in turn, all of them and on a frozen backbone, on the same batches."""
    backbone = create_backbone("resnet18", weights=options.weights, image_size=options.image_size)
    backbone.data_config = TASK.targets.framing(backbone.data_config)
    data = tk.ImageData(str(options.nuclei), batch_size=BATCH, augment="none", mask_values="binary", workers=0,
                        reader=TASK.targets, data_config=backbone.data_config)  # fmt: skip
    spec = data.index.targets.spec
    module = TransferModule(backbone, 2, "unet", class_names=spec.names, task=TASK, target_facts=spec.facts)
    module = module.to(memory_format=torch.channels_last)
    network = smp.Unet("resnet18", encoder_weights=None, classes=2).to(memory_format=torch.channels_last)
    dice = DiceLoss("multiclass", ignore_index=255)
    dataset = data.dataset("train")
    for frozen in (False, True):
        module.train_groups(["head"] if frozen else module.group_names())
        module.train()
        network.train()
        network.encoder.requires_grad_(not frozen)
        network.encoder.train(not frozen)
        sides = {
            "transferkit": (module, lambda images, targets: module.loss(module.learn(images), targets)),
            "by hand": (network, lambda images, targets: by_hand_loss(network(images), targets.long(), dice)),
        }
        optimizers = {name: torch.optim.AdamW([p for p in one.parameters() if p.requires_grad], lr=1e-4)
                      for name, (one, _) in sides.items()}  # fmt: skip
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for step in range(options.steps + 1):
            images, targets = dataset.batch([(step * BATCH + at) % len(dataset) for at in range(BATCH)]).labelled()
            for name in sorted(sides, reverse=step % 2 == 0):  # each is the first one as often
                loss, shown = sides[name][1], normalise(images, data.data_config)
                begun = time.perf_counter()
                optimizers[name].zero_grad()
                loss(shown, targets).backward()
                optimizers[name].step()
                if step:
                    seconds[name].append(time.perf_counter() - begun)
        ratio = median(theirs / mine for mine, theirs in zip(*seconds.values(), strict=True))
        rates = ", ".join(f"{name} {1 / median(times):.3f}" for name, times in seconds.items())
        what = "the decoder on a frozen backbone" if frozen else "everything"
        print(f"{what}: {rates} steps/s of {BATCH} pictures, median of {options.steps}; ratio of the pairs {ratio:.2f}")


def by_hand_loss(logits: torch.Tensor, targets: torch.Tensor, dice: DiceLoss) -> torch.Tensor:
    """Return cross entropy and Dice."""
    return functional.cross_entropy(logits, targets, ignore_index=255) + dice(logits, targets)


def windows(options: argparse.Namespace) -> None:
    """Hold pictures seen whole against windows of `--tile` pixels, of solved heads and of U-Nets that are trained."""
    budget = 0
    sides = sorted({options.tile, options.image_size})
    ways = [*(("whole", side, False) for side in sides), ("windows", options.tile, True)]
    for seen, side, tile in ways if options.solved else ():
        ours(f"hypercolumns, solved, {seen} at {side}", options, head="hypercolumns", phases="probe", image_size=side,
             tile=tile)  # fmt: skip
    for seen, side, tile in () if options.solved else reversed(ways):
        data = tk.ImageData(str(options.nuclei), side, tile=tile, mask_values="binary", reader=TASK.targets)
        pixels = data.rows("train") * side * side
        budget = budget or options.epochs * pixels
        epochs = max(1, round(budget / pixels))
        ours(f"unet on the frozen backbone, {seen} at {side}, {epochs} epochs", options, head="unet", phases="probe",
             probe="sgd", probe_epochs=epochs, probe_lr=options.lr, image_size=side, tile=tile)  # fmt: skip


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("nuclei", type=Path)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--probe-epochs", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--solved", action="store_true", help="the linear head, solved, too")
    parser.add_argument("--tile", type=int, help="side of windows; nothing but these and whole pictures is measured")
    parser.add_argument("--steps", type=int, help="time so many training steps in turn, and nothing else")
    parser.add_argument("--torchvision", action="store_true", help="torchvision's network instead of timm's")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.steps:
        speed(options)
        return
    print("| | mean IoU | Dice of nuclei | mean Dice | time | steps/s |\n|---|---|---|---|---|---|")
    if options.tile:
        windows(options)
        return
    if options.solved:
        ours("linear head, solved", options, head="linear", phases="probe")
    both = options.epochs + options.probe_epochs
    frozen = {"head": "unet", "phases": "probe", "probe": "sgd", "probe_epochs": both, "probe_lr": options.lr}
    for seed in range(options.seeds):
        ours(f"unet on the frozen backbone, {both} epochs, seed {seed}", options, seed=seed, **frozen)
        ours(
            f"unet, probe-finetune, {options.probe_epochs} + {options.epochs} epochs, seed {seed}", options,
            head="unet", phases="probe-finetune", probe="sgd", probe_epochs=options.probe_epochs,
            epochs=options.epochs, probe_lr=options.lr, seed=seed,
        )  # fmt: skip
        ours(f"unet, finetune, {both} epochs, seed {seed}", options, head="unet", phases="finetune", epochs=both,
             seed=seed)  # fmt: skip
        loop(options, both, seed)


if __name__ == "__main__":
    main()
