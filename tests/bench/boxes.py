"""Boxes on real pictures: transferkit beside torchvision's reference recipe for Faster R-CNN in a loop written by hand.

    python tests/bench/boxes.py DATA --weights resnet18.safetensors [--image-size 192] [--epochs 3]

DATA is a set of objects. Both have the same pretrained resnet18, pictures, size of pictures, batch size and number of
epochs. The loop is torchvision's reference: frozen batch norm, its last three stages trained, SGD with momentum at 0.02
for 16 pictures with a warm-up over the first epoch and two steps down, mirror images. Ours is `finetune` as it comes: a
phase of the head on the frozen backbone, then all, AdamW and a cosine. Figures are faster-coco-eval's, at the pictures'
own sizes. `--steps N` times N training steps of each, in turn, instead: the last three stages and the head learn.
`--instances` is for a folder of pictures and numbered masks, without the loop: masks by Mask R-CNN.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torchvision
from safetensors.torch import load_file
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FasterRCNN
from torchvision.ops import FrozenBatchNorm2d

import transferkit as tk
from transferkit.data.augment.normalise import normalise
from transferkit.models.backbones.registry import create_backbone
from transferkit.models.detections.counts import BoxCounts
from transferkit.models.figures.boxes import box_tally
from transferkit.models.module import TransferModule
from transferkit.results.predict.predictor import load
from transferkit.runs.truths import truths_of
from transferkit.tasks.detection import TASK

BATCH = 8
KEYS = ("map", "map50", "map75")
MASKS = ("mask_map", "mask_map50")


def pictures(options: argparse.Namespace, config: object, augment: str) -> tk.ImageData:
    """Return the pictures as both read them."""
    return tk.ImageData(
        str(options.data), options.image_size, batch_size=BATCH, augment=augment, skip_bad=True, allow_leaks=True,
        reader=TASK.targets, data_config=config, workers=0, seed=options.seed,
        mask_values="instances" if options.instances else "classes",
    )  # fmt: skip


def network(options: argparse.Namespace, classes: int) -> FasterRCNN:
    """Return torchvision's Faster R-CNN with a feature pyramid on a pretrained resnet18, as its reference has it."""
    trunk = torchvision.models.resnet18(weights=None, norm_layer=FrozenBatchNorm2d)
    weights = load_file(options.weights)
    own = trunk.state_dict()
    trunk.load_state_dict(
        {key: weights[key] if key in weights and not key.startswith("fc") else own[key] for key in own}
    )
    for name, parameter in trunk.named_parameters():
        parameter.requires_grad_(name.startswith(("layer2", "layer3", "layer4")))
    layers = {f"layer{at}": str(at - 1) for at in range(1, 5)}
    backbone = BackboneWithFPN(trunk, layers, [64, 128, 256, 512], 256)
    side = options.image_size
    return FasterRCNN(backbone, classes + 1, min_size=side, max_size=side, image_mean=[0.0] * 3, image_std=[1.0] * 3)


def answers(targets: object) -> list[dict[str, torch.Tensor]]:
    """Return a batch's objects as torchvision takes them."""
    return [{"boxes": one.boxes[~one.crowd], "labels": one.classes[~one.crowd] + 1} for one in targets]


def line(name: str, tallies: list, classes: int, seconds: float) -> None:
    """Print a row; masks, where there are some, behind the time."""
    counts = BoxCounts(tallies, range(classes))
    values = dict(zip(counts.names[0], counts.figures(np.ones(len(tallies))).tolist(), strict=False))
    masks = "".join(f" {values[key]:.3f} |" for key in MASKS if key in values)
    print(f"| {name} | {' | '.join(f'{values[key]:.3f}' for key in KEYS)} | {seconds:.0f} s |{masks}", flush=True)


def ours(options: argparse.Namespace, head: str) -> None:
    """Train a run, and print its row."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        run = tk.finetune(
            data=str(options.data), backbone="resnet18", weights=options.weights, head=head, skip_bad=True,
            allow_leaks=True, image_size=options.image_size, batch_size=BATCH, probe_epochs=1,
            epochs=options.epochs - 1, augment="light", workers=0, precision="32", accelerator="cpu", quiet=True,
            report="off", seed=options.seed, out=f"{folder}/run",
            mask_values="instances" if options.instances else "classes",
        )  # fmt: skip
        seconds = time.perf_counter() - started
        predictor = load(run.path, accelerator="cpu")
        data = pictures(options, predictor.info.preprocessing, "none")
        paths = [record.path for record in data.index.split("val")]
        truths = truths_of(data.index.targets, [record.label for record in data.index.split("val")], paths,
                           predictor.info.preprocessing)  # fmt: skip
        outputs = predictor.outputs(paths, workers=0)
        tallies = [TASK.extent.entry(one.logits[0], truths.of(path)) for path, one in zip(paths, outputs, strict=True)]
        line(
            f"transferkit, {head}, 1 + {options.epochs - 1} epochs",
            tallies,
            len(data.index.targets.spec.names),
            seconds,
        )


def loop(options: argparse.Namespace) -> None:
    """Train torchvision's detector by hand, and print its row."""
    torch.manual_seed(options.seed)
    started = time.perf_counter()
    config = TASK.targets.framing(
        create_backbone("resnet18", weights="random", image_size=options.image_size).data_config
    )
    data = pictures(options, config, "light" if options.light else "none")
    classes = len(data.index.targets.spec.names)
    detector = network(options, classes)
    loader = data.train_loader(0, 1)
    steps = len(loader)
    learning = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.02 * BATCH / 16, momentum=0.9, weight_decay=1e-4)

    def factor(step: int) -> float:
        warm = min(1.0, 0.001 + step / steps)
        return warm * 0.1 ** sum(step >= share * options.epochs * steps for share in (16 / 26, 22 / 26))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    draws = torch.Generator().manual_seed(options.seed)
    for epoch in range(options.epochs):
        loader.sampler.set_epoch(epoch)
        detector.train()
        for images, targets in loader:
            shown, known = normalise(images, config), answers(targets)
            for at in range(0 if options.light else len(shown)):
                if float(torch.rand(1, generator=draws)) < 0.5:
                    shown[at] = shown[at].flip(2)
                    boxes = known[at]["boxes"]
                    known[at]["boxes"] = torch.stack(
                        (shown.shape[3] - boxes[:, 2], boxes[:, 1], shown.shape[3] - boxes[:, 0], boxes[:, 3]), dim=1
                    )
            loss = sum(detector(list(shown), known).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    seconds = time.perf_counter() - started
    records = data.index.split("val")
    paths = [record.path for record in records]
    truths = truths_of(data.index.targets, [record.label for record in records], paths, config)
    tallies = []
    detector.eval()
    with torch.inference_mode():
        for images, _ in data.evaluation_loader("val"):
            for found in detector(list(normalise(images, config))):
                truth = truths.of(paths[len(tallies)])
                columns = (found["boxes"], found["scores"][:, None], found["labels"][:, None].float() - 1)
                one = truth.annotation
                tallies.append(box_tally(torch.cat(columns, dim=1), truth.frame, one.size, boxes=one.boxes,
                                         classes=one.classes, crowd=one.crowd))  # fmt: skip
    line(f"torchvision's reference by hand, {options.epochs} epochs", tallies, classes, seconds)


def speed(options: argparse.Namespace) -> None:
    """Time training steps of both in turn, on the same batches, and print medians and their ratio."""
    backbone = create_backbone("resnet18", weights=options.weights, image_size=options.image_size)
    backbone.data_config = TASK.targets.framing(backbone.data_config)
    data = pictures(options, backbone.data_config, "none")
    spec = data.index.targets.spec
    module = TransferModule(backbone, len(spec.names), "faster_rcnn", class_names=spec.names, task=TASK,
                            target_facts=spec.facts)  # fmt: skip
    module.train_groups([name for name in module.group_names() if name in ("layer2", "layer3", "layer4", "head")])
    module = module.to(memory_format=torch.channels_last).train()
    detector = network(options, len(spec.names)).train()
    sides = {
        "transferkit": (module, lambda images, targets: module.loss(module.learn(images), targets)),
        "torchvision": (detector, lambda images, targets: sum(detector(list(images), answers(targets)).values())),
    }
    optimizers = {name: torch.optim.SGD([p for p in one.parameters() if p.requires_grad], lr=1e-3)
                  for name, (one, _) in sides.items()}  # fmt: skip
    dataset, seconds = data.dataset("train"), {name: [] for name in sides}
    for step in range(options.steps + 1):
        places = [(step * BATCH + at) % len(dataset) for at in range(BATCH)]
        images, targets = dataset.batch(places).labelled()
        for name, (_, loss) in sides.items():
            shown = normalise(images, data.data_config)
            begun = time.perf_counter()
            optimizers[name].zero_grad()
            loss(shown, targets).backward()
            optimizers[name].step()
            if step:
                seconds[name].append(time.perf_counter() - begun)
    medians = {name: median(times) for name, times in seconds.items()}
    ratio = median(theirs / mine for mine, theirs in zip(*seconds.values(), strict=True))
    for name, value in medians.items():
        print(f"{name:<12}{1 / value:.3f} steps/s of {BATCH} pictures (median of {options.steps})")
    print(f"ratio       {ratio:.2f}")


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--image-size", type=int, default=192)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--heads", nargs="*", default=["faster_rcnn"])
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--light", action="store_true", help="our augmentation `light` for the loop, too")
    parser.add_argument("--instances", action="store_true")
    parser.add_argument("--ours", action="store_true", help="without the loop")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.steps:
        speed(options)
        return
    print("| | mAP | AP50 | AP75 | time |\n|---|---|---|---|---|", flush=True)
    for head in ["mask_rcnn"] if options.instances else options.heads:
        ours(options, head)
    if not (options.instances or options.ours):
        loop(options)


if __name__ == "__main__":
    main()
