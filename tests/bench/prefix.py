"""Would it pay to keep the activations at the freeze boundary, while only the last groups train?

    python tests/bench/prefix.py --data clothing/ [--backbone resnet18] [--image-size 224] [--images 512]

One side trains the last groups the way `finetune` does: pictures from memory, resized, through the frozen part in
inference, through the rest with gradients. The other side starts from the boundary's activations, kept in memory in the
precision they are computed in. Printed besides: what those activations take per picture, and what computing them costs.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from harness import compare, print_table
from torch import Tensor

from transferkit.data.augment.normalise import normalise
from transferkit.data.batches.datamodule import ImageData
from transferkit.machine.cores import available_cores
from transferkit.machine.device import tune_process
from transferkit.models.backbones.registry import create_backbone
from transferkit.models.module import TransferModule


class Boundary:
    """Catches what a stage returns, or puts something else in its place."""

    def __init__(self, stage: torch.nn.Module) -> None:
        self.caught: Tensor | None = None
        self.given: Tensor | None = None
        stage.register_forward_hook(self)

    def __call__(self, module: torch.nn.Module, inputs: object, output: Tensor) -> Tensor:
        """Keep the output; return the given activations instead, where there are any."""
        self.caught = output
        return output if self.given is None else self.given


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="class folders")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--groups", type=int, default=1, help="last groups of the backbone that train, with the head")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    tune_process(available_cores())
    backbone = create_backbone(options.backbone, weights="random", image_size=options.image_size)
    data = ImageData(options.data, augment="none", data_config=backbone.data_config, val_split=0.0, test_split=0.0,
                     allow_leaks=True)  # fmt: skip
    module = TransferModule(backbone, data.num_classes).to(memory_format=torch.channels_last)
    names = list(backbone.stages())
    first = names[-options.groups - 1]
    position = module.group_names().index(first)
    module.train_groups(module.group_names()[position + 1 :])
    module.train()
    boundary = Boundary(backbone.stages()[first])
    optimizer = module.configure_optimizers()
    dataset = data.dataset("train", train=True)
    batches = [dataset.batch(range(start, start + 32)).labelled() for start in range(0, options.images, 32)]
    kept: list[Tensor] = []

    def step(images: Tensor, targets: Tensor) -> None:
        loss = torch.nn.functional.cross_entropy(module(images), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def recomputed() -> float:
        started = time.perf_counter()
        for start in range(0, options.images, 32):
            images, targets = dataset.batch(range(start, start + 32)).labelled()
            step(normalise(images, backbone.data_config), targets)
        return options.images / (time.perf_counter() - started)

    def from_boundary() -> float:
        dummy = normalise(batches[0][0][:1], backbone.data_config)  # the frozen part has to be called with something
        started = time.perf_counter()
        for activations, (_, targets) in zip(kept, batches, strict=True):
            boundary.given = activations
            step(dummy, targets)
        boundary.given = None
        return options.images / (time.perf_counter() - started)

    started = time.perf_counter()
    with torch.no_grad():
        for images, _ in batches:
            module.eval()(normalise(images, backbone.data_config))
            assert boundary.caught is not None
            kept.append(boundary.caught.clone())
    filling = options.images / (time.perf_counter() - started)
    module.train()
    each = kept[0][0].numel() * kept[0].element_size()
    sides = {"through the frozen part": recomputed, "from kept activations": from_boundary}
    title = f"training the last {options.groups} group(s) and the head, {options.backbone} at {options.image_size} px"
    print_table(title, compare(sides, rounds=options.rounds), base="through the frozen part", unit="images/s")
    total = len(data.index.split("train"))
    print(f"  activations of {first}: {tuple(kept[0].shape[1:])}, {each / 1e3:.0f} kB a picture and view in "
          f"{str(kept[0].dtype)[6:]}, {each * total / 1e6:,.0f} MB for {total:,} pictures; "
          f"computed at {filling:.1f} images/s")  # fmt: skip


if __name__ == "__main__":
    main()
