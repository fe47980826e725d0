"""fastai's `fine_tune` on class folders, for `time_to_accuracy.py`; run by a Python that has fastai, timm, safetensors.

Prints a JSON line `{"epoch": ..., "accuracy": ...}` whenever a validation accuracy is known.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from fastai.vision.all import (  # type: ignore[import-not-found]
    Callback,
    ImageDataLoaders,
    Normalize,
    Resize,
    accuracy,
    aug_transforms,
    imagenet_stats,
    set_seed,
    vision_learner,
)
from safetensors.torch import load_file


class Says(Callback):  # type: ignore[misc]  # an untyped base
    """Prints the accuracy after every epoch."""

    def after_epoch(self) -> None:
        """Print."""
        line = {"epoch": self.epoch, "accuracy": float(self.learn.recorder.metrics[0].value)}
        print(json.dumps(line), flush=True)


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a folder with train/ and val/")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=4, help="after the frozen one")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    set_seed(options.seed, reproducible=False)
    batch_tfms = [*aug_transforms(size=options.image_size, min_scale=0.75), Normalize.from_stats(*imagenet_stats)]
    loaders = ImageDataLoaders.from_folder(
        options.data, train="train", valid="val", bs=64, num_workers=0,
        item_tfms=Resize(round(options.image_size * 1.15)), batch_tfms=batch_tfms,
    )  # fmt: skip
    learner = vision_learner(loaders, options.backbone, pretrained=False, normalize=False, metrics=accuracy, cbs=Says())
    body = learner.model[0].model
    state: dict[str, Any] = {name: value.float() if value.is_floating_point() else value
                             for name, value in load_file(options.weights).items()}  # fmt: skip
    missing, unused = body.load_state_dict({name: state[name] for name in state if name in body.state_dict()}, False)
    if missing or any(not name.startswith("fc.") for name in set(state) - set(body.state_dict())):
        raise SystemExit(f"the weights do not fit: {missing} {unused}")
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(options.epochs)


if __name__ == "__main__":
    main()
